"""Shared by the evaluations: embed readable images, report those left out, write JSON."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np

from zoo.data import Dataset
from zoo.inference.encoder import Encoder
from zoo.utils.files import atomic_write


def embed_readable(
    encoder: Encoder, records: Dataset, *, progress: bool = False
) -> tuple[np.ndarray, np.ndarray, dict]:
    """Return what `Encoder.embed_records` returns; ValueError with the first reason if no image can be read."""
    vectors, kept, bad = encoder.embed_records(records, progress=progress)
    if not len(kept):
        raise nothing_left("images can be read", {records.names[i]: reason for i, reason in bad.items()})
    return vectors, kept, bad


def nothing_left(what: str, bad: Mapping[str, str]) -> ValueError:
    """Return the error for data of which every record is left out, {record: reason}."""
    name, reason = next(iter(bad.items()))
    return ValueError(f"none of the {len(bad)} {what}; the first, {name!r}: {reason}")


def format_left_out(*parts: Mapping[str, str]) -> str:
    """Format the number of records left out, {record: reason} of each part of the data, and the first; "" for none."""
    bad = [entry for part in parts for entry in part.items()]
    return f"{len(bad)}, e.g. {': '.join(bad[0])}" if bad else ""


def write_result(folder: Path, name: str, result) -> None:
    """Write a result's fields to name.json in a folder, which is created if missing."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / f"{name}.json", "w") as file:
        json.dump(asdict(result), file, indent=1, ensure_ascii=False)
