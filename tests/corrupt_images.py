"""Image files that cannot be used, in eight ways."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from data_writers import digits, encode
from PIL import Image


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb() -> bytes:
    """A PNG of 100 bytes that claims 60,000 x 60,000 pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def without_pixels() -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 0, 0, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def with_short_palette() -> bytes:
    """A PNG of 60 colours whose palette holds three: Pillow alone would paint the others black."""
    image = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16) % 60).copy()
    image.putpalette(bytes(range(180)))
    file = io.BytesIO()
    image.save(file, "PNG")
    whole = file.getvalue()
    start = whole.index(b"PLTE") - 4
    (length,) = struct.unpack(">I", whole[start : start + 4])
    return whole[:start] + chunk(b"PLTE", bytes(9)) + whole[start + 12 + length :]


def as_tiff() -> bytes:
    return encode(digits(1)[0][0], "TIFF")


def cut_jpeg() -> bytes:
    whole = encode(digits(1)[0][0].repeat(8, 0).repeat(8, 1), "JPEG")
    return whole[: len(whole) // 2]


CORRUPTIONS = {
    "empty file": lambda: b"",
    "truncated JPEG": cut_jpeg,
    "wrong extension": as_tiff,
    "text": lambda: b"<html>404 not found</html>",
    "bomb": bomb,
    "zero size": without_pixels,
    "palette damage": with_short_palette,
    "missing file": lambda: None,
}


def corrupt(path: Path, content: bytes | None) -> None:
    path.unlink() if content is None else path.write_bytes(content)
