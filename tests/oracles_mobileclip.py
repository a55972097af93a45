"""Oracle cases of MobileCLIP: timm's trunks beside open_clip's text tower, in open_clip's naming and in Apple's.

Apple's code is not a package. What timm and open_clip lack is reimplemented here from the paper's description
(arXiv:2311.17049, section 4.2): the convolutional blocks of MobileCLIP-S0's text tower. The rest of Apple's naming is
checked with open_clip, which reads Apple's files (test_convert_mobileclip.py).
"""

import functools
import re

from oracle_case import SEED, Case
from oracles_pairs import run_pair, some

import clip

# The reference models


def fastvit(mci, embed_dim):
    """timm's trunk of one of our rows."""
    import torch
    from timm.layers import LayerNorm2d
    from timm.models.fastvit import FastVit, RepConditionalPosEnc

    stages = range(len(mci.depths))
    return FastVit(
        layers=mci.depths,
        embed_dims=mci.dims,
        mlp_ratios=(mci.mlp_ratio,) * len(mci.depths),
        downsamples=tuple(stage > 0 for stage in stages),
        se_downsamples=tuple(mci.squeezes(stage) for stage in stages),
        pos_embs=tuple(RepConditionalPosEnc if mci.attends(stage) else None for stage in stages),
        token_mixers=tuple("attention" if mci.attends(stage) else "repmixer" for stage in stages),
        norm_layer=functools.partial(LayerNorm2d, eps=1e-5) if mci.norm == "layer" else torch.nn.BatchNorm2d,
        stem_use_scale_branch=mci.stem_scale,
        lkc_use_act=True,
        num_classes=embed_dim,
    )


def vit(row, embed_dim, image_size):
    """timm's trunk of a ViT row with a projection's bias."""
    from timm.layers import HybridEmbed, LayerNorm
    from timm.models.vision_transformer import VisionTransformer
    from timm.models.vision_transformer_hybrid import ConvStem

    options = {"patch_size": row.patch_size, "pre_norm": True}
    if row.stem_dim:
        channels = (row.stem_dim, row.stem_dim, row.width)
        sides = {"kernel_size": (4, 2, 2), "stride": (4, 2, 2), "padding": (row.stem_padding, 0, 0)}
        backbone = ConvStem(channels=channels, act_layer=gelu(), **sides)
        embed = functools.partial(HybridEmbed, backbone=backbone, proj=False)
        options = {"patch_size": 1, "embed_layer": embed, "no_embed_class": True}
    return VisionTransformer(
        img_size=image_size,
        embed_dim=row.width,
        depth=row.layers,
        num_heads=row.width // row.head_width,
        norm_layer=functools.partial(LayerNorm, eps=row.epsilon),
        num_classes=embed_dim,
        global_pool="token",
        **options,
    )


def gelu():
    import torch

    return torch.nn.GELU


def text_tower(text, embed_dim):
    """open_clip's text tower, between two convolutional blocks where the row has them."""
    from open_clip.transformer import TextTransformer

    sizes = {"width": text.width, "heads": text.heads, "layers": text.layers, "output_dim": embed_dim}
    tower = TextTransformer(**sizes, no_causal_mask=not text.causal)
    if text.mixer_kernel:
        blocks = tower.transformer.resblocks
        blocks.insert(0, convolutional_block(text.width, text.mixer_kernel))
        blocks.append(convolutional_block(text.width, text.mixer_kernel))
    return tower


