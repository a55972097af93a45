"""MobileCLIP as its three sources name it: open_clip's custom-text layout with a timm trunk, timm's trunk alone, and
Apple's own files.

Apple's projections of images have no bias: ours is zero then. A file re-parameterised by its authors' code fits the row
with `reparameterized=True`.
"""

import dataclasses

from zoo.weights.engine import Format, under
from zoo.weights.layouts import CONV_1X1, MATRIX, NO_BIAS, QKV, SCALE_2D, Tensor, qkv, torch_tensors, under_ones
from zoo.weights.sources.open_clip import PAIR, TEXT
from zoo.weights.sources.timm import NUM_BATCHES


def _mlp(path, name):
    return (
        (f"{path}.conv.conv", f"{name}_conv"),
        (f"{path}.conv.bn", f"{name}_bn"),
        (f"{path}.fc1", f"{name}_fc1", CONV_1X1),
        (f"{path}.fc2", f"{name}_fc2", CONV_1X1),
    )


def _squeeze_excite(path, name, fc1="fc1", fc2="fc2"):
    return (f"{path}.{fc1}", f"{name}_se_fc1", CONV_1X1), (f"{path}.{fc2}", f"{name}_se_fc2", CONV_1X1)


def _mixer_block(path, name, mlp, scale):
    """A block that mixes by convolution; `scale` are the tensors of a LayerScale, `mlp` is the MLP's module."""
    return (
        (f"{path}.token_mixer", f"{name}_token_mixer"),
        (f"{path}.layer_scale", f"{name}_layer_scale", scale),
        *_mlp(f"{path}.{mlp}", f"{name}_mlp"),
    )


def _attention_block(path, name, scale):
    """What a block that mixes by attention has beside or in place of the above."""
    return (
        (f"{path}.norm", f"{name}_norm"),
        (f"{path}.token_mixer", f"{name}_attn", QKV),
        (f"{path}.layer_scale_1", f"{name}_layer_scale_1", scale),
        (f"{path}.layer_scale_2", f"{name}_layer_scale_2", scale),
    )


def _blocks(path, name, mlp, scale):
    return *_mixer_block(path, name, mlp, scale), *_attention_block(path, name, scale)


def _downsample(path, name):
    return (
        (f"{path}.proj.{{k}}", f"{name}_proj_{{k}}"),
        *_squeeze_excite(f"{path}.proj.0.se", f"{name}_proj_0"),
    )


FASTVIT = (
    ("stem.{k}", "stem_{k}"),
    *_downsample("stages.{s}.downsample", "stages_{s}_downsample"),
    ("stages.{s}.pos_emb", "stages_{s}_pos_emb"),
    *_blocks("stages.{s}.blocks.{b}", "stages_{s}_blocks_{b}", "mlp", SCALE_2D),
    ("final_conv", "final_conv"),
    *_squeeze_excite("final_conv.se", "final_conv"),
    ("head.fc", "head_proj"),
)
CLASS = (Tensor(("",), "class_embedding", under_ones(2)),)
VIT = (
    ("patch_embed.proj", "conv1"),
    ("patch_embed.backbone.{k}.conv", "stem_{k}_conv"),
    ("patch_embed.backbone.{k}.bn", "stem_{k}_bn"),
    ("cls_token", "class_embedding", CLASS),
    ("pos_embed", "positional_embedding", (Tensor(("",), "positional_embedding", under_ones(1)),)),
    ("norm_pre", "ln_pre"),
    ("blocks.{i}.norm1", "transformer_resblocks_{i}_ln_1"),
    ("blocks.{i}.attn", "transformer_resblocks_{i}_attn", QKV),
    ("blocks.{i}.norm2", "transformer_resblocks_{i}_ln_2"),
    ("blocks.{i}.mlp.fc1", "transformer_resblocks_{i}_mlp_c_fc"),
    ("blocks.{i}.mlp.fc2", "transformer_resblocks_{i}_mlp_c_proj"),
    ("norm", "ln_post"),
    ("head", "proj"),
)

# Apple's names. Stages and what stands before them are one flat list:
# stage 0, downsampling, stage 1, downsampling, stage 2, downsampling, positional encoding, stage 3.
SCALE_BARE = tuple(dataclasses.replace(entry, names=("",)) for entry in SCALE_2D)
POSITIONS = (Tensor(("",), "positional_embedding", under_ones(2)),)
PROJECTION = (*MATRIX, NO_BIAS)


def _apple_stage(network, stage):
    return _blocks(f"network.{network}.{{b}}", f"stages_{stage}_blocks_{{b}}", "convffn", SCALE_BARE)


