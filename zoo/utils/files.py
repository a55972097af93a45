"""The one writer and the one opener: atomic writes, regular files only, locks and digests.

Every file that the package writes goes through `atomic_write`, so that a crash, a full disk or an exception leaves the
previous content. A folder whose files belong together goes through `folder_write`. What grows in place (`LineFile`,
`lock`, SQLite files) is checked first. Nothing is written through a symbolic link: folders are passed around, and a
link in one may lead to any file of the user's.

Reading follows links, as the cache of huggingface_hub needs, but opens regular files only: a pipe would block and a
device would act.
"""

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import stat
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from zoo.utils.text import shown

_CHUNK = 1 << 20
TEMPORARY_PREFIX = ".tmp-"
_LOCKED_BYTE = 1 << 30  # Windows makes locked bytes unreadable, and the first ones hold the owner's process id
MAX_FILE_BYTES = 256 << 20  # read as a whole: an image, a member of a shard
# O_NONBLOCK: a pipe that took the file's place after the check does not block.
_FLAGS = sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_KINDS = {
    **{stat.S_IFDIR: "a folder", stat.S_IFLNK: "a symbolic link", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"},
    **{stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"},
}
# How far a compressed file from elsewhere may grow: a hundredfold, and to 64 MiB in any case. Weights and photographs
# do not halve; JSON and blank images reach about twenty.
LARGEST_GROWTH, FREE_GROWTH = 100, 64 << 20
_LOCK_CONTENT = re.compile(rb"\d{0,20}\n?")


def check_regular(path: str | Path, status: os.stat_result) -> None:
    """Raise ValueError unless `status`, of `path`, is that of a regular file."""
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise ValueError(f"{shown(path)} is not a regular file; it is {kind}")


def check_written(path: str | Path) -> None:
    """Raise ValueError if what is at `path` may not be changed in place: a link, a folder, a pipe, a device."""
    with contextlib.suppress(FileNotFoundError):
        check_regular(path, os.lstat(path))


def check_folder(path: str | Path) -> None:
    """Raise ValueError if `path` exists and is no folder, or is a link to one: nothing is made or deleted in it."""
    with contextlib.suppress(FileNotFoundError):
        mode = os.lstat(path).st_mode
        if not stat.S_ISDIR(mode):
            kind = _KINDS.get(stat.S_IFMT(mode), "a file")
            raise ValueError(f"{shown(path)} is {kind}, not a folder; nothing is written or deleted in it")


def make_folder(path: str | Path) -> Path:
    """Create a folder inside a folder of ours unless it exists, and return it; ValueError if it is a link."""
    check_folder(path)
    Path(path).mkdir(parents=True, exist_ok=True)
    return Path(path)


def open_file(path: str | Path, *, max_bytes: int | None = None, follow: bool = True) -> BinaryIO:
    """Open a regular file for reading.

    Args:
        max_bytes: largest allowed size; None for any.
        follow: whether `path` may be a symbolic link.

    Raises:
        ValueError: a folder, pipe, socket or device, or more than `max_bytes`.
        OSError: of the system.
    """
    check_regular(path, os.stat(path, follow_symlinks=follow))  # before opening, which can act on a device
    file = open(os.open(path, os.O_RDONLY | _FLAGS | (0 if follow else _NO_LINK)), "rb")  # noqa: SIM115
    try:
        status = os.fstat(file.fileno())
        check_regular(path, status)
        if max_bytes is not None and status.st_size > max_bytes:
            raise ValueError(f"{shown(path)} has {status.st_size} bytes; at most {max_bytes} are allowed")
    except BaseException:
        file.close()
        raise
    return file


def most_unpacked(path: str | Path) -> int:
    """Return the number of bytes that a compressed file may unpack to."""
    return LARGEST_GROWTH * os.stat(path).st_size + FREE_GROWTH


def check_unpacked(path: str | Path, size: int) -> None:
    """Raise ValueError if a file would unpack to more than `most_unpacked` bytes."""
    if size > (most := most_unpacked(path)):
        raise ValueError(
            f"{shown(path)} has {os.stat(path).st_size:,} bytes and would unpack into {size:,}; at most {most:,} are "
            "allowed"
        )


def read_file(path: str | Path, *, max_bytes: int = MAX_FILE_BYTES, follow: bool = False) -> bytes:
    """Return the content of a regular file, which may not grow meanwhile; see `open_file`."""
    with open_file(path, max_bytes=max_bytes, follow=follow) as file:
        return file.read(os.fstat(file.fileno()).st_size)


@contextlib.contextmanager
def atomic_write(path: str | Path, mode: str = "wb") -> Iterator[Any]:
    """Open a file whose content replaces `path` when the block ends without an error, see `atomic_path`.

    Args:
        path: its folder must exist.
        mode: "wb", or "w" for text, UTF-8 with "\\n" line ends.

    Yields:
        The file object to write to.

    Raises:
        ValueError: another mode, or `path` is a folder, pipe, socket or device.
    """
    if mode not in ("wb", "w"):
        raise ValueError(f"mode must be 'wb' or 'w', got {mode!r}: an atomic write replaces the whole file.")
    text: dict[str, Any] = {"encoding": "utf-8", "newline": "\n"} if mode == "w" else {}
    with atomic_path(path) as temporary, open(temporary, mode.replace("w", "x"), **text) as file:
        yield file


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path of the same suffix; the file written there replaces `path` when the block ends.

    It is in the same folder, is synced to disk, and is then renamed to `path`; the folder is synced last. If the block
    raises, the temporary file is removed and `path` is unchanged. If `path` is a symbolic link, the new file takes the
    link's place; what it led to is unchanged.

    Raises:
        ValueError: `path` is a folder, pipe, socket or device.
    """
    target = Path(path)
    before = None if target.is_symlink() or not target.exists() else os.lstat(target)
    if before is not None:
        check_regular(target, before)
    temporary = temporary_path(target)
    try:
        yield temporary
        _sync_file(temporary)
        if before is not None:
            os.chmod(temporary, before.st_mode & 0o777)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync_folder(target.parent)


def create_once(path: str | Path, text: str) -> bool:
    """Create a file with this content, unless it exists; return whether this call created it.

    Of several processes exactly one creates it, and nobody sees it half written.
    """
    target = Path(path)
    temporary = temporary_path(target)
    try:
        with open(temporary, "x", encoding="utf-8", newline="\n") as file:
            file.write(text)
        _sync_file(temporary)
        os.link(temporary, target)  # unlike a rename, fails where the file exists
    except FileExistsError:
        return False
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    _sync_folder(target.parent)
    return True


def temporary_path(path: Path) -> Path:
    """Return a new name of the same suffix beside a path, which `remove_leftovers` knows."""
    return path.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(4)}-{path.name}")


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable. Windows cannot open folders and does not need it."""
    if os.name == "nt":
        return
    with contextlib.suppress(OSError):  # some network file systems refuse; the content itself is already on disk
        _sync_file(folder, os.O_RDONLY)


def _sync_file(path: Path, flags: int = os.O_RDWR) -> None:  # Windows syncs only what is open for writing
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class LineFile:
    """A text file that grows by whole lines; each line is one write, which a kill cannot split.

    If a write fails, for instance on a full disk, a warning says so and the line is written before the next one.

    Args:
        path: created by the first line, otherwise appended to.
        begin: bytes to write before the first line.

    Raises:
        ValueError: `path` is a symbolic link, or no regular file.
    """

    def __init__(self, path: str | Path, begin: bytes = b""):
        check_written(path)
        self.path = Path(path)
        self._unwritten = begin

    def add(self, line: str) -> None:
        """Append a line; the line end is added."""
        self.append(f"{line}\n".encode())

    def append(self, data: bytes) -> None:
        """Append bytes, in one write."""
        self._unwritten += data
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | _FLAGS | _NO_LINK, 0o666)
            try:
                self._unwritten = self._unwritten[os.write(descriptor, self._unwritten) :]
            finally:
                os.close(descriptor)
        except OSError as error:
            warnings.warn(f"{shown(self.path)} cannot be written for now: {shown(error)}", stacklevel=2)


def sha256(path: str | Path) -> str:
    """Return the SHA-256 digest of a file, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open_file(path) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def folder_write(path: str | Path) -> Iterator[Path]:
    """Create a folder that appears at `path` when the block ends without an error.

    The files written in it are synced to disk before it is renamed. If the block raises, nothing is left.

    Args:
        path: must not exist; its parent must.

    Yields:
        The temporary folder to write into.

    Raises:
        FileExistsError: `path` exists.
    """
    target = Path(path)
    if os.path.lexists(target):
        raise FileExistsError(f"{shown(target)} already exists; a folder is written once")
    temporary = temporary_path(target)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.iterdir():
            _sync_file(file)
        _sync_folder(temporary)
        os.rename(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync_folder(target.parent)


def remove_folder(path: str | Path) -> None:
    """Rename a folder to a temporary name, then remove it, so that it is never seen half removed.

    Raises:
        ValueError: it is a link, or no folder.
    """
    path = Path(path)
    check_folder(path)
    temporary = temporary_path(path)
    os.rename(path, temporary)
    shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(folder: str | Path) -> None:
    """Remove the temporary files of killed processes. Call it only where no other process is writing to `folder`.

    Raises:
        ValueError: `folder` is a link, or no folder.
    """
    check_folder(folder)
    for path in Path(folder).glob(f"{TEMPORARY_PREFIX}*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()


class Locked(ValueError):
    """Another process holds the lock."""


@contextlib.contextmanager
def lock(path: str | Path, wait: float = 0.0) -> Iterator[None]:
    """Hold a file's lock during the block. The system releases it when the process ends, also when it is killed.

    The file is never removed: two processes could otherwise hold locks of the same name.

    Args:
        wait: seconds to wait for another holder.

    Raises:
        Locked: another process, or another block of this one, holds it.
        ValueError: a symbolic link, no regular file, or a file whose content is not that of a lock: it is left alone.
    """
    check_written(path)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | _FLAGS | _NO_LINK, 0o666)
    try:
        check_regular(path, os.fstat(descriptor))
        end = time.monotonic() + wait
        while not _try_lock(descriptor):
            if time.monotonic() >= end:
                holder = os.read(descriptor, 32).decode("ascii", "replace").strip()
                raise Locked(f"{shown(path)} is held by process {shown(holder) or '(unknown)'}")
            time.sleep(0.02)
        if not _LOCK_CONTENT.fullmatch(os.read(descriptor, 32)):  # a hard link to another file, or another's file
            raise ValueError(f"{shown(path)} is not a lock: it holds more than a process number, and is left alone")
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.truncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            os.lseek(descriptor, 0, os.SEEK_SET)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
