"""Experiment 2: zero-shot classification of a few images, with the probabilities of the best classes."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from clip import CLASS_NAMES, TEMPLATES
from zoo.data import Dataset, Record, open_dataset
from zoo.evaluation.results import embed_readable
from zoo.experiments.context import Context, Outcome, has_class_folders, thumbnail
from zoo.experiments.plots import Guess, plot_guesses
from zoo.utils import report
from zoo.utils.report import percent

MAX_PLOTTED, BARS = 10, 4
PHOTOGRAPHS = {  # images that come with scikit-learn and scikit-image, and their class
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
    """Images that are classified among the same classes.

    Args:
        title: title of the group.
        records: N images.
        truths: N class names, None where unknown.
        names, templates: class names and templates of the prompts.
        embedded: the result of `Encoder.embed_records`, if the records are embedded already.
    """

    title: str
    records: Dataset
    truths: list
    names: tuple[str, ...]
    templates: tuple[str, ...]
    embedded: tuple | None = None


def run(context: Context) -> Outcome:
    blocks, metrics = [], []
    for number, group in enumerate(_create_groups(context)):
        found, guesses = classify(context, group)
        path = context.folder / f"classification-{number}.png"
        plot_guesses(path, guesses[:MAX_PLOTTED])
        metrics.append(found)
        blocks += [report.paragraph(describe(found)), report.figure(path, caption(group, len(found["pictures"])))]
    title, accuracy = metrics[0]["title"], metrics[0]["accuracy"]
    if accuracy is None:
        headline = (f"mean confidence on {title}", percent(metrics[0]["confidence"]))
    else:
        headline = (f"of {title} classified correctly", percent(accuracy))
    return Outcome("Zero-shot classification", headline, {"groups": metrics}, tuple(blocks))


def _create_groups(context: Context) -> list[Group]:
    """Return the user's images, or else one held-out digit per class and the photographs that are installed."""
    if context.images is not None:
        return [_labelled_images(context) if has_class_folders(context.images) else _unlabelled_images(context)]
    digits = context.embedded("digits")
    firsts = [int(np.flatnonzero(digits.labels == label)[0]) for label in np.unique(digits.labels)]
    records = digits.data.records.subset(digits.kept[firsts])
    truths: list = [digits.names[label] for label in digits.labels[firsts]]
    groups = [Group("held-out digits", records, truths, digits.names, digits.data.templates)]
    photographs = _find_photographs()
    if photographs:
        records = Dataset(
            [path.name for path in photographs],
            lambda i: Record(photographs[i].read_bytes(), photographs[i].name),
            "photographs",
        )
        truths = [PHOTOGRAPHS[path.name] for path in photographs]
        groups.append(Group("photographs", records, truths, PHOTOGRAPH_NAMES, TEMPLATES["simple"]))
    return groups


def _labelled_images(context: Context) -> Group:
    """Return the user's images in one folder per class."""
    own = context.embedded("own")
    truths = [own.names[label] if label >= 0 else None for label in own.data.labels]
    embedded = (own.vectors, own.kept, own.bad)
    return Group("of your images", own.data.records, truths, own.names, own.data.templates, embedded)


def _unlabelled_images(context: Context) -> Group:
    """Return the user's images, whose classes are unknown."""
    records = open_dataset(cast(Path, context.images), needs="images")
    names = tuple(context.class_names or EVERYDAY_NAMES)
    return Group("of your images", records, [None] * len(records), names, TEMPLATES["simple"])


def _find_photographs() -> list[Path]:
    """Return the PHOTOGRAPHS that are installed, without importing the libraries."""
    found: dict[str, Path] = {}
    for library, folder in SAMPLE_FOLDERS.items():
        spec = importlib.util.find_spec(library)
        if spec is not None and spec.origin is not None:
            base = Path(spec.origin).parent / folder
            found |= {name: base / name for name in PHOTOGRAPHS if (base / name).is_file()}
    return [found[name] for name in PHOTOGRAPHS if name in found]


def classify(context: Context, group: Group) -> tuple[dict, list[Guess]]:
    """Return (metrics, the first predictions for the plot) of a group."""
    vectors, kept, bad = group.embedded or embed_readable(context.pipeline.encoder, group.records)
    probabilities = context.pipeline.classifier(group.names, group.templates).probabilities(vectors)
    predictions: list[dict] = []
    guesses: list[Guess] = []
    for index, row in zip(kept, probabilities, strict=True):
        best = np.argsort(-row, kind="stable")[:BARS]
        names, truth = [group.names[i] for i in best], group.truths[index]
        found = {name: float(row[i]) for name, i in zip(names, best, strict=True)}
        predictions.append({"picture": group.records.names[index], "truth": truth, "guesses": found})
        if len(guesses) < MAX_PLOTTED:
            guesses.append(Guess(thumbnail(group.records.record(int(index))), names, row[best], truth))
    correct = [next(iter(p["guesses"])) == p["truth"] for p in predictions if p["truth"]]
    return {
        "title": group.title,
        "classes": list(group.names),
        "templates": list(group.templates),
        "accuracy": float(np.mean(correct)) if correct else None,
        "confidence": float(probabilities.max(axis=1).mean()),
        "pictures": predictions,
        "left_out": {group.records.names[i]: reason for i, reason in bad.items()},
    }, guesses


def describe(found: dict) -> str:
    names = found["classes"]
    classes = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
    correct = "" if found["accuracy"] is None else f" {percent(found['accuracy'])} are classified correctly."
    left_out = f" Left out because they cannot be read: {', '.join(found['left_out'])}." if found["left_out"] else ""
    return (
        f"{len(found['pictures'])} {found['title']}, classified among {classes}.{correct} The mean confidence is "
        f"{percent(found['confidence'])}.{left_out}"
    )


def caption(group: Group, count: int) -> str:
    more = f" The first {MAX_PLOTTED} of {count}." if count > MAX_PLOTTED else ""
    truth = " Green: the true class. Red: a wrong prediction." if any(group.truths) else ""
    unseen = " A model that was not trained on photographs still gives an answer, but it means nothing."
    return f"The most probable classes of each image.{truth}{more}" + (unseen if group.title == "photographs" else "")
