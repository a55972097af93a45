"""An index of vectors on disk: exact search over memory-mapped matrices, written whole or not at all.

A folder of segments, each a matrix of raw little-endian numbers with its ids and metadata, and `manifest.json`, which
names the segments with their digests. The manifest is written last and atomically: what it does not name is not there,
so that a killed writer leaves the index as it was. Vectors are added as further segments; removed ones are listed.

Storage: float32 is searched in place; float16 halves the file and int8 (a scale a row) quarters it, and both are
widened block by block, so that memory stays near one block. `accelerate` adds files that make searches faster.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from zoo.embeddings.accelerator import EXACT, KINDS, Accelerator
from zoo.embeddings.graph import SAMPLE, portions
from zoo.embeddings.segment import DTYPES, Segment, check_entry, checked_ids, write_segment
from zoo.utils.files import atomic_write, lock, sha256

FORMAT, VERSION = "convnext-clip-zoo index", 1
ASKED_MORE, RECALL_QUERIES = 8, 64  # times as many candidates, where the first do not settle it; stored vectors

Where = Mapping | Callable[[dict], bool] | None


class Index:
    """Vectors with ids and metadata, searched by inner product; `Index.build` and `Index.open` make one.

    Args:
        path: of the folder.
        manifest: what its manifest.json says.
    """

    def __init__(self, path: Path, manifest: dict):
        self.path, self.manifest = path, manifest
        self.segments = [Segment(path, entry, manifest["dim"], manifest["dtype"]) for entry in manifest["segments"]]
        self._ids = [identity for segment in self.segments for identity in segment.ids]
        self._kept = ~np.isin(np.arange(len(self._ids)), manifest["removed"])
        self._places = None  # {id: place}, made when first asked for
        self._accelerators = {}  # {kind: Accelerator or None}, opened when first asked for

    @classmethod
    def build(
        cls,
        vectors: np.ndarray,
        path: str | Path,
        *,
        ids: Sequence[str] | None = None,
        metadata: Sequence[Mapping] | None = None,
        dtype: str = "float32",
        model: str | None = None,
        facts: Mapping | None = None,
    ) -> "Index":
        """Writes an index of N vectors.

        Args:
            vectors: float (N, D), finite; N may be 0. Scores are inner products: cosines of unit rows.
            path: of the folder, not there yet or empty.
            ids: N distinct strings; "0", "1", … unless given.
            metadata: N mappings that JSON can say.
            dtype: "float32", "float16" or "int8".
            model: fingerprint of what made the vectors; `open` can insist on it.
            facts: what else the manifest should say.

        Raises:
            ValueError: an index is there, or arguments do not fit each other.
        """
        path = Path(path)
        if (path / "manifest.json").exists():
            raise ValueError(f"{path} holds an index already; add to it, or name another folder")
        if dtype not in DTYPES:
            raise ValueError(f"dtype={dtype!r}; it must be one of {', '.join(DTYPES)}")
        vectors = np.asarray(vectors, np.float32)
        if vectors.ndim != 2 or not vectors.shape[1]:
            raise ValueError(f"vectors are {vectors.shape}; they must be (N, D)")
        ids = checked_ids(vectors, ids, metadata, vectors.shape[1])
        path.mkdir(parents=True, exist_ok=True)
        manifest = {"format": FORMAT, "version": VERSION, "dim": vectors.shape[1], "dtype": dtype, "model": model}
        manifest |= {"facts": dict(facts or {}), "segments": [], "removed": []}
        index = cls(path, manifest)
        with lock(path / ".lock"):
            index._extend(vectors, ids, metadata)
        return index

    @classmethod
    def open(cls, path: str | Path, *, model: str | None = None) -> "Index":
        """The index in a folder; the matrices are mapped, not read.

        Args:
            model: fingerprint of what will make the queries.

        Raises:
            FileNotFoundError: no index. ValueError: it is damaged, or was made with another model.
        """
        path = Path(path)
        if not (path / "manifest.json").is_file():
            raise FileNotFoundError(f"No index at {str(path)!r}.")
        index = cls(path, _read_manifest(path))
        index.require(model)
        return index

    def require(self, model: str | None) -> None:
        """ValueError when the vectors were made with another model; None for either fits."""
        made = self.manifest["model"]
        if None not in (model, made) and model != made:
            raise ValueError(
                f"{self.path} was made with another model ({made[:16]}…) than the queries' ({model[:16]}…); "
                "their vectors cannot be compared. Build it anew."
            )

    def __len__(self) -> int:
        return int(self._kept.sum())

    @property
    def dim(self) -> int:
        return self.manifest["dim"]

    @property
    def ids(self) -> list[str]:
        """Of all that is not removed, in the order they were added."""
        return [identity for identity, kept in zip(self._ids, self._kept, strict=True) if kept]

    def metadata(self, identity: str) -> dict:
        """What was said of an id; {} when nothing was."""
        segment, place = self._find(identity)
        return segment.metadata[place]

    def vector(self, identity: str) -> np.ndarray:
        """float32 (D,), as it is stored."""
        segment, place = self._find(identity)
        return segment.rows(slice(place, place + 1))[0]

    def search(self, query: np.ndarray, k: int = 10, *, where: Where = None, approximate: bool | int = False):
        """The k vectors of the highest inner product, best first; of equals the one added first.

        Args:
            query: float (D,), or (Q, D).
            k: 1 or more; all there are, where there are fewer.
            where: {key: value} that the metadata must have, or a function of the metadata.
            approximate: look through the graph of `accelerate("hnsw")`, which may miss some; as a number, that many
                vectors are kept in view (True for 128): of more it misses fewer, and takes longer.

        Returns:
            (ids, scores): a list and float32 (k,); for (Q, D) a list of lists and float32 (Q, k).

        Raises:
            ValueError: arguments that do not fit, or approximate without a graph.
        """
        query = np.asarray(query, np.float32)
        single = query.ndim == 1
        queries = query[None] if single else query
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise ValueError(f"query is {query.shape}; it must be ({self.dim},) or (Q, {self.dim})")
        if not isinstance(k, int | np.integer) or k < 1:
            raise ValueError(f"k={k!r}; it must be an integer of at least 1")
        k = int(k)
        if not np.isfinite(queries).all():
            raise ValueError("the query is not finite")
        helper = self._helper(bool(approximate))
        allowed = self._allowed(where)
        if helper is not None and (approximate or single):
            found = [self._find_with(helper, row, k, allowed, approximate) for row in queries]
        else:
            found = self._find_all(queries, k, allowed)
        ids = [[self._ids[place] for place in places] for places, _ in found]
        scores = [row for _, row in found]
        return (ids[0], scores[0]) if single else (ids, np.stack(scores))

    def _find_all(self, queries: np.ndarray, k: int, allowed: np.ndarray | None) -> list[tuple[np.ndarray, np.ndarray]]:
        """(places, scores) of each query, every vector looked at."""
        scores = self._scores(queries)
        if allowed is not None:
            scores[:, ~allowed] = -np.inf
            k = min(k, int(allowed.sum()))
        places = [best(row, k) for row in scores]
        return [(chosen, row[chosen]) for chosen, row in zip(places, scores, strict=True)]

    def _find_with(
        self, helper: Accelerator, query: np.ndarray, k: int, allowed: np.ndarray | None, kept: bool | int
    ) -> tuple[np.ndarray, np.ndarray]:
        """(places, scores) of what an accelerator proposes and of all that was added since it was made.

        It is asked for more until no vector it left out can be among the best; a graph, until there are k.
        """
        covered, asked = helper.facts.count, helper.asked_first(k)
        since = np.arange(covered, len(self._ids))
        while query.any() and asked < covered // 2:
            places, highest = helper.nearest(query, asked, kept)
            places = np.concatenate([np.sort(places), since])
            if allowed is not None:
                places = places[allowed[places]]
            scores = inner_products(self._rows(places), query)
            chosen = best(scores, k)
            if len(chosen) == k and (highest is None or highest < scores[chosen[-1]]):
                return places[chosen], scores[chosen]
            asked *= ASKED_MORE
        return self._find_all(query[None], k, allowed)[0]

    def _scores(self, queries: np.ndarray) -> np.ndarray:
        """float32 (Q, N), all inner products, a block of vectors at a time."""
        scores = np.empty((len(queries), len(self._ids)), np.float32)
        start = 0
        for segment in self.segments:
            for part, rows, scales in segment.blocks():
                products = inner_products(rows, queries[0])[None] if len(queries) == 1 else queries @ rows.T
                scores[:, start + part.start : start + part.stop] = products * scales
            start += segment.count
        return scores

    def _rows(self, places: np.ndarray) -> np.ndarray:
        """float32 (n, D), the vectors at places in rising order."""
        starts = self._starts()
        ends = np.searchsorted(places, starts)
        parts = [
            segment.rows(places[first:last] - start)
            for segment, start, first, last in zip(self.segments, starts[:-1], ends[:-1], ends[1:], strict=True)
            if last > first
        ]
        return np.concatenate([np.empty((0, self.dim), np.float32), *parts])

    def _starts(self) -> np.ndarray:
        """int (segments + 1,): where each begins among all vectors."""
        return np.cumsum([0, *(segment.count for segment in self.segments)])

    def _allowed(self, where: Where) -> np.ndarray | None:
        """bool (N,), or None when all may be found."""
        if not where:
            return self._kept if self.manifest["removed"] else None
        fits = where if callable(where) else lambda entry: all(entry.get(key) == where[key] for key in where)
        rows = (entry for segment in self.segments for entry in segment.metadata)
        return self._kept & np.array([bool(fits(entry)) for entry in rows], bool)

    # Accelerators.

    def accelerate(self, kind: str, **options) -> dict:
        """Makes an accelerator of what is in the index, in place of an older one.

        What is added later is searched as it is, until the accelerator is made anew; a graph is gone on with, also
        where making one was interrupted.

        Args:
            kind: "float16" or "int8": a narrow copy, of which usearch finds candidates; results stay exact. "hnsw": a
                graph for `search(…, approximate=True)`.
            options: of the graph: `connectivity` (32) and `expansion` (128).

        Returns:
            {"kind", "vectors", "bytes"}, and of a graph "directions", which it lies along, and "recall_at_10": the
            share of the 10 nearest of stored vectors, themselves among them, that a search through it finds.
        """
        with lock(self.path / ".lock"):
            self._reload()
            if not len(self):
                raise ValueError(f"{self.path} is empty; there is nothing to make an accelerator of")
            self._accelerators = {}  # Windows does not replace a file that is mapped
            made = self._make(kind, **options)
        facts = {"kind": kind, "vectors": made.facts.count, "bytes": made.path.stat().st_size}
        if kind == "hnsw":
            facts |= {"directions": made.facts.directions, "recall_at_10": self.recall(self._sample(RECALL_QUERIES))}
        return facts

    def _make(self, kind: str, **options) -> Accelerator:
        """An accelerator of all segments; a graph is written after each portion of them."""
        covers, ends, made = self._covers(), [len(self.segments)], None
        if kind == "hnsw":
            options["sample"] = self._sample(SAMPLE)
            made = Accelerator.unfinished(self.path, covers, self.dim, **options)
            ends = portions([segment.count for segment in self.segments], len(made.facts.covers) if made else 0)
        for end in ends:
            first = len(made.facts.covers) if made else 0
            blocks = (rows for segment in self.segments[first:end] for rows in segment.vectors())
            made = Accelerator.build(self.path, kind, blocks, covers[:end], self.dim, begun=made, **options)
        return made

    def recall(self, queries: np.ndarray, k: int = 10, *, approximate: bool | int = True) -> float:
        """Share of the k best of queries, float (Q, D), that an approximate search (see `search`) finds too."""
        exact, _ = self.search(queries, k)
        near, _ = self.search(queries, k, approximate=approximate)
        hits = sum(len(set(a) & set(b)) for a, b in zip(exact, near, strict=True))
        return hits / sum(map(len, exact))

    def accelerators(self) -> list[str]:
        """The kinds that are there and fit."""
        return [kind for kind in KINDS if self._accelerator(kind) is not None]

    def _helper(self, approximate: bool) -> Accelerator | None:
        if approximate:
            if self._accelerator("hnsw") is None:
                raise ValueError(f"{self.path} has no graph to search approximately; accelerate it with hnsw first")
            return self._accelerator("hnsw")
        return next((found for kind in EXACT if (found := self._accelerator(kind))), None)

    def _accelerator(self, kind: str) -> Accelerator | None:
        if kind not in self._accelerators:
            self._accelerators[kind] = Accelerator.open(self.path, kind, self._covers(), self.dim)
        return self._accelerators[kind]

    def _covers(self) -> list[str]:
        return [segment.entry["sha256"][segment.vector_file] for segment in self.segments]

    def _sample(self, count: int) -> np.ndarray:
        """float32 (n, D): so many of the vectors, or all, evenly spread."""
        return self._rows(np.unique(np.linspace(0, len(self._ids) - 1, count).astype(int)))

    # Changes.

    def add(
        self,
        vectors: np.ndarray,
        *,
        ids: Sequence[str] | None = None,
        metadata: Sequence[Mapping] | None = None,
        facts: Mapping | None = None,
    ) -> None:
        """Adds N vectors as a segment of their own; all of them or, when this fails, none.

        Args:
            ids, metadata: see `build`.
            facts: to change in the manifest, with the vectors or not at all.

        Raises:
            ValueError: an id that is there already, or arguments that do not fit; Locked while another process writes.
        """
        vectors = np.asarray(vectors, np.float32)
        with lock(self.path / ".lock"):
            self._reload()
            ids = checked_ids(vectors, ids, metadata, self.dim, first=len(self._ids), known=set(self.ids))
            self._extend(vectors, ids, metadata, facts)

    def _extend(self, vectors: np.ndarray, ids: list[str], metadata, facts: Mapping | None = None) -> None:
        """Writes a segment, where there are vectors, and then the manifest."""
        segments = list(self.manifest["segments"])
        if len(vectors):
            name = f"{1 + max((int(entry['name']) for entry in segments), default=0):06d}"
            segments.append(write_segment(self.path, name, vectors, ids, metadata, self.manifest["dtype"]))
        self._commit({**self.manifest, "segments": segments, "facts": {**self.manifest["facts"], **(facts or {})}})

    def remove(self, ids: Sequence[str]) -> None:
        """Takes ids out; their bytes stay in the file until it is built anew. KeyError for one that is not there."""
        with lock(self.path / ".lock"):
            self._reload()
            places = sorted({*self.manifest["removed"], *(self._place(identity) for identity in ids)})
            self._commit({**self.manifest, "removed": places})

    def verify(self) -> int:
        """How many vectors there are, once every file's digest is found to be what was written; else ValueError."""
        for segment in self.segments:
            for name, digest in segment.entry["sha256"].items():
                if sha256(self.path / name) != digest:
                    raise ValueError(f"{self.path / name} is damaged: its digest is not {digest}")
        for kind in self.accelerators():
            self._accelerator(kind).verify()
        return len(self)

    def state(self, facts: Mapping) -> None:
        """Changes what `facts` in the manifest says."""
        self.add(np.empty((0, self.dim), np.float32), facts=facts)

    def info(self) -> dict:
        """{"vectors", "dim", "dtype", "segments", "removed", "bytes", "accelerators", "model", …facts}."""
        size = sum((self.path / name).stat().st_size for s in self.segments for name in s.entry["sha256"])
        named = {"vectors": len(self), "dim": self.dim, "dtype": self.manifest["dtype"]}
        counts = {"segments": len(self.segments), "removed": len(self.manifest["removed"]), "bytes": size}
        counts["accelerators"] = self.accelerators()
        return {**named, **counts, "model": self.manifest["model"], **self.manifest["facts"]}

    def _place(self, identity: str) -> int:
        """Where an id is among all that were ever added."""
        if self._places is None:
            self._places = {self._ids[place]: int(place) for place in np.flatnonzero(self._kept)}
        if identity not in self._places:
            raise KeyError(f"{identity!r} is not in the index")
        return self._places[identity]

    def _find(self, identity: str) -> tuple["Segment", int]:
        """The segment of an id, and its place there."""
        place = self._place(identity)
        starts = self._starts()
        number = int(np.searchsorted(starts, place, side="right")) - 1
        return self.segments[number], place - int(starts[number])

    def _reload(self) -> None:
        """Another process may have written since this one looked."""
        manifest = _read_manifest(self.path)
        if manifest != self.manifest:
            self.__init__(self.path, manifest)

    def _commit(self, manifest: dict) -> None:
        _write_manifest(self.path, manifest)
        self.__init__(self.path, manifest)


