"""Models by name or file: create, load and save."""

import dataclasses
import difflib
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import clip
from convnext import called_here
from zoo.data.preprocess import PreprocessSpec
from zoo.models.info import ModelInfo, info_of, model_info
from zoo.models.keras_archive import check_keras
from zoo.models.names import config_of, find, list_models, spelled_activation
from zoo.utils.text import quoted, shown
from zoo.weights import create_with_weights, export_tensors, native, read_weights, write_safetensors
from zoo.weights.config import ModelConfig, builder_of, check_activation, named_preprocess
from zoo.weights.describe import describe, trainable_weights
from zoo.weights.load import announce_random
from zoo.weights.locate import SUFFIXES, config_beside, fetch_published, has_config, is_path, locate
from zoo.weights.published import find_weights, tags
from zoo.weights.schema import CLIP

if TYPE_CHECKING:
    import keras

__all__ = [
    "Loaded",
    "LoadedPair",
    "ModelInfo",
    "create_model",
    "find",
    "list_models",
    "load",
    "load_pair",
    "model_info",
    "save",
    "weight_file",
]


class Loaded(NamedTuple):
    """A model with everything needed to use it.

    Fields:
        model: `keras.Model`.
        transform: PIL image → float32 (H, W, 3); None if the preprocessing is unknown.
        tokenizer: texts → int32 (N, 77) for a pair, else None.
        info: `ModelInfo`.
    """

    model: "keras.Model"
    transform: Callable | None
    tokenizer: Callable | None
    info: ModelInfo


class LoadedPair(NamedTuple):
    """A CLIP model with everything needed to use it.

    Fields:
        model: `clip.CLIP`.
        preprocess: how images are prepared for it.
        tokenizer: texts → int32 (N, L).
        info: `ModelInfo`, or None for a pair in memory with custom or folded towers.
    """

    model: "clip.CLIP"
    preprocess: PreprocessSpec
    tokenizer: Callable
    info: ModelInfo | None


def create_model(
    name: str,
    *,
    weights: str | Path | None = None,
    num_classes: int | None = None,
    ema: bool = True,
    **builder_args: Any,
) -> "keras.Model":
    """Create a model by name.

    Args:
        name: a name from `list_models`; "clip/" may be left out where no classifier has the same name. With a tag
            ("convnextv2_tiny.fcmae_ft_in1k"), with those published weights.
        weights: None for random weights, which a line on stderr says; the tag of published ones; a file that
            `load_weights` reads; or a folder or "hf-hub:owner/name" with a configuration, which has to describe this
            model.
        num_classes: number of classes K of a classifier; by default that of the weights, else 1000. If the weights have
            another K, the classifier is newly initialized, and a warning says so.
        ema: as in `load_weights`.
        builder_args: arguments of `create_convnext_v1`, `create_convnext_v2`, `create_resnet` or `create_clip`. With an
            `image_size` other than that of the weights, positional embeddings are resized, and a warning says so.

    Returns:
        A `keras.Model`.

    Raises:
        ValueError: an unknown name, or weights that do not fit.
        TypeError: an argument that the builder does not have.
        ConnectionError: the published weights are not cached, and there is no network.
    """
    entry = find(name)
    if entry.tag and weights is not None:
        raise ValueError(
            f"{quoted(name)} names weights, and weights={quoted(str(weights))} does too. Give one of them."
        )
    builder = builder_of(entry.family)
    _check_builder_args(builder, builder_args, entry)
    if entry.family == CLIP:
        if num_classes is not None:
            raise TypeError(f"num_classes is an argument of classifiers, and {entry.name} is a CLIP model.")
    elif num_classes is not None:
        builder_args["num_classes"] = num_classes
    if weights is None and entry.tag is None:
        announce_random(entry.name)
        return builder(entry.builder_name, **builder_args)
    config, path = _published(entry) if weights is None else _find_weights(entry, weights)
    return create_with_weights(config, read_weights(path, ema=ema), builder_args)[0]


_NOT_FOR_NAMES = {"variant", "num_classes", "image_tower", "text_tower", "name"}


