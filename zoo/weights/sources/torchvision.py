"""torchvision: ConvNeXt, and ResNet, whose tensor names are timm's. It has no configuration files."""

from zoo.weights.config import ModelConfig
from zoo.weights.engine import Format
from zoo.weights.layouts import SPREAD_AFTER, Tensor
from zoo.weights.schema import RESNET
from zoo.weights.sources.source import PAPER_CONVNEXT, PAPER_RESNET, Source, Target
from zoo.weights.sources.timm import RESNET_FORMAT

# Stages and downsampling layers are numbered in one list; LayerScale has the shape (C, 1, 1).
_COLUMN = (Tensor(("",), "gamma", SPREAD_AFTER),)
_CONVNEXT_RULES = (
    ("features.0.0", "stem_conv"),
    ("features.0.1", "stem_norm"),
    ("features.{2s}.0", "stages_{s}_downsample_norm"),
    ("features.{2s}.1", "stages_{s}_downsample_conv"),
    ("features.{2s+1}.{b}.block.0", "stages_{s}_blocks_{b}_dwconv"),
    ("features.{2s+1}.{b}.block.2", "stages_{s}_blocks_{b}_norm"),
    ("features.{2s+1}.{b}.block.3", "stages_{s}_blocks_{b}_pwconv1"),
    ("features.{2s+1}.{b}.block.5", "stages_{s}_blocks_{b}_pwconv2"),
    ("features.{2s+1}.{b}.layer_scale", "stages_{s}_blocks_{b}_gamma", _COLUMN),
    ("classifier.0", "head_norm"),
    ("classifier.2", "head_fc"),
)
_CONVNEXT = Format(
    "torchvision ConvNeXt", {"features.0.0.weight": 4, "features.1.0.block.0.weight": 4}, {"image": _CONVNEXT_RULES}
)


def _target(config: ModelConfig) -> Target:
    """A classifier for torchvision."""
    return Target((RESNET_FORMAT if config.family == RESNET else _CONVNEXT,))


SOURCE = Source(
    "torchvision",
    (_CONVNEXT,),
    fixed={
        "convnext": {**PAPER_CONVNEXT, "LayerScale": True, "classifier": True, "channels": 3},
        RESNET: {**PAPER_RESNET, "widths": (64, 128, 256, 512), "classifier": True, "channels": 3},
    },
    target=_target,
)
