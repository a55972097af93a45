"""What the zoo has, by name: list, describe, create, load, save.

A classifier has its timm name (`convnext_base`, `convnextv2_tiny`, `resnet50`), a pair open_clip's under `clip/`
(`clip/ViT-B-32`, `clip/convnext_v2_tiny`). A pair's bare name does where no classifier has it. Listing and describing
read tables only and load no backend.
"""

import dataclasses
import difflib
import fnmatch
import functools
import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from zoo.convert import (
    classes,
    detect_format,
    export_tensors,
    load_checkpoint,
    native,
    read_checkpoint,
    write_safetensors,
)
from zoo.convert.describe import describe, trainable_weights
from zoo.preprocess import IMAGENET_MEAN, IMAGENET_STD, PreprocessSpec

if TYPE_CHECKING:
    import keras

CLIP = native.CLIP
SOURCES = {
    "convnext": "arXiv:2201.03545",
    "convnextv2": "arXiv:2301.00808",
    "resnet": "arXiv:1512.03385",
    CLIP: "arXiv:2103.00020",
}
PUBLISHED = {  # licences of the weights that others publish; none of them comes with this package
    "convnext": "MIT (facebookresearch), Apache-2.0 (timm)",
    "convnextv2": "CC-BY-NC-4.0, not for commercial use",
    "resnet": "BSD-3-Clause (torchvision), Apache-2.0 (timm), by tag",
    CLIP: "MIT (OpenAI, LAION) and others, by tag",
}
IMAGE_SIZE = 224  # of the classifiers' published counts
CROP_PCT = 0.875  # timm's for classifiers at 224
PATH_SUFFIXES = (".safetensors", ".keras", ".json", ".npz", ".pt", ".pth", ".bin", ".h5")


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a name, or of a saved model, before any weight is touched.

    Args:
        name: as `list_models` prints it; of a saved model, the model's own.
        family: "convnext", "convnextv2", "resnet" or "clip".
        parameters: trainable, at 1000 classes for a name.
        flops: of one image, in a pair of one image and one caption; two for each multiply–add. None where the input
            has no fixed size.
        input: (H, W, C) of an image.
        preprocess: how a picture becomes that input; None when nobody said.
        licence: of the weights; of a name without weights, the code's and that of the weights others publish.
        score: published, of the weights; None where there are none.
        source: the paper.
    """

    name: str
    family: str
    parameters: int
    flops: int | None
    input: tuple[int | None, int | None, int]
    preprocess: PreprocessSpec | None
    licence: str | None
    score: float | None
    source: str | None


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


class Entry(NamedTuple):
    """A name taken apart: `builder_name` is what the family's builder is called with."""

    name: str
    family: str
    label: str
    builder_name: str
    tag: str | None = None


def list_models(pattern: str = "*", weights: str | None = None) -> list[str]:
    """The names that match a pattern, classifiers first, each family from small to large.

    Args:
        pattern: as in a shell, e.g. "convnextv2_*", "*vit*"; case does not matter, and a pair also answers to its name
            without `clip/`.
        weights: pattern of weight tags.

    Raises:
        ValueError: `weights`; this version has no table of published weights.
    """
    if weights is not None:
        raise ValueError(f"weights={weights!r} cannot be listed: {NO_TABLE}.")
    pattern = pattern.lower()
    return [
        name
        for name in _catalogue()
        if any(fnmatch.fnmatchcase(form.lower(), pattern) for form in (name, name.removeprefix(f"{CLIP}/")))
    ]


NO_TABLE = "this version has no table of published weights; load a file with weights='path'"


@functools.cache
def _catalogue():
    """{name: (family, label)} of everything there is, in the order of the tables."""
    import clip
    import convnext

    classifiers = {
        f"{family}{label}" if family == native.RESNET else f"{family}_{label}": (family, label)
        for family, table in convnext.TABLES.items()
        for label in table
    }
    return classifiers | {f"{CLIP}/{label}": (CLIP, label) for label in clip.VARIANTS}


def find(name: str) -> Entry:
    """The `Entry` of a name, with or without `clip/` and with or without a weights tag.

    Raises:
        ValueError: no model has this name; the nearest ones are offered.
    """
    whole, (base, _, tag) = str(name), str(name).partition(".")
    for candidate, rest in ((whole, None), (base, tag or None)):
        if candidate in _catalogue():
            family, label = _catalogue()[candidate]
            return Entry(candidate, family, label, label, rest)
        if label := _pair_label(candidate.removeprefix(f"{CLIP}/")):
            return Entry(f"{CLIP}/{label}", CLIP, label, candidate.removeprefix(f"{CLIP}/"), rest)
    raise ValueError(f"Unknown model {name!r}.{_nearest(base)} `zoo list` prints all {len(_catalogue())} names.")


def _pair_label(name):
    """The table's spelling of a pair's name, which may be OpenAI's, or None."""
    import clip

    try:
        return clip.canonical_name(name)[0]
    except ValueError:
        return None


