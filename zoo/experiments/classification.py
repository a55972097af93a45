"""Experiment 2: pictures classified from words alone, with how sure the pair is of each."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clip import CLASS_NAMES, TEMPLATES
from zoo.data import Dataset, Record, open_dataset
from zoo.evaluation.results import embed_readable
from zoo.experiments.plots import Guess, plot_guesses
from zoo.experiments.setting import Outcome, Setting, has_classes, shown_picture
from zoo.utils import report
from zoo.utils.report import percent

SHOWN, BARS = 10, 4
PHOTOGRAPHS = {  # what shows on the pictures that come with scikit-learn and scikit-image
    "flower.jpg": "flower",
    "china.jpg": "temple",
    "astronaut.png": "astronaut",
    "chelsea.png": "cat",
    "coffee.png": "cup of coffee",
    "rocket.jpg": "rocket",
}
SAMPLE_FOLDERS = {"sklearn": "datasets/images", "skimage": "data"}
PHOTOGRAPH_NAMES = tuple(PHOTOGRAPHS.values())
EVERYDAY_NAMES = tuple(dict.fromkeys([*CLASS_NAMES["cifar10"], "person", "building", "landscape", *PHOTOGRAPH_NAMES]))


@dataclass(frozen=True)
class Group:
    """Pictures that are asked about the same classes.

    Args:
        title: of the group.
        records: N pictures.
        truths: N class names, or Nones.
        names, templates: of the prompts.
        embedded: what `Encoder.embed_records` made of the records, where that is done already.
    """

    title: str
    records: Dataset
    truths: list
    names: tuple[str, ...]
    templates: tuple[str, ...]
    embedded: tuple | None = None


def run(setting: Setting) -> Outcome:
    blocks, metrics = [], []
    for number, group in enumerate(groups_of(setting)):
        found, guesses = classify(setting, group)
        path = setting.folder / f"classification-{number}.png"
        plot_guesses(path, guesses[:SHOWN])
        metrics.append(found)
        blocks += [report.paragraph(told(found)), report.figure(path, caption(group, len(found["pictures"])))]
    title, accuracy = metrics[0]["title"], metrics[0]["accuracy"]
    if accuracy is None:
        headline = (f"mean confidence on {title}", percent(metrics[0]["confidence"]))
    else:
        headline = (f"of {title} named right", percent(accuracy))
    return Outcome("Pictures, classified from words alone", headline, {"groups": metrics}, tuple(blocks))


def groups_of(setting: Setting) -> list[Group]:
    """The user's pictures; without any, one held-out digit of each kind and the photographs that are installed."""
    if setting.images is not None:
        return [sorted_pictures(setting) if has_classes(setting.images) else loose_pictures(setting)]
    digits = setting.subject("digits")
    firsts = [int(np.flatnonzero(digits.labels == label)[0]) for label in np.unique(digits.labels)]
    records = digits.data.records.subset(digits.kept[firsts])
    truths = [digits.names[label] for label in records.labels]
    photographs = find_photographs()
    pictures = Dataset(
        [path.name for path in photographs],
        lambda i: Record(photographs[i].read_bytes(), photographs[i].name),
        "photographs",
    )
    shown = [PHOTOGRAPHS[path.name] for path in photographs]
    return [
        Group("held-out digits", records, truths, digits.names, digits.data.templates),
        *([Group("photographs", pictures, shown, PHOTOGRAPH_NAMES, TEMPLATES["simple"])] if photographs else []),
    ]


def sorted_pictures(setting: Setting) -> Group:
    """The user's pictures in a folder for each class: what they show is known."""
    own = setting.subject("own")
    truths = [own.names[label] if label >= 0 else None for label in own.data.records.labels]
    embedded = (own.vectors, own.kept, own.bad)
    return Group("pictures of yours", own.data.records, truths, own.names, own.data.templates, embedded)


def loose_pictures(setting: Setting) -> Group:
    """The user's pictures, of which nothing is known."""
    records = open_dataset(setting.images, needs="images")
    names = tuple(setting.class_names or EVERYDAY_NAMES)
    return Group("pictures of yours", records, [None] * len(records), names, TEMPLATES["simple"])


def find_photographs() -> list[Path]:
    """Those of PHOTOGRAPHS that are installed; the libraries are not imported."""
    found = {}
    for library, folder in SAMPLE_FOLDERS.items():
        spec = importlib.util.find_spec(library)
        if spec is not None:
            base = Path(spec.origin).parent / folder
            found |= {name: base / name for name in PHOTOGRAPHS if (base / name).is_file()}
    return [found[name] for name in PHOTOGRAPHS if name in found]


def classify(setting: Setting, group: Group) -> tuple[dict, list[Guess]]:
    """(figures, what to show) of a group."""
    vectors, kept, bad = group.embedded or embed_readable(setting.pipeline.encoder, group.records)
    shares = setting.pipeline.classifier(group.names, group.templates).probabilities(vectors)
    pictures, guesses = [], []
    for place, row in zip(kept, shares, strict=True):
        best = np.argsort(-row, kind="stable")[:BARS]
        names = [group.names[i] for i in best]
        truth = group.truths[place]
        found = {name: float(row[i]) for name, i in zip(names, best, strict=True)}
        pictures.append({"picture": group.records.names[place], "truth": truth, "guesses": found})
        if len(guesses) < SHOWN:
            guesses.append(Guess(shown_picture(group.records.record(int(place))), names, row[best], truth))
    known = [picture for picture in pictures if picture["truth"]]
    right = [next(iter(picture["guesses"])) == picture["truth"] for picture in known]
    return {
        "title": group.title,
        "classes": list(group.names),
        "templates": list(group.templates),
        "accuracy": float(np.mean(right)) if known else None,
        "confidence": float(shares.max(axis=1).mean()),
        "pictures": pictures,
        "left_out": {group.records.names[i]: reason for i, reason in bad.items()},
    }, guesses


def told(found: dict) -> str:
    count = len(found["pictures"])
    names = found["classes"]
    asked = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
    right = "" if found["accuracy"] is None else f" {percent(found['accuracy'])} are named right."
    left = f" Left out, because they cannot be read: {', '.join(found['left_out'])}." if found["left_out"] else ""
    return (
        f"{count} {found['title']}, each asked which of these it is: {asked}.{right} The mean "
        f"confidence of the first guess is {percent(found['confidence'])}.{left}"
    )


def caption(group: Group, count: int) -> str:
    more = f" The first {SHOWN} of {count}." if count > SHOWN else ""
    truth = " Green is right, red a first guess that is wrong." if any(group.truths) else ""
    unseen = " A pair always answers: where it has seen nothing like a picture in training, its answer means nothing."
    return f"The likeliest classes of each.{truth}{more}" + (unseen if group.title == "photographs" else "")
