"""Models of this package → the few words that rebuild them, read off their layers.

So a model need not remember how it was made, and one that went through a `.keras` file can be saved again.
"""

import dataclasses
import math
import re

from zoo.weights.native import Description, build, count_weights, row_of
from zoo.weights.schema import CLIP, RESNET, check_arguments


def describe(model):
    """The `Description` of a model that this package's builders made, read off its layers.

    Raises:
        ValueError: it is no such model, and what to use instead.
    """
    if hasattr(model, "image_encoder") and hasattr(model, "text_encoder"):
        arguments = _pair_arguments(model)
        check_arguments(CLIP, arguments, f"model {model.name!r}")
        return Description(CLIP, arguments)
    layers = {layer.name: layer for layer in model.layers}
    try:
        if "stem_conv" in layers:
            family = "convnextv2" if "stages_0_blocks_0_grn" in layers else "convnext"
            arguments = _convnext_arguments(family, layers)
        elif "layer1_0_conv1" in layers:
            family, arguments = RESNET, _resnet_arguments(layers)
        else:
            raise KeyError("stem_conv")
    except (KeyError, AttributeError) as error:
        raise _not_ours(model, f"it lacks {error}") from error
    arguments |= _face_arguments(model, layers)
    description = Description(family, arguments)
    check_arguments(family, arguments, f"model {model.name!r}")
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
            f"The towers of {model.name!r} are your own or folded, and a .safetensors file could not say how to "
            "rebuild them. Save the pair as it was before folding, or whole with model.save('….keras')."
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
        "activation": _activation_name(layers["stages_0_blocks_0_pwconv1"]),
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
    return {"variant": _label(RESNET, row)}


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


UNCOMPARED = {"dtype", "trainable", "units", "filters"}  # sizes: compared by the count of weights


def _check_same_layers(model, description):
    """ValueError unless the builder, given the description, makes these layers.

    Asked of a narrow twin, which has the same layers and costs no memory.
    """
    row = row_of(description.family, description.arguments["variant"])
    narrow = {**dataclasses.asdict(row), "dims": [8] * len(row.dims)}
    if "stem_dim" in narrow:
        narrow["stem_dim"] = 8 if row.stem_dim == row.dims[0] else 16  # where they differ, a basic block has a shortcut
    twin = build(Description(description.family, {**description.arguments, "variant": narrow}))
    ours, theirs = _layer_configs(model), _layer_configs(twin)
    different = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    if different:
        raise _not_ours(model, f"it differs from what they make in {', '.join(different[:5])}")
    counted, expected = trainable_weights(model), count_weights(description)
    if counted != expected:
        raise _not_ours(model, f"it has {counted:,} weights, and such a model has {expected:,}")


def _layer_configs(model):
    configs = {}
    for layer in model.layers:
        config = layer.get_config()
        kept = {key: config[key] for key in config if key not in UNCOMPARED and not key.endswith("initializer")}
        configs[layer.name] = (type(layer).__name__, kept)
    return configs


def trainable_weights(model):
    """Numbers in the variables that training changes, frozen or not: all but moving statistics."""
    return sum(math.prod(v.shape) for v in model.weights if not v.path.rpartition("/")[2].startswith("moving_"))
