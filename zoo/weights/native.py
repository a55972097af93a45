"""Our own format: one safetensors file that says what it is.

Keys are our layer and variable names joined with ".", under `image.` and `text.` in a pair. The metadata holds
`format`, `format_version`, `architecture` (family and the builder's arguments), `preprocess`, `activation`,
`licence` and, of weights that came from elsewhere, `source`; what is read back is checked field by field (schema.py)
before anything is built from it.
"""

import dataclasses
import json
import weakref
from dataclasses import dataclass
from typing import NamedTuple

from zoo.data.preprocess import PreprocessSpec
from zoo.weights.engine import Format
from zoo.weights.layouts import own_tensors
from zoo.weights.schema import CLIP, RESNET, bad, check_arguments
from zoo.weights.stored import count_numbers

FORMAT = "convnext-clip-zoo"
FORMAT_VERSION = "1"

CLASSIFIER = Format(FORMAT, {}, {"image": (("{*}", "{*}"),)}, tensors=own_tensors)
PAIR = Format(
    FORMAT,
    {},
    {
        "image": (("image.{*}", "{*}"),),
        "text": (("text.{*}", "{*}"),),
        "pair": (("logit_scale", "logit_scale"),),
    },
    tensors=own_tensors,
)


@dataclass(frozen=True)
class Description:
    """What a saved model's metadata says.

    Args:
        family: "convnext", "convnextv2", "resnet" or "clip".
        arguments: of the family's builder, all of them.
        preprocess: how images are made ready for it; None when that is not known.
        licence: of the weights; None when nobody said.
        source: of weights that came from elsewhere, {"name", "sha256", "format"} of the file; None for others.
    """

    family: str
    arguments: dict
    preprocess: PreprocessSpec | None = None
    licence: str | None = None
    source: dict[str, str] | None = None

    @property
    def format(self):
        return PAIR if self.family == CLIP else CLASSIFIER

    @property
    def activation(self):
        """Of the blocks: what no weight would reveal."""
        if self.family == CLIP:
            return self.arguments["activation"]
        return row_of(self.family, self.arguments["variant"]).activation

    def to_metadata(self):
        """str → str, for the file."""
        preprocess = self.preprocess and self.preprocess.to_dict()
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "architecture": _dumps({"arguments": self.arguments, "family": self.family}),
            "preprocess": _dumps(preprocess),
            "activation": self.activation,
            "licence": self.licence or "",
            **({"source": _dumps(self.source)} if self.source else {}),
        }


