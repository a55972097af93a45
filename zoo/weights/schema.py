"""Schema of a model's architecture: every builder argument with its allowed values.

No model is built from a file before `check_arguments` has passed.
"""

import math
from typing import Any

CLIP, RESNET = "clip", "resnet"


def field_error(filename: str, field: str, value: object, allowed: str) -> ValueError:
    """Return the error for one field: file, field, value, allowed values."""
    text = repr(value)
    text = text if len(text) < 200 else f"{text[:200]}…"
    return ValueError(f"{filename}: {field} is {text}. Allowed: {allowed}.")


def _is_int(value, low, high):
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_number(value, low=-math.inf, high=math.inf):
    is_real = isinstance(value, int | float) and not isinstance(value, bool)
    return is_real and math.isfinite(value) and low <= value < high


def _is_name(value):
    return isinstance(value, str) and 0 < len(value) <= 200 and value.isprintable() and "/" not in value


def _is_shape(value):
    if not isinstance(value, list) or len(value) != 3 or not _is_int(value[2], 1, 4096):
        return False
    return all(side is None or _is_int(side, 1, 65536) for side in value[:2])


ACTIVATIONS = ("gelu", "relu", "silu", "sigmoid", "softmax", "tanh", "elu", "selu", "leaky_relu", "mish", "relu6")
RATE = EPSILON = (lambda value: _is_number(value, 0, 1), "a number in [0, 1)")
ACTIVATION = (lambda value: value is None or value in ACTIVATIONS, f"null or one of {', '.join(ACTIVATIONS)}")
FLAG = (lambda value: isinstance(value, bool), "true or false")
NAME = (_is_name, "1 to 200 printable characters without '/'")
STRIDE = (lambda value: _is_int(value, 1, 64), "an integer from 1 to 64")
NUMBER_OR_NULL = (lambda value: value is None or _is_number(value), "null or a number")

CLASSIFIER = {
    "num_classes": (lambda value: _is_int(value, 1, 10**7), "an integer from 1 to 10,000,000"),
    "input_shape": (_is_shape, "[height or null, width or null, channels]"),
    "include_top": FLAG,
    "pooling": (lambda value: value in (None, "avg", "max"), "null, 'avg' or 'max'"),
    "classifier_activation": ACTIVATION,
    "name": NAME,
}
CONVNEXT = {
    **CLASSIFIER,
    "stem_stride": STRIDE,
    "layer_scale_init_value": NUMBER_OR_NULL,
    "drop_path_rate": RATE,
    "dropout_rate": RATE,
}
PAIR = {
    "image_size": (lambda value: _is_int(value, 1, 65536), "an integer from 1 to 65536"),
    "stem_stride": (lambda value: value is None or STRIDE[0](value), "null or an integer from 1 to 64"),
    "activation": (lambda value: value in ("gelu", "quick_gelu"), "'gelu' or 'quick_gelu'"),
    "init_logit_scale": (lambda value: _is_number(value, 0, 5), "a number from 0 to ln 100"),
    "init_logit_bias": NUMBER_OR_NULL,
    "name": NAME,
}
SCHEMA = {"convnext": CONVNEXT, "convnextv2": CONVNEXT, RESNET: CLASSIFIER, CLIP: PAIR}

POSITIVES = (
    lambda value: isinstance(value, list) and 1 <= len(value) <= 16 and all(_is_int(n, 1, 1 << 20) for n in value),
    "1 to 16 positive integers",
)
ROW = {
    "depths": POSITIVES,
    "dims": POSITIVES,
    "epsilon": EPSILON,
    "activation": (lambda value: value in ACTIVATIONS, f"one of {', '.join(ACTIVATIONS)}"),
    "patch_size": STRIDE,
}
RESNET_ROW = {
    **ROW,
    "block": (lambda value: value in ("basic", "bottleneck"), "'basic' or 'bottleneck'"),
    "stem_dim": (lambda value: _is_int(value, 1, 1 << 20), "a positive integer"),
}

# Fields of a custom pair; those of the image tower depend on its kind.
SIZE = (lambda value: _is_int(value, 1, 1 << 20), "a positive integer")
SIZE_OR_NULL = (lambda value: value is None or SIZE[0](value), "null or a positive integer")
DEPTH = (lambda value: _is_int(value, 1, 1024), "an integer from 1 to 1024")
DEPTHS = (
    lambda value: isinstance(value, list) and 1 <= len(value) <= 16 and all(DEPTH[0](n) for n in value),
    "1 to 16 integers from 1 to 1024",
)
COUNT = (lambda value: _is_int(value, 0, 16), "an integer from 0 to 16")
RATIO = (lambda value: _is_number(value, 0, 1024), "a number in [0, 1024)")


