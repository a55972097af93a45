"""MobileCLIP's image tower MCi: a FastViT whose last map is widened, pooled and projected.

A stage is a downsampling and blocks. A block is  x + gamma · mlp(mixer(x)), the MLP led by a 7×7 depthwise convolution;
the mixer is `RepMixer`, and self-attention over all positions in the last stages. Every map has an exact GELU where a
convolution ends, none where a residual branch does. Layers are named after timm's modules joined with "_":
`stem_0`, `stages_1_downsample_proj_0`, `stages_3_blocks_1_mlp_fc1`, `final_conv`.

Papers: MobileCLIP, arXiv:2311.17049; FastViT, arXiv:2303.14189. Published weights are for research only.
"""

import keras
from keras import layers

from clip.layers import LAYER_NORM_EPSILON, SelfAttention, resolve_activation
from clip.mci import EXPANSION, HEAD_WIDTH, MCi, squeezed
from clip.towers.branches import (
    CHANNELS_LAST,
    MobileOneConv2D,
    RepConditionalPosEnc,
    RepLargeKernelConv2D,
    RepMixer,
    batch_norm,
)
from convnext import Dense, DepthwiseConv2D, Functional, LayerScale, Normal

LARGE_KERNEL = 7
LAYER_SCALE = 1e-5
INIT_STDDEV = 0.02


def create_mobileclip_tower(
    mci: MCi, embed_dim: int, *, image_size: int = 256, name: str = "image_encoder"
) -> keras.Model:
    """A `keras.Model` from images to unnormalised embeddings.

    Args:
        mci: `clip.mci.MCi`: depths, dims, and what the generations differ in.
        embed_dim: D.
        image_size: side of the square images in pixels.

    Returns:
        A model from float32 (B, H, H, 3), normalised, to (B, D).
    """
    images = keras.Input((image_size, image_size, 3), name="images")
    x = stem(images, mci)
    for stage, (depth, dim) in enumerate(zip(mci.depths, mci.dims, strict=True)):
        prefix = f"stages_{stage}"
        if stage:
            x = downsample(x, mci, dim, mci.squeezes(stage), f"{prefix}_downsample")
        if mci.attends(stage):
            form = {"reparameterized": mci.reparameterized}
            x = RepConditionalPosEnc(LARGE_KERNEL, name=f"{prefix}_pos_emb", **form)(x)
        for number in range(depth):
            x = block(x, mci, mci.attends(stage), f"{prefix}_blocks_{number}")
    x = widen(x, mci)  # (B, H/s, H/s, 2C)
    x = layers.GlobalAveragePooling2D(data_format=CHANNELS_LAST, name="head_pool")(x)
    x = layers.Dense(embed_dim, kernel_initializer=Normal(INIT_STDDEV), name="head_proj")(x)
    return Functional(images, x, name=name)


def stem(images, mci):
    """(B, H, H, 3) → (B, H/4, H/4, C): dense and depthwise 3×3 convolutions of stride 2, and a 1×1 one."""
    form = {"scale_branch": mci.stem_scale, "reparameterized": mci.reparameterized}
    x = gelu(MobileOneConv2D(3, 2, filters=mci.dims[0], name="stem_0", **form)(images), "stem_0_act")
    x = gelu(MobileOneConv2D(3, 2, name="stem_1", **form)(x), "stem_1_act")
    return pointwise(x, mci, mci.dims[0], "stem_2")


def pointwise(x, mci, dim, name):
    """MobileOne's 1×1 block, which has no smaller branch."""
    form = {"scale_branch": False, "reparameterized": mci.reparameterized}
    return gelu(MobileOneConv2D(1, filters=dim, name=name, **form)(x), f"{name}_act")


