"""Accelerators of an index, built from its vectors and stored in its folder: a copy in int8 and a graph.

`int8` is a copy with a byte per number, which usearch scans completely. The largest error of a copied row is known, so
a search can tell when no other row can be among the best. The candidates are scored with the original vectors, and the
result is exact.

`hnsw` is a usearch graph (arXiv:1603.09320) of vectors projected onto their leading principal directions; a search is
approximate. It reads a few thousand rows in random order and waits for memory at each one, so rows should take few
cache lines. Embeddings of trained models lie near a subspace, which the principal directions of a sample span. The
graph gives candidates only, which are scored with the original vectors. Its file: _HEADER zero bytes, the directions,
float32 (D, d), and usearch's own data, whose rows begin after 8 bytes.

An accelerator records the digests of the segments it was built from, and is ignored for others. It can be rebuilt at
any time. usearch is imported at first use: `pip install "convnext-clip-zoo[search]"`.
"""

import contextlib
import functools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clip import Field
from zoo.embeddings.segment import inner_products, map_file, quantize
from zoo.embeddings.store import Store
from zoo.embeddings.terms import contains
from zoo.embeddings.vectors import Vectors, best
from zoo.utils.arrays import unit_rows
from zoo.utils.env import import_onnxruntime
from zoo.utils.files import atomic_write, sha256
from zoo.utils.strict_json import list_of, read_json, text
from zoo.utils.text import quoted, shown

KINDS = ("int8", "hnsw")
_ROUNDING = 1e-5  # bound for the rounding of usearch's cosines, ten times the largest measured
CANDIDATES = {"int8": (256, 16), "hnsw": (64, 4)}  # in the first request: at least so many, and so many times k
_MORE_CANDIDATES = 8  # factor of each further request
PORTION = 100_000  # vectors between two writes of a graph, from which a killed run resumes
_SAMPLE = 8192  # vectors that a graph's directions are computed from
CONNECTIVITY, EXPANSION = 32, 128  # usearch's 16 has a lower recall at a million vectors, or takes longer
# Share of the sample's squared length along the directions: of a new graph, and to keep adding to an old one.
EXPLAINED, STILL_EXPLAINED = 0.99, 0.98
LINE = 64  # int8 numbers in a cache line
_HEADER = LINE - 8  # bytes, which align usearch's rows with cache lines

COUNT = Field.integer(1, 1 << 40)
_FACTS = {
    "covers": list_of(text(200)),
    "count": COUNT,
    "dim": COUNT,
    "error": Field.number(0, 2),
    "norms": list_of(Field.number(0), 2),
    "digest": text(64),
    "directions": Field.integer(0, 1 << 40),
}


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
        after = _HEADER + 4 * shape[0] * shape[1]
        directions, written = whole[_HEADER:after].view("<f4").reshape(shape).copy(), whole[after:]
        index = _empty(directions)
        (index.load if adding else index.view)(written)
        return cls(directions, index, None if adding else written)

    def extends(self, sample: np.ndarray, connectivity: int = CONNECTIVITY, expansion: int = EXPANSION) -> bool:
        """Whether vectors like the sample can be added; if so, with these options from now on."""
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
            file.write(bytes(_HEADER))
            file.write(self.directions.astype("<f4").data)
            file.write(self._index.save())


