"""Parts of the faster implementations that several backends share, and the checks that decide where one applies."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from convnext.kernels.reference import Geometry, at_least_float32


def has_only_cpus() -> bool:
    """Whether the backend sees no accelerator."""
    return keras.distribution.list_devices()[0].startswith("cpu")


def is_float32(x: Any) -> bool:
    return keras.backend.standardize_dtype(x.dtype) == "float32"


def computes_in_float32_on_cpu(x: Any) -> bool:
    """Whether a tensor is float32 and on a CPU, where the operators of some backends are slow."""
    if not is_float32(x):
        return False
    return x.device.type == "cpu" if keras.backend.backend() == "torch" else has_only_cpus()


def is_gelu(activation: Any) -> bool:
    """Whether an activation is the exact GELU, as `keras.activations.get("gelu")` gives it."""
    return activation is keras.activations.gelu


def as_rows(x: Any) -> Any:
    """(…, C) → (M, C)."""
    return ops.reshape(x, (-1, x.shape[-1]))


def as_maps(rows: Any, like: Any) -> Any:
    """(M, units) → (…, units), the leading sizes those of `like`."""
    return ops.reshape(rows, (*ops.shape(like)[:-1], rows.shape[-1]))


def gelu_by_erf(x: Any) -> Any:
    """Return the exact GELU; TensorFlow's graph optimizer fuses this expression too."""
    return 0.5 * x * (1.0 + ops.erf(x * 0.5**0.5))


def keeps_size(kernel: Any, geometry: Geometry) -> bool:
    """Whether a convolution's maps keep their sides and are padded by the same on all: odd kernel, stride 1, same."""
    is_dense = geometry.is_plain and set(geometry.strides) == {1}
    return is_dense and geometry.padding == "same" and all(k % 2 for k in kernel.shape[:2])


def attend_heads_first(qkv: Any, causal: bool = False) -> Any:
    """Return attention computed by matrix products with the heads as first axis; the softmax at least in float32."""
    given = keras.backend.standardize_dtype(qkv.dtype)
    query, key, value = ops.unstack(ops.transpose(qkv, (2, 0, 3, 1, 4)))  # (B, heads, L, d) each
    scores = ops.matmul(query * query.shape[-1] ** -0.5, ops.swapaxes(key, 2, 3))
    scores = ops.cast(scores, at_least_float32(given))
    if causal:
        place = ops.arange(ops.shape(scores)[-1])
        scores = ops.where(place[:, None] >= place, scores, -math.inf)
    shares = ops.cast(ops.softmax(scores), given)
    return ops.transpose(ops.matmul(shares, value), (0, 2, 1, 3))
