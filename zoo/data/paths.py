"""Opening files that data names: only regular files of bounded size inside one folder."""

import os
import stat

MAX_FILE_BYTES = 256 << 20  # of one image file, and of one member of a shard
_FLAGS = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_NOFOLLOW", "O_CLOEXEC", "O_BINARY"))


def refuse_url(name: str) -> None:
    """Raise ValueError for a URL or a shell command, which other readers would open."""
    if "://" in name or name.startswith("pipe:"):
        raise ValueError(f"{name!r} is a URL or a command; only files are read")


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
        raise ValueError(f"{name!r} leaves the data root {root!r}")
    return path


def read_file(path: str, *, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """Return the content of a regular file.

    Raises:
        ValueError: a folder, pipe, socket or device, or more than `max_bytes`.
        OSError: of the system; a symbolic link is not followed.
    """
    check_regular(path, os.stat(path, follow_symlinks=False))  # before opening, which can act on a device
    with open(os.open(path, _FLAGS), "rb", buffering=0) as file:  # does not block, in case it became a pipe
        status = os.fstat(file.fileno())
        check_regular(path, status)
        if status.st_size > max_bytes:
            raise ValueError(f"{path} has {status.st_size} bytes; at most {max_bytes} are allowed")
        return file.read(status.st_size)


def check_regular(path: str, status: os.stat_result) -> None:
    """Raise ValueError unless `status`, of `path`, is that of a regular file."""
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path} is not a regular file")
