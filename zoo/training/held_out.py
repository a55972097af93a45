"""Held-out data as every mode examines it: each record once, in its order, in batches of one size."""

import numpy as np

from zoo.data import Batches, Dataset
from zoo.preprocess import PreprocessSpec


def held_out_batches(dataset: Dataset, spec: PreprocessSpec, *, batch_size: int, **options) -> Batches:
    """Batches of all records; bad ones are left out, and the last batch may be smaller.

    Args:
        dataset, spec, batch_size, options: as in `Batches`.
    """
    whole = {"shuffle": False, "drop_last": False, "replace_bad": False, "max_bad_fraction": 1.0}
    return Batches(dataset, spec, batch_size=batch_size, **whole, **options)


def fill_up(rows: np.ndarray, count: int) -> np.ndarray:
    """(N, …) → (count, …), the first row repeated: with batches of one size, JAX compiles one program."""
    return np.concatenate([rows, np.repeat(rows[:1], count - len(rows), axis=0)])
