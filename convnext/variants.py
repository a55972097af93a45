"""The published sizes of ConvNeXt V1, ConvNeXt V2 and ResNet, one row per size, and what follows from a row.

Tables are read without Keras: this module imports only the standard library.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Activation:
    """Where an activation may be used.

    Args:
        backbone: in a ConvNeXt or ResNet row, and on a classifier.
        transformer: in the transformers of a CLIP model.
        timm: timm has it under the same name.
    """

    backbone: bool = True
    transformer: bool = False
    timm: bool = True


# By Keras' names, but for quick_gelu: x · sigmoid(1.702 x). "gelu" is the exact one.
ACTIVATIONS = {
    "gelu": Activation(transformer=True),
    "quick_gelu": Activation(backbone=False, transformer=True, timm=False),
    "relu": Activation(),
    "silu": Activation(),
    "sigmoid": Activation(),
    "softmax": Activation(timm=False),
    "tanh": Activation(),
    "elu": Activation(),
    "selu": Activation(),
    "leaky_relu": Activation(timm=False),  # Keras' slope is 0.2, torch's 0.01
    "mish": Activation(),
    "relu6": Activation(),
}


@dataclass(frozen=True)
class Variant:
    """One row of the ConvNeXt tables; one stage per depth.

    Args:
        depths: blocks in each stage.
        dims: channels C of each stage.
        epsilon: added to the variance in every LayerNorm.
        activation: between the two pointwise layers, a name of `ACTIVATIONS`; "gelu" is the exact one.
        patch_size: side of the stem's kernel in pixels.
    """

    depths: tuple[int, ...]
    dims: tuple[int, ...]
    epsilon: float = 1e-6
    activation: str = "gelu"
    patch_size: int = 4

    def __post_init__(self):
        if not self.depths or len(self.depths) != len(self.dims):
            raise ValueError(
                "A variant needs as many dims as depths, at least one of each. "
                f"Got depths={self.depths}, dims={self.dims}."
            )
        if min(self.depths) < 1 or min(self.dims) < 1 or self.patch_size < 1:
            raise ValueError(f"depths, dims and patch_size must be positive. Got {self}.")


@dataclass(frozen=True)
class ResNetVariant(Variant):
    """One row of the ResNet table. `dims` are the widths inside the blocks, before a bottleneck's expansion by 4."""

    dims: tuple[int, ...] = (64, 128, 256, 512)
    epsilon: float = 1e-5
    activation: str = "relu"
    patch_size: int = 7
    block: str = "bottleneck"
    stem_dim: int = 64

    def __post_init__(self):
        super().__post_init__()
        if self.block not in EXPANSION:
            raise ValueError(f"Unknown ResNet block {self.block!r}. Allowed: {', '.join(EXPANSION)}.")


EXPANSION = {"basic": 1, "bottleneck": 4}

# ConvNeXt, arXiv:2201.03545, section 3 (tiny … xlarge); atto … nano: timm; xxlarge: open_clip (epsilon 1e-5).
V1 = {
    "atto":    Variant((2, 2, 6, 2),  (40, 80, 160, 320)),
    "femto":   Variant((2, 2, 6, 2),  (48, 96, 192, 384)),
    "pico":    Variant((2, 2, 6, 2),  (64, 128, 256, 512)),
    "nano":    Variant((2, 2, 8, 2),  (80, 160, 320, 640)),
    "tiny":    Variant((3, 3, 9, 3),  (96, 192, 384, 768)),
    "small":   Variant((3, 3, 27, 3), (96, 192, 384, 768)),
    "base":    Variant((3, 3, 27, 3), (128, 256, 512, 1024)),
    "large":   Variant((3, 3, 27, 3), (192, 384, 768, 1536)),
    "xlarge":  Variant((3, 3, 27, 3), (256, 512, 1024, 2048)),
    "xxlarge": Variant((3, 4, 30, 3), (384, 768, 1536, 3072), epsilon=1e-5),
}  # fmt: skip

# ConvNeXt V2, arXiv:2301.00808, appendix A.1 (atto … huge); small: V1's row with GRN, as in timm, without weights.
V2 = {
    "atto":  Variant((2, 2, 6, 2),  (40, 80, 160, 320)),
    "femto": Variant((2, 2, 6, 2),  (48, 96, 192, 384)),
    "pico":  Variant((2, 2, 6, 2),  (64, 128, 256, 512)),
    "nano":  Variant((2, 2, 8, 2),  (80, 160, 320, 640)),
    "tiny":  Variant((3, 3, 9, 3),  (96, 192, 384, 768)),
    "small": Variant((3, 3, 27, 3), (96, 192, 384, 768)),
    "base":  Variant((3, 3, 27, 3), (128, 256, 512, 1024)),
    "large": Variant((3, 3, 27, 3), (192, 384, 768, 1536)),
    "huge":  Variant((3, 3, 27, 3), (352, 704, 1408, 2816)),
}  # fmt: skip

# Deep residual learning, arXiv:1512.03385, table 1; v1.5: the stride sits in the 3×3 convolution.
RESNET = {
    "18":  ResNetVariant((2, 2, 2, 2), block="basic"),
    "34":  ResNetVariant((3, 4, 6, 3), block="basic"),
    "50":  ResNetVariant((3, 4, 6, 3)),
    "101": ResNetVariant((3, 4, 23, 3)),
    "152": ResNetVariant((3, 8, 36, 3)),
}  # fmt: skip

