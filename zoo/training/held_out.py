"""Held-out data as every mode examines it: each record once, in its order, in batches of one size."""

from zoo.data import Batches, Dataset
from zoo.data.preprocess import PreprocessSpec


def held_out_batches(dataset: Dataset, spec: PreprocessSpec, *, batch_size: int, **options) -> Batches:
    """Batches of all records; bad ones are left out, and the last batch may be smaller.

    Args:
        dataset, spec, batch_size, options: as in `Batches`.

    Raises:
        ValueError: too many of the first records are bad, or all of them: told now, and not after an epoch.
    """
    whole = {"shuffle": False, "drop_last": False, "replace_bad": False, "max_bad_fraction": 1.0}
    batches = Batches(dataset, spec, batch_size=batch_size, **{**whole, **options})
    if not len(batches[0]["images"]):
        first, *others = batches.indices(0, 0)  # threads may have found more of the bad ones by now
        names = f"first {1 + len(others)} records none can be used, beginning with {dataset.names[first]!r}"
        raise ValueError(f"of the validation data's {names}: {batches.bad.reasons[int(first)]}")
    return batches
