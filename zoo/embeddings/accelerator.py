"""Faster ways through an index, made from its vectors and never in their place: usearch's kernels and its graph.

`float16` and `int8` are narrow copies, a half and a quarter of the matrix, searched whole. How far each copied row lies
from its original is known, so that a search can tell when no row it left out could be among the best: after the
candidates are scored with the vectors themselves, the result is exact. `hnsw` is a graph (see `Graph`) that looks at
a few thousand rows; what it misses is missed.

An accelerator says by digest which segments it was made of. For others it does not exist; it can be made anew at any
time. usearch is imported when one is used: `pip install "convnext-clip-zoo[search]"`.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from zoo.embeddings.graph import EXPANSION, Graph, filled, usearch
from zoo.utils.arrays import unit_rows
from zoo.utils.files import atomic_write, sha256

EXACT = ("float16", "int8")  # the first that is there is searched
KINDS = (*EXACT, "hnsw")
STORED = {"float16": "<f2", "int8": "|i1"}
ROUNDING = 1e-5  # of usearch's cosines: ten times what was seen
ASKED = {"float16": (256, 16), "int8": (256, 16), "hnsw": (64, 4)}  # candidates at first: at least, and for each of k


@dataclass(frozen=True)
class Facts:
    """What a file beside an accelerator says of it.

    Args:
        covers: SHA-256 of each segment's vectors, in order.
        count, dim: of the vectors.
        error: the largest distance of a copied row's direction from its original's; of a copy.
        norms: the least and the largest length of the vectors.
        digest: SHA-256 of the accelerator itself.
        directions: how many its rows have; of a graph.
    """

    covers: list[str]
    count: int
    dim: int
    error: float
    norms: tuple[float, float]
    digest: str
    directions: int = 0


class Accelerator:
    """One of KINDS, of the first `facts.count` vectors of an index."""

    def __init__(self, folder: Path, kind: str, facts: Facts):
        self.kind, self.facts, self.path = kind, facts, _file(folder, kind)
        self._opened = None

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
        """Writes an accelerator of float32 (n, D) blocks of vectors.

        Args:
            covers: digests of the segments that the blocks are of.
            begun: a graph of the first of those segments, that the blocks of the others are added to.
            options: of a graph, see `Graph.new`.

        Raises:
            ValueError: an unknown kind, or a vector of length 0. ImportError: no usearch.
        """
        if kind not in KINDS:
            raise ValueError(f"accelerator {kind!r}; it must be one of {', '.join(KINDS)}")
        usearch()
        measure = _Measure(begun and begun.facts)
        graph, directions = None, 0
        if kind == "hnsw":
            graph = begun._opened if begun else Graph.new(**options)
            directions = graph.directions.shape[1]
            _write_graph(_file(folder, kind), map(measure.units, blocks), graph)
        else:
            _write_matrix(_file(folder, kind), (measure.copied(block, kind) for block in blocks), **options)
        norms = (measure.shortest, measure.longest)
        facts = Facts(list(covers), measure.count, dim, measure.error, norms, sha256(_file(folder, kind)), directions)
        with atomic_write(_file(folder, kind).with_suffix(".json"), "w") as file:
            json.dump(asdict(facts), file)
        made = cls(folder, kind, facts)
        made._opened = graph
        return made

    @classmethod
    def unfinished(cls, folder: Path, covers: Sequence[str], dim: int, **options) -> "Accelerator | None":
        """A sound graph of the first, not all, of these segments, made with such options, that can be added to."""
        begun = cls.open(folder, "hnsw", covers, dim)
        if begun is None or len(begun.facts.covers) == len(covers):
            return None
        try:
            begun._opened = Graph.unfinished(begun.path, (dim, begun.facts.directions), begun.facts.digest, **options)
        except (OSError, ValueError):
            return None
        return begun if begun._opened else None

    @classmethod
    def open(cls, folder: Path, kind: str, covers: Sequence[str], dim: int) -> "Accelerator | None":
        """The accelerator of that kind, if there is one of the segments that `covers` begins with; else None."""
        try:
            facts = Facts(**json.loads(_file(folder, kind).with_suffix(".json").read_text(encoding="utf-8")))
            fits = facts.dim == dim and facts.covers and facts.covers == list(covers[: len(facts.covers)])
            fits = fits and (kind in EXACT or facts.directions)
            return cls(folder, kind, facts) if fits else None
        except (OSError, ValueError, TypeError):
            return None

    def asked_first(self, k: int) -> int:
        """How many candidates for the k best are worth asking for at first."""
        least, each = ASKED[self.kind]
        return max(least, each * k)

    def nearest(self, query: np.ndarray, count: int, kept: bool | int = True) -> tuple[np.ndarray, float | None]:
        """(places int64 (count,), what the score of any other vector is below).

        Args:
            query: float32 (D,), not 0.
            kept: vectors that a search through the graph keeps in view, `count` at least; True for EXPANSION.

        Returns:
            None for the bound when it is not known: of the graph.
        """
        length = float(np.linalg.norm(query))
        unit = (query / length)[None]
        if self.kind == "hnsw":
            return self._graph().search(unit[0], count, max(count, EXPANSION if kept is True else kept)), None
        stored = copied(unit, self.kind)
        library = usearch()
        found = library.search(self._matrix(), stored[0], count, library.MetricKind.Cos, exact=True)
        off = float(np.linalg.norm(unit_rows(stored) - unit))
        cosine = 1 - float(found.distances[-1]) + self.facts.error + off + ROUNDING
        return found.keys.astype(np.int64), length * cosine * self.facts.norms[cosine > 0]

    def verify(self) -> None:
        """ValueError unless the file is the one that was written."""
        if sha256(self.path) != self.facts.digest:
            raise ValueError(f"{self.path} is damaged: its digest is not {self.facts.digest}; make it anew")

    def _matrix(self) -> np.ndarray:
        if self._opened is None:
            shape = (self.facts.count, self.facts.dim)
            stored = np.dtype(STORED[self.kind])
            if self.path.stat().st_size != shape[0] * shape[1] * stored.itemsize:
                raise ValueError(f"{self.path} is damaged: it is not {shape} of {self.kind}; make it anew")
            self._opened = np.memmap(self.path, stored, mode="r", shape=shape).view(np.ndarray)
        return self._opened

    def _graph(self) -> Graph:
        if self._opened is None:
            self._opened = Graph.open(self.path, (self.facts.dim, self.facts.directions), self.facts.digest)
        return self._opened


class _Measure:
    """What is to be known of the rows that pass, after those of which `facts` are."""

    def __init__(self, facts: Facts | None = None):
        self.count, self.error = (facts.count, facts.error) if facts else (0, 0.0)
        self.shortest, self.longest = facts.norms if facts else (float("inf"), 0.0)

    def units(self, rows: np.ndarray) -> np.ndarray:
        lengths = np.linalg.norm(rows, axis=1)
        unit = unit_rows(rows)
        self.count += len(rows)
        self.shortest, self.longest = min(self.shortest, float(lengths.min())), max(self.longest, float(lengths.max()))
        return unit

    def copied(self, rows: np.ndarray, kind: str) -> np.ndarray:
        unit = self.units(rows)
        stored = copied(unit, kind)
        self.error = max(self.error, float(np.linalg.norm(unit_rows(stored) - unit, axis=1).max()))
        return stored


def copied(unit: np.ndarray, kind: str) -> np.ndarray:
    """Unit rows float32 (n, D) as a copy of that kind keeps them."""
    return unit.astype(np.float16) if kind == "float16" else filled(unit)


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
