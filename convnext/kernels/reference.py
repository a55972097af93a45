"""What each kernel computes, in `keras.ops` alone and as the papers write it. Tests compare the faster kernels with it.

Arguments are tensors or variables of one dtype, the result has the dtype of x.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
from keras import ops

CHANNELS_LAST = "channels_last"


class Geometry(NamedTuple):
    """How a convolution's kernel moves over its maps; names and meaning are those of Keras' layers."""

    strides: Sequence[int] = (1, 1)
    padding: str = "valid"
    dilation_rate: Sequence[int] = (1, 1)
    data_format: str = CHANNELS_LAST

    @property
    def is_plain(self) -> bool:
        """Whether channels are last and nothing is dilated; no faster implementation computes other convolutions."""
        return self.data_format == CHANNELS_LAST and set(self.dilation_rate) == {1}


PLAIN = Geometry()


def affine(x: Any, kernel: Any, bias: Any = None, activation: Callable[[Any], Any] | None = None) -> Any:
    """Return φ(x W + b): x (…, C), kernel W (C, units), bias b (units,) or None → (…, units)."""
    outputs = ops.matmul(x, kernel)
    outputs = outputs if bias is None else ops.add(outputs, bias)
    return outputs if activation is None else activation(outputs)


def conv2d(x: Any, kernel: Any, bias: Any = None, geometry: Geometry = PLAIN) -> Any:
    """Return y[h, w, f] = Σ_ijc x[s·h + i, s·w + j, c] · kernel[i, j, c, f] + bias[f].

    x (B, H, W, C), kernel (k, k, C / groups, filters), bias (filters,) or None → (B, h, w, filters).
    """
    return _convolve(ops.conv, x, kernel, bias, geometry._replace(strides=list(geometry.strides)))


def depthwise_conv2d(x: Any, kernel: Any, bias: Any = None, geometry: Geometry = PLAIN) -> Any:
    """Return y[h, w, c·m + n] = Σ_ij x[s·h + i, s·w + j, c] · kernel[i, j, c, n] + bias[c·m + n].

    x (B, H, W, C), kernel (k, k, C, m), bias (C·m,) or None → (B, h, w, C·m).
    """
    return _convolve(ops.depthwise_conv, x, kernel, bias, geometry)


def _convolve(operator: Callable[..., Any], x: Any, kernel: Any, bias: Any, geometry: Geometry) -> Any:
    if x.shape[0] == 0:
        return _convolve(operator, with_a_row(x), kernel, bias, geometry)[:0]
    outputs = operator(x, kernel, **geometry._asdict())
    if bias is None:
        return outputs
    return ops.add(outputs, bias if geometry.data_format == CHANNELS_LAST else ops.reshape(bias, (-1, 1, 1)))


def with_a_row(x: Any) -> Any:
    """Return x, (B, …), with one sample of zeros if its batch is empty. In a graph B may be known only when it runs.

    TensorFlow's convolution on a CPU returns an empty batch in the shape of x. The sample is concatenated, because
    TensorFlow takes a padding of the batch axis for one of the feature maps.
    """
    batch, *sides = ops.shape(x)
    missing = int(batch == 0) if isinstance(batch, int) else ops.cast(ops.equal(batch, 0), "int32")
    return ops.concatenate([x, ops.zeros((missing, *sides), keras.backend.standardize_dtype(x.dtype))])


def attention(qkv: Any, causal: bool = False) -> Any:
    """Return softmax(q kᵀ / √d) v per head: qkv (B, L, 3, heads, d) → (B, L, heads, d).

    With `causal` a token attends to itself and the tokens before it. The backend's own operator computes it, fused on
    accelerators.

    Reference: arXiv:1706.03762, equation 1.
    """
    query, key, value = ops.unstack(qkv, axis=2)  # the gradient of a slice would fill a whole array
    return ops.dot_product_attention(query, key, value, is_causal=causal)


def grn(x: Any, gamma: Any, beta: Any, epsilon: float = 1e-6) -> Any:
    """Return γ · x · N + β + x, N = ‖x‖ / (mean over channels of ‖x‖ + ε), ‖x‖ a channel's norm over its map.

    x (B, H, W, C), gamma and beta (C,) → (B, H, W, C). Computed in float32 for half precisions, because the sum of
    squares over a map overflows float16.

    Reference: arXiv:2301.00808, section 3.2, algorithm 1.
    """
    given = keras.backend.standardize_dtype(x.dtype)
    x, gamma, beta = (ops.cast(value, at_least_float32(given)) for value in (x, gamma, beta))
    norm = safe_sqrt(ops.sum(ops.square(x), axis=(1, 2), keepdims=True))  # (B, 1, 1, C)
    return ops.cast(x * (1.0 + gamma * share_of_mean(norm, epsilon)) + beta, given)


def share_of_mean(norm: Any, epsilon: float) -> Any:
    """Return each channel's norm as a share of the mean over the channels."""
    return norm / (ops.mean(norm, axis=-1, keepdims=True) + epsilon)


def safe_sqrt(x: Any) -> Any:
    """Return √x for x ≥ 0, with gradient 0 at 0, where that of √ is infinite and 0 · ∞ is NaN."""
    positive = x > 0
    return ops.where(positive, ops.sqrt(ops.where(positive, x, 1.0)), 0.0)


def at_least_float32(dtype: str) -> str:
    """Return the dtype for statistics and logits: float32 for half precisions, else `dtype`."""
    return "float32" if dtype in ("float16", "bfloat16") else dtype
