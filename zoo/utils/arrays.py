"""NumPy functions that several rooms share."""

import math
from typing import Any

import numpy as np


def unit_rows(x: np.ndarray) -> np.ndarray:
    """Return x / ‖x‖₂ over the last axis, float32.

    Raises:
        ValueError: a row is zero or not finite.
    """
    x = np.asarray(x, np.float32)
    norms = np.linalg.norm(x, axis=-1, keepdims=True)
    bad = ~np.isfinite(norms) | (norms == 0)
    if bad.any():
        raise ValueError(f"{bad.sum()} of {bad.size} vectors are zero or not finite; they cannot be normalised")
    return x / norms


def pad_rows(rows: np.ndarray, count: int) -> np.ndarray:
    """Return (N, …) → (count, …), N ≥ 1, with copies of the last row at the end; unchanged where N ≥ count.

    Batches of one size need one compilation.
    """
    missing = count - len(rows)
    return np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)]) if missing > 0 else rows


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the softmax over the last axis, float64."""
    exponentials = np.exp(np.float64(logits) - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Return the sigmoid of each element, float64."""
    return 0.5 * (1.0 + np.tanh(0.5 * np.float64(logits)))  # without overflow


ACTIVATIONS = {"softmax": softmax, "sigmoid": sigmoid}  # of class scores


def to_json_types(value: Any) -> Any:
    """Replace arrays by lists, and numbers that are not finite by None."""
    if isinstance(value, dict):
        return {str(key): to_json_types(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [to_json_types(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
