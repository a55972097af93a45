"""A `Recipe` and a checkpoint → the model with those weights."""

import dataclasses
import functools
import sys
import warnings
from typing import TYPE_CHECKING

from zoo.models.info import input_shape
from zoo.models.recipes import Recipe, at_size, check_activation
from zoo.weights import Checkpoint, classes, detect_format, holds, load_checkpoint, native
from zoo.weights.download import recorded
from zoo.weights.published import restriction
from zoo.weights.schema import CLIP, RESNET

if TYPE_CHECKING:
    import keras

OWN_WORDS = ("stem_stride", "input_shape", "image_size", "activation", "init_logit_bias")


def assemble(
    recipe: Recipe, checkpoint: Checkpoint, asked: dict | None = None
) -> tuple["keras.Model", native.Description]:
    """The model that a recipe describes with the weights of a checkpoint, and its description as built.

    What had to be made to fit, such as a new classifier or resized positional embeddings, is warned of line by line.

    Args:
        recipe: of the weights, or of a name; then a checkpoint of our own format adds what the name leaves open.
        checkpoint: the weights.
        asked: builder arguments that the caller wants otherwise than the recipe.

    Raises:
        ValueError: the weights do not fit, or were trained with another activation than is asked for.
    """
    asked = asked or {}
    if recipe.from_weights:
        check_activation(recipe.origin, recipe.arguments.get("activation"), asked.get("activation"))
    description, fresh = _fitted(recipe, checkpoint, asked)
    model = _built(description, recipe, asked)
    is_said = recipe.from_weights or "activation" in asked
    activation = description.arguments.get("activation") if is_said else None
    report = load_checkpoint(model, checkpoint, fresh=fresh, activation=activation)
    for note in report.notes:
        warnings.warn(f"{checkpoint.path.name}: {note}", stacklevel=3)
    description = _with_provenance(description, recipe, checkpoint, report.format)
    native.remember(model, description)
    announce(recipe.row.full_name if recipe.row else checkpoint.path.name, description.licence)
    return model, description


def _fitted(recipe, checkpoint, asked):
    """(description to build, {layer that stays new: why}): the recipe, what the file shows of itself, what is asked."""
    description, name = recipe.description, checkpoint.path.name
    arguments = {**recipe.arguments, **_own_words(recipe, checkpoint)}
    in_file = has_norm = None
    if description.family != CLIP:
        source = detect_format(checkpoint)
        in_file = classes(checkpoint.tensors, source)
        has_norm = description.family == RESNET or holds(checkpoint.tensors, source, "head_norm")
        arguments |= {} if _is_own_word(recipe, checkpoint) else _top(recipe, in_file, has_norm)
    if recipe.from_weights and recipe.row is None:  # a stranger's word: nothing larger than the file is allocated
        native.check_size(dataclasses.replace(description, arguments=arguments), checkpoint.tensors, name)
    if "num_classes" in asked:
        arguments |= {"include_top": True, "pooling": None}
    arguments |= asked
    fresh = {} if description.family == CLIP else _fresh(arguments, asked, in_file, has_norm)
    return dataclasses.replace(description, arguments=arguments), fresh


def _own_words(recipe, checkpoint):
    """What a file of our own format says where a name does not."""
    if not native.is_own(checkpoint):
        return {}
    own = native.parse(checkpoint.metadata, checkpoint.path.name).arguments
    left_open = [word for word in OWN_WORDS if word != "activation" or not recipe.from_weights]
    return {word: own[word] for word in left_open if word in own and word in recipe.arguments}


def _is_own_word(recipe, checkpoint):
    """Whether a file of our own format describes itself, all of it."""
    return native.is_own(checkpoint) and recipe.from_weights and recipe.row is None


def _top(recipe, in_file, has_norm):
    """The end of a classifier as the file has it."""
    if in_file:
        return {"num_classes": in_file, "include_top": True, "pooling": None}
    return {"include_top": False, "pooling": "avg" if has_norm else None} if recipe.from_weights else {}


def _fresh(arguments, asked, in_file, has_norm):
    fresh = {}
    if arguments["include_top"] and asked.get("num_classes", in_file) != in_file:
        fresh["head_fc"] = f"it tells {in_file or 'no'} classes apart, not {asked['num_classes']}"
    if not has_norm and (fresh or asked.get("pooling")):
        fresh["head_norm"] = "it has no norm after the pooling"
    return fresh


def _built(description, recipe, asked):
    try:
        return native.build(description)
    except (TypeError, ValueError) as error:
        if asked or not recipe.from_weights:
            raise
        raise ValueError(f"{recipe.origin} describes no model: {error}") from error


def _with_provenance(description, recipe, checkpoint, source_format):
    """The description with what stays with the weights; a file of our own format has said it itself."""
    if native.is_own(checkpoint):
        own = native.parse(checkpoint.metadata, checkpoint.path.name)
        kept = {key: getattr(own, key) or getattr(description, key) for key in ("preprocess", "licence", "source")}
    else:
        digest, name = recorded(checkpoint.path), recipe.row.full_name if recipe.row else recipe.origin
        kept = {
            "preprocess": description.preprocess,
            "licence": description.licence,
            "source": {"name": name, "sha256": digest, "format": source_format} if digest else None,
        }
    description = dataclasses.replace(description, **kept)
    size = input_shape(description)[:2]
    return dataclasses.replace(description, preprocess=at_size(description.preprocess, size))


def announce(name: str, licence: str | None) -> None:
    """Says on stderr, once a process, what the licence of weights does not allow."""
    remark = restriction(licence)
    if remark:
        _say(f"{name}: its weights are under {licence} ({remark}).")


@functools.cache
def _say(line):
    print(line, file=sys.stderr)
