"""facebookresearch's own ConvNeXt and ConvNeXt-V2 classifiers."""

from zoo.convert.engine import Format
from zoo.convert.layouts import SPREAD_GRN_GREEK

CONVNEXT = (
    ("downsample_layers.0.0", "stem_conv"),
    ("downsample_layers.0.1", "stem_norm"),
    ("downsample_layers.{s}.0", "stages_{s}_downsample_norm"),
    ("downsample_layers.{s}.1", "stages_{s}_downsample_conv"),
    ("stages.{s}.{b}.dwconv", "stages_{s}_blocks_{b}_dwconv"),
    ("stages.{s}.{b}.norm", "stages_{s}_blocks_{b}_norm"),
    ("stages.{s}.{b}.pwconv1", "stages_{s}_blocks_{b}_pwconv1"),
    ("stages.{s}.{b}.grn", "stages_{s}_blocks_{b}_grn", SPREAD_GRN_GREEK),
    ("stages.{s}.{b}.pwconv2", "stages_{s}_blocks_{b}_pwconv2"),
    ("stages.{s}.{b}.gamma", "stages_{s}_blocks_{b}_gamma"),
    ("norm", "head_norm"),
    ("head", "head_fc"),
)

FORMATS = (Format("facebookresearch ConvNeXt", {"downsample_layers.0.0.weight": 4}, {"image": CONVNEXT}),)
