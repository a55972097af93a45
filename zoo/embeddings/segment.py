"""One segment of an index: a matrix of raw little-endian numbers, its ids and their metadata."""

import json
from collections import Counter
from collections.abc import Iterator, Set
from pathlib import Path

import numpy as np

from zoo.utils.files import atomic_write, sha256

DTYPES = {"float32": "<f4", "float16": "<f2", "int8": "|i1"}
BLOCK_BYTES = 1 << 20  # of vectors converted to float32 at a time, to stay in the processor's cache
INT8_MAX = 127


class Segment:
    """One matrix with its ids and metadata.

    Args:
        path: folder of the index.
        entry: entry of the manifest, as `write_segment` returned it.
        dim: D.
        dtype: a key of DTYPES.
    """

    def __init__(self, path: Path, entry: dict, dim: int, dtype: str):
        self.entry, self.count, self._path, self._dim = entry, entry["count"], path, dim
        self.vector_file = f"vectors-{entry['name']}.bin"
        self._matrix = _mapped(path / self.vector_file, DTYPES[dtype], (self.count, dim))
        self._scales = _mapped(path / f"scales-{entry['name']}.bin", "<f4", (self.count,)) if dtype == "int8" else None
        self.ids = self._read("ids")
        self._metadata: list[dict] | None = None

    @property
    def metadata(self) -> list[dict]:
        """The metadata of each vector, {} for a segment without."""
        if self._metadata is None:
            self._metadata = self._read("metadata") if self.entry["metadata"] else [{}] * self.count
        return self._metadata

    def _read(self, what: str) -> list:
        path = self._path / f"{what}-{self.entry['name']}.json"
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} is damaged: {error}") from error
        if not isinstance(values, list) or len(values) != self.count:
            raise ValueError(f"{path} does not hold {self.count} entries")
        return values

    def rows(self, part: slice | np.ndarray) -> np.ndarray:
        """Return vectors, float32 (n, D). A slice of a float32 segment is a view of the mapped file."""
        rows = self._matrix[part].astype(np.float32, copy=False)
        return rows if self._scales is None else rows * self._scales[part, None]

    def vectors(self) -> Iterator[np.ndarray]:
        """Yield all vectors in blocks, float32 (n, D)."""
        for first in range(0, self.count, self._block):
            yield self.rows(slice(first, first + self._block))

    @property
    def _block(self) -> int:
        return max(1, BLOCK_BYTES // (4 * self._dim))

    def blocks(self) -> Iterator[tuple[slice, np.ndarray, np.ndarray | float]]:
        """Yield (places, float32 rows, factors of their inner products) block by block. A float32 segment is one block,
        since nothing is copied."""
        size = self.count if self._matrix.dtype == np.float32 else self._block
        for first in range(0, self.count, size):
            part = slice(first, min(first + size, self.count))
            rows = self._matrix[part].astype(np.float32, copy=False)
            yield part, rows, 1.0 if self._scales is None else self._scales[part]


def checked_ids(vectors, ids, metadata, dim: int, *, first: int = 0, known: Set[str] = frozenset()) -> list[str]:
    """Return the ids of new vectors; by default numbers from `first` on.

    Args:
        known: ids that are already in the index.

    Raises:
        ValueError: vectors, ids and metadata that do not fit each other, or an id that is not new.
    """
    ids = [str(first + i) for i in range(len(vectors))] if ids is None else list(ids)
    if vectors.ndim != 2 or vectors.shape[1] != dim or not np.isfinite(vectors).all():
        raise ValueError(f"vectors have shape {vectors.shape}; they must be finite and (N, {dim})")
    if len(ids) != len(vectors) or (metadata is not None and len(metadata) != len(vectors)):
        raise ValueError(
            f"{len(vectors)} vectors, {len(ids)} ids, {len(metadata or ids)} metadata; the counts must be equal"
        )
    for identity in ids:
        if not isinstance(identity, str) or not is_utf8(identity):
            raise ValueError(f"{identity!r} is not an id; it must be a string that can be encoded as UTF-8")
    counts = Counter(ids)
    duplicates = [identity for identity in counts if counts[identity] > 1 or identity in known]
    if duplicates:
        raise ValueError(f"{duplicates[0]!r} is already in the index, or given twice")
    return ids


def write_segment(path: Path, name: str, vectors, ids, metadata, dtype: str) -> dict:
    """Write a segment's files and return its entry for the manifest."""
    texts = {f"ids-{name}.json": _json(ids)}  # encoded first, so that an error comes before any file is written
    if metadata is not None:
        texts[f"metadata-{name}.json"] = _json([dict(entry) for entry in metadata])
    arrays = {f"vectors-{name}.bin": vectors}
    if dtype == "int8":
        scales = np.maximum(np.abs(vectors).max(axis=1), 1e-30) / INT8_MAX
        arrays = {f"vectors-{name}.bin": np.rint(vectors / scales[:, None]), f"scales-{name}.bin": scales}
    for file_name, array in arrays.items():
        stored = DTYPES[dtype] if file_name.startswith("vectors") else "<f4"
        with atomic_write(path / file_name) as file:
            file.write(np.ascontiguousarray(array.astype(stored)).data)
    for file_name, content in texts.items():
        with atomic_write(path / file_name) as file:
            file.write(content)
    digests = {file_name: sha256(path / file_name) for file_name in (*arrays, *texts)}
    return {"name": name, "count": len(vectors), "metadata": metadata is not None, "sha256": digests}


def check_entry(entry: dict, dtype: str) -> None:
    """Raise ValueError, KeyError or TypeError unless this is an entry that `write_segment` could have returned."""
    name, count = entry["name"], entry["count"]
    if not name.isdecimal() or not isinstance(count, int) or count < 1:
        raise ValueError(f"segment {name!r} with count {count!r}")
    files = {f"vectors-{name}.bin", f"ids-{name}.json"}
    files |= {f"scales-{name}.bin"} if dtype == "int8" else set()
    files |= {f"metadata-{name}.json"} if entry["metadata"] else set()
    if set(entry["sha256"]) != files:
        raise ValueError(f"segment {name!r} has digests of {sorted(entry['sha256'])}; needed are {sorted(files)}")


def is_utf8(text: str) -> bool:
    """Whether a text can be encoded. A file name that is not UTF-8 holds lone surrogates, which cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _json(content: list) -> bytes:
    return json.dumps(content, ensure_ascii=False).encode()


def _mapped(path: Path, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return a file as a memory-mapped array; ValueError if its size does not fit the shape."""
    expected = int(np.prod(shape)) * np.dtype(dtype).itemsize
    size = path.stat().st_size if path.is_file() else None
    if size != expected:
        raise ValueError(f"{path} is damaged: it has {size} bytes instead of {expected}")
    return np.memmap(path, dtype, mode="r", shape=shape).view(np.ndarray)
