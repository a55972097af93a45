"""facebookresearch: ConvNeXt and ConvNeXt-V2 classifiers, and checkpoints of masked pretraining (FCMAE).

The published FCMAE files (`pt_only`) have the classifiers' names, without final norm and head. A checkpoint of the
pretraining itself holds MinkowskiEngine's sparse layers under `encoder.`: kernels flattened over their window in column
order, biases and GRN parameters as (1, C).
"""

import math

from zoo.weights.config import ModelConfig
from zoo.weights.engine import Format, under
from zoo.weights.layouts import CONV_1X1, SPREAD_GRN_GREEK, Tensor, one, under_ones
from zoo.weights.sources.source import PAPER_CONVNEXT, Source, Target

_CONVNEXT = (
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


def _sides(kernel):
    side = math.isqrt(kernel.shape[0])
    return kernel.reshape(side, side, *kernel.shape[1:])


_ROW = under_ones(1)  # (1, C) ↔ (C,)
SPARSE = one(  # (W·H, I, O) ↔ (H, W, I, O)
    lambda a: _sides(a).swapaxes(0, 1), lambda a: a.swapaxes(0, 1).reshape(-1, *a.shape[2:])
)
SPARSE_DEPTHWISE = one(  # (W·H, C) ↔ (H, W, C, 1)
    lambda a: _sides(a).swapaxes(0, 1)[..., None], lambda a: a[..., 0].swapaxes(0, 1).reshape(-1, a.shape[2])
)
_SPARSE_CONV = (Tensor(("kernel",), "kernel", SPARSE), Tensor(("bias",), "bias", _ROW))
_SPARSE_DWCONV = (Tensor(("kernel",), "kernel", SPARSE_DEPTHWISE), Tensor(("bias",), "bias", _ROW))
_SPARSE_GRN = (Tensor(("gamma",), "gamma", _ROW), Tensor(("beta",), "beta", _ROW))

_SPARSE_ENCODER = (
    ("downsample_layers.0.0", "stem_conv"),
    ("downsample_layers.0.1", "stem_norm"),
    ("downsample_layers.{s}.0.ln", "stages_{s}_downsample_norm"),
    ("downsample_layers.{s}.1", "stages_{s}_downsample_conv", _SPARSE_CONV),
    ("stages.{s}.{b}.dwconv", "stages_{s}_blocks_{b}_dwconv", _SPARSE_DWCONV),
    ("stages.{s}.{b}.norm.ln", "stages_{s}_blocks_{b}_norm"),
    ("stages.{s}.{b}.pwconv1.linear", "stages_{s}_blocks_{b}_pwconv1"),
    ("stages.{s}.{b}.grn", "stages_{s}_blocks_{b}_grn", _SPARSE_GRN),
    ("stages.{s}.{b}.pwconv2.linear", "stages_{s}_blocks_{b}_pwconv2"),
)
_TOKEN = one(lambda a: a[0, :, 0, 0], lambda a: a[None, :, None, None])  # (1, C, 1, 1) ↔ (C,)
_DECODER = (  # of `convnext.create_fcmae`; dense, like the authors'
    ("proj", "proj", CONV_1X1),
    ("mask_token", "mask_token", (Tensor(("",), "token", _TOKEN),)),
    ("decoder.{b}.dwconv", "decoder_blocks_{b}_dwconv"),
    ("decoder.{b}.norm", "decoder_blocks_{b}_norm"),
    ("decoder.{b}.pwconv1", "decoder_blocks_{b}_pwconv1"),
    ("decoder.{b}.grn", "decoder_blocks_{b}_grn", SPREAD_GRN_GREEK),
    ("decoder.{b}.pwconv2", "decoder_blocks_{b}_pwconv2"),
    ("pred", "pred", CONV_1X1),
)

_FACEBOOK = Format("facebookresearch ConvNeXt", {"downsample_layers.0.0.weight": 4}, {"image": _CONVNEXT})
FORMATS = (
    _FACEBOOK,
    Format(
        "facebookresearch FCMAE with sparse layers",
        {"encoder.downsample_layers.0.0.weight": 4, "encoder.stages.0.0.dwconv.kernel": 2},
        {"image": under("encoder.", _SPARSE_ENCODER), "decoder": _DECODER},
    ),
)


def _target(_: ModelConfig) -> Target:
    """A classifier or trunk for the authors' code."""
    return Target((_FACEBOOK,))


SOURCE = Source(
    "facebook",
    FORMATS,
    fixed={
        "convnext": {**PAPER_CONVNEXT, "stages": 4},
        "convnextv2": {**PAPER_CONVNEXT, "stages": 4, "LayerScale": False},
    },
    target=_target,
)