TABLES: dict[str, Mapping[str, Variant]] = {"convnext": V1, "convnextv2": V2, "resnet": RESNET}


def parameters(row: Variant, *, v2: bool = False, num_classes: int | None = 1000, in_channels: int = 3) -> int:
    """Return the number of trainable parameters of a row's classifier; BatchNorm statistics are not counted.

    Args:
        row: Variant or ResNetVariant.
        v2: GRN in place of LayerScale (ConvNeXt only).
        num_classes: K of the head, or None for the trunk with its head norm (ResNet: the pooled trunk).
        in_channels: channels of the input image.
    """
    count = _resnet_parameters if isinstance(row, ResNetVariant) else _convnext_parameters
    trunk, features = count(row, v2, in_channels)
    return trunk if num_classes is None else trunk + (features + 1) * num_classes


def _convnext_parameters(row, v2, in_channels):
    total = in_channels * row.patch_size**2 * row.dims[0] + 3 * row.dims[0]
    for before, c in zip(row.dims, row.dims[1:], strict=False):
        total += 2 * before + 4 * before * c + c  # norm, 2×2 convolution
    for depth, c in zip(row.depths, row.dims, strict=True):
        dwconv, norm, pwconv1, pwconv2 = 49 * c + c, 2 * c, 4 * c * c + 4 * c, 4 * c * c + c
        total += depth * (dwconv + norm + pwconv1 + pwconv2 + (8 * c if v2 else c))
    return total + 2 * row.dims[-1], row.dims[-1]


def _resnet_parameters(row, _, in_channels):
    total, before = in_channels * row.patch_size**2 * row.stem_dim + 2 * row.stem_dim, row.stem_dim
    for kernels, stride in _resnet_blocks(row):
        total += sum(size**2 * i * o + 2 * o for size, i, o in kernels)
        after = kernels[-1][2]
        if stride > 1 or before != after:
            total += before * after + 2 * after
        before = after
    return total, before


def _resnet_blocks(row):
    """Return [(kernels [(size, in, out), …], stride), …] of every block in order."""
    blocks, before = [], row.stem_dim
    for stage, (depth, c) in enumerate(zip(row.depths, row.dims, strict=True)):
        for block in range(depth):
            after = c * EXPANSION[row.block]
            if row.block == "basic":
                kernels = [(3, before, c), (3, c, c)]
            else:
                kernels = [(1, before, c), (3, c, c), (1, c, after)]
            blocks.append((kernels, 2 if stage and not block else 1))
            before = after
    return blocks


def flops(
    row: Variant,
    *,
    image_size: int = 224,
    stem_stride: int = 4,
    downsample_strides: int | Sequence[int] = 2,
    num_classes: int | None = 1000,
    in_channels: int = 3,
) -> int:
    """Return the floating-point operations of one forward pass, two per multiply–add of a convolution or product.

    Papers quote multiply–adds ("4.5 G" for tiny), half of this. Norms, activations and GRN are not counted.
    """
    if isinstance(row, ResNetVariant):
        multiply_adds, features = _resnet_multiply_adds(row, image_size, in_channels)
    else:
        strides = downsample_strides
        strides = [strides] * len(row.dims) if isinstance(strides, int) else [1, *strides]
        multiply_adds, features = _convnext_multiply_adds(row, image_size, (stem_stride, *strides[1:]), in_channels)
    return 2 * (multiply_adds + features * (num_classes or 0))


def _convnext_multiply_adds(row, image_size, strides, in_channels):
    side = image_size // strides[0]
    total = side**2 * in_channels * row.patch_size**2 * row.dims[0]
    for stage, (depth, c) in enumerate(zip(row.depths, row.dims, strict=True)):
        if stage:
            side //= strides[stage]
            total += side**2 * 4 * row.dims[stage - 1] * c
        total += side**2 * depth * (49 * c + 8 * c * c)
    return total, row.dims[-1]


def _resnet_multiply_adds(row, image_size, in_channels):
    side = -(-image_size // 2)
    total, before = side**2 * in_channels * row.patch_size**2 * row.stem_dim, row.stem_dim
    side = -(-side // 2)
    for kernels, stride in _resnet_blocks(row):
        full, side = side, -(-side // stride)
        after = kernels[-1][2]
        for size, i, o in kernels:
            before_stride = stride > 1 and row.block == "bottleneck" and (size, i) == (1, before)
            total += (full if before_stride else side) ** 2 * size**2 * i * o
        if stride > 1 or before != after:
            total += side**2 * before * after
        before = after
    return total, before


def closest(name: str, allowed: Iterable[str]) -> str:
    """Return " Did you mean 'tiny'? Allowed: …." for an error message, with the leading space."""
    guess = difflib.get_close_matches(name[:100], list(allowed), n=1, cutoff=0.4)
    did_you_mean = f" Did you mean {guess[0]!r}?" if guess else ""
    return f"{did_you_mean} Allowed: {', '.join(map(str, allowed))}."