def downsample(x, mci, dim, squeezes, name):
    """(B, H, H, C) → (B, H/2, H/2, dim)."""
    multiplier = dim // x.shape[-1]
    form = {"depth_multiplier": multiplier, "reparameterized": mci.reparameterized}
    x = RepLargeKernelConv2D(LARGE_KERNEL, 2, name=f"{name}_proj_0", **form)(x)
    if squeezes:
        x = squeeze_excite(x, squeezed(dim, 1 / 4), f"{name}_proj_0_se")
    return pointwise(gelu(x, f"{name}_proj_0_act"), mci, dim, f"{name}_proj_1")


def widen(x, mci):
    """(B, H, H, C) → (B, H, H, 2C): the convolution before the pool, with squeeze and excite."""
    form = {"depth_multiplier": EXPANSION, "reparameterized": mci.reparameterized}
    x = MobileOneConv2D(3, name="final_conv", **form)(x)
    x = squeeze_excite(x, squeezed(x.shape[-1], 1 / 16, 1), "final_conv_se")
    return gelu(x, "final_conv_act")


def squeeze_excite(x, hidden, name):
    """Each channel times a gate in (0, 1) that follows from the means of all (arXiv:1709.01507, section 3)."""
    gate = layers.GlobalAveragePooling2D(keepdims=True, data_format=CHANNELS_LAST, name=f"{name}_pool")(x)
    gate = Dense(hidden, activation="relu", name=f"{name}_fc1")(gate)
    gate = Dense(x.shape[-1], activation="sigmoid", name=f"{name}_fc2")(gate)
    return layers.Multiply(name=f"{name}_out")([x, gate])


def block(x, mci, attends, name):
    """(B, H, H, C) → same: the mixer, then the MLP."""
    if attends:
        x = attention(x, mci.norm, name)
    else:
        form = {"init_value": LAYER_SCALE, "reparameterized": mci.reparameterized}
        x = RepMixer(3, name=f"{name}_token_mixer", **form)(x)
    scale = f"{name}_layer_scale_2" if attends else f"{name}_layer_scale"
    y = conv_mlp(x, int(x.shape[-1] * mci.mlp_ratio), LARGE_KERNEL, f"{name}_mlp")
    y = LayerScale(LAYER_SCALE, name=scale)(y)
    return layers.Add(name=f"{name}_out")([x, y])


def attention(x, norm, name):
    """(B, H, H, C) → same: pre-norm self-attention among all positions."""
    _, height, width, channels = x.shape
    if norm == "batch":
        y = batch_norm(f"{name}_norm")(x)
    else:
        y = layers.LayerNormalization(epsilon=LAYER_NORM_EPSILON, name=f"{name}_norm")(x)
    y = layers.Reshape((height * width, channels), name=f"{name}_flat")(y)
    y = SelfAttention(channels // HEAD_WIDTH, in_bias=False, name=f"{name}_attn")(y)
    y = LayerScale(LAYER_SCALE, name=f"{name}_layer_scale_1")(y)
    y = layers.Reshape((height, width, channels), name=f"{name}_map")(y)
    return layers.Add(name=f"{name}_add")([x, y])


def conv_mlp(x, hidden, kernel_size, name, activation="gelu"):
    """(B, H, W, C) → same: depthwise convolution and norm, then two products with an activation between them."""
    x = DepthwiseConv2D(
        kernel_size,
        padding="same",
        use_bias=False,
        depthwise_initializer=Normal(INIT_STDDEV),
        data_format=CHANNELS_LAST,
        name=f"{name}_conv",
    )(x)
    channels = x.shape[-1]
    x = batch_norm(f"{name}_bn")(x)
    x = Dense(hidden, kernel_initializer=Normal(INIT_STDDEV), name=f"{name}_fc1")(x)
    x = layers.Activation(resolve_activation(activation), name=f"{name}_act")(x)
    return Dense(channels, kernel_initializer=Normal(INIT_STDDEV), name=f"{name}_fc2")(x)


def gelu(x, name):
    return layers.Activation("gelu", name=name)(x)
