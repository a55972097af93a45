"""MobileCLIP's own rows: the MCi image towers, and what such a row implies. Read without Keras.

Sources: "MobileCLIP", arXiv:2311.17049, section 4 and appendix A; "MobileCLIP2", arXiv:2508.20691; timm's
`fastvit_mci0` … `fastvit_mci4`.
"""

from dataclasses import dataclass
from itertools import pairwise

HEAD_WIDTH = 32
STEM_STRIDE = 4
EXPANSION = 2  # of the channels by the last convolution


@dataclass(frozen=True)
class MCi:
    """A FastViT as MobileCLIP has it: RepMixer blocks, then attention blocks, then a convolution and the mean.

    Args:
        depths: blocks in each stage.
        dims: channels C of each stage, each a multiple of the one before.
        mlp_ratio: hidden channels of a block's MLP, over C.
        attention_stages: how many of the last stages have attention blocks.
        squeeze_excite: how many of the last downsamplings end in squeeze and excite.
        norm: before the attention, "batch" or "layer".
        stem_scale: whether the stem's convolutions have a 1×1 branch.
        reparameterized: each multi-branch convolution is the one it is equal to, as in re-parameterised checkpoints.
    """

    depths: tuple[int, ...]
    dims: tuple[int, ...]
    mlp_ratio: float = 3
    attention_stages: int = 1
    squeeze_excite: int = 2
    norm: str = "batch"
    stem_scale: bool = True
    reparameterized: bool = False

    def __post_init__(self):
        if not self.depths or len(self.depths) != len(self.dims):
            raise ValueError(f"An MCi row needs as many dims as depths. Got depths={self.depths}, dims={self.dims}.")
        if any(after % before for before, after in pairwise(self.dims)):
            raise ValueError(f"Each of dims must be a multiple of the one before, got {self.dims}.")
        if self.norm not in ("batch", "layer"):
            raise ValueError(f"norm must be 'batch' or 'layer', got {self.norm!r}.")

    @property
    def final_dim(self):
        """Channels of the features that are pooled."""
        return EXPANSION * self.dims[-1]

    def attends(self, stage):
        return stage >= len(self.depths) - self.attention_stages

    def squeezes(self, stage):
        """Whether the downsampling into a stage ends in squeeze and excite."""
        return stage > 0 and stage >= len(self.depths) - self.squeeze_excite


def squeezed(channels, ratio, divisor=8):
    """Hidden channels of squeeze and excite: the multiple of `divisor` nearest to channels · ratio, at least one."""
    return max(divisor, int(channels * ratio + divisor / 2) // divisor * divisor)


def parameters(row: MCi, embed_dim: int) -> int:
    """Trainable parameters of a tower, projection and its bias included."""
    return sum(weights + others for _, weights, others in _layers(row, embed_dim, 64))


def flops(row: MCi, embed_dim: int, image_size: int) -> int:
    """Floating-point operations of one image, two for each multiply–add, every branch counted."""
    total = sum(positions * weights for positions, weights, _ in _layers(row, embed_dim, image_size))
    for stage, side in enumerate(_sides(row, image_size)):
        if row.attends(stage):
            total += row.depths[stage] * 2 * side**4 * row.dims[stage]
    return 2 * total


def _sides(row, image_size):
    """Side of each stage's map: strides halve and round up."""
    side = -(-image_size // STEM_STRIDE)
    for _ in row.dims:
        yield side
        side = -(-side // 2)


def _layers(row, embed_dim, image_size):
    """(positions it is applied at, weights multiplied at each, other parameters) of every layer."""
    sides, half = list(_sides(row, image_size)), -(-image_size // 2)
    yield from _stem(row, half**2, sides[0] ** 2)
    for stage, (depth, c, side) in enumerate(zip(row.depths, row.dims, sides, strict=True)):
        if stage:
            yield from _downsample(row, c, side**2, row.squeezes(stage))
        if row.attends(stage):
            yield side**2, 49 * c, c
        for _ in range(depth):
            yield from _block(row, c, side**2, row.attends(stage))
    c, pixels = row.final_dim, sides[-1] ** 2
    yield from _branches(row, pixels, 9 * c, c, [c])
    yield from _squeeze_excite(c, squeezed(c, 1 / 16, 1))
    yield 1, c * embed_dim, embed_dim


def _branches(row, pixels, weights, c, more=(), identity=False):
    """A convolution of `weights`, those of the 1×1 branches, and a norm a branch; or the one they are equal to."""
    if row.reparameterized:
        yield pixels, weights, c
        return
    yield pixels, weights, 2 * c
    for branch in more:
        yield pixels, branch, 2 * c
    if identity:
        yield pixels, 0, 2 * c


def _stem(row, half, quarter):
    c = row.dims[0]
    yield from _branches(row, half, 27 * c, c, [3 * c] * row.stem_scale)
    yield from _branches(row, quarter, 9 * c, c, [c] * row.stem_scale)
    yield from _branches(row, quarter, c * c, c, identity=True)


def _downsample(row, c, pixels, squeezes):
    yield from _branches(row, pixels, 49 * c, c, [9 * c])
    if squeezes:
        yield from _squeeze_excite(c, squeezed(c, 1 / 4))
    yield from _branches(row, pixels, c * c, c, identity=True)


def _squeeze_excite(c, hidden):
    yield 1, 2 * c * hidden, c + hidden


def _block(row, c, pixels, attends):
    hidden = int(c * row.mlp_ratio)
    if attends:
        yield pixels, 4 * c * c, 4 * c  # norm, projection's bias, scale
    else:
        yield from _branches(row, pixels, 9 * c, c, [c], identity=True)
        yield pixels, 0, 0 if row.reparameterized else 3 * c  # norm, scale
    yield pixels, 49 * c, 2 * c
    yield pixels, 2 * c * hidden, hidden + c
    yield pixels, 0, c
