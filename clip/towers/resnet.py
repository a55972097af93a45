"""OpenAI's ResNet image tower: ResNet's bottlenecks between a stem of three convolutions and an attention pool.

Differs from ResNet v1.5 in three things: the stem is three 3×3 convolutions and a mean pool instead of a 7×7
convolution and a max pool; blocks have no strided convolution but mean pools, one before the last convolution and one
on the shortcut; the last map is pooled by attention with the map's mean as its one query. Layers are named after the
checkpoints' modules joined with "_": `conv1`, `layer1_0_conv1`, `layer2_0_downsample_0`, `attnpool`.

Paper: arXiv:2103.00020, section 2.4.
"""

from dataclasses import dataclass

import convnext
from clip.towers.lazy import keras, layers, parts
from clip.towers.registry import DEPTH, SIZE, Tower, in_scope_of_name, register_tower

CHANNELS_LAST = "channels_last"
EPSILON = 1e-5
MOMENTUM = 0.9
EXPANSION = 4
SMALLEST_IMAGE = 32


@dataclass(frozen=True)
class ResNet:
    """Config of OpenAI's ResNet.

    Args:
        layers: blocks of each of the four stages.
        width: W, channels after the stem; the last stage has 32 W. Attention heads of the pool are 64 wide.
    """

    layers: tuple[int, ...]
    width: int

    def __post_init__(self):
        if len(self.layers) != 4 or min(self.layers) < 1 or self.width < 2 or self.width % 2:
            raise ValueError(f"A ResNet row needs four positive layers and an even width. Got {self}.")

    @property
    def features(self):
        """Channels that the attention pool reads."""
        return 32 * self.width

    @property
    def heads(self):
        """Heads of the attention pool."""
        return self.features // 64


@in_scope_of_name
def create_resnet_tower(
    resnet: ResNet, embed_dim: int, *, image_size: int = 224, name: str = "image_encoder"
) -> "keras.Model":
    """Build a `keras.Model` from images to embeddings that are not normalised.

    Args:
        resnet: the config.
        embed_dim: D.
        image_size: side of the square images in pixels, at least 32.

    Returns:
        A model from float32 (B, H, H, 3), already normalised, to (B, D).

    Raises:
        ValueError: image_size is below 32, where the last map would be empty.
    """
    if image_size < SMALLEST_IMAGE:
        raise ValueError(f"image_size must be at least {SMALLEST_IMAGE} pixels, got {image_size}.")
    images = keras.Input((image_size, image_size, 3), name="images")
    x = stem(images, resnet.width)
    for stage, depth in enumerate(resnet.layers):
        for number in range(depth):
            halves = stage > 0 and number == 0
            x = residual(x, resnet.width * 2**stage, halves, f"layer{stage + 1}_{number}")
    x = parts.AttentionPool(resnet.heads, embed_dim, name="attnpool")(x)  # (B, D)
    return convnext.Functional(images, x, name=name)


def stem(images, width):
    """(B, H, H, 3) → (B, H/4, H/4, W)."""
    x = layers.ZeroPadding2D(1, data_format=CHANNELS_LAST, name="conv1_pad")(images)  # "same" would pad one side more
    x = conv_norm(x, width // 2, 3, "conv1", "bn1", strides=2, padding="valid")
    x = relu(x, "act1")
    x = relu(conv_norm(x, width // 2, 3, "conv2", "bn2"), "act2")
    x = relu(conv_norm(x, width, 3, "conv3", "bn3"), "act3")
    return halve(x, "avgpool")


def residual(x, dim, halves, name):
    """(B, H, H, C) → (B, H, H, 4·dim), half the height and width if `halves`: a block plus its shortcut."""
    shortcut = x
    if x.shape[-1] != EXPANSION * dim:
        shortcut = halve(x, f"{name}_downsample_pool") if halves else x
        shortcut = conv_norm(shortcut, EXPANSION * dim, 1, f"{name}_downsample_0", f"{name}_downsample_1")
    x = layers.Add(name=f"{name}_add")([bottleneck(x, dim, halves, name), shortcut])
    return relu(x, f"{name}_out")


def bottleneck(x, dim, halves, name):
    x = relu(conv_norm(x, dim, 1, f"{name}_conv1", f"{name}_bn1"), f"{name}_act1")
    x = relu(conv_norm(x, dim, 3, f"{name}_conv2", f"{name}_bn2"), f"{name}_act2")
    x = halve(x, f"{name}_avgpool") if halves else x
    return conv_norm(x, EXPANSION * dim, 1, f"{name}_conv3", f"{name}_bn3", gamma="zeros")


def conv_norm(x, dim, size, conv_name, norm_name, *, strides=1, padding="same", gamma="ones"):
    """A convolution without bias and its BatchNorm. With `gamma` 0 in its last norm a block starts as its shortcut."""
    x = convnext.Conv2D(
        dim,
        size,
        strides=strides,
        padding=padding,
        use_bias=False,
        kernel_initializer=convnext.Normal((3 * size * size * x.shape[-1]) ** -0.5),  # torch's default
        data_format=CHANNELS_LAST,
        name=conv_name,
    )(x)
    return convnext.BatchNormalization(momentum=MOMENTUM, epsilon=EPSILON, gamma_initializer=gamma, name=norm_name)(x)


def relu(x, name):
    return layers.Activation("relu", name=name)(x)


def halve(x, name):
    """(B, H, H, C) → (B, H/2, H/2, C), by the mean of 2×2; an odd last row or column is dropped."""
    return layers.AveragePooling2D(2, data_format=CHANNELS_LAST, name=name)(x)


def parameters(resnet: ResNet, embed_dim: int, image_size: int) -> int:
    """Trainable parameters: two per channel of a BatchNorm; the pool has positions and four projections with biases."""
    convolutions = sum(size**2 * i * o + 2 * o for size, i, o, _ in _convolutions(resnet, image_size))
    features, positions = resnet.features, last_map(image_size) ** 2 + 1
    return convolutions + positions * features + 3 * (features + 1) * features + (features + 1) * embed_dim


def flops(resnet: ResNet, embed_dim: int, image_size: int) -> int:
    """Floating-point operations of one image, two per multiply–add; the pool has one query."""
    convolutions = sum(side**2 * size**2 * i * o for size, i, o, side in _convolutions(resnet, image_size))
    features, positions = resnet.features, last_map(image_size) ** 2 + 1
    pool = (2 * positions + 1) * features**2 + 2 * positions * features + features * embed_dim
    return 2 * (convolutions + pool)


def last_map(image_size: int) -> int:
    """Side of the last map: one strided, padded convolution, then four pools of 2."""
    return -(-image_size // 2) // 16


def _convolutions(resnet, image_size):
    """Yield (kernel size, in, out, side of the output map) of every convolution in order; a pool halves the map."""
    width, side = resnet.width, -(-image_size // 2)
    yield from ((3, 3, width // 2, side), (3, width // 2, width // 2, side), (3, width // 2, width, side))
    side, before = side // 2, width
    for stage, depth in enumerate(resnet.layers):
        dim = width * 2**stage
        for number in range(depth):
            full, side = side, side // 2 if stage and not number else side
            yield from ((1, before, dim, full), (3, dim, dim, full), (1, dim, EXPANSION * dim, side))
            if not number:
                yield 1, before, EXPANSION * dim, side
            before = EXPANSION * dim


register_tower(
    Tower(
        kind="resnet",
        side="image",
        config=ResNet,
        build=create_resnet_tower,
        parameters=parameters,
        flops=flops,
        schema={"layers": DEPTH.list(), "width": SIZE},
    )
)
