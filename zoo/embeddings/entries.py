"""What an index knows about its vectors: ids, metadata, places and facts."""

import itertools
from collections.abc import Iterable, Iterator

import numpy as np

from zoo.embeddings.store import Store, parse_metadata
from zoo.embeddings.terms import contains, id_term, value_terms
from zoo.utils.text import quoted


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
