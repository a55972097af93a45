"""CLIP's vision transformer: a class token, a norm before the blocks, a projection. Paper: arXiv:2103.00020.

MobileCLIP-B departs from it by a stem of three convolutions (arXiv:2106.14881), no norm before the blocks and no
position for the class token.
"""

import math

import keras
from keras import layers

from clip.layers import (
    ClassEmbedding,
    PositionalEmbedding,
    TakeToken,
    transformer_block,
)
from clip.towers.branches import batch_norm
from clip.variants import ViT
from convnext import Conv2D, Functional, Normal


def create_vit_tower(
    vit: ViT, embed_dim: int, *, image_size: int = 224, activation: str = "gelu", name: str = "image_encoder"
) -> keras.Model:
    """A `keras.Model` from images to unnormalised embeddings.

    Args:
        vit: `clip.variants.ViT`: width W, layers, patch size, head width, MLP ratio, and what MobileCLIP's differ in.
        embed_dim: D.
        image_size: side of the square images in pixels; pixels past the last whole patch are not read.
        activation: "gelu" (exact) or "quick_gelu".

    Returns:
        A model from float32 (B, H, H, 3), normalised, to (B, D).
    """
    if vit.stem_dim and vit.patch_size != math.prod(STEM_STRIDES):
        raise ValueError(f"A convolutional stem makes patches of 16 pixels, got patch_size {vit.patch_size}.")
    if image_size < vit.patch_size:
        raise ValueError(f"image_size must be at least one patch of {vit.patch_size} pixels, got {image_size}.")
    images = keras.Input((image_size, image_size, 3), name="images")
    x = conv_embed(images, vit) if vit.stem_dim else embed(images, vit)  # (B, L, W)
    for index in range(vit.layers):
        x = transformer_block(
            x,
            num_heads=vit.width // vit.head_width,
            hidden=int(vit.width * vit.mlp_ratio),
            activation=activation,
            causal=False,
            depth=vit.layers,
            name=f"transformer_resblocks_{index}",
            epsilon=vit.epsilon,
        )
    x = TakeToken(name="pool")(x)  # (B, W)
    x = layers.LayerNormalization(epsilon=vit.epsilon, name="ln_post")(x)
    initializer = Normal(vit.width**-0.5)
    x = layers.Dense(embed_dim, use_bias=vit.projection_bias, kernel_initializer=initializer, name="proj")(x)
    return Functional(images, x, name=name)


def embed(images, vit):
    """(B, H, H, 3) → (B, L, W): a patch a token, the class token first, positions, norm."""
    x = convolution(images, vit.width, vit.patch_size, "conv1")  # (B, H/P, H/P, W)
    x = ClassEmbedding(name="class_embedding")(x)
    x = PositionalEmbedding(x.shape[1], vit.width**-0.5, name="positional_embedding")(x)
    return layers.LayerNormalization(epsilon=vit.epsilon, name="ln_pre")(x)


STEM_STRIDES = (4, 2, 2)


def conv_embed(images, vit):
    """(B, H, H, 3) → (B, L, W): three convolutions without overlap, positions, and only then the class token."""
    x = images
    if vit.stem_padding:
        x = layers.ZeroPadding2D(vit.stem_padding, data_format="channels_last", name="stem_pad")(x)
    for index, stride in enumerate(STEM_STRIDES):
        is_last = index == len(STEM_STRIDES) - 1
        x = convolution(x, vit.width if is_last else vit.stem_dim, stride, f"stem_{index}_conv", use_bias=is_last)
        if not is_last:
            x = batch_norm(f"stem_{index}_bn")(x)
            x = layers.Activation("gelu", name=f"stem_{index}_act")(x)
    length = x.shape[1] * x.shape[2]
    x = layers.Reshape((length, vit.width), name="stem_flat")(x)
    x = PositionalEmbedding(length, vit.width**-0.5, name="positional_embedding")(x)
    return ClassEmbedding(name="class_embedding")(x)


def convolution(x, filters, stride, name, use_bias=False):
    """A convolution whose kernel is as wide as its stride."""
    drawn = Normal((3 * stride**2 * x.shape[-1]) ** -0.5)  # the deviation of torch's default
    options = {"use_bias": use_bias, "kernel_initializer": drawn, "data_format": "channels_last"}
    return Conv2D(filters, stride, strides=stride, name=name, **options)(x)
