"""Atomic writes, locks and digests of files and folders.

Every file that the package writes goes through `atomic_write`, so that a crash, a full disk or an exception leaves the
previous content. A folder whose files belong together goes through `folder_write`.
"""

import contextlib
import hashlib
import os
import secrets
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHUNK = 1 << 20
TEMPORARY_PREFIX = ".tmp-"
LOCKED_BYTE = 1 << 30  # Windows makes locked bytes unreadable, and the first ones hold the owner's process id


@contextlib.contextmanager
def atomic_write(path: str | Path, mode: str = "wb", **options: Any) -> Iterator[Any]:
    """Open a file whose content replaces `path` when the block ends without an error.

    The content goes to a temporary file in the same folder, is synced to disk, and is then renamed to `path`; the
    folder is synced last. If the block raises, the temporary file is removed and `path` is unchanged. If `path` is a
    symbolic link, its target is replaced.

    Args:
        path: its folder must exist.
        mode: "wb", or "w" for text.
        options: options of `open`; text is UTF-8 with "\\n" line ends by default.

    Yields:
        The file object to write to.

    Raises:
        ValueError: another mode.
    """
    if mode not in ("wb", "w"):
        raise ValueError(f"mode must be 'wb' or 'w', got {mode!r}: an atomic write replaces the whole file.")
    if mode == "w":
        options = {"encoding": "utf-8", "newline": "\n", **options}
    target = Path(path).resolve()
    temporary = _temporary(target)
    try:
        with open(temporary, mode.replace("w", "x"), **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileNotFoundError):
            os.chmod(temporary, target.stat().st_mode & 0o777)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync_folder(target.parent)


def _temporary(path: Path) -> Path:
    return path.with_name(f"{TEMPORARY_PREFIX}{path.name}-{secrets.token_hex(4)}")


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
    """

    def __init__(self, path: str | Path, begin: bytes = b""):
        self.path = Path(path)
        self._unwritten = begin

    def add(self, line: str) -> None:
        """Append a line; the line end is added."""
        self._unwritten += f"{line}\n".encode()
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                self._unwritten = self._unwritten[os.write(descriptor, self._unwritten) :]
            finally:
                os.close(descriptor)
        except OSError as error:
            warnings.warn(f"{self.path} cannot be written for now: {error}", stacklevel=2)


def sha256(path: str | Path) -> str:
    """Return the SHA-256 digest of a file, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
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
    if target.exists():
        raise FileExistsError(f"{target} already exists; a folder is written once")
    temporary = _temporary(target)
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
    """Rename a folder to a temporary name, then remove it, so that it is never seen half removed."""
    path = Path(path)
    temporary = _temporary(path)
    os.rename(path, temporary)
    shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(folder: str | Path) -> None:
    """Remove the temporary files of killed processes. Call it only where no other process is writing to `folder`."""
    for path in Path(folder).glob(f"{TEMPORARY_PREFIX}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()


class Locked(ValueError):
    """Another process holds the lock."""


@contextlib.contextmanager
def lock(path: str | Path) -> Iterator[None]:
    """Hold a file's lock during the block. The system releases it when the process ends, also when it is killed.

    The file is never removed: two processes could otherwise hold locks of the same name.

    Raises:
        Locked: another process, or another block of this one, holds it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if not _try_lock(descriptor):
            holder = os.read(descriptor, 32).decode("ascii", "replace").strip()
            raise Locked(f"{path} is held by process {holder or '(unknown)'}")
        os.truncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(descriptor, LOCKED_BYTE, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            os.lseek(descriptor, 0, os.SEEK_SET)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
