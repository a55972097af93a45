"""Training of a classifier from a JSON configuration: `zoo train classify --config FILE`."""

import dataclasses
import functools
import importlib
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np
from keras import ops

from zoo.data import Augment, Batches, Mix, RandAugment, one_hot, open_dataset
from zoo.data.preprocess import IMAGENET_MEAN, IMAGENET_STD, PreprocessSpec
from zoo.evaluation.metrics import top_k_accuracy
from zoo.models import registry
from zoo.training.config import ClassifierConfig, describe_model, named_model, read_config
from zoo.training.devices import data_parallel
from zoo.training.held_out import held_out_batches
from zoo.training.layer_decay import update_factors
from zoo.training.loop import Outcome, Pace, train_durably
from zoo.training.optimizer import create_optimizer
from zoo.training.result import write_model
from zoo.training.setup import BAD_HELD_OUT, BAD_SAMPLES, check_rates, computing_in, prepare
from zoo.utils.arrays import pad_rows
from zoo.utils.files import atomic_write
from zoo.weights import ModelConfig, classes, detect_format, load_checkpoint, read_checkpoint
from zoo.weights.config import default_arguments
from zoo.weights.schema import RESNET

IMAGE_SIZE = 224
CLASSES = "classes.json"
NOT_IDENTITY = {
    *("output", "train_data", "validation_data", "data_root"),
    *("threads", "devices", "save_every", "log_every", "validate_every", "max_skipped", "max_bad_fraction"),
}


def run(config: str | Path, *, resume: bool = False, **overrides) -> Outcome:
    """What `zoo train classify` does: `train_classifier` of a file, some of its values given anew."""
    return train_classifier(read_config(config, **overrides), resume=resume)


def train_classifier(config: ClassifierConfig, *, resume: bool = False) -> Outcome:
    """Trains a classifier and leaves it as model.safetensors in the output folder, its classes' names as classes.json.

    Args:
        config: of `read_config` or `parse_config`.
        resume: go on from the newest checkpoint in the output folder; start afresh if there is none.

    Raises:
        ValueError: values that do not go together, data that cannot be used, a folder in use; all before training.
    """
    rates = {name: getattr(config, name) for name in ("learning_rate", "weight_decay", "clip_norm", "focal_gamma")}
    check_rates(**rates)
    pace = Pace(config.epochs, config.save_every, config.log_every, config.validate_every, config.max_skipped)
    data = {"image_key": config.image_key, "label_key": config.label_key, "data_root": config.data_root}
    dataset = open_dataset(config.train_data, needs="labels", **data)
    known = len(dataset.class_names) if dataset.class_names else int(dataset.labels.max()) + 1
    count = config.num_labels or known
    if dataset.labels.max() >= count:
        raise ValueError(f"num_labels is {count}, and the data has a label {dataset.labels.max()}")
    if config.class_weights is not None and len(config.class_weights) != count:
        raise ValueError(f"class_weights has {len(config.class_weights)} numbers; the classes are {count}")
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    with data_parallel(config.devices, config.batch_size), computing_in(config.precision):
        keras.utils.set_random_seed(config.seed)
        model, description = create_classifier(config, count)
        spec = description.preprocess
        with _batches(config, dataset, spec, count, output) as batches:
            _compile(model, config, pace.epochs * batches.steps, count)
            validate = _validation(model, config, dataset, spec, data)
            identity = {k: v for k, v in dataclasses.asdict(config).items() if k not in NOT_IDENTITY}
            outcome = train_durably(
                model,
                batches,
                output,
                pace,
                arrange=functools.partial(_arrange, count, config.class_weights),
                validate=validate,
                enough=enough(config.early_stopping) if validate else None,
                identity=identity,
                resume=resume,
            )
    write_model(with_softmax(model, description), output, spec)
    write_class_names(dataset.class_names, output)
    return outcome


def write_class_names(names: Sequence[str] | None, folder: Path) -> None:
    """classes.json: the names of classes 0 to K - 1 as a list, where the data has names."""
    if names is not None:
        with atomic_write(folder / CLASSES, "w") as file:
            json.dump(list(names), file, ensure_ascii=False, indent=1)


# The model.


def create_classifier(config: ClassifierConfig, count: int) -> tuple[keras.Model, ModelConfig]:
    """(a classifier that gives logits, the description to save it by, which gives probabilities)."""
    variant, size, extra = describe_model(config)
    if extra["channels"] != 3:
        raise ValueError(f"num_channels is {extra['channels']}; pictures are read as RGB, so that it must be 3")
    size = config.image_size or size or IMAGE_SIZE
    family = config.model_type
    arguments = {**default_arguments(family, variant, family), "num_classes": count}
    arguments["input_shape"] = [size, size, extra.pop("channels")]
    if family != RESNET:
        rates = {"drop_path_rate": config.drop_path_rate, "dropout_rate": config.dropout_rate}
        arguments |= {**rates, **extra, "stem_stride": config.stem_stride or "auto"}
    elif config.stem_stride is not None or config.drop_path_rate or config.dropout_rate:
        raise ValueError("stem_stride, drop_path_rate and dropout_rate belong to ConvNeXts; model_type is 'resnet'")
    spec = PreprocessSpec(image_size=size, mean=IMAGENET_MEAN, std=IMAGENET_STD, crop_pct=0.875)
    description = ModelConfig(family, arguments, spec)
    model = dataclasses.replace(description, arguments={**arguments, "classifier_activation": None}).build()
    _load(model, config)
    if config.freeze_backbone:
        for layer in model.layers:
            layer.trainable = layer.name == "head_fc"
    return model, description


