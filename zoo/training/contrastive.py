"""Contrastive training of a pair: `zoo.train(…)`, and `zoo train contrastive …` on the command line."""

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import keras

import clip
from zoo.data import CONTRASTIVE, Batches, Dataset, open_dataset
from zoo.data.preprocess import PreprocessSpec
from zoo.models import registry
from zoo.training.devices import data_parallel
from zoo.training.distillation import Teacher, load_teacher
from zoo.training.loop import Outcome, Pace, train_durably
from zoo.training.optimizer import create_optimizer
from zoo.training.result import write_model
from zoo.training.setup import BAD_HELD_OUT, BAD_SAMPLES, check_rates, computing_in, prepare
from zoo.training.two_pass import accumulate as take_chunks
from zoo.training.validation import PairValidation
from zoo.weights import native
from zoo.weights.schema import CLIP

LOSSES = ("clip", "siglip")
MAX_CONTEXT = 77
SIGLIP_START = {"init_logit_scale": 2.302585092994046, "init_logit_bias": -10.0}  # ln 10: arXiv:2303.15343, section 3.2


@dataclass(frozen=True)
class Tokenize:
    """`clip.tokenize` that cuts what is too long. Its repr, by which a run is known, is the same in any process."""

    context_length: int = MAX_CONTEXT

    def __call__(self, texts):
        return clip.tokenize(texts, context_length=self.context_length, truncate=True)


def train(
    model: "str | clip.Pair | clip.CLIP",
    train_data: str | Path | Dataset,
    *,
    output: str | Path = "contrastive-output",
    image_key: str = "filepath",
    caption_key: str = "caption",
    label_key: str | None = None,
    data_root: str | Path | None = None,
    batch_size: int = 32,
    epochs: int = 10,
    image_size: int | None = None,
    stem_stride: int | None = None,
    weights: str | Path | None = None,
    loss: str = "clip",
    learning_rate: float = 5e-4,
    weight_decay: float = 0.05,
    warmup_steps: int | None = None,
    clip_norm: float | None = 1.0,
    accumulate: int = 1,
    precision: str = "float32",
    ema: float | None = None,
    lock_image: bool = False,
    lock_text: bool = False,
    context_length: int = MAX_CONTEXT,
    validation_data: str | Path | Dataset | None = None,
    validate_every: int | None = None,
    classes: str | None = None,
    teacher: "str | Path | clip.CLIP | None" = None,
    distill_weight: float = 1.0,
    devices: int | None = None,
    save_every: int | None = None,
    log_every: int = 10,
    max_skipped: int = 10,
    max_bad_fraction: float = 0.01,
    threads: int | None = None,
    seed: int = 0,
    resume: bool = False,
) -> Outcome:
    """Trains a pair on captioned images and leaves it as model.safetensors in the output folder.

    A run that was killed goes on with `resume=True`, and ends with the weights, bit for bit, of one that was not.

    Args:
        model: a name of `zoo.list_models("clip/*")`, a row of one's own, or a pair, which is trained in place.
        train_data: CSV, TSV or parquet file, folder of images with .txt beside them, tar shards, or what
            `zoo.data.from_arrays` makes of arrays.
        output: folder of the pair, checkpoints/, history.jsonl, history.csv, curves.png and bad_samples.jsonl.
        image_key, caption_key: columns of a table.
        label_key: column of classes: pairs of one class are then positives of each other. What has its labels without
            a column, such as shards, takes any word. Validation data has the same columns.
        data_root: folder that paths in a table are seen from and may not leave; the table's own unless given.
        batch_size: pairs that are compared with each other.
        image_size, stem_stride: as in `create_clip`.
        weights: to begin from: a tag or a file, as in `create_model`.
        loss: "clip" or "siglip".
        learning_rate: after `warmup_steps` (a tenth of the run unless given), then along a cosine to zero.
        weight_decay: of all but gains, biases, embeddings and the temperature.
        clip_norm: greatest norm of all gradients together; None or 0 for no limit.
        accumulate: chunks that a batch is embedded in, to save memory; the loss and its gradient stay the batch's.
        precision: "float32", "bfloat16" or "float16"; the weights are float32 in all of them.
        ema: share of the moving average of the weights that stays each step; it is what is validated and saved.
        lock_image, lock_text: leave a tower as it is.
        context_length: tokens of a caption, 2 to 77; longer ones are cut.
        validation_data: as `train_data`; examined once an epoch, or every `validate_every` steps.
        classes: name of `clip.CLASS_NAMES` for zero-shot accuracy on the validation data's labels; unless given, the
            names that the data has.
        teacher: a pair to learn from as well: a name with weights, a saved file, or a pair. It takes images of the same
            size; the similarities it sees in a batch are what the student's are drawn to.
        distill_weight: of that part of the loss.
        devices: of JAX, among which each batch is divided; the loss stays the whole batch's.
        save_every: steps between checkpoints; once an epoch unless given.
        log_every: steps that a row of the history is the mean of.
        max_skipped: non-finite updates in a row after which the run goes back to its last checkpoint.
        max_bad_fraction: of the records; more bad ones end the run.
        threads: that decode images.
        seed: of the weights, the order and the augmentation.
        resume: go on from the newest checkpoint in `output`; start afresh if there is none.

    Raises:
        ValueError: arguments that do not go together, data that cannot be used, a folder in use; all before training.
    """
    check_rates(learning_rate=learning_rate, weight_decay=weight_decay, clip_norm=clip_norm)
    _check(loss=loss, batch_size=batch_size, accumulate=accumulate, distill_weight=distill_weight)
    _check_places(devices, model, teacher)
    if lock_image and lock_text:
        raise ValueError("lock_image and lock_text together leave nothing to train")
    if not 2 <= context_length <= MAX_CONTEXT:
        raise ValueError(f"context_length={context_length}; it must be between 2, for start and end, and {MAX_CONTEXT}")
    if classes is not None and validation_data is None:
        raise ValueError(f"classes={classes!r} names what validation_data shows, and there is none")
    pace = Pace(epochs, save_every, log_every, validate_every, max_skipped)
    columns = {"image_key": image_key, "caption_key": caption_key, "label_key": label_key, "data_root": data_root}
    dataset = open_dataset(train_data, needs="captions", **columns)
    if label_key is None and not isinstance(train_data, Dataset):
        dataset = dataset.without_labels()
    tokenize = Tokenize(context_length)
    with data_parallel(devices, batch_size), computing_in(precision):
        keras.utils.set_random_seed(seed)
        pair = _pair(model, weights, loss, image_size=image_size, stem_stride=stem_stride)
        pair.image_encoder.trainable, pair.text_encoder.trainable = not lock_image, not lock_text
        spec = preprocessing(pair)
        distill = {} if teacher is None else {"arrange": _teacher(teacher, spec)}
        Path(output).mkdir(parents=True, exist_ok=True)
        sources = {"bad_samples": Path(output) / BAD_SAMPLES, "max_bad_fraction": max_bad_fraction, "threads": threads}
        augment = {"augment": CONTRASTIVE, "tokenize": tokenize, "seed": seed}
        with Batches(dataset, spec, batch_size=batch_size, **augment, **sources) as batches:
            steps = epochs * batches.steps
            warmup_steps = steps // 10 if warmup_steps is None else warmup_steps
            rates = {"warmup_steps": warmup_steps, "weight_decay": weight_decay, "clip_norm": clip_norm or None}
            optimizer = create_optimizer(learning_rate, steps, **rates)
            prepare(pair, optimizer, loss=loss, precision=precision, ema=ema, distill_weight=distill_weight)
            if accumulate > 1:
                take_chunks(pair, accumulate)
            validate = None
            if validation_data is not None:
                sources |= {"bad_samples": Path(output) / BAD_HELD_OUT, "batch_size": batch_size}
                validate = _validation(pair, validation_data, columns, spec, tokenize, classes, sources)
            identity = {"learning_rate": learning_rate, "epochs": epochs, **rates, "loss": loss, "ema": ema}
            identity |= {"precision": precision, "accumulate": accumulate, "locked": [lock_image, lock_text]}
            identity |= {"model": pair.architecture, "weights": weights and str(weights)}
            if teacher is not None:
                identity |= {"teacher": str(teacher), "distill_weight": distill_weight}
            options = {"validate": validate, "identity": identity, "resume": resume, **distill}
            outcome = train_durably(pair, batches, output, pace, **options)
        with pair.optimizer.averaged():
            write_model(pair, Path(output), spec)
    return outcome


