"""CLIP's vision transformer: a class token, a norm before the blocks, a projection. Paper: arXiv:2103.00020.

MobileCLIP-B differs in three things: a stem of three convolutions (arXiv:2106.14881), no norm before the blocks and no
position for the class token.
"""

import math
from dataclasses import dataclass

import convnext
from clip.towers.lazy import branches, keras, layers, parts
from clip.towers.registry import COUNT, DEPTH, EPSILON, FLAG, RATIO, SIZE, Tower, in_scope_of_name, register_tower

STEM_STRIDES = (4, 2, 2)


@dataclass(frozen=True)
class ViT:
    """Config of a vision transformer.

    Args:
        width: W, channels.
        layers: blocks.
        patch_size: side of a patch in pixels.
        head_width: channels per attention head; divides W.
        mlp_ratio: hidden channels of the MLP over W.
        epsilon: added to the variance in every LayerNorm.
        stem_dim: channels of a stem of three convolutions; None for one convolution. With this stem patches are of 16
            pixels, the class token has no position, and there is no norm before the blocks.
        stem_padding: zeros around the image, read by that stem's first convolution.
        projection_bias: whether the projection to the embedding has a bias.
    """

    width: int
    layers: int
    patch_size: int
    head_width: int = 64
    mlp_ratio: float = 4.0
    epsilon: float = 1e-5
    stem_dim: int | None = None
    stem_padding: int = 0
    projection_bias: bool = False

    def __post_init__(self):
        if self.width % self.head_width:
            raise ValueError(f"A ViT's width must be a multiple of its head_width. Got {self}.")


@in_scope_of_name
def create_vit_tower(
    vit: ViT, embed_dim: int, *, image_size: int = 224, activation: str = "gelu", name: str = "image_encoder"
) -> "keras.Model":
    """Build a `keras.Model` from images to embeddings that are not normalised.

    Args:
        vit: the config.
        embed_dim: D.
        image_size: side of the square images in pixels; pixels past the last whole patch are not read.
        activation: "gelu" (exact) or "quick_gelu".

    Returns:
        A model from float32 (B, H, H, 3), already normalised, to (B, D).
    """
    if vit.stem_dim and vit.patch_size != math.prod(STEM_STRIDES):
        raise ValueError(f"A ViT with stem_dim has patch_size 16, got {vit.patch_size}.")
    if image_size < vit.patch_size:
        raise ValueError(f"image_size must be at least one patch of {vit.patch_size} pixels, got {image_size}.")
    images = keras.Input((image_size, image_size, 3), name="images")
    x = _conv_embed(images, vit) if vit.stem_dim else embed(images, vit)  # (B, L, W)
    for index in range(vit.layers):
        x = parts.transformer_block(
            x,
            num_heads=vit.width // vit.head_width,
            hidden=int(vit.width * vit.mlp_ratio),
            activation=activation,
            causal=False,
            depth=vit.layers,
            name=f"transformer_resblocks_{index}",
            epsilon=vit.epsilon,
        )
    x = parts.SelectToken(name="pool")(x)  # (B, W)
    x = convnext.LayerNormalization(epsilon=vit.epsilon, name="ln_post")(x)
    initializer = convnext.Normal(vit.width**-0.5)
    x = layers.Dense(embed_dim, use_bias=vit.projection_bias, kernel_initializer=initializer, name="proj")(x)
    return convnext.Functional(images, x, name=name)


def embed(images, vit):
    """(B, H, H, 3) → (B, L, W): one token per patch after the class token, positions, norm."""
    x = convolution(images, vit.width, vit.patch_size, "conv1")  # (B, H/P, H/P, W)
    x = parts.ClassEmbedding(name="class_embedding")(x)
    x = parts.PositionalEmbedding(x.shape[1], vit.width**-0.5, name="positional_embedding")(x)
    return convnext.LayerNormalization(epsilon=vit.epsilon, name="ln_pre")(x)


