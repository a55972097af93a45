"""Layer-wise learning-rate decay: layers further from the classifier get a smaller learning rate.

The groups are those of ConvNeXt's fine-tuning: the stem; three consecutive blocks of a stage, its downsampling with
the first three; the classifier with the norm before it. Depths (3, 3, 27, 3) have 12 groups between stem and head.
Reference: arXiv:2201.03545, appendix A; arXiv:2106.08254, section 3.2.
"""

import math
import re

import keras

import convnext

GROUP = 3  # consecutive blocks
BLOCK = re.compile(r"stages_(\d+)_blocks_(\d+)_|layer(\d+)_(\d+)_")  # of a ConvNeXt, of a ResNet
DOWNSAMPLE = re.compile(r"stages_(\d+)_downsample_")
STEM, HEAD = ("stem_", "conv1", "bn1"), (math.inf, 0)


def update_factors(model: keras.Model, decay: float) -> list[float]:
    """Return decay ** (number of groups above) for each trainable variable, in order; 1 for the head.

    Args:
        model: from `create_convnext_v1`, `create_convnext_v2` or `create_resnet`.
        decay: in (0, 1]; 1 for no decay.
    """
    if not 0 < decay <= 1:
        raise ValueError(f"layer_decay={decay!r}; it must be above 0 and at most 1")
    layers = {name: layer for name, layer in convnext.layers_by_name(model).items() if layer.weights}
    groups = {place: number for number, place in enumerate(sorted({_place(name) for name in layers}))}
    group_of = {id(v): groups[_place(name)] for name, layer in layers.items() for v in layer.weights}
    last = len(groups) - 1
    return [decay ** (last - group_of[id(variable)]) for variable in model.trainable_variables]


def _place(name: str) -> tuple[float, int]:
    """Return (stage from 1, group in the stage) of a layer; the stem is stage 0, the head comes after all stages."""
    if match := BLOCK.match(name):
        stage, block = (int(number) for number in match.groups() if number is not None)
        return stage + name.startswith("stages_"), block // GROUP
    if match := DOWNSAMPLE.match(name):
        return int(match[1]) + 1, 0
    return (0, 0) if name.startswith(STEM) else HEAD
