"""A ConvNeXt as an image tower: trunk, mean over the map, norm, projection without bias, as in open_clip."""

import keras
from keras import layers

from clip.variants import ConvNeXt
from convnext import Functional, Normal, create_convnext_v1, create_convnext_v2

CREATE = {"convnext": create_convnext_v1, "convnextv2": create_convnext_v2}


def create_convnext_tower(
    convnext: ConvNeXt,
    embed_dim: int,
    *,
    image_size: int = 224,
    stem_stride: int | str = "auto",
    name: str = "image_encoder",
) -> keras.Model:
    """A `keras.Model` from images to unnormalised embeddings.

    Args:
        convnext: `clip.variants.ConvNeXt`: family, variant, projection.
        embed_dim: D.
        image_size: side of the square images in pixels.
        stem_stride: as in `convnext.create_convnext_v1`.

    Returns:
        A model from float32 (B, H, H, 3), normalised, to (B, D).
    """
    trunk = CREATE[convnext.family](
        convnext.variant,
        input_shape=(image_size, image_size, 3),
        include_top=False,
        pooling="avg",
        stem_stride=stem_stride,
    )
    x = trunk.output  # (B, C)
    if convnext.projection == "mlp":
        x = layers.Dense(2 * embed_dim, kernel_initializer=Normal(0.02), name="head_mlp_fc1")(x)
        x = layers.Activation("gelu", name="head_mlp_act")(x)
        x = layers.Dense(embed_dim, use_bias=False, kernel_initializer=Normal(0.02), name="head_mlp_fc2")(x)
    else:
        initializer = Normal(x.shape[-1] ** -0.5)
        x = layers.Dense(embed_dim, use_bias=False, kernel_initializer=initializer, name="head_proj")(x)
    return Functional(trunk.input, x, name=name)
