"""The layers ConvNeXt needs beyond Keras' own: weights, config and one call of a kernel each.

What a layer computes is in `convnext.kernels.reference`, and how a CPU computes it faster in the other files there.
Serialised layers register under the package string `convnext_clip_zoo`, which never changes.
"""

import random
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from convnext import kernels
from convnext.kernels import at_least_float32

PACKAGE = "convnext_clip_zoo"


@keras.saving.register_keras_serializable(PACKAGE)
class Normal(keras.initializers.Initializer):
    """Normal distribution of mean 0, drawn by NumPy: the same values on every backend, no compilation per shape.

    Args:
        stddev: standard deviation. The papers' `trunc_normal_(std=0.02)` clips at ±2, a hundred deviations away, so it
            is this distribution; Keras' TruncatedNormal clips at two deviations.
        seed: int, or None to draw one from Python's generator, which `keras.utils.set_random_seed` seeds.
    """

    def __init__(self, stddev, seed=None):
        self.stddev = stddev
        self.seed = seed

    def __call__(self, shape, dtype=None):
        seed = random.getrandbits(64) if self.seed is None else self.seed
        values = np.random.default_rng(seed).standard_normal(shape, np.float32)
        return ops.convert_to_tensor(values * np.float32(self.stddev), dtype=dtype)

    def get_config(self):
        return {"stddev": self.stddev, "seed": self.seed}


@keras.saving.register_keras_serializable(PACKAGE)
class GRN(keras.layers.Layer):
    """Global Response Normalization: scales each channel by its response relative to the mean over channels.

    Computed in float32 under every policy, because the sum of squares over a map overflows float16. The gradient of the
    square root at an all-zero channel is 0, where the plain formula gives NaN; forward values are the paper's.

    Args:
        epsilon: added to the mean response over channels.

    Input and output: (B, H, W, C) in the compute dtype. Weights: gamma, beta (C,), initialised to 0.

    Reference: arXiv:2301.00808, section 3.2, algorithm 1.
    """

    def __init__(self, epsilon=1e-6, **kwargs):
        super().__init__(**kwargs)
        self.epsilon = epsilon

    def build(self, input_shape):
        channels = (input_shape[-1],)
        self.gamma = self.add_weight(shape=channels, initializer="zeros", name="gamma")
        self.beta = self.add_weight(shape=channels, initializer="zeros", name="beta")

    def call(self, inputs):
        return kernels.grn(inputs, self.gamma, self.beta, self.epsilon)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "epsilon": self.epsilon}


@keras.saving.register_keras_serializable(PACKAGE)
class LayerScale(keras.layers.Layer):
    """One learned factor per channel, initially small so that deep residual networks start near the identity.

    Args:
        init_value: initial value of every element of gamma.

    Input and output: (…, C). Weight: gamma (C,).

    Reference: arXiv:2103.17239, section 2.1.
    """

    def __init__(self, init_value=1e-6, **kwargs):
        super().__init__(**kwargs)
        self.init_value = init_value

    def build(self, input_shape):
        self.gamma = self.add_weight(
            shape=(input_shape[-1],), initializer=keras.initializers.Constant(self.init_value), name="gamma"
        )

    def call(self, inputs):
        return inputs * self.gamma

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "init_value": self.init_value}


@keras.saving.register_keras_serializable(PACKAGE)
class Dense(keras.layers.Dense):
    """Keras' Dense, computed by `kernels.affine`: (…, C) → (…, units). Same result, faster on CPUs."""

    def call(self, inputs):
        return kernels.affine(inputs, self.kernel, self.bias, self.activation)


@keras.saving.register_keras_serializable(PACKAGE)
class Conv2D(keras.layers.Conv2D):
    """Keras' convolution, computed by `kernels.conv2d`. Same result, faster on CPUs.

    Weights and config are Keras' own; the kernel is chosen per call and is not saved.

    Input (B, H, W, C); weights: kernel (k, k, C, filters), bias (filters,).
    """

    def call(self, inputs):
        return _convolved(self, kernels.conv2d, inputs)


