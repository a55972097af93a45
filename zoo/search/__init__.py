"""The search application: embed images, build an index of them, search it, show the results."""

from zoo.embeddings import Index, TextCache, default_cache_path  # import paths that users have

__all__ = ["Index", "TextCache", "default_cache_path"]
