"""MobileCLIP's convolutions with several branches in training that fold into one convolution for inference.

With fixed statistics a branch is linear, so the sum of the branches is one convolution: each kernel scaled by its norm,
zero-padded to the largest, and added. `folded()` computes it; a layer with `reparameterized=True` has only that one.
Sublayers are named after the checkpoints' modules. Every side is padded by k // 2 zeros at every stride, unlike Keras'
"same" at strides above 1.

Papers: RepVGG, arXiv:2101.03697, section 3.3; MobileOne, arXiv:2206.04040; RepLKNet, arXiv:2203.06717; FastViT,
arXiv:2303.14189.
"""

import math

import keras
import numpy as np
from keras import layers, ops

from clip.layers import PACKAGE
from convnext import BatchNormalization, Conv2D, DepthwiseConv2D, LayerScale, Normal

EPSILON = 1e-5
MOMENTUM = 0.9
CHANNELS_LAST = "channels_last"


class Branches(layers.Layer):
    """Base class: the shape of the equivalent convolution, and the two forms of the layer.

    Args:
        kernel_size: odd side of the kernel, or (height, width).
        strides: stride of every branch.
        filters: output channels of a dense convolution; None for a depthwise one.
        depth_multiplier: M, outputs per input channel of a depthwise convolution.
        reparameterized: one equivalent convolution, `reparam_conv`, instead of the branches.

    Input (B, H, W, C); output (B, ⌈H / strides⌉, ⌈W / strides⌉, filters or C·M).

    Raises:
        ValueError: an even kernel size.
    """

    def __init__(self, kernel_size, strides=1, filters=None, depth_multiplier=1, reparameterized=False, **kwargs):
        super().__init__(**kwargs)
        self.kernel_size = (kernel_size, kernel_size) if isinstance(kernel_size, int) else tuple(kernel_size)
        if not all(side % 2 for side in self.kernel_size):
            raise ValueError(f"kernel_size must be odd, so that all branches share a centre, got {kernel_size}.")
        self.strides = strides
        self.filters = filters
        self.depth_multiplier = depth_multiplier
        self.reparameterized = reparameterized

    @property
    def padding(self):
        """Zeros on each side: (above and below, left and right)."""
        return tuple(side // 2 for side in self.kernel_size)

    def build(self, input_shape):
        if self.reparameterized:
            self.reparam_conv = self.convolution(input_shape, self.kernel_size, use_bias=True, name="reparam_conv")
        else:
            self.build_branches(input_shape)

    def call(self, inputs, training=None):
        if self.reparameterized:
            return convolve(self.reparam_conv, self.subsampled(inputs) if self.kernel_size == (1, 1) else inputs)
        return self.call_branches(inputs, training)

    def folded(self):
        """Return (kernel, bias) of the equivalent convolution as float64 NumPy arrays.

        The kernel is (height, width, C, filters), or (height, width, C, M) if depthwise; the bias is (outputs,).
        """
        if self.reparameterized:
            return _to_float64(self.reparam_conv.kernel), _to_float64(self.reparam_conv.bias)
        return self.fold_branches()

    def convolution(self, input_shape, kernel_size, *, use_bias=False, name="conv"):
        """Build a convolution of this layer's kind and of a kernel size; a 1×1 one has no strides, see `subsampled`."""
        strides = 1 if kernel_size == (1, 1) else self.strides
        options = {
            "kernel_size": kernel_size,
            "strides": strides,
            "padding": "same" if strides == 1 else "valid",  # with strides, `convolve` pads
            "use_bias": use_bias,
            "data_format": CHANNELS_LAST,
            "dtype": self.dtype_policy,
            "name": name,
        }
        fan_in = kernel_size[0] * kernel_size[1] * (input_shape[-1] if self.filters else 1)
        initializer = Normal((3 * fan_in) ** -0.5)  # torch's default
        if self.filters:
            layer = Conv2D(self.filters, kernel_initializer=initializer, **options)
        else:
            options |= {"depth_multiplier": self.depth_multiplier, "depthwise_initializer": initializer}
            layer = DepthwiseConv2D(**options)
        layer.build((None, None, None, input_shape[-1]))  # Keras checks sides without `convolve`'s padding
        return layer

    def subsampled(self, inputs):
        """Return the positions that a strided 1×1 convolution reads. Torch 2.13 on a CPU writes out of bounds in the
        gradient of a strided 1×1 convolution of three channels."""
        return inputs if self.strides == 1 else inputs[:, :: self.strides, :: self.strides]

    def conv_norm(self, input_shape, kernel_size, name):
        with keras.name_scope(name):  # the branches' convolutions have one name, and their variables a path each
            return ConvNorm(self.convolution(input_shape, kernel_size), name=name, dtype=self.dtype_policy)

    def batch_norm(self, channels, name):
        layer = batch_norm(name, dtype=self.dtype_policy)
        layer.build((None, None, None, channels))
        return layer

    def output_channels(self, channels):
        return self.filters or channels * self.depth_multiplier

    def compute_output_shape(self, input_shape):
        batch, height, width, channels = input_shape
        sides = (None if side is None else -(-side // self.strides) for side in (height, width))
        return (batch, *sides, self.output_channels(channels))

    def get_config(self):
        own = ("kernel_size", "strides", "filters", "depth_multiplier", "reparameterized")
        return {**super().get_config(), **{key: getattr(self, key) for key in own}}


def batch_norm(name, **options):
    return BatchNormalization(momentum=MOMENTUM, epsilon=EPSILON, name=name, **options)


def convolve(conv, inputs):
    """Apply `conv` with k // 2 zeros on each side; one without strides pads by itself."""
    if max(conv.strides) > 1:
        above, left = (side // 2 for side in conv.kernel_size)
        inputs = ops.pad(inputs, ((0, 0), (above, above), (left, left), (0, 0)))
    return conv(inputs)


def _to_float64(variable):
    return ops.convert_to_numpy(ops.cast(variable, "float32")).astype(np.float64)


def _norm_affine(norm):
    """Return (scale, shift) of a BatchNorm in inference, float64 (C,) each."""
    scale = _to_float64(norm.gamma) / np.sqrt(_to_float64(norm.moving_variance) + norm.epsilon)
    return scale, _to_float64(norm.beta) - _to_float64(norm.moving_mean) * scale


def _zero_padded(kernel, kernel_size):
    """Return a kernel zero-padded on all sides to `kernel_size`."""
    margins = [((size - side) // 2,) * 2 for side, size in zip(kernel.shape, kernel_size, strict=False)]
    return np.pad(kernel, [*margins, (0, 0), (0, 0)])


class ConvNorm(layers.Layer):
    """A built convolution without bias and its BatchNorm: sublayers conv and bn."""

    def __init__(self, conv, **kwargs):
        super().__init__(**kwargs)
        self.conv = conv
        self.bn = batch_norm("bn", dtype=self.dtype_policy)
        outputs = conv.filters if isinstance(conv, layers.Conv2D) else math.prod(conv.kernel.shape[2:])
        self.bn.build((None, None, None, outputs))
        self.built = True

    def call(self, inputs, training=None):
        return self.bn(convolve(self.conv, inputs), training=training)

    def folded(self):
        kernel, (scale, shift) = _to_float64(self.conv.kernel), _norm_affine(self.bn)
        per_output = scale if isinstance(self.conv, layers.Conv2D) else scale.reshape(kernel.shape[2:])
        return kernel * per_output, shift


@keras.saving.register_keras_serializable(PACKAGE)
class MobileOneConv2D(Branches):
    """MobileOne's sum of a k×k convolution, a 1×1 convolution and the identity, each with a BatchNorm.

    Args:
        scale_branch: whether there is a 1×1 convolution beside the k×k one.

    The other arguments are those of `Branches`. Sublayers: conv_kxk, conv_scale (each conv, bn) and, where input and
    output have one shape, the BatchNorm identity.

    Reference: arXiv:2206.04040, section 3.2.
    """

    def __init__(self, kernel_size, strides=1, *, scale_branch=True, **kwargs):
        super().__init__(kernel_size, strides, **kwargs)
        self.scale_branch = scale_branch

    def build_branches(self, input_shape):
        channels = input_shape[-1]
        self.conv_kxk = self.conv_norm(input_shape, self.kernel_size, "conv_kxk")
        self.conv_scale = self.conv_norm(input_shape, (1, 1), "conv_scale") if self.scale_branch else None
        has_identity = self.strides == 1 and self.output_channels(channels) == channels
        self.identity = self.batch_norm(channels, "identity") if has_identity else None

    def call_branches(self, inputs, training):
        outputs = self.conv_kxk(inputs if self.kernel_size != (1, 1) else self.subsampled(inputs), training=training)
        if self.conv_scale is not None:
            outputs = outputs + self.conv_scale(self.subsampled(inputs), training=training)
        return outputs if self.identity is None else outputs + self.identity(inputs, training=training)

    def fold_branches(self):
        kernel, bias = self.conv_kxk.folded()
        if self.conv_scale is not None:
            small, shift = self.conv_scale.folded()
            kernel, bias = kernel + _zero_padded(small, self.kernel_size), bias + shift
        if self.identity is not None:
            scale, shift = _norm_affine(self.identity)
            kernel, bias = kernel + _zero_padded(self._identity_kernel(scale), self.kernel_size), bias + shift
        return kernel, bias

    def _identity_kernel(self, scale):
        """Return the 1×1 kernel that multiplies each channel by its `scale`."""
        return np.diag(scale)[None, None] if self.filters else scale[None, None, :, None]

    def get_config(self):
        return {**super().get_config(), "scale_branch": self.scale_branch}


@keras.saving.register_keras_serializable(PACKAGE)
class RepLargeKernelConv2D(Branches):
    """RepLKNet's sum of a large and a small convolution, each with a BatchNorm: sublayers large_conv and small_conv.

    Args:
        small_kernel: odd side of the small kernel.

    The other arguments are those of `Branches`.

    Reference: arXiv:2203.06717, section 3, guideline 3.
    """

    def __init__(self, kernel_size, strides=1, *, small_kernel=3, **kwargs):
        super().__init__(kernel_size, strides, **kwargs)
        self.small_kernel = small_kernel

    def build_branches(self, input_shape):
        self.large_conv = self.conv_norm(input_shape, self.kernel_size, "large_conv")
        self.small_conv = self.conv_norm(input_shape, (self.small_kernel,) * 2, "small_conv")

    def call_branches(self, inputs, training):
        return self.large_conv(inputs, training=training) + self.small_conv(inputs, training=training)

    def fold_branches(self):
        (large, bias), (small, shift) = self.large_conv.folded(), self.small_conv.folded()
        return large + _zero_padded(small, self.kernel_size), bias + shift

    def get_config(self):
        return {**super().get_config(), "small_kernel": self.small_kernel}


@keras.saving.register_keras_serializable(PACKAGE)
class RepMixer(Branches):
    """FastViT's token mixer: x + gamma · (mixer(x) − norm(x)), depthwise, of stride 1.

    Args:
        scale_branch: the scale branch of the mixer.
        init_value: initial value of gamma.

    The other arguments are those of `Branches`. Sublayers: norm, a BatchNorm; mixer, a `MobileOneConv2D`; layer_scale.

    Reference: arXiv:2303.14189, section 3.2, equations 2 to 4.
    """

    def __init__(self, kernel_size=3, *, scale_branch=True, init_value=1e-5, **kwargs):
        super().__init__(kernel_size, **kwargs)
        self.scale_branch = scale_branch
        self.init_value = init_value

    def build_branches(self, input_shape):
        self.norm = self.batch_norm(input_shape[-1], "norm")
        policy = {"dtype": self.dtype_policy}
        self.mixer = MobileOneConv2D(self.kernel_size, scale_branch=self.scale_branch, name="mixer", **policy)
        self.layer_scale = LayerScale(self.init_value, name="layer_scale", **policy)
        self.mixer.build(input_shape)
        self.layer_scale.build(input_shape)

    def call_branches(self, inputs, training):
        difference = self.mixer(inputs, training=training) - self.norm(inputs, training=training)
        return inputs + self.layer_scale(difference)

    def fold_branches(self):
        (kernel, bias), (scale, shift) = self.mixer.folded(), _norm_affine(self.norm)
        gamma = _to_float64(self.layer_scale.gamma)
        identity = (1 - gamma * scale)[None, None, :, None]  # x − gamma · norm(x), without the shift
        return kernel * gamma[:, None] + _zero_padded(identity, self.kernel_size), gamma * (bias - shift)

    def get_config(self):
        return {**super().get_config(), "scale_branch": self.scale_branch, "init_value": self.init_value}


@keras.saving.register_keras_serializable(PACKAGE)
class RepConditionalPosEnc(Branches):
    """Conditional positional encoding: x + pos_enc(x), a depthwise convolution with bias.

    The arguments are those of `Branches`.

    Reference: arXiv:2102.10882, section 3; arXiv:2303.14189, section 3.1.
    """

    def build_branches(self, input_shape):
        self.pos_enc = self.convolution(input_shape, self.kernel_size, use_bias=True, name="pos_enc")

    def call_branches(self, inputs, training):  # noqa: ARG002 (no norm)
        return inputs + self.pos_enc(inputs)

    def fold_branches(self):
        kernel = _to_float64(self.pos_enc.kernel)
        return kernel + _zero_padded(np.ones((1, 1, *kernel.shape[2:])), self.kernel_size), _to_float64(
            self.pos_enc.bias
        )
