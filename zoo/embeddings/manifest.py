"""Indices of the layout before the catalogue: a `manifest.json` that lists segments, whose ids and metadata are JSON.

They are read into a temporary catalogue, with which everything else works; the next write puts it in the folder.
"""

import json
from pathlib import Path

from zoo.embeddings.catalogue import FORMAT, VERSION, Catalogue
from zoo.embeddings.segment import DTYPES, Row, join_digests
from zoo.utils.files import read_file, sha256

NAME = "manifest.json"
LARGEST = 1 << 31  # bytes of a list


def read_manifest(path: Path) -> tuple[Catalogue, dict]:
    """Return a temporary catalogue of an index of the earlier layout, and its manifest.

    Raises:
        ValueError: the manifest is not that of an index, or a list of ids or metadata is damaged.
    """
    manifest = _read(path)
    catalogue = Catalogue(None)
    with catalogue.transaction():
        facts = dict(manifest["facts"])
        if isinstance(left_out := facts.get("left_out"), dict):
            catalogue.set_left_out(left_out)
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
            vectors = join_digests(*(digests[name] for name in names if name in digests))
            catalogue.append(first, ids, texts, vectors)
            catalogue.set_segments([Row(number, first, count, 1, None)])
            first += count
        catalogue.query("INSERT INTO removed VALUES (?)", [(place,) for place in set(manifest["removed"])], many=True)
    return catalogue, manifest


def changed(path: Path, manifest: dict) -> bool:
    """Whether another process has written the index since its manifest was read; False for a new index."""
    return (path / NAME).is_file() and _read(path) != manifest


def check_lists(path: Path, manifest: dict) -> None:
    """Compare the lists of ids and metadata with their digests; ValueError for a damaged one."""
    for entry in manifest["segments"]:
        for name, digest in entry["sha256"].items():
            if name.endswith(".json") and sha256(path / name) != digest:
                raise ValueError(f"{path / name} is damaged: its digest is not {digest}")


def remove_old_files(path: Path, manifest: dict) -> None:
    """Remove the manifest and the lists, once a catalogue has their content."""
    for name in (NAME, *(name for entry in manifest["segments"] for name in entry["sha256"])):
        if name.endswith(".json"):
            (path / name).unlink(missing_ok=True)


def _list(path: Path, what: str, entry: dict) -> list:
    file = path / f"{what}-{entry['name']}.json"
    kind = str if what == "ids" else dict
    try:
        values = json.loads(read_file(file, max_bytes=LARGEST))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    if not isinstance(values, list) or len(values) != entry["count"] or not all(isinstance(v, kind) for v in values):
        raise ValueError(f"{file} does not hold {entry['count']} {what}")
    return values


def _read(path: Path) -> dict:
    file = path / NAME
    try:
        manifest = json.loads(read_file(file, max_bytes=LARGEST))
        if manifest["format"] != FORMAT or manifest["version"] != 1:
            raise ValueError(f"format {manifest['format']!r}, version {manifest['version']!r}")
        if manifest["dtype"] not in DTYPES or not isinstance(manifest["dim"], int) or manifest["dim"] < 1:
            raise ValueError(f"dim {manifest['dim']!r} of {manifest['dtype']!r}")
        for entry in manifest["segments"]:
            _check_entry(entry, manifest["dtype"])
        if not isinstance(manifest["model"], str | None) or not isinstance(manifest["facts"], dict):
            raise ValueError(f"model {manifest['model']!r}, facts {manifest['facts']!r}")
        places = range(sum(entry["count"] for entry in manifest["segments"]))
        if wrong := [place for place in manifest["removed"] if type(place) is not int or place not in places]:
            raise ValueError(f"{wrong[0]!r} in removed, with {len(places)} vectors")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file} is not the manifest of an index: {error}") from error
    return manifest


def _check_entry(entry: dict, dtype: str) -> None:
    name, count = entry["name"], entry["count"]
    if not name.isdecimal() or len(name) < 6 or not isinstance(count, int) or count < 1:
        raise ValueError(f"segment {name!r} with count {count!r}")
    files = {f"vectors-{name}.bin", f"ids-{name}.json"}
    files |= {f"scales-{name}.bin"} if dtype == "int8" else set()
    files |= {f"metadata-{name}.json"} if entry["metadata"] else set()
    if set(entry["sha256"]) != files:
        raise ValueError(f"segment {name!r} has digests of {sorted(entry['sha256'])}; needed are {sorted(files)}")
