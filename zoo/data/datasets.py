"""Data sets for classification: records with labels, class names and prompt templates."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from clip import TEMPLATES
from zoo.data.benchmarks import ORIGINS
from zoo.data.folders import read_folder
from zoo.data.records import Dataset
from zoo.data.shards import read_shards
from zoo.data.sources import open_benchmark
from zoo.utils.files import read_file
from zoo.utils.strict_json import parse_json
from zoo.utils.text import quoted, shown

_MAX_NAMES_BYTES = 64 << 20  # of a file of class names or templates

_DEFAULT_TEMPLATES = {  # of CLASS_NAMES' data sets
    "digits": "digits",
    "mnist": "mnist",
    "fashion_mnist": "simple",
    "cifar10": "cifar",
    "cifar100": "cifar",
}
NAMES = (*_DEFAULT_TEMPLATES, "folder:DIR", "shards:GLOB")


@dataclass(frozen=True)
class Labelled:
    """A data set for classification.

    Args:
        name: as in `load_labelled`.
        records: N images with labels.
        class_names: K names in the order of the labels.
        templates: prompt templates, each with one "{}".
        prompts: {class name: complete prompts}, which replace the templates; None for templates.
    """

    name: str
    records: Dataset
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    prompts: Mapping[str, tuple[str, ...]] | None = None

    @property
    def labels(self) -> np.ndarray:
        """The class of each record, int32 (N,)."""
        return np.asarray(self.records.labels)


def load_labelled(
    name: str,
    data: str | Path | None = None,
    *,
    class_names: str | Path | Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    templates: str | Path | Sequence[str] | None = None,
    split: str = "test",
) -> Labelled:
    """Return a data set by name.

    Args:
        name: "digits" (the 360 held-out images of scikit-learn's digits), "cifar10", "cifar100", "mnist",
            "fashion_mnist", "folder:DIR" (one folder per class) or "shards:GLOB" (tar shards with .cls).
        data: the original files; see `read_benchmark`. Default: Keras' cache, downloaded if needed.
        class_names: a sequence, or {name: its complete prompts}, which excludes templates; or a file with one name per
            line, or with either in JSON. Default: the data set's. For a folder: its class folders in the order of the
            labels, or other names for all of them in sorted order.
        templates: a name in `clip.TEMPLATES`, a sequence, or a file; default: the data set's.
        split: "test", or "train" if the data set has one.

    Raises:
        ValueError: an unknown name, damaged files, or labels without names.
    """
    given, prompts = read_names(class_names)
    if prompts and templates:
        raise ValueError("these classes have complete prompts; templates cannot be given as well")
    records = _records(name, data, given, split)
    names = given or records.class_names
    if records.labels is None:
        raise ValueError(f"{name!r} has no labels; a folder for each class, or .cls in shards, is needed")
    if names is None:
        raise ValueError(f"{name!r} has numbers as labels; name them with class_names (--class-names FILE)")
    if records.labels.max() >= len(names):
        raise ValueError(f"{name!r} has labels up to {records.labels.max()}, but {len(names)} class names")
    chosen = () if prompts else find_templates(templates or _DEFAULT_TEMPLATES.get(name, "simple"))
    return Labelled(name, replace(records, class_names=tuple(names)), tuple(names), chosen, prompts)


def _records(name: str, data, names, split: str) -> Dataset:
    kind, _, where = name.partition(":")
    if name not in _DEFAULT_TEMPLATES and not (kind in ("folder", "shards") and where):
        raise ValueError(f"Unknown data set {name!r}. Allowed: {', '.join(NAMES)}.")
    if data is not None and name not in ORIGINS:
        raise ValueError(f"data={str(data)!r} is for {', '.join(ORIGINS)}; {name!r} takes no data")
    if kind == "folder":
        return _class_folders(where, names)
    if kind == "shards":
        return read_shards(where, class_names=names)
    return open_benchmark(name, data, split)


def _class_folders(where: str, names: Sequence[str] | None) -> Dataset:
    """Return a folder's records with the classes in the order of `names`, or sorted if these are other names."""
    records = read_folder(where)
    folders = records.class_names
    if names is None or folders is None:
        return records
    unnamed = [folder for folder in folders if folder not in names]
    if not unnamed:
        return read_folder(where, class_names=names)
    if len(unnamed) < len(folders):
        listed = ", ".join(map(repr, unnamed))
        raise ValueError(f"{where!r}: there is no class name for its folder{'s' * (len(unnamed) > 1)} {listed}")
    if len(names) != len(folders):
        raise ValueError(f"{len(names)} class names for {len(folders)} class folders in {where!r}; one each is needed")
    return records


def find_templates(templates: str | Path | Sequence[str]) -> tuple[str, ...]:
    """Return a set of `clip.TEMPLATES` by name, the lines of a file, or the sequence itself."""
    if isinstance(templates, str) and templates in TEMPLATES:
        return TEMPLATES[templates]
    if isinstance(templates, str | Path) and not os.path.isfile(templates):
        raise ValueError(f"templates={quoted(str(templates))} is neither a file nor one of {', '.join(TEMPLATES)}")
    return _read_lines(templates, "templates")


def read_names(
    source: str | Path | Sequence[str] | Mapping[str, Sequence[str]] | None,
) -> tuple[tuple[str, ...] | None, dict[str, tuple[str, ...]] | None]:
    """Return (class names, {name: complete prompts} or None) of the `class_names` of `load_labelled`."""
    if source is None:
        return None, None
    if isinstance(source, str | Path):
        source = _content(source, "{[")
    if not isinstance(source, Mapping):
        return _read_lines(source, "class_names"), None
    prompts = {
        name: _read_lines((own,) if isinstance(own, str) else own, f"the prompts of {name!r}")
        for name, own in source.items()
    }
    return _read_lines(list(prompts), "class_names"), prompts


def _read_lines(source: str | Path | Sequence[str], what: str) -> tuple[str, ...]:
    """Return the strings of a sequence, of a file with one per line, or of a JSON list in a file.

    Raises:
        ValueError: empty, or not strings.
    """
    lines: Any = _content(source, "[") if isinstance(source, str | Path) else source
    if isinstance(lines, set | frozenset):
        raise ValueError(f"{what} are a set, which has no order; pass a list or a tuple, got {quoted(lines)}")
    if not isinstance(lines, Sequence) or not lines or not all(isinstance(item, str) for item in lines):
        raise ValueError(f"{what} must be strings, at least one, got {quoted(lines)}")
    return tuple(lines)


def _content(path: str | Path, opening: str) -> Sequence[str] | Mapping:
    """Return the non-blank lines of a file, or its JSON if it begins with one of `opening`."""
    try:
        text = read_file(path, max_bytes=_MAX_NAMES_BYTES, follow=True).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{shown(path)} is not UTF-8: {shown(error)}") from None
    if not text.lstrip().startswith(tuple(opening)):
        return [line.strip() for line in text.splitlines() if line.strip()]
    return parse_json(text, Path(path).name)
