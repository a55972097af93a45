"""MobileCLIP's image tower MCi: a FastViT whose last map is widened, pooled and projected.

A stage is a downsampling and blocks. A block is  x + gamma · mlp(mixer(x)), where the MLP starts with a 7×7 depthwise
convolution and the mixer is `RepMixer`, or self-attention over all positions in the last stages. An exact GELU follows
each convolution outside residual branches. Layers are named after timm's modules joined with "_": `stem_0`,
`stages_1_downsample_proj_0`, `stages_3_blocks_1_mlp_fc1`, `final_conv`.

Papers: MobileCLIP, arXiv:2311.17049, section 4 and appendix A; MobileCLIP2, arXiv:2508.20691; FastViT,
arXiv:2303.14189. Published weights are for research only.
"""

from dataclasses import dataclass
from itertools import pairwise

import convnext
from clip.towers.lazy import branches, keras, layers, parts
from clip.towers.registry import COUNT, DEPTH, FLAG, RATIO, SIZE, Field, Tower, in_scope_of_name, register_tower

CHANNELS_LAST = "channels_last"
NORMS = ("batch", "layer")
HEAD_WIDTH = 32
STEM_STRIDE = 4
EXPANSION = 2  # of the channels by the last convolution
LARGE_KERNEL = 7
LAYER_SCALE = 1e-5
INIT_STDDEV = 0.02


@dataclass(frozen=True)
class MCi:
    """Config of MobileCLIP's FastViT: RepMixer blocks, then attention blocks, then a convolution and the mean.

    Args:
        depths: blocks in each stage.
        dims: channels C of each stage, each a multiple of the one before.
        mlp_ratio: hidden channels of a block's MLP, over C.
        attention_stages: number of last stages with attention blocks.
        squeeze_excite: number of last downsamplings that end in squeeze and excite.
        norm: "batch" or "layer", before the attention.
        stem_scale: whether the stem's convolutions have a 1×1 branch.
        reparameterized: each multi-branch convolution is replaced by the single one it equals, as in
            re-parameterised checkpoints.
    """

    depths: tuple[int, ...]
    dims: tuple[int, ...]
    mlp_ratio: float = 3
    attention_stages: int = 1
    squeeze_excite: int = 2
    norm: str = "batch"
    stem_scale: bool = True
    reparameterized: bool = False

    def __post_init__(self):
        if not self.depths or len(self.depths) != len(self.dims):
            raise ValueError(f"An MCi row needs as many dims as depths. Got depths={self.depths}, dims={self.dims}.")
        if any(after % before for before, after in pairwise(self.dims)):
            raise ValueError(f"Each of dims must be a multiple of the one before, got {self.dims}.")
        if self.norm not in NORMS:
            raise ValueError(f"norm must be 'batch' or 'layer', got {self.norm!r}.")

    @property
    def final_dim(self):
        """Channels of the features that are pooled."""
        return EXPANSION * self.dims[-1]

    def attends(self, stage):
        return stage >= len(self.depths) - self.attention_stages

    def squeezes(self, stage):
        """Whether the downsampling into a stage ends in squeeze and excite."""
        return stage > 0 and stage >= len(self.depths) - self.squeeze_excite


@in_scope_of_name
def create_mobileclip_tower(
    mci: MCi, embed_dim: int, *, image_size: int = 256, name: str = "image_encoder"
) -> "keras.Model":
    """Build a `keras.Model` from images to embeddings that are not normalised.

    Args:
        mci: the config.
        embed_dim: D.
        image_size: side of the square images in pixels.

    Returns:
        A model from float32 (B, H, H, 3), already normalised, to (B, D).
    """
    images = keras.Input((image_size, image_size, 3), name="images")
    x = stem(images, mci)
    for stage, (depth, dim) in enumerate(zip(mci.depths, mci.dims, strict=True)):
        prefix = f"stages_{stage}"
        if stage:
            x = downsample(x, mci, dim, mci.squeezes(stage), f"{prefix}_downsample")
        if mci.attends(stage):
            form = {"reparameterized": mci.reparameterized}
            x = branches.RepConditionalPosEnc(LARGE_KERNEL, name=f"{prefix}_pos_emb", **form)(x)
        for number in range(depth):
            x = block(x, mci, mci.attends(stage), f"{prefix}_blocks_{number}")
    x = widen(x, mci)  # (B, H/s, H/s, 2C)
    x = layers.GlobalAveragePooling2D(data_format=CHANNELS_LAST, name="head_pool")(x)
    x = layers.Dense(embed_dim, kernel_initializer=convnext.Normal(INIT_STDDEV), name="head_proj")(x)
    return convnext.Functional(images, x, name=name)


