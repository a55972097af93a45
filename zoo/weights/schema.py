"""Schema of a model's architecture: every builder argument with its allowed values.

No model is built from a file before `check_arguments` has passed. The fields of a pair's towers are those that the
registered towers declare.
"""

from typing import Any

from clip import VARIANTS, Field, Pair, list_towers
from convnext import ACTIVATIONS, TABLES
from zoo.utils.strict_json import ANYTHING, OBJECT, check_fields, field_error

CLIP, RESNET = "clip", "resnet"


def _is_shape(value):
    if not isinstance(value, list) or len(value) != 3 or not Field.integer(1, 4096).allows(value[2]):
        return False
    return all(SIDE.or_null().allows(side) for side in value[:2])


SIDE = Field.integer(1, 4096)  # pixels: an image of 4096 × 4096 takes 200 MB; published models take up to 1024
LARGEST_SIZE = 1 << 20  # of a width or depth, far above any published model; the weights in the file bound them further
_SIZE = Field.integer(1, LARGEST_SIZE)
_STRIDE = Field.integer(1, 64)
_RATE = _EPSILON = Field.number(0, 1)
_BACKBONE_ACTIVATION = Field.one_of(*(name for name, use in ACTIVATIONS.items() if use.backbone))
TRANSFORMER_ACTIVATION = Field.one_of(*(name for name, use in ACTIVATIONS.items() if use.transformer))

_CLASSIFIER = {
    "num_classes": Field.integer(1, 10**7),
    "input_shape": Field(_is_shape, "[height or null, width or null, channels]"),
    "include_top": Field.flag(),
    "pooling": Field.one_of("avg", "max").or_null(),
    "classifier_activation": _BACKBONE_ACTIVATION.or_null(),
    "name": Field.name(),
}
_CONVNEXT = {
    **_CLASSIFIER,
    "stem_stride": _STRIDE,
    "layer_scale_init_value": Field.number().or_null(),
    "drop_path_rate": _RATE,
    "dropout_rate": _RATE,
}
_PAIR = {
    "image_size": SIDE,
    "stem_stride": _STRIDE.or_null(),
    "activation": TRANSFORMER_ACTIVATION,
    "init_logit_scale": Field.number(0, 5),  # ln 100 = 4.6
    "init_logit_bias": Field.number().or_null(),
    "name": Field.name(),
}
OPTIONAL = {"downsample_strides": _STRIDE.list()}  # written where they are not all 2
_SCHEMA = {"convnext": _CONVNEXT, "convnextv2": _CONVNEXT, RESNET: _CLASSIFIER, CLIP: _PAIR}

# Fields of a custom row.
_ROW = {
    "depths": _SIZE.list(),
    "dims": _SIZE.list(),
    "epsilon": _EPSILON,
    "activation": _BACKBONE_ACTIVATION,
    "patch_size": _STRIDE,
}
_RESNET_ROW = {**_ROW, "block": Field.one_of("basic", "bottleneck"), "stem_dim": _SIZE}
_PAIR_ROW = {
    "embed_dim": _SIZE,
    "image_size": SIDE,
    "image": OBJECT,
    "text": OBJECT,
    "activation": TRANSFORMER_ACTIVATION,
}


def check_arguments(family: Any, arguments: Any, filename: str) -> None:
    """ValueError for a family or a builder argument that is unknown, missing or out of bounds.

    Args:
        family: "convnext", "convnextv2", "resnet" or "clip".
        arguments: arguments of the family's builder, as JSON has them.
        filename: for the message.
    """
    if not isinstance(family, str) or family not in _SCHEMA:
        raise field_error(filename, "architecture.family", family, ", ".join(_SCHEMA))
    schema = {"variant": ANYTHING, **_SCHEMA[family]}
    if _SCHEMA[family] is _CONVNEXT and isinstance(arguments, dict):
        schema |= {key: field for key, field in OPTIONAL.items() if key in arguments}
    check_fields(arguments, schema, filename, "architecture.arguments")
    variant, field = arguments["variant"], "architecture.arguments.variant"
    if isinstance(variant, dict) and family == CLIP:
        _check_pair(variant, field, filename)
    elif isinstance(variant, dict):
        check_fields(variant, _RESNET_ROW if family == RESNET else _ROW, filename, field)
        if len(variant["depths"]) != len(variant["dims"]):
            raise field_error(filename, field, variant, "as many dims as depths")
    else:
        names = list(VARIANTS if family == CLIP else TABLES[family])
        if not isinstance(variant, str) or variant not in names:
            raise field_error(filename, field, variant, ", ".join(names))


def _check_pair(row, field, filename):
    check_fields(row, _PAIR_ROW, filename, field)
    for side, default in (("image", {}), ("text", {"kind": "text"})):  # the usual text tower's kind is not written
        fields, towers = {**default, **row[side]}, list_towers(side)
        kind = fields.get("kind")
        if not isinstance(kind, str) or kind not in towers:
            raise field_error(filename, f"{field}.{side}.kind", kind, ", ".join(towers))
        check_fields(fields, {"kind": Field.name(), **towers[kind].schema}, filename, f"{field}.{side}")
    try:
        Pair.from_dict(row)
    except (TypeError, ValueError) as error:
        raise field_error(filename, field, row, f"a row that makes a pair ({error})") from error
