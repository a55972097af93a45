"""Contrastive training of a CLIP model: `zoo.train(…)`, and `zoo train contrastive …` on the command line."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import clip
from zoo.data import CONTRASTIVE, Dataset, open_dataset
from zoo.data.preprocess import PreprocessSpec
from zoo.models import registry
from zoo.training import processes
from zoo.training.config import MAX_CONTEXT, ContrastiveConfig, accepts, from_open_clip
from zoo.training.distillation import load_teacher, preprocessing
from zoo.training.loop import Outcome
from zoo.training.result import finished, write_model
from zoo.training.setup import (
    BAD_HELD_OUT,
    check_not_existing,
    check_numbers,
    check_unchanged,
    compile_with,
    fit,
    identity_of,
    sample_options,
    training_batches,
    training_scope,
    training_spec,
)
from zoo.training.two_pass import EMBEDDINGS, accumulate_gradients
from zoo.training.validation import PairValidation
from zoo.weights.schema import CLIP

LOSSES = ("clip", "siglip")
SIGLIP_START = {"init_logit_scale": 2.302585092994046, "init_logit_bias": -10.0}  # ln 10: arXiv:2303.15343, section 3.2


@dataclass(frozen=True)
class Tokenize:
    """`clip.tokenize` with truncation. Its repr identifies it in checkpoints and is the same in every process."""

    context_length: int = MAX_CONTEXT

    def __call__(self, texts: list[str]) -> np.ndarray:
        return clip.tokenize(texts, context_length=self.context_length, truncate=True)


@accepts(ContrastiveConfig)
def train(model: "str | clip.Pair | clip.CLIP", train_data: str | Path | Dataset, **options: Any) -> Outcome:
    """Train a CLIP model on captioned images and write it to model.safetensors in the output folder.

    The output folder also holds checkpoints/, history.jsonl, history.csv, curves.png and bad_samples.jsonl. A run that
    was killed and continues with `resume=True` ends with bit for bit the same weights.

    Raises:
        TypeError: an unknown option.
        ValueError: options that contradict each other, unusable data, or an output folder in use; before training.
    """
    config = ContrastiveConfig(model=model, train_data=train_data, **options)
    _check(config)
    with processes.joined(config):
        return _train(config)


def _train(config: ContrastiveConfig) -> Outcome:
    train_data = config.train_data
    names = ("image_key", "caption_key", "label_key", "data_root")
    columns = {name: getattr(config, name) for name in names}
    dataset = open_dataset(train_data, needs="captions", **columns)
    if config.label_key is None and not isinstance(train_data, Dataset):
        dataset = dataset.without_labels().with_image_labels()
    held_out = None if config.validation_data is None else _open_held_out(config, columns)
    tokenize = Tokenize(config.context_length)
    output = Path(config.output)
    with training_scope(config, config.resume):
        pair = create_pair(config)
        pair.image_encoder.trainable, pair.text_encoder.trainable = not config.lock_image, not config.lock_text
        spec = training_spec(preprocessing(pair), output)
        arrange: dict[str, Any] = {} if config.teacher is None else {"arrange": load_teacher(config.teacher, spec)}
        with training_batches(config, dataset, spec, augment=CONTRASTIVE, tokenize=tokenize) as batches:
            loss: dict[str, Any] = {"loss": config.loss, "distill_weight": config.distill_weight}
            rates = compile_with(config, pair, config.epochs * batches.steps, **loss)
            _compare_with_all(pair)
            if config.accumulate > 1:
                accumulate_gradients(pair, config.accumulate)
            validate = None if held_out is None else _validation(pair, config, held_out, spec, tokenize)
            options: dict[str, Any] = {"identity": _identity(config, rates, pair), "resume": config.resume, **arrange}
            outcome = fit(config, pair, batches, rates, validate=validate, **options)
        with pair.optimizer.averaged():
            path = write_model(pair, output, spec)
    data = config.validation_data or train_data
    evaluate = () if isinstance(data, Dataset) else (f"zoo eval retrieval --model {path} --data {data}",)
    index = f"zoo index build IMAGES --model {path} --output INDEX"
    return finished(outcome, path, *evaluate, index, f"in Python: zoo.ClipPipeline({str(path)!r})")


def run(**options: Any) -> Outcome:
    """Run `zoo train contrastive`: `train`, also with the options of open_clip's command line."""
    return train(**from_open_clip(options))


