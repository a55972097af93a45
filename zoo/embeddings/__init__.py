"""Embeddings on disk: an index of vectors and a cache of text embeddings. Neither imports Keras."""

from zoo.embeddings.index import Index
from zoo.embeddings.text_cache import TextCache, default_cache_path

__all__ = ["Index", "TextCache", "default_cache_path"]