@dataclass(eq=False)
class Accelerator:
    """An accelerator of the first vectors of an index. All but its path is stored as JSON beside it.

    Args:
        path: its file.
        covers: SHA-256 of each segment's vectors, in order.
        count, dim: number and dimension of the vectors.
        error: for a copy, the largest distance between a unit vector and its stored form.
        norms: for a copy, the smallest and the largest length of the vectors.
        digest: SHA-256 of the file.
        directions: for a graph, the number of its directions; 0 for a copy.
    """

    path: Path
    covers: list[str]
    count: int
    dim: int
    error: float
    norms: tuple[float, float]
    digest: str
    directions: int = 0

    @classmethod
    def open(cls, folder: Path, kind: str, covers: Sequence[str], dim: int) -> "Accelerator | None":
        """Return the accelerator of a kind, if it was built from the first segments of `covers`, else None."""
        path = _file(folder, kind)
        try:
            found = cls(path, **read_json(path.with_suffix(".json"), _FACTS, optional=("directions",)))
        except (OSError, ValueError):
            return None
        fits = found.dim == dim and len(found.covers) > 0 and found.covers == list(covers[: len(found.covers)])
        return found if fits and found.kind == kind else None

    @property
    def kind(self) -> str:
        return "hnsw" if self.directions else "int8"

    def search(
        self, vectors: Vectors, query: np.ndarray, k: int, allowed: np.ndarray | None, expansion: bool | int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return (places, scores) of the best among the candidates and the vectors added since.

        More candidates are requested until no other vector can be among the best; from a graph, until there are k.

        Args:
            allowed: see `Vectors.nearest`. expansion: see `nearest`.
        """
        minimum, factor = CANDIDATES[self.kind]
        covered, count = self.count, max(minimum, factor * k)
        added_since = np.arange(covered, vectors.total)
        while query.any() and count < covered // 2:
            places, bound = self.nearest(query, count, expansion)
            places = np.concatenate([np.sort(places), added_since])
            places = places[contains(allowed, places) if allowed is not None else ~contains(vectors.removed, places)]
            scores = vectors.finite(inner_products(vectors.rows(places), query))
            chosen = best(scores, k)
            if len(chosen) == k and (bound is None or bound < scores[chosen[-1]]):
                return places[chosen], scores[chosen]
            count *= _MORE_CANDIDATES
        return vectors.nearest(query[None], k, allowed)[0]

    def nearest(self, query: np.ndarray, count: int, expansion: bool | int = True) -> tuple[np.ndarray, float | None]:
        """Return (places int64 (count,), upper bound of every other vector's score or, for a graph, None).

        Args:
            query: float32 (D,), not zero.
            expansion: expansion of a graph search, at least `count`; True for EXPANSION.
        """
        length = float(np.linalg.norm(query))
        unit = (query / length)[None]
        if self.kind == "hnsw":
            kept = max(count, EXPANSION if expansion is True else expansion)
            return self.graph.search(unit[0], count, kept), None
        stored, _ = quantize(unit)
        library = usearch()
        found = library.search(self._matrix, stored[0], count, library.MetricKind.Cos, exact=True)
        error = float(np.linalg.norm(unit_rows(stored) - unit))
        cosine = 1 - float(found.distances[-1]) + self.error + error + _ROUNDING
        return found.keys.astype(np.int64), length * cosine * self.norms[cosine > 0]

    def verify(self) -> None:
        """Raise ValueError if the file's digest is not the recorded one."""
        if sha256(self.path) != self.digest:
            wanted = shown(self.digest)
            raise ValueError(f"{shown(self.path)} is damaged: its digest is not {wanted}; build it again")

    @functools.cached_property
    def _matrix(self) -> np.ndarray:
        return map_file(self.path, "|i1", (self.count, self.dim))

    @functools.cached_property
    def graph(self) -> Graph:
        return self.open_graph()

    def open_graph(self, *, adding: bool = False) -> Graph:
        """Return the graph; ValueError for a damaged one, which usearch would not notice."""
        self.verify()
        return Graph.open(self.path, (self.dim, self.directions), adding=adding)


class Accelerators:
    """The accelerators of an index, opened at first use."""

    def __init__(self, store: Store):
        self._store = store
        self._opened: tuple[Vectors | None, dict[str, Accelerator | None]] = None, {}

    def get(self, kind: str, vectors: Vectors) -> Accelerator | None:
        """Return the accelerator of a kind, if there is one that fits the vectors of the index."""
        if self._opened[0] is not vectors:
            self._opened = vectors, {}
        opened = self._opened[1]
        if kind not in opened:
            opened[kind] = Accelerator.open(self._store.path, kind, self._covers()[0], self._store.dim)
        return opened[kind]

    def build(self, kind: str, **options) -> Accelerator:
        """Write an accelerator of all vectors and return it.

        Args:
            options: options of a graph, see `Graph.new`.

        Raises:
            ValueError: an unknown kind, or a vector of length 0. ImportError: no usearch.
        """
        if kind not in KINDS:
            raise ValueError(f"accelerator {quoted(kind)}; allowed are {', '.join(KINDS)}")
        usearch()
        vectors = self._store.current()
        self._opened = None, {}  # Windows does not replace a file that is mapped
        return (self._build_graph if kind == "hnsw" else self._build_copy)(vectors, **options)

    def _build_copy(self, vectors: Vectors) -> Accelerator:
        error, shortest, longest = 0.0, math.inf, 0.0
        with atomic_write(_file(self._store.path, "int8")) as file:
            for rows in vectors.blocks():
                lengths, unit = np.linalg.norm(rows, axis=1), unit_rows(rows)
                stored, _ = quantize(unit)
                file.write(stored.data)
                error = max(error, float(np.linalg.norm(unit_rows(stored) - unit, axis=1).max()))
                shortest, longest = min(shortest, float(lengths.min())), max(longest, float(lengths.max()))
        covers, lasts = self._covers()
        return self._describe("int8", covers, lasts[-1], error=error, norms=(shortest, longest))

    def _build_graph(self, vectors: Vectors, **options) -> Accelerator:
        """Build a graph, or extend one; it is written after each PORTION of vectors."""
        covers, lasts = self._covers()
        graph = self._begun_graph(covers, vectors.sample(_SAMPLE), **options)
        written = len(graph)
        for end in range(lasts.index(written) + 1, len(lasts)):
            for rows in vectors.blocks(len(graph), lasts[end]):
                graph.add(unit_rows(rows))
            if len(graph) - written >= PORTION or end == len(covers):
                graph.save(_file(self._store.path, "hnsw"))
                written, directions = len(graph), graph.directions.shape[1]
                made = self._describe("hnsw", covers[:end], written, directions=directions)
        return made

    def _begun_graph(self, covers: Sequence[str], sample: np.ndarray, **options) -> Graph:
        """Return the graph of the first of these segments, if it is undamaged and can be extended; else a new one."""
        begun = Accelerator.open(self._store.path, "hnsw", covers, self._store.dim)
        with contextlib.suppress(OSError, ValueError):
            if begun is not None and len(begun.covers) < len(covers):
                graph = begun.open_graph(adding=True)
                if graph.extends(sample, **options):
                    return graph
        return Graph.new(sample, **options)

    def _describe(
        self, kind: str, covers: list[str], count: int, *, error=0.0, norms=(0.0, 0.0), directions: int = 0
    ) -> Accelerator:
        """Write the description of an accelerator whose file has been written."""
        path = _file(self._store.path, kind)
        made = Accelerator(path, covers, count, self._store.dim, error, norms, sha256(path), directions)
        with atomic_write(path.with_suffix(".json"), "w") as file:
            json.dump({name: getattr(made, name) for name in _FACTS}, file)
        return made

    def _covers(self) -> tuple[list[str], list[int]]:
        """Return the digests of what was added, in order, and the places where each begins, and the end."""
        history = self._store.catalogue.history()
        return [added.vectors for added in history], [0, *(added.last for added in history)]


def _file(folder: Path, kind: str) -> Path:
    return folder / f"accelerator-{kind}.bin"


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
    with contextlib.suppress(ImportError):
        import_onnxruntime()  # importing it after usearch ends the process with a segmentation fault
    try:
        import usearch.index
    except ImportError as error:
        raise ImportError('accelerators need usearch: pip install "convnext-clip-zoo[search]"') from error
    return usearch.index


def _empty(directions: np.ndarray, **options):
    return usearch().Index(ndim=directions.shape[1], metric="cos", dtype="i8", **options)
