"""What every mode does with its config before `fit_resumable`: checks, precision, devices, options, compilation."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import keras

import convnext
from zoo.data.preprocess import PreprocessSpec
from zoo.training import processes
from zoo.training.checkpoint import CHECKPOINTS, first_epochs, newest_identity, newest_progress
from zoo.training.config import TrainConfig
from zoo.training.devices import parallel
from zoo.training.optimizer import SkipNonFinite
from zoo.weights.load import announced

BAD_SAMPLES, BAD_HELD_OUT = "bad_samples.jsonl", "bad_validation_samples.jsonl"
POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}
FLOAT16_SCALE = 2.0**15


def check_rates(config: TrainConfig, *names: str) -> None:
    """Raise ValueError for an option that is negative, infinite or NaN; None is allowed."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 <= value < math.inf:
            raise ValueError(f"{name}={value!r}; it must be a number of at least 0")


def check_not_existing(config: TrainConfig, *models: Any) -> None:
    """Raise ValueError if a run on several devices is given a `keras.Model` in place of a name."""
    for name in ("devices", "model_axis"):
        if getattr(config, name) not in (None, 1) and any(isinstance(model, keras.Model) for model in models):
            raise ValueError(
                f"{name}={getattr(config, name)}: an existing model is on one device; give a model name or a file"
            )


@contextlib.contextmanager
def training_scope(config: TrainConfig, resume: bool) -> Iterator[None]:
    """Create models on the config's devices, with its precision and seed. Weights are float32.

    Args:
        resume: whether a checkpoint, if there is one, replaces the weights; then none are announced as random.

    Raises:
        ValueError: an unknown precision, or devices that are not there.
    """
    if config.precision not in POLICIES:
        raise ValueError(f"precision={config.precision!r}; it must be one of {', '.join(POLICIES)}")
    replaced = resume and bool(newest_progress(Path(config.output) / CHECKPOINTS))
    announces = processes.is_first() and not replaced
    with parallel(config.devices, config.batch_size, config.model_axis), announced(announces):
        before = keras.config.dtype_policy()
        keras.config.set_dtype_policy(POLICIES[config.precision])
        try:
            keras.utils.set_random_seed(config.seed)
            yield
        finally:
            keras.config.set_dtype_policy(before)


def training_spec(spec: PreprocessSpec, output: str | Path) -> PreprocessSpec:
    """Return the preprocessing to train with: transparent images are put on white unless the spec has a background.

    A run that an earlier version began without a background keeps that.

    Args:
        spec: the model's.
        output: the run's folder.
    """
    if spec.background is not None or newest_identity(Path(output) / CHECKPOINTS).get("spec") == repr(spec):
        return spec
    return dataclasses.replace(spec, background="white")


def sample_options(config: TrainConfig, bad_samples: str) -> dict[str, Any]:
    """Return the options of `Batches` for bad samples, named in this file of the output folder, and threads."""
    path = Path(config.output) / processes.own_name(bad_samples)
    return {"bad_samples": path, "max_bad_fraction": config.max_bad_fraction, "threads": config.threads}


def own_part() -> dict[str, Any]:
    """Return the options of `Batches` for this process's part of each batch."""
    return {"rank": processes.rank(), "world_size": processes.count()}


def optimizer_options(config: TrainConfig, steps: int) -> dict[str, Any]:
    """Return the options of `create_optimizer` for a run of so many steps.

    The warm-up of a run that is resumed with more epochs stays the one that it began with.
    """
    warmup_steps = config.warmup_steps
    if warmup_steps is None:
        began = first_epochs(newest_progress(Path(config.output) / CHECKPOINTS)) or config.epochs
        warmup_steps = steps // config.epochs * min(began, config.epochs) // 10
    return {
        "warmup_steps": warmup_steps,
        "weight_decay": config.weight_decay,
        "clip_norm": config.clip_norm or None,
    }


def compile_options(config: TrainConfig) -> dict[str, Any]:
    """Return the options of `compile_resumable` that a config holds."""
    return {name: getattr(config, name) for name in ("precision", "ema", "checkpoint_activations")}


def describe_schedule(config: TrainConfig, steps: int, rates: Mapping[str, Any]) -> str:
    """Return how the learning rate changes in a run of so many steps; `rates` are those of `optimizer_options`."""
    warmup, peak = rates["warmup_steps"], config.learning_rate
    if not warmup:
        return f"{steps} steps; the learning rate falls from {peak:g} to 0."
    return f"{steps} steps; the learning rate rises from 0 to {peak:g} in the first {warmup}, then falls to 0."


def compile_resumable(
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    *,
    precision: str,
    ema: float | None,
    checkpoint_activations: bool = False,
    factors: list[float] | None = None,
    **options: Any,
) -> None:
    """Compile a model for `fit_resumable`.

    Args:
        precision: precision of the config; "float16" gets a loss scale.
        ema, factors: as in `SkipNonFinite`.
        checkpoint_activations: whether blocks are computed again in the backward pass.
        options: options of `model.compile`.

    Raises:
        ValueError: a model that several processes cannot train as one process would.
    """
    if checkpoint_activations:
        convnext.checkpoint_activations(model)
    scale = FLOAT16_SCALE if precision == "float16" else None
    guarded = SkipNonFinite(optimizer, initial_scale=scale, ema=ema, factors=factors)
    model.compile(guarded, auto_scale_loss=False, **options)
    processes.begin_together(model)
    model.optimizer.build(model.trainable_variables)  # inside the step, TensorFlow would trace the step twice