def _check_builder_args(builder, builder_args, entry):
    allowed = [name for name in inspect.signature(builder).parameters if name not in _NOT_FOR_NAMES]
    for name in builder_args:
        if name not in allowed:
            nearest = difflib.get_close_matches(name[:100], allowed, n=1, cutoff=0.0)[0]
            known = f".{called_here(name)} A" if called_here(name) else f"; nearest is {quoted(nearest)}, a"
            raise TypeError(f"{entry.name} has no argument {quoted(name)}{known}llowed are {allowed}.")


def _published(entry) -> tuple[ModelConfig, Path]:
    """Config and file of published weights, downloaded unless they are cached."""
    config = config_of(entry)
    assert config.published is not None
    return config, fetch_published(config.published)


def _find_weights(entry, weights) -> tuple[ModelConfig, Path]:
    """Config and file of `create_model(weights=…)`."""
    if weights == "":
        raise ValueError(f"weights is empty; it must be a file or a tag of `zoo list {entry.name} --weights`.")
    if os.path.isfile(weights):  # False for a name that no file can have
        return config_of(entry), Path(weights)
    if has_config(weights):
        config, path = locate(weights)
        if (config.family, config.arguments["variant"]) != (entry.family, entry.label):
            what = f"a {config.family} {config.arguments['variant']}"
            raise ValueError(f"{config.origin} in {quoted(str(weights))} describes {what}, not {entry.name}.")
        check_activation(config.origin, config.arguments.get("activation"), spelled_activation(entry))
        return config, path
    if find_weights(entry.name, str(weights)) is None and is_path(weights):
        raise FileNotFoundError(f"No weight file at {quoted(str(weights))}.")
    return _published(entry._replace(tag=str(weights)))


def weight_file(name: str, weights: str | Path) -> Path:
    """Return the file that `create_model(name, weights=weights)` reads, downloaded if need be."""
    return _find_weights(find(name), weights)[1]