def _one_of(*allowed):
    return lambda value: value in allowed, f"one of {', '.join(map(repr, allowed))}"


OBJECT = (lambda value: isinstance(value, dict), "an object")
PAIR_ROW = {
    "embed_dim": SIZE,
    "image_size": PAIR["image_size"],
    "image": OBJECT,
    "text": OBJECT,
    "activation": PAIR["activation"],
}
TEXT_ROW = {
    "width": SIZE,
    "heads": SIZE,
    "layers": DEPTH,
    "context_length": SIZE,
    "vocabulary_size": SIZE,
    "causal": FLAG,
    "mixer_kernel": SIZE_OR_NULL,
}
IMAGE_ROWS = {
    "vit": {
        "width": SIZE,
        "layers": DEPTH,
        "patch_size": SIZE,
        "head_width": SIZE,
        "mlp_ratio": RATIO,
        "epsilon": EPSILON,
        "stem_dim": SIZE_OR_NULL,
        "stem_padding": COUNT,
        "projection_bias": FLAG,
    },
    "resnet": {"layers": DEPTHS, "width": SIZE},
    "convnext": {
        "family": _one_of("convnext", "convnextv2"),
        "variant": NAME,
        "projection": _one_of("linear", "mlp"),
    },
    "mci": {
        "depths": DEPTHS,
        "dims": POSITIVES,
        "mlp_ratio": RATIO,
        "attention_stages": COUNT,
        "squeeze_excite": COUNT,
        "norm": _one_of("batch", "layer"),
        "stem_scale": FLAG,
        "reparameterized": FLAG,
    },
}


def check_arguments(family: Any, arguments: Any, filename: str) -> None:
    """ValueError for a family or a builder argument that is unknown, missing or out of bounds.

    Args:
        family: "convnext", "convnextv2", "resnet" or "clip".
        arguments: of the family's builder, as JSON has them.
        filename: for the message.
    """
    if not isinstance(family, str) or family not in SCHEMA:
        raise field_error(filename, "architecture.family", family, ", ".join(SCHEMA))
    _check_fields(arguments, {"variant": (lambda _: True, ""), **SCHEMA[family]}, "architecture.arguments", filename)
    variant, field = arguments["variant"], "architecture.arguments.variant"
    names = _variant_names(family)
    if isinstance(variant, dict) and family == CLIP:
        _check_pair(variant, field, filename)
    elif isinstance(variant, dict):
        _check_fields(variant, RESNET_ROW if family == RESNET else ROW, field, filename)
        if len(variant["depths"]) != len(variant["dims"]):
            raise field_error(filename, field, variant, "as many dims as depths")
    elif not isinstance(variant, str) or variant not in names:
        raise field_error(filename, field, variant, ", ".join(names))


def _check_pair(row, field, filename):
    import clip

    _check_fields(row, PAIR_ROW, field, filename)
    _check_fields(row["text"], TEXT_ROW, f"{field}.text", filename)
    kind = row["image"].get("kind")
    if not isinstance(kind, str) or kind not in IMAGE_ROWS:
        raise field_error(filename, f"{field}.image.kind", kind, ", ".join(IMAGE_ROWS))
    _check_fields(row["image"], {"kind": NAME, **IMAGE_ROWS[kind]}, f"{field}.image", filename)
    if kind == "convnext":
        names = _variant_names(row["image"]["family"])
        if row["image"]["variant"] not in names:
            raise field_error(filename, f"{field}.image.variant", row["image"]["variant"], ", ".join(names))
    try:
        clip.Pair.from_dict(row)
    except ValueError as error:
        raise field_error(filename, field, row, f"a row that makes a pair ({error})") from error


def _variant_names(family):
    import clip
    from convnext import TABLES

    return list(clip.VARIANTS if family == CLIP else TABLES[family])


def _check_fields(value, schema, field, filename):
    if not isinstance(value, dict) or set(value) != set(schema):
        raise field_error(filename, field, value, f"an object with exactly {', '.join(schema)}")
    for key, (is_allowed, allowed) in schema.items():
        if not is_allowed(value[key]):
            raise field_error(filename, f"{field}.{key}", value[key], allowed)