def _conv_embed(images, vit):
    """(B, H, H, 3) → (B, L, W): three convolutions without overlap, positions, then the class token."""
    x = images
    if vit.stem_padding:
        x = layers.ZeroPadding2D(vit.stem_padding, data_format="channels_last", name="stem_pad")(x)
    for index, stride in enumerate(STEM_STRIDES):
        is_last = index == len(STEM_STRIDES) - 1
        x = convolution(x, vit.width if is_last else vit.stem_dim, stride, f"stem_{index}_conv", use_bias=is_last)
        if not is_last:
            x = branches.batch_norm(f"stem_{index}_bn")(x)
            x = layers.Activation("gelu", name=f"stem_{index}_act")(x)
    length = x.shape[1] * x.shape[2]
    x = layers.Reshape((length, vit.width), name="stem_flat")(x)
    x = parts.PositionalEmbedding(length, vit.width**-0.5, name="positional_embedding")(x)
    return parts.ClassEmbedding(name="class_embedding")(x)


def convolution(x, filters, stride, name, use_bias=False):
    """A convolution whose kernel size is its stride."""
    initializer = convnext.Normal((3 * stride**2 * x.shape[-1]) ** -0.5)  # torch's default
    options = {"use_bias": use_bias, "kernel_initializer": initializer, "data_format": "channels_last"}
    return convnext.Conv2D(filters, stride, strides=stride, name=name, **options)(x)


def parameters(vit: ViT, embed_dim: int, image_size: int) -> int:
    """Trainable parameters, projection included."""
    width, hidden, patches = vit.width, int(vit.width * vit.mlp_ratio), _patches(vit, image_size)
    if vit.stem_dim:  # two norms, the last convolution's bias, the class token; one norm after the blocks
        embeddings = sum(_stem_kernels(vit)) + 4 * vit.stem_dim + width + (patches + 1) * width + 2 * width
    else:
        embeddings = 3 * vit.patch_size**2 * width + width + (patches + 1) * width + 4 * width
    projection = width * embed_dim + vit.projection_bias * embed_dim
    return embeddings + vit.layers * block_parameters(width, hidden) + projection


def flops(vit: ViT, embed_dim: int, image_size: int) -> int:
    """Floating-point operations of one image, two per multiply–add."""
    patches = _patches(vit, image_size)
    stem = patches * 3 * vit.patch_size**2 * vit.width
    if vit.stem_dim:
        first = (image_size + 2 * vit.stem_padding) // 4
        maps = first**2, (first // 2) ** 2, (first // 4) ** 2
        stem = sum(positions * kernel for positions, kernel in zip(maps, _stem_kernels(vit), strict=True))
    blocks = vit.layers * block_multiply_adds(vit.width, int(vit.width * vit.mlp_ratio), patches + 1)
    return 2 * (stem + blocks + vit.width * embed_dim)


def block_parameters(width: int, hidden: int) -> int:
    """Trainable parameters of one transformer block."""
    return 4 * width**2 + 4 * width + 2 * width * hidden + hidden + width + 4 * width


def block_multiply_adds(width: int, hidden: int, length: int) -> int:
    """Multiply–adds of one transformer block on one sequence."""
    return length * (4 * width**2 + 2 * width * hidden + 2 * length * width)


def _patches(vit, side):
    return ((side + 2 * vit.stem_padding) // vit.patch_size) ** 2


def _stem_kernels(vit):
    """Weights of the convolutional stem's kernels, 4×4, 2×2 and 2×2."""
    return 48 * vit.stem_dim, 4 * vit.stem_dim**2, 4 * vit.stem_dim * vit.width


register_tower(
    Tower(
        kind="vit",
        side="image",
        config=ViT,
        build=create_vit_tower,
        parameters=parameters,
        flops=flops,
        schema={
            "width": SIZE,
            "layers": DEPTH,
            "patch_size": SIZE,
            "head_width": SIZE,
            "mlp_ratio": RATIO,
            "epsilon": EPSILON,
            "stem_dim": SIZE.or_null(),
            "stem_padding": COUNT,
            "projection_bias": FLAG,
        },
    )
)