APPLE_MCI = (
    ("patch_embed.{k}", "stem_{k}"),
    *_apple_stage(0, 0),
    *_downsample("network.1", "stages_1_downsample"),
    *_apple_stage(2, 1),
    *_downsample("network.3", "stages_2_downsample"),
    *_apple_stage(4, 2),
    *_downsample("network.5", "stages_3_downsample"),
    ("network.6", "stages_3_pos_emb"),
    *_apple_stage(7, 3),
    ("conv_exp", "final_conv"),
    *_squeeze_excite("conv_exp.se", "final_conv", "reduce", "expand"),
    ("head.proj", "head_proj", PROJECTION),
)
APPLE_BLOCKS = (
    ("transformer.{i}.pre_norm_mha.0", "transformer_resblocks_{i}_ln_1"),
    ("transformer.{i}.pre_norm_mha.1", "transformer_resblocks_{i}_attn", qkv("qkv_proj", "out_proj")),
    ("transformer.{i}.pre_norm_ffn.0", "transformer_resblocks_{i}_ln_2"),
    ("transformer.{i}.pre_norm_ffn.1", "transformer_resblocks_{i}_mlp_c_fc"),
    ("transformer.{i}.pre_norm_ffn.4", "transformer_resblocks_{i}_mlp_c_proj"),
)
APPLE_VIT = (
    ("patch_emb.{k}.block.conv", "stem_{k}_conv"),
    ("patch_emb.{k}.block.norm", "stem_{k}_bn"),
    ("cls_token", "class_embedding", CLASS),
    ("pos_embed.pos_embed.pos_embed", "positional_embedding", POSITIONS),
    *APPLE_BLOCKS,
    ("post_transformer_norm", "ln_post"),
    ("classifier.proj", "proj", PROJECTION),
)
APPLE_TEXT = (
    ("embedding_layer", "token_embedding"),
    ("positional_embedding.pos_embed.pos_embed", "positional_embedding", POSITIONS),
    *APPLE_BLOCKS,
    *_mixer_block("transformer.{i}", "transformer_resblocks_{i}", "convffn", SCALE_BARE),
    ("final_layer_norm", "ln_final"),
    ("projection_layer", "text_projection", MATRIX),
)
APPLE_NAMES = {
    "conv_kxk": "rbr_conv",
    "conv_scale": "rbr_scale",
    "identity": "rbr_skip",
    "large_conv": "lkb_origin",
    "pos_enc": "pe",
    "layer_scale.gamma": "layer_scale",
}


def apple_tensors(layer):
    """`torch_tensors` under the names that Apple gives to a convolution's branches."""
    names = {**APPLE_NAMES, "reparam_conv": "lkb_reparam"} if hasattr(layer, "small_kernel") else APPLE_NAMES
    return tuple(
        dataclasses.replace(entry, names=tuple(_rename(name, names) for name in entry.names))
        for entry in torch_tensors(layer)
    )


def _rename(name, names):
    for theirs, apples in names.items():
        name = name.replace(theirs, apples)
    return name


def _formats(tower, signature, rules):
    """A whole pair of open_clip's, its image tower alone, and timm's trunk alone."""
    sources = (
        ("open_clip with {}", "visual.trunk."),
        ("open_clip's image tower, {}", "trunk."),
        ("timm's trunk, {}", ""),
    )
    for name, prefix in sources:
        parts = {"image": under(prefix, rules)}
        if prefix == "visual.trunk.":
            parts |= {"text": under("text.", TEXT), "pair": PAIR}
        keys = {prefix + key: rank for key, rank in signature.items()}
        yield Format(name.format(tower), keys, parts, (NUM_BATCHES,))


def _otherwise_than_apples(model):
    """Apple's own MobileCLIP-B and open_clip's differ where no weight shows it; the named rows are open_clip's."""
    layers = {layer.name: layer for layer in getattr(model, "image_encoder", model).layers}
    padding, epsilon = int("stem_pad" in layers), layers["ln_post"].epsilon
    if (padding, epsilon) != (1, 1e-5):
        yield (
            f"Apple's own code has stem_padding=1 and epsilon=1e-05 in the image tower; the model has {padding} and "
            f"{epsilon}, as open_clip has for these weights."
        )


def _apple(tower, signature, rules, **fields):
    parts = {"image": under("image_encoder.model.", rules), "text": under("text_encoder.", APPLE_TEXT), "pair": PAIR}
    keys = {f"image_encoder.model.{key}": rank for key, rank in signature.items()}
    return Format(f"Apple's MobileCLIP with {tower}", keys, parts, (NUM_BATCHES,), tensors=apple_tensors, **fields)


FORMATS = (
    *_formats("a FastViT", {"stem.0.conv_kxk.0.conv.weight": 4}, FASTVIT),
    *_formats("a re-parameterised FastViT", {"stem.0.reparam_conv.weight": 4}, FASTVIT),
    *_formats("a timm ViT", {"cls_token": 3, "blocks.0.attn.qkv.weight": 2}, VIT),
    _apple("an MCi", {"patch_embed.0.rbr_conv.0.conv.weight": 4}, APPLE_MCI),
    _apple("a re-parameterised MCi", {"patch_embed.0.reparam_conv.weight": 4}, APPLE_MCI),
    _apple("a ViT", {"patch_emb.0.block.conv.weight": 4}, APPLE_VIT, remarks=_otherwise_than_apples),
    Format(
        "the text tower of open_clip's custom-text layout",
        {"text.token_embedding.weight": 2, "text.ln_final.weight": 1},
        {"text": under("text.", TEXT), "pair": PAIR},
    ),
    Format(
        "Apple's MobileCLIP text tower",
        {"text_encoder.embedding_layer.weight": 2},
        {"text": under("text_encoder.", APPLE_TEXT), "pair": PAIR},
        (NUM_BATCHES,),
        tensors=apple_tensors,
    ),
)
