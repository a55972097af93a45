"""Our own format: one safetensors file that says what it is.

Keys are our layer and variable names joined with ".", under `image.` and `text.` in a pair. The metadata holds
`format`, `format_version`, `architecture` (family and the builder's arguments), `preprocess`, `activation` and
`licence`; what is read back is checked field by field before anything is built from it.
"""

import dataclasses
import json
import math
import re
import weakref
from dataclasses import dataclass

from zoo.convert.engine import Format
from zoo.convert.layouts import own_tensors
from zoo.preprocess import PreprocessSpec

FORMAT = "convnext-clip-zoo"
FORMAT_VERSION = "1"
CLIP_FAMILY = "clip"
RESNET_FAMILY = "resnet"

CLASSIFIER = Format(FORMAT, {}, {"image": (("{*}", "{*}"),)}, tensors=own_tensors)
PAIR = Format(
    FORMAT,
    {},
    {
        "image": (("image.{*}", "{*}"),),
        "text": (("text.{*}", "{*}"),),
        "pair": (("logit_scale", "logit_scale"),),
    },
    tensors=own_tensors,
)


@dataclass(frozen=True)
class Description:
    """What a saved model's metadata says.

    Args:
        family: "convnext", "convnextv2", "resnet" or "clip".
        arguments: of the family's builder, all of them.
        preprocess: how images are made ready for it; None when that is not known.
        licence: of the weights; None when nobody said.
    """

    family: str
    arguments: dict
    preprocess: PreprocessSpec | None = None
    licence: str | None = None

    @property
    def format(self):
        return PAIR if self.family == CLIP_FAMILY else CLASSIFIER

    @property
    def activation(self):
        """Of the blocks: what no weight would reveal."""
        if self.family == CLIP_FAMILY:
            return self.arguments["activation"]
        return row_of(self.family, self.arguments["variant"]).activation

    def to_metadata(self):
        """str → str, for the file."""
        preprocess = self.preprocess and self.preprocess.to_dict()
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "architecture": _dumps({"arguments": self.arguments, "family": self.family}),
            "preprocess": _dumps(preprocess),
            "activation": self.activation,
            "licence": self.licence or "",
        }


