"""Positional embeddings for another image size: the grid of vectors is resized like an image.

open_clip does the same when it loads a ViT at another size: bicubic (Keys, a = −1/2), antialiased where the grid
shrinks, pixel centres at half-integers. Vectors without a place in the grid (class token, mean) are unchanged.
"""

import math

import numpy as np

SHARPNESS = -0.5  # a of the cubic kernel, as in PIL; 2 × 2 pixels of support on each side


def fit_positions(slots, tensors):
    """Resize a checkpoint's position grids to the model's size, where they differ.

    Args:
        slots: slots for the weights of the model's image tower.
        tensors: key → array.

    Returns:
        ({key: resized array, in the checkpoint's layout}, [note on a resized grid, …]).
    """
    fitted, notes = {}, []
    for slot in slots:
        if not slot.name.endswith("/positional_embedding"):
            continue
        (key,), (shape,) = slot.keys, slot.shapes()
        value = tensors[key]
        if value.ndim != len(shape) or value.shape == shape or value.dtype.kind != "f":
            continue
        (old, width), (new, _) = slot.layout.to_ours([value]).shape, slot.variable.shape
        sides = grid_sides(old, new)
        if sides and width == slot.variable.shape[1]:
            extra, before, after = sides
            (fitted[key],) = slot.layout.to_theirs(resize_grid(slot.layout.to_ours([value]), after, extra))
            notes.append(
                f"{slot.name}: the file's {before} × {before} positions were resized to the model's {after} × {after} "
                "(bicubic, antialiased)."
            )
    return fitted, notes


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
        weights[row, first:last] = cubic((places - centre + np.float32(0.5)) / stretch)
    return weights / weights.sum(axis=1, keepdims=True)


def cubic(x):
    """Keys' kernel with a = SHARPNESS: 1 at 0, 0 at ±1 and from ±2 on."""
    a, x = SHARPNESS, np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x**2 + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
