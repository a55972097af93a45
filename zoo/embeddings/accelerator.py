"""Accelerators of an index, built from its vectors and stored in its folder: a copy in int8 and a graph.

`int8` is a copy with a byte per number, which usearch scans completely. The largest error of a copied row is known, so
a search can tell when no other row can be among the best. The candidates are scored with the original vectors, and the
result is exact. `hnsw` is a graph (see `Graph`); a search reads a few thousand of its rows and is approximate.

An accelerator records the digests of the segments it was built from, and is ignored for others. It can be rebuilt at
any time. usearch is imported at first use: `pip install "convnext-clip-zoo[search]"`.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from clip import Field
from zoo.embeddings.graph import EXPANSION, SAMPLE, Graph, portions, usearch
from zoo.embeddings.segment import inner_products, map_file, quantize
from zoo.embeddings.store import Store
from zoo.embeddings.terms import contains
from zoo.embeddings.vectors import Vectors, best
from zoo.utils.arrays import unit_rows
from zoo.utils.files import atomic_write, sha256
from zoo.utils.strict_json import list_of, read_json, text
from zoo.utils.text import quoted, shown

KINDS = ("int8", "hnsw")
ROUNDING = 1e-5  # bound for the rounding of usearch's cosines, ten times the largest measured
CANDIDATES = {"int8": (256, 16), "hnsw": (64, 4)}  # in the first request: at least so many, and so many times k
MORE_CANDIDATES = 8  # factor of each further request

COUNT = Field.integer(1, 1 << 40)
FACTS = {
    "covers": list_of(text(200)),
    "count": COUNT,
    "dim": COUNT,
    "error": Field.number(0, 2),
    "norms": list_of(Field.number(0), 2),
    "digest": text(64),
    "directions": Field.integer(0, 1 << 40),
}


@dataclass(frozen=True)
class Facts:
    """The description of an accelerator, stored as JSON beside it.

    Args:
        covers: SHA-256 of each segment's vectors, in order.
        count, dim: number and dimension of the vectors.
        error: for a copy, the largest distance between a unit vector and its stored form.
        norms: the smallest and the largest length of the vectors.
        digest: SHA-256 of the accelerator.
        directions: for a graph, the number of its directions.
    """

    covers: list[str]
    count: int
    dim: int
    error: float
    norms: tuple[float, float]
    digest: str
    directions: int = 0


class Accelerator:
    """An accelerator, one of KINDS, of the first `facts.count` vectors of an index."""

    def __init__(self, folder: Path, kind: str, facts: Facts, graph: Graph | None = None):
        self.kind, self.facts, self.path = kind, facts, _file(folder, kind)
        self._matrix: np.ndarray | None = None
        self._graph = graph

    @classmethod
    def open(cls, folder: Path, kind: str, covers: Sequence[str], dim: int) -> "Accelerator | None":
        """Return the accelerator of a kind, if it was built from the first segments of `covers`, else None."""
        try:
            file = _file(folder, kind).with_suffix(".json")
            facts = Facts(**read_json(file, FACTS, optional=("directions",)))
            fits = facts.dim == dim and len(facts.covers) > 0 and facts.covers == list(covers[: len(facts.covers)])
            return cls(folder, kind, facts) if fits and (kind == "int8" or facts.directions) else None
        except (OSError, ValueError, TypeError):
            return None

    def search(
        self, vectors: Vectors, query: np.ndarray, k: int, allowed: np.ndarray | None, expansion: bool | int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return (places, scores) of the best among the candidates and the vectors added since.

        More candidates are requested until no other vector can be among the best; from a graph, until there are k.

        Args:
            allowed: see `Vectors.nearest`. expansion: see `nearest`.
        """
        minimum, factor = CANDIDATES[self.kind]
        covered, count = self.facts.count, max(minimum, factor * k)
        added_since = np.arange(covered, vectors.total)
        while query.any() and count < covered // 2:
            places, bound = self.nearest(query, count, expansion)
            places = np.concatenate([np.sort(places), added_since])
            places = places[contains(allowed, places) if allowed is not None else ~contains(vectors.removed, places)]
            scores = vectors.finite(inner_products(vectors.rows(places), query))
            chosen = best(scores, k)
            if len(chosen) == k and (bound is None or bound < scores[chosen[-1]]):
                return places[chosen], scores[chosen]
            count *= MORE_CANDIDATES
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
            return self.open_graph().search(
                unit[0], count, max(count, EXPANSION if expansion is True else expansion)
            ), None
        stored, _ = quantize(unit)
        library = usearch()
        found = library.search(self._open_matrix(), stored[0], count, library.MetricKind.Cos, exact=True)
        error = float(np.linalg.norm(unit_rows(stored) - unit))
        cosine = 1 - float(found.distances[-1]) + self.facts.error + error + ROUNDING
        return found.keys.astype(np.int64), length * cosine * self.facts.norms[cosine > 0]

    def verify(self) -> None:
        """Raise ValueError if the file's digest is not the recorded one."""
        if sha256(self.path) != self.facts.digest:
            wanted = shown(self.facts.digest)
            raise ValueError(f"{shown(self.path)} is damaged: its digest is not {wanted}; build it again")

    def _open_matrix(self) -> np.ndarray:
        if self._matrix is None:
            self._matrix = map_file(self.path, "|i1", (self.facts.count, self.facts.dim))
        return self._matrix

    def open_graph(self, *, adding: bool = False) -> Graph:
        """Return the graph, opened at first use; ValueError for a damaged one, which usearch would not notice."""
        if self._graph is None:
            self.verify()
            self._graph = Graph.open(self.path, (self.facts.dim, self.facts.directions), adding=adding)
        return self._graph


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

    def for_search(self, vectors: Vectors, approximate: bool) -> Accelerator | None:
        """Return the graph for an approximate search, ValueError if there is none; else the copy, if there is one."""
        if approximate:
            if (graph := self.get("hnsw", vectors)) is None:
                name = shown(self._store.path)
                raise ValueError(f"{name} has no graph to search approximately; accelerate it with hnsw first")
            return graph
        return self.get("int8", vectors)

    def build(self, kind: str, **options) -> Accelerator:
        """Write an accelerator of all vectors; a graph is written after each portion of them.

        Args:
            options: options of a graph, see `Graph.new`.

        Raises:
            ValueError: an unknown kind, or a vector of length 0. ImportError: no usearch.
        """
        if kind not in KINDS:
            raise ValueError(f"accelerator {quoted(kind)}; allowed are {', '.join(KINDS)}")
        usearch()
        vectors, (covers, lasts), made = self._store.current(), self._covers(), None
        self._opened, ends = (None, {}), [len(covers)]  # Windows does not replace a file that is mapped
        if kind == "hnsw":
            options["sample"] = vectors.sample(SAMPLE)
            made = self._unfinished(covers, **options)
            ends = portions(np.diff(lasts).tolist(), len(made.facts.covers) if made else 0)
        for end in ends:
            first = lasts[len(made.facts.covers)] if made else 0
            made = self._write(kind, vectors.blocks(first, lasts[end]), covers[:end], made, **options)
        assert made is not None
        return made

    def _unfinished(self, covers: Sequence[str], **options) -> Accelerator | None:
        """Return a graph of the first of these segments, if it is undamaged and can be extended to all; else None."""
        begun = Accelerator.open(self._store.path, "hnsw", covers, self._store.dim)
        if begun is None or len(begun.facts.covers) == len(covers):
            return None
        try:
            graph = begun.open_graph(adding=True)
        except (OSError, ValueError):
            return None
        return begun if graph.extends(**options) else None

    def _write(
        self, kind: str, blocks: Iterable[np.ndarray], covers: list[str], begun: Accelerator | None, **options
    ) -> Accelerator:
        """Write an accelerator of blocks of vectors, float32 (n, D), that continues a graph or is new."""
        path, measure, graph = _file(self._store.path, kind), _Measure(begun.facts if begun else None), None
        if kind == "hnsw":
            graph = begun.open_graph() if begun else Graph.new(**options)
            _write_graph(path, map(measure.normalize, blocks), graph)
        else:
            _write_matrix(path, map(measure.quantize, blocks), **options)
        norms, directions = (measure.shortest, measure.longest), graph.directions.shape[1] if graph else 0
        facts = Facts(covers, measure.count, self._store.dim, measure.error, norms, sha256(path), directions)
        with atomic_write(path.with_suffix(".json"), "w") as file:
            json.dump(asdict(facts), file)
        return Accelerator(self._store.path, kind, facts, graph)

    def _covers(self) -> tuple[list[str], list[int]]:
        """Return the digests of what was added, in order, and the places where each begins, and the end."""
        history = self._store.catalogue.history()
        return [added.vectors for added in history], [0, *(added.last for added in history)]


