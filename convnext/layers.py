"""The layers ConvNeXt needs beyond Keras' own: GRN, LayerScale, faster products and convolutions, drop path.

Serialised layers register under the package string `convnext_clip_zoo`, which never changes.
"""

import functools
import random

import keras
import numpy as np
from keras import ops

from convnext import tensorflow_products
from convnext.torch_products import affine, is_eager_cpu

PACKAGE = "convnext_clip_zoo"
CHANNELS_LAST = "channels_last"


def at_least_float32(dtype):
    """Return the dtype for statistics and logits: float32 for half precisions, else `dtype`."""
    return "float32" if dtype in ("float16", "bfloat16") else dtype


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
        dtype = at_least_float32(self.compute_dtype)
        x, gamma, beta = (ops.cast(value, dtype) for value in (inputs, self.gamma, self.beta))
        response = safe_sqrt(sum_of_squares(x))  # (B, 1, 1, C)
        share = response / (ops.mean(response, axis=-1, keepdims=True) + self.epsilon)
        return ops.cast(scale_and_shift(x, 1.0 + gamma * share, beta), self.compute_dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "epsilon": self.epsilon}


def sum_of_squares(x):
    """Return each channel's sum of squares over its map, (B, H, W, C) → (B, 1, 1, C)."""
    if _is_backend("torch") and is_eager_cpu(x) and not x.requires_grad:  # one image at a time fits the cache
        return ops.stack([ops.sum(ops.square(image), axis=(0, 1), keepdims=True) for image in x])
    return ops.sum(ops.square(x), axis=(1, 2), keepdims=True)


def scale_and_shift(x, scale, shift):
    """Return x · scale + shift; on torch in one pass over x."""
    if _is_backend("torch"):
        import torch

        return torch.addcmul(shift, x, scale)
    return x * scale + shift


def safe_sqrt(x):
    """Return √x for x ≥ 0, with gradient 0 at 0, where that of √ is infinite and 0 · ∞ is NaN."""
    positive = x > 0
    return ops.where(positive, ops.sqrt(ops.where(positive, x, 1.0)), 0.0)


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
    """Keras' Dense as one product of two matrices for any input rank: (…, C) → (…, units). Same result, faster.

    On JAX's CPU the gradients of a product over (B, H, W, C) take up to twice as long as over the (B·H·W, C) view
    (tests/bench_layers.py). Keras computes the exact GELU by erfc, which is slower than erf there and on TensorFlow's
    CPU. Training on TensorFlow's CPU uses `tensorflow_products`, torch uses `torch_products`.
    """

    def call(self, inputs, training=None):
        if _is_backend("torch"):
            return self._call_torch(inputs)
        flat = ops.reshape(inputs, (-1, inputs.shape[-1]))
        is_float32 = self.compute_dtype == "float32"
        if training and is_float32 and _is_cpu_backend("tensorflow"):
            outputs = self._call_explicit_gradients(flat)
        elif is_float32 and self._ends_in_gelu() and (_is_backend("jax") or _is_cpu_backend("tensorflow")):
            outputs = self._call_erf(flat)
        else:
            outputs = super().call(flat, training=training)
        return ops.reshape(outputs, (*ops.shape(inputs)[:-1], self.units))

    def _ends_in_gelu(self):
        return self.activation is keras.activations.gelu

    def _call_torch(self, inputs):
        flat = reshape(inputs, (-1, inputs.shape[-1]))
        bias = ops.convert_to_tensor(self.bias) if self.use_bias else None
        outputs = affine(flat, ops.convert_to_tensor(self.kernel), bias, gelu=self._ends_in_gelu())
        outputs = outputs if self._ends_in_gelu() or self.activation is None else self.activation(outputs)
        return reshape(outputs, (*inputs.shape[:-1], self.units))

    def _call_erf(self, flat):
        x = ops.matmul(flat, self.kernel)
        x = ops.add(x, self.bias) if self.use_bias else x
        return 0.5 * x * (1.0 + ops.erf(x * 0.5**0.5))  # TensorFlow's graph optimizer fuses this form too

    def _call_explicit_gradients(self, flat):
        x = tensorflow_products.affine(flat, self.kernel, self.bias)
        if self._ends_in_gelu():
            return tensorflow_products.gelu(x)
        return x if self.activation is None else self.activation(x)


