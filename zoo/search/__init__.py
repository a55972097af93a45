"""The search application: build an index of images, query it, draw what was found."""

from zoo.embeddings import Index, TextCache, default_cache_path  # this room's own names before they moved

__all__ = ["Index", "TextCache", "default_cache_path"]
