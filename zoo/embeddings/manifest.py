"""Indices of the layout before the catalogue: a `manifest.json` that lists segments, whose ids and metadata are JSON.

They are read into a temporary catalogue, with which everything else works; the next write puts it in the folder.
"""

import json
import re
from pathlib import Path

from clip import Field
from zoo.embeddings.catalogue import FORMAT, MOST, VERSION, Catalogue
from zoo.embeddings.segment import DTYPES, Row
from zoo.utils.files import read_file, sha256
from zoo.utils.strict_json import LIST, OBJECT, check_fields, field_error, list_of, object_of, read_json, text
from zoo.utils.text import shown

NAME = "manifest.json"
LARGEST = 1 << 31  # bytes of a list; ten million ids of 200 characters
_FIELDS = {
    "format": Field.one_of(FORMAT),
    "version": Field.one_of(1),
    "dim": Field.integer(1, MOST),
    "dtype": Field.one_of(*DTYPES),
    "model": text().or_null(),
    "facts": OBJECT,
    "segments": LIST,
    "removed": list_of(Field.integer(0, MOST)),
}
_FACTS_FIELDS = {"left_out": object_of(text())}
_NUMBER = re.compile(r"[0-9]{6,18}")
_SEGMENT_FIELDS = {
    "name": Field(lambda value: isinstance(value, str) and bool(_NUMBER.fullmatch(value)), "6 to 18 digits"),
    "count": Field.integer(1, MOST),
    "metadata": Field.flag(),
    "sha256": object_of(text(64)),
}


def read_manifest(path: Path) -> tuple[Catalogue, dict]:
    """Return a temporary catalogue of an index of the earlier layout, and its manifest.

    Raises:
        ValueError: the manifest is not that of an index, or a list of ids or metadata is damaged.
    """
    manifest = _read(path)
    catalogue = Catalogue(None)
    with catalogue.transaction():
        facts = dict(manifest["facts"])
        if "left_out" in facts:
            catalogue.set_left_out(facts["left_out"])
            facts["left_out"] = {}
        numbers = [int(entry["name"]) for entry in manifest["segments"]]
        info = {name: manifest[name] for name in ("dim", "dtype", "model")}
        info |= {"format": FORMAT, "version": VERSION, "facts": facts, "next": max(numbers, default=0) + 1}
        catalogue.set_info(info)
        first = 0
        for number, entry in zip(numbers, manifest["segments"], strict=True):
            count, digests = entry["count"], entry["sha256"]
            ids = _list(path, "ids", entry)
            metadata = _list(path, "metadata", entry) if entry["metadata"] else [{}] * count
            texts = [json.dumps(one, ensure_ascii=False) if one else None for one in metadata]
            names = [f"{what}-{entry['name']}.bin" for what in ("vectors", "scales")]
            catalogue.append(first, ids, texts, " ".join(digests[name] for name in names if name in digests))
            catalogue.set_segments([Row(number, first, count, 1, None)])
            first += count
        catalogue.query("INSERT INTO removed VALUES (?)", [(place,) for place in set(manifest["removed"])], many=True)
    return catalogue, manifest


def check_lists(path: Path, manifest: dict) -> None:
    """Compare the lists of ids and metadata with their digests; ValueError for a damaged one."""
    for entry in manifest["segments"]:
        for name, digest in entry["sha256"].items():
            if name.endswith(".json") and sha256(path / name) != digest:
                raise ValueError(f"{shown(path / name)} is damaged: its digest is not {shown(digest)}")


def remove_old_files(path: Path, manifest: dict) -> None:
    """Remove the manifest and the lists, once a catalogue has their content."""
    for name in (NAME, *(name for entry in manifest["segments"] for name in entry["sha256"])):
        if name.endswith(".json"):
            (path / name).unlink(missing_ok=True)


def _list(path: Path, what: str, entry: dict) -> list:
    file = path / f"{what}-{entry['name']}.json"
    kind = str if what == "ids" else dict
    try:
        values = json.loads(read_file(file, max_bytes=LARGEST))  # the earlier layout allowed NaN in metadata
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{shown(file)} is damaged: {shown(error)}") from error
    if not isinstance(values, list) or len(values) != entry["count"] or not all(isinstance(v, kind) for v in values):
        raise ValueError(f"{shown(file)} does not hold {entry['count']} {what}")
    return values


def _read(path: Path) -> dict:
    try:
        manifest = read_json(path / NAME, _FIELDS, others=True, max_bytes=LARGEST)
        check_fields(manifest["facts"], _FACTS_FIELDS, NAME, "facts", optional=_FACTS_FIELDS, others=True)
        for number, entry in enumerate(manifest["segments"]):
            _check_segment(entry, f"segments[{number}]", manifest["dtype"])
        total = sum(entry["count"] for entry in manifest["segments"])
        if wrong := [place for place in manifest["removed"] if place >= total]:
            raise field_error(NAME, "removed", wrong[0], f"places of {total} vectors")
    except ValueError as error:
        raise ValueError(f"{shown(path / NAME)} is not the manifest of an index: {shown(error)}") from error
    return manifest


def _check_segment(entry: dict, where: str, dtype: str) -> None:
    check_fields(entry, _SEGMENT_FIELDS, NAME, where, others=True)
    name = entry["name"]
    files = {f"vectors-{name}.bin", f"ids-{name}.json"}
    files |= {f"scales-{name}.bin"} if dtype == "int8" else set()
    files |= {f"metadata-{name}.json"} if entry["metadata"] else set()
    if set(entry["sha256"]) != files:
        raise field_error(NAME, f"{where}.sha256", sorted(entry["sha256"]), f"digests of {', '.join(sorted(files))}")