def _dumps(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def row_of(family, variant):
    """The table's row of a name, or the row that a dict spells out."""
    import clip
    from convnext import TABLES, ResNetVariant, Variant

    if isinstance(variant, str):
        return clip.VARIANTS[variant] if family == CLIP else TABLES[family][variant]
    if family == CLIP:
        return clip.Pair.from_dict(variant)
    row = {key: tuple(value) if isinstance(value, list) else value for key, value in variant.items()}
    return (ResNetVariant if family == RESNET else Variant)(**row)


def build(description):
    """The `keras.Model` described, with random weights."""
    import clip
    import convnext

    arguments = dict(description.arguments)
    create = {
        "convnext": convnext.create_convnext_v1,
        "convnextv2": convnext.create_convnext_v2,
        "resnet": convnext.create_resnet,
        CLIP: clip.create_clip,
    }[description.family]
    variant = arguments.pop("variant")
    return create(variant if isinstance(variant, str) else row_of(description.family, variant), **arguments)


def is_own(checkpoint):
    """Whether a `Checkpoint` says that `zoo.save` wrote it."""
    return checkpoint.metadata.get("format") == FORMAT


class Provenance(NamedTuple):
    """What stays with a model's weights when they are saved again: fields of a `Description`."""

    preprocess: PreprocessSpec | None = None
    licence: str | None = None
    source: dict[str, str] | None = None


_PROVENANCE: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def remember(model, description):
    """Keeps what was said of a model's weights, so that it stays with them when they are saved again."""
    _PROVENANCE[model] = Provenance(description.preprocess, description.licence, description.source)


def recall(model):
    """The `Provenance` of a model's weights; an empty one where nothing was said."""
    return _PROVENANCE.get(model, Provenance())


def parse(metadata, filename):
    """The `Description` in a file's metadata, every field checked.

    Raises:
        ValueError: names the file, the field, its value and what is allowed.
    """
    if metadata.get("format") != FORMAT:
        raise bad(filename, "format", metadata.get("format"), f"{FORMAT!r}: this is not a model saved by zoo.save")
    if metadata.get("format_version") != FORMAT_VERSION:
        allowed = f"{FORMAT_VERSION!r}; a newer version of the package may read it"
        raise bad(filename, "format_version", metadata.get("format_version"), allowed)
    architecture = _loads(metadata, "architecture", filename)
    if not isinstance(architecture, dict) or set(architecture) != {"family", "arguments"}:
        raise bad(filename, "architecture", architecture, "an object with 'family' and 'arguments'")
    preprocess = _parse_preprocess(_loads(metadata, "preprocess", filename), filename)
    description = Description(
        architecture["family"],
        architecture["arguments"],
        preprocess,
        metadata.get("licence") or None,
        _parse_source(metadata, filename),
    )
    check_arguments(description.family, description.arguments, filename)
    if metadata.get("activation") != description.activation:
        allowed = f"the architecture's, {description.activation!r}"
        raise bad(filename, "activation", metadata.get("activation"), allowed)
    return description


def _loads(metadata, field, filename):
    def refuse(constant):
        raise ValueError(constant)

    try:
        return json.loads(metadata[field], parse_constant=refuse)
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise bad(filename, field, metadata.get(field), "JSON without NaN or Infinity") from error


def _parse_preprocess(value, filename):
    if value is None:
        return None
    if not isinstance(value, dict) or not set(value) >= PREPROCESS_FIELDS:
        raise bad(filename, "preprocess", value, f"null or an object with {', '.join(sorted(PREPROCESS_FIELDS))}")
    try:
        return PreprocessSpec.from_dict(value)
    except (TypeError, ValueError) as error:
        raise bad(filename, "preprocess", value, f"a PreprocessSpec ({error})") from error


def _parse_source(metadata, filename):
    if "source" not in metadata:
        return None
    value = _loads(metadata, "source", filename)
    fields = value if isinstance(value, dict) else {}
    are_texts = all(isinstance(text, str) and text.isprintable() for text in fields.values())
    if set(fields) != SOURCE_FIELDS or not are_texts:
        raise bad(filename, "source", value, f"an object of texts: {', '.join(sorted(SOURCE_FIELDS))}")
    return value


SOURCE_FIELDS = {"name", "sha256", "format"}
PREPROCESS_FIELDS = {"image_size", "mean", "std", "interpolation", "resize_mode", "crop_pct"}  # of version 1


def check_size(description, tensors, filename):
    """ValueError when the architecture has more weights than the file, before anything of that size is allocated."""
    held, needed = count_numbers(tensors), count_weights(description)
    if needed > held or _blocks(description) > len(tensors):
        allowed = f"a model that {len(tensors)} tensors with {held:,} numbers can fill; this one has {needed:,}"
        raise bad(filename, "architecture.arguments", description.arguments, allowed)


def _blocks(description):
    """How many blocks the architecture repeats, each of which has tensors."""
    row = row_of(description.family, description.arguments["variant"])
    return _depth(row.image) + _depth(row.text) if description.family == CLIP else _depth(row)


def _depth(row):
    blocks = getattr(row, "layers", None) or getattr(row, "depths", 0)
    return sum(blocks) if isinstance(blocks, tuple) else blocks


def count_weights(description):
    """Trainable weights of the model described, by the tables' arithmetic."""
    import clip
    import convnext

    family, arguments = description.family, description.arguments
    if family == CLIP:
        pair = dataclasses.replace(row_of(CLIP, arguments["variant"]), image_size=arguments["image_size"])
        return clip.parameters(pair) + (arguments["init_logit_bias"] is not None)
    row, is_v2 = row_of(family, arguments["variant"]), family == "convnextv2"
    classes = arguments["num_classes"] if arguments["include_top"] else None
    total = convnext.parameters(row, v2=is_v2, num_classes=classes, in_channels=arguments["input_shape"][-1])
    if family == RESNET:
        return total
    if not arguments["include_top"] and arguments["pooling"] is None:
        total -= 2 * row.dims[-1]  # no head norm
    has_scale = arguments["layer_scale_init_value"] is not None
    scales = sum(depth * dim for depth, dim in zip(row.depths, row.dims, strict=True))
    return total + scales * (has_scale - (not is_v2))  # the tables count V1 with LayerScale and V2 without
