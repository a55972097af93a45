"""`ModelConfig`: what a model is, from its name to its file. Plain data; nothing is read or built until `build`.

A config is made from a name (`ModelConfig.from_name`), a row of the table of published weights
(`from_published`), a `clip.Pair` (`from_pair`), a library's configuration file (weights/sources/), the metadata of a
saved file (native.py), or a model in memory (describe.py).
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import clip
import convnext
from zoo.data.preprocess import PreprocessSpec
from zoo.weights.published import Weights, tags
from zoo.weights.read import count_numbers
from zoo.weights.schema import CLIP, RESNET, field_error

if TYPE_CHECKING:
    import keras

_IMAGE_SIZE = 224  # of the classifiers' published counts
_STEM_STRIDE, DOWNSAMPLE_STRIDE = 4, 2  # of all published ConvNeXts
_INIT_LOGIT_SCALE = math.log(1 / 0.07)
# Limits of the pixels that the preprocessing in a file makes: at most MOST_PIXELS; for a model with a fixed input size
# also LARGEST_RATIO times its input, since models may crop or pool. LEAST_PIXELS are always allowed.
MOST_PIXELS, LARGEST_RATIO, LEAST_PIXELS = 4096**2, 16, 512**2


@dataclass(frozen=True)
class ModelConfig:
    """Architecture, preprocessing and provenance of a model.

    Args:
        family: "convnext", "convnextv2", "resnet" or "clip".
        arguments: all arguments of the family's builder. "variant" is a name in the family's table, or a dict with the
            fields of a custom row.
        preprocess: how images are prepared; None if unknown.
        licence: licence of the weights; None if unknown.
        source: {"name", "sha256", "format"} of the file that the weights were converted from; None for others.
        origin: what this config was made from, for messages: "clip/ViT-B-32.openai", "open_clip_config.json".
        from_weights: whether it describes a set of weights; False for a name alone, whose activation and size are only
            the defaults.
        published: row of the table of published weights, or None.
    """

    family: str
    arguments: dict[str, Any]
    preprocess: PreprocessSpec | None = None
    licence: str | None = None
    source: dict[str, str] | None = None
    origin: str = ""
    from_weights: bool = False
    published: Weights | None = None

    @classmethod
    def from_name(cls, name: str, activation: str | None = None) -> "ModelConfig":
        """Config of an architecture with the table's defaults.

        Args:
            name: a name from `catalogue`.
            activation: activation of a pair's transformers; the table's unless given.
        """
        family, label = catalogue()[name]
        arguments = default_arguments(family, label, name)
        if activation:
            arguments["activation"] = activation
        return cls(family, arguments, named_preprocess(family, arguments), origin=name)

    @classmethod
    def from_published(cls, row: Weights, activation: str | None = None) -> "ModelConfig":
        """Config of published weights.

        Args:
            row: row of the table of published weights.
            activation: the one that the user's spelling of the name requires, or None.

        Raises:
            ValueError: the weights were trained with another activation.
        """
        family, label = catalogue()[row.name]
        if family == CLIP:
            check_activation(row.full_name, row.activation, activation)
            own: dict[str, Any] = {"activation": row.activation, "image_size": row.preprocess.image_size}
        else:
            own = {"input_shape": [*row.preprocess.size, 3]}
            own |= {"num_classes": row.classes} if row.classes else {"include_top": False}
            own |= {"pooling": "avg"} if not row.classes and row.head_norm else {}
            own |= {"classifier_activation": None} if row.embedding else {}
        arguments = {**default_arguments(family, label, row.name), **own}
        return cls(
            family, arguments, row.preprocess, row.licence, origin=row.full_name, from_weights=True, published=row
        )

    @classmethod
    def from_pair(
        cls, pair: "clip.Pair", preprocess: PreprocessSpec | None, origin: str, init_logit_bias: float | None = None
    ) -> "ModelConfig":
        """Config of a `clip.Pair`. A pair with the towers of a table row gets that row's name.

        Args:
            pair: `clip.Pair`.
            preprocess: preprocessing of the weights.
            origin: name of the configuration.
            init_logit_bias: argument of `create_clip`.
        """
        variant = _pair_label(pair) or pair.to_dict()
        own = {"image_size": pair.image_size, "activation": pair.activation, "init_logit_bias": init_logit_bias}
        arguments = {**default_arguments(CLIP, variant, CLIP), **own}
        return cls(CLIP, arguments, preprocess, origin=origin, from_weights=True)

    @property
    def row(self) -> Any:
        """The table's row or custom row: `convnext.Variant`, `convnext.ResNetVariant` or `clip.Pair`."""
        return row_of(self.family, self.arguments["variant"])

    @property
    def activation(self) -> str:
        """Activation of the blocks, which cannot be inferred from the weights."""
        return self.arguments["activation"] if self.family == CLIP else self.row.activation

    @property
    def input_shape(self) -> tuple[int | None, int | None, int]:
        """(H, W, C) of an image; H and W are None where they are free."""
        if self.family == CLIP:
            return self.arguments["image_size"], self.arguments["image_size"], 3
        height, width, channels = self.arguments["input_shape"]
        return height, width, channels

    def build(self, *, saved: bool = False) -> "keras.Model":
        """Return the model with random weights.

        Args:
            saved: it was saved; then one class may have a softmax, which the builders refuse.

        Raises:
            TypeError, ValueError: the builder refuses the arguments.
        """
        arguments = dict(self.arguments)
        variant, name = arguments.pop("variant"), arguments.pop("name")
        if saved and arguments.get("num_classes") == 1 and arguments["classifier_activation"] == "softmax":
            import keras

            arguments["classifier_activation"] = keras.activations.softmax  # they refuse the name
        if "stem_stride" in arguments and self.family != CLIP:
            arguments.setdefault("downsample_strides", DOWNSAMPLE_STRIDE)
        model = builder_of(self.family)(variant if isinstance(variant, str) else self.row, **arguments)
        model.name = name  # given to the builder, it would stand before every layer's name too
        return model

    def count_weights(self) -> int:
        """Number of trainable weights, computed without building the model."""
        arguments, row = self.arguments, self.row
        if self.family == CLIP:
            pair = dataclasses.replace(row, image_size=arguments["image_size"])
            return clip.parameters(pair) + (arguments["init_logit_bias"] is not None)
        is_v2 = self.family == "convnextv2"
        classes = arguments["num_classes"] if arguments["include_top"] else None
        total = convnext.parameters(row, v2=is_v2, num_classes=classes, in_channels=arguments["input_shape"][-1])
        if self.family == RESNET:
            return total
        if not arguments["include_top"] and arguments["pooling"] is None:
            total -= 2 * row.dims[-1]  # no head norm
        has_scale = arguments["layer_scale_init_value"] is not None
        scales = sum(depth * dim for depth, dim in zip(row.depths, row.dims, strict=True))
        return total + scales * (has_scale - (not is_v2))  # the tables count V1 with LayerScale and V2 without

    def check_pixels(self, filename: str) -> None:
        """ValueError for preprocessing that makes far larger images than the model takes."""
        height, width = self.preprocess.size if self.preprocess else (0, 0)
        sides = [side for side in self.input_shape[:2] if side is not None]
        own = max(LEAST_PIXELS, LARGEST_RATIO * math.prod(sides)) if len(sides) == 2 else MOST_PIXELS
        if height * width > (most := min(own, MOST_PIXELS)):
            allowed = f"at most {most:,} pixels, for a model of {sides or 'any size'}"
            raise field_error(filename, "preprocess.image_size", [height, width], allowed)

    def check_size(self, tensors: Mapping[str, Any], filename: str) -> None:
        """ValueError if it has more weights or blocks than the file, or fails `check_pixels`; nothing is allocated."""
        self.check_pixels(filename)
        held, needed = count_numbers(tensors), self.count_weights()
        if needed > held or self._blocks() > len(tensors):
            allowed = f"a model that {len(tensors)} tensors with {held:,} numbers can fill; this one has {needed:,}"
            raise field_error(filename, "architecture.arguments", self.arguments, allowed)

    def _blocks(self):
        """Number of repeated blocks, each of which has tensors."""
        return _depth(self.row.image) + _depth(self.row.text) if self.family == CLIP else _depth(self.row)