def stem(images, mci):
    """(B, H, H, 3) → (B, H/4, H/4, C): dense and depthwise 3×3 convolutions of stride 2, and a 1×1 one."""
    form = {"scale_branch": mci.stem_scale, "reparameterized": mci.reparameterized}
    x = gelu(branches.MobileOneConv2D(3, 2, filters=mci.dims[0], name="stem_0", **form)(images), "stem_0_act")
    x = gelu(branches.MobileOneConv2D(3, 2, name="stem_1", **form)(x), "stem_1_act")
    return pointwise(x, mci, mci.dims[0], "stem_2")


def pointwise(x, mci, dim, name):
    """MobileOne's 1×1 block, without a smaller branch."""
    form = {"scale_branch": False, "reparameterized": mci.reparameterized}
    return gelu(branches.MobileOneConv2D(1, filters=dim, name=name, **form)(x), f"{name}_act")


def downsample(x, mci, dim, squeezes, name):
    """(B, H, H, C) → (B, H/2, H/2, dim)."""
    multiplier = dim // x.shape[-1]
    form = {"depth_multiplier": multiplier, "reparameterized": mci.reparameterized}
    x = branches.RepLargeKernelConv2D(LARGE_KERNEL, 2, name=f"{name}_proj_0", **form)(x)
    if squeezes:
        x = squeeze_excite(x, squeezed(dim, 1 / 4), f"{name}_proj_0_se")
    return pointwise(gelu(x, f"{name}_proj_0_act"), mci, dim, f"{name}_proj_1")


def widen(x, mci):
    """(B, H, H, C) → (B, H, H, 2C): the convolution before the pool, with squeeze and excite."""
    form = {"depth_multiplier": EXPANSION, "reparameterized": mci.reparameterized}
    x = branches.MobileOneConv2D(3, name="final_conv", **form)(x)
    x = squeeze_excite(x, squeezed(x.shape[-1], 1 / 16, 1), "final_conv_se")
    return gelu(x, "final_conv_act")


def squeeze_excite(x, hidden, name):
    """Scale each channel by a gate in (0, 1), computed from all channels' means (arXiv:1709.01507, section 3)."""
    gate = layers.GlobalAveragePooling2D(keepdims=True, data_format=CHANNELS_LAST, name=f"{name}_pool")(x)
    gate = convnext.Dense(hidden, activation="relu", name=f"{name}_fc1")(gate)
    gate = convnext.Dense(x.shape[-1], activation="sigmoid", name=f"{name}_fc2")(gate)
    return layers.Multiply(name=f"{name}_out")([x, gate])


def block(x, mci, attends, name):
    """(B, H, H, C) → same: the mixer, then the MLP."""
    if attends:
        x = attention(x, mci.norm, name)
    else:
        form = {"init_value": LAYER_SCALE, "reparameterized": mci.reparameterized}
        x = branches.RepMixer(3, name=f"{name}_token_mixer", **form)(x)
    scale = f"{name}_layer_scale_2" if attends else f"{name}_layer_scale"
    y = conv_mlp(x, int(x.shape[-1] * mci.mlp_ratio), LARGE_KERNEL, f"{name}_mlp")
    y = convnext.LayerScale(LAYER_SCALE, name=scale)(y)
    return layers.Add(name=f"{name}_out")([x, y])


