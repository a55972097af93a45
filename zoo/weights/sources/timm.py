"""timm's ConvNeXt V1 and V2 and ResNet; torchvision's ResNet, which has the same names, and its ConvNeXt."""

from zoo.weights.engine import Format
from zoo.weights.layouts import CONV_1X1, SPREAD_AFTER, Tensor

CONV_MLP = ("atto", "femto", "pico", "nano")  # rows whose linear layers timm keeps as 1×1 convolutions
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


RESNET_RULES = (
    ("conv1", "conv1"),
    ("bn1", "bn1"),
    ("layer{s}.{b}.conv{k}", "layer{s}_{b}_conv{k}"),
    ("layer{s}.{b}.bn{k}", "layer{s}_{b}_bn{k}"),
    ("layer{s}.{b}.downsample.0", "layer{s}_{b}_downsample_0"),
    ("layer{s}.{b}.downsample.1", "layer{s}_{b}_downsample_1"),
    ("fc", "head_fc"),
)

# torchvision counts stages and what comes between them in one list, and LayerScale is (C, 1, 1).
COLUMN = (Tensor(("",), "gamma", SPREAD_AFTER),)
TORCHVISION_CONVNEXT_RULES = (
    ("features.0.0", "stem_conv"),
    ("features.0.1", "stem_norm"),
    ("features.{2s}.0", "stages_{s}_downsample_norm"),
    ("features.{2s}.1", "stages_{s}_downsample_conv"),
    ("features.{2s+1}.{b}.block.0", "stages_{s}_blocks_{b}_dwconv"),
    ("features.{2s+1}.{b}.block.2", "stages_{s}_blocks_{b}_norm"),
    ("features.{2s+1}.{b}.block.3", "stages_{s}_blocks_{b}_pwconv1"),
    ("features.{2s+1}.{b}.block.5", "stages_{s}_blocks_{b}_pwconv2"),
    ("features.{2s+1}.{b}.layer_scale", "stages_{s}_blocks_{b}_gamma", COLUMN),
    ("classifier.0", "head_norm"),
    ("classifier.2", "head_fc"),
)

REFUSED = (
    ("head.pre_logits.{*}", "a hidden layer before the classifier"),
    ("norm_pre.{*}", "its last norm before the pooling"),
    ("stem.2.{*}", "a stem of several convolutions"),
)


def _convnext(name, fc1_rank):
    rules = (*convnext_trunk(conv_mlp=fc1_rank == 4), ("head.fc", "head_fc"))
    signature = {"stem.0.weight": 4, "stages.0.blocks.0.mlp.fc1.weight": fc1_rank}
    return Format(name, signature, {"image": rules}, refused=REFUSED)


CONVNEXT = _convnext("timm ConvNeXt", fc1_rank=2)
CONVNEXT_CONV_MLP = _convnext("timm ConvNeXt with conv_mlp", fc1_rank=4)
RESNET = Format(
    "timm or torchvision ResNet",
    {"conv1.weight": 4, "layer1.0.conv1.weight": 4},
    {"image": RESNET_RULES},
    (NUM_BATCHES,),
)
TORCHVISION_CONVNEXT = Format(
    "torchvision ConvNeXt",
    {"features.0.0.weight": 4, "features.1.0.block.0.weight": 4},
    {"image": TORCHVISION_CONVNEXT_RULES},
)
FORMATS = (CONVNEXT, CONVNEXT_CONV_MLP, RESNET, TORCHVISION_CONVNEXT)
