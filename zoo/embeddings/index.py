"""An index of vectors on disk: exact search over memory-mapped matrices, with atomic writes.

An index is a folder of segments (`zoo.embeddings.segment`) and a catalogue (`zoo.embeddings.catalogue`), which is
written last, in one transaction; files that it does not list are ignored. So a killed writer leaves the index
unchanged. An add writes a new segment, whatever the size of the index; a thread then merges small segments, whose
places stay the same. Removed vectors are listed in the catalogue.

Storage: float32 is searched in place. float16 halves the size and int8, with one scale per row, quarters it; both are
converted block by block, so memory stays near one block. `accelerate` adds files that make searches faster.
"""

import contextlib
import itertools
import json
import math
import os
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from clip import Field
from zoo.embeddings import manifest
from zoo.embeddings.accelerator import EXACT, KINDS, Accelerator
from zoo.embeddings.catalogue import FORMAT, NAME, VERSION, Catalogue
from zoo.embeddings.graph import SAMPLE, portions
from zoo.embeddings.groups import near_groups
from zoo.embeddings.segment import (
    BLOCK_BYTES,
    DTYPES,
    Row,
    Segment,
    checked_ids,
    digest,
    file_name,
    files_of,
    inner_products,
    merge_segments,
    write_segment,
    write_terms,
)
from zoo.embeddings.terms import collect_terms, contains, id_term, value_terms
from zoo.utils.files import Locked, lock
from zoo.utils.strict_json import list_of
from zoo.utils.text import quoted, shown

MORE_CANDIDATES = 8  # factor, where the first request was not enough
RECALL_QUERIES = 64  # stored vectors that the recall of a graph is measured on
MOST_SMALL = 32  # segments; with more, MERGED neighbours become one
MERGED = 8
LARGE_BYTES = 64 << 20  # of vectors; a larger segment is not merged
LOCK_SECONDS = 2.0  # to wait for another writer, who may only be recording a merge
DIRECT = 8  # a filter that leaves less than one in so many vectors is answered from those alone
SLOW_ENTRIES = 100_000  # metadata entries that a function is called with before a warning

LEAST_QUERIES = 20  # for a score limit
SCORES = list_of(Field.number())

Where = Mapping | Callable[[dict], bool] | None


class State(NamedTuple):
    """What a search needs: the segments, and the places that are removed, int64, ascending."""

    segments: tuple[Segment, ...]
    removed: np.ndarray

    @property
    def total(self) -> int:
        """Vectors ever added."""
        return self.segments[-1].first + self.segments[-1].count if self.segments else 0


