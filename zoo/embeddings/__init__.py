"""Embeddings on disk: a cache of text embeddings and an index of vectors, both without Keras."""

from zoo.embeddings.index import Index
from zoo.embeddings.text_cache import TextCache, default_cache_path

__all__ = ["Index", "TextCache", "default_cache_path"]
