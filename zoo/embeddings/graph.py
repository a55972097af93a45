"""A graph of vectors by usearch (arXiv:1603.09320), over the few directions that hold nearly all of them.

A search goes through memory in no order and waits for each row it looks at: the fewer lines of the processor's cache a
row takes, the less. Vectors of trained models lie near fewer dimensions than they have, and the leading principal
directions of a sample say near which. Scores are no matter of the graph: who searches takes what it finds for
candidates.

A file is AHEAD zeros, the directions, float32 (D, d), and what usearch writes, whose rows begin after 8 bytes.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from zoo.utils.arrays import unit_rows
from zoo.utils.files import atomic_write, sha256

CONNECTIVITY, EXPANSION = 32, 128  # usearch has 16: of a million vectors that finds fewer, or takes longer
PORTION = 100_000  # vectors after which a graph is written, so that a killed run goes on from there
SAMPLE = 8192  # vectors that tell the directions
HELD, STILL_HELD = 0.99, 0.98  # share of squared length: of the sample, and of one that was added to since
LINE = 64  # int8 numbers in a line of the cache
AHEAD = LINE - 8  # bytes, so that a row takes as few lines as it can
INT8_MAX = 127


class Graph:
    """int8 rows of unit vectors along `directions`, float32 (D, d), and which are neighbours.

    Args:
        index: usearch's.
        mapped: what the index looks into, if anything: usearch does not hold on to it.
    """

    def __init__(self, directions: np.ndarray, index, mapped: np.ndarray | None = None):
        self.directions, self._index, self._mapped = directions, index, mapped

    @classmethod
    def new(cls, sample: np.ndarray, connectivity: int = CONNECTIVITY, expansion: int = EXPANSION) -> "Graph":
        """Empty, for vectors such as the sample, float32 (n, D)."""
        directions = leading_directions(sample)
        return cls(directions, _empty(directions, connectivity=connectivity, expansion_add=expansion))

    @classmethod
    def open(cls, path: Path, shape: tuple[int, int], digest: str) -> "Graph":
        """One that was saved, to be searched; `shape` is of its directions.

        Raises:
            ValueError: the file has another SHA-256: usearch trusts what it reads.
        """
        directions, written = _read(path, shape, digest)
        index = _empty(directions)
        index.view(written)
        return cls(directions, index, written)

    @classmethod
    def unfinished(
        cls,
        path: Path,
        shape: tuple[int, int],
        digest: str,
        sample: np.ndarray,
        connectivity: int = CONNECTIVITY,
        expansion: int = EXPANSION,
    ) -> "Graph | None":
        """One that was saved, to be added to; None if it has another connectivity, or poor directions for the sample.

        Raises:
            ValueError: see `open`.
        """
        directions, written = _read(path, shape, digest)
        index = _empty(directions)
        index.load(written)
        index.expansion_add = expansion
        fits = index.connectivity == connectivity and held(sample, directions) >= STILL_HELD
        return cls(directions, index) if fits else None

    def __len__(self) -> int:
        return len(self._index)

    def add(self, unit: np.ndarray) -> None:
        """Adds unit rows float32 (n, D)."""
        first = len(self)
        self._index.add(np.arange(first, first + len(unit)), filled(unit @ self.directions))

    def search(self, unit: np.ndarray, count: int, kept: int) -> np.ndarray:
        """Places int64 (count,) of what is found near a unit vector float32 (D,), `kept` being kept in view."""
        self._index.expansion_search = kept
        return self._index.search(filled(unit @ self.directions), count).keys.astype(np.int64)

    def save(self, path: Path) -> None:
        with atomic_write(path) as file:
            file.write(bytes(AHEAD))
            file.write(self.directions.astype("<f4").data)
            file.write(self._index.save())


def leading_directions(sample: np.ndarray) -> np.ndarray:
    """float32 (D, d), orthonormal: the fewest principal directions, in whole LINEs, that hold the share HELD of rows'
    squared length, float32 (n, D); where it takes them all, those that the vectors come with.
    """
    unit = unit_rows(sample)
    lengths, directions = np.linalg.eigh(unit.T @ unit)  # rising
    needed = 1 + int(np.searchsorted(np.cumsum(lengths[::-1]), HELD * len(unit)))
    count = -(-needed // LINE) * LINE
    if count >= len(directions):
        return np.eye(len(directions), dtype=np.float32)
    return np.ascontiguousarray(directions[:, ::-1][:, :count])


def held(rows: np.ndarray, directions: np.ndarray) -> float:
    """The mean share of their squared length that rows float32 (n, D) have along directions (D, d)."""
    return float(np.square(unit_rows(rows) @ directions).sum() / len(rows))


def filled(rows: np.ndarray) -> np.ndarray:
    """int8 (…, D) of float rows: each fills its range, for only directions count."""
    largest = np.abs(rows).max(axis=-1, keepdims=True)
    return np.rint(rows / np.maximum(largest, np.finfo(np.float32).tiny) * INT8_MAX).astype(np.int8)


def portions(counts: Sequence[int], first: int) -> list[int]:
    """After which of the segments with these counts of vectors, from the first on, a graph is written."""
    ends, since = [], 0
    for end, count in enumerate(counts[first:], first + 1):
        since += count
        if since >= PORTION or end == len(counts):
            ends.append(end)
            since = 0
    return ends


def usearch():
    """usearch's module; ImportError says how to get it."""
    try:
        import usearch.index
    except ImportError as error:
        raise ImportError('accelerators need usearch: pip install "convnext-clip-zoo[search]"') from error
    return usearch.index


def _empty(directions: np.ndarray, **options):
    return usearch().Index(ndim=directions.shape[1], metric="cos", dtype="i8", **options)


def _read(path: Path, shape: tuple[int, int], digest: str) -> tuple[np.ndarray, np.ndarray]:
    """The directions of a file, and usearch's part of it, mapped."""
    if sha256(path) != digest:
        raise ValueError(f"{path} is damaged: its digest is not {digest}; make it anew")
    whole = np.memmap(path, np.uint8, mode="r").view(np.ndarray)
    after = AHEAD + 4 * shape[0] * shape[1]
    return whole[AHEAD:after].view("<f4").reshape(shape).copy(), whole[after:]
