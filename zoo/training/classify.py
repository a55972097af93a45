"""Training of a classifier from a JSON config: `zoo train classify --config FILE`."""

import dataclasses
import functools
import importlib
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

import convnext
from zoo.data import Augment, Batches, Dataset, Mix, RandAugment, one_hot, open_dataset
from zoo.data.preprocess import IMAGENET_MEAN, IMAGENET_STD, PreprocessSpec
from zoo.evaluation.metrics import top_k_accuracy
from zoo.models import registry
from zoo.training import processes
from zoo.training.architecture import describe_model, named_model
from zoo.training.config import ClassifierConfig, read_config
from zoo.training.layer_decay import update_factors
from zoo.training.loop import Outcome
from zoo.training.result import finished, write_model
from zoo.training.setup import (
    BAD_HELD_OUT,
    check_numbers,
    compile_with,
    fit,
    sample_options,
    training_batches,
    training_scope,
    training_spec,
)
from zoo.training.validation import held_out_batches
from zoo.utils.arrays import pad_rows
from zoo.utils.files import atomic_write
from zoo.utils.text import quoted, shown
from zoo.weights import ModelConfig, classes, detect_format, load_checkpoint, read_weights
from zoo.weights.config import default_arguments, name_of
from zoo.weights.load import announce_random
from zoo.weights.schema import RESNET, field_error

IMAGE_SIZE = 224
CLASSES = "classes.json"
NOT_IDENTITY = {
    *("output", "train_data", "validation_data", "data_root", "report_to", "threads", "checkpoint_activations"),
    *("save_every", "log_every", "validate_every", "max_skipped", "max_bad_fraction"),
    *("devices", "model_axis", "coordinator", "processes", "process_id"),
}
LOSSES = ("cross_entropy", "focal")
# Of a model that a config describes; from Python any row can be trained. The largest published classifier,
# ConvNeXt-XXLarge, has 846 million weights, and the deepest, ResNet-152, 50 blocks.
MOST_WEIGHTS, MOST_BLOCKS = 1_000_000_000, 200
LARGEST_SIDE = 2048  # pixels of an image
LONGEST_NAME = 64  # of an activation


def run(config: str | Path, *, resume: bool = False, allow_code: bool = False, **overrides) -> Outcome:
    """Run `zoo train classify`: `train_classifier` with the config in a file; `overrides` replace its values.

    Args:
        allow_code: whether the file may name a function to import as its loss.
    """
    read = read_config(config, **overrides)
    if read.loss not in LOSSES and not allow_code:
        raise ValueError(
            f"{shown(Path(config).name)}: loss is {quoted(read.loss)}, code that would be imported, also from the "
            f"working folder. If you trust it, pass --allow-code; without it, allowed are {', '.join(LOSSES)}."
        )
    return train_classifier(read, resume=resume)


def train_classifier(config: ClassifierConfig, *, resume: bool = False) -> Outcome:
    """Train a classifier and write it to model.safetensors in the output folder, the class names to classes.json.

    Args:
        config: from `read_config` or `parse_config`.
        resume: resume from the newest checkpoint in the output folder; without one, start from the beginning.

    Raises:
        ValueError: options that contradict each other, unusable data, or an output folder in use; before training.
    """
    check_numbers(config, "focal_gamma")
    with processes.joined(config):
        return _train(config, resume)


def _train(config: ClassifierConfig, resume: bool) -> Outcome:
    data: dict[str, Any] = {name: getattr(config, name) for name in ("image_key", "label_key", "data_root")}
    dataset = open_dataset(config.train_data, needs="labels", **data)
    assert dataset.labels is not None
    highest = int(dataset.labels.max())
    count = config.num_labels or (len(dataset.class_names) if dataset.class_names else highest + 1)
    if highest >= count:
        raise ValueError(f"num_labels is {count}, but the data has a label {highest}")
    if count == 1:
        name = f", {dataset.class_names[0]!r}," if dataset.class_names else ""
        raise ValueError(
            f"The data has one class{name} and a softmax of one class is always 1. Add the images that are not of it "
            "as a second class; in Python, a model with classifier_activation='sigmoid' learns one class."
        )
    if config.class_weights is not None and len(config.class_weights) != count:
        raise ValueError(f"class_weights has {len(config.class_weights)} numbers for {count} classes")
    held_out = _open_held_out(config, dataset, data)
    output = Path(config.output)
    with training_scope(config, resume):
        model, description = create_classifier(config, count)
        assert description.preprocess is not None
        spec = training_spec(description.preprocess, output)
        with training_batches(config, dataset, spec, augment=_augment(config), mix=_mix(config, count)) as batches:
            rates = _compile(model, config, config.epochs * batches.steps, count)
            validate = None if held_out is None else _validation(model, config, held_out, spec)
            identity = {k: v for k, v in dataclasses.asdict(config).items() if k not in NOT_IDENTITY}
            outcome = fit(
                config,
                model,
                batches,
                rates,
                arrange=functools.partial(_arrange, count, config.class_weights),
                validate=validate,
                should_stop=no_improvement(config.early_stopping) if validate else None,
                identity=identity,
                resume=resume,
            )
    path = write_model(with_softmax(model, description), output, spec)
    if processes.is_first():
        _write_class_names(dataset.class_names, output)
    python = f"model, transform, *_ = zoo.load({str(path)!r})"
    return finished(outcome, path, f"zoo export {path} {path.with_suffix('.onnx')}", f"in Python: {python}")


