"""Files and folders that are whole or absent: atomic writes, locks, digests.

Every file the package writes goes through `atomic_write`, so that a crash, a full disk or an exception leaves what was
there before; a folder whose files belong together goes through `folder_write`.
"""

import contextlib
import hashlib
import os
import secrets
import shutil
import warnings
from pathlib import Path

CHUNK = 1 << 20
TEMPORARY_PREFIX = ".tmp-"
LOCKED_BYTE = 1 << 30  # Windows lets nobody read locked bytes, and the first ones name the holder


@contextlib.contextmanager
def atomic_write(path, mode="wb", **options):
    """A file object whose content replaces `path` when the block ends, and only then.

    The bytes go to a temporary file beside `path` and reach the disk before the rename does, and the rename before the
    block is left. When the block raises, the temporary file is removed and `path` is as it was.

    Args:
        path: str or Path; its folder must exist.
        mode: "wb", or "w" for text.
        options: of `open`; text is UTF-8 with "\\n" line ends unless they say otherwise.
    """
    if mode not in ("wb", "w"):
        raise ValueError(f"mode must be 'wb' or 'w', got {mode!r}: an atomic write replaces the whole file.")
    if mode == "w":
        options = {"encoding": "utf-8", "newline": "\n", **options}
    target = Path(path).resolve()  # a symbolic link stays one and leads to the new content
    temporary = target.with_name(f"{TEMPORARY_PREFIX}{target.name}-{secrets.token_hex(4)}")
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


def _sync_folder(folder):
    """Makes a rename in `folder` durable where the platform can; Windows opens no folders and needs none of it."""
    if os.name == "nt":
        return
    with contextlib.suppress(OSError):  # some network file systems refuse; the content itself is already on the disk
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class LineFile:
    """A text file that grows by whole lines: each is one write, which a kill does not tear.

    What a full disk refuses is warned of, and written before the next line.

    Args:
        path: appended to; made by the first line.
        begin: bytes to write before the first line.
    """

    def __init__(self, path: str | Path, begin: bytes = b""):
        self.path = Path(path)
        self._unwritten = begin

    def add(self, line: str) -> None:
        """Appends a line; its end is added."""
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
    """The file's SHA-256 digest, 64 hexadecimal digits, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def folder_write(path: str | Path):
    """A new folder to fill, which becomes `path` when the block ends, and only then.

    Files written in it reach the disk before the rename does. When the block raises, nothing is left of it.

    Args:
        path: must not be there yet; the folder around it must.
    """
    target = Path(path)
    if target.exists():
        raise FileExistsError(f"{target} is there already; a folder is written once")
    temporary = target.with_name(f"{TEMPORARY_PREFIX}{target.name}-{secrets.token_hex(4)}")
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
    """Removes a folder so that none is seen half removed: it first takes a temporary name."""
    path = Path(path)
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{path.name}-{secrets.token_hex(4)}")
    os.rename(path, temporary)
    shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(folder: str | Path) -> None:
    """Removes what killed processes left unfinished in `folder`. Only its owner may: a writer may be at work there."""
    for path in Path(folder).glob(f"{TEMPORARY_PREFIX}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()


def _sync_file(path):
    descriptor = os.open(path, os.O_RDWR)  # Windows flushes only what may be written
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Locked(ValueError):
    """Another process holds the lock."""


@contextlib.contextmanager
def lock(path: str | Path):
    """Holds a file's lock during the block; the system lets go of it when the process ends, however it ends.

    The file stays: to remove it would let two processes hold locks of the same name.

    Raises:
        Locked: another process, or another block, holds it.
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


def _try_lock(descriptor) -> bool:
    try:
        if os.name == "nt":
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
