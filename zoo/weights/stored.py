"""The arrays of a weight file, each read when it is asked for, so that a checkpoint needs no memory of its own."""

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np


class Stored(Mapping):
    """key → array, read from the file anew at each look; shapes are known without one.

    Args:
        shapes: key → shape.
        read: key → array; float16, bfloat16 and float64 are made float32, integers stay as they are.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], read: Callable[[str], np.ndarray]):
        self.shapes = dict(shapes)
        self._read = read

    def __getitem__(self, key: str) -> np.ndarray:
        if key not in self.shapes:
            raise KeyError(key)
        return _to_float32(self._read(key))

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def __contains__(self, key) -> bool:  # Mapping's own would read the array
        return key in self.shapes

    def without_prefix(self, prefix: str) -> "Stored":
        """The same arrays, their keys without what stands in front of each."""
        shapes = {key.removeprefix(prefix): shape for key, shape in self.shapes.items()}
        return Stored(shapes, lambda key: self._read(prefix + key))


def _to_float32(value):
    """Floating-point arrays of any width as float32: exact from below, rounded from float64."""
    is_float = value.dtype.kind == "f" or value.dtype.name == "bfloat16"
    return value.astype(np.float32) if is_float and value.dtype != np.float32 else value


def shapes_of(tensors: Mapping) -> dict[str, tuple[int, ...]]:
    """key → shape, without reading the arrays of a `Stored`."""
    if isinstance(tensors, Stored):
        return tensors.shapes
    return {key: value.shape for key, value in tensors.items()}


def count_numbers(tensors: Mapping) -> int:
    """How many numbers there are in all arrays."""
    return sum(map(math.prod, shapes_of(tensors).values()))
