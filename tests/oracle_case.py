"""What every oracle case is made of: its description, weights that matter, images and captions.

Weights are drawn so that every block matters: LayerScale and GRN far from their initial values, norms with an affine
part, moving statistics.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

SEED = 20240229
TOLERANCE = 2e-5
SIZES = ((224, 224), (192, 256), (205, 237))  # the last is no multiple of any stride
CLASSES = 1000
EOT, CONTEXT, VOCABULARY = 49407, 77, 49408
LOGIT_SCALE, LOGIT_BIAS = 4.5, -5.0


@dataclass(frozen=True)
class Case:
    """One reference model and ours.

    Args:
        source: key of `oracles.LIBRARIES`.
        model: our name, or the family when `row` is given.
        create: makes the reference model.
        run: (reference model, case) → {name: array}.
        arguments: of our builder.
        row: the fields of a row of its own, for models without a name.
        sizes: (H, W) of the images.
        label: of the case's name, where `model` is not the one to print.
        full: too big for the suite; computed with `--full`.
        state: reference model → its state dict in another naming; its own unless given.
        pieces: what is compared, for a pair.
        tolerance: of max |ours − theirs| / max |theirs|.
    """

    source: str
    model: str
    create: Callable
    run: Callable
    arguments: dict = field(default_factory=dict)
    row: dict | None = None
    sizes: tuple = SIZES
    label: str | None = None
    full: bool = False
    state: Callable | None = None
    pieces: list = field(default_factory=list)
    tolerance: float = TOLERANCE

    @property
    def name(self):
        return f"{self.source}-{(self.label or self.model).removeprefix('clip/')}"


# Weights


def randomise(model, seed):
    """Draws every parameter and moving statistic of a torch model so that activations stay near 1 through its depth."""
    import torch

    generator = torch.Generator().manual_seed(seed)

    def normal(tensor, scale, mean=0.0):
        tensor.copy_(mean + scale * torch.randn(tensor.shape, generator=generator))

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            draw_parameter(name, parameter, normal)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                normal(buffer, 0.2)
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))


def draw_parameter(name, parameter, normal):
    """The rule for one parameter, by its name and its number of axes."""
    last = name.rpartition(".")[2]
    if "logit_scale" in name:
        parameter.fill_(LOGIT_SCALE)
    elif "logit_bias" in name:
        parameter.fill_(LOGIT_BIAS)
    elif ".grn." in name or last in ("gamma", "layer_scale_parameter"):
        normal(parameter, 0.5)
    elif "embedding" in name and "patch" not in name and "norm" not in name:
        normal(parameter, 0.05)
    elif "conv_dw" in name or "dwconv" in name:  # faint, so that the epsilon of the norm that follows shows
        normal(parameter, 0.02)
    elif last in ("proj", "text_projection"):  # (in, out)
        normal(parameter, parameter.shape[0] ** -0.5)
    elif parameter.ndim > 1:  # (out, in, …)
        normal(parameter, (parameter[0].numel()) ** -0.5)
    elif last == "weight":  # a norm's
        normal(parameter, 0.2, mean=0.5 if is_batch_norm(name) else 1.0)
    else:
        normal(parameter, 0.2)


def is_batch_norm(name):
    return any(part in name for part in ("bn", "downsample.1", "normalization"))


# Inputs


def draw_images(count, size, seed):
    """float32 (B, H, W, 3) with structure at several scales, of mean 0 and deviation about 1, as photographs have."""
    rng = np.random.default_rng([seed, *size])
    images = np.zeros((count, *size, 3), np.float32)
    for cell in (1, 4, 16, 64):
        coarse = rng.standard_normal((count, -(-size[0] // cell), -(-size[1] // cell), 3), np.float32)
        images += 0.5 * coarse.repeat(cell, 1).repeat(cell, 2)[:, : size[0], : size[1]]
    return images


def draw_tokens(count, seed):
    """int32 (B, 77): a caption of one word, one that fills the context, others between; 0 after the end."""
    rng = np.random.default_rng(seed)
    tokens = np.zeros((count, CONTEXT), np.int32)
    for row, length in enumerate(np.linspace(3, CONTEXT, count).astype(int)):
        tokens[row, :length] = [EOT - 1, *rng.integers(1, EOT - 1, length - 2), EOT]
    return tokens


def channels_first(images):
    import torch

    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
