"""Faster ways through an index, made from its vectors and never in their place: usearch's kernels and its graph.

`float16` and `int8` are narrow copies, a half and a quarter of the matrix, searched whole. How far each copied row lies
from its original is known, so that a search can tell when no row it left out could be among the best: after the
candidates are scored with the vectors themselves, the result is exact. `hnsw` is a graph over the int8 copy
(arXiv:1603.09320) that looks at a few thousand rows; what it misses is missed.

An accelerator says by digest which segments it was made of. For others it does not exist; it can be made anew at any
time. usearch is imported when one is used: `pip install "convnext-clip-zoo[search]"`.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from zoo.files import atomic_write, sha256

EXACT = ("float16", "int8")  # the first that is there is searched
KINDS = (*EXACT, "hnsw")
STORED = {"float16": "<f2", "int8": "|i1", "hnsw": "|i1"}
INT8_MAX = 127
ROUNDING = 1e-5  # of usearch's cosines: ten times what was seen
CONNECTIVITY, EXPANSION = 16, 128  # of the graph, as usearch has them
GRAPH_PORTION = 100_000  # vectors after which a graph is written, so that a killed run goes on from there
ASKED = {"float16": (256, 16), "int8": (256, 16), "hnsw": (64, 4)}  # candidates at first: at least, and for each of k


@dataclass(frozen=True)
class Facts:
    """What a file beside an accelerator says of it.

    Args:
        covers: SHA-256 of each segment's vectors, in order.
        count, dim: of the vectors.
        error: the largest distance of a copied row's direction from its original's.
        norms: the least and the largest length of the vectors.
        digest: SHA-256 of the accelerator itself.
    """

    covers: list[str]
    count: int
    dim: int
    error: float
    norms: tuple[float, float]
    digest: str


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
            options: of the graph: `connectivity`, `expansion`.

        Raises:
            ValueError: an unknown kind, or a vector of length 0. ImportError: no usearch.
        """
        if kind not in KINDS:
            raise ValueError(f"accelerator {kind!r}; it must be one of {', '.join(KINDS)}")
        usearch()
        measure = _Measure(begun and begun.facts)
        rows = (measure.copied(block, kind) for block in blocks)
        graph = None
        if kind == "hnsw":
            graph = begun._opened if begun else new_graph(dim, **options)
            _write_graph(_file(folder, kind), rows, graph)
        else:
            _write_matrix(_file(folder, kind), rows, **options)
        norms = (measure.shortest, measure.longest)
        facts = Facts(list(covers), measure.count, dim, measure.error, norms, sha256(_file(folder, kind)))
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
            begun.verify()  # usearch trusts what it reads
        except (OSError, ValueError):
            return None
        graph = new_graph(dim, **options)
        connectivity, expansion = graph.connectivity, graph.expansion_add
        graph.load(begun.path)
        graph.expansion_add = expansion
        begun._opened = graph
        return begun if graph.connectivity == connectivity else None

    @classmethod
    def open(cls, folder: Path, kind: str, covers: Sequence[str], dim: int) -> "Accelerator | None":
        """The accelerator of that kind, if there is one of the segments that `covers` begins with; else None."""
        try:
            facts = Facts(**json.loads(_file(folder, kind).with_suffix(".json").read_text(encoding="utf-8")))
            fits = facts.dim == dim and facts.covers and facts.covers == list(covers[: len(facts.covers)])
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
        stored = copied(unit, self.kind)
        if self.kind == "hnsw":
            graph = self._graph()
            graph.expansion_search = max(count, EXPANSION if kept is True else kept)
            return graph.search(stored[0], count).keys.astype(np.int64), None
        library = usearch()
        found = library.search(self._matrix(), stored[0], count, library.MetricKind.Cos, exact=True)
        off = float(np.linalg.norm(direction(stored) - unit))
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

    def _graph(self):
        if self._opened is None:
            self.verify()  # usearch trusts what it reads
            self._opened = usearch().Index(ndim=self.facts.dim, metric="cos", dtype="i8", path=self.path, view=True)
        return self._opened


class _Measure:
    """What is to be known of the rows that pass, after those of which `facts` are."""

    def __init__(self, facts: Facts | None = None):
        self.count, self.error = (facts.count, facts.error) if facts else (0, 0.0)
        self.shortest, self.longest = facts.norms if facts else (float("inf"), 0.0)

    def copied(self, rows: np.ndarray, kind: str) -> np.ndarray:
        lengths = np.linalg.norm(rows, axis=1)
        if not (lengths > 0).all():
            raise ValueError("a vector of length 0 has no direction; an index that holds one is searched as it is")
        unit = rows / lengths[:, None]
        stored = copied(unit, kind)
        self.count += len(rows)
        self.error = max(self.error, float(np.linalg.norm(direction(stored) - unit, axis=1).max()))
        self.shortest, self.longest = min(self.shortest, float(lengths.min())), max(self.longest, float(lengths.max()))
        return stored


def copied(unit: np.ndarray, kind: str) -> np.ndarray:
    """Unit rows float32 (n, D) as an accelerator keeps them; int8 rows fill their range, for only directions count."""
    if kind == "float16":
        return unit.astype(np.float16)
    return np.rint(unit * (INT8_MAX / np.abs(unit).max(axis=1, keepdims=True))).astype(np.int8)


def direction(stored: np.ndarray) -> np.ndarray:
    rows = stored.astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def usearch():
    """usearch's module; ImportError says how to get it."""
    try:
        import usearch.index
    except ImportError as error:
        raise ImportError('accelerators need usearch: pip install "convnext-clip-zoo[search]"') from error
    return usearch.index


def _file(folder: Path, kind: str) -> Path:
    return folder / f"accelerator-{kind}.bin"


def new_graph(dim: int, connectivity: int = CONNECTIVITY, expansion: int = EXPANSION):
    """usearch's index, empty."""
    return usearch().Index(ndim=dim, metric="cos", dtype="i8", connectivity=connectivity, expansion_add=expansion)


def portions(counts: Sequence[int], first: int) -> list[int]:
    """After which of the segments with these counts of vectors, from the first on, a graph is written."""
    ends, since = [], 0
    for end, count in enumerate(counts[first:], first + 1):
        since += count
        if since >= GRAPH_PORTION or end == len(counts):
            ends.append(end)
            since = 0
    return ends


def _write_matrix(path: Path, blocks: Iterable[np.ndarray]) -> None:
    with atomic_write(path) as file:
        for block in blocks:
            file.write(np.ascontiguousarray(block).data)


def _write_graph(path: Path, blocks: Iterable[np.ndarray], graph) -> None:
    first = len(graph)
    for block in blocks:
        graph.add(np.arange(first, first + len(block)), block)
        first += len(block)
    with atomic_write(path) as file:
        file.write(graph.save())
