"""What a set of weights asks for: the architecture to build, and what is said of the weights.

A `Recipe` comes from a name, from a row of the table of published weights, or from a configuration beside the weights
(zoo/hub/). It is plain data: nothing is built or read here.
"""

import dataclasses
import math
from dataclasses import dataclass

from zoo.data.preprocess import PreprocessSpec
from zoo.models.names import Entry
from zoo.weights.native import Description
from zoo.weights.published import Weights
from zoo.weights.schema import CLIP, RESNET

IMAGE_SIZE = 224  # of the classifiers' published counts
STEM_STRIDE = 4  # of all published ConvNeXts
INIT_LOGIT_SCALE = math.log(1 / 0.07)


@dataclass(frozen=True)
class Recipe:
    """What to build for a set of weights.

    Args:
        description: the architecture with the builder's arguments, preprocessing and licence.
        origin: who says so, for messages: "clip/ViT-B-32.openai", "open_clip_config.json".
        from_weights: whether it was said of the weights, or a name alone was given: then the activation is only the
            usual one.
        row: of the table of published weights, or None.
    """

    description: Description
    origin: str
    from_weights: bool = False
    row: Weights | None = None

    @property
    def arguments(self):
        return self.description.arguments


def named(entry: Entry) -> Recipe:
    """Of a name alone: the table's row, with the activation that the spelling asks for or else the row's."""
    import clip

    arguments = default_arguments(entry.family, entry.label, entry.name)
    if entry.family == CLIP:
        arguments["activation"] = clip.canonical_name(entry.builder_name)[1] or arguments["activation"]
    return Recipe(Description(entry.family, arguments), entry.name)


def published(entry: Entry, row: Weights) -> Recipe:
    """Of a row of the table of published weights.

    Raises:
        ValueError: the name asks for another activation than the weights have.
    """
    import clip

    if entry.family == CLIP:
        check_activation(row.full_name, row.activation, clip.canonical_name(entry.builder_name)[1])
        given = {"activation": row.activation, "image_size": row.preprocess.image_size}
    else:
        given = {"input_shape": [*row.preprocess.size, 3]}
        given |= {"num_classes": row.classes} if row.classes else {"include_top": False}
        given |= {"pooling": "avg"} if not row.classes and row.head_norm else {}
        given |= {"classifier_activation": None} if row.embedding else {}
    description = Description(entry.family, {**named(entry).arguments, **given}, row.preprocess, row.licence)
    return Recipe(description, row.full_name, from_weights=True, row=row)


def own_pair(pair, extra: dict, preprocess: PreprocessSpec | None, origin: str) -> Recipe:
    """Of a `clip.Pair` that a configuration spells: a row of the table where one differs in size and activation only.

    Args:
        pair: `clip.Pair`.
        extra: further arguments of `create_clip`.
        preprocess: of the weights.
        origin: the configuration's name.
    """
    variant = _label(pair) or pair.to_dict()
    arguments = {
        **default_arguments(CLIP, variant, CLIP),
        "image_size": pair.image_size,
        "activation": pair.activation,
        **extra,
    }
    return Recipe(Description(CLIP, arguments, preprocess), origin, from_weights=True)


def _label(pair):
    import clip

    towers = (pair.embed_dim, pair.image, pair.text)
    rows = {label: row for label, row in clip.VARIANTS.items() if (row.embed_dim, row.image, row.text) == towers}
    of_that_size = [label for label, row in rows.items() if row.image_size == pair.image_size]
    return next(iter([*of_that_size, *rows]), None)


def check_activation(origin, activation, asked):
    """ValueError when the weights' transformers have one activation and another is asked for."""
    if asked and asked != activation:
        raise ValueError(
            f"{origin} was trained with activation {activation!r}, and {asked!r} is asked for: the outputs would be "
            "wrong. Leave the activation to the weights."
        )


def default_arguments(family, variant, name):
    """Every argument of a family's builder, as published weights want them."""
    import clip

    if family == CLIP:
        pair = clip.VARIANTS[variant] if isinstance(variant, str) else clip.Pair.from_dict(variant)
        return {
            "variant": variant,
            "image_size": pair.image_size,
            "stem_stride": STEM_STRIDE if isinstance(pair.image, clip.ConvNeXt) else None,
            "activation": pair.activation,
            "init_logit_scale": INIT_LOGIT_SCALE,
            "init_logit_bias": None,
            "name": variant if isinstance(variant, str) else CLIP,
        }
    face = {
        "variant": variant,
        "num_classes": 1000,
        "input_shape": [IMAGE_SIZE, IMAGE_SIZE, 3],
        "include_top": True,
        "pooling": None,
        "classifier_activation": "softmax",
        "name": name,
    }
    if family == RESNET:
        return face
    return {
        **face,
        "stem_stride": STEM_STRIDE,
        "layer_scale_init_value": 1e-6 if family == "convnext" else None,
        "drop_path_rate": 0.0,
        "dropout_rate": 0.0,
    }


def at_size(spec: PreprocessSpec | None, size) -> PreprocessSpec | None:
    """`spec` for another (H, W); one with a free side leaves it as it is."""
    if spec is None or None in size or spec.size == tuple(size):
        return spec
    height, width = size
    return dataclasses.replace(spec, image_size=height if height == width else (height, width))