def _identity(config: ContrastiveConfig, rates: dict[str, Any], pair: clip.CLIP) -> dict[str, Any]:
    """Return what must be the same for a checkpoint to be resumed. Earlier checkpoints hold these keys too."""
    identity = identity_of(config, rates) | {"loss": config.loss, "accumulate": config.accumulate}
    identity |= {"locked": [config.lock_image, config.lock_text], "model": pair.architecture}
    if config.teacher is not None:
        identity |= {"teacher": str(config.teacher), "distill_weight": config.distill_weight}
    return identity


def _check(config: ContrastiveConfig) -> None:
    check_numbers(config, "distill_weight")
    if config.loss not in LOSSES:
        raise ValueError(f"loss={config.loss!r}; it must be one of {', '.join(LOSSES)}")
    if config.accumulate < 1 or config.batch_size % config.accumulate:
        raise ValueError(f"accumulate={config.accumulate} must be positive and divide batch_size={config.batch_size}")
    check_not_existing(config, config.model, config.teacher)
    if config.lock_image and config.lock_text:
        raise ValueError("lock_image and lock_text together leave nothing to train")
    if not 2 <= config.context_length <= MAX_CONTEXT:
        raise ValueError(
            f"context_length={config.context_length}; it must be between 2, for the start and end tokens, and "
            f"{MAX_CONTEXT}"
        )
    if config.classes is not None and config.validation_data is None:
        raise ValueError(f"classes={config.classes!r} needs validation_data, whose labels it names")


def create_pair(config: ContrastiveConfig) -> clip.CLIP:
    """Return the pair to train: a new one by name or row, or the existing one."""
    model = config.model
    shape = {"image_size": config.image_size, "stem_stride": config.stem_stride}
    if isinstance(model, clip.CLIP):
        check_unchanged({**shape, "weights": config.weights})
        return model
    options: dict[str, Any] = {name: value for name, value in shape.items() if value is not None}
    options |= SIGLIP_START if config.loss == "siglip" else {}
    if isinstance(model, clip.Pair):
        return clip.create_clip(model, **options)
    if registry.find(model).family != CLIP:
        raise ValueError(
            f"{model!r} is a classifier; contrastive training needs a CLIP model, such as clip/convnext_v2_tiny"
        )
    return registry.create_model(model, weights=config.weights, **options)


def _compare_with_all(pair: clip.CLIP) -> None:
    """Let the loss compare the pairs of all processes; on PyTorch, where each computes on its own part of a batch."""
    compute_loss = pair.compute_loss

    def compute_whole_loss(x=None, y=None, y_pred=None, sample_weight=None, training=True):
        whole = {name: processes.gather(y_pred[name]) for name in EMBEDDINGS}
        labels = {name: processes.gather(x[name]) for name in ("label",) if name in x}
        return compute_loss({**x, **labels}, y, whole, sample_weight, training)

    if processes.gathers():
        setattr(pair, "compute_loss", compute_whole_loss)  # noqa: B010


def _open_held_out(config: ContrastiveConfig, columns: dict) -> Dataset:
    """Return the validation data, with the classes that the config names."""
    assert config.validation_data is not None
    if config.classes is not None and config.classes not in clip.CLASS_NAMES:
        raise ValueError(f"classes={config.classes!r}; it must be one of {', '.join(clip.CLASS_NAMES)}")
    names = None if config.classes is None else clip.CLASS_NAMES[config.classes]
    dataset = open_dataset(config.validation_data, **columns, class_names=names)
    if names is not None and dataset.labels is None:
        raise ValueError(
            f"classes={config.classes!r}, but the validation data has no labels; name their column (label_key)"
        )
    return dataset


def _validation(pair, config: ContrastiveConfig, held_out: Dataset, spec: PreprocessSpec, tokenize) -> Callable:
    """Return the function that validates the pair."""
    names: Sequence[str] | None = None
    templates: Sequence[str] = ("a photo of a {}.",)
    if config.classes is not None:
        names, templates = clip.CLASS_NAMES[config.classes], clip.TEMPLATES.get(config.classes, templates)
    options = sample_options(config, BAD_HELD_OUT) | {"class_names": names or held_out.class_names}
    options |= {"batch_size": config.batch_size, "templates": templates}
    return functools.partial(PairValidation(held_out, spec, tokenize, **options), pair)
