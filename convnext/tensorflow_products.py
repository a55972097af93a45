"""Products of matrices and the exact GELU with gradients written out, for training on TensorFlow's CPU.

For the gradient of a kernel that narrows, TensorFlow takes longer to multiply xᵀ · gradient than (gradientᵀ · x)ᵀ, and
that of the GELU makes more passes over memory than it needs. Written out, the gradients of a layer of ConvNeXt-Tiny's
first stage are 1.19 and 1.10 times as fast; of the last, which has few rows and large kernels, 0.93 and 1.02 times, as
KERAS_BACKEND=tensorflow python tests/bench_layers.py shows.
"""

import functools
import math


def affine(x, kernel, bias=None):
    """x · kernel + bias, (M, K), (K, N), (N,) or None → (M, N): a tensor, and tensors or variables, of TensorFlow.

    It has gradients of every order.
    """
    tf = _tensorflow()
    kernel = tf.convert_to_tensor(kernel)
    outputs = _narrowing()(x, kernel) if kernel.shape[0] > kernel.shape[1] else tf.matmul(x, kernel)
    return outputs if bias is None else tf.nn.bias_add(outputs, tf.convert_to_tensor(bias))


def gelu(x):
    """x · Φ(x), Φ the normal distribution's, of a TensorFlow tensor. It has gradients of every order."""
    return _gelu()(x)


def _tensorflow():
    import tensorflow as tf

    return tf


@functools.cache
def _narrowing():
    tf = _tensorflow()

    @tf.custom_gradient
    def product(x, kernel):
        def backward(gradient):
            of_kernel = tf.matmul(gradient, x, transpose_a=True)  # the narrower one first
            return tf.matmul(gradient, kernel, transpose_b=True), tf.transpose(of_kernel)

        return tf.matmul(x, kernel), backward

    return product


@functools.cache
def _gelu():
    tf = _tensorflow()

    @tf.custom_gradient
    def gelu(x):
        below = 0.5 + 0.5 * tf.math.erf(x * 0.5**0.5)  # Φ(x)

        def backward(gradient):
            density = tf.exp(tf.square(x) * -0.5 - 0.5 * math.log(2 * math.pi))
            return gradient * (below + x * density)

        return x * below, backward

    return gelu
