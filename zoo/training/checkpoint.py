"""Atomic checkpoints: one folder each, valid only with a manifest of digests.

A folder holds state.safetensors (every variable), progress.json (the position), history.jsonl (the history so far) and
manifest.json (their SHA-256). It is written under a temporary name and renamed; older ones are removed afterwards. So
a kill, a full disk or a flipped bit costs at most the steps since the previous checkpoint.
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

from zoo.utils.files import folder_write, remove_folder, sha256
from zoo.weights.write import write_safetensors

FORMAT = 1
STATE, PROGRESS, HISTORY, MANIFEST = "state.safetensors", "progress.json", "history.jsonl", "manifest.json"
CHECKPOINTS = "checkpoints"  # in the output folder of a run
NAME = re.compile(r"checkpoint-(\d{6,})")


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
    """
    if keep < 1:
        raise ValueError(f"keep={keep!r}; at least one checkpoint must be kept")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
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
    """Return the newest intact checkpoint, or None; a warning names each damaged one."""
    numbers = _numbers(Path(folder))
    for number in sorted(numbers, reverse=True):
        try:
            return read_checkpoint(numbers[number])
        except (OSError, ValueError) as error:
            warnings.warn(f"{numbers[number]} is damaged and ignored: {error}", stacklevel=2)
    return None


def newest_identity(folder: str | Path) -> dict:
    """Return the identity of the run whose checkpoints a folder holds, without reading their state; {} if unknown."""
    numbers = _numbers(Path(folder))
    for number in sorted(numbers, reverse=True):
        with contextlib.suppress(OSError, ValueError):
            identity = _parse(numbers[number] / PROGRESS).get("identity")
            return identity if isinstance(identity, dict) else {}
    return {}


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Return a checkpoint after verifying its digests.

    Raises:
        ValueError, OSError: a file is missing or differs from the manifest.
    """
    from safetensors.numpy import load_file

    path = Path(path)
    manifest = _parse(path / MANIFEST)
    if manifest.get("format") != FORMAT or not isinstance(manifest.get("sha256"), dict):
        raise ValueError(f"{MANIFEST} has format {manifest.get('format')!r}; this version reads {FORMAT}")
    for name in (STATE, PROGRESS, HISTORY):
        if sha256(path / name) != manifest["sha256"].get(name):
            raise ValueError(f"{name} does not match {MANIFEST}")
    history = (path / HISTORY).read_bytes().decode()
    return Checkpoint(path, load_file(path / STATE), _parse(path / PROGRESS), history)


def _numbers(folder: Path) -> dict[int, Path]:
    """Return {number: path} of the checkpoint folders, intact or not."""
    found = ((NAME.fullmatch(path.name), path) for path in folder.glob("checkpoint-*"))
    return {int(match[1]): path for match, path in found if match}


def _parse(path: Path) -> dict:
    parsed = json.loads(path.read_bytes())
    if not isinstance(parsed, dict):
        raise ValueError(f"{path.name} is not a JSON object")
    return parsed
