"""{key: numpy array} → a safetensors file whose bytes depend on nothing else."""

import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from zoo.utils.files import atomic_write

DTYPES = {
    **{"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "bool": "BOOL"},
    **{f"int{bits}": f"I{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"U{bits}" for bits in (8, 16, 32, 64)},
}


def write_safetensors(
    path: str | Path,
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
    *,
    keep_dtypes: bool = False,
    digest=None,
) -> None:
    """Write arrays and metadata, sorted by key, atomically.

    The safetensors package does not fix the order of metadata; here equal content gives equal bytes. Arrays are
    converted and written one by one, so memory holds no second copy of them all.

    Args:
        path: path of the file; its folder must exist.
        tensors: key → array, stored as little-endian float32, integers as int64.
        metadata: str → str.
        keep_dtypes: store every array in its own dtype, one of DTYPES.
        digest: an object of `hashlib`, updated with the bytes of the file.

    Raises:
        ValueError: an array of another dtype, with keep_dtypes.
    """
    header: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    keys, offset = sorted(tensors), 0
    for key in keys:
        dtype = _dtype(key, tensors[key], keep_dtypes)
        size = dtype.itemsize * tensors[key].size
        header[key] = {
            "data_offsets": [offset, offset + size],
            "dtype": DTYPES[dtype.name],
            "shape": list(tensors[key].shape),
        }
        offset += size
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # arrays start at a multiple of eight bytes
    with atomic_write(path) as file:
        for piece in _pieces(struct.pack("<Q", len(text)) + text, keys, tensors, keep_dtypes):
            file.write(piece)
            if digest is not None:
                digest.update(piece)


def _pieces(head: bytes, keys: list[str], tensors: Mapping, keep_dtypes: bool) -> Iterable:
    yield head
    for key in keys:
        array = np.ascontiguousarray(tensors[key], dtype=_dtype(key, tensors[key], keep_dtypes))
        yield array.reshape(-1).view(np.uint8).data


def _dtype(key: str, array: np.ndarray, keep: bool) -> np.dtype:
    if not keep:
        return np.dtype("<i8" if array.dtype.kind in "iu" else "<f4")
    if array.dtype.name not in DTYPES:
        raise ValueError(f"{key} is {array.dtype.name}; a checkpoint holds {', '.join(DTYPES)}")
    return array.dtype.newbyteorder("<")
