"""OpenAI's ResNet image tower: ResNet's bottlenecks under a stem of three convolutions and an attention pool.

Differs from ResNet v1.5 in three things: three 3×3 convolutions and a mean pool in place of the 7×7 convolution and the
max pool; no block has a stride, a mean pool before its last convolution and one on its shortcut halve the map; the last
map is pooled by attention, whose one query is the map's mean. Layers are named after the checkpoints' modules joined
with "_": `conv1`, `layer1_0_conv1`, `layer2_0_downsample_0`, `attnpool`.

Paper: arXiv:2103.00020, section 2.4.
"""

import keras
from keras import layers

from clip.layers import AttentionPool
from clip.variants import ResNet
from convnext import Conv2D, Functional, Normal

CHANNELS_LAST = "channels_last"
EPSILON = 1e-5
MOMENTUM = 0.9
EXPANSION = 4
SMALLEST_IMAGE = 32


def create_resnet_tower(
    resnet: ResNet, embed_dim: int, *, image_size: int = 224, name: str = "image_encoder"
) -> keras.Model:
    """A `keras.Model` from images to unnormalised embeddings.

    Args:
        resnet: `clip.variants.ResNet`: blocks of each stage, width W.
        embed_dim: D.
        image_size: side of the square images in pixels, at least 32.

    Returns:
        A model from float32 (B, H, H, 3), normalised, to (B, D).

    Raises:
        ValueError: images so small that the last map would be empty.
    """
    if image_size < SMALLEST_IMAGE:
        raise ValueError(f"image_size must be at least {SMALLEST_IMAGE} pixels, got {image_size}.")
    images = keras.Input((image_size, image_size, 3), name="images")
    x = stem(images, resnet.width)
    for stage, depth in enumerate(resnet.layers):
        for number in range(depth):
            halves = stage > 0 and number == 0
            x = residual(x, bottleneck, resnet.width * 2**stage, halves, f"layer{stage + 1}_{number}")
    x = AttentionPool(resnet.heads, embed_dim, name="attnpool")(x)  # (B, D)
    return Functional(images, x, name=name)


def stem(images, width):
    """(B, H, H, 3) → (B, H/4, H/4, W)."""
    x = layers.ZeroPadding2D(1, data_format=CHANNELS_LAST, name="conv1_pad")(images)  # "same" would pad one side more
    x = conv_norm(x, width // 2, 3, "conv1", "bn1", strides=2, padding="valid")
    x = relu(x, "act1")
    x = relu(conv_norm(x, width // 2, 3, "conv2", "bn2"), "act2")
    x = relu(conv_norm(x, width, 3, "conv3", "bn3"), "act3")
    return halve(x, "avgpool")


def residual(x, build_block, dim, halves, name):
    """(B, H, H, C) → (B, H, H, 4·dim), half as high and wide where it `halves`: a block and its shortcut."""
    shortcut = x
    if x.shape[-1] != EXPANSION * dim:
        shortcut = halve(x, f"{name}_downsample_pool") if halves else x
        shortcut = conv_norm(shortcut, EXPANSION * dim, 1, f"{name}_downsample_0", f"{name}_downsample_1")
    x = layers.Add(name=f"{name}_add")([build_block(x, dim, halves, name), shortcut])
    return relu(x, f"{name}_out")


def bottleneck(x, dim, halves, name):
    x = relu(conv_norm(x, dim, 1, f"{name}_conv1", f"{name}_bn1"), f"{name}_act1")
    x = relu(conv_norm(x, dim, 3, f"{name}_conv2", f"{name}_bn2"), f"{name}_act2")
    x = halve(x, f"{name}_avgpool") if halves else x
    return conv_norm(x, EXPANSION * dim, 1, f"{name}_conv3", f"{name}_bn3", gamma="zeros")


def conv_norm(x, dim, size, conv_name, norm_name, *, strides=1, padding="same", gamma="ones"):
    """A convolution without bias and its BatchNorm. A block whose last `gamma` is 0 starts as its shortcut."""
    x = Conv2D(
        dim,
        size,
        strides=strides,
        padding=padding,
        use_bias=False,
        kernel_initializer=Normal((3 * size * size * x.shape[-1]) ** -0.5),  # the deviation of torch's default
        data_format=CHANNELS_LAST,
        name=conv_name,
    )(x)
    return layers.BatchNormalization(momentum=MOMENTUM, epsilon=EPSILON, gamma_initializer=gamma, name=norm_name)(x)


def relu(x, name):
    return layers.Activation("relu", name=name)(x)


def halve(x, name):
    """(B, H, H, C) → (B, H/2, H/2, C), by the mean; an odd last row or column is dropped."""
    return layers.AveragePooling2D(2, data_format=CHANNELS_LAST, name=name)(x)
