"""Filters of a search: which vectors have the metadata that `where` asks for.

A mapping is answered by binary search in the sorted terms of the segments, without reading metadata. A function, and
values without terms (None, lists), are tested on the metadata themselves.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from zoo.embeddings.store import Store, parse_metadata
from zoo.embeddings.terms import value_terms
from zoo.embeddings.vectors import Vectors

SLOW_ENTRIES = 100_000  # metadata entries that a function is called with before a warning

Where = Mapping | Callable[[dict], bool] | None


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