def _depth(row):
    blocks = getattr(row, "layers", None) or getattr(row, "depths", 0)
    return sum(blocks) if isinstance(blocks, tuple) else blocks


@functools.cache
def catalogue() -> dict[str, tuple[str, str]]:
    """{name: (family, label in the family's table)} of every architecture, in the order of the tables."""
    classifiers = {
        f"{family}{label}" if family == RESNET else f"{family}_{label}": (family, label)
        for family, table in convnext.TABLES.items()
        for label in table
    }
    return classifiers | {f"{CLIP}/{label}": (CLIP, label) for label in clip.VARIANTS}


def name_of(family: str, label: object, default: str) -> str:
    """Name of a family's row; `default` for a custom row."""
    return next((name for name, row in catalogue().items() if row == (family, label)), default)


def builder_of(family: str) -> Callable:
    """The function that builds a family's models."""
    builders: dict[str, Callable] = {
        "convnext": convnext.create_convnext_v1,
        "convnextv2": convnext.create_convnext_v2,
        RESNET: convnext.create_resnet,
        CLIP: clip.create_clip,
    }
    return builders[family]


def row_of(family: str, variant: str | dict[str, Any]) -> Any:
    """Row of a family's table by name, or a custom row from the dict of its fields."""
    if isinstance(variant, str):
        return clip.VARIANTS[variant] if family == CLIP else convnext.TABLES[family][variant]
    if family == CLIP:
        return clip.Pair.from_dict(variant)
    row: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in variant.items()}
    return (convnext.ResNetVariant if family == RESNET else convnext.Variant)(**row)


