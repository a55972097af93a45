"""transformers: ConvNext, ConvNextV2, ResNet and CLIP models, `config.json` with the file of its processor.

transformers' default epsilon of ConvNeXt's last norm is 1e-12. It is not in the weights; ours is the papers' 1e-6.
"""

from typing import Any

import clip
import convnext
from zoo.weights.config import ModelConfig, default_arguments, name_of, variant_of
from zoo.weights.engine import Format, under
from zoo.weights.layouts import LOGIT_SCALE, SEPARATE_QKV, SPREAD_GRN
from zoo.weights.schema import CLIP, RESNET, TRANSFORMER_ACTIVATION, field_error
from zoo.weights.sources.open_clip import FREE_IN_TEXT, FREE_IN_VIT, check_plain
from zoo.weights.sources.source import (
    ANY_CONVNEXT,
    TIMM_STYLE,
    Find,
    Source,
    Target,
    check_fixed,
    integer,
    integers,
    read_object,
    read_spec,
    section,
)
from zoo.weights.sources.timm import NUM_BATCHES

# Tensor names.

_CONVNEXT_RULES = (
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

# `layer.{k}` counts the convolutions of a block from 0, our names from 1.
_RESNET_RULES = (
    ("embedder.embedder.convolution", "conv1"),
    ("embedder.embedder.normalization", "bn1"),
    ("encoder.stages.{s}.layers.{b}.layer.{k}.convolution", "layer{s+1}_{b}_conv{k+1}"),
    ("encoder.stages.{s}.layers.{b}.layer.{k}.normalization", "layer{s+1}_{b}_bn{k+1}"),
    ("encoder.stages.{s}.layers.{b}.shortcut.convolution", "layer{s+1}_{b}_downsample_0"),
    ("encoder.stages.{s}.layers.{b}.shortcut.normalization", "layer{s+1}_{b}_downsample_1"),
)

_BLOCKS = (
    ("encoder.layers.{i}.layer_norm1", "transformer_resblocks_{i}_ln_1"),
    ("encoder.layers.{i}.self_attn", "transformer_resblocks_{i}_attn", SEPARATE_QKV),
    ("encoder.layers.{i}.layer_norm2", "transformer_resblocks_{i}_ln_2"),
    ("encoder.layers.{i}.mlp.fc1", "transformer_resblocks_{i}_mlp_c_fc"),
    ("encoder.layers.{i}.mlp.fc2", "transformer_resblocks_{i}_mlp_c_proj"),
)
_VISION = (
    ("embeddings.patch_embedding", "conv1"),
    ("embeddings.class_embedding", "class_embedding"),
    ("embeddings.position_embedding.weight", "positional_embedding"),
    ("pre_layrnorm", "ln_pre"),  # [sic]
    *_BLOCKS,
    ("post_layernorm", "ln_post"),
)
_TEXT = (
    ("embeddings.token_embedding", "token_embedding"),
    ("embeddings.position_embedding.weight", "positional_embedding"),
    *_BLOCKS,
    ("final_layer_norm", "ln_final"),
)
_POSITION_IDS = ("{*}.embeddings.position_ids", "the numbers 0, 1, 2, …, not weights")

_CLIP_RULES = {
    "image": (*under("vision_model.", _VISION), ("visual_projection", "proj")),
    "text": (*under("text_model.", _TEXT), ("text_projection", "text_projection")),
    "pair": (("logit_scale", "logit_scale", LOGIT_SCALE),),
}


def _classifier(name, prefix, rules, first, classifier):
    """A format whose keys begin with `prefix`, which is "" for a trunk."""
    parts = {"image": (*under(prefix, rules), (classifier, "head_fc"))}
    return Format(f"transformers {name}", {f"{prefix}{first}": 4}, parts, (NUM_BATCHES,))


_PATCHES, _STEM = "embeddings.patch_embeddings.weight", "embedder.embedder.convolution.weight"
_CONVNEXT_V1 = _classifier("ConvNeXt", "convnext.", _CONVNEXT_RULES, _PATCHES, "classifier")
_CONVNEXT_V2 = _classifier("ConvNeXt-V2", "convnextv2.", _CONVNEXT_RULES, _PATCHES, "classifier")
_CONVNEXT_TRUNK = _classifier("ConvNeXt or ConvNeXt-V2", "", _CONVNEXT_RULES, _PATCHES, "classifier")
_RESNET_CLASSIFIER = _classifier("ResNet", "resnet.", _RESNET_RULES, _STEM, "classifier.1")
_RESNET_TRUNK = _classifier("ResNet", "", _RESNET_RULES, _STEM, "classifier.1")
_PAIR = Format(
    "transformers CLIP", {"vision_model.embeddings.patch_embedding.weight": 4}, _CLIP_RULES, (_POSITION_IDS,)
)

FORMATS = (
    _PAIR,
    Format("transformers CLIP", {"text_model.embeddings.token_embedding.weight": 2}, _CLIP_RULES, (_POSITION_IDS,)),
    _CONVNEXT_V1,
    _CONVNEXT_V2,
    _CONVNEXT_TRUNK,
    _RESNET_CLASSIFIER,
    _RESNET_TRUNK,
)

# Configuration read.

_PREPROCESSOR = "preprocessor_config.json"
_PROCESSOR = "processor_config.json"  # of transformers 5, which writes the image processor inside; it is read first
_RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
_SQUASHED_FROM = 384  # pixels: from this size on the processor of ConvNeXt resizes both sides and does not crop
_EXPANSION = {"basic": 1, "bottleneck": 4}  # of the channels of a ResNet block
_NUMBER = clip.Field.number().or_null()


def read_config(values: dict, filename: str, find: Find) -> ModelConfig:
    """The `ModelConfig` of a transformers configuration; preprocessing is read from the file beside it.

    Raises:
        ValueError: it describes a model that this package does not make; the message names the field.
    """
    family = values["model_type"]
    readers = {"convnext": _read_convnext, "convnextv2": _read_convnext, RESNET: _read_resnet}
    preprocess = _read_preprocess(find)
    if family == CLIP:
        return ModelConfig.from_pair(_read_pair(values, filename), preprocess, filename)
    if not isinstance(family, str) or family not in readers:
        raise field_error(filename, "model_type", family, ", ".join((*readers, CLIP)))
    variant, own = readers[family](values, filename)
    size = list(preprocess.size) if preprocess else [None, None]
    channels = integer(values, "num_channels", 3, filename)
    arguments = default_arguments(family, variant, name_of(family, variant, family))
    arguments |= {"input_shape": [*size, channels], **own}
    return ModelConfig(family, arguments, preprocess, origin=filename, from_weights=True)


def _read_convnext(values, filename):
    epsilon = values.get("layer_norm_eps", 1e-12)
    if epsilon not in (1e-12, 1e-6):
        raise field_error(filename, "layer_norm_eps", epsilon, "1e-6, or 1e-12, which is read as 1e-6")
    row = convnext.Variant(
        integers(values, "depths", (3, 3, 9, 3), filename),
        integers(values, "hidden_sizes", (96, 192, 384, 768), filename),
        activation=values.get("hidden_act", "gelu"),
        patch_size=integer(values, "patch_size", 4, filename),
    )
    scale = values.get("layer_scale_init_value", 1e-6) if values["model_type"] == "convnext" else None
    if not _NUMBER.allows(scale):
        raise field_error(filename, "layer_scale_init_value", scale, _NUMBER.allowed)
    scale = scale if scale and scale > 0 else None
    return variant_of(values["model_type"], row), {"layer_scale_init_value": scale, "stem_stride": row.patch_size}


def _read_resnet(values, filename):
    fixed = {"downsample_in_first_stage": False, "downsample_in_bottleneck": False}
    check_fixed({key: values[key] for key in fixed if key in values}, fixed, (), filename)
    block = values.get("layer_type", "bottleneck")
    if not isinstance(block, str) or block not in _EXPANSION:
        raise field_error(filename, "layer_type", block, " or ".join(_EXPANSION))
    sizes = integers(values, "hidden_sizes", (256, 512, 1024, 2048), filename)
    row = convnext.ResNetVariant(
        integers(values, "depths", (3, 4, 6, 3), filename),
        tuple(size // _EXPANSION[block] for size in sizes),
        activation=values.get("hidden_act", "relu"),
        block=block,
        stem_dim=integer(values, "embedding_size", 64, filename),
    )
    return variant_of(RESNET, row), {}


def _read_pair(values, filename):
    vision, text = (
        section(values, key, filename) | (section(values, f"{key}_dict", filename) if values.get(f"{key}_dict") else {})
        for key in ("vision_config", "text_config")
    )
    for config in (vision, text):
        if config.get("layer_norm_eps", 1e-5) != 1e-5:
            raise field_error(filename, "layer_norm_eps", config["layer_norm_eps"], "1e-5")
    width, heads = integer(vision, "hidden_size", 768, filename), _heads(vision, "vision_config", 768, 12, filename)
    tower = clip.ViT(
        width,
        integer(vision, "num_hidden_layers", 12, filename),
        integer(vision, "patch_size", 32, filename),
        width // heads,
        _read_mlp_ratio(width, integer(vision, "intermediate_size", 3072, filename)),
    )
    return clip.Pair(
        integer(values, "projection_dim", 512, filename),
        integer(vision, "image_size", 224, filename),
        tower,
        _read_text(text, filename),
        _read_activation(vision, text, filename),
    )


def _heads(config, name, width, heads, filename):
    """Number of attention heads, a divisor of the width; `width` and `heads` are the defaults."""
    width = integer(config, "hidden_size", width, filename, f"{name}.")
    number = integer(config, "num_attention_heads", heads, filename, f"{name}.")
    if width % number:
        raise field_error(filename, f"{name}.num_attention_heads", number, f"a divisor of hidden_size, {width}")
    return number


def _read_mlp_ratio(width, hidden):
    """`mlp_ratio` of a table row, a rounded decimal, where it gives the same hidden size; else the exact ratio."""
    rows = [row.image for row in clip.VARIANTS.values() if clip.tower_of(row.image).kind == "vit"]
    ratios = [*(row.mlp_ratio for row in rows if row.width == width), hidden / width, (hidden + 0.5) / width]
    return next(ratio for ratio in ratios if int(width * ratio) == hidden)


def _read_text(text, filename):
    width = integer(text, "hidden_size", 512, filename)
    hidden = integer(text, "intermediate_size", 2048, filename)
    if hidden != 4 * width:
        raise field_error(filename, "text_config.intermediate_size", hidden, f"{4 * width}, 4 × width")
    return clip.Text(
        width,
        _heads(text, "text_config", 512, 8, filename),
        integer(text, "num_hidden_layers", 12, filename),
        integer(text, "max_position_embeddings", 77, filename),
        integer(text, "vocab_size", 49408, filename),
    )


def _read_activation(vision, text, filename):
    """Activation of both towers; transformers allows two, our pairs have one."""
    names = [config.get("hidden_act", "quick_gelu") for config in (vision, text)]
    if names[0] != names[1] or not TRANSFORMER_ACTIVATION.allows(names[0]):
        raise field_error(filename, "hidden_act of the towers", names, f"{TRANSFORMER_ACTIVATION.allowed} for both")
    return names[0]


def _read_preprocess(find):
    """A `PreprocessSpec`, or None where there is no file or it relies on transformers' defaults."""
    path = find(_PROCESSOR)
    values = read_object(path) if path else {}
    if values.get("image_processor") is not None:
        return _spec_of(section(values, "image_processor", _PROCESSOR), _PROCESSOR)
    path = find(_PREPROCESSOR)
    return _spec_of(read_object(path), _PREPROCESSOR) if path else None


def _spec_of(values, filename):
    """The `PreprocessSpec` of an image processor, or None where it relies on transformers' defaults."""
    if any(values.get(key) is None for key in ("size", "resample", "image_mean", "image_std")):
        return None
    size, crop, resample = _side(values["size"], filename), values.get("crop_size"), values["resample"]
    if not isinstance(resample, int) or resample not in _RESAMPLING:
        raise field_error(filename, "resample", resample, f"one of {', '.join(map(str, _RESAMPLING))}")
    fields = {
        "mean": values["image_mean"],
        "std": values["image_std"],
        "interpolation": _RESAMPLING[resample],
        "rgb_first": True,
    }
    if values.get("crop_pct") is not None:
        is_small = size < _SQUASHED_FROM
        fields |= {"crop_pct": values["crop_pct"]} if is_small else {"resize_mode": "squash"}
    target = _side(crop, filename) if crop and values.get("do_center_crop") else size
    if target != size:
        fields["crop_pct"] = target / size
    return read_spec({"image_size": target, **fields}, filename)


def _side(size, filename):
    """Pixels of {"shortest_edge": n}, {"height": n, "width": n} or n."""
    if isinstance(size, dict):
        sides = list(size.values())
        size = sides[0] if sides and all(side == sides[0] for side in sides) else size
    return integer({"size": size}, "size", None, filename)


# Configuration written.

_END_OF_TEXT = 49407  # the largest token id; text features are taken at its position


def _target(config: ModelConfig) -> Target:
    """A model for transformers.

    Raises:
        ValueError: transformers has no such tower.
    """
    arguments, family, row = config.arguments, config.family, config.row
    if family == CLIP:
        written = clip_config(row, arguments["image_size"], arguments["activation"])
        return Target((_PAIR,), configs={"config.json": written})
    has_classifier = arguments["include_top"]
    name, classifier, trunk = {
        "convnext": ("ConvNext", _CONVNEXT_V1, _CONVNEXT_TRUNK),
        "convnextv2": ("ConvNextV2", _CONVNEXT_V2, _CONVNEXT_TRUNK),
        RESNET: ("ResNet", _RESNET_CLASSIFIER, _RESNET_TRUNK),
    }[family]
    written = {
        "architectures": [f"{name}{'ForImageClassification' if has_classifier else 'Model'}"],
        "model_type": family,
        "num_channels": arguments["input_shape"][-1],
        "depths": list(row.depths),
        "hidden_act": row.activation,
        **({"num_labels": arguments["num_classes"]} if has_classifier else {}),
        **(_written_resnet(row) if family == RESNET else _written_convnext(row, family, arguments)),
    }
    return Target((classifier if has_classifier else trunk,), configs={"config.json": written})


def _written_resnet(row):
    expansion = _EXPANSION[row.block]
    return {
        "embedding_size": row.stem_dim,
        "hidden_sizes": [dim * expansion for dim in row.dims],
        "layer_type": row.block,
    }


def _written_convnext(row, family, arguments):
    scale = arguments["layer_scale_init_value"]  # 0 means none there
    return {
        "num_stages": len(row.depths),
        "hidden_sizes": list(row.dims),
        "patch_size": row.patch_size,
        "layer_norm_eps": row.epsilon,  # of the last norm, whose default is 1e-12
        **({"layer_scale_init_value": 0.0 if scale is None else scale or 1e-6} if family == "convnext" else {}),
    }


def clip_config(pair: "clip.Pair", image_size: int, activation: str) -> dict[str, Any]:
    """`config.json` of transformers' CLIP for a `clip.Pair`.

    Raises:
        ValueError: transformers has no such tower.
    """
    image, text = pair.image, pair.text
    if clip.tower_of(image).kind != "vit":
        raise ValueError(
            f"transformers has no CLIP model with a {type(image).__name__} for images; export it for open_clip."
        )
    check_plain(image, "vit", "transformers", FREE_IN_VIT)
    check_plain(text, "text", "transformers", FREE_IN_TEXT)
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": pair.embed_dim,
        "vision_config": {
            "hidden_size": image.width,
            "intermediate_size": int(image.width * image.mlp_ratio),
            "num_hidden_layers": image.layers,
            "num_attention_heads": image.width // image.head_width,
            "patch_size": image.patch_size,
            "image_size": image_size,
            "hidden_act": activation,
            "projection_dim": pair.embed_dim,
        },
        "text_config": {
            "hidden_size": text.width,
            "intermediate_size": 4 * text.width,
            "num_hidden_layers": text.layers,
            "num_attention_heads": text.heads,
            "max_position_embeddings": text.context_length,
            "vocab_size": text.vocabulary_size,
            "hidden_act": activation,
            "bos_token_id": _END_OF_TEXT - 1,
            "eos_token_id": _END_OF_TEXT,
            "projection_dim": pair.embed_dim,
        },
    }


SOURCE = Source(
    "transformers",
    FORMATS,
    "config.json",
    TIMM_STYLE,
    recognises=lambda values: "model_type" in values,
    read=read_config,
    fixed={
        "convnext": {**ANY_CONVNEXT, "epsilon": 1e-6},
        "convnextv2": {**ANY_CONVNEXT, "epsilon": 1e-6, "LayerScale": False},
        RESNET: {"patch size": 7, "epsilon": 1e-5},
        CLIP: {},
    },
    target=_target,
)
