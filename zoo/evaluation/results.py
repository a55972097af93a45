"""What every evaluation does: refuses data of which nothing can be read, says what it left out, leaves JSON."""

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
    """`Encoder.embed_records`; ValueError with the first reason where no picture can be read."""
    vectors, kept, bad = encoder.embed_records(records, progress=progress)
    if not len(kept):
        raise none_left("pictures can be read", {records.names[i]: reason for i, reason in bad.items()})
    return vectors, kept, bad


def none_left(what: str, bad: Mapping[str, str]) -> ValueError:
    """The error of data that are all left out, {record: why}."""
    name, reason = next(iter(bad.items()))
    return ValueError(f"none of the {len(bad)} {what}; the first, {name!r}: {reason}")


def told(*parts: Mapping[str, str]) -> str:
    """How many records were left out, {record: why} of each part of the data, and the first of them; "" for none."""
    bad = [entry for part in parts for entry in part.items()]
    return f"{len(bad)}, e.g. {': '.join(bad[0])}" if bad else ""


def write_result(folder: Path, name: str, result) -> None:
    """Writes a result's fields as name.json into a folder, which is made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / f"{name}.json", "w") as file:
        json.dump(asdict(result), file, indent=1, ensure_ascii=False)
