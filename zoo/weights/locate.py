"""Where weights are: a published row, a folder, or a repository → (`ModelConfig`, path of the weight file)."""

import os
from pathlib import Path

from zoo.weights.config import ModelConfig
from zoo.weights.download import fetch, fetch_file
from zoo.weights.published import Weights
from zoo.weights.read import shard_map
from zoo.weights.sources import LAYOUTS, find_config, read_config
from zoo.weights.sources.source import SHARD_INDEX

_HUB = "hf-hub:"
SUFFIXES = (".safetensors", ".keras", ".json", ".npz", ".pt", ".pth", ".bin", ".h5")


def is_path(name: str | Path) -> bool:
    """Whether a name can only be a path."""
    return isinstance(name, Path) or Path(name).suffix in SUFFIXES or "/" in name or "\\" in name


def has_config(where: str | Path) -> bool:
    """Whether weights come with a configuration: an existing folder, or "hf-hub:owner/name"."""
    return str(where).startswith(_HUB) or os.path.isdir(where)


def fetch_published(row: Weights) -> Path:
    """Download published weights unless they are cached, verify them, and return the file's path."""
    return fetch(row.repository, row.files, revision=row.revision, digest=row.sha256)


def locate(where: str | Path) -> tuple[ModelConfig, Path]:
    """Find weights and their configuration in a folder, or in "hf-hub:owner/name" with an optional "@revision".

    Raises:
        FileNotFoundError: there is no configuration, or no weights beside it.
        ValueError: the configuration describes a model that this package does not make.
    """
    if not str(where).startswith(_HUB):
        return find_config(str(where), lambda name: path if os.path.isfile(path := Path(where, name)) else None)
    repository, _, tag = str(where).removeprefix(_HUB).partition("@")
    revision = tag or None

    def find(name):
        path = fetch_file(repository, name, revision=revision)
        if path is not None and not name.endswith(".json"):
            fetch(repository, (name,), revision=revision)  # verifies it
        for shard in shard_map(path) if path is not None and name == SHARD_INDEX else ():
            fetch(repository, (shard,), revision=revision)
        return path

    return find_config(f"https://huggingface.co/{repository}", find)


def config_beside(path: Path) -> ModelConfig | None:
    """The config of a weight file that stands in a folder in a library's layout, or None."""
    for name, files in LAYOUTS.items():
        if path.name in files and path.with_name(name).is_file():
            return read_config(path.with_name(name))
    return None
