"""Weight files in and out: foreign checkpoints by two-column rule tables, our own format by its metadata.

`read` and `write` know files, `stored` holds what is read, `layouts` knows which tensors a class of layer has,
`engine` how a table is applied to a model. `timm`, `transformers`, `open_clip`, `mobileclip` and `facebook` are the
tables. `native` is our own format, `schema` what its metadata may say, `describe` how that is read off a model.
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from zoo.weights import native
from zoo.weights.engine import LoadReport, classes, detect, export_tensors, holds, load_tensors
from zoo.weights.read import Checkpoint, read_checkpoint
from zoo.weights.sources import facebook, mobileclip, open_clip, timm, transformers
from zoo.weights.write import write_safetensors

if TYPE_CHECKING:
    import keras

__all__ = [
    "FORMATS",
    "Checkpoint",
    "LoadReport",
    "classes",
    "detect_format",
    "export_tensors",
    "holds",
    "load_checkpoint",
    "load_weights",
    "read_checkpoint",
    "write_safetensors",
]

# The order matters where one signature holds another: a whole pair comes before a tower alone.
FORMATS = (*open_clip.FORMATS, *mobileclip.FORMATS, *transformers.FORMATS, *timm.FORMATS, *facebook.FORMATS)


def load_weights(model: "keras.Model", path: str | Path, *, strict: bool = True) -> LoadReport:
    """Sets a model's variables from a weight file of a known format, which is detected from its keys.

    Nothing about the architecture is asked for: it is read off the model's layers. Towers and heads that the file has
    and the model does not are left aside and named in the report.

    Args:
        model: a classifier, a trunk, a pair, or one tower of a pair, made by this package and built.
        path: `.safetensors`, a shard index, `.npz`, or a torch checkpoint; in the naming of timm, torchvision,
            transformers, open_clip, OpenAI, facebookresearch or `zoo.save`.
        strict: refuse a file that lacks a variable or has a key left over; otherwise both are only reported.

    Returns:
        A `LoadReport`; print it.

    Raises:
        ValueError: with the keys that are missing, left over, or of the wrong shape. The model is untouched.
    """
    return load_checkpoint(model, read_checkpoint(path), strict=strict)


def load_checkpoint(model, checkpoint, *, strict=True, fresh=(), activation=None):
    """`load_weights` from a `Checkpoint` already read.

    Args:
        fresh: {name of a layer that keeps the values it has: why}.
        activation: that a pair's weights were trained with, where it is said elsewhere than in the file.
    """
    notes = _check_activation(model, checkpoint, activation)
    source = detect_format(checkpoint)
    name = checkpoint.path.name
    report = load_tensors(model, checkpoint.tensors, source, strict=strict, fresh=fresh, filename=name)
    if source.name == native.FORMAT:
        native.remember(model, native.parse(checkpoint.metadata, name))
    return dataclasses.replace(report, notes=(*notes, *report.notes))


def detect_format(checkpoint):
    """The `Format` of a checkpoint: our own by its metadata, a foreign one by its keys."""
    if native.is_own(checkpoint):
        return native.parse(checkpoint.metadata, checkpoint.path.name).format
    return detect(checkpoint.tensors, FORMATS)


def _check_activation(model, checkpoint, said=None):
    """Notes for the report: a pair's activation is in no weight. ValueError when another is said than the model's."""
    activation = (getattr(model, "architecture", None) or {}).get("activation")
    if activation is None:
        return ()
    said = checkpoint.metadata.get("activation") if native.is_own(checkpoint) else said
    if said is None:
        return (
            f"The file does not say which activation its transformers have; the model's, {activation}, was assumed.",
        )
    if said != activation:
        raise ValueError(
            f"{checkpoint.path.name} holds weights for {said!r}, and the model's transformers have {activation!r}. "
            f"Create the model with activation={said!r}."
        )
    return ()
