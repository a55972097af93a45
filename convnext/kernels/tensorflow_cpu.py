"""Faster implementation for TensorFlow on a CPU: gradients of products, GELU.

For a kernel with fewer outputs than inputs, TensorFlow computes its gradient xᵀ · gradient slower than
(gradientᵀ · x)ᵀ, and its GELU gradient makes more passes over memory than needed. With explicit gradients a layer of
ConvNeXt-Tiny's first stage is 1.19× (product) and 1.10× (GELU) as fast; of the last stage, which has few rows and large
kernels, 0.93× and 1.02×. Measured by KERAS_BACKEND=tensorflow python tests/bench_layers.py. Other operations have no
faster implementation.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

from convnext.kernels import reference
from convnext.kernels.reference import attention, conv2d, depthwise_conv2d, grn
from convnext.kernels.shared import as_maps, as_rows, computes_in_float32_on_cpu, gelu_by_erf, is_gelu

__all__ = ["affine", "attention", "conv2d", "depthwise_conv2d", "grn"]


def affine(x: Any, kernel: Any, bias: Any, activation: Callable[[Any], Any] | None, training: bool | None) -> Any:
    """One product of two matrices for any rank of x. In float32 on a CPU: explicit gradients in training, else GELU by
    erf, which is faster than Keras' erfc."""
    rows = as_rows(x)
    is_faster = computes_in_float32_on_cpu(x)
    if training and is_faster:
        outputs = product(rows, kernel, bias)
        if is_gelu(activation):
            outputs = gelu(outputs)
        elif activation is not None:
            outputs = activation(outputs)
    elif is_faster and is_gelu(activation):
        outputs = gelu_by_erf(reference.affine(rows, kernel, bias))
    else:
        outputs = reference.affine(rows, kernel, bias, activation)
    return as_maps(outputs, x)


def product(x: Any, kernel: Any, bias: Any = None) -> Any:
    """Return x · kernel + bias, (M, K), (K, N), (N,) or None → (M, N); kernel and bias may be variables.

    It has gradients of every order.
    """
    tf = _tensorflow()
    kernel = tf.convert_to_tensor(kernel)
    outputs = _narrowing_product()(x, kernel) if kernel.shape[0] > kernel.shape[1] else tf.matmul(x, kernel)
    return outputs if bias is None else tf.nn.bias_add(outputs, tf.convert_to_tensor(bias))


def gelu(x: Any) -> Any:
    """Return x · Φ(x), Φ the standard normal distribution function. It has gradients of every order."""
    return _gelu()(x)


def _tensorflow() -> Any:
    import tensorflow as tf

    return tf


@functools.cache
def _narrowing_product() -> Any:
    tf = _tensorflow()

    @tf.custom_gradient
    def product(x: Any, kernel: Any) -> Any:
        def backward(gradient: Any) -> Any:
            kernel_gradient = tf.matmul(gradient, x, transpose_a=True)  # the narrower factor first
            return tf.matmul(gradient, kernel, transpose_b=True), tf.transpose(kernel_gradient)

        return tf.matmul(x, kernel), backward

    return product


@functools.cache
def _gelu() -> Any:
    tf = _tensorflow()

    @tf.custom_gradient
    def gelu(x: Any) -> Any:
        cdf = 0.5 + 0.5 * tf.math.erf(x * 0.5**0.5)  # Φ(x)

        def backward(gradient: Any) -> Any:
            density = tf.exp(tf.square(x) * -0.5 - 0.5 * math.log(2 * math.pi))
            return gradient * (cdf + x * density)

        return x * cdf, backward

    return gelu
