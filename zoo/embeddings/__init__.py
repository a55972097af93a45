"""Embeddings on disk: an index of vectors, a cache of text embeddings, query expressions. None imports Keras."""

from zoo.embeddings.expression import combine, parse_query
from zoo.embeddings.index import Index
from zoo.embeddings.text_cache import TextCache, default_cache_path

__all__ = ["Index", "TextCache", "combine", "default_cache_path", "parse_query"]
