"""A model in memory → the `ModelConfig` that rebuilds it, derived from its layers.

A model need not remember how it was created: one loaded from a `.keras` file can be saved too.
"""

import dataclasses
import math
import re
from typing import TYPE_CHECKING

import convnext
from zoo.weights.config import DOWNSAMPLE_STRIDE, ModelConfig, row_of, variant_of
from zoo.weights.schema import CLIP, RESNET, check_arguments

if TYPE_CHECKING:
    import keras


def describe(model: "keras.Model") -> ModelConfig:
    """Return the `ModelConfig` of a model that one of this package's builders made.

    Raises:
        ValueError: it was made otherwise; the message says how to save it instead.
    """
    if hasattr(model, "image_encoder") and hasattr(model, "text_encoder"):
        arguments = _pair_arguments(model)
        check_arguments(CLIP, arguments, f"model {model.name!r}")
        return ModelConfig(CLIP, arguments, origin=model.name)
    layers = convnext.layers_by_name(model)
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
    arguments |= _common_arguments(model, layers)
    config = ModelConfig(family, arguments, origin=model.name)
    check_arguments(family, arguments, f"model {model.name!r}")
    _check_same_layers(model, config)
    return config


def _not_ours(model, reason):
    return ValueError(
        f"Model {model.name!r} was not made by create_convnext_v1, create_convnext_v2, create_resnet or "
        f"create_clip(variant): {reason}. Save it whole with model.save('….keras')."
    )


def _pair_arguments(model):
    if model.architecture is None:
        raise ValueError(
            f"The towers of {model.name!r} are custom or folded, and a .safetensors file cannot say how to rebuild "
            "them. Save the pair before folding, or save it whole with model.save('….keras')."
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
    strides = [layers[f"stages_{stage}_downsample_conv"].strides[0] for stage in range(1, len(depths))]
    return {
        "variant": variant_of(family, row_of(family, row)),
        "stem_stride": stem.strides[0],
        **({} if set(strides) <= {DOWNSAMPLE_STRIDE} else {"downsample_strides": strides}),
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
    return {"variant": variant_of(RESNET, row_of(RESNET, row))}


def _depths(layers, pattern):
    """Number of blocks of each stage, counted by a layer that every block has once."""
    stages = [int(match[1]) for name in layers if (match := re.fullmatch(pattern, name))]
    return [stages.count(stage) for stage in sorted(set(stages))]


def _common_arguments(model, layers):
    """Arguments that all classifiers have: input and head."""
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
    """Name of a layer's activation, None for the identity; a custom callable gives a value that is not a name."""
    import keras

    name = keras.activations.serialize(layer.activation)
    return None if name == "linear" else name


_UNCOMPARED = {"name", "dtype", "trainable", "units", "filters"}  # sizes are compared by the number of weights


def _check_same_layers(model, config):
    """ValueError unless the builder makes these layers from the config.

    The comparison is with a narrow model, which has the same layers and costs little memory.
    """
    row = config.row
    narrow = {**dataclasses.asdict(row), "dims": [8] * len(row.dims)}
    if "stem_dim" in narrow:
        narrow["stem_dim"] = 8 if row.stem_dim == row.dims[0] else 16  # where they differ, a basic block has a shortcut
    twin = ModelConfig(config.family, {**config.arguments, "variant": narrow}).build(saved=True)
    ours, theirs = _layer_configs(model), _layer_configs(twin)
    different = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    if different:
        raise _not_ours(model, f"it differs from theirs in {', '.join(different[:5])}")
    counted, expected = trainable_weights(model), config.count_weights()
    if counted != expected:
        raise _not_ours(model, f"it has {counted:,} weights, theirs {expected:,}")


def _layer_configs(model):
    configs = {}
    for name, layer in convnext.layers_by_name(model).items():
        config = layer.get_config()
        kept = {key: config[key] for key in config if key not in _UNCOMPARED and not key.endswith("initializer")}
        configs[name] = (type(layer).__name__, kept)
    return configs


def trainable_weights(model: "keras.Model") -> int:
    """Number of weights, frozen ones included, without moving statistics."""
    return sum(math.prod(v.shape) for v in model.weights if not v.path.rpartition("/")[2].startswith("moving_"))
