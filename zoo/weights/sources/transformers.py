"""transformers' ConvNextForImageClassification, ConvNextV2For…, ResNetFor…, and CLIPModel with its ViT.

transformers gives ConvNeXt's last norm an epsilon of 1e-12. It is not in the weights; ours is the papers' 1e-6.
"""

from zoo.weights.engine import Format, under
from zoo.weights.layouts import LOGIT_SCALE, SEPARATE_QKV, SPREAD_GRN
from zoo.weights.sources.timm import NUM_BATCHES

CONVNEXT = (
    ("embeddings.patch_embeddings", "stem_conv"),
    ("embeddings.layernorm", "stem_norm"),
    ("encoder.stages.{s}.downsampling_layer.0", "stages_{s}_downsample_norm"),
    ("encoder.stages.{s}.downsampling_layer.1", "stages_{s}_downsample_conv"),
    ("encoder.stages.{s}.layers.{b}.dwconv", "stages_{s}_blocks_{b}_dwconv"),
    ("encoder.stages.{s}.layers.{b}.layernorm", "stages_{s}_blocks_{b}_norm"),
    ("encoder.stages.{s}.layers.{b}.pwconv1", "stages_{s}_blocks_{b}_pwconv1"),
    ("encoder.stages.{s}.layers.{b}.grn", "stages_{s}_blocks_{b}_grn", SPREAD_GRN),
    ("encoder.stages.{s}.layers.{b}.pwconv2", "stages_{s}_blocks_{b}_pwconv2"),
    ("encoder.stages.{s}.layers.{b}.layer_scale_parameter", "stages_{s}_blocks_{b}_gamma"),
    ("layernorm", "head_norm"),
)

# `layer.{k}` counts the convolutions of a block from 0, ours from 1.
RESNET = (
    ("embedder.embedder.convolution", "conv1"),
    ("embedder.embedder.normalization", "bn1"),
    ("encoder.stages.{s}.layers.{b}.layer.{k}.convolution", "layer{s+1}_{b}_conv{k+1}"),
    ("encoder.stages.{s}.layers.{b}.layer.{k}.normalization", "layer{s+1}_{b}_bn{k+1}"),
    ("encoder.stages.{s}.layers.{b}.shortcut.convolution", "layer{s+1}_{b}_downsample_0"),
    ("encoder.stages.{s}.layers.{b}.shortcut.normalization", "layer{s+1}_{b}_downsample_1"),
)

BLOCKS = (
    ("encoder.layers.{i}.layer_norm1", "transformer_resblocks_{i}_ln_1"),
    ("encoder.layers.{i}.self_attn", "transformer_resblocks_{i}_attn", SEPARATE_QKV),
    ("encoder.layers.{i}.layer_norm2", "transformer_resblocks_{i}_ln_2"),
    ("encoder.layers.{i}.mlp.fc1", "transformer_resblocks_{i}_mlp_c_fc"),
    ("encoder.layers.{i}.mlp.fc2", "transformer_resblocks_{i}_mlp_c_proj"),
)
VISION = (
    ("embeddings.patch_embedding", "conv1"),
    ("embeddings.class_embedding", "class_embedding"),
    ("embeddings.position_embedding.weight", "positional_embedding"),
    ("pre_layrnorm", "ln_pre"),  # spelled so
    *BLOCKS,
    ("post_layernorm", "ln_post"),
)
TEXT = (
    ("embeddings.token_embedding", "token_embedding"),
    ("embeddings.position_embedding.weight", "positional_embedding"),
    *BLOCKS,
    ("final_layer_norm", "ln_final"),
)
POSITION_IDS = ("{*}.embeddings.position_ids", "the numbers 0, 1, 2, …, no weights")


CLIP = {
    "image": (*under("vision_model.", VISION), ("visual_projection", "proj")),
    "text": (*under("text_model.", TEXT), ("text_projection", "text_projection")),
    "pair": (("logit_scale", "logit_scale", LOGIT_SCALE),),
}


def _classifier(name, prefix, rules, first, classifier):
    """A format whose keys begin with `prefix`: the model's name with a classifier, nothing without one."""
    parts = {"image": (*under(prefix, rules), (classifier, "head_fc"))}
    return Format(f"transformers {name}", {f"{prefix}{first}": 4}, parts, (NUM_BATCHES,))


PATCHES, STEM = "embeddings.patch_embeddings.weight", "embedder.embedder.convolution.weight"
CONVNEXT_V1 = _classifier("ConvNeXt", "convnext.", CONVNEXT, PATCHES, "classifier")
CONVNEXT_V2 = _classifier("ConvNeXt-V2", "convnextv2.", CONVNEXT, PATCHES, "classifier")
CONVNEXT_TRUNK = _classifier("ConvNeXt or ConvNeXt-V2", "", CONVNEXT, PATCHES, "classifier")
RESNET_CLASSIFIER = _classifier("ResNet", "resnet.", RESNET, STEM, "classifier.1")
RESNET_TRUNK = _classifier("ResNet", "", RESNET, STEM, "classifier.1")
PAIR = Format("transformers CLIP", {"vision_model.embeddings.patch_embedding.weight": 4}, CLIP, (POSITION_IDS,))

FORMATS = (
    PAIR,
    Format("transformers CLIP", {"text_model.embeddings.token_embedding.weight": 2}, CLIP, (POSITION_IDS,)),
    CONVNEXT_V1,
    CONVNEXT_V2,
    CONVNEXT_TRUNK,
    RESNET_CLASSIFIER,
    RESNET_TRUNK,
)
