"""What the experiments share: the pair, the images they use, and the form of their results."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from zoo.data import open_record
from zoo.data.benchmarks import ORIGINS, find_files
from zoo.data.datasets import Labelled, load_labelled
from zoo.data.folders import read_images
from zoo.data.preprocess import to_display
from zoo.data.records import Record
from zoo.evaluation.results import embed_readable
from zoo.inference.pipeline import ClipPipeline
from zoo.models.registry import LoadedPair
from zoo.utils.report import paragraph

SMOKE_PER_CLASS = 12  # images
THUMBNAIL_SIZE = 160  # pixels
TITLES = {"digits": "the held-out digits", "cifar10": "CIFAR-10", "mnist": "MNIST"}


@dataclass(frozen=True)
class Outcome:
    """The result of an experiment.

    Args:
        title: title of its section in the report.
        headline: (label, value) of its tile.
        metrics: contents of its JSON file.
        blocks: blocks of its section, made by `zoo.utils.report`.
    """

    title: str
    headline: tuple[str, str]
    metrics: dict
    blocks: tuple[str, ...]


@dataclass(frozen=True)
class EmbeddedData:
    """A labelled data set with the embeddings of its images.

    Args:
        data: the records, with class names and templates.
        vectors: float32 (N, D), unit rows.
        kept: int (N,), the indices of the records that were embedded.
        bad: {record index: why it was left out}.
        note: set when this data set replaces one that is missing: which, and how to add it.
    """

    data: Labelled
    vectors: np.ndarray
    kept: np.ndarray
    bad: dict
    note: str = ""

    @property
    def labels(self) -> np.ndarray:
        """int (N,)."""
        return self.data.labels[self.kept]

    @property
    def names(self) -> tuple[str, ...]:
        return self.data.class_names

    @property
    def title(self) -> str:
        return TITLES.get(self.data.name, f"the images in {Path(self.data.name.partition(':')[2]).name}")

    @property
    def is_digits(self) -> bool:
        """Whether the classes are digits, which can be written as words and as numerals."""
        return self.data.name in ("digits", "mnist")

    @property
    def note_blocks(self) -> list[str]:
        """The note as a paragraph of the report, if there is one."""
        return [paragraph(self.note)] if self.note else []

    def thumbnail(self, i: int) -> np.ndarray:
        """Image i of N for a report, uint8 (H, W, 3)."""
        return thumbnail(self.data.records.record(int(self.kept[i])))


@dataclass
class Context:
    """The pair and the data of a run.

    Args:
        model: name or path of the pair, as the user gave it.
        pair: the loaded pair.
        folder: for the report and its plots.
        images: the user's folder of images, or None. With one folder per class it replaces the digits where labels are
            needed.
        data: folder with the original files of CIFAR-10 and MNIST, or None.
        class_names: possible classes of the user's images, or None.
        smoke: few images per class, few rounds, no download.
        seed: random seed.
    """

    model: str
    pair: LoadedPair
    folder: Path
    images: Path | None = None
    data: Path | None = None
    class_names: Sequence[str] | None = None
    smoke: bool = False
    seed: int = 0
    _embedded: dict = field(default_factory=dict)

    @functools.cached_property
    def pipeline(self) -> ClipPipeline:
        return ClipPipeline(self.pair)

    @property
    def name(self) -> str:
        """The pair's name in the zoo."""
        return self.pair.info.name if self.pair and self.pair.info else self.model

    @property
    def main(self) -> EmbeddedData:
        """The user's images where they have one folder per class, else the held-out digits."""
        return self.embedded("own" if self.images and has_class_folders(self.images) else "digits")

    def check_images(self) -> None:
        """Raise ValueError for a folder without images, or class names that do not match its folders."""
        if self.images and has_class_folders(self.images):
            self._open("own")

    def embedded(self, name: str) -> EmbeddedData:
        """Return "digits", "cifar10", "mnist" or "own", embedded once; the digits replace a missing data set."""
        if name not in self._embedded:
            data, note = self._open(name)
            if data is None:
                self._embedded[name] = replace(self.embedded("digits"), note=note)
            else:
                if self.smoke:
                    data = _first_of_each(data, SMOKE_PER_CLASS)
                self._embedded[name] = EmbeddedData(
                    data, *embed_readable(self.pipeline.encoder, data.records, progress=True)
                )
        return self._embedded[name]

    def _open(self, name: str) -> tuple[Labelled | None, str]:
        """Return (the data, "") or (None, why it is missing and how to add it)."""
        if name == "own":
            return load_labelled(f"folder:{self.images}", class_names=self.class_names), ""
        if name == "digits":
            return load_labelled(name), ""
        files = " and ".join(ORIGINS[name])
        (source, _), *_ = ORIGINS[name].values()
        advice = (
            f"Save {files} from {source} in a folder and pass it with --data. The held-out digits are used instead."
        )
        if self.data is not None:
            path = find_files(self.data, name)
            return (load_labelled(name, path), "") if path else (None, f"{self.data} has no {TITLES[name]}. {advice}")
        if self.smoke:
            return None, f"A smoke run skips {TITLES[name]}. {advice}"
        try:
            return load_labelled(name), ""
        except ValueError:
            return None, f"{TITLES[name]} is not on this machine and could not be downloaded. {advice}"


def has_class_folders(folder: Path) -> bool:
    """Return whether every image of a folder is in a subfolder."""
    return all("/" in name for name in read_images(folder).names)


def _first_of_each(data: Labelled, count: int) -> Labelled:
    """Return the first `count` images of each class."""
    chosen = [i for label in np.unique(data.labels) for i in np.flatnonzero(data.labels == label)[:count]]
    return replace(data, records=data.records.subset(sorted(chosen)))


def halves(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return two random halves of the indices of `labels`, int each: one to fit on and one to evaluate on.

    Raises:
        ValueError: there is only one image.
    """
    if len(labels) < 2:
        raise ValueError("1 image cannot be split into a half to fit on and a half to evaluate on; 2 are needed")
    order = np.random.default_rng(seed).permutation(len(labels))
    return np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :])


def thumbnail(record: Record) -> np.ndarray:
    """Return a record's image for a report, uint8 (H, W, 3); large ones are centre-cropped and resized."""
    image = Image.fromarray(to_display(open_record(record)))
    if max(image.size) > THUMBNAIL_SIZE:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side)).resize((THUMBNAIL_SIZE, THUMBNAIL_SIZE))
    return np.asarray(image)
