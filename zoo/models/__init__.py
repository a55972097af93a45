"""Models by name: list, create, load, save, fold, convert and hand to other libraries. Names import lazily."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zoo.models.conversion import Conversion, WeightExport, convert, export_weights
    from zoo.models.folding import fold
    from zoo.models.info import ModelInfo, info_of, model_info
    from zoo.models.names import Entry, config_of, find, list_models
    from zoo.models.registry import Loaded, LoadedPair, create_model, load, load_pair, save, weight_file
    from zoo.weights import LIBRARIES, ModelConfig

_NAMES = {
    "zoo.models.conversion": ("Conversion", "WeightExport", "convert", "export_weights"),
    "zoo.models.folding": ("fold",),
    "zoo.models.info": ("ModelInfo", "info_of", "model_info"),
    "zoo.models.names": ("Entry", "config_of", "find", "list_models"),
    "zoo.models.registry": ("Loaded", "LoadedPair", "create_model", "load", "load_pair", "save", "weight_file"),
    "zoo.weights": ("LIBRARIES", "ModelConfig"),
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [*_MODULE_OF]


def __getattr__(name):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__():
    return sorted({*globals(), *__all__})