def _dumps(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def row_of(family, variant):
    """The table's row of a name, or the row that a dict spells out."""
    from convnext import TABLES, ResNetVariant, Variant

    if isinstance(variant, str):
        return TABLES[family][variant]
    row = {key: tuple(value) if isinstance(value, list) else value for key, value in variant.items()}
    return (ResNetVariant if family == RESNET_FAMILY else Variant)(**row)


def build(description):
    """The `keras.Model` described, with random weights."""
    import clip
    import convnext

    arguments = dict(description.arguments)
    if description.family == CLIP_FAMILY:
        return clip.create_clip(arguments.pop("variant"), **arguments)
    create = {
        "convnext": convnext.create_convnext_v1,
        "convnextv2": convnext.create_convnext_v2,
        "resnet": convnext.create_resnet,
    }[description.family]
    variant = arguments.pop("variant")
    return create(variant if isinstance(variant, str) else row_of(description.family, variant), **arguments)


def is_own(checkpoint):
    """Whether a `Checkpoint` says that `zoo.save` wrote it."""
    return checkpoint.metadata.get("format") == FORMAT


_PROVENANCE = weakref.WeakKeyDictionary()


def remember(model, description):
    """Keeps what a file said of a model's weights, so that licence and preprocessing stay with them when saved again."""
    _PROVENANCE[model] = (description.preprocess, description.licence)


def recall(model):
    """(preprocess, licence) of the file that a model's weights came from; (None, None) for others."""
    return _PROVENANCE.get(model, (None, None))


# Reading the description off a model


def describe(model):
    """The `Description` of a model that this package's builders made, read off its layers.

    Raises:
        ValueError: it is no such model, and what to use instead.
    """
    if hasattr(model, "image_encoder") and hasattr(model, "text_encoder"):
        return Description(CLIP_FAMILY, _pair_arguments(model))
    layers = {layer.name: layer for layer in model.layers}
    try:
        if "stem_conv" in layers:
            family = "convnextv2" if "stages_0_blocks_0_grn" in layers else "convnext"
            arguments = _convnext_arguments(family, layers)
        elif "layer1_0_conv1" in layers:
            family, arguments = RESNET_FAMILY, _resnet_arguments(layers)
        else:
            raise KeyError("stem_conv")
    except (KeyError, AttributeError) as error:
        raise _not_ours(model, f"it lacks {error}") from error
    arguments |= _face_arguments(model, layers)
    description = Description(family, arguments)
    check_arguments(description, f"model {model.name!r}")
    _check_same_layers(model, description)
    return description


def _not_ours(model, reason):
    return ValueError(
        f"Model {model.name!r} was not made by create_convnext_v1, create_convnext_v2, create_resnet or "
        f"create_clip(variant): {reason}. Save it whole with model.save('….keras')."
    )


def _pair_arguments(model):
    if model.architecture is None:
        raise ValueError(
            f"The towers of {model.name!r} are your own, and a .safetensors file could not say how to rebuild them. "
            "Save the pair whole with model.save('….keras')."
        )
    own = {
        "init_logit_scale": model.init_logit_scale,
        "init_logit_bias": model.init_logit_bias,
        "name": model.name,
    }
    return {**model.architecture, **own}


def _convnext_arguments(family, layers):
    depths = _depths(layers, r"stages_(\d+)_blocks_\d+_dwconv")
    stem, last = layers["stem_conv"], f"stages_{len(depths) - 1}_blocks_{depths[-1] - 1}"
    row = {
        "depths": depths,
        "dims": [layers[f"stages_{stage}_blocks_0_pwconv2"].units for stage in range(len(depths))],
        "epsilon": layers["stem_norm"].epsilon,
        "activation": _activation_name(layers["stages_0_blocks_0_act"]),
        "patch_size": stem.kernel_size[0],
    }
    return {
        "variant": _label(family, row),
        "stem_stride": stem.strides[0],
        "layer_scale_init_value": getattr(layers.get("stages_0_blocks_0_gamma"), "init_value", None),
        "drop_path_rate": getattr(layers.get(f"{last}_drop_path"), "rate", 0.0),
        "dropout_rate": getattr(layers.get("head_drop"), "rate", 0.0),
    }


def _resnet_arguments(layers):
    depths = _depths(layers, r"layer(\d+)_\d+_conv1")
    row = {
        "depths": depths,
        "dims": [layers[f"layer{stage + 1}_0_conv1"].filters for stage in range(len(depths))],
        "epsilon": layers["bn1"].epsilon,
        "activation": _activation_name(layers["act1"]),
        "patch_size": layers["conv1"].kernel_size[0],
        "block": "bottleneck" if "layer1_0_conv3" in layers else "basic",
        "stem_dim": layers["conv1"].filters,
    }
    return {"variant": _label(RESNET_FAMILY, row)}


def _depths(layers, pattern):
    """Blocks of each stage in order, counted by the layer that every block has once."""
    stages = [int(match[1]) for name in layers if (match := re.fullmatch(pattern, name))]
    return [stages.count(stage) for stage in sorted(set(stages))]


def _label(family, row):
    """The table's name of a row, or the row itself."""
    from convnext import TABLES

    own = row_of(family, row)
    return next((label for label, known in TABLES[family].items() if known == own), row)


def _face_arguments(model, layers):
    """The arguments that both builders have: what goes in and what comes out."""
    head, pool = layers.get("head_fc"), layers.get("head_pool")
    max_pooled = type(pool).__name__ == "GlobalMaxPooling2D"
    return {
        "num_classes": head.units if head else 1000,
        "input_shape": list(model.input_shape[1:]),
        "include_top": head is not None,
        "pooling": None if head or not pool else "max" if max_pooled else "avg",
        "classifier_activation": _activation_name(head) if head else "softmax",
        "name": model.name,
    }


def _activation_name(layer):
    """The name of a layer's activation, None for the identity; a callable of the user's own gives what is no name."""
    import keras

    name = keras.activations.serialize(layer.activation)
    return None if name == "linear" else name


UNCOMPARED = {"dtype", "trainable", "units", "filters"}  # sizes: compared by the count of parameters


def _check_same_layers(model, description):
    """ValueError unless the builder, given the description, makes these layers.

    Asked of a narrow twin, which has the same layers and costs no memory.
    """
    row = row_of(description.family, description.arguments["variant"])
    narrow = {**dataclasses.asdict(row), "dims": [8] * len(row.dims)}
    if "stem_dim" in narrow:
        narrow["stem_dim"] = 8
    twin = build(Description(description.family, {**description.arguments, "variant": narrow}))
    ours, theirs = _layer_configs(model), _layer_configs(twin)
    different = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    if different:
        raise _not_ours(model, f"it differs from what they make in {', '.join(different[:5])}")


def _layer_configs(model):
    configs = {}
    for layer in model.layers:
        config = layer.get_config()
        kept = {key: config[key] for key in config if key not in UNCOMPARED and not key.endswith("initializer")}
        configs[layer.name] = (type(layer).__name__, kept)
    return configs


# Reading the description off a file


def parse(metadata, filename):
    """The `Description` in a file's metadata, every field checked.

    Raises:
        ValueError: names the file, the field, its value and what is allowed.
    """
    if metadata.get("format") != FORMAT:
        raise _bad(filename, "format", metadata.get("format"), f"{FORMAT!r}: this is not a model saved by zoo.save")
    if metadata.get("format_version") != FORMAT_VERSION:
        allowed = f"{FORMAT_VERSION!r}; a newer version of the package may read it"
        raise _bad(filename, "format_version", metadata.get("format_version"), allowed)
    architecture = _loads(metadata, "architecture", filename)
    if not isinstance(architecture, dict) or set(architecture) != {"family", "arguments"}:
        raise _bad(filename, "architecture", architecture, "an object with 'family' and 'arguments'")
    preprocess = _parse_preprocess(_loads(metadata, "preprocess", filename), filename)
    description = Description(
        architecture["family"], architecture["arguments"], preprocess, metadata.get("licence") or None
    )
    check_arguments(description, filename)
    if metadata.get("activation") != description.activation:
        raise _bad(
            filename,
            "activation",
            metadata.get("activation"),
            f"the architecture's, {description.activation!r}",
        )
    return description


def _bad(filename, field, value, allowed):
    shown = repr(value)
    shown = shown if len(shown) < 200 else f"{shown[:200]}…"
    return ValueError(f"{filename}: {field} is {shown}. Allowed: {allowed}.")


def _loads(metadata, field, filename):
    def refuse(constant):
        raise ValueError(constant)

    try:
        return json.loads(metadata[field], parse_constant=refuse)
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise _bad(filename, field, metadata.get(field), "JSON without NaN or Infinity") from error


def _parse_preprocess(value, filename):
    if value is None:
        return None
    if not isinstance(value, dict) or not set(value) >= PREPROCESS_FIELDS:
        raise _bad(filename, "preprocess", value, f"null or an object with {', '.join(sorted(PREPROCESS_FIELDS))}")
    try:
        return PreprocessSpec.from_dict(value)
    except (TypeError, ValueError) as error:
        raise _bad(filename, "preprocess", value, f"a PreprocessSpec ({error})") from error


PREPROCESS_FIELDS = {"image_size", "mean", "std", "interpolation", "resize_mode", "crop_pct"}  # of version 1


def _is_int(value, low, high):
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_number(value, low=-math.inf, high=math.inf):
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and low <= value < high
    )


