"""timm's ConvNeXt V1 and V2 and ResNet; torchvision names its ResNet the same."""

from zoo.convert.engine import Format
from zoo.convert.layouts import CONV_1X1

NUM_BATCHES = ("{*}.num_batches_tracked", "a training counter that inference does not read")


def convnext_trunk(conv_mlp):
    """Rules up to the head norm. The small models (atto … nano) keep their two linear layers as 1×1 convolutions."""
    pointwise = (CONV_1X1,) if conv_mlp else ()
    return (
        ("stem.0", "stem_conv"),
        ("stem.1", "stem_norm"),
        ("stages.{s}.downsample.0", "stages_{s}_downsample_norm"),
        ("stages.{s}.downsample.1", "stages_{s}_downsample_conv"),
        ("stages.{s}.blocks.{b}.conv_dw", "stages_{s}_blocks_{b}_dwconv"),
        ("stages.{s}.blocks.{b}.norm", "stages_{s}_blocks_{b}_norm"),
        ("stages.{s}.blocks.{b}.mlp.fc1", "stages_{s}_blocks_{b}_pwconv1", *pointwise),
        ("stages.{s}.blocks.{b}.mlp.grn", "stages_{s}_blocks_{b}_grn"),
        ("stages.{s}.blocks.{b}.mlp.fc2", "stages_{s}_blocks_{b}_pwconv2", *pointwise),
        ("stages.{s}.blocks.{b}.gamma", "stages_{s}_blocks_{b}_gamma"),
        ("head.norm", "head_norm"),
    )


RESNET = (
    ("conv1", "conv1"),
    ("bn1", "bn1"),
    ("layer{s}.{b}.conv{k}", "layer{s}_{b}_conv{k}"),
    ("layer{s}.{b}.bn{k}", "layer{s}_{b}_bn{k}"),
    ("layer{s}.{b}.downsample.0", "layer{s}_{b}_downsample_0"),
    ("layer{s}.{b}.downsample.1", "layer{s}_{b}_downsample_1"),
    ("fc", "head_fc"),
)


def _convnext(name, fc1_rank):
    rules = (*convnext_trunk(conv_mlp=fc1_rank == 4), ("head.fc", "head_fc"))
    signature = {"stem.0.weight": 4, "stages.0.blocks.0.mlp.fc1.weight": fc1_rank}
    return Format(name, signature, {"image": rules})


FORMATS = (
    _convnext("timm ConvNeXt", fc1_rank=2),
    _convnext("timm ConvNeXt with conv_mlp", fc1_rank=4),
    Format(
        "timm or torchvision ResNet",
        {"conv1.weight": 4, "layer1.0.conv1.weight": 4},
        {"image": RESNET},
        (NUM_BATCHES,),
    ),
)
