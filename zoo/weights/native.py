"""Our own format: one safetensors file that describes its model.

Keys are our layer and variable names joined with ".", in a pair under `image.` and `text.`. The metadata holds
`format`, `format_version`, `architecture` (family and the builder's arguments), `preprocess`, `activation`, `licence`
and, for converted weights, `source`. Every field is checked (schema.py) before anything is built from it.
"""

import json
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from zoo.data.preprocess import PreprocessSpec
from zoo.utils.strict_json import parse_json
from zoo.utils.text import shown
from zoo.weights.config import ModelConfig
from zoo.weights.engine import Format
from zoo.weights.layouts import own_tensors
from zoo.weights.read import Checkpoint
from zoo.weights.schema import CLIP, check_arguments, field_error

if TYPE_CHECKING:
    import keras

FORMAT = "convnext-clip-zoo"
_FORMAT_VERSION = "1"
_SOURCE_FIELDS = {"name", "sha256", "format"}
_PREPROCESS_FIELDS = {"image_size", "mean", "std", "interpolation", "resize_mode", "crop_pct"}  # of version 1

_CLASSIFIER = Format(FORMAT, {}, {"image": (("{*}", "{*}"),)}, tensors=own_tensors)
_PAIR = Format(
    FORMAT,
    {},
    {
        "image": (("image.{*}", "{*}"),),
        "text": (("text.{*}", "{*}"),),
        "pair": (("logit_scale", "logit_scale"),),
    },
    tensors=own_tensors,
)


def format_of(family: str) -> Format:
    """The `Format` of a family's saved models."""
    return _PAIR if family == CLIP else _CLASSIFIER


def is_own(checkpoint: Checkpoint) -> bool:
    """Whether a `Checkpoint` was written by `zoo.save`."""
    return checkpoint.metadata.get("format") == FORMAT


def to_metadata(config: ModelConfig) -> dict[str, str]:
    """Metadata of a saved model, str → str."""
    return {
        "format": FORMAT,
        "format_version": _FORMAT_VERSION,
        "architecture": _dumps({"arguments": config.arguments, "family": config.family}),
        "preprocess": _dumps(config.preprocess and config.preprocess.to_dict()),
        "activation": config.activation,
        "licence": config.licence or "",
        **({"source": _dumps(config.source)} if config.source else {}),
    }


def _dumps(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def parse(checkpoint: Checkpoint) -> ModelConfig:
    """Read the `ModelConfig` from a checkpoint's metadata, with every field checked.

    Raises:
        ValueError: names the file, the field, its value and the allowed values.
    """
    metadata, filename = checkpoint.metadata, checkpoint.path.name
    if metadata.get("format") != FORMAT:
        allowed = f"{FORMAT!r}; only zoo.save writes such files"
        raise field_error(filename, "format", metadata.get("format"), allowed)
    if metadata.get("format_version") != _FORMAT_VERSION:
        allowed = f"{_FORMAT_VERSION!r}; a newer version of this package may read it"
        raise field_error(filename, "format_version", metadata.get("format_version"), allowed)
    architecture = _loads(metadata, "architecture", filename)
    if not isinstance(architecture, dict) or set(architecture) != {"family", "arguments"}:
        raise field_error(filename, "architecture", architecture, "an object with 'family' and 'arguments'")
    config = ModelConfig(
        architecture["family"],
        architecture["arguments"],
        _parse_preprocess(_loads(metadata, "preprocess", filename), filename),
        metadata.get("licence") or None,
        _parse_source(metadata, filename),
        origin=filename,
        from_weights=True,
    )
    check_arguments(config.family, config.arguments, filename)
    config.check_pixels(filename)
    if metadata.get("activation") != config.activation:
        allowed = f"the architecture's, {config.activation!r}"
        raise field_error(filename, "activation", metadata.get("activation"), allowed)
    return config


def _loads(metadata: Mapping[str, str], field: str, filename: str) -> Any:
    try:
        return parse_json(metadata[field], field)
    except (KeyError, ValueError) as error:
        raise field_error(filename, field, metadata.get(field), f"JSON ({shown(error)})") from error


def _parse_preprocess(value, filename):
    if value is None:
        return None
    if not isinstance(value, dict) or not set(value) >= _PREPROCESS_FIELDS:
        allowed = f"null or an object with {', '.join(sorted(_PREPROCESS_FIELDS))}"
        raise field_error(filename, "preprocess", value, allowed)
    try:
        return PreprocessSpec.from_dict(value)
    except (TypeError, ValueError) as error:
        raise field_error(filename, "preprocess", value, f"a PreprocessSpec ({error})") from error


def _parse_source(metadata, filename):
    if "source" not in metadata:
        return None
    value = _loads(metadata, "source", filename)
    fields = value if isinstance(value, dict) else {}
    are_texts = all(isinstance(text, str) and text.isprintable() for text in fields.values())
    if set(fields) != _SOURCE_FIELDS or not are_texts:
        raise field_error(filename, "source", value, f"an object of texts: {', '.join(sorted(_SOURCE_FIELDS))}")
    return value


class Provenance(NamedTuple):
    """Fields of a `ModelConfig` that stay with a model's weights when they are saved again."""

    preprocess: PreprocessSpec | None = None
    licence: str | None = None
    source: dict[str, str] | None = None


_PROVENANCE: "weakref.WeakKeyDictionary[keras.Model, Provenance]" = weakref.WeakKeyDictionary()


def remember(model: "keras.Model", config: ModelConfig) -> None:
    """Record the provenance of a model's weights, for when they are saved again."""
    _PROVENANCE[model] = Provenance(config.preprocess, config.licence, config.source)


def recall(model: "keras.Model") -> Provenance:
    """Return the `Provenance` of a model's weights, empty if unknown."""
    return _PROVENANCE.get(model, Provenance())
