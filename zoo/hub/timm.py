"""timm's `config.json`: an architecture by name and its `pretrained_cfg` → `Recipe`."""

from zoo.convert.native import Description
from zoo.convert.schema import CLIP
from zoo.hub.values import check_fixed, refusal, section, spec
from zoo.names import find
from zoo.pretrained import spelled_licence
from zoo.recipes import Recipe, default_arguments

CROP_MODES = {"center": "shortest", "squash": "squash"}


def read(values, filename):
    """The `Recipe` of a timm configuration; its older form has no "pretrained_cfg" and all of it at the top.

    Raises:
        ValueError: it describes another model than our classifiers; the field is named.
    """
    entry = find(str(values["architecture"]))
    if entry.family == CLIP:
        raise refusal(filename, "architecture", values["architecture"], "a classifier of `zoo list`")
    check_fixed(values.get("model_args") or {}, {}, (), filename, "model_args.")
    said = section(values, "pretrained_cfg", filename) if "pretrained_cfg" in values else values
    size, preprocess = _preprocess(said, filename)
    arguments = default_arguments(entry.family, entry.label, entry.name) | {"input_shape": [*size, 3]}
    licence = spelled_licence(said.get("license"))
    return Recipe(Description(entry.family, arguments, preprocess, licence), filename, from_weights=True)


def _preprocess(said, filename):
    size = said.get("input_size", [3, 224, 224])
    if not isinstance(size, list) or len(size) != 3 or size[0] != 3:
        raise refusal(filename, "input_size", size, "[3, height, width]")
    mode = said.get("crop_mode") or "center"
    if mode not in CROP_MODES:
        raise refusal(filename, "crop_mode", mode, " or ".join(CROP_MODES))
    _, height, width = size
    fields = {key: said[key] for key in ("mean", "std", "interpolation", "crop_pct") if said.get(key) is not None}
    fields |= {"image_size": height if height == width else (height, width)}
    fields |= {"resize_mode": CROP_MODES[mode], "rgb_first": True}
    return (height, width), spec(fields, filename)
