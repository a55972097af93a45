"""Models by name: create, load, save. What there is by name is in names.py, what is known of it in info.py."""

import dataclasses
import difflib
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from zoo.data.preprocess import PreprocessSpec
from zoo.models.assembly import announce, assemble
from zoo.models.hub import LAYOUTS, SHARD_INDEX, locate, read_recipe
from zoo.models.info import ModelInfo, described, model_info
from zoo.models.names import find, find_tagged, list_models
from zoo.models.recipes import Recipe, check_activation, named, published
from zoo.weights import export_tensors, load_checkpoint, native, read_checkpoint, write_safetensors
from zoo.weights.describe import describe, trainable_weights
from zoo.weights.download import fetch, fetch_file
from zoo.weights.published import find_weights, tags
from zoo.weights.schema import CLIP, RESNET

if TYPE_CHECKING:
    import keras

    import clip

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

PATH_SUFFIXES = (".safetensors", ".keras", ".json", ".npz", ".pt", ".pth", ".bin", ".h5")
HUB = "hf-hub:"


class Loaded(NamedTuple):
    """A model with what it takes to use it.

    Fields:
        model: `keras.Model`.
        transform: PIL image → float32 (H, W, 3), or None when the file does not say how.
        tokenizer: texts → int32 (B, 77) for a pair, else None.
        info: `ModelInfo`.
    """

    model: "keras.Model"
    transform: Callable | None
    tokenizer: Callable | None
    info: ModelInfo


class LoadedPair(NamedTuple):
    """A CLIP pair with everything needed to use it.

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
    name: str, *, weights: str | Path | None = None, num_classes: int | None = None, **builder_args: Any
) -> "keras.Model":
    """The model of that name.

    Args:
        name: of `list_models`; "clip/" may be left out where no classifier has the same name. With a tag
            ("convnextv2_tiny.fcmae_ft_in1k"), with those published weights.
        weights: None for random ones; the tag of published ones; a file that `load_weights` reads; or a folder in the
            layout of a hub, or "hf-hub:owner/name", whose configuration then has to describe this model.
        num_classes: K of a classifier: 1000, or what the weights have, unless given. Where the weights have another
            number, the classifier is new, and a warning says so.
        builder_args: of `create_convnext_v1`, `create_convnext_v2`, `create_resnet` or `create_clip`. With another
            `image_size` than the weights' the positional embeddings are resized, and a warning says so.

    Returns:
        A `keras.Model`.

    Raises:
        ValueError: an unknown name or weights that do not fit; TypeError: an argument the builder does not have.
        ConnectionError: published weights that are not cached, and no network.
    """
    entry = find(name)
    if entry.tag and weights is not None:
        raise ValueError(f"{name!r} names weights, and weights={str(weights)!r} does as well. Give one.")
    builder = _builder(entry.family)
    _check_builder_args(builder, builder_args, entry)
    if entry.family == CLIP:
        if num_classes is not None:
            raise TypeError(f"num_classes belongs to classifiers, and {entry.name} is a pair.")
    elif num_classes is not None:
        builder_args["num_classes"] = num_classes
    if weights is None and entry.tag is None:
        return builder(entry.builder_name, **builder_args)
    recipe, path = _found(entry) if weights is None else _given(entry, weights)
    return assemble(recipe, read_checkpoint(path), builder_args)[0]


def _builder(family):
    import clip
    import convnext

    return {
        "convnext": convnext.create_convnext_v1,
        "convnextv2": convnext.create_convnext_v2,
        RESNET: convnext.create_resnet,
        CLIP: clip.create_clip,
    }[family]


NOT_FOR_NAMES = {"variant", "num_classes", "image_tower", "text_tower", "name"}


def _check_builder_args(builder, builder_args, entry):
    allowed = [name for name in inspect.signature(builder).parameters if name not in NOT_FOR_NAMES]
    for name in builder_args:
        if name not in allowed:
            nearest = difflib.get_close_matches(name, allowed, n=1, cutoff=0.0)[0]
            raise TypeError(f"{entry.name} has no argument {name!r}; nearest is {nearest!r}, allowed are {allowed}.")


# Where weights come from: each gives (Recipe, path of the weight file).


def _found(entry):
    """Published weights, from the cache or the network."""
    row = find_tagged(entry)
    return published(entry, row), fetch(row.repository, row.files, revision=row.revision, digest=row.sha256)


def _given(entry, weights):
    """What `create_model(weights=…)` names."""
    path = Path(weights)
    if path.is_file():
        return named(entry), path
    if path.is_dir() or str(weights).startswith(HUB):
        recipe, path = located(weights)
        if (recipe.description.family, recipe.arguments["variant"]) != (entry.family, entry.label):
            what = f"a {recipe.description.family} {recipe.arguments['variant']}"
            raise ValueError(f"{recipe.origin} in {str(weights)!r} describes {what}, not {entry.name}.")
        check_activation(recipe.origin, recipe.arguments.get("activation"), _asked_activation(entry))
        return recipe, path
    if find_weights(entry.name, str(weights)) is None and looks_like_path(weights):
        raise FileNotFoundError(f"No weight file at {str(weights)!r}.")
    return _found(entry._replace(tag=str(weights)))


def weight_file(name: str, weights: str | Path) -> Path:
    """The file that `create_model(name, weights=weights)` reads; published ones are fetched unless they are cached."""
    return _given(find(name), weights)[1]


def _asked_activation(entry):
    """The activation that a pair's spelling asks for, or None."""
    import clip

    return clip.canonical_name(entry.builder_name)[1] if entry.family == CLIP else None


