"""Apple (ml-mobileclip): MobileCLIP checkpoints with the authors' own names; open_clip's are in open_clip.py.

Apple's image projections have no bias; ours is then zero. A file re-parameterised by the authors' code fits the row
with `reparameterized=True`.
"""

import dataclasses

from zoo.weights.engine import Format, under
from zoo.weights.layouts import MATRIX, NO_BIAS, SCALE_2D, Tensor, qkv, torch_tensors, under_ones
from zoo.weights.sources.open_clip import PAIR
from zoo.weights.sources.source import Source
from zoo.weights.sources.timm import (
    CLASS_TOKEN,
    NUM_BATCHES,
    fastvit_blocks,
    fastvit_downsample,
    mixer_block,
    squeeze_excite,
)

# Stages and the layers before them are numbered in one list:
# stage 0, downsampling, stage 1, downsampling, stage 2, downsampling, positional encoding, stage 3.
_SCALE_BARE = tuple(dataclasses.replace(entry, names=("",)) for entry in SCALE_2D)
_POSITIONS = (Tensor(("",), "positional_embedding", under_ones(2)),)
_PROJECTION = (*MATRIX, NO_BIAS)


def _apple_stage(network, stage):
    return fastvit_blocks(f"network.{network}.{{b}}", f"stages_{stage}_blocks_{{b}}", "convffn", _SCALE_BARE)


_APPLE_MCI = (
    ("patch_embed.{k}", "stem_{k}"),
    *_apple_stage(0, 0),
    *fastvit_downsample("network.1", "stages_1_downsample"),
    *_apple_stage(2, 1),
    *fastvit_downsample("network.3", "stages_2_downsample"),
    *_apple_stage(4, 2),
    *fastvit_downsample("network.5", "stages_3_downsample"),
    ("network.6", "stages_3_pos_emb"),
    *_apple_stage(7, 3),
    ("conv_exp", "final_conv"),
    *squeeze_excite("conv_exp.se", "final_conv", "reduce", "expand"),
    ("head.proj", "head_proj", _PROJECTION),
)
_APPLE_BLOCKS = (
    ("transformer.{i}.pre_norm_mha.0", "transformer_resblocks_{i}_ln_1"),
    ("transformer.{i}.pre_norm_mha.1", "transformer_resblocks_{i}_attn", qkv("qkv_proj", "out_proj")),
    ("transformer.{i}.pre_norm_ffn.0", "transformer_resblocks_{i}_ln_2"),
    ("transformer.{i}.pre_norm_ffn.1", "transformer_resblocks_{i}_mlp_c_fc"),
    ("transformer.{i}.pre_norm_ffn.4", "transformer_resblocks_{i}_mlp_c_proj"),
)
_APPLE_VIT = (
    ("patch_emb.{k}.block.conv", "stem_{k}_conv"),
    ("patch_emb.{k}.block.norm", "stem_{k}_bn"),
    ("cls_token", "class_embedding", CLASS_TOKEN),
    ("pos_embed.pos_embed.pos_embed", "positional_embedding", _POSITIONS),
    *_APPLE_BLOCKS,
    ("post_transformer_norm", "ln_post"),
    ("classifier.proj", "proj", _PROJECTION),
)
_APPLE_TEXT = (
    ("embedding_layer", "token_embedding"),
    ("positional_embedding.pos_embed.pos_embed", "positional_embedding", _POSITIONS),
    *_APPLE_BLOCKS,
    *mixer_block("transformer.{i}", "transformer_resblocks_{i}", "convffn", _SCALE_BARE),
    ("final_layer_norm", "ln_final"),
    ("projection_layer", "text_projection", MATRIX),
)
_APPLE_NAMES = {
    "conv_kxk": "rbr_conv",
    "conv_scale": "rbr_scale",
    "identity": "rbr_skip",
    "large_conv": "lkb_origin",
    "pos_enc": "pe",
    "layer_scale.gamma": "layer_scale",
}


def _apple_tensors(layer):
    """`torch_tensors` under the names that Apple gives to a convolution's branches."""
    names = {**_APPLE_NAMES, "reparam_conv": "lkb_reparam"} if hasattr(layer, "small_kernel") else _APPLE_NAMES
    return tuple(
        dataclasses.replace(entry, names=tuple(_rename(name, names) for name in entry.names))
        for entry in torch_tensors(layer)
    )


def _rename(name, names):
    for theirs, apples in names.items():
        name = name.replace(theirs, apples)
    return name


def _difference(model):
    """Apple's MobileCLIP-B and open_clip's differ where no weight shows it; the named rows are open_clip's."""
    layers = {layer.name: layer for layer in getattr(model, "image_encoder", model).layers}
    padding, epsilon = int("stem_pad" in layers), layers["ln_post"].epsilon
    if (padding, epsilon) != (1, 1e-5):
        yield (
            f"Apple's code has stem_padding=1 and epsilon=1e-05 in the image tower; this model has {padding} and "
            f"{epsilon}, like open_clip's for these weights."
        )


def _apple(tower, signature, rules, **fields):
    parts = {"image": under("image_encoder.model.", rules), "text": under("text_encoder.", _APPLE_TEXT), "pair": PAIR}
    keys = {f"image_encoder.model.{key}": rank for key, rank in signature.items()}
    return Format(f"Apple's MobileCLIP with {tower}", keys, parts, (NUM_BATCHES,), tensors=_apple_tensors, **fields)


FORMATS = (
    _apple("an MCi", {"patch_embed.0.rbr_conv.0.conv.weight": 4}, _APPLE_MCI),
    _apple("a re-parameterised MCi", {"patch_embed.0.reparam_conv.weight": 4}, _APPLE_MCI),
    _apple("a ViT", {"patch_emb.0.block.conv.weight": 4}, _APPLE_VIT, remarks=_difference),
    Format(
        "Apple's MobileCLIP text tower",
        {"text_encoder.embedding_layer.weight": 2},
        {"text": under("text_encoder.", _APPLE_TEXT), "pair": PAIR},
        (NUM_BATCHES,),
        tensors=_apple_tensors,
    ),
)

SOURCE = Source("apple", FORMATS)