def _nearest(name):
    """ " Did you mean 'convnextv2_tiny'?", also where the difference is `v2` against `_v2`."""
    bare = {form.removeprefix(f"{CLIP}/"): form for form in reversed(_catalogue())}
    plain: dict[str, list] = {}
    for spelling in [*_catalogue(), *bare]:
        plain.setdefault(_squeeze(spelling), []).append(bare.get(spelling, spelling))
    close = difflib.get_close_matches(_squeeze(name), plain, n=3)
    exact = plain.get(_squeeze(name), [])
    names = list(dict.fromkeys(exact or [spelling for form in close for spelling in plain[form]]))[:3]
    return f" Did you mean {' or '.join(map(repr, names))}?" if names else ""


def _squeeze(name):
    return "".join(letter for letter in name.lower() if letter.isalnum())


def model_info(name: str) -> ModelInfo:
    """The `ModelInfo` of a name, from the tables.

    Raises:
        ValueError: an unknown name, or a weights tag.
    """
    import clip
    import convnext

    entry = find(name)
    if entry.tag:
        raise _no_such_weights(entry)
    if entry.family == CLIP:
        pair = clip.VARIANTS[entry.label]
        parameters, flops, size = clip.parameters(pair), clip.flops(pair), pair.image_size
        spec = PreprocessSpec(image_size=size)
    else:
        row, size = native.row_of(entry.family, entry.label), IMAGE_SIZE
        parameters = convnext.parameters(row, v2=entry.family == "convnextv2")
        flops = convnext.flops(row, image_size=size)
        spec = PreprocessSpec(image_size=size, mean=IMAGENET_MEAN, std=IMAGENET_STD, crop_pct=CROP_PCT, rgb_first=True)
    licence = f"code Apache-2.0; published weights {PUBLISHED[entry.family]}"
    return ModelInfo(
        entry.name, entry.family, parameters, flops, (size, size, 3), spec, licence, None, SOURCES[entry.family]
    )


def _no_such_weights(entry):
    return ValueError(f"There are no weights {entry.tag!r} for {entry.name}: {NO_TABLE}.")


def create_model(
    name: str, *, weights: str | Path | None = None, num_classes: int | None = None, **builder_args: Any
) -> "keras.Model":
    """The model of that name.

    Args:
        name: of `list_models`; "clip/" may be left out where no classifier has the same name.
        weights: None for random ones, or a file that `load_weights` reads.
        num_classes: K of a classifier: 1000, or what the file has, unless given. Where the file has another number, the
            classifier is new, and a warning says so.
        builder_args: of `create_convnext_v1`, `create_convnext_v2`, `create_resnet` or `create_clip`.

    Returns:
        A `keras.Model`.

    Raises:
        ValueError: an unknown name or weights that do not fit; TypeError: an argument the builder does not have.
    """
    entry = find(name)
    if entry.tag:
        raise (
            _no_such_weights(entry)
            if weights is None
            else ValueError(f"{name!r} names weights, and weights={str(weights)!r} does as well. Give one.")
        )
    builder = _builder(entry.family)
    _check_builder_args(builder, builder_args, entry)
    if entry.family == CLIP:
        if num_classes is not None:
            raise TypeError(f"num_classes belongs to classifiers, and {entry.name} is a pair.")
    elif num_classes is not None:
        builder_args["num_classes"] = num_classes
    if weights is None:
        return builder(entry.builder_name, **builder_args)
    return _create_with_weights(entry, builder, builder_args, _weight_file(entry, weights))


def _builder(family):
    import clip
    import convnext

    return {
        "convnext": convnext.create_convnext_v1,
        "convnextv2": convnext.create_convnext_v2,
        "resnet": convnext.create_resnet,
        CLIP: clip.create_clip,
    }[family]


NOT_FOR_NAMES = {"variant", "num_classes", "image_tower", "text_tower", "name"}


def _check_builder_args(builder, builder_args, entry):
    allowed = [name for name in inspect.signature(builder).parameters if name not in NOT_FOR_NAMES]
    for name in builder_args:
        if name not in allowed:
            nearest = difflib.get_close_matches(name, allowed, n=1, cutoff=0.0)[0]
            raise TypeError(f"{entry.name} has no argument {name!r}; nearest is {nearest!r}, allowed are {allowed}.")


def _weight_file(entry, weights):
    path = Path(weights)
    if path.is_file():
        return path
    if isinstance(weights, Path) or path.suffix in PATH_SUFFIXES or len(path.parts) > 1:
        raise FileNotFoundError(f"No weight file at {str(weights)!r}.")
    raise _no_such_weights(entry._replace(tag=str(weights)))