def attention(x, norm, name):
    """(B, H, H, C) → same: pre-norm self-attention over all positions."""
    _, height, width, channels = x.shape
    if norm == "batch":
        y = branches.batch_norm(f"{name}_norm")(x)
    else:
        y = convnext.LayerNormalization(epsilon=parts.LAYER_NORM_EPSILON, name=f"{name}_norm")(x)
    y = layers.Reshape((height * width, channels), name=f"{name}_flat")(y)
    y = parts.SelfAttention(channels // HEAD_WIDTH, in_bias=False, name=f"{name}_attn")(y)
    y = convnext.LayerScale(LAYER_SCALE, name=f"{name}_layer_scale_1")(y)
    y = layers.Reshape((height, width, channels), name=f"{name}_map")(y)
    return layers.Add(name=f"{name}_add")([x, y])


def conv_mlp(x, hidden, kernel_size, name, activation="gelu"):
    """(B, H, W, C) → same: depthwise convolution and norm, then two products with an activation between them."""
    x = convnext.DepthwiseConv2D(
        kernel_size,
        padding="same",
        use_bias=False,
        depthwise_initializer=convnext.Normal(INIT_STDDEV),
        data_format=CHANNELS_LAST,
        name=f"{name}_conv",
    )(x)
    channels = x.shape[-1]
    x = branches.batch_norm(f"{name}_bn")(x)
    x = convnext.Dense(hidden, kernel_initializer=convnext.Normal(INIT_STDDEV), name=f"{name}_fc1")(x)
    x = layers.Activation(parts.resolve_activation(activation), name=f"{name}_act")(x)
    return convnext.Dense(channels, kernel_initializer=convnext.Normal(INIT_STDDEV), name=f"{name}_fc2")(x)


def gelu(x, name):
    return layers.Activation("gelu", name=name)(x)


def squeezed(channels, ratio, divisor=8):
    """Hidden channels of squeeze and excite: the multiple of `divisor` nearest to channels · ratio, at least one."""
    return max(divisor, int(channels * ratio + divisor / 2) // divisor * divisor)


def parameters(row: MCi, embed_dim: int, image_size: int) -> int:  # noqa: ARG001 (the same at every size)
    """Trainable parameters, projection and its bias included."""
    return sum(weights + others for _, weights, others in _layers(row, embed_dim, 64))


def flops(row: MCi, embed_dim: int, image_size: int) -> int:
    """Floating-point operations of one image, two per multiply–add, every branch counted."""
    total = sum(positions * weights for positions, weights, _ in _layers(row, embed_dim, image_size))
    for stage, side in enumerate(_sides(row, image_size)):
        if row.attends(stage):
            total += row.depths[stage] * 2 * side**4 * row.dims[stage]
    return 2 * total


def _sides(row, image_size):
    """Yield the side of each stage's map; strides halve and round up."""
    side = -(-image_size // STEM_STRIDE)
    for _ in row.dims:
        yield side
        side = -(-side // 2)


def _layers(row, embed_dim, image_size):
    """Yield (positions, weights multiplied at each, other parameters) of every layer."""
    sides, half = list(_sides(row, image_size)), -(-image_size // 2)
    yield from _stem(row, half**2, sides[0] ** 2)
    for stage, (depth, c, side) in enumerate(zip(row.depths, row.dims, sides, strict=True)):
        if stage:
            yield from _downsample(row, c, side**2, row.squeezes(stage))
        if row.attends(stage):
            yield side**2, 49 * c, c
        for _ in range(depth):
            yield from _block(row, c, side**2, row.attends(stage))
    c, pixels = row.final_dim, sides[-1] ** 2
    yield from _branches(row, pixels, 9 * c, c, [c])
    yield from _squeeze_excite(c, squeezed(c, 1 / 16, 1))
    yield 1, c * embed_dim, embed_dim


def _branches(row, pixels, weights, c, more=(), identity=False):
    """A convolution of `weights`, its 1×1 branches and one norm per branch; or the single equivalent convolution."""
    if row.reparameterized:
        yield pixels, weights, c
        return
    yield pixels, weights, 2 * c
    for branch in more:
        yield pixels, branch, 2 * c
    if identity:
        yield pixels, 0, 2 * c


def _stem(row, half, quarter):
    c = row.dims[0]
    yield from _branches(row, half, 27 * c, c, [3 * c] * row.stem_scale)
    yield from _branches(row, quarter, 9 * c, c, [c] * row.stem_scale)
    yield from _branches(row, quarter, c * c, c, identity=True)


def _downsample(row, c, pixels, squeezes):
    yield from _branches(row, pixels, 49 * c, c, [9 * c])
    if squeezes:
        yield from _squeeze_excite(c, squeezed(c, 1 / 4))
    yield from _branches(row, pixels, c * c, c, identity=True)


def _squeeze_excite(c, hidden):
    yield 1, 2 * c * hidden, c + hidden


def _block(row, c, pixels, attends):
    hidden = int(c * row.mlp_ratio)
    if attends:
        yield pixels, 4 * c * c, 4 * c  # norm, projection's bias, scale
    else:
        yield from _branches(row, pixels, 9 * c, c, [c], identity=True)
        yield pixels, 0, 0 if row.reparameterized else 3 * c  # norm, scale
    yield pixels, 49 * c, 2 * c
    yield pixels, 2 * c * hidden, hidden + c
    yield pixels, 0, c


register_tower(
    Tower(
        kind="mci",
        side="image",
        config=MCi,
        build=create_mobileclip_tower,
        parameters=parameters,
        flops=flops,
        schema={
            "depths": DEPTH.list(),
            "dims": SIZE.list(),
            "mlp_ratio": RATIO,
            "attention_stages": COUNT,
            "squeeze_excite": COUNT,
            "norm": Field.one_of(*NORMS),
            "stem_scale": FLAG,
            "reparameterized": FLAG,
        },
    )
)
