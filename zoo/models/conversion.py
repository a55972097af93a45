"""Weights converted: from other libraries into our own format, and from our models into other libraries' files."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from zoo.data.preprocess import PreprocessSpec
from zoo.models.names import config_of, find
from zoo.models.registry import load, save
from zoo.utils.files import atomic_write, sha256
from zoo.weights import (
    LIBRARIES,
    create_with_weights,
    detect_format,
    export_tensors,
    native,
    read_weights,
    write_safetensors,
)
from zoo.weights.config import ModelConfig, check_activation, name_of, named_preprocess
from zoo.weights.describe import describe
from zoo.weights.engine import fitting_format
from zoo.weights.locate import has_config, locate
from zoo.weights.sources import target_of

if TYPE_CHECKING:
    import keras

__all__ = ["LIBRARIES", "Conversion", "WeightExport", "convert", "export_weights"]

# Fields of the preprocessing that a configuration and the table of published weights must agree on.
_COMPARED = ("image_size", "mean", "std", "interpolation", "resize_mode", "crop_pct")


@dataclass(frozen=True)
class Conversion:
    """Result of `convert`; print it.

    Args:
        source: what was read.
        sha256: digest of the weight file.
        format: format of its tensor names, detected from its keys.
        name: the architecture, with the weights' tag where one was given.
        licence: licence of the weights; None if unknown.
        preprocess: how images are prepared; None if unknown.
        path: path of the file written.
    """

    source: str
    sha256: str
    format: str
    name: str
    licence: str | None
    preprocess: PreprocessSpec | None
    path: str

    def __str__(self):
        remarks = [] if self.licence is None else [f"licence {self.licence}"]
        remarks += ["preprocessing unknown"] if self.preprocess is None else []
        extra = f" ({', '.join(remarks)})" if remarks else ""
        return f"{self.source}: format {self.format}, SHA-256 {self.sha256}\n{self.path}: {self.name}{extra}"


def convert(source: str | Path, path: str | Path, *, arch: str | None = None, ema: bool = True) -> Conversion:
    """Convert weights of another library to one file of our own format, with name, digest and preprocessing.

    Args:
        source: a weight file; or a folder or "hf-hub:owner/name" with weights and their configuration.
        path: path of the new file; ends in `.safetensors`.
        arch: name of the architecture; not needed where a configuration names it. With a tag, the source is taken to be
            these published weights, and the table's facts about them are stored.
        ema: as in `load_weights`.

    Raises:
        ValueError: the weights do not fit, or a configuration contradicts the tag.
    """
    source, path = str(source), Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"A converted model is a .safetensors file, got {path.name!r}.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"No folder {str(path.parent)!r} to write {path.name} to.")
    described, weights = locate(source) if has_config(source) else (None, Path(source))
    checkpoint = read_weights(weights, ema=ema)
    if described is None and native.is_own(checkpoint):
        described = native.parse(checkpoint)
    named = config_of(find(arch)) if arch else None
    config = _agree(named, described) if named and described else named or described
    if config is None:
        raise ValueError(f"{Path(source).name} does not say which architecture it is for. Name it with --arch.")
    model, config = create_with_weights(config, checkpoint)
    name = named.origin if named else name_of(config.family, config.arguments["variant"], model.name)
    digest, found = sha256(weights), detect_format(checkpoint).name
    save(model, path, source=config.source or {"name": name, "sha256": digest, "format": found})
    return Conversion(source, digest, found, name, config.licence, config.preprocess, str(path))


def _agree(named: ModelConfig, described: ModelConfig) -> ModelConfig:
    """The config to convert by: the table's for published weights, else what the source says of itself.

    Raises:
        ValueError: they contradict each other.
    """
    for what, one, other in (
        ("family", named.family, described.family),
        ("variant", named.arguments["variant"], described.arguments["variant"]),
    ):
        if one != other:
            raise ValueError(f"{described.origin} has {what} {other!r}, and {named.origin} has {one!r}.")
    if named.published is None:
        return described
    check_activation(named.origin, named.arguments.get("activation"), described.arguments.get("activation"))
    for field in _COMPARED if described.preprocess else ():
        one, other = getattr(named.preprocess, field), getattr(described.preprocess, field)
        if one != other:
            raise ValueError(
                f"{named.origin} is preprocessed with {field} {one!r}, and {described.origin} says {other!r}."
            )
    return named


@dataclass(frozen=True)
class WeightExport:
    """Result of `export_weights`; print it.

    Args:
        format: format of the tensor names.
        tensors: number of tensors.
        files: paths of the files written; the weights first, then the configurations.
    """

    format: str
    tensors: int
    files: tuple[str, ...]

    def __str__(self):
        return f"{self.tensors} tensors in the format of {self.format}: {', '.join(self.files)}"


def export_weights(
    model: "keras.Model | str | Path",
    path: str | Path,
    *,
    format: str = "timm",
    preprocess: PreprocessSpec | None = None,
) -> WeightExport:
    """Write a checkpoint that another library loads strictly, and that gives the same outputs there.

    The other libraries' classifiers return logits, whatever `classifier_activation` ours has. Each file is written
    atomically, the weights first.

    Args:
        model: from this package's builders, or what `load` takes: a saved file, or a name with weights.
        path: ends in `.safetensors`, or a folder, which is created if need be and gets the library's own file name.
            timm's and transformers' `config.json` and open_clip's `open_clip_config.json` are written beside the
            weights: `timm.create_model("local-dir:folder", pretrained=True)`, `from_pretrained(folder)` and
            `open_clip.create_model("local-dir:folder")` read such a folder.
        format: "timm", "transformers", "torchvision" or "facebook" for a classifier or a trunk; "open_clip" or
            "transformers" for a pair.
        preprocess: how images are prepared, for timm and open_clip. Unless given, that of the file the weights came
            from, then the defaults: ImageNet's in timm, OpenAI's in open_clip.

    Returns:
        A `WeightExport`; print it.

    Raises:
        ValueError: the library has no such model, or no name for one of its variables, or another suffix; nothing is
            written.
    """
    if isinstance(model, str | Path):
        model = load(model).model
    path = Path(path)
    if path.suffix not in ("", ".safetensors"):
        raise ValueError(f"Weights are exported to a folder or a .safetensors file, got {path.name!r}.")
    known = native.recall(model)
    config = describe(model)
    preprocess = preprocess or known.preprocess or named_preprocess(config.family, config.arguments)
    config = dataclasses.replace(config, preprocess=preprocess, licence=known.licence)
    target = target_of(config, format)
    library = fitting_format(model, target.formats)
    tensors = _with_counters(export_tensors(model, library))
    if path.suffix == "":
        path.mkdir(parents=True, exist_ok=True)
        path /= target.weights
    write_safetensors(path, tensors, {"format": "pt"})
    configs = [path.with_name(name) for name in target.configs]
    for file in configs:
        with atomic_write(file, "w") as stream:
            json.dump(target.configs[file.name], stream, indent=2)
    return WeightExport(library.name, len(tensors), tuple(str(file) for file in (path, *configs)))


def _with_counters(tensors):
    """The tensors with the step counter that each BatchNorm of torch has beside its statistics."""
    norms = [key.removesuffix("running_var") for key in tensors if key.endswith(".running_var")]
    return tensors | {f"{norm}num_batches_tracked": np.zeros((), np.int64) for norm in norms}
