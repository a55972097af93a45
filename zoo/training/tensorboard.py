"""The history of a run as TensorBoard's event file. TensorBoard itself is needed only to look at it.

Format: TFRecord, each record length, masked CRC-32C of the length, data, masked CRC-32C of the data; the data is an
`Event` message of tensorflow/core/util/event.proto.
"""

import functools
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from zoo.utils.files import LineFile, atomic_write

FOLDER, FILE = "tensorboard", "events.out.tfevents.0.zoo"
NOT_SCALARS = ("epoch", "step", "event", "left_out")
VERSION = b"brain.Event:2"
CASTAGNOLI = 0x82F63B78  # the polynomial, bits reversed


class EventFile:
    """Scalars by step, in `FOLDER` of the run's folder.

    Args:
        output: the run's folder.
        rows: rows of the history that the file starts with; an older file is replaced.
    """

    def __init__(self, output: str | Path, rows: Sequence[Mapping] = ()):
        path = Path(output) / FOLDER / FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(_record(_double(1, time.time()) + _bytes(3, VERSION)))
            file.writelines(_events(row) for row in rows)
        self._file = LineFile(path)

    def add(self, row: Mapping) -> None:
        """Append a row of the history: an event for each of its numbers."""
        self._file.append(_events(row))


def _events(row):
    values = [(name, value) for name, value in row.items() if name not in NOT_SCALARS and is_number(value)]
    summaries = [_bytes(1, _bytes(1, _tag(name)) + b"\x15" + struct.pack("<f", value)) for name, value in values]
    step = b"\x10" + _varint(row["step"])
    return _record(_double(1, time.time()) + step + _bytes(5, b"".join(summaries))) if summaries else b""


def is_number(value: object) -> bool:
    """Whether a value of the history is a number; True and False are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _tag(name):
    """ "val_loss" → "val/loss", the others "train/…"."""
    return (f"val/{name.removeprefix('val_')}" if name.startswith("val_") else f"train/{name}").encode()


# Protocol buffers: a key byte holds the field's number and the wire type (0 varint, 1 double, 2 bytes, 5 float).


def _double(field, value):
    return bytes([field << 3 | 1]) + struct.pack("<d", value)


def _bytes(field, value):
    return bytes([field << 3 | 2]) + _varint(len(value)) + value


def _varint(number):
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def _record(data):
    length = struct.pack("<Q", len(data))
    return length + _masked_crc(length) + data + _masked_crc(data)


def _masked_crc(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _crc_table()[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


@functools.cache
def _crc_table():
    table = list(range(256))
    for _ in range(8):
        table = [value >> 1 ^ (CASTAGNOLI if value & 1 else 0) for value in table]
    return table
