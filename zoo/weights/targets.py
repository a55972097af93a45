"""What a library wants of a model that it is handed: which naming, which configuration beside it, what it can be.

A library's classes fix what our rows leave open: transformers' ConvNeXt blocks have epsilon 1e-6 whatever the
configuration says. FIXED lists that, and a model that differs is refused: its outputs would not be the same there.
"""

from dataclasses import dataclass, field

from zoo.weights import pair_targets
from zoo.weights.engine import Format
from zoo.weights.native import row_of
from zoo.weights.schema import CLIP, RESNET
from zoo.weights.sources import facebook, timm, transformers
from zoo.weights.sources.timm_config import timm_config


@dataclass(frozen=True)
class Target:
    """How one model is written for one library.

    Args:
        format: the naming of its tensors.
        weights: the file that the library looks for in a folder.
        configs: file name → what it says, as JSON has it.
    """

    format: Format
    weights: str = "model.safetensors"
    configs: dict[str, dict] = field(default_factory=dict)


ANY_CONVNEXT = {"overlapping stem": False, "head norm": True}
PAPER_CONVNEXT = {"overlapping stem": False, "stages": 4, "patch size": 4, "epsilon": 1e-6, "activation": "gelu"}
PAPER_RESNET = {"stages": 4, "patch size": 7, "stem width": 64, "epsilon": 1e-5, "activation": "relu"}
FIXED = {
    ("timm", "convnext"): {**ANY_CONVNEXT, "stages": 4},
    ("timm", "convnextv2"): {**ANY_CONVNEXT, "stages": 4},
    ("timm", RESNET): PAPER_RESNET,
    ("transformers", "convnext"): {**ANY_CONVNEXT, "epsilon": 1e-6},
    ("transformers", "convnextv2"): {**ANY_CONVNEXT, "epsilon": 1e-6, "LayerScale": False},
    ("transformers", RESNET): {"patch size": 7, "epsilon": 1e-5},
    ("torchvision", "convnext"): {
        **{"overlapping stem": False, "patch size": 4, "epsilon": 1e-6, "activation": "gelu"},
        **{"LayerScale": True, "classifier": True, "channels": 3},
    },
    ("torchvision", RESNET): {**PAPER_RESNET, "widths": (64, 128, 256, 512), "classifier": True, "channels": 3},
    ("facebook", "convnext"): PAPER_CONVNEXT,
    ("facebook", "convnextv2"): {**PAPER_CONVNEXT, "LayerScale": False},
    ("transformers", CLIP): {},
    ("open_clip", CLIP): {},
}
LIBRARIES = tuple(dict.fromkeys(library for library, _ in FIXED))


def target_of(model, description, library):
    """The `Target` of a model for one of LIBRARIES.

    Args:
        model: the model described.
        description: what `describe` says of it, with what is known of its pictures and its licence.
        library: of LIBRARIES.

    Raises:
        ValueError: an unknown library, one without such models, or one whose models differ in what FIXED lists.
    """
    if library not in LIBRARIES:
        raise ValueError(f"Unknown format {library!r}. Allowed: {', '.join(LIBRARIES)}.")
    family = description.family
    if (library, family) not in FIXED:
        known = [name for name, known in FIXED if known == family]
        raise ValueError(f"{library} has no {NAMES[family]}. Formats for this model: {', '.join(known)}.")
    if family == CLIP:
        return Target(*pair_targets.pair_target(model, description, library))
    facts = _facts(description)
    for what, fixed in FIXED[library, family].items():
        if facts[what] != fixed:
            raise ValueError(
                f"{library}'s {NAMES[family]} has {what} {fixed}, and this model has {facts[what]}: "
                "its outputs would not be the same there."
            )
    return CLASSIFIERS[library](description)


NAMES = {"convnext": "ConvNeXt", "convnextv2": "ConvNeXt-V2", RESNET: "ResNet", CLIP: "image–text pair"}


def _facts(description):
    """What FIXED may ask of a classifier or trunk."""
    arguments, row = description.arguments, row_of(description.family, description.arguments["variant"])
    return {
        "stages": len(row.depths),
        "widths": row.dims,
        "patch size": row.patch_size,
        "epsilon": row.epsilon,
        "activation": row.activation,
        "stem width": getattr(row, "stem_dim", row.dims[0]),
        "overlapping stem": arguments.get("stem_stride", row.patch_size) != row.patch_size,
        "LayerScale": arguments.get("layer_scale_init_value") is not None,
        "classifier": arguments["include_top"],
        "head norm": arguments["include_top"] or arguments["pooling"] is not None,
        "channels": arguments["input_shape"][-1],
    }


def _timm(description):
    configs = {"config.json": timm_config(description)}
    if description.family == RESNET:
        return Target(timm.RESNET, configs=configs)
    has_conv_mlp = description.arguments["variant"] in timm.CONV_MLP  # timm's class itself, for one's own row, has none
    return Target(timm.CONVNEXT_CONV_MLP if has_conv_mlp else timm.CONVNEXT, configs=configs)


def _torchvision(description):
    return Target(timm.RESNET if description.family == RESNET else timm.TORCHVISION_CONVNEXT)


def _transformers(description):
    arguments, family = description.arguments, description.family
    row, has_classifier = row_of(family, arguments["variant"]), arguments["include_top"]
    name, classifier, trunk = {
        "convnext": ("ConvNext", transformers.CONVNEXT_V1, transformers.CONVNEXT_TRUNK),
        "convnextv2": ("ConvNextV2", transformers.CONVNEXT_V2, transformers.CONVNEXT_TRUNK),
        RESNET: ("ResNet", transformers.RESNET_CLASSIFIER, transformers.RESNET_TRUNK),
    }[family]
    config = {
        "architectures": [f"{name}{'ForImageClassification' if has_classifier else 'Model'}"],
        "model_type": family,
        "num_channels": arguments["input_shape"][-1],
        "depths": list(row.depths),
        "hidden_act": row.activation,
        **({"num_labels": arguments["num_classes"]} if has_classifier else {}),
        **(_resnet_config(row) if family == RESNET else _convnext_config(row, family, arguments)),
    }
    return Target(classifier if has_classifier else trunk, configs={"config.json": config})


def _resnet_config(row):
    expansion = 4 if row.block == "bottleneck" else 1
    return {
        "embedding_size": row.stem_dim,
        "hidden_sizes": [dim * expansion for dim in row.dims],
        "layer_type": row.block,
    }


def _convnext_config(row, family, arguments):
    scale = arguments["layer_scale_init_value"]  # 0 means none there
    return {
        "num_stages": len(row.depths),
        "hidden_sizes": list(row.dims),
        "patch_size": row.patch_size,
        "layer_norm_eps": row.epsilon,  # of the last norm, 1e-12 there unless said
        **({"layer_scale_init_value": 0.0 if scale is None else scale or 1e-6} if family == "convnext" else {}),
    }


CLASSIFIERS = {
    "timm": _timm,
    "transformers": _transformers,
    "torchvision": _torchvision,
    "facebook": lambda _: Target(facebook.FACEBOOK),
}
