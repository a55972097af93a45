"""{key: numpy array} → a safetensors file whose bytes depend on nothing else."""

import json
import struct

import numpy as np

from zoo.utils.files import atomic_write


def write_safetensors(path, tensors, metadata):
    """Writes arrays and str → str metadata, sorted by key, whole or not at all.

    The safetensors package leaves the order of metadata to chance; here equal content gives equal bytes.

    Args:
        path: its folder must exist.
        tensors: key → array, stored as little-endian float32; integers as int64.
        metadata: str → str.
    """
    header, offset = {"__metadata__": metadata}, 0
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
    text += b" " * (-len(text) % 8)  # so that the arrays start at a multiple of eight bytes
    with atomic_write(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for key in sorted(tensors):
            file.write(np.ascontiguousarray(tensors[key], dtype=_dtype(tensors[key])).data)


def _dtype(array):
    return np.dtype("<i8" if array.dtype.kind in "iu" else "<f4")