def _is_backend(backend):
    return keras.backend.backend() == backend


def _is_cpu_backend(*backends):
    """Whether the backend is one of these and runs on a CPU."""
    return keras.backend.backend() in backends and _has_only_cpus()


def _has_only_cpus():
    return keras.distribution.list_devices()[0].startswith("cpu")


@keras.saving.register_keras_serializable(PACKAGE)
class Conv2D(keras.layers.Conv2D):
    """Keras' convolution, computed as a matrix product on CPUs where patches do not overlap. Same result, faster.

    That is a kernel of stride equal to its size, or 1 × 1 at any stride. The backend's own operator takes up to 3 times
    as long in XLA on a CPU (gradients 5 times), up to twice as long in torch, and as long in TensorFlow with slower
    gradients (tests/bench_layers.py). For other kernels torch reads the same memory as a channels_first view, which
    saves two copies of the activations, and the kernel is stored in torch's order. Weights, results and config are
    Keras' own; the choice is made per call and is not saved.

    Input (B, H, W, C); weights: kernel (k, k, C, filters), bias (filters,).
    """

    def build(self, input_shape):
        super().build(input_shape)
        if _is_backend("torch") and self._is_plain() and not self._has_separate_patches():
            store_in_torch_order(next(weight for weight in self.weights if weight.name == "kernel"), TORCH_ORDER)

    def call(self, inputs):
        if not self._is_plain():
            return super().call(inputs)
        if self._has_separate_patches() and computes_in_float32_on_cpu(inputs):
            return self._call_product(inputs)
        if _is_backend("torch"):
            return torch_convolution(self, inputs, TORCH_ORDER, self.groups)
        return super().call(inputs)

    def _is_plain(self):
        pads_evenly = self.padding == "valid" or self.kernel_size == (1, 1) or _keeps_size(self)
        return pads_evenly and _is_linear(self)

    def _has_separate_patches(self):
        no_overlap = self.padding == "valid" and self.kernel_size == self.strides
        return self.groups == 1 and (no_overlap or self.kernel_size == (1, 1))

    def _call_product(self, inputs):
        rows, sides = patches_as_rows(inputs, self.kernel_size, self.strides)
        kernel = reshape(ops.convert_to_tensor(self.kernel), (-1, self.filters))
        bias = ops.convert_to_tensor(self.bias) if self.use_bias else None
        if _is_backend("torch"):
            outputs = affine(rows, kernel, bias)
        else:
            outputs = ops.matmul(rows, kernel)
            outputs = outputs if bias is None else outputs + bias
        return reshape(outputs, (-1, *sides, self.filters))


def patches_as_rows(x, kernel_size, strides):
    """(B, H, W, C) → (B·h·w, k·k·C) patches of a kernel whose stride is its size, or of 1 × 1; also return (h, w).

    Rows and columns past the last whole patch are dropped.
    """
    if kernel_size == (1, 1) and strides != (1, 1):
        x = x[:, :: strides[0], :: strides[1]]
    (kh, kw), (height, width, channels) = kernel_size, ops.shape(x)[1:]
    h, w = height // kh, width // kw
    if kernel_size != (1, 1):
        x = reshape(x[:, : h * kh, : w * kw], (-1, h, kh, w, kw, channels))
        x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
    return reshape(x, (-1, kh * kw * channels)), (h, w)


def reshape(x, shape):
    """`ops.reshape`; on torch the tensor's method, which skips Keras' search for symbolic dimensions."""
    return x.reshape(shape) if _is_backend("torch") else ops.reshape(x, shape)


