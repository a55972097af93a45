"""Modules that are imported at first use, so that tables of models can be read without Keras."""

import importlib
from types import ModuleType


class LazyModule(ModuleType):
    """A module that is imported when one of its attributes is first read."""

    def __getattr__(self, name):
        return getattr(importlib.import_module(self.__name__), name)