def convolutional_block(width, kernel):
    """RepMixer along the tokens and an MLP led by a convolution along them: modules named as in Apple's files."""
    import torch
    from torch import nn

    def depthwise():
        line = {"kernel_size": (1, kernel), "padding": (0, kernel // 2), "groups": width, "bias": False}
        return nn.ModuleDict({"conv": nn.Conv2d(width, width, **line), "bn": nn.BatchNorm2d(width)})

    def scale():
        return nn.Parameter(torch.ones(width, 1, 1))

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            mixer = {"rbr_conv": nn.ModuleList([depthwise()]), "rbr_skip": nn.BatchNorm2d(width)}
            norm = nn.ModuleDict({"rbr_skip": nn.BatchNorm2d(width)})
            self.token_mixer = nn.ModuleDict({"mixer": nn.ModuleDict(mixer), "norm": norm})
            self.token_mixer.layer_scale = scale()
            pointwise = {"fc1": nn.Conv2d(width, 4 * width, 1), "fc2": nn.Conv2d(4 * width, width, 1)}
            self.convffn = nn.ModuleDict({"conv": depthwise(), **pointwise})
            self.layer_scale = scale()

        def get_weight_dtype(self):  # open_clip asks the first block
            return self.layer_scale.dtype

        def forward(self, x, attn_mask=None):  # noqa: ARG002 (open_clip passes one)
            x = x.transpose(1, 2).unsqueeze(2)  # (B, W, 1, L)
            mixer, conv = self.token_mixer["mixer"], self.token_mixer["mixer"]["rbr_conv"][0]
            mixed = conv["bn"](conv["conv"](x)) + mixer["rbr_skip"](x)
            x = x + self.token_mixer.layer_scale * (mixed - self.token_mixer["norm"]["rbr_skip"](x))
            ffn = self.convffn
            hidden = nn.functional.gelu(ffn["fc1"](ffn["conv"]["bn"](ffn["conv"]["conv"](x))))
            x = x + self.layer_scale * ffn["fc2"](hidden)
            return x.squeeze(2).transpose(1, 2)

    return Block()


def reference_pair(row):
    """A pair of one of our rows, its modules named as open_clip's custom-text models name them."""
    import torch

    model = torch.nn.Module()
    model.visual = torch.nn.Module()
    if isinstance(row.image, clip.MCi):
        model.visual.trunk = fastvit(row.image, row.embed_dim)
    else:
        model.visual.trunk = vit(row.image, row.embed_dim, row.image_size)
    model.text = text_tower(row.text, row.embed_dim)
    model.logit_scale = torch.nn.Parameter(torch.ones([]))
    model.encode_image = lambda images: model.visual.trunk(images)
    model.encode_text = lambda tokens: model.text(tokens)
    return model


def open_clip_named(name):
    import open_clip

    return open_clip.create_model(name)


# Apple's names

APPLE_TRUNK = (  # (timm's, Apple's), regular expressions, all applied in turn
    (r"stages\.([0-2])\.blocks", lambda match: f"network.{2 * int(match[1])}"),
    (r"stages\.3\.blocks", "network.7"),
    (r"stages\.3\.pos_emb\.pos_enc", "network.6.pe"),
    (r"stages\.([1-3])\.downsample", lambda match: f"network.{2 * int(match[1]) - 1}"),
    ("^stem", "patch_embed"),
    ("conv_kxk", "rbr_conv"),
    ("conv_scale", "rbr_scale"),
    ("identity", "rbr_skip"),
    ("large_conv", "lkb_origin"),
    (r"\bmlp\b", "convffn"),
    (r"(layer_scale(_\d)?)\.gamma", r"\1"),
    (r"final_conv\.se\.fc1", "final_conv.se.reduce"),
    (r"final_conv\.se\.fc2", "final_conv.se.expand"),
    ("^final_conv", "conv_exp"),
    (r"^head\.fc\.weight", "head.proj"),
)
APPLE_BLOCKS = (
    (r"ln_1|norm1", "pre_norm_mha.0"),
    (r"ln_2|norm2", "pre_norm_ffn.0"),
    (r"attn\.in_proj_", "pre_norm_mha.1.qkv_proj."),
    (r"attn\.qkv", "pre_norm_mha.1.qkv_proj"),
    (r"attn\.(out_)?proj", "pre_norm_mha.1.out_proj"),
    (r"mlp\.(c_fc|fc1)", "pre_norm_ffn.1"),
    (r"mlp\.(c_proj|fc2)", "pre_norm_ffn.4"),
)
APPLE_VIT = (
    *APPLE_BLOCKS,
    (r"patch_embed\.backbone\.(\d)\.conv", r"patch_emb.\1.block.conv"),
    (r"patch_embed\.backbone\.(\d)\.bn", r"patch_emb.\1.block.norm"),
    (r"^blocks", "transformer"),
    (r"^norm", "post_transformer_norm"),
    (r"^pos_embed$", "pos_embed.pos_embed.pos_embed"),
    (r"^head\.weight", "classifier.proj"),
)
APPLE_TEXT = (
    *APPLE_BLOCKS,
    (r"transformer\.resblocks", "transformer"),
    ("^token_embedding", "embedding_layer"),
    ("^positional_embedding", "positional_embedding.pos_embed.pos_embed"),
    ("^ln_final", "final_layer_norm"),
    ("^text_projection", "projection_layer"),
)


def apple_state(model):
    """A reference pair's weights as Apple's files have them."""
    trunk = APPLE_VIT if hasattr(model.visual.trunk, "blocks") else APPLE_TRUNK
    sides = {"visual.trunk.": ("image_encoder.model.", trunk), "text.": ("text_encoder.", APPLE_TEXT)}
    state = {}
    for key, value in model.state_dict().items():
        for prefix, (apples, table) in sides.items():
            if key.startswith(prefix):
                key = apples + functools.reduce(lambda k, rule: re.sub(*rule, k), table, key.removeprefix(prefix))
        if key.endswith(("head.proj", "classifier.proj")):
            value = value.T
        elif key.endswith("pos_embed.pos_embed"):
            value = value.reshape(1, 1, *value.shape[-2:])
        if not re.fullmatch(r"image_encoder\.model\.head(\.fc)?\.bias", key):
            state[key] = value
    return state


# Outputs


def run(model, case):
    """`run_pair` of weights that show more: positions and class token matter; Apple's projections have no bias."""
    import torch

    trunk, generator = model.visual.trunk, torch.Generator().manual_seed(SEED)
    for name in ("cls_token", "pos_embed"):
        if hasattr(trunk, name):
            parameter = getattr(trunk, name)
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    if case.state:
        getattr(trunk.head, "fc", trunk.head).bias.zero_()
    if "reparameterised" in case.name:
        from timm.utils import reparameterize_model

        model.visual.trunk = reparameterize_model(trunk)
    return run_pair(model, case)


def pieces_of(row):
    """What is compared of a pair of this row."""
    image, text = row.image, row.text
    if isinstance(image, clip.MCi):
        inner = [f"image_stage_{stage}" for stage in range(len(image.depths))]
    else:
        inner = [f"image_block_{index}" for index in some(image.layers)]
    blocks = [f"text_block_{index}" for index in some(text.layers + (2 if text.mixer_kernel else 0))]
    return [
        *("image_stem", *inner, "image_pooled", "image_embedding", "image_normalized"),
        *("text_token_embedding", *blocks, "text_pooled", "text_embedding", "text_normalized"),
        *("logits", "loss", "logit_scale_gradient"),
    ]


# The cases

CAUSAL, ALL_SEE_ALL = clip.Text(64, 2, 2), clip.Text(64, 2, 2, causal=False)
MCT = clip.Text(64, 2, 2, causal=False, mixer_kernel=11)
NARROW_MCI = {"depths": (1, 2, 1, 2), "dims": (16, 32, 64, 128)}
WIDE_MCI = clip.MCi((1, 1, 2, 1, 1), (8, 16, 32, 64, 128), 4, 2, 0, "layer", stem_scale=False)
STEM_VIT = {"width": 128, "layers": 3, "patch_size": 16, "stem_dim": 32, "projection_bias": True}
NARROW = {
    "MobileCLIP-S1_narrow": clip.Pair(48, 101, clip.MCi(**NARROW_MCI), ALL_SEE_ALL),  # 101: odd maps
    "MobileCLIP2-S3_narrow": clip.Pair(40, 128, WIDE_MCI, ALL_SEE_ALL),
    "MobileCLIP-B_narrow": clip.Pair(40, 64, clip.ViT(**STEM_VIT, epsilon=1e-6), CAUSAL),
    "MobileCLIP2-L-14_narrow": clip.Pair(40, 70, clip.ViT(128, 3, 14, projection_bias=True), ALL_SEE_ALL),
    "MobileCLIP-S1_reparameterised": clip.Pair(48, 96, clip.MCi(**NARROW_MCI, reparameterized=True), ALL_SEE_ALL),
}
APPLES = {
    "MobileCLIP-S0_narrow": clip.Pair(40, 96, clip.MCi(**NARROW_MCI), MCT),
    "MobileCLIP-B_narrow": clip.Pair(40, 64, clip.ViT(**STEM_VIT, stem_padding=1), CAUSAL),
}
APART = ("MobileCLIP-S0", "MobileCLIP2-S2", "MobileCLIP2-B")  # below; architectures of the first version
NAMED = [name for name in clip.VARIANTS if name.startswith("MobileCLIP") and name not in APART]


def cases():
    """Every `Case` of MobileCLIP; the named rows, each once, are whole and for `--full`."""
    for label, row in NARROW.items():
        yield own_case("open_clip", row, label)
    for label, row in APPLES.items():
        yield own_case("apple", row, label, apple_state)
    for name in NAMED:
        row = clip.VARIANTS[name]
        shape = {"sizes": ((row.image_size,) * 2,), "pieces": pieces_of(row), "full": True}
        yield Case("open_clip", f"clip/{name}", lambda name=name: open_clip_named(name), run, **shape)
    row = clip.VARIANTS["MobileCLIP-S0"]
    yield own_case("apple", row, "MobileCLIP-S0", apple_state, full=True)


def own_case(source, row, label, state=None, full=False):
    """A case of a row without a name."""
    shape = {"sizes": ((row.image_size,) * 2,), "pieces": pieces_of(row), "full": full}
    create = lambda: reference_pair(row)  # noqa: E731
    return Case(source, "clip", create, run, row=row.to_dict(), label=label, state=state, **shape)