class Index:
    """Vectors with ids and metadata, searched by inner product. Create one with `Index.build` or `Index.open`.

    Threads may share one. It sees what other processes have added since it was opened.
    """

    def __init__(self, path: Path, catalogue: Catalogue, old: dict | None = None):
        self.path, self._old = path, old  # the manifest, for an index of the earlier layout
        self._lock = threading.RLock()  # held by the writing thread
        self._merger: threading.Thread | None = None
        self._state = State((), np.empty(0, np.int64))
        self._use(catalogue)
        self._load()

    def _use(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._finalizer = weakref.finalize(self, catalogue.close)

    def _load(self) -> None:
        """Read what the catalogue says now."""
        self._version = self._catalogue.version()
        info = self._catalogue.info()
        self.dim, self.dtype, self.model, self._facts = (info[key] for key in ("dim", "dtype", "model", "facts"))
        self._accelerators: dict[str, Accelerator | None] = {}  # opened at first use
        known = {segment.row: segment for segment in self._state.segments}
        rows = self._catalogue.segments()
        segments = tuple(known.get(row) or self._open_segment(row) for row in rows)
        self._state = State(segments, self._catalogue.removed())
        if len(self._state.removed) and not 0 <= self._state.removed[0] <= self._state.removed[-1] < self._state.total:
            raise ValueError(f"{self._catalogue.path} is damaged: it removes vectors that it does not have")

    def _open_segment(self, row: Row) -> Segment:
        terms = None
        if row.digest is None:  # the earlier layout has no terms; they are made when they are needed
            terms = np.empty(0, "<u8"), np.empty(0, "<u4")
        return Segment(self.path, row, self.dim, self.dtype, terms)

    def _current(self) -> State:
        """Return the state, after another process' writes."""
        if self._catalogue.version() != self._version:
            with self._lock:
                self._reload()
        return self._state

    def _reload(self, attempts: int = 5) -> None:
        for attempt in range(attempts):
            try:
                return self._load()
            except ValueError:  # a merge may have replaced the segments that were just read
                if attempt == attempts - 1:
                    raise
                time.sleep(0.01)

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
        ids, texts = checked_ids(vectors, ids, metadata, vectors.shape[1]), _texts(metadata, len(vectors))
        path.mkdir(parents=True, exist_ok=True)
        catalogue = Catalogue(None)
        info = {"format": FORMAT, "version": VERSION, "dim": vectors.shape[1], "dtype": dtype, "model": model}
        with catalogue.transaction():
            catalogue.set_info(info | {"facts": {}, "next": 1})
        index = cls(path, catalogue, {"segments": []})
        with index._writing():
            if cls.exists(path):
                raise ValueError(f"{shown(path)} already holds an index; another process has just made it")
            index._extend(vectors, ids, metadata, texts, facts or {}, {})
        return index

    @classmethod
    def exists(cls, path: str | Path) -> bool:
        """Whether a folder holds an index."""
        return any(os.path.isfile(Path(path) / name) for name in (NAME, manifest.NAME))

    @classmethod
    def open(cls, path: str | Path, *, model: str | None = None) -> "Index":
        """Return the index in a folder. Matrices are memory-mapped, ids stay in the catalogue.

        Args:
            model: fingerprint of the model that makes the queries; None skips the check.

        Raises:
            FileNotFoundError: no index in the folder.
            ValueError: a damaged index, or one of another model.
        """
        path = Path(path)
        if not cls.exists(path):
            raise FileNotFoundError(f"No index at {quoted(str(path))}.")
        if os.path.isfile(path / NAME):
            index = cls(path, Catalogue(path / NAME))
        else:
            index = cls(path, *manifest.read_manifest(path))
        index.require(model)
        return index

    def close(self) -> None:
        """Close the catalogue, after a merge that is under way. The index cannot be used afterwards."""
        if self._merger is not None:
            self._merger.join()
        self._finalizer()

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

    def __len__(self) -> int:
        state = self._current()
        return state.total - len(state.removed)

    @property
    def facts(self) -> dict:
        """The further facts."""
        self._current()
        left_out = self._catalogue.left_out()
        return self._facts | ({"left_out": left_out} if left_out or "left_out" in self._facts else {})

    @property
    def ids(self) -> list[str]:
        """The ids of all vectors that are not removed, in the order they were added: a list as long as the index."""
        return list(self.iterate_ids())

    def iterate_ids(self) -> Iterator[str]:
        """Yield `ids` one by one."""
        for _, identity, _ in self._entries(self._current()):
            yield identity

    def _entries(self, state: State, first: int = 0) -> Iterator[tuple[int, str, str | None]]:
        removed = set(state.removed.tolist())
        for row in self._catalogue.stream_entries(first):
            if row[0] >= state.total:
                return
            if row[0] not in removed:
                yield row

    def __contains__(self, identity: object) -> bool:
        return isinstance(identity, str) and bool(self.places([identity]))

    def places(self, ids: Iterable[str]) -> dict[str, int]:
        """Return {id: place} of those ids that the index has."""
        state, ids = self._current(), list(ids)
        places = self._find(state, [id_term(identity) for identity in ids])[1]
        wanted = set(ids)
        return {name: place for place, (name, _) in self._catalogue.entries(places).items() if name in wanted}

    def ids_by(self, key: str, values: Iterable) -> dict:
        """Return {value: the first id whose metadata has it under a key} of those texts or numbers that exist."""
        state, values = self._current(), list(values)
        terms = [term for value in values for term in value_terms(key, value) or ()]
        found: dict = {}
        entries = self._catalogue.entries(self._find(state, terms)[1])
        for _, (identity, text) in sorted(entries.items()):
            found.setdefault(_parse(text).get(key), identity)
        return {value: found[value] for value in values if value in found}

    def _find(self, state: State, terms: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return (which, places) of terms among the vectors that are not removed, int64 (n,)."""
        self._make_terms()
        wanted = np.array(terms, "<u8")
        order = np.argsort(wanted)  # which makes the binary searches faster
        found = [(np.empty(0, np.int64),) * 2, *(segment.find(wanted[order]) for segment in state.segments)]
        which, places = (np.concatenate(parts) for parts in zip(*found, strict=True))
        kept = ~contains(state.removed, places)
        return order[which[kept]], places[kept]

    def _make_terms(self) -> None:
        """Make the terms of an index of the earlier layout."""
        if self._old is None:
            return
        for segment in self._state.segments:
            if not len(segment.terms):
                rows = list(itertools.islice(self._catalogue.stream_entries(segment.first), segment.count))
                terms = collect_terms([row[1] for row in rows], (_parse(row[2]) for row in rows))
                segment.terms, segment.offsets = terms

    def metadata(self, identity: str) -> dict:
        """Return the metadata of an id, {} if it has none."""
        return _parse(self._catalogue.entries(np.array([self._place(identity)]))[self._place(identity)][1])

    def entries(self, ids: Iterable[str]) -> dict[str, tuple[int, dict]]:
        """Return {id: (place, metadata)} of those ids that the index has. A place never changes."""
        state, ids = self._current(), list(ids)
        places = self._find(state, [id_term(identity) for identity in ids])[1]
        wanted = set(ids)
        found = self._catalogue.entries(places).items()
        return {name: (place, _parse(text)) for place, (name, text) in found if name in wanted}

    def id_of(self, place: int) -> str:
        """Return the id at a place; KeyError for one that was never given, or whose vector was removed."""
        state = self._current()
        if not 0 <= place < state.total or contains(state.removed, np.array([place]))[0]:
            raise KeyError(f"the index has no vector at place {place}")
        return self._catalogue.entries(np.array([place]))[place][0]

    @property
    def version(self) -> int:
        """A number that changes when another process has changed the index."""
        self._current()
        return self._version

    def vector(self, identity: str) -> np.ndarray:
        """Return the stored vector of an id, float32 (D,)."""
        return self._rows(np.array([self._place(identity)]))[0]

    def _place(self, identity: str) -> int:
        return self._places([identity])[0]

    def _places(self, ids: Sequence[str]) -> list[int]:
        """Return the places of distinct ids, ascending; KeyError for one that the index does not have."""
        places = self.places(ids)
        if missing := [identity for identity in ids if identity not in places]:
            raise KeyError(f"{quoted(missing[0])} is not in the index")
        return sorted(places.values())

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
        state, helper = self._current(), self._helper(bool(approximate))
        allowed = self._allowed(state, where)
        few = allowed is not None and len(allowed) * DIRECT <= state.total
        if helper is not None and (approximate or single) and not few:
            found = [self._find_with(state, helper, row, k, allowed, approximate) for row in queries]
        else:
            found = self._find_all(state, queries, k, allowed)
        if min_score is not None:
            found = [(places[scores >= min_score], scores[scores >= min_score]) for places, scores in found]
        entries = self._catalogue.entries(np.concatenate([places for places, _ in found]))
        ids = [[entries[place][0] for place in places.tolist()] for places, _ in found]
        scores = [row for _, row in found]
        if single:
            return ids[0], scores[0]
        return ids, np.stack(scores) if min_score is None else scores

    def calibrate(self, queries: np.ndarray) -> None:
        """Store how well queries that match nothing in the index score, for `score_limit`.

        Args:
            queries: float (Q, D), at least LEAST_QUERIES.
        """
        if len(queries) < LEAST_QUERIES:
            raise ValueError(f"{len(queries)} queries; a calibration needs at least {LEAST_QUERIES} that match nothing")
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
        if not unrelated or not SCORES.allows(unrelated):
            raise ValueError(f"{shown(self.path)} is not calibrated; zoo index calibrate does that")
        place = math.ceil((1 - false_rate) * (len(unrelated) + 1)) - 1  # of n + 1 exchangeable scores
        return math.nextafter(unrelated[min(place, len(unrelated) - 1)], math.inf)

    def _find_all(
        self, state: State, queries: np.ndarray, k: int, allowed: np.ndarray | None
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return (places, scores) of each query by a scan of all vectors, or of the few that are allowed."""
        if allowed is not None and len(allowed) * DIRECT <= state.total:
            scores = self._scores(state, queries, allowed)
            chosen = [best(row, k) for row in scores]
            return [(allowed[part], row[part]) for part, row in zip(chosen, scores, strict=True)]
        scores = self._scores(state, queries)
        if allowed is not None:
            others = np.ones(state.total, bool)
            others[allowed] = False
            scores[:, others] = -np.inf
        elif len(state.removed):
            scores[:, state.removed] = -np.inf
        k = min(k, state.total - len(state.removed) if allowed is None else len(allowed))
        places = [best(row, k) for row in scores]
        return [(chosen, row[chosen]) for chosen, row in zip(places, scores, strict=True)]

    def _find_with(
        self,
        state: State,
        helper: Accelerator,
        query: np.ndarray,
        k: int,
        allowed: np.ndarray | None,
        expansion: bool | int,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return (places, scores) of the best among an accelerator's candidates and the vectors added since.

        More candidates are requested until no other vector can be among the best; from a graph, until there are k.
        """
        covered, count = helper.facts.count, helper.first_request(k)
        added_since = np.arange(covered, state.total)
        while query.any() and count < covered // 2:
            places, bound = helper.nearest(query, count, expansion)
            places = np.concatenate([np.sort(places), added_since])
            keep = contains(allowed, places) if allowed is not None else ~contains(state.removed, places)
            places = places[keep]
            scores = self._finite(inner_products(self._rows(places, state), query))
            chosen = best(scores, k)
            if len(chosen) == k and (bound is None or bound < scores[chosen[-1]]):
                return places[chosen], scores[chosen]
            count *= MORE_CANDIDATES
        return self._find_all(state, query[None], k, allowed)[0]

    def _scores(self, state: State, queries: np.ndarray, places: np.ndarray | None = None) -> np.ndarray:
        """Return the inner products with all vectors, or those at ascending places, float32 (Q, N), block by block."""
        scores = np.empty((len(queries), state.total if places is None else len(places)), np.float32)
        for segment in state.segments:
            for part, positions in segment.parts(places):
                scores[:, positions] = segment.products(queries, part)
        return self._finite(scores)

    def _finite(self, scores: np.ndarray) -> np.ndarray:
        """Return scores; ValueError for NaN, which compares with nothing and would hide what a search should find."""
        if not np.isfinite(scores).all():
            count = int((~np.isfinite(scores)).any(axis=tuple(range(scores.ndim - 1))).sum())
            raise ValueError(
                f"{shown(self.path)} is damaged: {count} of its vectors are NaN or infinite; build it again"
            )
        return scores

    def _rows(self, places: np.ndarray, state: State | None = None) -> np.ndarray:
        """Return the vectors at places in ascending order, float32 (n, D)."""
        rows = np.empty((len(places), self.dim), np.float32)
        for segment in (state or self._state).segments:
            for part, positions in segment.parts(places):
                rows[positions] = segment.rows(part)
        return rows

    def _allowed(self, state: State, where: Where) -> np.ndarray | None:
        """Return the places that may be found, int64, ascending, or None for all that are not removed."""
        if not where:
            return None
        if callable(where):
            return self._test(state, where)
        places: np.ndarray | None = None
        rest: dict = {}
        for key, value in where.items():
            any_of = value if isinstance(value, set | frozenset) else (value,)
            terms = [value_terms(key, one) for one in any_of]
            if any(found is None for found in terms):
                rest[key] = any_of
                continue
            found = np.unique(self._find(state, [term for found in terms for term in found or ()])[1])
            places = found if places is None else np.intersect1d(places, found, assume_unique=True)
        if not rest:
            return places
        return self._test(state, lambda entry: all(entry.get(key) in any_of for key, any_of in rest.items()), places)

    def _test(self, state: State, fits: Callable[[dict], bool], places: np.ndarray | None = None) -> np.ndarray:
        """Return the places, among these or all, whose metadata fit."""
        rows: Iterable[tuple[int, str | None]]
        if places is not None:
            rows = [(place, text) for place, (_, text) in sorted(self._catalogue.entries(places).items())]
        else:
            if state.total > SLOW_ENTRIES:
                warnings.warn(
                    f"where is a function, or asks for null: it is tested on the metadata of all {state.total:,} "
                    "vectors, which is slow; {key: value} with texts, numbers and booleans is fast",
                    stacklevel=4,
                )
            rows = ((place, text) for place, _, text in self._entries(state))
        return np.array([place for place, text in rows if fits(_parse(text))], np.int64)

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
        state = self._current()
        kept = np.setdiff1d(np.arange(state.total), state.removed, assume_unique=True)
        groups = near_groups(lambda part: self._rows(kept[part], state), len(kept), threshold)
        names = self._catalogue.entries(kept[[i for group in groups for i, _ in group]])
        return [[(names[int(kept[i])][0], score) for i, score in group] for group in groups]

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
        with self._writing():
            if not len(self):
                raise ValueError(f"{shown(self.path)} is empty; an accelerator needs at least one vector")
            self._accelerators = {}  # Windows does not replace a file that is mapped
            made = self._make(kind, **options)
        facts = {"kind": kind, "vectors": made.facts.count, "bytes": made.path.stat().st_size}
        if kind == "hnsw":
            facts |= {"directions": made.facts.directions, "recall_at_10": self.recall(self._sample(RECALL_QUERIES))}
        return facts

    def _make(self, kind: str, **options) -> Accelerator:
        """Return an accelerator of all vectors; a graph is written after each portion of them."""
        history, begun = self._catalogue.history(), None
        covers, lasts = [added.vectors for added in history], [0, *(added.last for added in history)]
        *ends, last = [len(history)]
        if kind == "hnsw":
            options["sample"] = self._sample(SAMPLE)
            begun = Accelerator.unfinished(self.path, covers, self.dim, **options)
            *ends, last = portions(np.diff(lasts).tolist(), len(begun.facts.covers) if begun else 0)

        def extend(end: int) -> Accelerator:
            first = lasts[len(begun.facts.covers) if begun else 0]
            return Accelerator.build(
                self.path, kind, self._blocks(first, lasts[end]), covers[:end], self.dim, begun=begun, **options
            )

        for end in ends:
            begun = extend(end)
        return extend(last)

    def blocks(self, size: int) -> Iterator[tuple[list[str], list[dict], np.ndarray]]:
        """Yield (ids, metadata, vectors float32 (n, D)) of at most `size` images at a time, in order."""
        state = self._current()
        rows = self._entries(state)
        while block := list(itertools.islice(rows, size)):
            places = np.array([place for place, _, _ in block])
            yield [name for _, name, _ in block], [_parse(text) for _, _, text in block], self._rows(places, state)

    def _blocks(self, first: int = 0, end: int | None = None) -> Iterator[np.ndarray]:
        """Yield the vectors from place `first` to `end`, removed ones too, in blocks, float32 (n, D)."""
        end = self._state.total if end is None else end
        size = max(1, BLOCK_BYTES // (4 * self.dim))
        for start in range(first, end, size):
            yield self._rows(np.arange(start, min(start + size, end)))

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
                name = shown(self.path)
                raise ValueError(f"{name} has no graph to search approximately; accelerate it with hnsw first")
            return self._accelerator("hnsw")
        return next((found for kind in EXACT if (found := self._accelerator(kind))), None)

    def _accelerator(self, kind: str) -> Accelerator | None:
        if kind not in self._accelerators:
            self._accelerators[kind] = Accelerator.open(self.path, kind, self._covers(), self.dim)
        return self._accelerators[kind]

    def _covers(self) -> list[str]:
        return [added.vectors for added in self._catalogue.history()]

    def _sample(self, count: int) -> np.ndarray:
        """Return up to `count` vectors at even distances, float32 (n, D)."""
        return self._rows(np.unique(np.linspace(0, self._state.total - 1, count).astype(int)))

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
        with self._writing():
            ids = checked_ids(vectors, ids, metadata, self.dim, first=self._state.total)
            texts = _texts(metadata, len(vectors))
            dropped = self._places(remove)
            if known := set(self.places(ids)).difference(remove):
                raise ValueError(f"{quoted(min(known))} is already in the index, or given twice")
            self._extend(vectors, ids, metadata, texts, facts or {}, left_out or {}, dropped)
        self._merge()

    def _extend(
        self, vectors, ids: list[str], metadata, texts, changed: Mapping, left_out: Mapping, removed=()
    ) -> None:
        """Write a segment, if there are vectors, and then the catalogue."""
        facts: dict = json.loads(json.dumps({**self._facts, **changed}))
        reasons = dict(left_out)
        if "left_out" in changed:  # all of them
            reasons |= dict.fromkeys(self._catalogue.left_out()) | facts["left_out"]
            facts["left_out"] = {}
        self._convert()
        catalogue, first, segments = self._catalogue, self._state.total, list(self._state.segments)
        number = catalogue.info()["next"]
        if len(vectors):
            terms = collect_terms(ids, _as_stored(metadata or ()))
            row, digests = write_segment(self.path, number, first, vectors, terms, self.dtype)
        with catalogue.transaction():
            catalogue.set_info({"facts": facts, "next": number + 1})
            catalogue.set_left_out(reasons)
            catalogue.query("INSERT INTO removed VALUES (?)", [(place,) for place in removed], many=True)
            if len(vectors):
                catalogue.append(first, ids, texts, digests)
                catalogue.set_segments([row])
        if len(vectors):
            segments.append(self._open_segment(row))
        gone = np.union1d(self._state.removed, np.array(list(removed), np.int64))
        self._facts, self._state = facts, State(tuple(segments), gone)
        self._accelerators = {}

    def remove(self, ids: Sequence[str]) -> None:
        """Remove ids. Their vectors and metadata stay in the files until the index is built again.

        Raises:
            KeyError: an id that is not in the index.
        """
        self.add(np.empty((0, self.dim), np.float32), remove=ids)

    def set_facts(self, facts: Mapping) -> None:
        """Change entries of `facts`."""
        self.add(np.empty((0, self.dim), np.float32), facts=facts)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold the index for one writer, with what others wrote before.

        Raises:
            Locked: another process holds it for longer than LOCK_SECONDS.
        """
        with self._lock, contextlib.ExitStack() as stack:
            end = time.monotonic() + LOCK_SECONDS
            while True:
                try:
                    stack.enter_context(lock(self.path / ".lock"))
                    break
                except Locked:
                    if time.monotonic() > end:
                        raise
                    time.sleep(0.02)
            if self._old is not None and (self.path / NAME).is_file():  # another process has converted it
                self._finalizer()
                self._old = None
                self._use(Catalogue(self.path / NAME))
                self._load()
            elif self._old is not None and manifest.changed(self.path, self._old):
                self._finalizer()
                catalogue, self._old = manifest.read_manifest(self.path)
                self._use(catalogue)
                self._load()
            self._current()
            yield

    def _convert(self) -> None:
        """Give an index of the earlier layout, or a new one, its catalogue."""
        if self._old is None:
            return
        manifest.check_lists(self.path, self._old)
        self._make_terms()
        rows = [write_terms(self.path, s.row, (s.terms, s.offsets)) for s in self._state.segments]
        with self._catalogue.transaction():
            self._catalogue.set_segments(rows, self._catalogue.segments())
        self._finalizer.detach()
        self._use(self._catalogue.publish(self.path / NAME))
        manifest.remove_old_files(self.path, self._old)
        self._old = None
        self._load()

    def _merge(self) -> None:
        """Start merging small segments in a thread, if there are many."""
        if self._merger is not None and self._merger.is_alive():
            return
        if group := self._group():
            self._merger = threading.Thread(target=self._merge_group, args=(group,), name="merge segments")
            self._merger.start()

    def _group(self) -> list[Segment]:
        """Return neighbours to merge: MERGED small ones with the fewest vectors, once there are MOST_SMALL; or none."""
        small = [s.count * self.dim * s.matrix.itemsize < LARGE_BYTES for s in self._state.segments]
        if sum(small) <= MOST_SMALL:
            return []
        starts = [i for i in range(len(small) - MERGED + 1) if all(small[i : i + MERGED])]
        groups = [list(self._state.segments[i : i + MERGED]) for i in starts]
        return min(groups, key=lambda group: sum(segment.count for segment in group), default=[])

    def _merge_group(self, group: list[Segment]) -> None:
        """Replace segments by one with the same places; nothing if that is not possible now."""
        with contextlib.suppress(OSError, ValueError):
            with self._writing():  # a number of its own, so that no other file has the name
                number = self._catalogue.info()["next"]
                with self._catalogue.transaction():
                    self._catalogue.set_info({"next": number + 1})
            row = merge_segments(self.path, number, group)
            with self._writing():
                old = [segment.row for segment in group]
                self._open_segment(row)  # another process may have swept its files
                if set(old) <= set(self._catalogue.segments()):
                    with self._catalogue.transaction():
                        self._catalogue.set_segments([row], old)
                    self._load()
                self._sweep()

    def _sweep(self) -> None:
        """Remove files of segments that the catalogue does not list: merged ones, and those of killed writers."""
        listed = {name for s in self._state.segments for name in files_of(s.row, self.dtype)}
        for what in ("vectors", "scales", "terms"):
            for file in self.path.glob(f"{what}-*.bin"):
                if file.name not in listed:
                    with contextlib.suppress(OSError):  # Windows keeps a file that is mapped
                        file.unlink()

    def verify(self) -> int:
        """Compare every file with its digest and return the number of vectors; ValueError for a damaged file."""
        state = self._current()
        if self._old is not None:
            manifest.check_lists(self.path, self._old)
        self._catalogue.check()
        history = self._catalogue.history()
        for segment in state.segments:
            for first, added in zip([0, *(a.last for a in history)], history, strict=False):
                inside = segment.first <= first and added.last <= segment.first + segment.count
                if inside and segment.digest(first, added.last) != added.vectors:
                    name = self.path / file_name("vectors", segment.row)
                    raise ValueError(f"{shown(name)} is damaged: its digest is not {shown(added.vectors, 64)}")
            if segment.row.digest is not None:
                found = digest(np.concatenate([segment.terms.view(np.uint8), segment.offsets.view(np.uint8)]))
                if found != segment.row.digest:
                    name = self.path / file_name("terms", segment.row)
                    raise ValueError(f"{shown(name)} is damaged: its digest is not {shown(segment.row.digest, 64)}")
        for accelerator in map(self._accelerator, KINDS):
            if accelerator is not None:
                accelerator.verify()
        return len(self)

    def info(self) -> dict:
        """Return {"vectors", "dim", "dtype", "segments", "removed", "bytes", "accelerators", "model", …facts}."""
        state = self._current()
        files = [self.path / NAME, *(self.path / name for s in state.segments for name in files_of(s.row, self.dtype))]
        size = sum(file.stat().st_size for file in files if file.is_file())
        named: dict = {"vectors": len(self), "dim": self.dim, "dtype": self.dtype}
        counts: dict = {"segments": len(state.segments), "removed": len(state.removed), "bytes": size}
        counts["accelerators"] = self.accelerators()
        return {**named, **counts, "model": self.model, **self.facts}


def _texts(metadata: Sequence[Mapping] | None, count: int) -> list[str | None]:
    """Return metadata as JSON, None for an empty one."""
    if metadata is None:
        return [None] * count
    texts = [json.dumps(dict(entry), ensure_ascii=False) if entry else None for entry in metadata]
    for text in texts:
        (text or "").encode()  # raises for a lone surrogate
    return texts


def _as_stored(metadata: Sequence[Mapping]) -> Iterator[Mapping]:
    """Yield metadata with the keys that JSON gives them."""
    for entry in metadata:
        yield entry if all(isinstance(key, str) for key in entry) else json.loads(json.dumps(dict(entry)))


def _parse(text: str | None) -> dict:
    try:
        entry = json.loads(text) if text else {}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"metadata {quoted(text)} is not JSON: {shown(error)}") from None
    if not isinstance(entry, dict):
        raise ValueError(f"metadata {quoted(text)} is not a mapping")
    return entry


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
