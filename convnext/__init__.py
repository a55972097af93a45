"""ConvNeXt V1, ConvNeXt V2 and ResNet for Keras 3, on TensorFlow, JAX and PyTorch.

Names are imported at first use, so that `convnext.variants` can be read without Keras. Saved models of this library
load wherever this package and Keras are imported.
"""

import importlib
from typing import TYPE_CHECKING

from convnext.registration import register_with_keras

if TYPE_CHECKING:
    from convnext import kernels
    from convnext.adamw import AdamW
    from convnext.elsewhere import ELSEWHERE, called_here, renamed
    from convnext.fcmae import FCMAE, create_fcmae
    from convnext.functional import (
        Functional,
        build_optimizer,
        changed_by_call,
        checkpoint_activations,
        follow_remat_scope,
    )
    from convnext.keras_internals import call_layer
    from convnext.kernels import computes_in_float32_on_cpu
    from convnext.layers import (
        GRN,
        BatchNormalization,
        Conv2D,
        Dense,
        DepthwiseConv2D,
        LayerNormalization,
        LayerScale,
        Normal,
        drop_path,
    )
    from convnext.model import (
        create_convnext_v1,
        create_convnext_v2,
        feature_maps,
        layers_by_name,
        resolve_stem_stride,
        resolve_strides,
    )
    from convnext.resnet import create_resnet
    from convnext.variants import ACTIVATIONS, TABLES, ResNetVariant, Variant, closest, flops, parameters

_MODULES = {
    "convnext.adamw": ("AdamW",),
    "convnext.elsewhere": ("ELSEWHERE", "called_here", "renamed"),
    "convnext.fcmae": ("FCMAE", "create_fcmae"),
    "convnext.functional": (
        "Functional",
        "build_optimizer",
        "changed_by_call",
        "checkpoint_activations",
        "follow_remat_scope",
    ),
    "convnext.keras_internals": ("call_layer",),
    "convnext.kernels": ("computes_in_float32_on_cpu",),
    "convnext.layers": (
        "GRN",
        "BatchNormalization",
        "Conv2D",
        "Dense",
        "DepthwiseConv2D",
        "LayerNormalization",
        "LayerScale",
        "Normal",
        "drop_path",
    ),
    "convnext.model": (
        *("create_convnext_v1", "create_convnext_v2", "feature_maps", "layers_by_name"),
        *("resolve_stem_stride", "resolve_strides"),
    ),
    "convnext.resnet": ("create_resnet",),
    "convnext.variants": ("ACTIVATIONS", "TABLES", "ResNetVariant", "Variant", "closest", "flops", "parameters"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
_PACKAGES = ("kernels",)
_WITHOUT_KERAS = ("convnext.variants", "convnext.elsewhere")

__all__ = sorted([*_MODULE_OF, *_PACKAGES])  # noqa: PLE0605


def _called_here(name):
    return "" if name.startswith("_") else importlib.import_module("convnext.elsewhere").called_here(name)


def __getattr__(name):
    if name in _PACKAGES:
        return importlib.import_module(f"convnext.{name}")
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}.{_called_here(name)}".removesuffix("."))
    if _MODULE_OF[name] not in _WITHOUT_KERAS:
        importlib.import_module("keras")  # and with it every class: inside a module of ours that would be a circle
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__():
    return sorted([*globals(), *__all__])


register_with_keras()
