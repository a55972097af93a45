"""An index of vectors on disk: exact search over memory-mapped matrices, with atomic writes.

An index is a folder of segments (`zoo.embeddings.segment`) and a catalogue (`zoo.embeddings.catalogue`);
`zoo.embeddings.store` reads and writes them together.

Storage: float32 is searched in place. float16 halves the size and int8, with one scale per row, quarters it; both are
converted block by block, so memory stays near one block. `accelerate` adds files that make searches faster.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from clip import Field
from zoo.embeddings.accelerator import KINDS, Accelerators
from zoo.embeddings.entries import Entries, Where, allowed_places
from zoo.embeddings.groups import near_groups
from zoo.embeddings.segment import DTYPES
from zoo.embeddings.store import Store, checked_entries
from zoo.utils.strict_json import list_of
from zoo.utils.text import quoted, shown

_RECALL_QUERIES = 64  # stored vectors that the recall of a graph is measured on
_LEAST_QUERIES = 20  # for a score limit
_SCORES = list_of(Field.number())


class Index(Entries):
    """Vectors with ids and metadata, searched by inner product. Create one with `Index.build` or `Index.open`.

    Threads may share one. It sees what other processes have added since it was opened.
    """

    def __init__(self, store: Store):
        super().__init__(store)
        self._accelerators = Accelerators(store)
        self.path, self.dim, self.dtype, self.model = store.path, store.dim, store.dtype, store.model

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
            facts: further facts, which can be written as JSON.

        Raises:
            ValueError: the folder holds an index, or the arguments do not fit each other.
        """
        path = Path(path)
        if cls.exists(path):
            raise ValueError(f"{shown(path)} already holds an index; add to it, or choose another folder")
        if dtype not in DTYPES:
            raise ValueError(f"dtype={quoted(dtype)}; allowed are {', '.join(DTYPES)}")
        vectors = np.asarray(vectors, np.float32)
        if vectors.ndim != 2 or not vectors.shape[1]:
            raise ValueError(f"vectors have shape {vectors.shape}; they must be (N, D)")
        ids, texts = checked_entries(vectors, ids, metadata, vectors.shape[1])
        store = Store.new(path, vectors.shape[1], dtype, model)
        with store.writing():
            if cls.exists(path):
                raise ValueError(f"{shown(path)} already holds an index; another process has just made it")
            store.append(vectors, ids, texts, facts or {}, {})
        return cls(store)

    @classmethod
    def exists(cls, path: str | Path) -> bool:
        """Whether a folder holds an index."""
        return Store.exists(Path(path))

    @classmethod
    def open(cls, path: str | Path, *, model: str | None = None) -> "Index":
        """Return the index in a folder. Matrices are memory-mapped, ids stay in the catalogue.

        Args:
            model: fingerprint of the model that makes the queries; None skips the check.

        Raises:
            FileNotFoundError: no index in the folder.
            ValueError: a damaged index, or one of another model.
        """
        index = cls(Store.open(Path(path)))
        index.require(model)
        return index

    def close(self) -> None:
        """Close the catalogue, after a merge that is under way. The index cannot be used afterwards."""
        self._store.close()

    def __enter__(self) -> "Index":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def require(self, model: str | None) -> None:
        """Raise ValueError if the vectors are from a model with another fingerprint, unless either is None."""
        if model is not None and self.model is not None and model != self.model:
            raise ValueError(
                f"{shown(self.path)} was made with another model ({shown(self.model[:16])}…) than the queries "
                f"({shown(model[:16])}…), so their vectors cannot be compared. Build the index again."
            )

    # Search.

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
            where: {key: value} that the metadata must have; a set of values allows any of them. Or a function from
                metadata to bool, which is slow: it is called with the metadata of every vector.
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
            raise ValueError(f"k={quoted(k)}; it must be an integer of at least 1")
        k = int(k)
        if not np.isfinite(queries).all():
            raise ValueError("query is not finite")
        vectors = self._store.current()
        helper = self._accelerators.get("hnsw" if approximate else "int8", vectors)
        if approximate and helper is None:
            raise ValueError(f"{shown(self.path)} has no graph to search approximately; accelerate it with hnsw first")
        allowed = allowed_places(self._store, vectors, where)
        if helper is not None and (approximate or single) and not vectors.few(allowed):
            found = [helper.search(vectors, row, k, allowed, approximate) for row in queries]
        else:
            found = vectors.nearest(queries, k, allowed)
        if min_score is not None:
            found = [(places[scores >= min_score], scores[scores >= min_score]) for places, scores in found]
        entries = self._store.catalogue.entries(np.concatenate([places for places, _ in found]))
        ids = [[entries[place][0] for place in places.tolist()] for places, _ in found]
        scores = [row for _, row in found]
        if single:
            return ids[0], scores[0]
        return ids, np.stack(scores) if min_score is None else scores

    def calibrate(self, queries: np.ndarray) -> None:
        """Store how well queries that match nothing in the index score, for `score_limit`.

        Args:
            queries: float (Q, D), at least 20.
        """
        if len(queries) < _LEAST_QUERIES:
            least = f"at least {_LEAST_QUERIES} that match nothing"
            raise ValueError(f"{len(queries)} queries; a calibration needs {least}")
        _, scores = self.search(queries, 1)
        self.set_facts({"unrelated": sorted(round(float(score), 6) for score in scores[:, 0])})

    def score_limit(self, false_rate: float = 0.05) -> float:
        """Return the score that this share of the queries of `calibrate` reached with their best result.

        With `min_score=index.score_limit(rate)`, other queries that match nothing find something at about that rate.

        Args:
            false_rate: the rate of false accepts, in (0, 1).

        Raises:
            ValueError: an invalid rate, or an index that was not calibrated.
        """
        if not 0 < false_rate < 1:
            raise ValueError(f"false_rate={false_rate!r}; it must be above 0 and below 1")
        unrelated = self.facts.get("unrelated")
        if not unrelated or not _SCORES.allows(unrelated):
            raise ValueError(f"{shown(self.path)} is not calibrated; zoo index calibrate does that")
        place = math.ceil((1 - false_rate) * (len(unrelated) + 1)) - 1  # of n + 1 exchangeable scores
        return math.nextafter(unrelated[min(place, len(unrelated) - 1)], math.inf)

    def duplicates(self, threshold: float = 0.95) -> list[list[tuple[str, float]]]:
        """Return groups of vectors that are near each other, the largest first.

        Two vectors are in one group if their cosine is at least the threshold, or if a chain of such pairs joins them.
        All pairs are compared, block by block: the time grows with the square of N, the memory with N.

        Args:
            threshold: above 0, at most 1.

        Returns:
            Groups of at least two (id, its highest cosine with another of the group).
        """
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold={threshold!r}; it must be above 0 and at most 1")
        vectors = self._store.current()
        kept = np.setdiff1d(np.arange(vectors.total), vectors.removed, assume_unique=True)
        groups = near_groups(lambda part: vectors.rows(kept[part]), len(kept), threshold)
        names = self._store.catalogue.entries(kept[[i for group in groups for i, _ in group]])
        return [[(names[int(kept[i])][0], score) for i, score in group] for group in groups]

    def accelerate(self, kind: str, **options) -> dict:
        """Build an accelerator of all vectors, in place of an older one.

        Vectors added later are searched without it until it is built again. A graph of the first segments is extended,
        which also resumes an interrupted build.

        Args:
            kind: "int8", a copy with exact results; or "hnsw", a graph for `search(…, approximate=True)`. "float16"
                means "int8", because a copy in float16 was never faster.
            options: options of the graph: `connectivity` (32) and `expansion` (128).

        Returns:
            {"kind", "vectors", "bytes"}; for a graph also "directions", its dimensions, and "recall_at_10", the share
            of the 10 nearest neighbours of stored vectors (themselves included) that a search finds.
        """
        kind = "int8" if kind == "float16" else kind
        with self._store.writing() as vectors:
            if not len(vectors):
                raise ValueError(f"{shown(self.path)} is empty; an accelerator needs at least one vector")
            made = self._accelerators.build(kind, **options)
        facts = {"kind": kind, "vectors": made.count, "bytes": made.path.stat().st_size}
        if kind == "hnsw":
            recall = self.recall(self._store.current().sample(_RECALL_QUERIES))
            facts |= {"directions": made.directions, "recall_at_10": recall}
        return facts

    def recall(self, queries: np.ndarray, k: int = 10, *, approximate: bool | int = True) -> float:
        """Return the share of the exact k best of queries, float (Q, D), that an approximate search finds."""
        exact, _ = self.search(queries, k)
        near, _ = self.search(queries, k, approximate=approximate)
        hits = sum(len(set(a) & set(b)) for a, b in zip(exact, near, strict=True))
        return hits / sum(map(len, exact))

    def accelerators(self) -> list[str]:
        """Return the kinds of accelerators that exist and fit the index."""
        vectors = self._store.current()
        return [kind for kind in KINDS if self._accelerators.get(kind, vectors) is not None]

    # Changes.

    def add(
        self,
        vectors: np.ndarray,
        *,
        ids: Sequence[str] | None = None,
        metadata: Sequence[Mapping] | None = None,
        facts: Mapping | None = None,
        left_out: Mapping[str, str | None] | None = None,
        remove: Sequence[str] = (),
    ) -> None:
        """Add N vectors as a new segment, atomically.

        Args:
            ids, metadata: see `build`.
            facts: facts to change, in the same write.
            left_out: {id: reason} of images left out, or None in place of a reason that no longer holds.
            remove: ids to remove, in the same write; `ids` may have them again.

        Raises:
            ValueError: an id that exists, or arguments that do not fit each other.
            KeyError: an id to remove that is not in the index.
            Locked: another process is writing.
        """
        vectors = np.asarray(vectors, np.float32)
        with self._store.writing() as before:
            ids, texts = checked_entries(vectors, ids, metadata, self.dim, before.total)
            there = self.places([*ids, *remove])
            if missing := [identity for identity in remove if identity not in there]:
                raise KeyError(f"{quoted(missing[0])} is not in the index")
            if known := there.keys() - set(remove):
                raise ValueError(f"{quoted(min(known))} is already in the index, or given twice")
            removed = sorted({there[identity] for identity in remove})
            self._store.append(vectors, ids, texts, facts or {}, left_out or {}, removed)
        self._store.merge()

    def remove(self, ids: Sequence[str]) -> None:
        """Remove ids. Their vectors and metadata stay in the files until the index is built again.

        Raises:
            KeyError: an id that is not in the index.
        """
        self.add(np.empty((0, self.dim), np.float32), remove=ids)

    def set_facts(self, facts: Mapping) -> None:
        """Change entries of `facts`."""
        self.add(np.empty((0, self.dim), np.float32), facts=facts)

    def verify(self) -> int:
        """Compare every file with its digest and return the number of vectors; ValueError for a damaged file."""
        self._store.verify()
        vectors = self._store.current()
        for kind in KINDS:
            if accelerator := self._accelerators.get(kind, vectors):
                accelerator.verify()
        return len(self)

    def info(self) -> dict:
        """Return {"vectors", "dim", "dtype", "segments", "removed", "bytes", "accelerators", "model", …facts}."""
        vectors = self._store.current()
        named: dict = {"vectors": len(vectors), "dim": self.dim, "dtype": self.dtype}
        named |= {"segments": len(vectors.segments), "removed": len(vectors.removed), "bytes": self._store.size()}
        return {**named, "accelerators": self.accelerators(), "model": self.model, **self.facts}