def _check(*, loss: str, batch_size: int, accumulate: int, distill_weight: float) -> None:
    if loss not in LOSSES:
        raise ValueError(f"loss={loss!r}; it must be one of {', '.join(LOSSES)}")
    if accumulate < 1 or batch_size % accumulate:
        raise ValueError(f"accumulate={accumulate} must be positive and divide batch_size={batch_size}")
    check_rates(distill_weight=distill_weight)


def _check_places(devices, *models) -> None:
    if devices not in (None, 1) and any(isinstance(model, keras.Model) for model in models):
        raise ValueError(f"devices={devices}: a pair that is there already lies on one device; give its name or file")


def _teacher(teacher, spec) -> Teacher:
    pair = load_teacher(teacher)
    return Teacher(pair, preprocessing(pair), spec)


def _pair(model, weights, loss, **shape):
    if isinstance(model, clip.CLIP):
        given = [name for name, value in {**shape, "weights": weights}.items() if value is not None]
        if given:
            raise ValueError(f"{', '.join(given)} shape a new pair; this one is there already")
        return model
    start = SIGLIP_START if loss == "siglip" else {}
    shape = {name: value for name, value in shape.items() if value is not None}
    if isinstance(model, clip.Pair):
        return clip.create_clip(model, **shape, **start)
    if registry.find(model).family != CLIP:
        raise ValueError(f"{model!r} is a classifier; contrastive training takes a pair, such as clip/convnext_v2_tiny")
    return registry.create_model(model, weights=weights, **shape, **start)


def preprocessing(model) -> PreprocessSpec:
    """What the model's weights expect of pictures; OpenAI's statistics unless they say otherwise."""
    height, width = model.image_encoder.input_shape[1:3]
    known = native.recall(model).preprocess
    size = height if height == width else (height, width)
    return PreprocessSpec(image_size=size) if known is None else dataclasses.replace(known, image_size=size)


def _validation(pair, path, columns, spec, tokenize, classes, sources):
    """The function that examines the pair."""
    names: Sequence[str] | None = None
    templates = ("a photo of a {}.",)
    if classes is not None:
        if classes not in clip.CLASS_NAMES:
            raise ValueError(f"classes={classes!r}; it must be one of {', '.join(clip.CLASS_NAMES)}")
        names, templates = clip.CLASS_NAMES[classes], clip.TEMPLATES.get(classes, templates)
    dataset = open_dataset(path, **columns, class_names=names)
    if names is not None and dataset.labels is None:
        raise ValueError(f"classes={classes!r}, but the validation data has no labels; name their column (label_key)")
    texts = {"class_names": names or dataset.class_names, "templates": templates}
    return functools.partial(PairValidation(dataset, spec, tokenize, **texts, **sources), pair)
