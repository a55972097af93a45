"""A record is an image with its caption and label; a data set is N records from any source."""

import errno
import hashlib
import io
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from zoo.data.preprocess import MAX_PIXELS, decode_image
from zoo.utils.text import quoted

# System errors that say nothing about the record, which may be read the next time.
_MACHINE_ERRORS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EINTR, errno.ESTALE, errno.ETIMEDOUT}

MISSING = "the file does not exist"


class BadSample(ValueError):
    """A record that cannot be used, with the reason."""


@dataclass(frozen=True)
class Record:
    """One row of a data set.

    Args:
        image: the bytes of an image file, or uint8 (H, W) or (H, W, C).
        name: for messages: a path, a member of a shard, a row.
        caption: text, if the data set has captions.
        label: class 0 to K - 1, if the data set has labels.
    """

    image: bytes | np.ndarray
    name: str
    caption: str | None = None
    label: int | None = None


def _no_metadata(_: int) -> dict[str, str]:
    return {}


@dataclass(frozen=True, eq=False)
class Dataset:
    """N records, read one at a time.

    Args:
        names: N names.
        read: i → Record. A ValueError or OSError concerns record i alone.
        fingerprint: hexadecimal digest of the rows, their order, names and texts.
        captions: whether the records have captions.
        labels: int32 (N,), -1 for an unknown label; None without labels.
        class_names: K names, or None where the labels are plain numbers or missing.
        metadata: i → {key: text} that the source holds about record i: the other columns of a table, the folder.
    """

    names: Sequence[str]
    read: Callable[[int], Record]
    fingerprint: str
    captions: bool = False
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] | None = None
    metadata: Callable[[int], dict[str, str]] = _no_metadata

    def __len__(self) -> int:
        return len(self.names)

    def record(self, index: int) -> Record:
        """Return record `index`, 0 to N - 1.

        Raises:
            BadSample: the record is unusable. OSError: a system error, such as too many open files.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        try:
            return self.read(index)
        except BadSample:
            raise
        except FileNotFoundError:
            raise BadSample(MISSING) from None
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in _MACHINE_ERRORS:
                raise
            raise BadSample(str(error)) from error

    def subset(self, indices: Iterable[int]) -> "Dataset":
        """Return the records at these indices, in this order."""
        places = np.asarray(list(indices), dtype=np.int64)
        if places.size and not (places.min() >= 0 and places.max() < len(self)):
            raise IndexError(f"indices run from {places.min()} to {places.max()}; allowed are 0 to {len(self) - 1}")
        return replace(
            self,
            names=[self.names[i] for i in places],
            read=lambda i: self.read(int(places[i])),
            fingerprint=digest([self.fingerprint, places.tobytes()]),
            labels=None if self.labels is None else self.labels[places],
            metadata=lambda i: self.metadata(int(places[i])),
        )

    def rows_by_name(self) -> dict[str, list[int]]:
        """Return {name: its records}, in the order of the first ones."""
        rows: dict[str, list[int]] = {}
        for i, name in enumerate(self.names):
            rows.setdefault(name, []).append(i)
        return rows

    def unique(self) -> "Dataset":
        """Return the first record of each name, in order."""
        rows = self.rows_by_name()
        return self if len(rows) == len(self) else self.subset(first for first, *_ in rows.values())

    def with_image_labels(self) -> "Dataset":
        """Return the same records with the number of their image as the label; itself if no name is there twice.

        Captions of one image, which are records of one name, are then positives of each other.
        """
        number_of = {name: i for i, name in enumerate(dict.fromkeys(self.names))}
        if len(number_of) == len(self):
            return self
        labels = np.array([number_of[name] for name in self.names], np.int32)
        return replace(
            self,
            read=lambda i: replace(self.read(i), label=int(labels[i])),
            fingerprint=digest([self.fingerprint, labels]),
            labels=labels,
            class_names=None,
        )

    def without_labels(self) -> "Dataset":
        """Return the same records without labels."""
        return replace(self, labels=None, class_names=None)


def from_arrays(
    images: np.ndarray | Sequence[np.ndarray],
    captions: Sequence[str] | None = None,
    labels: Sequence[int] | np.ndarray | None = None,
    *,
    class_names: Sequence[str] | None = None,
) -> Dataset:
    """Return a data set of images in memory.

    Args:
        images: uint8 (N, H, W, C) or (N, H, W), or N arrays (H, W, C) or (H, W) of any sizes; C is 1, 3 or 4.
        captions: N texts.
        labels: int (N,).
        class_names: names of labels 0 to K - 1.
    """
    images = [np.asarray(image) for image in images]
    for i, image in enumerate(images):
        if image.dtype != np.uint8 or image.ndim not in (2, 3):
            raise ValueError(f"image {i} is {image.dtype} {image.shape}; allowed is uint8 (H, W) or (H, W, C)")
    captions = None if captions is None else [str(caption) for caption in captions]
    classes = None if labels is None else check_labels(labels, class_names)
    for what, column in (("captions", captions), ("labels", classes)):
        if column is not None and len(column) != len(images):
            raise ValueError(f"{len(column)} {what} for {len(images)} images; one each is needed")

    def read(i: int) -> Record:
        label = None if classes is None else int(classes[i])
        return Record(images[i], f"image {i}", None if captions is None else captions[i], label)

    shapes = [str(image.shape) for image in images]
    parts = [*shapes, *images, *(captions or ()), b"" if classes is None else classes]
    names = [f"image {i}" for i in range(len(images))]
    names_of_classes = None if class_names is None else tuple(class_names)
    return Dataset(names, read, digest(parts), captions is not None, classes, names_of_classes)


def check_labels(labels: Sequence[int] | np.ndarray, class_names: Sequence[str] | None) -> np.ndarray:
    """Return int32 (N,); raise ValueError for a label that is not a class."""
    array = np.asarray(labels)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"labels are {array.dtype} {array.shape}; allowed is an integer (N,)")
    highest = np.iinfo(np.int32).max if class_names is None else len(class_names) - 1
    if array.size and not (array.min() >= 0 and array.max() <= highest):
        raise ValueError(f"labels run from {array.min()} to {array.max()}; allowed are 0 to {highest}")
    return array.astype(np.int32)


def digest(parts: Iterable[str | bytes | np.ndarray]) -> str:
    """Return the SHA-256 of all parts, each with its length, so that ["ab", "c"] and ["a", "bc"] differ."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            part = part.encode("utf-8", "surrogateescape")
        data = part.tobytes() if isinstance(part, np.ndarray) else part
        total.update(len(data).to_bytes(8, "little"))
        total.update(data)
    return total.hexdigest()


