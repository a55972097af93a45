"""Models by name: list, create, load, save, fold, convert and hand to other libraries. Names import lazily."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zoo.models.conversion import Conversion, convert
    from zoo.models.exchange import LIBRARIES, export_weights
    from zoo.models.folding import fold
    from zoo.models.info import ModelInfo, info_of
    from zoo.models.names import Entry, find
    from zoo.models.registry import (
        Loaded,
        LoadedPair,
        create_model,
        list_models,
        load,
        load_pair,
        model_info,
        save,
        weight_file,
    )

_MODULE_OF = {
    **dict.fromkeys(("Conversion", "convert"), "conversion"),
    **dict.fromkeys(("LIBRARIES", "export_weights"), "exchange"),
    "fold": "folding",
    **dict.fromkeys(("ModelInfo", "info_of", "model_info"), "info"),
    **dict.fromkeys(("Entry", "find", "list_models"), "names"),
    **dict.fromkeys(("Loaded", "LoadedPair", "create_model", "load", "load_pair", "save", "weight_file"), "registry"),
}

__all__ = [*_MODULE_OF]


def __getattr__(name):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__():
    return sorted({*globals(), *__all__})
