"""What every mode of training does with a model before `train_durably`: its precision and its compilation."""

import contextlib
import math
from collections.abc import Iterator

import keras

from zoo.training.optimizer import Guarded

BAD_SAMPLES, BAD_HELD_OUT = "bad_samples.jsonl", "bad_validation_samples.jsonl"
POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}
FLOAT16_SCALE = 2.0**15


def check_rates(**values: float | None) -> None:
    """ValueError for a learning rate, decay, limit or weight that is negative or no number; None is none."""
    for name, value in values.items():
        if value is not None and not 0 <= value < math.inf:
            raise ValueError(f"{name}={value!r}; it must be a number of at least 0")


@contextlib.contextmanager
def computing_in(precision: str) -> Iterator[None]:
    """Layers made in the block compute in this precision; their weights are float32.

    Raises:
        ValueError: it is none of `POLICIES`.
    """
    if precision not in POLICIES:
        raise ValueError(f"precision={precision!r}; it must be one of {', '.join(POLICIES)}")
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(POLICIES[precision])
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def prepare(
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    *,
    precision: str,
    ema: float | None,
    factors: list[float] | None = None,
    **options,
) -> None:
    """Compiles a model for `train_durably`.

    Args:
        ema, factors: as in `Guarded`.
        options: of the model's `compile`.
    """
    scale = FLOAT16_SCALE if precision == "float16" else None
    model.compile(Guarded(optimizer, initial_scale=scale, ema=ema, factors=factors), auto_scale_loss=False, **options)
    model.optimizer.build(model.trainable_variables)  # made inside the step, they would have TensorFlow trace it twice
