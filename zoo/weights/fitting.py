"""Arrays of a checkpoint that fit a model after a known change of shape: positions, stems of other channels, scalars.

timm changes the stem in the same way for `in_chans`: one channel sums the kernels of red, green and blue, so a grey
image gives what it gave as RGB; n channels repeat them in turn, times 3/n.
"""

import numpy as np

from zoo.weights.positions import fit_positions

STEMS = ("stem_conv/kernel", "conv1/kernel")  # first convolutions of ConvNeXt and ResNet
RGB = 3


def fit_tensors(slots, tensors):
    """Change a checkpoint's arrays to the model's shapes, where a change is known.

    Args:
        slots: slots of the variables whose keys the checkpoint has.
        tensors: key → array.

    Returns:
        ({key: changed array, in the checkpoint's layout}, [note, …]).
    """
    images = [slot for slot in slots if slot.part == "image"]
    fitted, notes = fit_positions(images, tensors)
    for slot in images:
        if slot.name in STEMS:
            changed, note = _fit_stem(slot, tensors)
            fitted, notes = fitted | changed, notes + note
    scalars = [slot for slot in slots if tuple(slot.variable.shape) == () and len(slot.keys) == 1]
    for (key,) in (slot.keys for slot in scalars):
        if tensors[key].shape == (1,):  # open_clip's "nonscalar" logit scale
            fitted[key] = tensors[key].reshape(())
    return fitted, notes


def _fit_stem(slot, tensors):
    """The stem's kernel for the model's number of channels, from the file's for RGB."""
    (key,), expected = slot.keys, tuple(slot.variable.shape)
    value = tensors[key]
    if value.ndim != len(expected) or value.dtype.kind != "f":
        return {}, []
    kernel = slot.layout.to_ours([value])
    channels = expected[2]
    if kernel.shape[2] != RGB or channels == RGB or (*kernel.shape[:2], channels, kernel.shape[3]) != expected:
        return {}, []
    (fitted,) = slot.layout.to_theirs(stem_of(kernel, channels))
    how = "the sum of red, green and blue" if channels == 1 else f"red, green and blue in turn, times 3/{channels}"
    return {key: fitted}, [f"{slot.name}: the file's {RGB} channels became the model's {channels}: {how}."]


def stem_of(kernel, channels):
    """(H, W, 3, O) → (H, W, channels, O)."""
    if channels == 1:
        return kernel.sum(axis=2, keepdims=True)
    return kernel[:, :, np.arange(channels) % RGB] * np.float32(RGB / channels)
