"""Interpolation between two sets of weights of one model: WiSE-FT, and soups of two. NumPy only.

References: arXiv:2109.01903, section 3 (fine-tuned and zero-shot weights); arXiv:2203.05482 (soups).
"""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np

from zoo.weights import native, read_checkpoint, write_safetensors
from zoo.weights.read import shapes_of


class Averaged(NamedTuple):
    """The file written, the number of its arrays, and the weight of the second model."""

    path: str
    tensors: int
    alpha: float


def average(a: str | Path, b: str | Path, *, output: str | Path, alpha: float = 0.5) -> Averaged:
    """Write (1 - alpha) · A + alpha · B as a model that `zoo.load` reads.

    Args:
        a, b: files from `zoo.save`, of the same architecture.
        output: `.safetensors` file to write.
        alpha: 0 for A, 1 for B.

    Raises:
        ValueError: a file not written by `zoo.save`, or different architectures.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha!r}; it must be in [0, 1]")
    if Path(output).suffix != ".safetensors":
        raise ValueError(f"output is {str(output)!r}; a saved model is a .safetensors file")
    files = [read_checkpoint(path) for path in (a, b)]
    one, other = (native.parse(file) for file in files)
    _check_same(one, other, files)
    arrays = [file.tensors for file in files]
    mixed = {key: _between(arrays[0][key], arrays[1][key], alpha) for key in arrays[0]}
    licences = sorted({licence for licence in (one.licence, other.licence) if licence})
    description = dataclasses.replace(one, licence=" and ".join(licences) or None, source=None)
    write_safetensors(output, mixed, native.to_metadata(description))
    return Averaged(str(output), len(mixed), alpha)


def to_text(result: Averaged) -> str:
    return f"Wrote {result.tensors} arrays, {1 - result.alpha:g} of the first and {result.alpha:g} of the second."


def _between(one: np.ndarray, other: np.ndarray, alpha: float) -> np.ndarray:
    return (np.float32(1 - alpha) * one + np.float32(alpha) * other).astype(one.dtype)


def _check_same(one, other, files) -> None:
    """Raise ValueError unless both files hold the same model; its name may differ."""
    words = [{**d.arguments, "name": None, "family": d.family, "preprocess": d.preprocess} for d in (one, other)]
    different = sorted(key for key in {**words[0], **words[1]} if words[0].get(key) != words[1].get(key))
    if different:
        pairs = [f"{key} {words[0].get(key)!r} and {words[1].get(key)!r}" for key in different]
        raise ValueError(f"{files[0].path} and {files[1].path} differ: {'; '.join(pairs)}")
    shapes = [shapes_of(file.tensors) for file in files]
    if shapes[0] != shapes[1]:
        raise ValueError(f"{files[0].path} and {files[1].path} do not hold the same arrays")