def _load(model, config) -> None:
    """Weights to begin from, if any are asked for; those left out are named."""
    entry, _ = named_model(config)
    weights = config.weights or (entry and entry.tag)
    if weights is None:
        return
    path = weights if entry is None else registry.weight_file(entry.name, weights)
    checkpoint = read_checkpoint(path)
    in_file, wanted = classes(checkpoint.tensors, detect_format(checkpoint)), model.output_shape[-1]
    fresh = (
        {} if in_file == wanted else {"head_fc": f"the file has {in_file or 'no'} classes, and {wanted} are requested"}
    )
    print(load_checkpoint(model, checkpoint, strict=False, fresh=fresh), file=sys.stderr)


def with_softmax(model, description: ModelConfig) -> keras.Model:
    """The classifier with averaged weights, if there are any, and softmax at its end."""
    with model.optimizer.averaged():
        final = description.build()
        final.set_weights(model.get_weights())
    return final


def _compile(model, config, steps, count) -> None:
    warmup = steps // 10 if config.warmup_steps is None else config.warmup_steps
    rates = {"warmup_steps": warmup, "weight_decay": config.weight_decay, "clip_norm": config.clip_norm or None}
    optimizer = create_optimizer(config.learning_rate, steps, **rates)
    metrics = [keras.metrics.CategoricalAccuracy(name="accuracy")]
    loss = create_loss(config)
    factors = None if config.layer_decay is None else update_factors(model, config.layer_decay)
    options = {"ema": config.ema, "factors": factors, "loss": loss, "metrics": metrics}
    prepare(model, optimizer, precision=config.precision, **options)
    blank = np.zeros((1, count), np.float32)
    model.compute_metrics(None, ops.convert_to_tensor(blank), ops.convert_to_tensor(blank))  # makes their variables
    model.reset_metrics()


def create_loss(config: ClassifierConfig) -> Callable:
    """(targets (B, K), logits (B, K)) → losses."""
    options = {"from_logits": True, "label_smoothing": config.label_smoothing}
    if config.loss == "cross_entropy":
        return keras.losses.CategoricalCrossentropy(**options)
    if config.loss == "focal":
        return keras.losses.CategoricalFocalCrossentropy(alpha=1.0, gamma=config.focal_gamma, **options)
    return import_loss(config.loss)


def import_loss(name: str) -> Callable:
    """The function "package.module.function" or "package.module:function", also of a file in the working folder."""
    module, _, function = name.partition(":") if ":" in name else name.rpartition(".")
    if not (module and function):
        raise ValueError(
            f"loss is {name!r}; it must be 'cross_entropy', 'focal', or one of your own, 'module.function'"
        )
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # where an installed command does not look
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"loss {name!r} cannot be imported: {error}") from None


# The data.


def _batches(config, dataset, spec, count, output) -> Batches:
    mix = None
    if config.mixup or config.cutmix:
        mix = Mix(count, mixup=config.mixup, cutmix=config.cutmix)
    augment = Augment(
        scale=tuple(config.crop_scale or (0.08, 1.0)),
        flip=config.flip,
        rand_augment=RandAugment() if config.rand_augment else None,
        erase=config.random_erasing,
    )
    return Batches(
        dataset,
        spec,
        batch_size=config.batch_size,
        seed=config.seed,
        augment=augment,
        mix=mix,
        bad_samples=output / BAD_SAMPLES,
        max_bad_fraction=config.max_bad_fraction,
        threads=config.threads,
    )


def _arrange(count, class_weights, batch):
    """A batch as `fit` takes it: images, targets (B, K), and the weight of each row where classes have weights."""
    targets = batch["target"] if "target" in batch else one_hot(batch["label"], count)
    if class_weights is None:
        return batch["images"], targets
    return batch["images"], targets, targets @ np.asarray(class_weights, np.float32)


def _validation(model, config, dataset, spec, data):
    if config.validation_data is None:
        if config.early_stopping is not None:
            raise ValueError("early_stopping needs validation_data")
        return None
    held_out = open_dataset(config.validation_data, needs="labels", **data, class_names=dataset.class_names)
    sources = {"bad_samples": Path(config.output) / BAD_HELD_OUT, "max_bad_fraction": config.max_bad_fraction}
    batches = held_out_batches(held_out, spec, batch_size=config.batch_size, threads=config.threads, **sources)
    return functools.partial(examine, model, batches)


def examine(model: keras.Model, batches: Batches) -> dict[str, float]:
    """{"accuracy", "top_5_accuracy", "loss"} of a classifier that gives logits."""
    logits, labels = [], []
    for batch in batches:
        rows = batch["images"]
        if len(rows):
            filled = pad_rows(rows, batches.batch_size)
            logits.append(model.predict(filled, batch_size=batches.batch_size, verbose=0)[: len(rows)])
            labels.append(batch["label"])
    scores, truth = np.concatenate(logits).astype(np.float64), np.concatenate(labels)
    highest = scores.max(axis=1)
    log_sum = highest + np.log(np.exp(scores - highest[:, None]).sum(axis=1))
    return {
        "accuracy": top_k_accuracy(scores, truth),
        "top_5_accuracy": top_k_accuracy(scores, truth, k=5),
        "loss": float((log_sum - scores[np.arange(len(truth)), truth]).mean()),
    }


def enough(patience: int | None) -> Callable[[list[dict]], bool] | None:
    """Whether the last `patience` validations were none of them better than the best before."""
    if patience is None:
        return None

    def no_better(rows: list[dict]) -> bool:
        accuracies = [row["val_accuracy"] for row in rows if "val_accuracy" in row]
        best = max(accuracies[:-patience], default=math.inf)
        return len(accuracies) > patience and max(accuracies[-patience:]) <= best

    return no_better
