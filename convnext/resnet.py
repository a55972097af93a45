"""ResNet v1.5, ConvNeXt's baseline, as in torchvision and timm.

Differs from `keras.applications.ResNet50` so that published PyTorch weights fit: convolutions have no bias, the stride
is in the 3×3 convolution, epsilon is 1e-5, and strided kernels pad both sides equally. Layers are named after
torchvision's modules joined with "_": `layer1_0_conv1`, `layer2_0_downsample_0`.

Paper: "Deep Residual Learning for Image Recognition", arXiv:1512.03385.
"""

from collections.abc import Callable

import keras
from keras import layers

from convnext.functional import Functional
from convnext.kernels import CHANNELS_LAST
from convnext.layers import BatchNormalization, Conv2D, Normal
from convnext.model import (
    INPUT,
    Shape,
    check_input_shape,
    check_options,
    classifier,
    pool,
    prefix_of,
    resolve_variant,
)
from convnext.variants import EXPANSION, ResNetVariant

MOMENTUM = 0.9


def create_resnet(
    variant: str | int | ResNetVariant = "50",
    num_classes: int = 1000,
    input_shape: Shape = (224, 224, 3),
    *,
    include_top: bool = True,
    pooling: str | None = None,
    classifier_activation: str | Callable | None = "softmax",
    name: str | None = None,
) -> keras.Model:
    """Build ResNet v1.5 as a functional `keras.Model`.

    Args:
        variant: "18", "34", "50", "101", "152" (also as an int), or a `ResNetVariant`.
        num_classes: K, outputs of the classifier.
        input_shape: (H, W, C) of the images, float32, channels_last, already normalised. H and W may be None.
        include_top: end in the classifier; otherwise in the last feature map, pooled as `pooling` says.
        pooling: None, "avg" or "max"; without the top: pooled over the map, (B, C).
        classifier_activation: activation of the classifier; None gives logits.
        name: as in `create_convnext_v1`; "resnet50" for the row "50".

    Returns:
        A `keras.Model` from (B, H, W, C) to (B, K), (B, C) or (B, H/32, W/32, C) float32.

    Raises:
        ValueError: an unknown variant or option.

    Reference: arXiv:1512.03385, table 1.
    """
    row, label = resolve_variant("resnet", str(variant) if isinstance(variant, int) else variant)
    options = {"include_top": include_top, "pooling": pooling, "classifier_activation": classifier_activation}
    check_options(num_classes, options)
    check_input_shape(input_shape)
    prefix = prefix_of(name)
    images = keras.Input(input_shape, name=f"{prefix}{INPUT}")
    x = stem(images, row, prefix)
    build_block = {"basic": _basic_block, "bottleneck": _bottleneck_block}[row.block]
    for stage, (depth, dim) in enumerate(zip(row.depths, row.dims, strict=True)):
        for number in range(depth):
            stride = 2 if stage and not number else 1
            name_of_block = f"{prefix}layer{stage + 1}_{number}"
            x = residual(x, build_block, dim, EXPANSION[row.block] * dim, stride, row, name_of_block)
    if include_top or pooling:
        x = pool(x, pooling, prefix)
    outputs = classifier(x, num_classes, classifier_activation, prefix) if include_top else x
    return Functional(images, outputs, name=name or f"resnet{label}")


def stem(images, row, prefix):
    """(B, H, W, 3) → (B, H/4, W/4, stem_dim): 7×7 convolution of stride 2, max pooling of stride 2."""
    x = conv_norm(images, row.stem_dim, row.patch_size, 2, row, f"{prefix}conv1", f"{prefix}bn1")
    x = layers.Activation(row.activation, name=f"{prefix}act1")(x)
    # after a ReLU, 0 pads like −∞
    x = layers.ZeroPadding2D(1, data_format=CHANNELS_LAST, name=f"{prefix}maxpool_pad")(x)
    return layers.MaxPooling2D(3, strides=2, data_format=CHANNELS_LAST, name=f"{prefix}maxpool")(x)


def residual(x, build_block, dim, out_dim, stride, row, name):
    """(B, H, W, C) → (B, H/stride, W/stride, out_dim): a block and its shortcut, projected where shapes differ."""
    shortcut = x
    if stride > 1 or x.shape[-1] != out_dim:
        shortcut = conv_norm(x, out_dim, 1, stride, row, f"{name}_downsample_0", f"{name}_downsample_1")
    x = layers.Add(name=f"{name}_add")([build_block(x, dim, stride, row, name), shortcut])
    return layers.Activation(row.activation, name=f"{name}_out")(x)


def _basic_block(x, dim, stride, row, name):
    x = conv_norm(x, dim, 3, stride, row, f"{name}_conv1", f"{name}_bn1")
    x = layers.Activation(row.activation, name=f"{name}_act1")(x)
    return conv_norm(x, dim, 3, 1, row, f"{name}_conv2", f"{name}_bn2")


def _bottleneck_block(x, dim, stride, row, name):
    x = conv_norm(x, dim, 1, 1, row, f"{name}_conv1", f"{name}_bn1")
    x = layers.Activation(row.activation, name=f"{name}_act1")(x)
    x = conv_norm(x, dim, 3, stride, row, f"{name}_conv2", f"{name}_bn2")
    x = layers.Activation(row.activation, name=f"{name}_act2")(x)
    return conv_norm(x, EXPANSION["bottleneck"] * dim, 1, 1, row, f"{name}_conv3", f"{name}_bn3")


def conv_norm(x, dim, size, stride, row, conv_name, norm_name):
    """A convolution without bias and its BatchNorm, padded by size // 2 on each side, unlike "same" with strides."""
    if stride > 1 and size > 1:
        x = layers.ZeroPadding2D(size // 2, data_format=CHANNELS_LAST, name=f"{conv_name}_pad")(x)
    x = Conv2D(
        dim,
        size,
        strides=stride,
        padding="valid" if stride > 1 else "same",
        use_bias=False,
        kernel_initializer=Normal((2 / (size * size * dim)) ** 0.5),  # He et al., by fan-out
        data_format=CHANNELS_LAST,
        name=conv_name,
    )(x)
    return BatchNormalization(momentum=MOMENTUM, epsilon=row.epsilon, name=norm_name)(x)
