"""`Source`: what the package knows of one library. And helpers that read a library's configuration with suspicion.

A configuration is foreign data: JSON of bounded size, matched field by field to what our builders make, and refused
with the field that differs.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zoo.data.preprocess import PreprocessSpec
from zoo.utils.strict_json import OBJECT, read_json
from zoo.weights.config import ModelConfig
from zoo.weights.engine import Format
from zoo.weights.schema import LARGEST_SIZE, field_error

LARGEST_CONFIG = 4 << 20  # bytes; the names of 21,841 classes take one million
MOST_STAGES = 16  # of a backbone; published ones have 4
SHARD_INDEX = "model.safetensors.index.json"
TIMM_STYLE = ("model.safetensors", SHARD_INDEX, "pytorch_model.bin")  # weights beside timm's and transformers' configs

Find = Callable[[str], Path | None]  # file name → path, or None where there is no such file


@dataclass(frozen=True)
class Target:
    """How one model is written for one library.

    Args:
        formats: names of its tensors; the first that names every variable of a model is written.
        weights: file that the library looks for in a folder.
        configs: file name → content, as JSON has it.
    """

    formats: tuple[Format, ...]
    weights: str = "model.safetensors"
    configs: dict[str, dict] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """One library: its tensor names, and its configuration read and written.

    Args:
        name: name of the library, as `export_weights(format=…)` takes it.
        formats: formats of its checkpoints; a whole pair before a tower alone where one signature contains another.
        config: name of its configuration file, or None.
        weights: names of the weight files beside the configuration, in order of preference.
        recognises: content of a configuration file → whether it is this library's.
        read: (content of the configuration, its name, `Find`) → `ModelConfig`; a ValueError names the field that no
            model of this package has.
        fixed: family → {fact: value} that the library's classes fix whatever the configuration says, for every family
            that can be exported. A model that differs is refused: its outputs would not be the same there.
        target: `ModelConfig` of a model → `Target`, for families in `fixed`.
    """

    name: str
    formats: tuple[Format, ...]
    config: str | None = None
    weights: tuple[str, ...] = ()
    recognises: Callable[[dict], bool] = lambda _: False
    read: Callable[[dict, str, Find], ModelConfig] | None = None
    fixed: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    target: Callable[[ModelConfig], Target] = lambda _: Target(())


# Facts that `fixed` of several libraries have in common.
ANY_CONVNEXT = {"overlapping stem": False, "overlapping downsampling": False, "head norm": True}
PAPER_CONVNEXT = {
    **{"overlapping stem": False, "overlapping downsampling": False},
    **{"patch size": 4, "epsilon": 1e-6, "activation": "gelu"},
}
PAPER_RESNET = {"stages": 4, "patch size": 7, "stem width": 64, "epsilon": 1e-5, "activation": "relu"}


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object from a small file; ValueError, with the file's name, for anything else."""
    return read_json(path, OBJECT, max_bytes=LARGEST_CONFIG)


def section(values: Mapping[str, Any], key: str, filename: str) -> dict[str, Any]:
    """An object inside an object."""
    inner = values.get(key)
    if not isinstance(inner, dict):
        raise field_error(filename, key, inner, "an object")
    return inner


def integer(values: Mapping[str, Any], key: str, default: int | None, filename: str, prefix: str = "") -> int:
    """A positive integer of a bounded size; `default` where the key is missing or null."""
    value = default if values.get(key) is None else values[key]
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LARGEST_SIZE:
        raise field_error(filename, f"{prefix}{key}", value, f"an integer from 1 to {LARGEST_SIZE:,}")
    return value


def integers(values: Mapping[str, Any], key: str, default: tuple[int, ...], filename: str) -> tuple[int, ...]:
    """A tuple of such integers."""
    value = default if values.get(key) is None else values[key]
    if not isinstance(value, list | tuple) or not 1 <= len(value) <= MOST_STAGES:
        raise field_error(filename, key, value, "a list of positive integers")
    return tuple(integer({key: number}, key, None, filename) for number in value)


def check_fixed(
    values: Mapping[str, Any], fixed: Mapping[str, Any], free: Collection[str], filename: str, prefix: str = ""
) -> None:
    """Refuse fields with another value than our models have, and unknown fields.

    Args:
        values: field → value; null and empty values are ignored.
        fixed: field → the only allowed value.
        free: fields with any value: they are read elsewhere, or matter for training alone.
    """
    for key, value in values.items():
        if key in free or value in (None, "", {}, []):
            continue
        if key not in fixed:
            raise field_error(filename, f"{prefix}{key}", value, "no such field")
        if value != fixed[key]:
            raise field_error(filename, f"{prefix}{key}", value, repr(fixed[key]))


def read_spec(fields: Mapping[str, Any], where: str) -> PreprocessSpec:
    """A `PreprocessSpec` from its fields; a ValueError begins with `where`."""
    try:
        return PreprocessSpec.from_dict(fields)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error
