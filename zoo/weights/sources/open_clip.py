"""open_clip's and OpenAI's CLIP: the text tower at the top level, the image tower under `visual.`: ViT,
OpenAI's ResNet, or timm's ConvNeXt under `visual.trunk.` with a linear or an MLP projection.
"""

from zoo.weights.engine import Format, under
from zoo.weights.layouts import LOGIT_BIAS, LOGIT_SCALE, MATRIX, TIMM_POOL
from zoo.weights.sources.timm import NUM_BATCHES, convnext_trunk

BLOCKS = (
    ("transformer.resblocks.{i}.ln_1", "transformer_resblocks_{i}_ln_1"),
    ("transformer.resblocks.{i}.attn", "transformer_resblocks_{i}_attn"),
    ("transformer.resblocks.{i}.ln_2", "transformer_resblocks_{i}_ln_2"),
    ("transformer.resblocks.{i}.mlp.c_fc", "transformer_resblocks_{i}_mlp_c_fc"),
    ("transformer.resblocks.{i}.mlp.c_proj", "transformer_resblocks_{i}_mlp_c_proj"),
)
TEXT = (
    ("token_embedding", "token_embedding"),
    ("positional_embedding", "positional_embedding"),
    *BLOCKS,
    ("ln_final", "ln_final"),
    ("text_projection", "text_projection", MATRIX),
)
VIT = (
    ("conv1", "conv1"),
    ("class_embedding", "class_embedding"),
    ("positional_embedding", "positional_embedding"),
    ("ln_pre", "ln_pre"),
    *BLOCKS,
    ("ln_post", "ln_post"),
    ("proj", "proj", MATRIX),
)
RESNET = (
    ("conv{k}", "conv{k}"),
    ("bn{k}", "bn{k}"),
    ("layer{s}.{b}.conv{k}", "layer{s}_{b}_conv{k}"),
    ("layer{s}.{b}.bn{k}", "layer{s}_{b}_bn{k}"),
    ("layer{s}.{b}.downsample.{k}", "layer{s}_{b}_downsample_{k}"),
    ("attnpool", "attnpool"),
)
SIZES = ((1, "1x1"), (2, "kxk"), (3, "1x1"))  # of a bottleneck's kernels, in timm's names
TIMM_RESNET = (
    ("stem.conv{k}.conv", "conv{k}"),
    ("stem.conv{k}.bn", "bn{k}"),
    *((f"stages.{{s}}.{{b}}.conv{k}_{size}.conv", f"layer{{s+1}}_{{b}}_conv{k}") for k, size in SIZES),
    *((f"stages.{{s}}.{{b}}.conv{k}_{size}.bn", f"layer{{s+1}}_{{b}}_bn{k}") for k, size in SIZES),
    ("stages.{s}.{b}.shortcut.conv.conv", "layer{s+1}_{b}_downsample_0"),
    ("stages.{s}.{b}.shortcut.conv.bn", "layer{s+1}_{b}_downsample_1"),
    ("head", "attnpool", TIMM_POOL),
)
PROJECTION = (
    ("head.proj", "head_proj"),
    ("head.mlp.fc1", "head_mlp_fc1"),
    ("head.mlp.fc2", "head_mlp_fc2"),
)
PAIR = (
    ("logit_scale", "logit_scale", LOGIT_SCALE),
    ("logit_bias", "logit_scale", LOGIT_BIAS),
)
ARCHIVE = "a number OpenAI's archives carry beside the weights"
IGNORED = (NUM_BATCHES, *((key, ARCHIVE) for key in ("input_resolution", "context_length", "vocab_size")))


def _convnext(fc1_rank):
    """(signature, rules) of a ConvNeXt image tower."""
    rules = (*under("trunk.", convnext_trunk(conv_mlp=fc1_rank == 4)), *PROJECTION)
    return {"trunk.stem.0.weight": 4, "trunk.stages.0.blocks.0.mlp.fc1.weight": fc1_rank}, rules


def _formats(tower, signature, rules):
    """A whole pair, and the image tower alone: the state dict of `model.visual`."""
    in_pair = {f"visual.{key}": rank for key, rank in signature.items()}
    parts = {"image": under("visual.", rules), "text": TEXT, "pair": PAIR}
    yield Format(f"open_clip with {tower}", in_pair, parts, IGNORED)
    yield Format(f"open_clip's image tower, {tower}", signature, {"image": rules}, (NUM_BATCHES,))


FORMATS = (
    *_formats("a ViT", {"conv1.weight": 4, "class_embedding": 1}, VIT),
    *_formats("a ResNet", {"conv1.weight": 4, "attnpool.q_proj.weight": 2}, RESNET),
    *_formats("a ConvNeXt", *_convnext(fc1_rank=2)),
    *_formats("a ConvNeXt with conv_mlp", *_convnext(fc1_rank=4)),
    Format(
        "timm's ResNet with an attention pool",
        {"stem.conv1.conv.weight": 4, "head.pos_embed": 2},
        {"image": TIMM_RESNET},
        (NUM_BATCHES,),
    ),
    Format(
        "open_clip's text tower",
        {"token_embedding.weight": 2, "ln_final.weight": 1},
        {"text": TEXT, "pair": PAIR},
    ),
)
