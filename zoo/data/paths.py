"""Opening files that data names: only regular files of bounded size inside one folder."""

import os

from zoo.utils.files import MAX_FILE_BYTES, check_regular, read_file
from zoo.utils.text import quoted

__all__ = ["MAX_FILE_BYTES", "check_regular", "inside", "read_file", "refuse_url"]


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
