"""Atomic checkpoints: one folder each, valid only with a manifest of digests.

A folder holds state.safetensors (every variable), progress.json (the position), history.jsonl (the history so far) and
manifest.json (their SHA-256). It is written under a temporary name and renamed; older ones are removed afterwards. So
a kill, a full disk or a flipped bit costs at most the steps since the previous checkpoint.

A checkpoint whose digests are right and whose content is not was written by something else: it is refused, with what is
wrong in it, and nothing on disk changes.
"""

import contextlib
import hashlib
import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clip import Field
from zoo.utils.files import check_folder, folder_write, make_folder, read_file, remove_folder, sha256
from zoo.utils.strict_json import OBJECT, object_of, read_json, text
from zoo.utils.text import shown
from zoo.weights.write import write_safetensors

FORMAT = 1
STATE, PROGRESS, HISTORY, MANIFEST = "state.safetensors", "progress.json", "history.jsonl", "manifest.json"
CHECKPOINTS = "checkpoints"  # in the output folder of a run
NAME = re.compile(r"checkpoint-(\d{6,12})")
LARGEST_HISTORY = 256 << 20  # bytes; a million rows have about 200 MB
MANIFEST_FIELDS = {"format": Field.one_of(FORMAT), "sha256": object_of(text(64))}


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint.

    Args:
        path: folder.
        state: {name: array} of every variable.
        progress: the JSON object with the run's position and identity.
        history: text of history.jsonl.
    """

    path: Path
    state: dict[str, np.ndarray]
    progress: dict
    history: str


class InvalidCheckpoint(ValueError):
    """A checkpoint that is intact, and was written by something else."""


def save_checkpoint(
    folder: str | Path, state: Mapping[str, np.ndarray], progress: dict, *, history: str = "", keep: int = 2
) -> Path:
    """Write the next checkpoint in `folder`, remove all but the newest `keep`, and return its path.

    Args:
        folder: created if needed. One process at a time may write to it.
        state: arrays of the dtypes that `write_safetensors` takes.
        progress: JSON object.
        history: lines logged so far.

    Raises:
        OSError: it could not be written; the existing checkpoints are unchanged.
        ValueError: the folder, or what has a checkpoint's name in it, is a link or no folder.
    """
    if keep < 1:
        raise ValueError(f"keep={keep!r}; at least one checkpoint must be kept")
    folder = make_folder(folder)
    numbers = _numbers(folder)
    path = folder / f"checkpoint-{max(numbers, default=0) + 1:06d}"
    with folder_write(path) as inside:
        texts = {PROGRESS: json.dumps(progress, indent=1), HISTORY: history}
        digest = hashlib.sha256()
        write_safetensors(inside / STATE, state, keep_dtypes=True, digest=digest)
        digests = {STATE: digest.hexdigest()}
        for name, text in texts.items():
            (inside / name).write_bytes(text.encode())
            digests[name] = hashlib.sha256(text.encode()).hexdigest()
        manifest = {"format": FORMAT, "sha256": digests}
        (inside / MANIFEST).write_bytes(json.dumps(manifest, indent=1).encode())
    for number in sorted(numbers)[: max(0, len(numbers) + 1 - keep)]:
        with contextlib.suppress(OSError):  # the new one is safe; an old one only takes space
            remove_folder(numbers[number])
    return path


def newest_checkpoint(folder: str | Path) -> Checkpoint | None:
    """Return the newest intact checkpoint, or None; a warning names each damaged one.

    Raises:
        InvalidCheckpoint: see `read_checkpoint`.
        ValueError: the folder, or what has a checkpoint's name in it, is a link or no folder.
    """
    numbers = _numbers(Path(folder))
    for number in sorted(numbers, reverse=True):
        try:
            return read_checkpoint(numbers[number])
        except InvalidCheckpoint:
            raise
        except (OSError, ValueError) as error:
            warnings.warn(f"{shown(numbers[number])} is damaged and ignored: {shown(error)}", stacklevel=2)
    return None


def newest_progress(folder: str | Path) -> dict:
    """Return the progress of the run whose checkpoints a folder holds, without reading their state; {} if unknown."""
    numbers = _numbers(Path(folder))
    for number in sorted(numbers, reverse=True):
        with contextlib.suppress(OSError, ValueError):
            return read_json(numbers[number] / PROGRESS, {"identity": OBJECT}, others=True)
    return {}


def first_epochs(progress: dict) -> int | None:
    """Return the epochs that a run had when it began, before it was resumed with more; None if unknown."""
    epochs = progress.get("first_epochs", progress.get("identity", {}).get("epochs"))
    return epochs if isinstance(epochs, int) and epochs > 0 else None


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Return a checkpoint after verifying its digests.

    Raises:
        ValueError, OSError: a file is missing or differs from the manifest.
        InvalidCheckpoint: the files are as they were written, and their content is not a checkpoint's.
    """
    path = Path(path)
    manifest = read_json(path / MANIFEST, MANIFEST_FIELDS, others=True)
    for name in (STATE, PROGRESS, HISTORY):
        if sha256(path / name) != manifest["sha256"].get(name):
            raise ValueError(f"{name} does not match {MANIFEST}")
    try:
        progress = read_json(path / PROGRESS, OBJECT)
        history = read_file(path / HISTORY, max_bytes=LARGEST_HISTORY).decode()
        return Checkpoint(path, _read_state(path / STATE), progress, history)
    except ValueError as error:
        raise InvalidCheckpoint(f"{shown(path)} is not a checkpoint of this program: {shown(error)}") from error


def _read_state(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except (SafetensorError, TypeError, AttributeError, KeyError) as error:
        raise ValueError(f"{STATE} is not a valid safetensors file: {shown(error)}") from error


def _numbers(folder: Path) -> dict[int, Path]:
    """Return {number: path} of the checkpoint folders, intact or not; ValueError if one is a link or no folder."""
    check_folder(folder)
    found = {int(match[1]): path for path in folder.glob("checkpoint-*") if (match := NAME.fullmatch(path.name))}
    for path in found.values():
        check_folder(path)
    return found
