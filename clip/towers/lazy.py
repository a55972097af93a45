"""Modules that the towers' builders need, imported at first use, so that tables of models can be read without Keras."""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING


class LazyModule(ModuleType):
    """A module that is imported when one of its attributes is first read."""

    def __getattr__(self, name):
        return getattr(importlib.import_module(self.__name__), name)


if TYPE_CHECKING:
    import keras
    from keras import layers

    from clip import layers as parts
    from clip.towers import branches
else:
    keras, layers = LazyModule("keras"), LazyModule("keras.layers")
    branches, parts = LazyModule("clip.towers.branches"), LazyModule("clip.layers")