def image_digest(record: Record) -> str:
    """Return the SHA-256 of an image's bytes, in hexadecimal."""
    data = record.image.tobytes() if isinstance(record.image, np.ndarray) else record.image
    return hashlib.sha256(data).hexdigest()


def open_record(
    record: Record, *, max_pixels: int = MAX_PIXELS, least_size: tuple[int, int] | None = None
) -> Image.Image:
    """Return a record's decoded image in its own mode; `least_size` as in `decode_image`.

    Raises:
        BadSample: not an image of a known format, more than `max_pixels`, truncated or damaged.
    """
    if isinstance(record.image, np.ndarray):
        pixels = record.image[..., 0] if record.image.shape[2:] == (1,) else record.image
        if 0 in pixels.shape:
            raise BadSample(f"the image of shape {record.image.shape} has no pixels")
        return Image.fromarray(pixels)
    if not record.image:
        raise BadSample("the image is an empty file")
    try:
        limits: dict = {"max_pixels": max_pixels, "least_size": least_size}
        image = decode_image(io.BytesIO(record.image), "the image", file_name=record.name, **limits)
    except ValueError as error:
        raise BadSample(str(error)) from error
    _check_palette(image)
    return image


def _check_palette(image: Image.Image) -> None:
    """Raise BadSample for a short or missing palette, which Pillow would draw in black."""
    if image.mode not in ("P", "PA"):
        return
    highest, bands = image.getextrema(), len(image.palette.mode)
    highest = highest[0][1] if image.mode == "PA" else highest[1]
    colors = len(image.palette.palette) // bands
    if highest >= colors:
        raise BadSample(f"the image names colour {highest} of a palette of {colors}")


def refuse_url(name: str) -> None:
    """Raise ValueError for a URL or a shell command, which other readers would open."""
    if "://" in name or name.startswith("pipe:"):
        raise ValueError(f"{quoted(name)} is a URL or a command; only files are read")


def inside(root: str, name: str) -> str:
    """Return the real path of `name`, relative to `root`.

    Args:
        root: a real path, from `os.path.realpath`.

    Raises:
        ValueError: the path leaves `root` (`..`, an absolute path, a symbolic link), or is a URL.
    """
    refuse_url(name)
    path = os.path.realpath(os.path.join(root, name))
    try:
        contained = os.path.commonpath([root, path]) == root
    except ValueError:  # another drive
        contained = False
    if not contained:
        raise ValueError(f"{quoted(name)} leaves the data root {quoted(root)}")
    return path
