"""Segments of an index: files of raw little-endian numbers, written once and never changed.

A segment holds consecutive vectors (`vectors-N.bin`, and `scales-N.bin` for int8) and their terms (`terms-N.bin`):
64-bit digests (`zoo.embeddings.terms`), ascending, and then the offset of the vector that each belongs to, uint32.
"""

import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from zoo.utils.files import atomic_write
from zoo.utils.text import shown

DTYPES = {"float32": "<f4", "float16": "<f2", "int8": "|i1"}
BLOCK_BYTES = 1 << 20  # of vectors converted to float32 at a time, to stay in the processor's cache
_LARGER = 16  # largest factor for blocks of many queries: BLAS's threads wait for each other at the end of each
_COPY_BYTES = 8 << 20  # read at a time where segments are merged or checked
INT8_MAX = 127
_SIGN_AND_LOWEST = np.array(0x8FFFE000, np.uint32).view(np.int32)  # bits of a float32
_NOT_FINITE = 65536  # what `widen` makes of an infinity; finite numbers of float16 are smaller

Terms = tuple[np.ndarray, np.ndarray]  # digests uint64, ascending, and offsets uint32


class Row(NamedTuple):
    """A segment in the catalogue.

    Args:
        number: of its files.
        first, size: the places of its vectors in the index.
        terms: number of its terms.
        digest: SHA-256 of the file of terms; None while the file is not written (an index of an earlier layout).
    """

    number: int
    first: int
    size: int
    terms: int = 0
    digest: str | None = None