@keras.saving.register_keras_serializable(PACKAGE)
class DepthwiseConv2D(keras.layers.DepthwiseConv2D):
    """Keras' depthwise convolution, computed by `kernels.depthwise_conv2d`. Same result, faster on CPUs.

    Weights and config are Keras' own; the kernel is chosen per call and is not saved.

    Input (B, H, W, C); weights: kernel (k, k, C, 1), bias (C,).
    """

    def call(self, inputs):
        return _convolved(self, kernels.depthwise_conv2d, inputs)


@keras.saving.register_keras_serializable(PACKAGE)
class LayerNormalization(keras.layers.LayerNormalization):
    """Keras' layer, with the same result and, on TensorFlow, correct derivatives of every order (see `_moments`)."""

    def call(self, inputs):
        is_last = self.axis in (-1, [-1], len(inputs.shape) - 1, [len(inputs.shape) - 1])
        if keras.backend.backend() != "tensorflow" or not is_last or self.rms_scaling:
            return super().call(inputs)
        dtype = at_least_float32(keras.backend.standardize_dtype(inputs.dtype))
        x = ops.cast(inputs, dtype)
        mean, variance = _moments(x, -1, keepdims=True)
        scale = ops.rsqrt(variance + self.epsilon)
        scale = scale if self.gamma is None else scale * ops.cast(self.gamma, dtype)
        offset = -mean * scale
        offset = offset if self.beta is None else offset + ops.cast(self.beta, dtype)
        return ops.cast(x * scale + offset, self.compute_dtype)


@keras.saving.register_keras_serializable(PACKAGE)
class BatchNormalization(keras.layers.BatchNormalization):
    """Keras' layer, with the same result and, on TensorFlow, correct derivatives of every order (see `_moments`)."""

    def call(self, inputs, training=None, mask=None):
        takes_moments = training and self.trainable and mask is None and not (self.synchronized or self.renorm)
        if keras.backend.backend() != "tensorflow" or not takes_moments:
            return super().call(inputs, training=training, mask=mask)
        dtype, axis = at_least_float32(keras.backend.standardize_dtype(inputs.dtype)), self.axis % len(inputs.shape)
        x = ops.cast(inputs, dtype)
        moments = _moments(x, [other for other in range(len(x.shape)) if other != axis])
        for moving, now in zip((self.moving_mean, self.moving_variance), moments, strict=True):
            moving.assign(ops.cast(moving, dtype) * self.momentum + now * (1.0 - self.momentum))
        gamma, beta = (None if value is None else ops.cast(value, dtype) for value in (self.gamma, self.beta))
        outputs = ops.batch_normalization(x, *moments, axis, offset=beta, scale=gamma, epsilon=self.epsilon)
        return ops.cast(outputs, self.compute_dtype)


def _moments(x: Any, axes: Any, keepdims: bool = False) -> tuple[Any, Any]:
    """Return (mean, variance), with correct derivatives of every order.

    `tf.nn.moments` treats the mean inside its variance as a constant, so its second derivatives are silently wrong.
    """
    mean, variance = ops.moments(x, axes, keepdims=keepdims)
    return mean, variance - ops.square(mean - ops.stop_gradient(mean))  # the term is 0, its second derivative is not


def _convolved(layer: Any, kernel: Callable[..., Any], inputs: Any) -> Any:
    geometry = kernels.Geometry(*(getattr(layer, name) for name in kernels.Geometry._fields))
    outputs = kernel(inputs, layer.kernel, layer.bias, geometry)
    return outputs if layer.activation is None else layer.activation(outputs)


def drop_path(rate: float, name: str) -> keras.layers.Layer:
    """Build a stochastic depth layer: drops whole samples of a residual branch, scales the others by 1/(1 − rate).

    Args:
        rate: probability in [0, 1) that a sample's branch is dropped in training.

    Reference: arXiv:1603.09382, equation 2.
    """
    return keras.layers.Dropout(rate, noise_shape=(None, 1, 1, 1), name=name)
