"""Search: a cache of text embeddings and an index of vectors, both on disk and both without Keras."""

from zoo.search.index import Index
from zoo.search.text_cache import TextCache, default_cache_path

__all__ = ["Index", "TextCache", "default_cache_path"]
