"""{key: numpy array} → a safetensors file whose bytes depend on nothing else."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from zoo.utils.files import atomic_write


def write_safetensors(path: str | Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write arrays and metadata, sorted by key, atomically.

    The safetensors package does not fix the order of metadata; here equal content gives equal bytes.

    Args:
        path: of the file; its folder must exist.
        tensors: key → array, stored as little-endian float32, integers as int64.
        metadata: str → str.
    """
    header: dict[str, object] = {"__metadata__": metadata}
    offset = 0
    for key in sorted(tensors):
        dtype = _dtype(tensors[key])
        size = dtype.itemsize * tensors[key].size
        header[key] = {
            "data_offsets": [offset, offset + size],
            "dtype": f"{dtype.kind}{8 * dtype.itemsize}".upper(),
            "shape": list(tensors[key].shape),
        }
        offset += size
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # arrays start at a multiple of eight bytes
    with atomic_write(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for key in sorted(tensors):
            file.write(np.ascontiguousarray(tensors[key], dtype=_dtype(tensors[key])).data)


def _dtype(array: np.ndarray) -> np.dtype:
    return np.dtype("<i8" if array.dtype.kind in "iu" else "<f4")
