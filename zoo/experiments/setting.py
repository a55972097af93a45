"""What the experiments share: the pair in use, the pictures they look at, and the form of what they find."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from zoo.data import open_record
from zoo.data.benchmarks import ORIGINS, find_files
from zoo.data.datasets import Labelled, load_labelled
from zoo.data.records import Record
from zoo.evaluation.results import embed_readable
from zoo.inference.pipeline import ClipPipeline
from zoo.models.registry import Loaded

SMOKE_PER_CLASS = 12  # pictures
SHOWN_SIDE = 160  # pixels of a picture in a report
TITLES = {"digits": "the held-out digits", "cifar10": "CIFAR-10", "mnist": "MNIST"}


@dataclass(frozen=True)
class Outcome:
    """What an experiment found.

    Args:
        title: of its section in the report.
        headline: (what it is, the figure) of its tile.
        metrics: what its JSON file holds.
        blocks: of its section, made by `zoo.utils.report`.
    """

    title: str
    headline: tuple[str, str]
    metrics: dict
    blocks: tuple[str, ...]


@dataclass(frozen=True)
class Subject:
    """Labelled pictures that a pair has embedded.

    Args:
        data: where they are from, with class names and templates.
        vectors: float32 (N, D), unit rows.
        kept: int (N,), which records they are.
        bad: {record: why it was left out}.
        note: what the report has to say of it: that it stands in for something missing.
    """

    data: Labelled
    vectors: np.ndarray
    kept: np.ndarray
    bad: dict
    note: str = ""

    @property
    def labels(self) -> np.ndarray:
        """int (N,)."""
        return self.data.records.labels[self.kept]

    @property
    def names(self) -> tuple[str, ...]:
        return self.data.class_names

    @property
    def title(self) -> str:
        return TITLES.get(self.data.name, f"the pictures in {Path(self.data.name.partition(':')[2]).name}")

    @property
    def is_digits(self) -> bool:
        """Whether the classes are digits, which have a word and a numeral."""
        return self.data.name in ("digits", "mnist")

    def picture(self, i: int) -> np.ndarray:
        """Picture i of N for a report, uint8 (H, W, 3)."""
        return shown_picture(self.data.records.record(int(self.kept[i])))


@dataclass
class Setting:
    """A pair, and what the experiments are to look at.

    Args:
        model: as it was asked for.
        loaded: what `zoo.load` made of it.
        folder: for pictures of the report.
        images: a folder of the user's own pictures, or None. With a folder for each class it also takes the digits'
            place wherever labels are needed.
        data: a folder of original files of CIFAR-10 and MNIST, or None.
        class_names: what the user's pictures may show, or None.
        smoke: a few pictures of each class, nothing fetched, few rounds.
        seed: of what is drawn.
    """

    model: str
    loaded: Loaded
    folder: Path
    images: Path | None = None
    data: Path | None = None
    class_names: Sequence[str] | None = None
    smoke: bool = False
    seed: int = 0
    _subjects: dict = field(default_factory=dict)

    @functools.cached_property
    def pipeline(self) -> ClipPipeline:
        return ClipPipeline(self.loaded.model, preprocess=self.loaded.info.preprocess)

    @property
    def name(self) -> str:
        """Of the pair, as the zoo calls it."""
        return self.loaded.info.name if self.loaded else self.model

    @property
    def main(self) -> Subject:
        """The user's pictures where they lie in a folder for each class, else the held-out digits."""
        return self.subject("own" if self.images and has_classes(self.images) else "digits")

    def check_images(self) -> None:
        """ValueError for a folder without pictures, or class names that are not those of its folders."""
        if self.images and has_classes(self.images):
            self._find("own")

    def subject(self, name: str) -> Subject:
        """ "digits", "cifar10", "mnist" or "own", embedded once; the digits in the place of what is missing."""
        if name not in self._subjects:
            data, note = self._find(name)
            if note:
                self._subjects[name] = replace(self.subject("digits"), note=note)
            else:
                if self.smoke:
                    data = few_of_each(data, SMOKE_PER_CLASS)
                self._subjects[name] = Subject(
                    data, *embed_readable(self.pipeline.encoder, data.records, progress=True)
                )
        return self._subjects[name]

    def _find(self, name: str) -> tuple[Labelled | None, str]:
        """(the data, "") or (None, why the digits stand in for it)."""
        if name == "own":
            return load_labelled(f"folder:{self.images}", class_names=self.class_names), ""
        if name == "digits":
            return load_labelled(name), ""
        files = " and ".join(ORIGINS[name])
        (source, _), *_ = ORIGINS[name].values()
        advice = (
            f"Put {files} from {source} into a folder and name it with --data. The held-out digits stand in for it."
        )
        if self.data is not None:
            path = find_files(self.data, name)
            return (load_labelled(name, path), "") if path else (None, f"{self.data} has no {TITLES[name]}. {advice}")
        if self.smoke:
            return None, f"{TITLES[name]} is left out of a smoke run. {advice}"
        try:
            return load_labelled(name), ""
        except ValueError:
            return None, f"{TITLES[name]} is not on this machine, and could not be fetched. {advice}"


def has_classes(folder: Path) -> bool:
    """Whether every picture of a folder lies in a folder below it."""
    from zoo.data.folders import image_names

    return all("/" in name for name in image_names(folder))


def few_of_each(data: Labelled, count: int) -> Labelled:
    """The first `count` pictures of each class."""
    labels = data.records.labels
    chosen = [place for label in np.unique(labels) for place in np.flatnonzero(labels == label)[:count]]
    return replace(data, records=data.records.subset(sorted(chosen)))


def halves(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two halves of the pictures, int each, drawn by the seed: one to fit on and one to judge by.

    Raises:
        ValueError: there is one picture.
    """
    if len(labels) < 2:
        raise ValueError("1 picture cannot be halved into one to fit on and one to judge by; two are needed")
    order = np.random.default_rng(seed).permutation(len(labels))
    return np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :])


def shown_picture(record: Record) -> np.ndarray:
    """A record's picture as reports show it: uint8 (H, W, 3), the middle square of what is large."""
    image = open_record(record).convert("RGB")
    if max(image.size) > SHOWN_SIDE:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side)).resize((SHOWN_SIDE, SHOWN_SIDE))
    return np.asarray(image)