def _write_class_names(names: Sequence[str] | None, folder: Path) -> None:
    """Write classes.json, the names of classes 0 to K - 1 as a list, if the data has names."""
    if names is not None:
        with atomic_write(folder / CLASSES, "w") as file:
            json.dump(list(names), file, ensure_ascii=False, indent=1)


# The model.


def create_classifier(config: ClassifierConfig, count: int) -> tuple[keras.Model, ModelConfig]:
    """Return a classifier that outputs logits, and the description to save it with, which adds the softmax."""
    variant, size, extra = describe_model(config)
    if extra["channels"] != 3:
        raise ValueError(f"num_channels is {extra['channels']}; images are read as RGB, so it must be 3")
    size = config.image_size or size or IMAGE_SIZE
    family = config.model_type
    arguments = {**default_arguments(family, variant, family), "num_classes": count}
    arguments["input_shape"] = [size, size, extra.pop("channels")]
    if family != RESNET:
        rates = {"drop_path_rate": config.drop_path_rate, "dropout_rate": config.dropout_rate}
        arguments |= {**rates, **extra, "stem_stride": config.stem_stride or "auto", "downsample_strides": "auto"}
    elif config.stem_stride is not None or config.drop_path_rate or config.dropout_rate:
        raise ValueError("stem_stride, drop_path_rate and dropout_rate need a ConvNeXt; model_type is 'resnet'")
    spec = PreprocessSpec(image_size=size, mean=IMAGENET_MEAN, std=IMAGENET_STD, crop_pct=0.875)
    description = ModelConfig(family, arguments, spec)
    _check_work(description)
    model = dataclasses.replace(description, arguments={**arguments, "classifier_activation": None}).build()
    if family != RESNET:
        say_strides(description)
    _load(model, config)
    if config.freeze_backbone:
        for name, layer in convnext.layers_by_name(model).items():
            layer.trainable = name == "head_fc"
    return model, description


def _check_work(description: ModelConfig) -> None:
    """Raise ValueError for a model of more work than MOST_WEIGHTS, MOST_BLOCKS and LARGEST_SIDE, before it is built."""
    side, row = description.arguments["input_shape"][0], description.row
    blocks, weights = sum(row.depths), description.count_weights()
    if not str(row.activation).isidentifier() or len(row.activation) > LONGEST_NAME:
        raise field_error("the config", "hidden_act", row.activation, "the name of an activation of Keras")
    if side > LARGEST_SIDE:
        raise ValueError(f"image_size is {side}; at most {LARGEST_SIDE} pixels are allowed")
    if blocks > MOST_BLOCKS or weights > MOST_WEIGHTS:
        raise ValueError(
            f"depths {quoted(row.depths)} and hidden_sizes {quoted(row.dims)} make {blocks} blocks with {weights:,} "
            f"weights; at most {MOST_BLOCKS} and {MOST_WEIGHTS:,} are allowed"
        )


def say_strides(description: ModelConfig) -> None:
    """Print the strides of a ConvNeXt where the size of the images has changed them."""
    arguments, row = description.arguments, description.row
    height, width, _ = arguments["input_shape"]
    given = arguments["stem_stride"]
    stem, strides = convnext.resolve_strides(row, (height, width, 3), given, arguments["downsample_strides"])
    if given != "auto" or (stem == row.patch_size and set(strides) <= {2}):
        return
    side = min(height, width)
    cost = ""
    if side >= row.patch_size << len(strides):  # at the usual stride a map is left
        work, usual = (
            convnext.flops(row, image_size=side, stem_stride=stride, num_classes=None)
            for stride in (stem, row.patch_size)
        )
        cost = f", about {work / usual:.0f} times the work of stem stride {row.patch_size}"
    last = side // stem // math.prod(strides)
    print(
        f"Images of {height} × {width}: stem stride {stem}, downsampling strides {', '.join(map(str, strides))}, "
        f"last map {last} × {last}{cost}. stem_stride in the config sets another.",
        file=sys.stderr,
    )


