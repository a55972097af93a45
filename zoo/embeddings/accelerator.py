"""Accelerators of an index, built from its vectors and kept beside them: reduced-precision copies and a graph.

`float16` and `int8` are copies of a half and a quarter of the size, scanned completely by usearch. The error of every
copied row is known, so a search can tell when no row left out can be among the best; the candidates are then scored
with the original vectors, and the result is exact. `hnsw` is a graph (see `Graph`), which reads a few thousand rows and
is approximate.

An accelerator records the digests of the segments it was built from, and is ignored for others. It can be rebuilt at
any time. usearch is imported at first use: `pip install "convnext-clip-zoo[search]"`.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from clip import Field
from zoo.embeddings.graph import EXPANSION, Graph, quantize, usearch
from zoo.utils.arrays import unit_rows
from zoo.utils.files import atomic_write, sha256
from zoo.utils.strict_json import list_of, read_json, text
from zoo.utils.text import quoted, shown

EXACT = ("float16", "int8")  # in the order of preference
KINDS = (*EXACT, "hnsw")
STORED = {"float16": "<f2", "int8": "|i1"}
ROUNDING = 1e-5  # bound for the rounding of usearch's cosines, ten times the largest measured
CANDIDATES = {"float16": (256, 16), "int8": (256, 16), "hnsw": (64, 4)}  # first requested: minimum, and times k


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

    def __init__(self, folder: Path, kind: str, facts: Facts):
        self.kind, self.facts, self.path = kind, facts, _file(folder, kind)
        self._opened_matrix: np.ndarray | None = None
        self._opened_graph: Graph | None = None

    @classmethod
    def build(
        cls,
        folder: Path,
        kind: str,
        blocks: Iterable[np.ndarray],
        covers: Sequence[str],
        dim: int,
        *,
        begun: "Accelerator | None" = None,
        **options,
    ) -> "Accelerator":
        """Write an accelerator of blocks of vectors, float32 (n, D), and return it.

        Args:
            covers: digests of the segments that the blocks are from.
            begun: a graph of the first of those segments; the blocks are those of the others.
            options: options of a graph, see `Graph.new`.

        Raises:
            ValueError: an unknown kind, or a vector of length 0. ImportError: no usearch.
        """
        if kind not in KINDS:
            raise ValueError(f"accelerator {quoted(kind)}; allowed are {', '.join(KINDS)}")
        usearch()
        measure = _Measure(begun.facts if begun else None)
        graph, directions = begun._opened_graph if begun else None, 0
        if kind == "hnsw":
            graph = graph or Graph.new(**options)
            directions = graph.directions.shape[1]
            _write_graph(_file(folder, kind), map(measure.normalize, blocks), graph)
        else:
            _write_matrix(_file(folder, kind), (measure.convert(block, kind) for block in blocks), **options)
        norms = (measure.shortest, measure.longest)
        facts = Facts(list(covers), measure.count, dim, measure.error, norms, sha256(_file(folder, kind)), directions)
        with atomic_write(_file(folder, kind).with_suffix(".json"), "w") as file:
            json.dump(asdict(facts), file)
        made = cls(folder, kind, facts)
        made._opened_graph = graph
        return made

    @classmethod
    def unfinished(cls, folder: Path, covers: Sequence[str], dim: int, **options) -> "Accelerator | None":
        """Return an undamaged graph of the first of these segments that the others can be added to, else None."""
        begun = cls.open(folder, "hnsw", covers, dim)
        if begun is None or len(begun.facts.covers) == len(covers):
            return None
        try:
            shape = (dim, begun.facts.directions)
            begun._opened_graph = Graph.unfinished(begun.path, shape, begun.facts.digest, **options)
        except (OSError, ValueError):
            return None
        return begun if begun._opened_graph else None

    @classmethod
    def open(cls, folder: Path, kind: str, covers: Sequence[str], dim: int) -> "Accelerator | None":
        """Return the accelerator of a kind, if it was built from the first segments of `covers`, else None."""
        try:
            file = _file(folder, kind).with_suffix(".json")
            facts = Facts(**read_json(file, FACTS, optional=("directions",)))
            fits = facts.dim == dim and len(facts.covers) > 0 and facts.covers == list(covers[: len(facts.covers)])
            return cls(folder, kind, facts) if fits and (kind in EXACT or facts.directions) else None
        except (OSError, ValueError, TypeError):
            return None

    def first_request(self, k: int) -> int:
        """Return the number of candidates to request first for the k best."""
        minimum, factor = CANDIDATES[self.kind]
        return max(minimum, factor * k)

    def nearest(self, query: np.ndarray, count: int, expansion: bool | int = True) -> tuple[np.ndarray, float | None]:
        """Return (places int64 (count,), upper bound of every other vector's score or, for a graph, None).

        Args:
            query: float32 (D,), not zero.
            expansion: expansion of a graph search, at least `count`; True for EXPANSION.
        """
        length = float(np.linalg.norm(query))
        unit = (query / length)[None]
        if self.kind == "hnsw":
            return self._graph().search(unit[0], count, max(count, EXPANSION if expansion is True else expansion)), None
        stored = convert(unit, self.kind)
        library = usearch()
        found = library.search(self._matrix(), stored[0], count, library.MetricKind.Cos, exact=True)
        error = float(np.linalg.norm(unit_rows(stored) - unit))
        cosine = 1 - float(found.distances[-1]) + self.facts.error + error + ROUNDING
        return found.keys.astype(np.int64), length * cosine * self.facts.norms[cosine > 0]

    def verify(self) -> None:
        """Raise ValueError if the file's digest is not the recorded one."""
        if sha256(self.path) != self.facts.digest:
            raise ValueError(f"{shown(self.path)} is damaged: its digest is not {self.facts.digest}; build it again")

    def _matrix(self) -> np.ndarray:
        if self._opened_matrix is None:
            shape = (self.facts.count, self.facts.dim)
            stored = np.dtype(STORED[self.kind])
            if self.path.stat().st_size != shape[0] * shape[1] * stored.itemsize:
                wanted = f"that of {self.kind} {shape}"
                raise ValueError(f"{shown(self.path)} is damaged: its size is not {wanted}; build it again")
            self._opened_matrix = np.memmap(self.path, stored, mode="r", shape=shape).view(np.ndarray)
        return self._opened_matrix

    def _graph(self) -> Graph:
        if self._opened_graph is None:
            shape = (self.facts.dim, self.facts.directions)
            self._opened_graph = Graph.open(self.path, shape, self.facts.digest)
        return self._opened_graph


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

    def convert(self, rows: np.ndarray, kind: str) -> np.ndarray:
        unit = self.normalize(rows)
        stored = convert(unit, kind)
        self.error = max(self.error, float(np.linalg.norm(unit_rows(stored) - unit, axis=1).max()))
        return stored


def convert(unit: np.ndarray, kind: str) -> np.ndarray:
    """Return unit rows float32 (n, D) as a copy of that kind stores them."""
    return unit.astype(np.float16) if kind == "float16" else quantize(unit)


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
