"""Data sets to classify: records with labels, class names and the prompt templates that go with them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from clip import CLASS_NAMES, TEMPLATES
from zoo.data.benchmarks import ORIGINS
from zoo.data.folders import read_folder
from zoo.data.records import Dataset
from zoo.data.shards import read_shards
from zoo.data.sources import open_benchmark

DEFAULT_TEMPLATES = {  # of CLASS_NAMES' data sets
    "digits": "digits",
    "mnist": "mnist",
    "fashion_mnist": "simple",
    "cifar10": "cifar",
    "cifar100": "cifar",
}
NAMES = (*DEFAULT_TEMPLATES, "folder:DIR", "shards:GLOB")


@dataclass(frozen=True)
class Labelled:
    """A data set to classify.

    Args:
        name: what it was asked for by.
        records: N pictures with labels.
        class_names: K names in the order of the labels.
        templates: prompts of its own, each with one "{}".
        prompts: {class name: whole prompts}, in place of the templates; None for templates.
    """

    name: str
    records: Dataset
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    prompts: Mapping[str, tuple[str, ...]] | None = None


def load_labelled(
    name: str,
    data: str | Path | None = None,
    *,
    class_names: str | Path | Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    templates: str | Path | Sequence[str] | None = None,
    split: str = "test",
) -> Labelled:
    """A data set by name.

    Args:
        name: "digits" (the 360 of scikit-learn's that the demo holds out), "cifar10", "cifar100", "mnist",
            "fashion_mnist", "folder:DIR" (one folder a class) or "shards:GLOB" (tar shards with .cls).
        data: where the original files are: see `read_cifar`, `read_mnist`. Unless given, Keras' own cache, filled over
            the network if need be.
        class_names: a sequence, or {name: prompts of its own}, which templates do not go with; or a file of one a
            line, or of either in JSON; the data set's own unless given. Those of a folder are its class folders in
            the order of the labels, or other names for all of them, sorted.
        templates: a name in `clip.TEMPLATES`, a sequence, or a file; the data set's own unless given.
        split: "test", or "train" of the data sets that have one.

    Raises:
        ValueError: an unknown name, damaged files, or labels without names.
    """
    names, prompts = read_names(class_names)
    if prompts and templates:
        raise ValueError("templates are for class names; these classes bring whole prompts of their own")
    records, known = _records(name, data, names, split)
    names = names or known
    if records.labels is None:
        raise ValueError(f"{name!r} has captions and no classes; a folder for each class, or .cls in shards, is needed")
    if names is None:
        raise ValueError(f"{name!r} has numbers for classes; name them with class_names (--class-names FILE)")
    if records.labels.max() >= len(names):
        raise ValueError(f"{name!r} has labels up to {records.labels.max()}, and {len(names)} class names")
    chosen = () if prompts else find_templates(templates or DEFAULT_TEMPLATES.get(name, "simple"))
    return Labelled(name, replace(records, class_names=tuple(names)), tuple(names), chosen, prompts)


def _records(name: str, data, names, split: str) -> tuple[Dataset, Sequence[str] | None]:
    kind, _, where = name.partition(":")
    if name not in DEFAULT_TEMPLATES and not (kind in ("folder", "shards") and where):
        raise ValueError(f"Unknown data set {name!r}. Allowed: {', '.join(NAMES)}.")
    if data is not None and name not in ORIGINS:
        raise ValueError(f"data={str(data)!r} is for {', '.join(ORIGINS)}; {name!r} needs no other files")
    if kind == "folder":
        records = _class_folders(where, names)
        return records, records.class_names
    if kind == "shards":
        return read_shards(where, class_names=names), None
    return open_benchmark(name, data, split), CLASS_NAMES[name]


def _class_folders(where: str, names: Sequence[str] | None) -> Dataset:
    """A folder's records with the classes in the order of `names`, or sorted where these are other names for them."""
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
        raise ValueError(f"{len(names)} class names for {len(folders)} class folders in {where!r}; as many are needed")
    return records


def find_templates(templates: str | Path | Sequence[str]) -> tuple[str, ...]:
    """A set of `clip.TEMPLATES` by name, the lines of a file, or the sequence itself."""
    if isinstance(templates, str) and templates in TEMPLATES:
        return TEMPLATES[templates]
    if isinstance(templates, str | Path) and not Path(templates).is_file():
        raise ValueError(f"templates={str(templates)!r} is no file and none of {', '.join(TEMPLATES)}")
    return read_lines(templates, "templates")


def read_names(
    source: str | Path | Sequence[str] | Mapping[str, Sequence[str]] | None,
) -> tuple[tuple[str, ...] | None, dict[str, tuple[str, ...]] | None]:
    """(class names, the whole prompts of each or None) of what `load_labelled` takes for class names."""
    if source is None:
        return None, None
    if isinstance(source, str | Path):
        source = _content(source, "{[")
    if not isinstance(source, Mapping):
        return read_lines(source, "class_names"), None
    prompts = {
        name: read_lines((own,) if isinstance(own, str) else own, f"the prompts of {name!r}")
        for name, own in source.items()
    }
    return read_lines(list(prompts), "class_names"), prompts


def read_lines(source: str | Path | Sequence[str], what: str) -> tuple[str, ...]:
    """The strings of a sequence, of a file with one a line, or of a JSON list in a file.

    Raises:
        ValueError: nothing in it, or something else than strings.
    """
    if isinstance(source, str | Path):
        source = _content(source, "[")
    if not isinstance(source, Sequence) or not source or not all(isinstance(item, str) for item in source):
        raise ValueError(f"{what} must be strings, at least one, got {source!r}")
    return tuple(source)


def _content(path: str | Path, opening: str) -> Sequence[str] | Mapping:
    """The lines of a file that are not blank, or what it says in JSON where it begins with one of `opening`."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from None
    if not text.lstrip().startswith(tuple(opening)):
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
