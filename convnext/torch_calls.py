"""Calls layers on torch without the overhead of `Layer.__call__`, where it would have no effect.

`Layer.__call__` binds arguments, flattens structures, opens scopes, looks for masks and wraps each call. On torch,
where layers run one by one, that takes about 0.2 ms per layer, more than most kernels take for a single image:
KERAS_BACKEND=torch python tests/bench_layers.py times a model of 119 layers both ways.
"""

import functools
import inspect

import keras

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")  # of torch.nn.Module
UNKNOWN = "unknown"


def call_layer(layer, *inputs, **options):
    """Return `layer(*inputs, **options)`, on torch by `layer.call` directly if the result is the same.

    It is the same for a built layer of one dtype without activity regularizer, hooks, rematerialisation or quantised
    weights, on tensors of that dtype without masks. The caller ensures that no autocast to another dtype is active.
    Some of these checks read private attributes of Keras and torch; if one is missing, Keras' `__call__` is used.

    Args:
        layer: `keras.layers.Layer` or another operation of a functional model.
        inputs: tensors, or lists of them.
        options: `training`; any other option uses Keras' `__call__`.
    """
    is_direct = _runs_on_torch() and options.keys() <= {"training"} and _is_plain(layer)
    if not is_direct or not all(_accepts(layer, x) for x in inputs):
        return layer(*inputs, **options)
    return layer.call(*inputs, **(options if _takes_training(layer.__class__) else {}))


def _runs_on_torch():
    """Whether the backend is torch, not compiling, and without global module hooks."""
    if keras.backend.backend() != "torch":
        return False
    import torch

    has_global_hook = getattr(torch.nn.modules.module, "_has_any_global_hook", lambda: True)
    return not torch.compiler.is_compiling() and not has_global_hook()


@functools.cache
def _takes_training(kind):
    return "training" in inspect.signature(kind.call).parameters


def _is_plain(layer):
    is_usual = isinstance(layer, keras.layers.Layer) and type(layer).__call__ is keras.layers.Layer.__call__
    return (
        is_usual
        and layer.built
        and layer.compute_dtype == layer.variable_dtype
        and layer.activity_regularizer is None
        and getattr(layer, "_remat_mode", UNKNOWN) is None
        and getattr(layer, "quantization_mode", None) is None
        and not any(getattr(layer, name, UNKNOWN) for name in HOOKS)
        and getattr(layer, "_call_context_args", {UNKNOWN}) <= {"training"}
        and _makes_no_mask(layer)
    )


def _makes_no_mask(layer):
    from_none = (keras.layers.Layer.compute_mask, keras.layers.Add.compute_mask)  # both return None without a mask
    return type(layer).compute_mask in from_none or not getattr(layer, "mask_zero", True)


def _accepts(layer, x):
    import torch

    if isinstance(x, list):
        return all(_accepts(layer, part) for part in x)
    if not isinstance(x, torch.Tensor) or hasattr(x, "_keras_mask"):
        return False
    return not x.is_floating_point() or keras.backend.standardize_dtype(x.dtype) == layer.compute_dtype
