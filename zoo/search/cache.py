"""Inspect and maintain the cache of text embeddings: the commands `zoo cache …`.

Each takes the file of a cache; by default the user's, which is empty before its first use.
"""

import os

from zoo.embeddings import TextCache, default_cache_path
from zoo.utils.text import shown


def cache_stats(cache: str | None = None) -> dict:
    """Return the size of the cache and its hits over all processes: `zoo cache stats`."""
    texts = _existing(cache, write=False)
    stats, file = texts.stats(), texts.path or default_cache_path()
    return {"file": str(file), "entries": stats.entries, "bytes": stats.bytes, **texts.lifetime()}


def cache_clear(cache: str | None = None) -> dict:
    """Drop all entries: `zoo cache clear`."""
    return {"dropped": _existing(cache).clear()}


def cache_verify(cache: str | None = None) -> dict:
    """Check every entry and drop damaged ones: `zoo cache verify`."""
    entries, damaged = _existing(cache).verify()
    return {"entries": entries, "damaged": damaged}


def cache_export(path: str, cache: str | None = None) -> dict:
    """Copy the cache to a new file: `zoo cache export`."""
    if os.path.lexists(path):
        raise FileExistsError(f"{shown(path)} already exists; name another file")
    source = TextCache(cache or default_cache_path(), create=False, write=False)
    return {"written": source.copy_to(TextCache(path))}


def cache_import(path: str, cache: str | None = None) -> dict:
    """Copy another cache's entries into the cache: `zoo cache import`."""
    source = TextCache(path, create=False, write=False)
    return {"read": source.copy_to(TextCache(cache or default_cache_path()))}


def _existing(path: str | None, *, write: bool = True) -> TextCache:
    """Return a cache whose file is never replaced and must exist; if the user's own does not yet, an empty one."""
    if path is None and not os.path.lexists(default_cache_path()):
        return TextCache()
    return TextCache(path or default_cache_path(), create=False, write=write)
