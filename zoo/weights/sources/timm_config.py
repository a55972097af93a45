"""timm's `config.json`, which `timm.create_model("local-dir:…")` and `"hf-hub:…"` read beside the weights."""

from zoo.weights.native import row_of
from zoo.weights.schema import RESNET

# what a table's row and timm's class agree on: family → (first convolution, classifier), as timm names its modules
MODULES = {"convnext": ("stem.0", "head.fc"), "convnextv2": ("stem.0", "head.fc"), RESNET: ("conv1", "fc")}
CROP_MODES = {"shortest": "center", "squash": "squash"}
ACTIVATIONS = ("gelu", "relu", "silu", "sigmoid", "tanh", "elu", "selu", "mish", "relu6")  # the same in both libraries


def timm_config(description):
    """The configuration of a classifier or trunk, as JSON has it.

    A row of one's own is timm's model of that kind with `model_args`, which timm hands to its builder.

    Args:
        description: `Description`; without `preprocess` timm takes its own defaults (ImageNet's mean and std, bicubic,
            crop_pct 0.875).

    Raises:
        ValueError: the pictures or the activation are such that timm has no word for it.
    """
    arguments, family = description.arguments, description.family
    channels, size = arguments["input_shape"][-1], arguments["input_shape"][:2]
    classes = arguments["num_classes"] if arguments["include_top"] else 0
    spec = description.preprocess
    size = size if None not in size else spec.size if spec else (224, 224)
    first, classifier = MODULES[family]
    name, model_args = _architecture(family, arguments)
    model_args |= {"in_chans": channels} if channels != 3 else {}
    return {
        "architecture": name,
        "num_classes": classes,
        "num_features": _features(family, arguments),
        **({"model_args": model_args} if model_args else {}),
        "pretrained_cfg": {
            "input_size": [channels, *size],
            **(_preprocess(spec) if spec else {}),
            "num_classes": classes,
            "first_conv": first,
            "classifier": classifier,
            **({"license": description.licence.lower()} if description.licence else {}),
        },
    }


def _architecture(family, arguments):
    """(timm's name, what differs from the model of that name)."""
    variant, row = arguments["variant"], row_of(family, arguments["variant"])
    if family == RESNET:
        if isinstance(variant, str):
            return f"{RESNET}{variant}", {}
        name = "resnet18" if row.block == "basic" else "resnet50"
        return name, {"layers": list(row.depths), "channels": list(row.dims)}
    scale, usual = arguments["layer_scale_init_value"], 1e-6 if family == "convnext" else None
    differing = {} if (scale is None) == (usual is None) else {"ls_init_value": scale}
    if isinstance(variant, str):
        return f"{family}_{variant}", differing
    if row.activation not in ACTIVATIONS:
        raise ValueError(f"timm has no activation as {row.activation!r} is here. Allowed: {', '.join(ACTIVATIONS)}.")
    differing |= {"depths": list(row.depths), "dims": list(row.dims)}
    differing |= {"patch_size": row.patch_size} if row.patch_size != 4 else {}
    differing |= {"norm_eps": row.epsilon} if row.epsilon != 1e-6 else {}
    differing |= {"act_layer": row.activation} if row.activation != "gelu" else {}
    return f"{family}_tiny", differing


def _features(family, arguments):
    """Channels that the classifier reads."""
    row = row_of(family, arguments["variant"])
    return row.dims[-1] * (4 if getattr(row, "block", None) == "bottleneck" else 1)


def _preprocess(spec):
    if spec.resize_mode not in CROP_MODES:
        raise ValueError(f"timm has no resize_mode {spec.resize_mode!r}. Allowed: {', '.join(CROP_MODES)}.")
    return {
        "interpolation": spec.interpolation,
        "crop_pct": spec.crop_pct,
        "crop_mode": CROP_MODES[spec.resize_mode],
        "mean": list(spec.mean),
        "std": list(spec.std),
    }
