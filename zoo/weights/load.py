"""Checkpoints into models: weights into a model that exists, or a config and a checkpoint into a new model."""

import contextlib
import contextvars
import dataclasses
import functools
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.utils.text import quoted, shown
from zoo.weights import native
from zoo.weights.config import ModelConfig, check_activation, resize_spec
from zoo.weights.download import recorded
from zoo.weights.engine import Format, LoadReport, classes, detect, holds, load_tensors, matches
from zoo.weights.published import restriction, tags
from zoo.weights.read import Checkpoint, read_checkpoint
from zoo.weights.schema import CLIP, OPTIONAL, RESNET
from zoo.weights.sources import FORMATS

if TYPE_CHECKING:
    import keras

# What a bare name leaves open.
_FROM_FILE = ("stem_stride", "input_shape", "image_size", "activation", "init_logit_bias")

_announcing = contextvars.ContextVar("_announcing", default=True)
_HEADLESS = "The file has no classifier, so the model has none; num_classes=K adds a newly initialized one."


def load_weights(model: "keras.Model", path: str | Path, *, strict: bool = True, ema: bool = True) -> LoadReport:
    """Load a weight file into a model. The file's format is detected from its keys.

    The model's layers decide which tensors are needed. Towers and heads that only the file has are ignored and listed
    in the report.

    Args:
        model: a classifier, a trunk, a pair, or one tower of a pair, made by this package.
        path: `.safetensors`, a shard index, `.npz`, or a torch checkpoint, with the tensor names of timm, torchvision,
            transformers, open_clip, OpenAI, Apple, facebookresearch or `zoo.save`.
        strict: raise if the file lacks a variable or has an unexpected key; otherwise both are only reported.
        ema: of a training checkpoint with raw and averaged weights, take the averaged ones, and say so in the report;
            False takes the raw ones.

    Returns:
        A `LoadReport`; print it.

    Raises:
        ValueError: lists the keys that are missing, unexpected, or of the wrong shape. The model is unchanged.
    """
    return load_checkpoint(model, read_weights(path, ema=ema), strict=strict)


def read_weights(path: str | Path, *, ema: bool = True) -> Checkpoint:
    """Open a weight file, and remove the prefix that a training script put in front of every key.

    Prefixes such as `model.` and `net.` are removed only where the keys match no format as they are; a note says so.

    Args:
        ema: as in `load_weights`.
    """
    checkpoint = read_checkpoint(path, ema=ema)
    tensors, removed = checkpoint.tensors, ""
    while not native.is_own(checkpoint) and not any(matches(tensors, known) for known in FORMATS):
        prefix = tensors.shared_prefix()
        if not prefix:
            return checkpoint
        tensors, removed = tensors.without_prefix(prefix), removed + prefix
    if not removed:
        return checkpoint
    note = f"The prefix {quoted(removed, 60)} of all keys was removed."
    return dataclasses.replace(checkpoint, tensors=tensors, notes=(*checkpoint.notes, note))


def load_checkpoint(
    model: "keras.Model",
    checkpoint: Checkpoint,
    *,
    strict: bool = True,
    fresh: Mapping[str, str] | None = None,
    activation: str | None = None,
) -> LoadReport:
    """`load_weights` from a `Checkpoint`.

    Args:
        fresh: {layer name: reason} of layers that keep their present values.
        activation: the one that a CLIP model's weights were trained with, if known from elsewhere than the file.
    """
    notes = _check_model_activation(model, checkpoint, activation)
    source = detect_format(checkpoint)
    name = checkpoint.path.name
    report = load_tensors(model, checkpoint.tensors, source, strict=strict, fresh=fresh or {}, filename=name)
    if source.name == native.FORMAT:
        native.remember(model, native.parse(checkpoint))
    return dataclasses.replace(report, notes=(*checkpoint.notes, *notes, *report.notes))


def detect_format(checkpoint: Checkpoint) -> Format:
    """Return the `Format` of a checkpoint: our own by its metadata, a library's by its keys."""
    if native.is_own(checkpoint):
        return native.format_of(native.parse(checkpoint).family)
    return detect(checkpoint.tensors, FORMATS)


def _check_model_activation(model, checkpoint, trained=None):
    """Notes for the report. ValueError if the weights were trained with another activation than the model's."""
    activation = (getattr(model, "architecture", None) or {}).get("activation")
    if activation is None:
        return ()
    trained = checkpoint.metadata.get("activation") if native.is_own(checkpoint) else trained
    if trained is None:
        return (f"The file does not name the activation of its transformers; the model's, {activation}, is assumed.",)
    if trained != activation:
        raise ValueError(
            f"{shown(checkpoint.path.name)} holds weights for {quoted(trained)}, and the model's transformers have "
            f"{quoted(activation)}. "
            f"Create the model with activation={quoted(trained)}."
        )
    return ()