def inner_products(rows: np.ndarray, query: np.ndarray) -> np.ndarray:
    """float32 (n,) of rows (n, D) and a query (D,): of a row the same whatever stands beside it.

    One thread, as memory is what is waited for: a product of a matrix and a vector gains a tenth with two, and
    OpenBLAS' second one then turns for 25 ms in the way of PyTorch's, so that the next sentence takes twice as long.
    """
    return np.vecdot(rows, query)


def best(scores: np.ndarray, k: int) -> np.ndarray:
    """The places of the k highest, best first; of equals the lower place: int (min(k, N),)."""
    if k < len(scores):
        threshold = np.partition(scores, len(scores) - k)[len(scores) - k] if k else np.inf
        above = np.flatnonzero(scores > threshold)
        level = np.flatnonzero(scores == threshold)[: k - len(above)]
        chosen = np.sort(np.concatenate([above, level]))
    else:
        chosen = np.arange(len(scores))
    return chosen[np.argsort(-scores[chosen], kind="stable")]


def _write_manifest(path: Path, manifest: dict) -> None:
    with atomic_write(path / "manifest.json", "w") as file:
        json.dump(manifest, file, indent=1, ensure_ascii=False)


def _read_manifest(path: Path) -> dict:
    file = path / "manifest.json"
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT or manifest["version"] != VERSION:
            raise ValueError(f"format {manifest['format']!r}, version {manifest['version']!r}")
        if manifest["dtype"] not in DTYPES or not isinstance(manifest["dim"], int) or manifest["dim"] < 1:
            raise ValueError(f"dim {manifest['dim']!r} of {manifest['dtype']!r}")
        for entry in manifest["segments"]:
            check_entry(entry, manifest["dtype"])
        if not isinstance(manifest["model"], str | None) or not isinstance(manifest["facts"], dict):
            raise ValueError(f"model {manifest['model']!r}, facts {manifest['facts']!r}")
        places = range(sum(entry["count"] for entry in manifest["segments"]))
        if wrong := [place for place in manifest["removed"] if type(place) is not int or place not in places]:
            raise ValueError(f"{wrong[0]!r} removed, of {len(places)} vectors")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is not the manifest of an index: {error}") from error
    return manifest
