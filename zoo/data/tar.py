"""The members of a tar file, read from its headers without unpacking. The file may be hostile.

Formats: POSIX.1-1988 (ustar), POSIX.1-2001 (pax keys path and size) and GNU's long names and numbers. Python's tarfile
reads these and more, but a crafted file can make it read forever or allocate much memory.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

BLOCK = 512
MAX_HEADER_BYTES = 1 << 20  # of a long name, or of pax keys
_REGULAR, _WITHOUT_DATA = (b"0", b"\0", b"7"), (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, folders, pipes
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}  # by first bytes
_LONG_NAME, _PAX, _GLOBAL, _GNU_SPARSE = b"L", b"x", b"g", b"S"


@dataclass(frozen=True)
class Member:
    """A member of a tar file: its name and the position of its bytes."""

    name: str
    offset: int
    size: int
    regular: bool


def read_members(file: BinaryIO) -> Iterator[Member]:
    """Yield the members of an uncompressed tar file in order, including links, devices and folders (not `regular`).

    Raises:
        ValueError: not a tar file, or damaged or truncated; raised after the members before the damage.
    """
    end = file.seek(0, os.SEEK_END)
    position, long_name = 0, None
    keys: dict[str, str] = {}
    while True:
        file.seek(position)
        header = file.read(BLOCK)
        if not header.strip(b"\0"):  # the end, with or without its marker
            if len(header) not in (0, BLOCK):
                raise ValueError(f"cut off at byte {position}")
            return
        _check_sum(header, position)
        kind, size = header[156:157], _number(header[124:136])
        data = position + BLOCK
        if kind == _GNU_SPARSE:
            data = _skip_sparse_map(file, header, data)
        elif kind in _REGULAR:
            size = int(keys.get("size", size))
        elif kind in _WITHOUT_DATA:
            size = 0
        if data + size > end:
            raise ValueError(f"cut off: the member at byte {position} ends at {data + size}, the file at {end}")
        if kind in (_LONG_NAME, _PAX):
            content = _read_header(file, size, position)
            if kind == _LONG_NAME:
                long_name = _text(content)
            else:
                keys |= _pax_keys(content, position)
        elif kind != _GLOBAL:  # a global header holds no names
            sparse = any(key.startswith("GNU.sparse") for key in keys)
            name = keys.get("path") or long_name or _short_name(header)
            yield Member(name, data, size, kind in _REGULAR and not sparse and not name.endswith("/"))
            long_name, keys = None, {}
        position = data + -(-size // BLOCK) * BLOCK


def _check_sum(header: bytes, position: int) -> None:
    if len(header) < BLOCK:
        raise ValueError(f"cut off at byte {position}{_remedy(header, position)}")
    try:
        stated = _number(header[148:156])
    except ValueError:
        stated = -1
    if stated != sum(header[:148]) + 8 * ord(" ") + sum(header[156:]):
        remedy = _remedy(header, position)
        raise ValueError(f"not an uncompressed tar file{remedy}" if position == 0 else f"damaged at byte {position}")


def _remedy(header: bytes, position: int) -> str:
    kind = next((kind for mark, kind in _COMPRESSED.items() if position == 0 and header.startswith(mark)), None)
    return f": it is compressed with {kind}; unpack it first ({kind} -d)" if kind else ""


def _number(field: bytes) -> int:
    """Return a size: octal digits, or GNU's big-endian number after a first byte of 128."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    if digits.strip(b"01234567"):  # such as a sign, or GNU's negative numbers
        raise ValueError(f"damaged: {field!r} is not a valid size")
    return int(digits or b"0", 8)


def _skip_sparse_map(file: BinaryIO, header: bytes, position: int) -> int:
    """Return the position of the data after the continuation blocks of an old GNU sparse map."""
    more = header[482]
    while more:
        file.seek(position)
        block = file.read(BLOCK)
        if len(block) < BLOCK:
            raise ValueError(f"cut off at byte {position}")
        more, position = block[504], position + BLOCK
    return position


def _read_header(file: BinaryIO, size: int, position: int) -> bytes:
    if size > MAX_HEADER_BYTES:
        raise ValueError(f"damaged: the header at byte {position} has {size} bytes; allowed are {MAX_HEADER_BYTES}")
    return file.read(size)


def _pax_keys(content: bytes, position: int) -> dict[str, str]:
    """Return {key: value} of lines "length key=value\\n"."""
    keys, start = {}, 0
    while start < len(content) and content[start : start + 1] != b"\0":
        length, space, _ = content[start : start + 20].partition(b" ")
        end = start + (int(length) if length.isdigit() else 0)
        key, equals, value = content[start + len(length) + 1 : end - 1].partition(b"=")
        if not (space and equals) or content[end - 1 : end] != b"\n":
            raise ValueError(f"damaged: the pax header at byte {position} is invalid")
        keys[_text(key)] = _text(value)
        start = end
    if not keys.get("size", "0").isdecimal():
        raise ValueError(f"damaged: the pax header at byte {position} is invalid")
    return keys


def _short_name(header: bytes) -> str:
    name, prefix = _text(header[:100]), _text(header[345:500])
    return f"{prefix}/{name}" if header[257:263] == b"ustar\0" and prefix else name


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")