def _is_name(value):
    return isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9_.\-]{1,200}", value) is not None


def _is_shape(value):
    sides_and_channels = isinstance(value, list) and len(value) == 3
    return (
        sides_and_channels and _is_int(value[2], 1, 4096) and all(s is None or _is_int(s, 1, 65536) for s in value[:2])
    )


ACTIVATIONS = (
    "gelu",
    "relu",
    "silu",
    "sigmoid",
    "softmax",
    "tanh",
    "elu",
    "selu",
    "leaky_relu",
    "mish",
    "relu6",
)
RATE = (lambda value: _is_number(value, 0, 1), "a number in [0, 1)")
ACTIVATION = (lambda value: value is None or value in ACTIVATIONS, f"null or one of {', '.join(ACTIVATIONS)}")
FLAG = (lambda value: isinstance(value, bool), "true or false")
NAME = (_is_name, "letters, digits, '_', '.', '-', at most 200")
STRIDE = (lambda value: _is_int(value, 1, 64), "an integer from 1 to 64")
NUMBER_OR_NULL = (lambda value: value is None or _is_number(value), "null or a number")

FACE = {
    "num_classes": (lambda value: _is_int(value, 1, 10**7), "an integer from 1 to 10,000,000"),
    "input_shape": (_is_shape, "[height or null, width or null, channels]"),
    "include_top": FLAG,
    "pooling": (lambda value: value in (None, "avg", "max"), "null, 'avg' or 'max'"),
    "classifier_activation": ACTIVATION,
    "name": NAME,
}
CONVNEXT = {
    **FACE,
    "stem_stride": STRIDE,
    "layer_scale_init_value": NUMBER_OR_NULL,
    "drop_path_rate": RATE,
    "dropout_rate": RATE,
}
PAIR_ARGUMENTS = {
    "image_size": (lambda value: _is_int(value, 1, 65536), "an integer from 1 to 65536"),
    "stem_stride": (lambda value: value is None or STRIDE[0](value), "null or an integer from 1 to 64"),
    "activation": (lambda value: value in ("gelu", "quick_gelu"), "'gelu' or 'quick_gelu'"),
    "init_logit_scale": (lambda value: _is_number(value, 0, 5), "a number from 0 to ln 100"),
    "init_logit_bias": NUMBER_OR_NULL,
    "name": NAME,
}
SCHEMA = {"convnext": CONVNEXT, "convnextv2": CONVNEXT, RESNET_FAMILY: FACE, CLIP_FAMILY: PAIR_ARGUMENTS}

