"""timm's `config.json`: an architecture by name, its `model_args` and its `pretrained_cfg` → `Recipe`."""

import dataclasses

from zoo.data.preprocess import IMAGENET_MEAN, IMAGENET_STD
from zoo.models.names import find
from zoo.models.recipes import Recipe, default_arguments
from zoo.weights.native import Description
from zoo.weights.published import spelled_licence
from zoo.weights.schema import CLIP, RESNET
from zoo.weights.sources.values import check_fixed, integer, integers, refusal, section, spec, variant_of

MODEL_ARGS = {  # of timm's builders: what our rows can be otherwise than the table's
    **dict.fromkeys(
        ("convnext", "convnextv2"),
        ("depths", "dims", "patch_size", "norm_eps", "act_layer", "ls_init_value", "in_chans"),
    ),
    RESNET: ("layers", "channels", "in_chans"),
}
CROP_MODES = {"center": "shortest", "squash": "squash"}
DEFAULTS = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "interpolation": "bicubic", "crop_pct": 0.875}  # timm's


def read(values, filename):
    """The `Recipe` of a timm configuration; its older form has no "pretrained_cfg" and all of it at the top.

    Raises:
        ValueError: it describes another model than our classifiers; the field is named.
    """
    entry = find(str(values["architecture"]))
    if entry.family == CLIP:
        raise refusal(filename, "architecture", values["architecture"], "a classifier of `zoo list`")
    own = section(values, "model_args", filename) if values.get("model_args") else {}
    check_fixed(own, {}, MODEL_ARGS[entry.family], filename, "model_args.")
    said = section(values, "pretrained_cfg", filename) if "pretrained_cfg" in values else values
    channels = integer(own, "in_chans", 3, filename, "model_args.")
    size, preprocess = _preprocess(said, channels, filename)
    arguments = default_arguments(entry.family, _variant(entry, own, filename), entry.name)
    arguments |= {"input_shape": [*size, channels]}
    arguments |= {"layer_scale_init_value": own["ls_init_value"]} if "ls_init_value" in own else {}
    licence = spelled_licence(said.get("license"))
    return Recipe(Description(entry.family, arguments, preprocess, licence), filename, from_weights=True)


def _variant(entry, own, filename):
    """The table's name of the row, or the row that `model_args` make of it."""
    import convnext

    row = convnext.TABLES[entry.family][entry.label]
    renamed = {"norm_eps": "epsilon", "act_layer": "activation"}
    depths, dims = ("layers", "channels") if entry.family == RESNET else ("depths", "dims")
    row = dataclasses.replace(
        row,
        depths=integers(own, depths, row.depths, filename),
        dims=integers(own, dims, row.dims, filename),
        patch_size=integer(own, "patch_size", row.patch_size, filename, "model_args."),
        **{ours: own[theirs] for theirs, ours in renamed.items() if theirs in own},
    )
    return variant_of(entry.family, row)


def _preprocess(said, channels, filename):
    size = said.get("input_size", [channels, 224, 224])
    if not isinstance(size, list) or len(size) != 3 or size[0] != channels:
        raise refusal(filename, "input_size", size, f"[{channels}, height, width]")
    mode = said.get("crop_mode") or "center"
    if mode not in CROP_MODES:
        raise refusal(filename, "crop_mode", mode, " or ".join(CROP_MODES))
    _, height, width = size
    fields = DEFAULTS | {key: said[key] for key in DEFAULTS if said.get(key) is not None}
    fields |= {"image_size": height if height == width else (height, width)}
    fields |= {"resize_mode": CROP_MODES[mode], "rgb_first": True}
    return (height, width), spec(fields, filename)
