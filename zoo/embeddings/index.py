"""An index of vectors on disk: exact search over memory-mapped matrices, with atomic writes.

An index is a folder of segments, each a matrix of raw little-endian numbers with its ids and metadata, and
`manifest.json`, which lists the segments with their digests. The manifest is written last and atomically, and files it
does not list are ignored, so a killed writer leaves the index unchanged. Vectors are added as new segments; removed
ones are listed in the manifest.

Storage: float32 is searched in place. float16 halves the size and int8, with one scale per row, quarters it; both are
converted block by block, so memory stays near one block. `accelerate` adds files that make searches faster.
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
MORE_CANDIDATES = 8  # factor, where the first request was not enough
RECALL_QUERIES = 64  # stored vectors that the recall of a graph is measured on

Where = Mapping | Callable[[dict], bool] | None


class Index:
    """Vectors with ids and metadata, searched by inner product. Create one with `Index.build` or `Index.open`.

    Args:
        path: folder of the index.
        manifest: content of its manifest.json.
    """

    def __init__(self, path: Path, manifest: dict):
        self.path = path
        self._use(manifest)

    def _use(self, manifest: dict) -> None:
        path, self.manifest = self.path, manifest
        self.segments = [Segment(path, entry, manifest["dim"], manifest["dtype"]) for entry in manifest["segments"]]
        self._ids = [identity for segment in self.segments for identity in segment.ids]
        self._kept = ~np.isin(np.arange(len(self._ids)), manifest["removed"])
        self._places: dict[str, int] | None = None  # {id: place}, made at first use
        self._accelerators: dict[str, Accelerator | None] = {}  # opened at first use

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
        """Write an index of N vectors and return it.

        Args:
            vectors: float (N, D), finite; N may be 0. Scores are inner products: cosines for unit rows.
            path: a folder that does not exist yet or holds no index.
            ids: N distinct strings; by default "0", "1", …
            metadata: N mappings that can be written as JSON.
            dtype: "float32", "float16" or "int8".
            model: fingerprint of the model that made the vectors, for `open` to check.
            facts: further entries of the manifest.

        Raises:
            ValueError: the folder holds an index, or the arguments do not fit each other.
        """
        path = Path(path)
        if (path / "manifest.json").exists():
            raise ValueError(f"{path} already holds an index; add to it, or choose another folder")
        if dtype not in DTYPES:
            raise ValueError(f"dtype={dtype!r}; allowed are {', '.join(DTYPES)}")
        vectors = np.asarray(vectors, np.float32)
        if vectors.ndim != 2 or not vectors.shape[1]:
            raise ValueError(f"vectors have shape {vectors.shape}; they must be (N, D)")
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
        """Return the index in a folder. Matrices are memory-mapped.

        Args:
            model: fingerprint of the model that makes the queries; None skips the check.

        Raises:
            FileNotFoundError: no index in the folder.
            ValueError: a damaged index, or one of another model.
        """
        path = Path(path)
        if not (path / "manifest.json").is_file():
            raise FileNotFoundError(f"No index at {str(path)!r}.")
        index = cls(path, _read_manifest(path))
        index.require(model)
        return index

    def require(self, model: str | None) -> None:
        """Raise ValueError if the vectors are from a model with another fingerprint, unless either is None."""
        made_with = self.manifest["model"]
        if model is not None and made_with is not None and model != made_with:
            raise ValueError(
                f"{self.path} was made with another model ({made_with[:16]}…) than the queries ({model[:16]}…), so "
                "their vectors cannot be compared. Build the index again."
            )

    def __len__(self) -> int:
        return int(self._kept.sum())

    @property
    def dim(self) -> int:
        """D, the length of a vector."""
        return self.manifest["dim"]

    @property
    def facts(self) -> dict:
        """The further entries of the manifest."""
        return self.manifest["facts"]

    @property
    def ids(self) -> list[str]:
        """The ids of all vectors that are not removed, in the order they were added."""
        return [identity for identity, kept in zip(self._ids, self._kept, strict=True) if kept]

    def metadata(self, identity: str) -> dict:
        """Return the metadata of an id, {} if it has none."""
        segment, place = self._find(identity)
        return segment.metadata[place]

    def vector(self, identity: str) -> np.ndarray:
        """Return the stored vector of an id, float32 (D,)."""
        segment, place = self._find(identity)
        return segment.rows(slice(place, place + 1))[0]

    def search(
        self,
        query: np.ndarray,
        k: int = 10,
        *,
        where: Where = None,
        approximate: bool | int = False,
        min_score: float | None = None,
    ):
        """Return the k vectors with the highest inner product, best first; ties in the order they were added.

        Args:
            query: float (D,), or (Q, D).
            k: at least 1. Fewer results where the index has fewer vectors.
            where: {key: value} that the metadata must have, or a function from metadata to bool.
            approximate: search the graph of `accelerate("hnsw")`, which may miss results. A number is the expansion
                of that search (True: 128); a larger one misses fewer and takes longer.
            min_score: leave out results with a lower score, possibly all of them.

        Returns:
            (ids, scores): a list and float32 (k,); for (Q, D) a list of lists and float32 (Q, k), or with `min_score`
            a list of Q arrays.

        Raises:
            ValueError: invalid arguments, or approximate without a graph.
        """
        query = np.asarray(query, np.float32)
        single = query.ndim == 1
        queries = query[None] if single else query
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise ValueError(f"query has shape {query.shape}; it must be ({self.dim},) or (Q, {self.dim})")
        if not isinstance(k, int | np.integer) or k < 1:
            raise ValueError(f"k={k!r}; it must be an integer of at least 1")
        k = int(k)
        if not np.isfinite(queries).all():
            raise ValueError("query is not finite")
        helper = self._helper(bool(approximate))
        allowed = self._allowed(where)
        if helper is not None and (approximate or single):
            found = [self._find_with(helper, row, k, allowed, approximate) for row in queries]
        else:
            found = self._find_all(queries, k, allowed)
        if min_score is not None:
            found = [(places[scores >= min_score], scores[scores >= min_score]) for places, scores in found]
        ids = [[self._ids[place] for place in places] for places, _ in found]
        scores = [row for _, row in found]
        if single:
            return ids[0], scores[0]
        return ids, np.stack(scores) if min_score is None else scores

    def _find_all(self, queries: np.ndarray, k: int, allowed: np.ndarray | None) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return (places, scores) of each query by a scan of all vectors."""
        scores = self._scores(queries)
        if allowed is not None:
            scores[:, ~allowed] = -np.inf
            k = min(k, int(allowed.sum()))
        places = [best(row, k) for row in scores]
        return [(chosen, row[chosen]) for chosen, row in zip(places, scores, strict=True)]

    def _find_with(
        self, helper: Accelerator, query: np.ndarray, k: int, allowed: np.ndarray | None, expansion: bool | int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return (places, scores) of the best among an accelerator's candidates and the vectors added since.

        More candidates are requested until no other vector can be among the best; from a graph, until there are k.
        """
        covered, count = helper.facts.count, helper.first_request(k)
        added_since = np.arange(covered, len(self._ids))
        while query.any() and count < covered // 2:
            places, bound = helper.nearest(query, count, expansion)
            places = np.concatenate([np.sort(places), added_since])
            if allowed is not None:
                places = places[allowed[places]]
            scores = inner_products(self._rows(places), query)
            chosen = best(scores, k)
            if len(chosen) == k and (bound is None or bound < scores[chosen[-1]]):
                return places[chosen], scores[chosen]
            count *= MORE_CANDIDATES
        return self._find_all(query[None], k, allowed)[0]

    def _scores(self, queries: np.ndarray) -> np.ndarray:
        """Return all inner products, float32 (Q, N), computed block by block."""
        scores = np.empty((len(queries), len(self._ids)), np.float32)
        start = 0
        for segment in self.segments:
            for part, rows, scales in segment.blocks():
                products = inner_products(rows, queries[0])[None] if len(queries) == 1 else queries @ rows.T
                scores[:, start + part.start : start + part.stop] = products * scales
            start += segment.count
        return scores

    def _rows(self, places: np.ndarray) -> np.ndarray:
        """Return the vectors at places in ascending order, float32 (n, D)."""
        starts = self._starts()
        ends = np.searchsorted(places, starts)
        parts = [
            segment.rows(places[first:last] - start)
            for segment, start, first, last in zip(self.segments, starts[:-1], ends[:-1], ends[1:], strict=True)
            if last > first
        ]
        return np.concatenate([np.empty((0, self.dim), np.float32), *parts])

    def _starts(self) -> np.ndarray:
        """Return the place of each segment's first vector, int (segments + 1,)."""
        return np.cumsum([0, *(segment.count for segment in self.segments)])

    def _allowed(self, where: Where) -> np.ndarray | None:
        """Return which vectors may be found, bool (N,), or None for all."""
        if not where:
            return self._kept if self.manifest["removed"] else None
        fits = where if callable(where) else lambda entry: all(entry.get(key) == where[key] for key in where)
        rows = (entry for segment in self.segments for entry in segment.metadata)
        return self._kept & np.array([bool(fits(entry)) for entry in rows], bool)

    # Accelerators.

    def accelerate(self, kind: str, **options) -> dict:
        """Build an accelerator of all vectors, in place of an older one.

        Vectors added later are searched without it until it is built again. A graph of the first segments is extended,
        which also resumes an interrupted build.

        Args:
            kind: "float16" or "int8", a reduced-precision copy with exact results; or "hnsw", a graph for
                `search(…, approximate=True)`.
            options: options of the graph: `connectivity` (32) and `expansion` (128).

        Returns:
            {"kind", "vectors", "bytes"}; for a graph also "directions", its dimensions, and "recall_at_10", the share
            of the 10 nearest neighbours of stored vectors (themselves included) that a search finds.
        """
        with lock(self.path / ".lock"):
            self._reload()
            if not len(self):
                raise ValueError(f"{self.path} is empty; an accelerator needs at least one vector")
            self._accelerators = {}  # Windows does not replace a file that is mapped
            made = self._make(kind, **options)
        facts = {"kind": kind, "vectors": made.facts.count, "bytes": made.path.stat().st_size}
        if kind == "hnsw":
            facts |= {"directions": made.facts.directions, "recall_at_10": self.recall(self._sample(RECALL_QUERIES))}
        return facts

    def _make(self, kind: str, **options) -> Accelerator:
        """Return an accelerator of all segments; a graph is written after each portion of them."""
        covers, begun = self._covers(), None
        *ends, last = [len(self.segments)]
        if kind == "hnsw":
            options["sample"] = self._sample(SAMPLE)
            begun = Accelerator.unfinished(self.path, covers, self.dim, **options)
            *ends, last = portions(
                [segment.count for segment in self.segments], len(begun.facts.covers) if begun else 0
            )

        def extend(end: int) -> Accelerator:
            first = len(begun.facts.covers) if begun else 0
            blocks = (rows for segment in self.segments[first:end] for rows in segment.vectors())
            return Accelerator.build(self.path, kind, blocks, covers[:end], self.dim, begun=begun, **options)

        for end in ends:
            begun = extend(end)
        return extend(last)

    def recall(self, queries: np.ndarray, k: int = 10, *, approximate: bool | int = True) -> float:
        """Return the share of the exact k best of queries, float (Q, D), that an approximate search finds."""
        exact, _ = self.search(queries, k)
        near, _ = self.search(queries, k, approximate=approximate)
        hits = sum(len(set(a) & set(b)) for a, b in zip(exact, near, strict=True))
        return hits / sum(map(len, exact))

    def accelerators(self) -> list[str]:
        """Return the kinds of accelerators that exist and fit the index."""
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
        """Return up to `count` vectors at even distances, float32 (n, D)."""
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
        """Add N vectors as a new segment, atomically.

        Args:
            ids, metadata: see `build`.
            facts: entries to change in the manifest, in the same write.

        Raises:
            ValueError: an id that exists, or arguments that do not fit each other.
            Locked: another process is writing.
        """
        vectors = np.asarray(vectors, np.float32)
        with lock(self.path / ".lock"):
            self._reload()
            ids = checked_ids(vectors, ids, metadata, self.dim, first=len(self._ids), known=set(self.ids))
            self._extend(vectors, ids, metadata, facts)

    def _extend(self, vectors: np.ndarray, ids: list[str], metadata, facts: Mapping | None = None) -> None:
        """Write a segment, if there are vectors, and then the manifest."""
        segments = list(self.manifest["segments"])
        if len(vectors):
            name = f"{1 + max((int(entry['name']) for entry in segments), default=0):06d}"
            segments.append(write_segment(self.path, name, vectors, ids, metadata, self.manifest["dtype"]))
        self._commit({**self.manifest, "segments": segments, "facts": {**self.manifest["facts"], **(facts or {})}})

    def remove(self, ids: Sequence[str]) -> None:
        """Remove ids. Their vectors stay in the files until the index is built again.

        Raises:
            KeyError: an id that is not in the index.
        """
        with lock(self.path / ".lock"):
            self._reload()
            places = sorted({*self.manifest["removed"], *(self._place(identity) for identity in ids)})
            self._commit({**self.manifest, "removed": places})

    def verify(self) -> int:
        """Compare every file with its digest and return the number of vectors; ValueError for a damaged file."""
        for segment in self.segments:
            for name, digest in segment.entry["sha256"].items():
                if sha256(self.path / name) != digest:
                    raise ValueError(f"{self.path / name} is damaged: its digest is not {digest}")
        for accelerator in map(self._accelerator, KINDS):
            if accelerator is not None:
                accelerator.verify()
        return len(self)

    def set_facts(self, facts: Mapping) -> None:
        """Change entries of `facts`."""
        self.add(np.empty((0, self.dim), np.float32), facts=facts)

    def info(self) -> dict:
        """Return {"vectors", "dim", "dtype", "segments", "removed", "bytes", "accelerators", "model", …facts}."""
        size = sum((self.path / name).stat().st_size for s in self.segments for name in s.entry["sha256"])
        named = {"vectors": len(self), "dim": self.dim, "dtype": self.manifest["dtype"]}
        counts = {"segments": len(self.segments), "removed": len(self.manifest["removed"]), "bytes": size}
        counts["accelerators"] = self.accelerators()
        return {**named, **counts, "model": self.manifest["model"], **self.manifest["facts"]}

    def _place(self, identity: str) -> int:
        """Return the place of an id among all vectors ever added."""
        if self._places is None:
            self._places = {self._ids[place]: int(place) for place in np.flatnonzero(self._kept)}
        if identity not in self._places:
            raise KeyError(f"{identity!r} is not in the index")
        return self._places[identity]

    def _find(self, identity: str) -> tuple["Segment", int]:
        """Return the segment of an id, and its place in it."""
        place = self._place(identity)
        starts = self._starts()
        number = int(np.searchsorted(starts, place, side="right")) - 1
        return self.segments[number], place - int(starts[number])

    def _reload(self) -> None:
        """Read the manifest again, which another process may have changed."""
        manifest = _read_manifest(self.path)
        if manifest != self.manifest:
            self._use(manifest)

    def _commit(self, manifest: dict) -> None:
        _write_manifest(self.path, manifest)
        self._use(manifest)


def inner_products(rows: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Return rows (n, D) · query (D,), float32 (n,). A row's product does not depend on the other rows.

    It runs on one thread. Memory is the limit: a matrix-vector product is 10 % faster with two, and OpenBLAS's second
    thread then spins for 25 ms beside PyTorch's, which doubles the time of the next sentence.
    """
    return np.vecdot(rows, query)


def best(scores: np.ndarray, k: int) -> np.ndarray:
    """Return the places of the k highest scores, best first, ties by place: int (min(k, N),)."""
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
            raise ValueError(f"{wrong[0]!r} in removed, with {len(places)} vectors")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is not the manifest of an index: {error}") from error
    return manifest
