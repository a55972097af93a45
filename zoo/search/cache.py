"""Inspect and maintain the cache of text embeddings: the commands `zoo cache …`.

Each takes the file of a cache; by default the user's, which is empty before its first use.
"""

import os
from pathlib import Path

from zoo.embeddings import TextCache, default_cache_path
from zoo.utils.text import shown


def cache_stats(cache: str | None = None) -> dict:
    """Return the size of the cache and its hits over all processes: `zoo cache stats`."""
    texts = _existing(cache, write=False)
    if texts is None:
        return {"file": str(default_cache_path()), "entries": 0, "bytes": 0, **TextCache().lifetime()}
    stats = texts.stats()
    return {"file": str(texts.path), "entries": stats.entries, "bytes": stats.bytes, **texts.lifetime()}


def cache_clear(cache: str | None = None) -> dict:
    """Drop all entries: `zoo cache clear`."""
    texts = _existing(cache)
    return {"dropped": 0 if texts is None else texts.clear()}


def cache_verify(cache: str | None = None) -> dict:
    """Check every entry and drop damaged ones: `zoo cache verify`."""
    texts = _existing(cache)
    entries, damaged = (0, 0) if texts is None else texts.verify()
    return {"entries": entries, "damaged": damaged}


def cache_export(path: str, cache: str | None = None) -> dict:
    """Copy the cache to a new file: `zoo cache export`."""
    if os.path.lexists(path):
        raise FileExistsError(f"{shown(path)} already exists; name another file")
    return {"written": _open(cache or default_cache_path(), write=False).copy_to(TextCache(path))}


def cache_import(path: str, cache: str | None = None) -> dict:
    """Copy another cache's entries into the cache: `zoo cache import`."""
    return {"read": _open(path, write=False).copy_to(TextCache(cache or default_cache_path()))}


def _existing(path: str | None, *, write: bool = True) -> TextCache | None:
    """Return a cache; None for the user's before its first use. A cache that was named must exist."""
    if path is None and not os.path.lexists(default_cache_path()):
        return None
    return _open(path or default_cache_path(), write=write)


def _open(path: str | Path, *, write: bool = True) -> TextCache:
    """Return a cache whose file must exist, and is never replaced."""
    return TextCache(path, create=False, write=write)