POSITIVES = (
    lambda value: isinstance(value, list) and 1 <= len(value) <= 16 and all(_is_int(n, 1, 1 << 20) for n in value),
    "1 to 16 positive integers",
)
ROW = {
    "depths": POSITIVES,
    "dims": POSITIVES,
    "epsilon": (lambda value: _is_number(value, 0, 1), "a number in [0, 1)"),
    "activation": (lambda value: value in ACTIVATIONS, f"one of {', '.join(ACTIVATIONS)}"),
    "patch_size": STRIDE,
}
RESNET_ROW = {
    **ROW,
    "block": (lambda value: value in ("basic", "bottleneck"), "'basic' or 'bottleneck'"),
    "stem_dim": (lambda value: _is_int(value, 1, 1 << 20), "a positive integer"),
}


def check_arguments(description, filename):
    """ValueError for a family or a builder argument that is unknown, missing or out of bounds."""
    family, arguments = description.family, description.arguments
    if not isinstance(family, str) or family not in SCHEMA:
        raise _bad(filename, "architecture.family", family, ", ".join(SCHEMA))
    _check_fields(arguments, {"variant": (lambda _: True, ""), **SCHEMA[family]}, "architecture.arguments", filename)
    variant, field = arguments["variant"], "architecture.arguments.variant"
    names = _variant_names(family)
    if isinstance(variant, dict) and family != CLIP_FAMILY:
        _check_fields(variant, RESNET_ROW if family == RESNET_FAMILY else ROW, field, filename)
        if len(variant["depths"]) != len(variant["dims"]):
            raise _bad(filename, field, variant, "as many dims as depths")
    elif not isinstance(variant, str) or variant not in names:
        raise _bad(filename, field, variant, ", ".join(names))


def _variant_names(family):
    import clip
    from convnext import TABLES

    return list(clip.VARIANTS if family == CLIP_FAMILY else TABLES[family])


def _check_fields(value, schema, field, filename):
    if not isinstance(value, dict) or set(value) != set(schema):
        raise _bad(filename, field, value, f"an object with exactly {', '.join(schema)}")
    for key, (is_allowed, allowed) in schema.items():
        if not is_allowed(value[key]):
            raise _bad(filename, f"{field}.{key}", value[key], allowed)


def check_size(description, tensors, filename):
    """ValueError when the architecture needs more weights than the file has, before anything that size is allocated."""
    held, needed = sum(tensor.size for tensor in tensors.values()), least_weights(description)
    if needed > held or _blocks(description) > len(tensors):
        raise _bad(
            filename,
            "architecture.arguments",
            description.arguments,
            f"a model that {len(tensors)} tensors with {held:,} numbers can fill; this one has at least {needed:,}",
        )


def _blocks(description):
    return (
        0
        if description.family == CLIP_FAMILY
        else sum(row_of(description.family, description.arguments["variant"]).depths)
    )


def least_weights(description):
    """A lower bound, near the exact count, of the numbers in a model's variables."""
    import clip
    import convnext

    family, arguments = description.family, description.arguments
    if family == CLIP_FAMILY:
        pair = clip.VARIANTS[arguments["variant"]]
        return clip.parameters(dataclasses.replace(pair, image_size=arguments["image_size"]))
    row, channels = row_of(family, arguments["variant"]), arguments["input_shape"][-1]
    trunk = convnext.parameters(row, v2=family == "convnextv2", num_classes=None, in_channels=channels)
    optional = 2 * row.dims[-1] + (sum(d * c for d, c in zip(row.depths, row.dims, strict=True)))  # head norm, gammas
    classifier = arguments["num_classes"] * row.dims[-1] if arguments["include_top"] else 0
    return max(trunk - optional, 0) + classifier