def variant_of(family: str, row: Any) -> str | dict[str, Any]:
    """Inverse of `row_of` for classifiers: the table's name of a row, or its fields as JSON has them."""
    label = next((label for label, known in convnext.TABLES[family].items() if known == row), None)
    fields = {key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(row).items()}
    return label or fields


def _pair_label(pair):
    """Name of the table's row with these towers, of the same image size if there is one, or None."""
    towers = (pair.embed_dim, pair.image, pair.text)
    rows = {label: row for label, row in clip.VARIANTS.items() if (row.embed_dim, row.image, row.text) == towers}
    same_size = [label for label, row in rows.items() if row.image_size == pair.image_size]
    return next(iter([*same_size, *rows]), None)


def default_arguments(family: str, variant: str | dict[str, Any], name: str) -> dict[str, Any]:
    """Every argument of a family's builder, with the values that published weights need."""
    if family == CLIP:
        pair = row_of(family, variant)
        return {
            "variant": variant,
            "image_size": pair.image_size,
            "stem_stride": _STEM_STRIDE if "stem_stride" in clip.tower_of(pair.image).options else None,
            "activation": pair.activation,
            "init_logit_scale": _INIT_LOGIT_SCALE,
            "init_logit_bias": None,
            "name": variant if isinstance(variant, str) else CLIP,
        }
    common = {
        "variant": variant,
        "num_classes": 1000,
        "input_shape": [_IMAGE_SIZE, _IMAGE_SIZE, 3],
        "include_top": True,
        "pooling": None,
        "classifier_activation": "softmax",
        "name": name,
    }
    if family == RESNET:
        return common
    return {
        **common,
        "stem_stride": _STEM_STRIDE,
        "layer_scale_init_value": 1e-6 if family == "convnext" else None,
        "drop_path_rate": 0.0,
        "dropout_rate": 0.0,
    }


def check_activation(origin: str, trained: str | None, requested: str | None) -> None:
    """ValueError if weights were trained with one activation and another is requested."""
    if requested and requested != trained:
        raise ValueError(
            f"{origin} was trained with activation {trained!r}, and {requested!r} is requested: the outputs would be "
            "wrong. Leave the activation to the weights."
        )


def named_preprocess(family: str, arguments: Mapping[str, Any]) -> PreprocessSpec | None:
    """Return the preprocessing of a named pair's published weights, at the arguments' image size.

    None for a classifier, whose weights differ in it, a row without a name, or a name without published weights.
    """
    variant = arguments["variant"]
    rows = list(tags(f"{CLIP}/{variant}").values()) if family == CLIP and isinstance(variant, str) else []
    return resize_spec(rows[0].preprocess, (arguments["image_size"],) * 2) if rows else None


def resize_spec(spec: PreprocessSpec | None, size: tuple[int | None, int | None]) -> PreprocessSpec | None:
    """`spec` with another image size (H, W); unchanged where a side is free."""
    height, width = size
    if spec is None or height is None or width is None or spec.size == (height, width):
        return spec
    return dataclasses.replace(spec, image_size=height if height == width else (height, width))
