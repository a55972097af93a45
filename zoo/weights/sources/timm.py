"""timm: ConvNeXt V1 and V2, ResNet, the image towers that open_clip takes from timm, and `config.json`.

torchvision's ResNet has the same tensor names as timm's.
"""

import dataclasses
import difflib

from convnext import ACTIVATIONS
from zoo.data.preprocess import IMAGENET_MEAN, IMAGENET_STD
from zoo.weights.config import ModelConfig, catalogue, default_arguments, row_of, variant_of
from zoo.weights.engine import Format, joined
from zoo.weights.layouts import CONV_1X1, QKV, SCALE_2D, TIMM_POOL, Tensor, under_ones
from zoo.weights.published import spelled_licence
from zoo.weights.schema import CLIP, RESNET, field_error
from zoo.weights.sources.source import (
    ANY_CONVNEXT,
    PAPER_RESNET,
    TIMM_STYLE,
    Find,
    Source,
    Target,
    check_fixed,
    integer,
    integers,
    read_spec,
    section,
)

# Tensor names.

CONV_MLP = ("atto", "femto", "pico", "nano")  # rows whose linear layers timm keeps as 1×1 convolutions
NUM_BATCHES = ("{*}.num_batches_tracked", "a training counter that inference does not use")


def convnext_trunk(conv_mlp, joint="."):
    """Rules up to the head norm. The small models (atto … nano) keep their two linear layers as 1×1 convolutions.

    `joint` is "_" in the files of `features_only=True`, where the parts of the stem and the stages are children of
    the model.
    """
    pointwise = (CONV_1X1,) if conv_mlp else ()
    stage = f"stages{joint}{{s}}"
    return (
        (f"stem{joint}0", "stem_conv"),
        (f"stem{joint}1", "stem_norm"),
        (f"{stage}.downsample.0", "stages_{s}_downsample_norm"),
        (f"{stage}.downsample.1", "stages_{s}_downsample_conv"),
        (f"{stage}.blocks.{{b}}.conv_dw", "stages_{s}_blocks_{b}_dwconv"),
        (f"{stage}.blocks.{{b}}.norm", "stages_{s}_blocks_{b}_norm"),
        (f"{stage}.blocks.{{b}}.mlp.fc1", "stages_{s}_blocks_{b}_pwconv1", *pointwise),
        (f"{stage}.blocks.{{b}}.mlp.grn", "stages_{s}_blocks_{b}_grn"),
        (f"{stage}.blocks.{{b}}.mlp.fc2", "stages_{s}_blocks_{b}_pwconv2", *pointwise),
        (f"{stage}.blocks.{{b}}.gamma", "stages_{s}_blocks_{b}_gamma"),
        ("head.norm", "head_norm"),
    )


RESNET_TRUNK = joined("conv{k}", "bn{k}", "layer{s}.{b}.conv{k}", "layer{s}.{b}.bn{k}", "layer{s}.{b}.downsample.{k}")

# Image towers of CLIP models.

_SIZES = ((1, "1x1"), (2, "kxk"), (3, "1x1"))  # kernels of a bottleneck, in timm's names
_CLIP_RESNET_RULES = (
    ("stem.conv{k}.conv", "conv{k}"),
    ("stem.conv{k}.bn", "bn{k}"),
    *((f"stages.{{s}}.{{b}}.conv{k}_{size}.conv", f"layer{{s+1}}_{{b}}_conv{k}") for k, size in _SIZES),
    *((f"stages.{{s}}.{{b}}.conv{k}_{size}.bn", f"layer{{s+1}}_{{b}}_bn{k}") for k, size in _SIZES),
    ("stages.{s}.{b}.shortcut.conv.conv", "layer{s+1}_{b}_downsample_0"),
    ("stages.{s}.{b}.shortcut.conv.bn", "layer{s+1}_{b}_downsample_1"),
    ("head", "attnpool", TIMM_POOL),
)


def squeeze_excite(path, name, fc1="fc1", fc2="fc2"):
    return (f"{path}.{fc1}", f"{name}_se_fc1", CONV_1X1), (f"{path}.{fc2}", f"{name}_se_fc2", CONV_1X1)