def create_with_weights(
    config: ModelConfig, checkpoint: Checkpoint, overrides: dict[str, Any] | None = None
) -> tuple["keras.Model", ModelConfig]:
    """Build the model of a config with the weights of a checkpoint; return it with the config as built.

    A warning names everything that was adapted, such as a new classifier or resized positional embeddings.

    Args:
        config: config of the weights, or of a name; a file of our own format then adds what the name leaves open.
        checkpoint: the weights.
        overrides: builder arguments that replace the config's.

    Raises:
        ValueError: the weights do not fit, or were trained with another activation than is requested.
    """
    overrides = overrides or {}
    own = native.parse(checkpoint) if native.is_own(checkpoint) else None
    if config.from_weights:
        check_activation(config.origin, config.arguments.get("activation"), overrides.get("activation"))
    fitted, fresh = _fit(config, own, checkpoint, overrides)
    model = _build(fitted, overrides, saved=config == own)
    is_known = config.from_weights or "activation" in overrides
    activation = fitted.arguments.get("activation") if is_known else None
    report = load_checkpoint(model, checkpoint, fresh=fresh, activation=activation)
    headless = config.family != CLIP and config.arguments["include_top"] and not fitted.arguments["include_top"]
    asked = () if not headless or "include_top" in overrides else (_HEADLESS,)
    for note in (*report.notes, *asked):
        warnings.warn(f"{shown(checkpoint.path.name)}: {note}", stacklevel=3)
    if fitted != own:
        fitted = _with_provenance(fitted, own, checkpoint, report.format)
    native.remember(model, fitted)
    _announce(config.origin if config.published else checkpoint.path.name, fitted.licence)
    return model, fitted


def _fit(config, own, checkpoint, overrides):
    """(config to build, {new layer: reason}) from the config, the content of the file, and the overrides."""
    arguments = {**config.arguments, **_arguments_in_file(config, own)}
    in_file = has_norm = None
    if config.family != CLIP:
        source = detect_format(checkpoint)
        in_file = classes(checkpoint.tensors, source)
        has_norm = config.family == RESNET or holds(checkpoint.tensors, source, "head_norm")
        arguments |= {} if config == own else _head_in_file(in_file, has_norm)
    if config.from_weights and config.published is None:  # a foreign config: nothing larger than the file is allocated
        dataclasses.replace(config, arguments=arguments).check_size(checkpoint.tensors, checkpoint.path.name)
    if "num_classes" in overrides:
        arguments |= {"include_top": True, "pooling": None}
    arguments |= overrides
    fresh = {} if config.family == CLIP else _new_layers(arguments, overrides, in_file, has_norm)
    return dataclasses.replace(config, arguments=arguments), fresh


def _arguments_in_file(config, own):
    """Arguments that a file of our own format adds to a name."""
    if own is None:
        return {}
    left_open = [key for key in _FROM_FILE if key != "activation" or not config.from_weights]
    found = {key: own.arguments[key] for key in left_open if key in own.arguments and key in config.arguments}
    return found | {key: own.arguments[key] for key in OPTIONAL if key in own.arguments}


def _head_in_file(in_file, has_norm):
    """Arguments for the head that the file has."""
    if in_file:
        return {"num_classes": in_file, "include_top": True, "pooling": None}
    return {"include_top": False, "pooling": "avg" if has_norm else None}


def _new_layers(arguments, overrides, in_file, has_norm):
    fresh = {}
    if arguments["include_top"] and overrides.get("num_classes", in_file) != in_file:
        fresh["head_fc"] = f"the file has {in_file or 'no'} classes, and {overrides['num_classes']} are requested"
    if not has_norm and (fresh or overrides.get("pooling")):
        fresh["head_norm"] = "the file has no norm after the pooling"
    return fresh


def _build(config, overrides, saved):
    try:
        return config.build(saved=saved)
    except (TypeError, ValueError) as error:
        if overrides or not config.from_weights:
            raise
        what = ": architecture.arguments describe" if saved else " describes"
        raise ValueError(f"{config.origin}{what} no model: {shown(error)}") from error


def _with_provenance(config, own, checkpoint, source_format):
    """The config with the provenance of the weights; a file of our own format brings its own."""
    if own:
        kept = {key: getattr(own, key) or getattr(config, key) for key in ("preprocess", "licence", "source")}
    else:
        digest = recorded(checkpoint.path)
        source = {"name": config.origin, "sha256": digest, "format": source_format} if digest else None
        kept = {"preprocess": config.preprocess, "licence": config.licence, "source": source}
    preprocess = resize_spec(kept.pop("preprocess"), config.input_shape[:2])
    return dataclasses.replace(config, preprocess=preprocess, **kept)


def _announce(name: str, licence: str | None) -> None:
    """Print on stderr, once a process, what a licence of weights restricts."""
    remark = restriction(licence)
    if remark:
        _print_once(f"{name}: its weights are under {licence} ({remark}).")


def announce_random(name: str) -> None:
    """Print on stderr, once a process, that a model has random weights, and which are published for its name."""
    if not _announcing.get():
        return
    known = list(tags(name))
    listed = (
        f"published: {', '.join(known[:4])}{', …' if len(known) > 4 else ''} (weights={known[0]!r})" if known else ""
    )
    _print_once(f"{name}: random weights; {listed or 'none are published'}.")


@contextlib.contextmanager
def announced(value: bool) -> Iterator[None]:
    """Set whether `announce_random` prints, inside the block."""
    token = _announcing.set(value)
    try:
        yield
    finally:
        _announcing.reset(token)


@functools.cache
def _print_once(line):
    print(line, file=sys.stderr)
