"""Images in an object store, through fsspec: folders, tables and tar shards behind a URL such as s3://bucket/photos.

Only a source that the user names is opened, never a URL inside data. fsspec and the store's own package (s3fs, gcsfs,
adlfs) have to be installed.
"""

import glob
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from zoo.data.folders import IMAGE_EXTENSIONS, image_dataset
from zoo.data.records import BadSample, Dataset, Record
from zoo.data.shards import expand_braces
from zoo.data.sources import open_dataset
from zoo.utils.env import require_packages
from zoo.utils.files import MAX_FILE_BYTES

_MAX_STAGED_BYTES = 64 << 30  # of one table or shard, which is copied to a temporary file while it is read


def is_remote(source: str | Path) -> bool:
    """Whether a source is the URL of an object store."""
    return "://" in str(source)


def _connect(url: str) -> tuple[Any, str]:
    """Return (fsspec file system, path in it)."""
    require_packages(repr(url), ("fsspec",), extras="scale")
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:  # a package that is not installed names itself
        raise ValueError(f"{url!r} cannot be opened: {error}") from None


def find_remote_shards(url: str) -> list[tuple[str, int]]:
    """Return (URL, bytes) of the tar shards that a URL with braces or wildcards matches, in order.

    Raises:
        ValueError: nothing matches.
    """
    found: list[tuple[str, int]] = []
    for pattern in expand_braces(url):
        files, path = _connect(pattern)
        paths = sorted(files.glob(path)) if glob.has_magic(path) else [path]
        if not paths or not files.exists(paths[0]):
            raise ValueError(f"no shard {pattern!r}")
        found += [(files.unstrip_protocol(path), int(files.size(path))) for path in paths]
    return found


@contextmanager
def staged(url: str) -> Iterator[Path]:
    """Copy a remote file to a temporary folder for the duration of the block."""
    files, path = _connect(url)
    size = files.size(path)
    if size is not None and size > _MAX_STAGED_BYTES:
        raise ValueError(f"{url!r} has {size} bytes; at most {_MAX_STAGED_BYTES} are copied. Use smaller shards")
    with tempfile.TemporaryDirectory(prefix="zoo-remote-", ignore_cleanup_errors=True) as folder:
        local = Path(folder) / path.rstrip("/").rpartition("/")[2]
        files.get_file(path, str(local))
        yield local


def open_remote(url: str) -> Dataset:
    """Return the images of a folder or a table in an object store; each is fetched when it is read.

    Raises:
        ValueError: no images. FileNotFoundError: no such path.
    """
    files, path = _connect(url)
    if not files.isdir(path):
        return _table(url, files, path)
    root = path.rstrip("/")
    inside = (name[len(root) :].lstrip("/") for name in files.find(root))
    visible = (name for name in inside if not name.startswith(".") and "/." not in name)
    names = sorted(name for name in visible if name.lower().endswith(IMAGE_EXTENSIONS))
    if not names:
        raise ValueError(f"{url!r} holds no images; allowed are {', '.join(IMAGE_EXTENSIONS)}")
    return image_dataset(names, _fetcher(files, root))


def _table(url: str, files, path: str) -> Dataset:
    """Return a table's images; it is read from a copy, and paths that the copy's folder does not hold are fetched."""
    if not files.exists(path):
        raise FileNotFoundError(f"{url!r} does not exist")
    with staged(url) as local:
        records = open_dataset(local, needs="images", metadata=True, check_rows=False)
    fetch = _fetcher(files, path.rpartition("/")[0])

    def read(i: int) -> Record:
        try:
            return records.read(i)  # the image is in the table, or the row is bad
        except FileNotFoundError:
            return Record(fetch(records.names[i]), records.names[i])

    return replace(records, read=read)


def _fetcher(files, root: str) -> Callable[[str], bytes]:
    """Return name → bytes, for names below a remote folder."""

    def fetch(name: str) -> bytes:
        if os.path.isabs(name) or ".." in name.split("/"):
            raise BadSample(f"{name!r} leaves the folder {root!r}")
        path = f"{root}/{name}"
        size = files.size(path)
        if size is not None and size > MAX_FILE_BYTES:
            raise BadSample(f"{name!r} has {size} bytes; at most {MAX_FILE_BYTES} are allowed")
        return files.cat_file(path)

    return fetch