class _Measure:
    """The count, norms and errors of the rows that pass through it, continued from `facts`."""

    def __init__(self, facts: Facts | None = None):
        self.count, self.error = (facts.count, facts.error) if facts else (0, 0.0)
        self.shortest, self.longest = facts.norms if facts else (float("inf"), 0.0)

    def normalize(self, rows: np.ndarray) -> np.ndarray:
        lengths = np.linalg.norm(rows, axis=1)
        unit = unit_rows(rows)
        self.count += len(rows)
        self.shortest, self.longest = min(self.shortest, float(lengths.min())), max(self.longest, float(lengths.max()))
        return unit

    def quantize(self, rows: np.ndarray) -> np.ndarray:
        unit = self.normalize(rows)
        stored, _ = quantize(unit)
        self.error = max(self.error, float(np.linalg.norm(unit_rows(stored) - unit, axis=1).max()))
        return stored


def _file(folder: Path, kind: str) -> Path:
    return folder / f"accelerator-{kind}.bin"


def _write_matrix(path: Path, blocks: Iterable[np.ndarray]) -> None:
    with atomic_write(path) as file:
        for block in blocks:
            file.write(np.ascontiguousarray(block).data)


def _write_graph(path: Path, blocks: Iterable[np.ndarray], graph: Graph) -> None:
    for block in blocks:
        graph.add(block)
    graph.save(path)
