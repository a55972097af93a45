"""Tensors of each class of layer in a torch checkpoint: their names and the order of their axes.

The layer's class decides, never the shape of the file's arrays. Both directions of a layout are views where possible.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from clip import layer_weights


@dataclass(frozen=True)
class Layout:
    """Conversion between one of our variables and the checkpoint's array or arrays for it.

    Args:
        to_ours: list of the checkpoint's arrays → our array.
        to_theirs: our array → list of the checkpoint's arrays.
    """

    to_ours: Callable[[list], np.ndarray]
    to_theirs: Callable[[np.ndarray], list]


def one(to_ours, to_theirs):
    """A `Layout` of one array of the checkpoint."""
    return Layout(lambda arrays: to_ours(arrays[0]), lambda array: [to_theirs(array)])


_SAME = one(lambda a: a, lambda a: a)
_LINEAR = one(np.transpose, np.transpose)  # (O, I) ↔ (I, O)
_POINTWISE = one(lambda a: a[:, :, 0, 0].T, lambda a: a.T[:, :, None, None])  # (O, I, 1, 1) ↔ (I, O)
_CONV = one(lambda a: a.transpose(2, 3, 1, 0), lambda a: a.transpose(3, 2, 0, 1))  # OIHW ↔ HWIO
SPREAD_AFTER = one(lambda a: a[:, 0, 0], lambda a: a[:, None, None])  # (C, 1, 1) ↔ (C,)
_SPREAD = one(lambda a: a[0, 0, 0], lambda a: a[None, None, None])  # (1, 1, 1, C) ↔ (C,)
_THREE_LINEAR = Layout(lambda arrays: np.concatenate(arrays).T, lambda a: np.split(a.T, 3))  # 3 × (W, W) ↔ (W, 3W)
_THREE = Layout(np.concatenate, lambda a: np.split(a, 3))  # 3 × (W,) ↔ (3W,)


def under_ones(axes):
    """(1, …, 1, *shape) ↔ shape, with `axes` leading ones."""
    return one(lambda a: a.reshape(a.shape[axes:]), lambda a: a[(None,) * axes])


def _all_zero(array):
    if np.any(array):
        raise ValueError("The format has no bias for this layer, and the model's is not zero.")
    return []


ZERO = Layout(lambda _: np.zeros((), np.float32), _all_zero)  # nothing ↔ zeros


def depthwise(multiplier):
    """(C·M, 1, k, k) ↔ (k, k, C, M): of torch's outputs, c·M + m is the m-th of channel c."""
    return one(
        lambda a: a.reshape(-1, multiplier, *a.shape[2:]).transpose(2, 3, 0, 1),
        lambda a: a.transpose(2, 3, 0, 1).reshape(-1, 1, *a.shape[:2]),
    )


@dataclass(frozen=True)
class Tensor:
    """One variable of a layer.

    Args:
        names: names of the checkpoint's tensors, relative to the module's path; "" for the path itself. Several where
            `layout` joins them.
        variable: attribute path in the layer, e.g. "kernel", "in_proj.kernel".
        layout: conversion between the two.
    """

    names: tuple[str, ...]
    variable: str
    layout: Layout = _SAME


def _linear(weight, bias, prefix="", layout=_LINEAR):
    return (Tensor((weight,), f"{prefix}kernel", layout), Tensor((bias,), f"{prefix}bias"))


def _inside(path, entries, variable=None):
    """The entries of a sublayer: prefix `path` for the checkpoint's names, `variable` (or the same) for ours."""
    return tuple(
        Tensor(tuple(f"{path}.{name}" for name in entry.names), f"{variable or path}.{entry.variable}", entry.layout)
        for entry in entries
    )


_BIAS = Tensor(("bias",), "bias")
_DENSE = _linear("weight", "bias")
_AFFINE = (Tensor(("weight",), "gamma"), Tensor(("bias",), "beta"))
_BATCH_NORM = (*_AFFINE, Tensor(("running_mean",), "moving_mean"), Tensor(("running_var",), "moving_variance"))
_OUT_PROJ = _inside("out_proj", _DENSE)


def _depthwise(layer):
    return (Tensor(("weight",), "kernel", depthwise(layer.depth_multiplier)), _BIAS)


