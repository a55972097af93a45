"""What every mode does with its config: checks, precision, devices, batches, compilation, and the run itself."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import keras

import convnext
from zoo.data import Batches, Dataset
from zoo.data.preprocess import PreprocessSpec
from zoo.training import processes
from zoo.training.checkpoint import CHECKPOINTS, first_epochs, newest_progress
from zoo.training.config import TrainConfig
from zoo.training.devices import parallel
from zoo.training.loop import Outcome, RunConfig, fit_resumable
from zoo.training.optimizer import SkipNonFinite, create_optimizer
from zoo.weights.load import announced

BAD_SAMPLES, BAD_HELD_OUT = "bad_samples.jsonl", "bad_validation_samples.jsonl"
POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}
FLOAT16_SCALE = 2.0**15


def check_numbers(config: TrainConfig, *rates: str) -> None:
    """Raise ValueError for the length of a run, or a rate, that is negative, infinite or NaN; None is allowed.

    Args:
        rates: names of the mode's own options to check besides those of all modes.
    """
    RunConfig.of(config)
    for name in ("learning_rate", "weight_decay", "clip_norm", *rates):
        value = getattr(config, name)
        if value is not None and not 0 <= value < math.inf:
            raise ValueError(f"{name}={value!r}; it must be a number of at least 0")


def check_unchanged(options: Mapping[str, Any]) -> None:
    """Raise ValueError for options that would build a model where there is one."""
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise ValueError(f"{', '.join(given)} cannot be changed in an existing model; leave them out")


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
    begun = newest_progress(Path(output) / CHECKPOINTS).get("identity", {})
    if spec.background is not None or begun.get("spec") == repr(spec):
        return spec
    return dataclasses.replace(spec, background="white")


def sample_options(config: TrainConfig, bad_samples: str) -> dict[str, Any]:
    """Return the options of `Batches` for bad samples, named in this file of the output folder, and threads."""
    path = Path(config.output) / processes.own_name(bad_samples)
    return {"bad_samples": path, "max_bad_fraction": config.max_bad_fraction, "threads": config.threads}


def training_batches(config: TrainConfig, dataset: Dataset, spec: PreprocessSpec, **options: Any) -> Batches:
    """Return this process's part of the batches to train on."""
    Path(config.output).mkdir(parents=True, exist_ok=True)  # for the log of bad samples
    options |= {"batch_size": config.batch_size, "seed": config.seed}
    options |= {"rank": processes.rank(), "world_size": processes.count()}
    return Batches(dataset, spec, **sample_options(config, BAD_SAMPLES), **options)


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


def describe_schedule(config: TrainConfig, steps: int, rates: Mapping[str, Any]) -> str:
    """Return how the learning rate changes in a run of so many steps; `rates` are those of `optimizer_options`."""
    warmup, peak = rates["warmup_steps"], config.learning_rate
    if not warmup:
        return f"{steps} steps; the learning rate falls from {peak:g} to 0."
    return f"{steps} steps; the learning rate rises from 0 to {peak:g} in the first {warmup}, then falls to 0."


def compile_with(
    config: TrainConfig, model: keras.Model, steps: int, *, excluded: list | None = None, **options: Any
) -> dict[str, Any]:
    """Compile a model with the optimizer of a config, for a run of so many steps.

    Args:
        excluded: further variables without weight decay.
        options: of `compile_resumable`.

    Returns:
        The options of the optimizer, for `fit` and `identity_of`.
    """
    rates = optimizer_options(config, steps)
    optimizer = create_optimizer(config.learning_rate, steps, excluded=excluded, **rates)
    given = {name: getattr(config, name) for name in ("precision", "ema", "checkpoint_activations")}
    compile_resumable(model, optimizer, **given, **options)
    return rates


def identity_of(config: TrainConfig, rates: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of every mode that must be the same for a checkpoint to be resumed.

    Earlier checkpoints hold these keys too.
    """
    names = ("learning_rate", "epochs", "ema", "precision")
    identity = {name: getattr(config, name) for name in names}
    return {**identity, **rates, "weights": config.weights and str(config.weights)}


def fit(
    config: TrainConfig, model: keras.Model, batches: Batches, rates: Mapping[str, Any], *, resume: bool, **options: Any
) -> Outcome:
    """Train a model from `compile_with` as its config says; `options` are those of `fit_resumable`."""
    schedule = describe_schedule(config, config.epochs * batches.steps, rates)
    run = RunConfig.of(config)
    return fit_resumable(model, batches, Path(config.output), run, resume=resume, schedule=schedule, **options)


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
