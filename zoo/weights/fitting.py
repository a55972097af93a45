"""Arrays of a checkpoint that fit a model after a known change of shape: positions, stems of other channels, scalars.

Positional embeddings of another image size: the grid of vectors is resized like an image, as open_clip does when it
loads a ViT at another size: bicubic (Keys, a = −1/2), antialiased where the grid shrinks, pixel centres at
half-integers. Vectors without a place in the grid (class token, mean) are unchanged.

A stem for other channels, as timm changes it for `in_chans`: one channel sums the kernels of red, green and blue, so a
grey image gives what it gave as RGB; n channels repeat them in turn, times 3/n.
"""

import math

import numpy as np

_STEMS = ("stem_conv/kernel", "conv1/kernel")  # first convolutions of ConvNeXt and ResNet
_RGB = 3
_SHARPNESS = -0.5  # a of the cubic kernel, as in PIL; 2 × 2 pixels of support on each side


def fit_tensors(slots, tensors):
    """Change a checkpoint's arrays to the model's shapes, where a change is known.

    Args:
        slots: slots of the variables whose keys the checkpoint has.
        tensors: key → array.

    Returns:
        ({key: changed array, in the checkpoint's layout}, [note, …]).
    """
    fitted, notes = {}, []
    for slot in slots:
        is_grid, is_stem = slot.name.endswith("/positional_embedding"), slot.name in _STEMS
        if slot.part == "image" and (is_grid or is_stem):
            (key,), (shape,) = slot.keys, slot.shapes()
            value = tensors[key]
            if value.shape == shape or value.ndim != len(shape) or value.dtype.kind != "f":
                continue
            fit = _fit_grid if is_grid else _fit_stem
            if found := fit(slot.layout.to_ours([value]), tuple(slot.variable.shape)):
                array, how = found
                (fitted[key],) = slot.layout.to_theirs(array)
                notes.append(f"{slot.name}: {how}.")
        elif tuple(slot.variable.shape) == () and len(slot.keys) == 1 and tensors[slot.keys[0]].shape == (1,):
            fitted[slot.keys[0]] = tensors[slot.keys[0]].reshape(())  # open_clip's "nonscalar" logit scale
    return fitted, notes


def _fit_stem(kernel, shape):
    """(kernel for the model's channels, how it was made) from the file's for RGB, or None where it does not fit."""
    channels = shape[2]
    if kernel.shape != (*shape[:2], _RGB, shape[3]):
        return None
    if channels == 1:
        fitted, how = kernel.sum(axis=2, keepdims=True), "the sum of red, green and blue"
    else:
        fitted = kernel[:, :, np.arange(channels) % _RGB] * np.float32(_RGB / channels)
        how = f"red, green and blue in turn, times 3/{channels}"
    return fitted, f"the file's {_RGB} channels became the model's {channels}: {how}"


def _fit_grid(embedding, shape):
    """(position embeddings for the model's grid, how they were made), or None where they are not of square grids."""
    sides = grid_sides(len(embedding), shape[0])
    if not sides or embedding.shape[1] != shape[1]:
        return None
    extra, before, after = sides
    sizes = f"the file's {before} × {before} positions were resized to the model's {after} × {after}"
    return resize_grid(embedding, after, extra), f"{sizes} (bicubic, antialiased)"


def grid_sides(old, new):
    """(vectors before the grid, side of the old grid, side of the new one), or None if they are not square grids."""
    for extra in (1, 0):
        before, after = math.isqrt(max(old - extra, 0)), math.isqrt(max(new - extra, 0))
        if before and after and (before**2 + extra, after**2 + extra) == (old, new):
            return extra, before, after
    return None


def resize_grid(embedding, side, extra=1):
    """(extra + n², C) → (extra + side², C), float32: row by row, then column by column.

    Args:
        embedding: vectors before the grid, then the grid, row-major.
        side: side of the new grid.
        extra: vectors before the grid, which are kept.
    """
    before, grid = embedding[:extra], embedding[extra:]
    old = math.isqrt(len(grid))
    weights = cubic_weights(old, side)
    grid = grid.astype(np.float64).reshape(old, old, -1)
    grid = np.einsum("yi,xj,ijc->yxc", weights, weights, grid, optimize=True)
    return np.concatenate([before, grid.reshape(side * side, -1).astype(np.float32)])


def cubic_weights(old, new):
    """(new, old): weight of each old position in each new one; every row sums to 1."""
    scale = np.float32(old) / np.float32(new)  # in single precision, as torch places the kernels
    stretch = max(scale, np.float32(1))  # a shrinking grid is averaged over wider kernels
    centres = scale * (np.arange(new, dtype=np.float32) + np.float32(0.5))
    weights = np.zeros((new, old))
    for row, centre in enumerate(centres):
        first = max(int(centre - 2 * stretch + np.float32(0.5)), 0)
        last = min(int(centre + 2 * stretch + np.float32(0.5)), old)
        places = np.arange(first, last, dtype=np.float32)
        weights[row, first:last] = _cubic((places - centre + np.float32(0.5)) / stretch)
    return weights / weights.sum(axis=1, keepdims=True)


def _cubic(x):
    """Keys' kernel with a = _SHARPNESS: 1 at 0, 0 at ±1 and from ±2 on."""
    a, x = _SHARPNESS, np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x**2 + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