def computes_in_float32_on_cpu(x):
    """Whether a tensor is float32 and on a CPU, where the operators of some backends are slow."""
    if keras.backend.standardize_dtype(x.dtype) != "float32":
        return False
    return x.device.type == "cpu" if _is_backend("torch") else _has_only_cpus()


def _keeps_size(layer):
    return layer.padding == "same" and set(layer.strides) == {1} and all(k % 2 for k in layer.kernel_size)


def _is_linear(layer):
    is_linear = layer.activation in (None, keras.activations.linear)
    return is_linear and set(layer.dilation_rate) == {1} and layer.data_format == CHANNELS_LAST


TORCH_ORDER = (3, 2, 0, 1)  # permutation of (k, k, C, filters) to torch's (filters, C, k, k)


def store_in_torch_order(variable, order):
    """Store a kernel in the memory order of torch's convolution, which would otherwise copy it at every call."""
    import torch

    value = variable.value
    if isinstance(value, torch.Tensor) and value.device.type != "meta":
        inverse = sorted(range(len(order)), key=order.__getitem__)
        value.data = value.data.permute(order).contiguous(memory_format=torch.channels_last).permute(inverse)


def torch_convolution(layer, inputs, order, groups):
    """Return a plain convolution layer's output by torch's operator on a channels_first view, without copies.

    Args:
        order: permutation of the kernel's axes to torch's (filters, C / groups, k, k).
    """
    import torch

    kernel = ops.cast(layer.kernel, layer.compute_dtype).permute(order)
    bias = ops.cast(layer.bias, layer.compute_dtype) if layer.use_bias else None
    padding = tuple(k // 2 for k in layer.kernel_size) if layer.padding == "same" else (0, 0)
    view = inputs.permute(0, 3, 1, 2)  # memory stays channels_last
    outputs = torch.nn.functional.conv2d(view, kernel, bias, layer.strides, padding, groups=groups)
    return outputs.permute(0, 2, 3, 1)


@keras.saving.register_keras_serializable(PACKAGE)
class DepthwiseConv2D(keras.layers.DepthwiseConv2D):
    """Keras' depthwise convolution, in the formulation that is fastest on the backend and device. Same result.

    TensorFlow, and JAX on an accelerator, run the backend's own operator. JAX on a CPU runs shifted multiply–adds,
    which XLA fuses into one loop; its own operator takes 10 to 40 times as long. Torch reads the same memory as a
    channels_first view, which saves two copies of the activations. Weights, results and config are Keras' own. The
    choice is made per call and is not saved.

    Input (B, H, W, C); weights: kernel (k, k, C, 1), bias (C,).
    """

    def call(self, inputs):
        if self._is_plain() and _is_cpu_backend("jax") and all(isinstance(n, int) for n in inputs.shape[1:3]):
            kernel = ops.cast(self.kernel, self.compute_dtype)[..., 0]
            kernel = kernel[effective_taps(kernel.shape, inputs.shape)]
            outputs = _jax_shifted_depthwise()(inputs, kernel)
            return outputs + ops.cast(self.bias, self.compute_dtype) if self.use_bias else outputs
        if self._is_plain() and _is_backend("torch"):
            return torch_convolution(self, inputs, (2, 3, 0, 1), groups=inputs.shape[-1])
        return super().call(inputs)

    def _is_plain(self):
        return _keeps_size(self) and self.depth_multiplier == 1 and _is_linear(self)


RUN = 14  # columns summed in one expression of the kernel's gradient; more compile longer without a gain


def effective_taps(kernel_shape, map_shape):
    """Return the slices of rows and columns of an odd kernel that reach beyond padding on a map (B, H, W, C).

    On a 2 × 2 map they are the middle three of seven, and the map is padded to 4 × 4 instead of 8 × 8.
    """
    sides = zip(kernel_shape[:2], map_shape[1:3], strict=True)
    return tuple(slice(max(0, k // 2 - size + 1), min(k, k // 2 + size)) for k, size in sides)


@functools.cache
def _jax_shifted_depthwise():
    """Return (x (B, H, W, C), kernel (k, k, C)) → (B, H, W, C), stride 1, same padding, compiled once per shape.

    The gradient is explicit because XLA's own, through 49 overlapping slices, is 10 to 30 times slower. The kernel's
    gradient is a sum over positions, done in two fast steps instead of one slow reduction: runs of columns in one
    expression, which XLA vectorises over the channels, then a product with ones.
    """
    import jax
    from jax import lax
    from jax import numpy as jnp

    def taps(x, kernel):
        (kh, kw), (height, width) = kernel.shape[:2], x.shape[1:3]
        padded = pad(x, kernel)
        total = jnp.zeros((), jnp.promote_types(x.dtype, jnp.float32))  # half precisions accumulate in float32
        for i in range(kh):
            for j in range(kw):
                shifted = padded[:, i : i + height, j : j + width]
                total = total + shifted.astype(total.dtype) * kernel[i, j].astype(total.dtype)
        return total.astype(x.dtype)

    def unfused(x, kernel):
        # If XLA fused the taps into the reductions of the next norm, they would run unvectorised, 9 times slower. It
        # does not fuse out of a loop of unknown length. This one runs once, or twice if the kernel holds NaN, which
        # changes nothing.
        turns = jnp.where(jnp.isnan(kernel[0, 0, 0]), 2, 1)
        return lax.fori_loop(0, turns, lambda *_: taps(x, kernel), jnp.zeros_like(x))

    def pad(x, kernel):
        kh, kw = kernel.shape[:2]
        return jnp.pad(x, ((0, 0), (kh // 2, kh // 2), (kw // 2, kw // 2), (0, 0)))

    def kernel_gradient(x, kernel, gradient):
        (kh, kw), (height, width, channels) = kernel.shape[:2], x.shape[1:]
        runs = -(-width // RUN)
        run = -(-width // runs)  # 16 columns are two runs of 8; runs of 14 would pad them to 28
        missing = ((0, 0), (0, 0), (0, runs * run - width), (0, 0))
        padded, gradient = jnp.pad(pad(x, kernel), missing), jnp.pad(gradient, missing)
        wide = jnp.promote_types(x.dtype, jnp.float32)

        def every(values, start):  # columns start, start + run, …: (B, H, runs, C)
            return lax.slice_in_dim(values, start, start + (runs - 1) * run + 1, run, axis=2).astype(wide)

        def row(i):
            rows = lax.dynamic_slice_in_dim(padded, i, height, axis=1)
            sums = [sum(every(rows, j + k) * every(gradient, k) for k in range(run)) for j in range(kw)]
            sums = jnp.stack(sums, axis=3).reshape(-1, kw * channels)
            return (jnp.ones(len(sums), wide) @ sums).reshape(kw, channels)

        return lax.map(row, jnp.arange(kh)).astype(kernel.dtype)

    @jax.custom_vjp
    def depthwise(x, kernel):
        return unfused(x, kernel)

    def forward(x, kernel):
        return depthwise(x, kernel), (x, kernel)

    def backward(saved, gradient):
        x, kernel = saved
        return depthwise(gradient, kernel[::-1, ::-1]), kernel_gradient(x, kernel, gradient)

    depthwise.defvjp(forward, backward)
    return jax.jit(depthwise)


def drop_path(rate: float, name: str) -> keras.layers.Layer:
    """Build a stochastic depth layer: drops whole samples of a residual branch, scales the others by 1/(1 − rate).

    Args:
        rate: probability in [0, 1) that a sample's branch is dropped in training.

    Reference: arXiv:1603.09382, equation 2.
    """
    return keras.layers.Dropout(rate, noise_shape=(None, 1, 1, 1), name=name)