def mixer_block(path, name, mlp, scale):
    """A block of FastViT that mixes by convolution; `mlp` is the MLP's module, `scale` the LayerScale's tensors."""
    return (
        (f"{path}.token_mixer", f"{name}_token_mixer"),
        (f"{path}.layer_scale", f"{name}_layer_scale", scale),
        (f"{path}.{mlp}.conv.conv", f"{name}_mlp_conv"),
        (f"{path}.{mlp}.conv.bn", f"{name}_mlp_bn"),
        (f"{path}.{mlp}.fc1", f"{name}_mlp_fc1", CONV_1X1),
        (f"{path}.{mlp}.fc2", f"{name}_mlp_fc2", CONV_1X1),
    )


def fastvit_blocks(path, name, mlp, scale):
    """Both kinds of blocks: what a block that mixes by attention has besides or instead comes last."""
    return (
        *mixer_block(path, name, mlp, scale),
        (f"{path}.norm", f"{name}_norm"),
        (f"{path}.token_mixer", f"{name}_attn", QKV),
        (f"{path}.layer_scale_1", f"{name}_layer_scale_1", scale),
        (f"{path}.layer_scale_2", f"{name}_layer_scale_2", scale),
    )


def fastvit_downsample(path, name):
    return (f"{path}.proj.{{k}}", f"{name}_proj_{{k}}"), *squeeze_excite(f"{path}.proj.0.se", f"{name}_proj_0")


_FASTVIT_RULES = (
    ("stem.{k}", "stem_{k}"),
    *fastvit_downsample("stages.{s}.downsample", "stages_{s}_downsample"),
    ("stages.{s}.pos_emb", "stages_{s}_pos_emb"),
    *fastvit_blocks("stages.{s}.blocks.{b}", "stages_{s}_blocks_{b}", "mlp", SCALE_2D),
    ("final_conv", "final_conv"),
    *squeeze_excite("final_conv.se", "final_conv"),
    ("head.fc", "head_proj"),
)
CLASS_TOKEN = (Tensor(("",), "class_embedding", under_ones(2)),)
_VIT_RULES = (
    ("patch_embed.proj", "conv1"),
    ("patch_embed.backbone.{k}.conv", "stem_{k}_conv"),
    ("patch_embed.backbone.{k}.bn", "stem_{k}_bn"),
    ("cls_token", "class_embedding", CLASS_TOKEN),
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
TOWERS = (  # what open_clip, under a prefix, and timm alone have: (tower, signature, rules)
    ("a FastViT", {"stem.0.conv_kxk.0.conv.weight": 4}, _FASTVIT_RULES),
    ("a re-parameterised FastViT", {"stem.0.reparam_conv.weight": 4}, _FASTVIT_RULES),
    ("a timm ViT", {"cls_token": 3, "blocks.0.attn.qkv.weight": 2}, _VIT_RULES),
)

_REFUSED = (
    ("head.pre_logits.{*}", "a hidden layer before the classifier"),
    ("norm_pre.{*}", "its last norm before the pooling"),
    ("stem.2.{*}", "a stem of several convolutions"),
)


def _convnext(name, fc1_rank, joint="."):
    rules = (*convnext_trunk(fc1_rank == 4, joint), ("head.fc", "head_fc"))
    signature = {f"stem{joint}0.weight": 4, f"stages{joint}0.blocks.0.mlp.fc1.weight": fc1_rank}
    return Format(name, signature, {"image": rules}, refused=_REFUSED)


CONVNEXT = _convnext("timm ConvNeXt", fc1_rank=2)
CONVNEXT_CONV_MLP = _convnext("timm ConvNeXt with conv_mlp", fc1_rank=4)
RESNET_FORMAT = Format(
    "timm or torchvision ResNet",
    {"conv1.weight": 4, "layer1.0.conv1.weight": 4},
    {"image": (*RESNET_TRUNK, ("fc", "head_fc"))},
    (NUM_BATCHES,),
)
FORMATS = (
    CONVNEXT,
    CONVNEXT_CONV_MLP,
    _convnext("timm ConvNeXt of features_only", 2, "_"),
    _convnext("timm ConvNeXt of features_only with conv_mlp", 4, "_"),
    RESNET_FORMAT,
    Format(
        "timm's ResNet with an attention pool",
        {"stem.conv1.conv.weight": 4, "head.pos_embed": 2},
        {"image": _CLIP_RESNET_RULES},
        (NUM_BATCHES,),
    ),
    *(Format(f"timm's trunk, {name}", keys, {"image": rules}, (NUM_BATCHES,)) for name, keys, rules in TOWERS),
)

# Configuration read: `config.json` with an architecture by name, its `model_args` and its `pretrained_cfg`.

_MODEL_ARGS = {  # arguments of timm's builders that our rows can vary
    **dict.fromkeys(
        ("convnext", "convnextv2"),
        ("depths", "dims", "patch_size", "norm_eps", "act_layer", "ls_init_value", "in_chans"),
    ),
    RESNET: ("layers", "channels", "in_chans"),
}
_CROP_MODES = {"center": "shortest", "squash": "squash"}  # timm's crop_mode → our resize_mode
_DEFAULTS = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "interpolation": "bicubic", "crop_pct": 0.875}  # timm's