def _create_with_weights(entry, builder, builder_args, path):
    """As `create_model`, from a file; what the file says of the architecture holds where the caller says nothing."""
    checkpoint = read_checkpoint(path)
    in_file = classes(checkpoint.tensors, detect_format(checkpoint))
    own = native.parse(checkpoint.metadata, path.name).arguments if native.is_own(checkpoint) else {}
    defaults = {"stem_stride": own.get("stem_stride") or 4} if _has_stem_stride(entry) else {}
    if entry.family == CLIP:
        defaults |= {key: own[key] for key in ("image_size", "activation", "init_logit_bias") if key in own}
    else:
        defaults |= {"num_classes": in_file} if in_file else {}
        defaults |= {"input_shape": tuple(own["input_shape"])} if "input_shape" in own else {}
    model = builder(entry.builder_name, **{**defaults, **builder_args})
    fresh = ("head_fc",) if in_file not in (None, builder_args.get("num_classes", in_file)) else ()
    if fresh:
        asked = builder_args["num_classes"]
        warnings.warn(f"{path.name} tells {in_file} classes apart, not {asked}: head_fc is new.", stacklevel=3)
    load_checkpoint(model, checkpoint, fresh=fresh)
    return model


def _has_stem_stride(entry):
    import clip

    return entry.family in ("convnext", "convnextv2") or (
        entry.family == CLIP and isinstance(clip.VARIANTS[entry.label].image, clip.ConvNeXt)
    )


def save(
    model: "keras.Model",
    path: str | Path,
    *,
    preprocess: PreprocessSpec | None = None,
    licence: str | None = None,
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

    Raises:
        ValueError: another suffix, or a model that is not rebuilt from a few words: towers or layers of your own.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"A saved model is a .safetensors file, got {path.name!r}; .keras files: model.save(path).")
    description = describe(model)
    known_preprocess, known_licence = native.recall(model)
    preprocess = preprocess or known_preprocess
    if preprocess is None and description.family == CLIP:
        preprocess = PreprocessSpec(image_size=description.arguments["image_size"])
    description = dataclasses.replace(description, preprocess=preprocess, licence=licence or known_licence)
    write_safetensors(path, export_tensors(model, description.format), description.to_metadata())


def load(name_or_path: str | Path) -> Loaded:
    """A saved model, ready to use.

    Args:
        name_or_path: a file of `save`; or a `.keras` file, read in safe mode, which says nothing of preprocessing.

    Returns:
        `Loaded(model, transform, tokenizer, info)`.

    Raises:
        ValueError: the file is damaged, is a foreign one, or its metadata is not what `save` writes; or a name without
            weights.
    """
    path = Path(name_or_path)
    if path.suffix == ".keras" and path.is_file():
        return _load_keras(path)
    if path.is_file():
        return _load_own(path)
    if path.suffix in PATH_SUFFIXES:
        raise FileNotFoundError(f"No saved model at {str(name_or_path)!r}.")
    entry = find(str(name_or_path))
    if entry.tag:
        raise _no_such_weights(entry)
    raise ValueError(f"{entry.name} is an architecture without weights. create_model({entry.name!r}) makes one.")


def _load_own(path):
    checkpoint = read_checkpoint(path)
    if not native.is_own(checkpoint):
        raise ValueError(
            f"{path.name} was not written by zoo.save, so it does not say which model it is for. "
            f"Name it: create_model(name, weights={str(path)!r})."
        )
    description = native.parse(checkpoint.metadata, path.name)
    native.check_size(description, checkpoint.tensors, path.name)
    try:
        model = native.build(description)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path.name}: architecture.arguments describe no model: {error}") from error
    load_checkpoint(model, checkpoint)
    spec = description.preprocess
    return Loaded(model, spec and spec.eval_transform(), _tokenizer(model), _saved_info(model, description))


def _load_keras(path):
    import keras

    import clip
    import convnext

    _ = clip.CLIP, convnext.GRN  # their modules register what a .keras file names
    model = keras.saving.load_model(path, safe_mode=True)
    family = CLIP if isinstance(model, clip.CLIP) else "keras"
    image_input = model.image_encoder.input_shape if family == CLIP else model.input_shape
    shape = tuple(image_input[1:]) if isinstance(image_input, tuple) else (None, None, 3)
    info = ModelInfo(model.name, family, trainable_weights(model), None, shape, None, None, None, None)
    return Loaded(model, None, _tokenizer(model), info)


def _tokenizer(model):
    import clip

    return clip.tokenize if isinstance(model, clip.CLIP) else None


def _saved_info(model, description):
    family, arguments = description.family, description.arguments
    shape = (*[arguments["image_size"]] * 2, 3) if family == CLIP else tuple(arguments["input_shape"])
    return ModelInfo(
        model.name,
        family,
        trainable_weights(model),
        _saved_flops(description, shape),
        shape,
        description.preprocess,
        description.licence,
        None,
        SOURCES[family],
    )


def _saved_flops(description, shape):
    import clip
    import convnext

    height, width, channels = shape
    if height is None or height != width:
        return None
    arguments = description.arguments
    if description.family == CLIP:
        return clip.flops(clip.VARIANTS[arguments["variant"]], height)
    return convnext.flops(
        native.row_of(description.family, arguments["variant"]),
        image_size=height,
        stem_stride=arguments.get("stem_stride", 4),
        num_classes=arguments["num_classes"] if arguments["include_top"] else None,
        in_channels=channels,
    )