class Segment:
    """The memory-mapped files of a segment.

    Args:
        path: folder of the index.
        dim: D.
        dtype: a key of DTYPES.
        make_terms: returns (digests, offsets) when they are needed, for a segment without a file of terms.
    """

    def __init__(self, path: Path, row: Row, dim: int, dtype: str, make_terms: Callable[[], Terms] | None = None):
        self.row, self.first, self.count, self._path, self._dim = row, row.first, row.size, path, dim
        self.matrix = map_file(path / file_name("vectors", row), DTYPES[dtype], (self.count, dim))
        self.scales = map_file(path / file_name("scales", row), "<f4", (self.count,)) if dtype == "int8" else None
        self._make_terms = make_terms
        if make_terms is None:
            raw = map_file(path / file_name("terms", row), "|u1", (12 * row.terms,))
            self.terms = raw[: 8 * row.terms].view("<u8"), raw[8 * row.terms :].view("<u4")

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The stored numbers, by the name of their file."""
        return {"vectors": self.matrix} | ({} if self.scales is None else {"scales": self.scales})

    @functools.cached_property
    def terms(self) -> Terms:
        """Digests, ascending, and the offset of the vector that each belongs to."""
        assert self._make_terms is not None
        return self._make_terms()

    def find(self, terms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (which, places), int64 (n,): the places in the index of each of these terms, uint64 (T,)."""
        digests, all_offsets = self.terms
        low = np.searchsorted(digests, terms)
        hits = np.flatnonzero(digests[np.minimum(low, len(digests) - 1)] == terms)
        low, high = low[hits], np.searchsorted(digests, terms[hits], side="right")
        counts = high - low
        starts = np.repeat(low - np.cumsum(counts) + counts, counts)
        offsets = all_offsets[np.arange(counts.sum()) + starts].astype(np.int64)
        if len(offsets) and offsets.max() >= self.count:
            raise ValueError(
                f"{self._path / file_name('terms', self.row)} is damaged: it names a vector beyond its end"
            )
        return np.repeat(hits, counts), self.first + offsets

    def rows(self, part: slice | np.ndarray) -> np.ndarray:
        """Return vectors, float32 (n, D). A slice of a float32 segment is a view of the mapped file."""
        rows = widen(self.matrix[part])
        return rows if self.scales is None else rows * self.scales[part, None]

    def products(self, queries: np.ndarray, part: slice | np.ndarray) -> np.ndarray:
        """Return inner products of queries (Q, D) and vectors, float32 (Q, n)."""
        rows = widen(self.matrix[part])
        found = inner_products(rows, queries[0])[None] if len(queries) == 1 else queries @ rows.T
        return found if self.scales is None else found * self.scales[part]

    def parts(
        self, places: np.ndarray | None = None, queries: int = 1
    ) -> Iterator[tuple[np.ndarray | slice, np.ndarray | slice]]:
        """Yield (offsets, positions) block by block: of all vectors, or of those at ascending places of the index.

        Positions count from 0, in all vectors of the index or in `places`. All of a float32 segment is one block,
        since nothing is copied. For many queries blocks are larger.
        """
        size = max(1, BLOCK_BYTES * min(queries, _LARGER) // (4 * self._dim))
        if places is None:
            size = self.count if self.matrix.dtype == np.float32 else size
            for start in range(0, self.count, size):
                stop = min(start + size, self.count)
                yield slice(start, stop), slice(self.first + start, self.first + stop)
            return
        low, high = np.searchsorted(places, (self.first, self.first + self.count))
        for start in range(low, high, size):
            part = slice(start, min(start + size, high))
            yield places[part] - self.first, part

    def digest(self, first: int, end: int) -> str:
        """Return the SHA-256 of the vectors, and scales, from place `first` to `end` of the index."""
        return " ".join(digest(array[first - self.first : end - self.first]) for array in self.arrays.values())


def widen(rows: np.ndarray) -> np.ndarray:
    """Return rows as float32. Those of float16 are converted three times as fast as by NumPy; infinities become NaN."""
    if rows.dtype != np.float16:
        return rows.astype(np.float32, copy=False)
    bits = rows.view("<i2").astype(np.int32)  # the sign fills the upper half
    bits <<= 13  # to the low bits of float32's exponent and the high bits of its fraction
    bits &= _SIGN_AND_LOWEST
    wide = bits.view(np.float32)
    wide *= np.float32(2.0**112)  # the bias of float32's exponent is 127, that of float16's is 15
    if max(wide.max(initial=0), -wide.min(initial=0)) >= _NOT_FINITE:
        wide[np.abs(wide) >= _NOT_FINITE] = np.nan
    return wide


def quantize(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return rows as int8 (…, D), each scaled to the full range, and the scales, float32 (…, 1)."""
    scales = np.maximum(np.abs(rows).max(axis=-1, keepdims=True), 1e-30) / INT8_MAX
    return np.rint(rows / scales).astype(np.int8), scales.astype("<f4")


def inner_products(rows: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Return rows (n, D) · query (D,), float32 (n,). A row's product does not depend on the other rows.

    It runs on one thread. Memory is the limit: a matrix-vector product is 10 % faster with two, and OpenBLAS's second
    thread then spins for 25 ms beside PyTorch's, which doubles the time of the next sentence.
    """
    return np.vecdot(rows, query)


def file_name(what: str, row: Row) -> str:
    return f"{what}-{row.number:06d}.bin"


def files_of(row: Row, dtype: str) -> list[str]:
    """Return the names of a segment's files."""
    return [file_name(what, row) for what in ("vectors", "terms", *(["scales"] if dtype == "int8" else []))]


def write_segment(
    path: Path, number: int, first: int, vectors: np.ndarray, terms: Terms, dtype: str
) -> tuple[Row, str]:
    """Write a segment's files and return (its row, the digest of its vectors)."""
    vectors = np.ascontiguousarray(vectors)
    arrays = quantize(vectors) if dtype == "int8" else (vectors.astype(DTYPES[dtype]),)
    row = write_terms(path, Row(number, first, len(vectors)), terms)
    for what, array in zip(("vectors", "scales"), arrays, strict=False):
        with atomic_write(path / file_name(what, row)) as file:
            file.write(array.data)
    return row, " ".join(map(digest, arrays))


def write_terms(path: Path, row: Row, terms: Terms) -> Row:
    """Write a file of terms and return the row with its digest."""
    total = hashlib.sha256()
    with atomic_write(path / file_name("terms", row)) as file:
        for array in terms:
            file.write(array.data)
            total.update(array.data)
    return row._replace(terms=len(terms[0]), digest=total.hexdigest())


def merge_segments(path: Path, number: int, segments: Sequence[Segment]) -> Row:
    """Write one segment of adjacent ones and return its row. Nothing but one block and the terms is held in memory."""
    row = Row(number, segments[0].first, sum(segment.count for segment in segments))
    for what in segments[0].arrays:
        with atomic_write(path / file_name(what, row)) as file:
            for segment in segments:
                for block in _byte_blocks(segment.arrays[what]):
                    file.write(block)
    terms = np.concatenate([segment.terms[0] for segment in segments])
    offsets = np.concatenate([segment.terms[1] + np.uint32(segment.first - row.first) for segment in segments])
    order = np.lexsort((offsets, terms))
    return write_terms(path, row, (terms[order], offsets[order]))


def _byte_blocks(array: np.ndarray) -> Iterator[memoryview]:
    """Yield the bytes of a contiguous array."""
    flat = array.reshape(-1).view(np.uint8)
    for start in range(0, len(flat), _COPY_BYTES):
        yield flat[start : start + _COPY_BYTES].data


def digest(array: np.ndarray) -> str:
    """Return the SHA-256 of a contiguous array's bytes."""
    total = hashlib.sha256()
    for block in _byte_blocks(array):
        total.update(block)
    return total.hexdigest()


def map_file(path: Path, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return a file as a memory-mapped array; ValueError if its size does not fit the shape."""
    expected = math.prod(shape) * np.dtype(dtype).itemsize
    size = path.stat().st_size if path.is_file() else None
    if size != expected:
        raise ValueError(f"{shown(path)} is damaged: it has {size} bytes instead of {expected}")
    return np.memmap(path, dtype, mode="r", shape=shape).view(np.ndarray)