def _load(model, config) -> None:
    """Load the initial weights, if the config has any; print a report of those that were left out."""
    entry, _ = named_model(config)
    weights = config.weights or (entry and entry.tag)
    if weights is None:
        variant, family = describe_model(config)[0], config.model_type
        announce_random(name_of(family, variant, f"A {family} of other sizes"))
        return
    path = weights if entry is None else registry.weight_file(entry.name, weights)
    checkpoint = read_weights(path)
    in_file, wanted = classes(checkpoint.tensors, detect_format(checkpoint)), model.output_shape[-1]
    fresh = (
        {} if in_file == wanted else {"head_fc": f"the file has {in_file or 'no'} classes, and {wanted} are requested"}
    )
    print(load_checkpoint(model, checkpoint, strict=False, fresh=fresh), file=sys.stderr)


def with_softmax(model, description: ModelConfig) -> keras.Model:
    """Return the classifier with a softmax output and, if there is an EMA, the averaged weights."""
    with model.optimizer.averaged():
        final = description.build()
        final.set_weights(model.get_weights())
    return final


def _compile(model: keras.Model, config: ClassifierConfig, steps: int, count: int) -> dict[str, Any]:
    metrics = [keras.metrics.CategoricalAccuracy(name="accuracy")]
    factors = None if config.layer_decay is None else update_factors(model, config.layer_decay)
    rates = compile_with(config, model, steps, factors=factors, loss=create_loss(config), metrics=metrics)
    blank = ops.convert_to_tensor(np.zeros((1, count), np.float32))
    model.compute_metrics(None, blank, blank)  # creates their variables
    model.reset_metrics()
    return rates


def create_loss(config: ClassifierConfig) -> Callable:
    """Return a function (targets (B, K), logits (B, K)) → losses."""
    options = {"from_logits": True, "label_smoothing": config.label_smoothing}
    if config.loss == "cross_entropy":
        return keras.losses.CategoricalCrossentropy(**options)
    if config.loss == "focal":
        return keras.losses.CategoricalFocalCrossentropy(alpha=1.0, gamma=config.focal_gamma, **options)
    return _import_loss(config.loss)


def _import_loss(name: str) -> Callable:
    """Return the function "package.module.function" or "package.module:function", also from the working folder."""
    module, _, function = name.partition(":") if ":" in name else name.rpartition(".")
    if not (module and function):
        raise ValueError(
            f"loss is {quoted(name)}; it must be 'cross_entropy', 'focal' or a function of yours, 'module.function'"
        )
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # an installed command does not search it
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # whatever the module raises
        raise ValueError(f"loss {quoted(name)} cannot be imported: {shown(error)}") from error
    if not callable(found):
        raise ValueError(f"loss {quoted(name)} is {quoted(found, 100)}; it must be a function of (targets, logits)")
    return found


# The data.


def _augment(config: ClassifierConfig) -> Augment:
    return Augment(
        scale=tuple(config.crop_scale or (0.08, 1.0)),
        flip=config.flip,
        rand_augment=RandAugment() if config.rand_augment else None,
        erase=config.random_erasing,
    )


def _mix(config: ClassifierConfig, count: int) -> Mix | None:
    return Mix(count, mixup=config.mixup, cutmix=config.cutmix) if config.mixup or config.cutmix else None


def _arrange(count, class_weights, batch):
    """Return a batch for `fit`: images, targets (B, K), and with class weights the weight of each row."""
    targets = batch["target"] if "target" in batch else one_hot(batch["label"], count)
    if class_weights is None:
        return batch["images"], targets
    return batch["images"], targets, targets @ np.asarray(class_weights, np.float32)


def _open_held_out(config, dataset, columns) -> Dataset | None:
    """Return the validation data, with the classes of the training data; None without any."""
    if config.validation_data is None:
        if config.early_stopping is not None:
            raise ValueError("early_stopping needs validation_data")
        return None
    return open_dataset(config.validation_data, needs="labels", **columns, class_names=dataset.class_names)


def _validation(model, config, held_out, spec) -> Callable[[], dict[str, float]]:
    options = sample_options(config, BAD_HELD_OUT)
    batches = held_out_batches(held_out, spec, batch_size=config.batch_size, **options)
    return functools.partial(evaluate, model, batches)


def evaluate(model: keras.Model, batches: Batches) -> dict[str, float]:
    """Return {"accuracy", "top_5_accuracy", "loss"} of a classifier whose output is logits."""
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


def no_improvement(patience: int | None) -> Callable[[list[dict]], bool] | None:
    """Return a function of the history: whether none of the last `patience` validations beat the best before them."""
    if patience is None:
        return None

    def check(rows: list[dict]) -> bool:
        accuracies = [row["val_accuracy"] for row in rows if "val_accuracy" in row]
        best = max(accuracies[:-patience], default=math.inf)
        return len(accuracies) > patience and max(accuracies[-patience:]) <= best

    return check
