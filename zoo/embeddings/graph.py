"""A usearch graph (HNSW, arXiv:1603.09320) of vectors projected onto their leading principal directions.

A graph search reads rows in random order and waits for memory at each one, so rows should take few cache lines.
Embeddings of trained models lie near a subspace, which the principal directions of a sample span. The graph gives
candidates only; the caller scores them with the original vectors.

File layout: HEADER zero bytes, the directions, float32 (D, d), and usearch's own data, whose rows begin after 8 bytes.
"""

from pathlib import Path

import numpy as np

from zoo.embeddings.segment import quantize
from zoo.utils.arrays import unit_rows
from zoo.utils.files import atomic_write

CONNECTIVITY, EXPANSION = 32, 128  # usearch's 16 has a lower recall at a million vectors, or takes longer
# Share of the sample's squared length along the directions: of a new graph, and to keep adding to an old one.
EXPLAINED, STILL_EXPLAINED = 0.99, 0.98
LINE = 64  # int8 numbers in a cache line
HEADER = LINE - 8  # bytes, which align usearch's rows with cache lines


class Graph:
    """A graph of unit vectors, stored as int8 rows along `directions`, float32 (D, d).

    Args:
        index: usearch's index.
        mapped: the memory map that the index reads, to which usearch keeps no reference.
    """

    def __init__(self, directions: np.ndarray, index, mapped: np.ndarray | None = None):
        self.directions, self._index, self._mapped = directions, index, mapped

    @classmethod
    def new(cls, sample: np.ndarray, connectivity: int = CONNECTIVITY, expansion: int = EXPANSION) -> "Graph":
        """Return an empty graph for vectors like the sample, float32 (n, D)."""
        directions = leading_directions(sample)
        return cls(directions, _empty(directions, connectivity=connectivity, expansion_add=expansion))

    @classmethod
    def open(cls, path: Path, shape: tuple[int, int], *, adding: bool = False) -> "Graph":
        """Return a saved graph, memory-mapped for searching or loaded for adding; `shape` is that of its directions.

        usearch does not check what it reads, so the file's digest must have been compared.
        """
        whole = np.memmap(path, np.uint8, mode="r").view(np.ndarray)
        after = HEADER + 4 * shape[0] * shape[1]
        directions, written = whole[HEADER:after].view("<f4").reshape(shape).copy(), whole[after:]
        index = _empty(directions)
        (index.load if adding else index.view)(written)
        return cls(directions, index, None if adding else written)

    def extends(self, sample: np.ndarray, connectivity: int = CONNECTIVITY, expansion: int = EXPANSION) -> bool:
        """Whether vectors like the sample can be added, with these options, which then hold."""
        self._index.expansion_add = expansion
        return self._index.connectivity == connectivity and explained(sample, self.directions) >= STILL_EXPLAINED

    def __len__(self) -> int:
        return len(self._index)

    def add(self, unit: np.ndarray) -> None:
        """Add unit rows, float32 (n, D)."""
        first = len(self)
        self._index.add(np.arange(first, first + len(unit)), quantize(unit @ self.directions)[0])

    def search(self, unit: np.ndarray, count: int, expansion: int) -> np.ndarray:
        """Return the places, int64 (count,), of vectors found near a unit vector, float32 (D,)."""
        self._index.expansion_search = expansion
        return self._index.search(quantize(unit @ self.directions)[0], count).keys.astype(np.int64)

    def save(self, path: Path) -> None:
        """Write the graph's file atomically."""
        with atomic_write(path) as file:
            file.write(bytes(HEADER))
            file.write(self.directions.astype("<f4").data)
            file.write(self._index.save())


def leading_directions(sample: np.ndarray) -> np.ndarray:
    """Return principal directions of rows float32 (n, D), float32 (D, d), orthonormal.

    d is the smallest multiple of LINE that explains the share EXPLAINED of the rows' squared length. Where that takes
    all D, the result is the identity.
    """
    unit = unit_rows(sample)
    lengths, directions = np.linalg.eigh(unit.T @ unit)  # in ascending order
    needed = 1 + int(np.searchsorted(np.cumsum(lengths[::-1]), EXPLAINED * len(unit)))
    count = -(-needed // LINE) * LINE
    if count >= len(directions):
        return np.eye(len(directions), dtype=np.float32)
    return np.ascontiguousarray(directions[:, ::-1][:, :count])


def explained(rows: np.ndarray, directions: np.ndarray) -> float:
    """Return the mean share of the squared length of rows float32 (n, D) along directions (D, d)."""
    return float(np.square(unit_rows(rows) @ directions).sum() / len(rows))


def usearch():
    """Return the module `usearch.index`; ImportError says how to install it."""
    try:
        import usearch.index
    except ImportError as error:
        raise ImportError('accelerators need usearch: pip install "convnext-clip-zoo[search]"') from error
    return usearch.index


def _empty(directions: np.ndarray, **options):
    return usearch().Index(ndim=directions.shape[1], metric="cos", dtype="i8", **options)
