"""Files that are whole or absent: atomic writes, digests.

Every file the package writes goes through `atomic_write`, so that a crash, a full disk or an exception leaves what was
there before.
"""

import contextlib
import hashlib
import os
import secrets
from pathlib import Path

CHUNK = 1 << 20
TEMPORARY_PREFIX = ".tmp-"


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


def sha256(path: str | Path) -> str:
    """The file's SHA-256 digest, 64 hexadecimal digits, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
