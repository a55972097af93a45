"""CLIP's vision transformer: a class token, a norm before the blocks, a projection. Paper: arXiv:2103.00020."""

import keras
from keras import layers

from clip.layers import (
    LAYER_NORM_EPSILON,
    ClassEmbedding,
    PositionalEmbedding,
    TakeToken,
    transformer_block,
)
from clip.variants import ViT
from convnext import Normal


def create_vit_tower(
    vit: ViT, embed_dim: int, *, image_size: int = 224, activation: str = "gelu", name: str = "image_encoder"
) -> keras.Model:
    """A `keras.Model` from images to unnormalised embeddings.

    Args:
        vit: `clip.variants.ViT`: width W, layers, patch size, head width, MLP ratio.
        embed_dim: D.
        image_size: side of the square images in pixels; pixels past the last whole patch are not read.
        activation: "gelu" (exact) or "quick_gelu".

    Returns:
        A model from float32 (B, H, H, 3), normalised, to (B, D).
    """
    if image_size < vit.patch_size:
        raise ValueError(f"image_size must be at least one patch of {vit.patch_size} pixels, got {image_size}.")
    images = keras.Input((image_size, image_size, 3), name="images")
    x = layers.Conv2D(
        vit.width,
        vit.patch_size,
        strides=vit.patch_size,
        use_bias=False,
        data_format="channels_last",
        name="conv1",
    )(images)  # (B, H/P, H/P, W)
    x = ClassEmbedding(name="class_embedding")(x)  # (B, L, W)
    x = PositionalEmbedding(x.shape[1], vit.width**-0.5, name="positional_embedding")(x)
    x = layers.LayerNormalization(epsilon=LAYER_NORM_EPSILON, name="ln_pre")(x)
    for index in range(vit.layers):
        x = transformer_block(
            x,
            num_heads=vit.width // vit.head_width,
            hidden=int(vit.width * vit.mlp_ratio),
            activation=activation,
            causal=False,
            depth=vit.layers,
            name=f"transformer_resblocks_{index}",
        )
    x = TakeToken(name="pool")(x)  # (B, W)
    x = layers.LayerNormalization(epsilon=LAYER_NORM_EPSILON, name="ln_post")(x)
    x = layers.Dense(embed_dim, use_bias=False, kernel_initializer=Normal(vit.width**-0.5), name="proj")(x)
    return keras.Model(images, x, name=name)
