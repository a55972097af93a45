"""Terms: 64-bit digests of ids and of entries of metadata, by which an index finds an id and the vectors of a filter.

They are kept in ascending order in files that are written once. A search tree over ids and digests, which have no
order, would make an add to a large index several times as slow as one to a small index.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from json.encoder import encode_basestring

import numpy as np

from zoo.utils.strict_json import is_utf8

_ID_KEY = "\0id"  # of terms of ids


def id_term(identity: str) -> int:
    """Return the term of an id."""
    return _term(_ID_KEY, identity)


def _term(key: str, text: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{key}\0{text}".encode(), digest_size=8).digest(), "little")


def value_terms(key: str, value) -> list[int] | None:
    """Return the terms of all JSON values that equal a value; None if there is no such list.

    Python compares 1, 1.0 and True as equal; a list, a mapping and None have no terms.
    """
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, str):
        return [_term(key, _json(value))] if is_utf8(value) else []
    if not isinstance(value, int | float):
        return None
    texts = {_json(value)}
    if math.isfinite(value) and value == int(value):
        whole = int(value)
        texts |= {_json(whole)} | ({_json(bool(whole))} if whole in (0, 1) else set())
        if abs(whole) < 1 << 1000 and float(whole) == whole:
            texts.add(_json(float(whole)))
    if value == 0:
        texts.add(_json(-0.0))
    return [_term(key, text) for text in texts]


def collect_terms(ids: Sequence[str], metadata: Iterable[Mapping]) -> tuple[np.ndarray, np.ndarray]:
    """Return (digests uint64, offsets uint32) of ids and the texts, numbers and booleans of their metadata, sorted."""
    terms = [id_term(identity) for identity in ids]
    offsets = list(range(len(ids)))
    memo: dict[tuple, int] = {}
    for offset, entry in enumerate(metadata):
        for key, value in entry.items():
            if isinstance(value, str | int | float):
                known = (key, value, type(value))
                if known not in memo:
                    memo[known] = _term(key, _json(value))
                terms.append(memo[known])
                offsets.append(offset)
    found, places = np.array(terms, "<u8"), np.array(offsets, "<u4")
    order = np.lexsort((places, found))
    return found[order], places[order]


def contains(ascending: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return which values are in an ascending array, bool (n,)."""
    if not len(ascending):
        return np.zeros(len(values), bool)
    return ascending[np.minimum(np.searchsorted(ascending, values), len(ascending) - 1)] == values


def _json(value) -> str:
    """Return a text, number or boolean as JSON; for texts, several times as fast as `json.dumps`."""
    if isinstance(value, str):
        return encode_basestring(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return int.__repr__(value) if isinstance(value, int) else float.__repr__(value)