def _read_config(values: dict, filename: str, _: Find) -> ModelConfig:
    """The `ModelConfig` of a timm configuration; its older form has no "pretrained_cfg" and all fields at the top.

    Raises:
        ValueError: it describes a model that this package does not make; the message names the field.
    """
    name = str(values["architecture"]).partition(".")[0]
    family, label = catalogue().get(name, (CLIP, ""))
    if family == CLIP:
        classifiers = [known for known, (family, _) in catalogue().items() if family != CLIP]
        near = ", ".join(difflib.get_close_matches(name[:100], classifiers, n=3))
        allowed = f"a classifier of `zoo list`{', such as ' if near else ''}{near}"
        raise field_error(filename, "architecture", values["architecture"], allowed)
    model_args = section(values, "model_args", filename) if values.get("model_args") else {}
    check_fixed(model_args, {}, _MODEL_ARGS[family], filename, "model_args.")
    pretrained = section(values, "pretrained_cfg", filename) if "pretrained_cfg" in values else values
    channels = integer(model_args, "in_chans", 3, filename, "model_args.")
    size, preprocess = _read_preprocess(pretrained, channels, filename)
    arguments = default_arguments(family, _read_variant(family, label, model_args, filename), name)
    arguments |= {"input_shape": [*size, channels]}
    arguments |= {"layer_scale_init_value": model_args["ls_init_value"]} if "ls_init_value" in model_args else {}
    licence = spelled_licence(pretrained.get("license"))
    return ModelConfig(family, arguments, preprocess, licence, origin=filename, from_weights=True)


def _read_variant(family, label, model_args, filename):
    """The table's name of the row, or a custom row from `model_args`."""
    row = row_of(family, label)
    renamed = {"norm_eps": "epsilon", "act_layer": "activation"}
    depths, dims = ("layers", "channels") if family == RESNET else ("depths", "dims")
    row = dataclasses.replace(
        row,
        depths=integers(model_args, depths, row.depths, filename),
        dims=integers(model_args, dims, row.dims, filename),
        patch_size=integer(model_args, "patch_size", row.patch_size, filename, "model_args."),
        **{ours: model_args[theirs] for theirs, ours in renamed.items() if theirs in model_args},
    )
    return variant_of(family, row)


def _read_preprocess(pretrained, channels, filename):
    size = pretrained.get("input_size", [channels, 224, 224])
    if not isinstance(size, list) or len(size) != 3 or size[0] != channels:
        raise field_error(filename, "input_size", size, f"[{channels}, height, width]")
    mode = pretrained.get("crop_mode") or "center"
    if not isinstance(mode, str) or mode not in _CROP_MODES:
        raise field_error(filename, "crop_mode", mode, " or ".join(_CROP_MODES))
    _, height, width = size
    fields = _DEFAULTS | {key: pretrained[key] for key in _DEFAULTS if pretrained.get(key) is not None}
    fields |= {"image_size": height if height == width else (height, width)}
    fields |= {"resize_mode": _CROP_MODES[mode], "rgb_first": True}
    return (height, width), read_spec(fields, filename)


# Configuration written: what `timm.create_model("local-dir:…")` and `"hf-hub:…"` read beside the weights.