def save(
    model: "keras.Model",
    path: str | Path,
    *,
    preprocess: PreprocessSpec | None = None,
    licence: str | None = None,
    source: dict[str, str] | None = None,
) -> None:
    """Save a model as one `.safetensors` file from which `load` rebuilds it.

    Equal weights and configuration give equal bytes on every backend. The write is atomic.

    Args:
        model: from `create_model`, `create_convnext_v1`, `create_convnext_v2`, `create_resnet`, or `create_clip` with a
            variant.
        path: ends in `.safetensors`.
        preprocess: how images were prepared in training. Unless given, that of the file the weights came from; failing
            that, for a pair, that of its name's published weights, or OpenAI's, at its image size.
        licence: licence of the weights; unless given, that of the file the weights came from.
        source: {"name", "sha256", "format"} of the file that the weights came from; unless given, what is known of it.

    Raises:
        ValueError: another suffix, or a model with custom towers or layers.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(
            f"A saved model is a .safetensors file, got {quoted(path.name)}; .keras files: model.save(path)."
        )
    config = describe(model)
    known = native.recall(model)
    preprocess = preprocess or known.preprocess or named_preprocess(config.family, config.arguments)
    if preprocess is None and config.family == CLIP:
        preprocess = PreprocessSpec(image_size=config.arguments["image_size"])
    config = dataclasses.replace(
        config, preprocess=preprocess, licence=licence or known.licence, source=source or known.source
    )
    write_safetensors(path, export_tensors(model, native.format_of(config.family)), native.to_metadata(config))


def load(name_or_path: str | Path, *, ema: bool = True) -> Loaded:
    """Load a saved or published model.

    Args:
        name_or_path: published weights by name ("convnext_base_w.laion2b_s13b_b82k_augreg"), downloaded once; a file of
            `save`; a folder with weights and the configuration of open_clip, timm or transformers, or the weight file
            in it; "hf-hub:owner/name" for such a repository; or a `.keras` file, read in safe mode, whose preprocessing
            is unknown.
        ema: as in `load_weights`.

    Returns:
        `Loaded(model, transform, tokenizer, info)`.

    Raises:
        ValueError: a damaged or invalid file, a file that does not describe its model, or a name without weights.
        FileNotFoundError: there is no such file.
        ConnectionError: it is not cached, and there is no network.
    """
    path = Path(name_or_path)
    if path.suffix == ".keras" and os.path.isfile(path):
        return _load_keras(path)
    if os.path.exists(path) and not path.is_dir():
        return _load_file(path, ema)
    if has_config(name_or_path):
        config, path = locate(name_or_path)
        return _load_configured(config, read_weights(path, ema=ema))
    try:
        entry = find(str(name_or_path))  # OpenAI's names have a "/": "ViT-B/32.openai"
    except ValueError:
        if path.suffix in SUFFIXES or (is_path(name_or_path) and path.parts[:1] != ("clip",)):
            raise FileNotFoundError(f"No saved model at {quoted(str(name_or_path))}.") from None
        raise
    if entry.tag is None:
        raise ValueError(_without_weights(entry))
    config, path = _published(entry)
    return _load_configured(config, read_weights(path, ema=ema))


def _without_weights(entry):
    known = list(tags(entry.name))
    published_ones = f" Published weights: {', '.join(known[:6])}{', …' if len(known) > 6 else ''}." if known else ""
    return f"{entry.name} is an architecture without weights; create_model({entry.name!r}) creates it.{published_ones}"


def _load_file(path, ema):
    checkpoint = read_weights(path, ema=ema)
    config = native.parse(checkpoint) if native.is_own(checkpoint) else config_beside(path)
    if config is None:
        raise ValueError(
            f"{shown(path.name)} was not written by zoo.save, so it does not describe its model. "
            f"Name the model: create_model(name, weights={quoted(str(path))})."
        )
    return _load_configured(config, checkpoint)


def _load_configured(config, checkpoint):
    model, config = create_with_weights(config, checkpoint)
    name = config.origin if config.published else model.name
    spec, info = config.preprocess, info_of(config, name, trainable_weights(model))
    return Loaded(model, spec and spec.eval_transform(), _tokenizer(model), info)


def _load_keras(path):
    import keras

    check_keras(path)
    try:
        model = keras.saving.load_model(path, safe_mode=True)
    except Exception as error:  # Keras raises errors of any type
        raise ValueError(f"{shown(path.name)} is not a model that Keras can load safely: {shown(error)}") from error
    if not isinstance(model, keras.Model):
        raise ValueError(f"{shown(path.name)} holds a {shown(type(model).__name__)}, not a model")
    family = CLIP if isinstance(model, clip.CLIP) else "keras"
    image_input = model.image_encoder.input_shape if family == CLIP else getattr(model, "input_shape", None)
    shape = tuple(image_input[1:]) if isinstance(image_input, tuple) else (None, None, 3)
    info = ModelInfo(model.name, family, trainable_weights(model), None, shape, None, None, None, None)
    return Loaded(model, None, _tokenizer(model), info)


def _tokenizer(model):
    return clip.tokenize if isinstance(model, clip.CLIP) else None


def load_pair(
    model_or_name: "str | Path | keras.Model | Loaded | LoadedPair", *, preprocess: PreprocessSpec | None = None
) -> LoadedPair:
    """Return a CLIP model ready for use: model, preprocessing, tokenizer and info.

    Args:
        model_or_name: what `load` takes, what it returned, or a `clip.CLIP` in memory.
        preprocess: how images are prepared; unless given, that of the weights' file.

    Raises:
        ValueError: it is a classifier, or its preprocessing is unknown and none is given; further errors as of `load`.
    """
    if isinstance(model_or_name, LoadedPair):
        return model_or_name._replace(preprocess=preprocess or model_or_name.preprocess)
    loaded = load(model_or_name) if isinstance(model_or_name, str | Path) else model_or_name
    model, info = (loaded.model, loaded.info) if isinstance(loaded, Loaded) else (loaded, None)
    name = str(model_or_name) if isinstance(model_or_name, str | Path) else getattr(model, "name", model)
    tokenizer = _tokenizer(model)
    if tokenizer is None:
        raise ValueError(f"{quoted(name)} is not a CLIP model: an image tower and a text tower are needed.")
    spec = preprocess or (info.preprocess if info else native.recall(model).preprocess)
    if spec is None:
        raise ValueError(f"The preprocessing of {quoted(name)} is unknown; pass preprocess=PreprocessSpec(…).")
    if info is None and model.architecture is not None:
        config = dataclasses.replace(describe(model), **native.recall(model)._asdict())
        info = info_of(config, model.name, trainable_weights(model))
    return LoadedPair(model, spec, tokenizer, info)
