"""Names, loads, converts, trains, evaluates, searches, serves, measures and exports what `convnext` and `clip` define.

Importing it loads no Keras and no backend; names are imported when first used.
"""

from zoo.utils.env import check_names

check_names()  # another package may own the names `clip` or `zoo`; say so before anything fails strangely

import importlib  # noqa: E402
from typing import TYPE_CHECKING  # noqa: E402

import clip  # noqa: E402
import convnext  # noqa: E402 (registers the classes of saved models with Keras)

clip.register_opener("zoo.models.openai:load")

if TYPE_CHECKING:
    from zoo.export import export_onnx
    from zoo.inference.forward import create_predictor
    from zoo.inference.pipeline import ClipPipeline
    from zoo.models.conversion import export_weights
    from zoo.models.folding import fold
    from zoo.models.registry import create_model, list_models, load, model_info, save
    from zoo.training.contrastive import train
    from zoo.training.pretrain import pretrain
    from zoo.weights import load_weights

_MODULE_OF = {
    "ClipPipeline": "zoo.inference.pipeline",
    "create_model": "zoo.models.registry",
    "create_predictor": "zoo.inference.forward",
    "export_weights": "zoo.models.conversion",
    "export_onnx": "zoo.export",
    "fold": "zoo.models.folding",
    "list_models": "zoo.models.registry",
    "load": "zoo.models.registry",
    "load_weights": "zoo.weights",
    "model_info": "zoo.models.registry",
    "pretrain": "zoo.training.pretrain",
    "save": "zoo.models.registry",
    "train": "zoo.training.contrastive",
}

__all__ = [
    "ClipPipeline",
    *("create_model", "create_predictor", "export_onnx", "export_weights", "fold", "list_models"),
    *("load", "load_weights", "model_info", "pretrain", "save", "train"),
]  # noqa: F822


def __getattr__(name):
    if name not in _MODULE_OF:
        hint = "" if name.startswith("_") else convnext.called_here(name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}.{hint}".removesuffix("."))
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__():
    return sorted({*globals(), *__all__})