# family → (first convolution, classifier), as timm names its modules
_MODULES = {"convnext": ("stem.0", "head.fc"), "convnextv2": ("stem.0", "head.fc"), RESNET: ("conv1", "fc")}


def _target(config: ModelConfig) -> Target:
    """A classifier or trunk for timm."""
    configs = {"config.json": _written_config(config)}
    if config.family == RESNET:
        return Target((RESNET_FORMAT,), configs=configs)
    has_conv_mlp = config.arguments["variant"] in CONV_MLP  # timm's own class, used for custom rows, has none
    return Target((CONVNEXT_CONV_MLP if has_conv_mlp else CONVNEXT,), configs=configs)


def _written_config(config: ModelConfig) -> dict:
    """`config.json` of a classifier or trunk.

    A custom row becomes timm's model of that kind with `model_args`, which timm passes to its builder. Without
    `config.preprocess` timm uses its defaults (ImageNet's mean and std, bicubic, crop_pct 0.875).

    Raises:
        ValueError: timm has no such resize mode or activation.
    """
    arguments, family, spec = config.arguments, config.family, config.preprocess
    height, width, channels = config.input_shape
    size = spec.size if spec else (224, 224)
    if height is not None and width is not None:
        size = (height, width)
    classes = arguments["num_classes"] if arguments["include_top"] else 0
    first, classifier = _MODULES[family]
    name, model_args = _written_architecture(config)
    model_args |= {"in_chans": channels} if channels != 3 else {}
    features = config.row.dims[-1] * (4 if getattr(config.row, "block", None) == "bottleneck" else 1)
    return {
        "architecture": name,
        "num_classes": classes,
        "num_features": features,
        **({"model_args": model_args} if model_args else {}),
        "pretrained_cfg": {
            "input_size": [channels, *size],
            **(_written_preprocess(spec) if spec else {}),
            "num_classes": classes,
            "first_conv": first,
            "classifier": classifier,
            **({"license": config.licence.lower()} if config.licence else {}),
        },
    }


def _written_architecture(config):
    """(timm's name, arguments that differ from the model of that name)."""
    family, variant, row = config.family, config.arguments["variant"], config.row
    if family == RESNET:
        if isinstance(variant, str):
            return f"{RESNET}{variant}", {}
        name = "resnet18" if row.block == "basic" else "resnet50"
        return name, {"layers": list(row.depths), "channels": list(row.dims)}
    scale, usual = config.arguments["layer_scale_init_value"], 1e-6 if family == "convnext" else None
    model_args = {} if (scale is None) == (usual is None) else {"ls_init_value": scale}
    if isinstance(variant, str):
        return f"{family}_{variant}", model_args
    activations = [name for name, use in ACTIVATIONS.items() if use.timm]
    if row.activation not in activations:
        raise ValueError(f"timm has no activation {row.activation!r}. Allowed: {', '.join(activations)}.")
    model_args |= {"depths": list(row.depths), "dims": list(row.dims)}
    model_args |= {"patch_size": row.patch_size} if row.patch_size != 4 else {}
    model_args |= {"norm_eps": row.epsilon} if row.epsilon != 1e-6 else {}
    model_args |= {"act_layer": row.activation} if row.activation != "gelu" else {}
    return f"{family}_tiny", model_args


def _written_preprocess(spec):
    crop_modes = {ours: theirs for theirs, ours in _CROP_MODES.items()}
    if spec.resize_mode not in crop_modes:
        raise ValueError(f"timm has no resize_mode {spec.resize_mode!r}. Allowed: {', '.join(crop_modes)}.")
    return {
        "interpolation": spec.interpolation,
        "crop_pct": spec.crop_pct,
        "crop_mode": crop_modes[spec.resize_mode],
        "mean": list(spec.mean),
        "std": list(spec.std),
    }


SOURCE = Source(
    "timm",
    FORMATS,
    "config.json",
    TIMM_STYLE,
    recognises=lambda values: "architecture" in values,
    read=_read_config,
    fixed={
        "convnext": {**ANY_CONVNEXT, "stages": 4},
        "convnextv2": {**ANY_CONVNEXT, "stages": 4},
        RESNET: PAPER_RESNET,
    },
    target=_target,
)
