"""Parts of the faster implementations that several backends share, and the checks that decide where one applies."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
    return reshape(x, (-1, x.shape[-1]))


def as_maps(rows: Any, like: Any) -> Any:
    """(M, units) → (…, units), the leading sizes those of `like`."""
    return ops.reshape(rows, (*ops.shape(like)[:-1], rows.shape[-1]))


def gelu_by_erf(x: Any) -> Any:
    """Return the exact GELU; TensorFlow's graph optimizer fuses this expression too."""
    return 0.5 * x * (1.0 + ops.erf(x * 0.5**0.5))


def reshape(x: Any, shape: Sequence[Any]) -> Any:
    """`ops.reshape`; on torch the tensor's method, which skips Keras' search for symbolic dimensions."""
    return x.reshape(shape) if keras.backend.backend() == "torch" else ops.reshape(x, shape)


def has_separate_patches(kernel: Any, geometry: Geometry) -> bool:
    """Whether a convolution reads each position at most once: its stride is its size, or it is 1 × 1."""
    size = tuple(kernel.shape[:2])
    is_split = geometry.padding == "valid" and size == tuple(geometry.strides)
    return geometry.is_plain and (size == (1, 1) or is_split)


def keeps_size(kernel: Any, geometry: Geometry) -> bool:
    """Whether a convolution's maps keep their sides and are padded by the same on all: odd kernel, stride 1, same."""
    is_dense = geometry.is_plain and set(geometry.strides) == {1}
    return is_dense and geometry.padding == "same" and all(k % 2 for k in kernel.shape[:2])


def is_product_of_patches(x: Any, kernel: Any, geometry: Geometry) -> bool:
    """Whether a convolution is one matrix product: of separate patches, in one group, in float32 on a CPU."""
    is_whole = x.shape[-1] == kernel.shape[2]
    return is_whole and has_separate_patches(kernel, geometry) and computes_in_float32_on_cpu(x)


def patches_as_rows(x: Any, kernel_size: Sequence[int], strides: Sequence[int]) -> tuple[Any, tuple[Any, Any]]:
    """(B, H, W, C) → (B·h·w, k·k·C) patches of a kernel whose stride is its size, or of 1 × 1; also return (h, w).

    Rows and columns past the last whole patch are dropped.
    """
    if tuple(kernel_size) == (1, 1) and tuple(strides) != (1, 1):
        x = x[:, :: strides[0], :: strides[1]]
    (kh, kw), (height, width, channels) = kernel_size, ops.shape(x)[1:]
    h, w = height // kh, width // kw
    if tuple(kernel_size) != (1, 1):
        x = reshape(x[:, : h * kh, : w * kw], (-1, h, kh, w, kw, channels))
        x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
    return reshape(x, (-1, kh * kw * channels)), (h, w)


def convolve_patches(x: Any, kernel: Any, bias: Any, geometry: Geometry) -> Any:
    """Return a convolution of patches that do not overlap, computed as one matrix product.

    On a CPU XLA's own operator takes up to 3 times as long, and its gradients 5 times; TensorFlow's own operator takes
    as long, and its gradients up to 4.4 times as long.
    """
    filters = kernel.shape[-1]
    rows, sides = patches_as_rows(x, kernel.shape[:2], geometry.strides)
    outputs = ops.matmul(rows, ops.reshape(kernel, (-1, filters)))
    outputs = outputs if bias is None else outputs + ops.convert_to_tensor(bias)
    return ops.reshape(outputs, (-1, *sides, filters))


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