def looks_like_path(name):
    return isinstance(name, Path) or Path(name).suffix in PATH_SUFFIXES or "/" in name or "\\" in name


def located(where: str | Path) -> tuple[Recipe, Path]:
    """Weights with a configuration beside them: a folder, or "hf-hub:owner/name", with "@revision" if need be.

    Raises:
        FileNotFoundError: there is no configuration, or no weights beside it.
        ValueError: the configuration describes what this package does not make.
    """
    if not str(where).startswith(HUB):
        return locate(str(where), lambda name: path if (path := Path(where, name)).is_file() else None)
    repository, _, revision = str(where).removeprefix(HUB).partition("@")

    revision = revision or None

    def get(name):
        path = fetch_file(repository, name, revision=revision)
        if path is not None and not name.endswith(".json"):
            fetch(repository, (name,), revision=revision)  # verifies it
        for shard in _shards(path) if path is not None and name == SHARD_INDEX else ():
            fetch(repository, (shard,), revision=revision)
        return path

    return locate(f"https://huggingface.co/{repository}", get)


def _shards(index):
    """The files that a shard index names; `read_checkpoint` looks at the index more closely."""
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{index.name} is not the index of a sharded checkpoint: no usable 'weight_map'.") from error


def save(
    model: "keras.Model",
    path: str | Path,
    *,
    preprocess: PreprocessSpec | None = None,
    licence: str | None = None,
    source: dict[str, str] | None = None,
) -> None:
    """Writes a model as one `.safetensors` file from which `load` rebuilds it.

    Equal weights and configuration give equal bytes, on every backend. A failed write leaves what was there.

    Args:
        model: from `create_model`, `create_convnext_v1`, `create_convnext_v2`, `create_resnet`, or `create_clip` with a
            variant.
        path: ends in `.safetensors`.
        preprocess: how pictures were made ready when the weights were trained. Unless given: what the file said that
            they came from, then, for a pair, OpenAI's CLIP preprocessing at its image size.
        licence: of the weights; unless given, what the file said that they came from.
        source: {"name", "sha256", "format"} of the file that the weights came from; unless given, what is known of it.

    Raises:
        ValueError: another suffix, or a model that is not rebuilt from a few words: towers or layers of your own.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"A saved model is a .safetensors file, got {path.name!r}; .keras files: model.save(path).")
    description = describe(model)
    known = native.recall(model)
    preprocess = preprocess or known.preprocess
    if preprocess is None and description.family == CLIP:
        preprocess = PreprocessSpec(image_size=description.arguments["image_size"])
    description = dataclasses.replace(
        description, preprocess=preprocess, licence=licence or known.licence, source=source or known.source
    )
    write_safetensors(path, export_tensors(model, description.format), description.to_metadata())


def load(name_or_path: str | Path) -> Loaded:
    """A saved or published model, ready to use.

    Args:
        name_or_path: published weights by name ("convnext_base_w.laion2b_s13b_b82k_augreg"), downloaded once; a file of
            `save`; a folder in the layout of a hub, or a weight file in one, with the configuration of open_clip, timm
            or transformers beside it; "hf-hub:owner/name" for such a repository; or a `.keras` file, read in safe mode,
            which says nothing of preprocessing.

    Returns:
        `Loaded(model, transform, tokenizer, info)`.

    Raises:
        ValueError: the file is damaged, does not say which model it is for, or says what cannot be; or a name without
            weights.
        FileNotFoundError, ConnectionError: it is not there, or not here and no network.
    """
    path = Path(name_or_path)
    if path.suffix == ".keras" and path.is_file():
        return _load_keras(path)
    if path.is_file():
        return _load_file(path)
    if path.is_dir() or str(name_or_path).startswith(HUB):
        return _load_described(*located(name_or_path))
    if path.suffix in PATH_SUFFIXES or (looks_like_path(name_or_path) and path.parts[:1] != ("clip",)):
        raise FileNotFoundError(f"No saved model at {str(name_or_path)!r}.")
    entry = find(str(name_or_path))
    if entry.tag is None:
        raise ValueError(_without_weights(entry))
    return _load_described(*_found(entry))


def load_pair(
    model_or_name: "str | Path | keras.Model | Loaded | LoadedPair", *, preprocess: PreprocessSpec | None = None
) -> LoadedPair:
    """Return a CLIP pair ready for use: model, preprocessing, tokenizer and info.

    Args:
        model_or_name: what `load` takes, what it returned, or a `clip.CLIP` in memory.
        preprocess: how images are prepared; unless given, what the weights' file says.

    Raises:
        ValueError: it is a classifier, or its preprocessing is unknown and none is given; further errors as of `load`.
    """
    if isinstance(model_or_name, LoadedPair):
        return model_or_name._replace(preprocess=preprocess or model_or_name.preprocess)
    shown, loaded = model_or_name, model_or_name
    if isinstance(model_or_name, str | Path):
        loaded = load(model_or_name)
    if isinstance(loaded, Loaded):
        model, info = loaded.model, loaded.info
        shown = shown if isinstance(shown, str | Path) else model.name
        known = info.preprocess
    else:
        model, info, shown = loaded, None, getattr(loaded, "name", loaded)
        known = native.recall(model).preprocess
    tokenizer = _tokenizer(model)
    if tokenizer is None:
        raise ValueError(f"{str(shown)!r} is not a CLIP pair: an image tower and a text tower are needed.")
    spec = preprocess or known
    if spec is None:
        raise ValueError(f"The preprocessing of {str(shown)!r} is unknown; pass preprocess=PreprocessSpec(…).")
    if info is None and model.architecture is not None:
        description = dataclasses.replace(describe(model), **native.recall(model)._asdict())
        info = described(description, model.name, trainable_weights(model))
    return LoadedPair(model, spec, tokenizer, info)


def _without_weights(entry):
    known = list(tags(entry.name))
    published_ones = f" Published weights: {', '.join(known[:6])}{', …' if len(known) > 6 else ''}." if known else ""
    return f"{entry.name} is an architecture without weights. create_model({entry.name!r}) makes one.{published_ones}"


def _load_file(path):
    checkpoint = read_checkpoint(path)
    if native.is_own(checkpoint):
        return _load_own(path, checkpoint)
    for config, files in LAYOUTS.items():
        if path.name in files and path.with_name(config).is_file():
            return _load_described(read_recipe(path.with_name(config)), path)
    raise ValueError(
        f"{path.name} was not written by zoo.save, so it does not say which model it is for. "
        f"Name it: create_model(name, weights={str(path)!r})."
    )


def _load_described(recipe, path):
    model, description = assemble(recipe, read_checkpoint(path))
    name = recipe.row.full_name if recipe.row else model.name
    return _loaded(model, description, name, recipe.row)


def _loaded(model, description, name, row=None):
    spec = description.preprocess
    info = described(description, name, trainable_weights(model), row)
    return Loaded(model, spec and spec.eval_transform(), _tokenizer(model), info)


def _load_own(path, checkpoint):
    description = native.parse(checkpoint.metadata, path.name)
    native.check_size(description, checkpoint.tensors, path.name)
    try:
        model = native.build(description)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path.name}: architecture.arguments describe no model: {error}") from error
    load_checkpoint(model, checkpoint)
    announce(path.name, description.licence)
    return _loaded(model, description, model.name)


def _load_keras(path):
    import keras

    import clip
    import convnext

    _ = clip.CLIP, clip.zero_shot_classifier, convnext.create_fcmae  # their modules register our classes
    model = keras.saving.load_model(path, safe_mode=True)
    family = CLIP if isinstance(model, clip.CLIP) else "keras"
    image_input = model.image_encoder.input_shape if family == CLIP else getattr(model, "input_shape", None)
    shape = tuple(image_input[1:]) if isinstance(image_input, tuple) else (None, None, 3)
    info = ModelInfo(model.name, family, trainable_weights(model), None, shape, None, None, None, None)
    return Loaded(model, None, _tokenizer(model), info)


def _tokenizer(model):
    import clip

    return clip.tokenize if isinstance(model, clip.CLIP) else None
