"""Files named by data of others: found inside one folder, regular, of bounded size, and nothing else."""

import os
import stat

MAX_FILE_BYTES = 256 << 20  # of one image file, and of one member of a shard
_FLAGS = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_NOFOLLOW", "O_CLOEXEC", "O_BINARY"))


def refuse_url(name: str) -> None:
    """ValueError for what other readers would hand to a shell or to the network."""
    if "://" in name or name.startswith("pipe:"):
        raise ValueError(f"{name!r} is a URL or a command; only files are read")


def inside(root: str, name: str) -> str:
    """The real path of `name`, relative paths seen from `root`.

    Args:
        root: a real path, as `os.path.realpath` gives it.

    Raises:
        ValueError: the path leaves `root`, by `..`, by being absolute or through a symbolic link; or it is a URL.
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
    """All of a regular file.

    Raises:
        ValueError: a folder, pipe, socket or device, which may never end, or more than `max_bytes`.
        OSError: what the system says; a last part that is a symbolic link is not followed.
    """
    check_regular(path, os.stat(path, follow_symlinks=False))  # before the open, which can act on a device
    with open(os.open(path, _FLAGS), "rb", buffering=0) as file:  # without blocking, if it is a pipe after all
        status = os.fstat(file.fileno())
        check_regular(path, status)
        if status.st_size > max_bytes:
            raise ValueError(f"{path} has {status.st_size} bytes; at most {max_bytes} are allowed")
        return file.read(status.st_size)


def check_regular(path: str, status: os.stat_result) -> None:
    """ValueError unless `status`, of `path`, is a regular file's."""
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path} is not a regular file")
