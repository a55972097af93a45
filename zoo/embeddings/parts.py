"""A folder of embeddings in parts: what `zoo embed` writes, and what an index or an evaluation is filled from.

    plan.json                       what is embedded, by which model, cut how; written once
    part-000012-<digest>.safetensors    `embeddings`, float32 (n, D), unit rows
    part-000012.json                its ids, digests and what was left out; its creation commits the part
    manifest.json                   written last: all parts

Several workers may embed the same part: the first commit counts, so each image is there once. Folders of earlier
versions hold `embeddings-*.safetensors` and the manifest alone; `read_parts` reads both.
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clip import Field
from zoo.utils.files import atomic_write, create_once, make_folder, remove_leftovers, sha256, temporary_path
from zoo.utils.strict_json import OBJECT, field_error, list_of, object_of, read_json, text
from zoo.utils.text import quoted, shown
from zoo.weights import read_checkpoint, write_safetensors

_PLAN, _MANIFEST = "plan.json", "manifest.json"
VECTORS = "embeddings"  # the name of the tensor
_COMMIT = re.compile(r"part-(\d{6,})\.json")
_SHARD = re.compile(r"(embeddings-\d{5,}|part-\d{6,}-[0-9a-f]{16})\.safetensors")
_MAX_LISTED = 250_000  # images whose ids the manifest repeats; of more, it names the files that hold them


_TEXTS = list_of(text())
_FILE = Field(lambda value: value is None or isinstance(value, str) and bool(_SHARD.fullmatch(value)), "a part's file")
_DIGEST = Field(lambda value: value is None or isinstance(value, str) and len(value) == 64, "64 hexadecimal digits")
_ENTRY_FIELDS = {
    **{"file": _FILE, "sha256": _DIGEST, "ids": _TEXTS, "images": _TEXTS},
    **{"metadata": list_of(object_of(text())), "left_out": object_of(text())},
}
_SHARD_KEYS = ("file", "sha256", "ids", "images")  # of an entry, in the manifest
_SHARD_ENTRY = Field(
    lambda value: isinstance(value, dict) and all(_ENTRY_FIELDS[key].allows(value.get(key)) for key in _SHARD_KEYS),
    "an object with file, sha256, ids and images",
)
_MANIFEST_FIELDS = {"model": text(), "source": text(), "shards": list_of(_SHARD_ENTRY), "left_out": object_of(text())}
_PLAN_FIELDS = {
    **dict.fromkeys(("source", "names", "model", "runtime", "precision"), text()),
    "preprocessing": OBJECT,
    "part_size": Field.integer(0, 1 << 40),
    "parts": Field.integer(0, 10**6),
    "data_root": Field(lambda value: value is None or isinstance(value, str), "a folder, or null"),
}


@dataclass(frozen=True)
class Plan:
    """What a folder of embeddings holds.

    Args:
        source: the images, as they were named.
        names: SHA-256 of the names of all images, in order; of tar shards, of the shards' names and sizes.
        model: fingerprint of the pair, its preprocessing, runtime and precision.
        runtime, precision: of the towers, as in `ClipPipeline`.
        preprocessing: of the images.
        part_size: images in a part; 0 where a part is a tar shard.
        parts: number of parts.
        data_root: base folder for the paths in a table; None for the table's folder.
    """

    source: str
    names: str
    model: str
    runtime: str
    precision: str
    preprocessing: dict[str, Any]
    part_size: int
    parts: int
    data_root: str | None = None


class Embeddings(NamedTuple):
    """The content of a folder.

    Args:
        source, model, runtime, precision, data_root: as in `Plan`.
        parts: iterator of `Part`; each file is compared with its digest before it is used.
    """

    source: str
    model: str
    runtime: str
    precision: str
    parts: "Iterator[Part]"
    data_root: str | None = None


class Part(NamedTuple):
    """The embeddings of one part.

    Args:
        ids: n names of images.
        vectors: float32 (n, D), unit rows.
        digests: n SHA-256 of the images' files, in hexadecimal.
        metadata: n times {key: text}.
        left_out: {name: reason} of the images that could not be embedded.
    """

    ids: list[str]
    vectors: np.ndarray
    digests: list[str]
    metadata: list[dict[str, str]]
    left_out: dict[str, str]


def start_folder(folder: Path, plan: Plan, *, overwrite: bool = False) -> None:
    """Create the folder and its plan; or, where the same plan is there already, leave what has been done.

    Raises:
        ValueError: the folder holds embeddings of another plan, and not `overwrite`; the message names the difference.
    """
    make_folder(folder)
    if overwrite:
        for path in _files(folder):
            path.unlink()
    remove_leftovers(folder)
    if (folder / _PLAN).exists():
        _require_same(folder, read_plan(folder), plan)
    elif _files(folder):
        raise ValueError(f"{folder} holds embeddings of an earlier version; replace them with --overwrite")
    else:
        create_once(folder / _PLAN, json.dumps(asdict(plan), indent=1, ensure_ascii=False))


def read_plan(folder: Path) -> Plan:
    """Return the plan of a folder; ValueError if it is damaged."""
    return Plan(**read_json(folder / _PLAN, _PLAN_FIELDS, optional={"data_root"}))


def _require_same(folder: Path, there: Plan, plan: Plan) -> None:
    """Raise ValueError with the first difference between two plans; where the same images lie does not matter."""
    meanings = {"part_size": "part size", "names": "images", "parts": "images"}
    for name in ("runtime", "precision", "model", "preprocessing", "part_size", "names", "parts"):
        old, new = getattr(there, name), getattr(plan, name)
        if old != new:
            values = f": {shown(old)} there, {shown(new)} now" if name in ("runtime", "precision", "part_size") else ""
            raise ValueError(
                f"{shown(folder)} holds embeddings of {quoted(there.source)} with another "
                f"{meanings.get(name, name)}{values}; "
                "give another folder, or replace these with --overwrite"
            )


def commit_part(folder: Path, number: int, part: Part, model: str) -> bool:
    """Write a part; return whether it is the one that counts: False if another worker has committed it before."""
    entry: dict[str, Any] = {"file": None, "sha256": None, "ids": part.ids, "images": part.digests}
    if part.ids:
        draft = temporary_path(folder / "part.safetensors")
        write_safetensors(draft, {VECTORS: part.vectors}, {"model": model})
        entry["sha256"] = sha256(draft)
        entry["file"] = f"part-{number:06d}-{entry['sha256'][:16]}.safetensors"
        os.replace(draft, folder / entry["file"])
    entry["metadata"] = part.metadata if any(part.metadata) else []
    entry["left_out"] = part.left_out
    return create_once(_commit_path(folder, number), json.dumps(entry, ensure_ascii=False))


def committed_parts(folder: Path) -> set[int]:
    """Return the numbers of the parts that are done."""
    return {int(match[1]) for path in folder.iterdir() if (match := _COMMIT.fullmatch(path.name))}


def write_manifest(folder: Path, plan: Plan) -> dict[str, int]:
    """Write the manifest of a folder whose parts are all done, remove what no part names, and return the counts."""
    shards: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}
    images = 0
    for number in range(plan.parts):
        entry = read_json(_commit_path(folder, number), _ENTRY_FIELDS)
        images += len(entry["ids"])
        left_out |= entry["left_out"]
        if entry["file"] is not None:
            shards.append({key: entry[key] for key in _SHARD_KEYS})
            if images > _MAX_LISTED:
                shards[-1] = {"file": entry["file"], "sha256": entry["sha256"], "count": len(entry["ids"])}
    manifest = {"model": plan.model, "source": plan.source, "shards": shards, "left_out": left_out}
    with atomic_write(folder / _MANIFEST, "w") as file:
        json.dump(manifest, file, indent=1, ensure_ascii=False)
    named = {shard["file"] for shard in shards}
    for path in _files(folder):
        if _SHARD.fullmatch(path.name) and path.name not in named:
            path.unlink()  # of a worker whose commit came second
    return {"images": images, "shards": len(shards), "left out": len(left_out)}


def read_parts(folder: str | Path) -> Embeddings:
    """Return what `zoo embed` has written in a folder, in this or an earlier version.

    Raises:
        FileNotFoundError: no embeddings. ValueError: embedding is not finished, or a file is damaged.
    """
    folder = Path(folder)
    if (folder / _PLAN).is_file():
        plan, done = read_plan(folder), committed_parts(folder)
        missing = plan.parts - len(done & set(range(plan.parts)))
        if missing:
            raise ValueError(f"{folder}: {missing} of {plan.parts} parts are missing; run the same zoo embed again")
        paths = (_commit_path(folder, number) for number in range(plan.parts))
        parts = (_read_part(folder, read_json(path, _ENTRY_FIELDS), path.name) for path in paths)
        return Embeddings(plan.source, plan.model, plan.runtime, plan.precision, parts, plan.data_root)
    if not (folder / _MANIFEST).is_file():
        raise FileNotFoundError(f"{str(folder)!r} holds no embeddings; zoo embed writes them")
    manifest = read_json(folder / _MANIFEST, _MANIFEST_FIELDS)
    parts = (_read_part(folder, {"left_out": {}, **shard}, _MANIFEST) for shard in manifest["shards"])
    return Embeddings(manifest["source"], manifest["model"], "keras", "float32", parts)


def _read_part(folder: Path, entry: dict[str, Any], where: str) -> Part:
    ids, digests = entry["ids"], entry["images"]
    metadata = entry.get("metadata") or [{}] * len(ids)
    if not len(ids) == len(digests) == len(metadata) or (entry["file"] is None) != (not ids):
        raise field_error(where, "ids", ids, "as many as images and metadata, and none only without a file")
    if entry["file"] is None:
        return Part([], np.empty((0, 0), np.float32), [], [], entry["left_out"])
    path = folder / entry["file"]
    if sha256(path) != entry["sha256"]:
        raise ValueError(f"{shown(path)} is damaged: its SHA-256 is not the one in {where}")
    vectors = read_checkpoint(path).tensors[VECTORS]
    if vectors.ndim != 2 or len(vectors) != len(ids) or not np.isfinite(vectors).all():
        raise ValueError(f"{shown(path)} holds {vectors.shape} for {len(ids)} images; allowed is a finite (N, D)")
    return Part(ids, vectors, digests, metadata, entry["left_out"])


def _commit_path(folder: Path, number: int) -> Path:
    return folder / f"part-{number:06d}.json"


def _files(folder: Path) -> list[Path]:
    """Return the files of embeddings in a folder, of this and of earlier versions."""
    names = (_PLAN, _MANIFEST)
    return [p for p in folder.iterdir() if p.name in names or _COMMIT.fullmatch(p.name) or _SHARD.fullmatch(p.name)]
