"""Records from a folder of image files: with .txt captions, or with one folder per class."""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from zoo.data.plugins import EXTENSIONS as PLUGIN_EXTENSIONS
from zoo.data.records import BadSample, Dataset, Record, digest, inside
from zoo.utils.files import read_file
from zoo.utils.text import quoted

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
MAX_TEXT_BYTES = 1 << 20  # of a file with a caption, which usually has a few hundred characters
SYSTEM_FOLDERS = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found", "__pycache__"}
_MAX_NAMED = 5  # folders, in a message


def read_folder(path: str | Path, *, class_names: Sequence[str] | None = None) -> Dataset:
    """Return the image files in a folder and its subfolders, in sorted order.

    If any image has a .txt file of the same name, these texts are the captions, and there are no labels. Otherwise the
    folders directly below `path` that hold images are the classes; a warning names the others. Hidden files and
    SYSTEM_FOLDERS are ignored, and links to folders are not followed.

    Args:
        class_names: the class folders in the order of their labels; default: sorted. An image in another folder is a
            bad record. For validation data, pass the training data's.

    Raises:
        ValueError: no images, or images with neither captions nor class folders.
    """
    root, (images, files) = os.path.realpath(path), _find(path, IMAGE_EXTENSIONS)
    texts = {name for name in files if name.endswith(".txt")}
    if any(_text_of(name) in texts for name in images):
        return _captioned(root, images)
    return _classes(root, images, class_names)


def read_images(path: str | Path, *, plugins: bool = False) -> Dataset:
    """Return the image files in a folder, at any depth and in sorted order, without captions or labels.

    Args:
        plugins: also HEIC, AVIF and RAW files; a record of one whose plugin is missing cannot be read.

    Raises:
        ValueError: not a folder, or no images.
    """
    root = os.path.realpath(path)
    images, _ = _find(path, (*IMAGE_EXTENSIONS, *PLUGIN_EXTENSIONS) if plugins else IMAGE_EXTENSIONS)
    return image_dataset(images, lambda name: read_file(inside(root, name)))


def image_dataset(names: list[str], read: Callable[[str], bytes]) -> Dataset:
    """Return image files by name, without captions or labels."""
    return Dataset(
        names,
        lambda i: Record(read(names[i]), names[i]),
        digest(names),
        metadata=lambda i: _folder_of(names[i]),
    )


def _find(path: str | Path, extensions: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Return the relative paths of the image files below a folder, and of all files, in sorted order.

    Raises:
        ValueError: not a folder, or no images; the message says what to name where it holds tables or shards.
    """
    if not os.path.isdir(path):
        raise ValueError(f"{quoted(str(path))} is not a folder")
    files = list(_walk(str(path)))
    images = [name for name in files if name.lower().endswith(extensions)]
    if images:
        return images, files
    for extension in (".parquet", ".tar", ".csv", ".tsv"):
        found = [name for name in files if name.lower().endswith(extension)]
        if found:
            which = found[0] if len(found) == 1 or extension not in (".parquet", ".tar") else f"*{extension}"
            pattern = os.path.join(path, os.path.dirname(found[0]), os.path.basename(which))
            raise ValueError(
                f"{quoted(str(path))} holds no images, but {extension} files; name them, as {quoted(pattern)}"
            )
    raise ValueError(f"{quoted(str(path))} holds no images; allowed are {', '.join(extensions)}")


def _folder_of(image: str) -> dict[str, str]:
    return {"folder": image.rpartition("/")[0]}


def _walk(root: str) -> Iterator[str]:
    """Yield the paths of files below `root`, relative to it and with / as separator, in sorted order."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        for name in sorted(files):
            if not name.startswith("."):
                yield os.path.relpath(os.path.join(folder, name), root).replace(os.sep, "/")


def _is_hidden(folder: str) -> bool:
    return folder.startswith(".") or folder in SYSTEM_FOLDERS


def _text_of(image: str) -> str:
    return os.path.splitext(image)[0] + ".txt"


def _captioned(root: str, images: list[str]) -> Dataset:
    def read(i: int) -> Record:
        try:
            text = read_file(inside(root, _text_of(images[i])), max_bytes=MAX_TEXT_BYTES)
        except FileNotFoundError:
            raise BadSample("no .txt beside it") from None
        return Record(read_file(inside(root, images[i])), images[i], read_caption(text))

    return Dataset(images, read, digest(images), captions=True, metadata=lambda i: _folder_of(images[i]))


def read_caption(data: bytes) -> str:
    """Return the text of a caption file; raise BadSample if it is empty or not UTF-8."""
    try:
        text = data.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise BadSample("the caption is not UTF-8") from None
    if not text:
        raise BadSample("the caption is empty")
    return text


def _name_empty(root: str, class_names: Sequence[str]) -> None:
    """Warn of the folders in `root` that hold no images."""
    empty = sorted({e.name for e in os.scandir(root) if e.is_dir() and not _is_hidden(e.name)} - set(class_names))
    if empty:
        more = f" and {len(empty) - _MAX_NAMED} more" if len(empty) > _MAX_NAMED else ""
        named = ", ".join(map(repr, empty[:_MAX_NAMED])) + more
        warnings.warn(f"no images, and so no class, in {named} of {quoted(root)}", stacklevel=4)


def _classes(root: str, images: list[str], class_names: Sequence[str] | None) -> Dataset:
    loose = [name for name in images if "/" not in name]
    if loose:
        raise ValueError(
            f"{quoted(loose[0])} has neither a .txt beside it nor a class folder around it in {quoted(root)}"
        )
    if class_names is None:
        class_names = sorted({name.partition("/")[0] for name in images})
        _name_empty(root, class_names)
    number_of = {name: i for i, name in enumerate(class_names)}
    labels = np.array([number_of.get(name.partition("/")[0], -1) for name in images], np.int32)

    def read(i: int) -> Record:
        if labels[i] < 0:
            raise BadSample(f"its folder is not among the {len(number_of)} known classes")
        return Record(read_file(inside(root, images[i])), images[i], label=int(labels[i]))

    fingerprint = digest([*class_names, *images])
    return Dataset(images, read, fingerprint, False, labels, tuple(class_names), lambda i: _folder_of(images[i]))