def _branches(layer):
    """A multi-branch convolution of `clip.towers.branches` in timm's names, and its re-parameterised form."""
    kernel = (Tensor(("weight",), "kernel", _CONV), _BIAS) if layer.filters else _depthwise(layer)
    conv_norm = (*_inside("conv", kernel), *_inside("bn", _BATCH_NORM))
    one_of_many = (*_inside("conv_kxk.0", conv_norm, "conv_kxk"), *_inside("conv_scale", conv_norm))
    mobile_one = (*one_of_many, *_inside("identity", _BATCH_NORM))
    large_kernel = (*_inside("large_conv", conv_norm), *_inside("small_conv", conv_norm))
    mixer = (*_inside("norm.identity", _BATCH_NORM, "norm"), *_inside("mixer", mobile_one))
    scale = (Tensor(("layer_scale.gamma",), "layer_scale.gamma", SPREAD_AFTER),)
    return (*mobile_one, *large_kernel, *mixer, *scale, *_inside("pos_enc", kernel), *_inside("reparam_conv", kernel))


# class of the layer → its tensors, as torch modules name them, or a function of the layer
TENSORS = {
    "Branches": _branches,
    "Conv2D": (Tensor(("weight",), "kernel", _CONV), _BIAS),
    "DepthwiseConv2D": _depthwise,
    "Dense": _DENSE,
    "LayerNormalization": _AFFINE,
    "BatchNormalization": _BATCH_NORM,
    "GRN": _AFFINE,
    "LayerScale": (Tensor(("",), "gamma"),),
    "TokenEmbedding": (Tensor(("weight",), "embeddings"),),
    "PositionalEmbedding": (Tensor(("",), "positional_embedding"),),
    "ClassEmbedding": (Tensor(("",), "class_embedding"),),
    "SelfAttention": (*_linear("in_proj_weight", "in_proj_bias", "in_proj."), *_OUT_PROJ),
    "AttentionPool": (
        Tensor(("positional_embedding",), "positional_embedding"),
        *(tensor for letter in "qkvc" for tensor in _inside(f"{letter}_proj", _DENSE)),
    ),
    "LogitScale": (Tensor(("logit_scale",), "logit_scale"), Tensor(("logit_bias",), "logit_bias")),
}

# Third column of a rule, where a library differs from the above.
MATRIX = (Tensor(("",), "kernel"),)  # a bare (I, O) parameter
CONV_1X1 = _linear("weight", "bias", layout=_POINTWISE)  # a 1×1 convolution for a Dense layer
LOGIT_SCALE = (Tensor(("",), "logit_scale"),)
LOGIT_BIAS = (Tensor(("",), "logit_bias"),)
NO_BIAS = Tensor((), "bias", ZERO)
SCALE_2D = (Tensor(("gamma",), "gamma", SPREAD_AFTER),)
TIMM_POOL = (
    Tensor(("pos_embed",), "positional_embedding"),
    *(tensor for letter in "qkv" for tensor in _inside(letter, _DENSE, f"{letter}_proj")),
    *_inside("proj", _DENSE, "c_proj"),
)
SPREAD_GRN = (Tensor(("weight",), "gamma", _SPREAD), Tensor(("bias",), "beta", _SPREAD))
SPREAD_GRN_GREEK = (Tensor(("gamma",), "gamma", _SPREAD), Tensor(("beta",), "beta", _SPREAD))
SEPARATE_QKV = (
    Tensor(("q_proj.weight", "k_proj.weight", "v_proj.weight"), "in_proj.kernel", _THREE_LINEAR),
    Tensor(("q_proj.bias", "k_proj.bias", "v_proj.bias"), "in_proj.bias", _THREE),
    *_OUT_PROJ,
)


def qkv(fused, out):
    """Tensors of a `SelfAttention` whose projections are the modules `fused` and `out`."""
    return (*_inside(fused, _DENSE, "in_proj"), *_inside(out, _DENSE, "out_proj"))


QKV = qkv("qkv", "proj")


def torch_tensors(layer):
    """`Tensor` entries of a layer, by its class or the nearest base class; () for a class without weights.

    Classes of registered towers are known too. An entry whose variable the layer does not have is skipped.
    """
    for name in (cls.__name__ for cls in type(layer).__mro__):
        if name in TENSORS:
            entries = TENSORS[name]
            return entries(layer) if callable(entries) else entries
        if paths := layer_weights(name):
            return tuple(Tensor((path,), path) for path in paths)
    return ()


def own_tensors(layer):
    """The same variables with our own names and layout."""
    return tuple(Tensor((entry.variable,), entry.variable) for entry in torch_tensors(layer))
