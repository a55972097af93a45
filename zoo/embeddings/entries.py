"""What an index knows about its vectors: ids, metadata, places and facts; and which vectors a filter allows.

A mapping as a filter is answered by binary search in the sorted terms of the segments, without reading metadata. A
function, and values without terms (None, lists), are tested on the metadata themselves.
"""

import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from zoo.embeddings.store import Store, parse_metadata
from zoo.embeddings.terms import contains, id_term, value_terms
from zoo.embeddings.vectors import Vectors
from zoo.utils.text import quoted

SLOW_ENTRIES = 100_000  # metadata entries that a function is called with before a warning

Where = Mapping | Callable[[dict], bool] | None


class Entries:
    """The ids, metadata and facts of an index; each call sees what was written before it.

    A place is the number of a vector in the order they were added. It never changes.
    """

    def __init__(self, store: Store):
        self._store = store

    def __len__(self) -> int:
        return len(self._store.current())

    @property
    def version(self) -> int:
        """A number that changes when another process has changed the index."""
        self._store.current()
        return self._store.version

    @property
    def facts(self) -> dict:
        """What was given as `facts`, and under "left_out" the images that were left out, with their reasons."""
        self._store.current()
        facts, left_out = self._store.facts, self._store.catalogue.left_out()
        return facts | ({"left_out": left_out} if left_out or "left_out" in facts else {})

    @property
    def ids(self) -> list[str]:
        """The ids of all vectors that are not removed, in the order they were added: a list as long as the index."""
        return list(self.iterate_ids())

    def iterate_ids(self) -> Iterator[str]:
        """Yield `ids` one by one."""
        for _, identity, _ in self._store.entries(self._store.current()):
            yield identity

    def __contains__(self, identity: object) -> bool:
        return isinstance(identity, str) and bool(self._look_up([identity]))

    def places(self, ids: Iterable[str]) -> dict[str, int]:
        """Return {id: place} of those ids that the index has."""
        return {name: place for name, (place, _) in self._look_up(ids).items()}

    def entries(self, ids: Iterable[str]) -> dict[str, tuple[int, dict]]:
        """Return {id: (place, metadata)} of those ids that the index has."""
        return {name: (place, parse_metadata(text)) for name, (place, text) in self._look_up(ids).items()}

    def metadata(self, identity: str) -> dict:
        """Return the metadata of an id, {} if it has none."""
        return parse_metadata(self._entry(identity)[1])

    def vector(self, identity: str) -> np.ndarray:
        """Return the stored vector of an id, float32 (D,)."""
        return self._store.current().rows(np.array([self._entry(identity)[0]]))[0]

    def _entry(self, identity: str) -> tuple[int, str | None]:
        found = self._look_up([identity])
        if identity not in found:
            raise KeyError(f"{quoted(identity)} is not in the index")
        return found[identity]

    def _look_up(self, ids: Iterable[str]) -> dict[str, tuple[int, str | None]]:
        """Return {id: (place, metadata as JSON)} of those ids that the index has."""
        vectors, wanted = self._store.current(), set(ids)
        places = vectors.find([id_term(identity) for identity in wanted])[1]
        entries = self._store.catalogue.entries(places).items()
        return {name: (place, text) for place, (name, text) in entries if name in wanted}

    def id_of(self, place: int) -> str:
        """Return the id at a place; KeyError if there never was a vector there, or if it was removed."""
        vectors = self._store.current()
        if not 0 <= place < vectors.total or contains(vectors.removed, np.array([place]))[0]:
            raise KeyError(f"the index has no vector at place {place}")
        return self._store.catalogue.entries(np.array([place]))[place][0]

    def ids_by(self, key: str, values: Iterable) -> dict:
        """Return {value: the first id whose metadata has it under `key`} for the texts or numbers that occur there."""
        vectors, values = self._store.current(), list(values)
        terms = [term for value in values for term in value_terms(key, value) or ()]
        found: dict = {}
        entries = self._store.catalogue.entries(vectors.find(terms)[1])
        for _, (identity, text) in sorted(entries.items()):
            found.setdefault(parse_metadata(text).get(key), identity)
        return {value: found[value] for value in values if value in found}

    def blocks(self, size: int) -> Iterator[tuple[list[str], list[dict], np.ndarray]]:
        """Yield (ids, metadata, vectors float32 (n, D)) of at most `size` images at a time, in order."""
        vectors = self._store.current()
        rows = self._store.entries(vectors)
        while block := list(itertools.islice(rows, size)):
            places = np.array([place for place, _, _ in block])
            yield [name for _, name, _ in block], [parse_metadata(text) for _, _, text in block], vectors.rows(places)


def allowed_places(store: Store, vectors: Vectors, where: Where) -> np.ndarray | None:
    """Return the places that may be found, int64, ascending, or None for all that are not removed."""
    if not where:
        return None
    if callable(where):
        return _test(store, vectors, where)
    places: np.ndarray | None = None
    rest: dict = {}
    for key, value in where.items():
        any_of = value if isinstance(value, set | frozenset) else (value,)
        terms = [value_terms(key, one) for one in any_of]
        if any(found is None for found in terms):
            rest[key] = any_of
            continue
        found = np.unique(vectors.find([term for found in terms for term in found or ()])[1])
        places = found if places is None else np.intersect1d(places, found, assume_unique=True)
    if not rest:
        return places
    return _test(store, vectors, lambda entry: all(entry.get(key) in any_of for key, any_of in rest.items()), places)


def _test(store: Store, vectors: Vectors, fits: Callable[[dict], bool], places: np.ndarray | None = None) -> np.ndarray:
    """Return the places, among these or all, whose metadata fit."""
    rows: Iterable[tuple[int, str | None]]
    if places is not None:
        rows = [(place, text) for place, (_, text) in sorted(store.catalogue.entries(places).items())]
    else:
        if vectors.total > SLOW_ENTRIES:
            warnings.warn(
                f"where is a function, or asks for null: it is tested on the metadata of all {vectors.total:,} "
                "vectors, which is slow; {key: value} with texts, numbers and booleans is fast",
                stacklevel=4,
            )
        rows = ((place, text) for place, _, text in store.entries(vectors))
    return np.array([place for place, text in rows if fits(parse_metadata(text))], np.int64)
