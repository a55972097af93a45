"""Pictures of any source, one by one, with what the source says of them: for embedding and for indices."""

import csv
import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from zoo.data import Dataset, Record, read_csv, read_shards
from zoo.data.folders import image_names
from zoo.data.paths import inside, read_file
from zoo.data.tables import SEPARATORS
from zoo.embeddings.segment import is_utf8
from zoo.inference.encoding import Encoder

PORTION = 1024  # images between two commits
TABLES = (".csv", ".tsv")
PATHS = "filepath"  # column of a table


def read_source(source: str | Path) -> Dataset:
    """Records of a folder of images, at any depth and with nothing beside them; of a CSV or TSV file with a column
    `filepath`; or of tar shards. An image that is named twice is one record."""
    path = Path(source)
    if path.suffix.lower() in TABLES:
        records = read_csv(path, caption_key=None)
    elif not path.is_dir():
        records = read_shards(source)
    else:
        root = path.resolve()
        names = image_names(root)
        return Dataset(names, lambda i: Record(read_file(inside(str(root), names[i])), names[i]), fingerprint="")
    firsts = {name: i for i, name in reversed(list(enumerate(records.names)))}
    return records.subset(sorted(firsts.values()))


def read_metadata(source: str | Path) -> Callable[[str], dict[str, str]]:
    """A function from a picture's name to what the source says of it: the other columns of its (first) row in a table;
    {"folder": …} in a folder; nothing in shards."""
    path = Path(source)
    if path.is_dir():
        return lambda name: {"folder": name.rpartition("/")[0]}
    if path.suffix.lower() not in TABLES:
        return lambda _: {}
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
        header = file.readline()
        separator = max(SEPARATORS, key=lambda sep: PATHS in next(csv.reader([header], delimiter=sep)))
        file.seek(0)
        rows = {}
        for row in csv.DictReader(file, delimiter=separator, restkey=""):
            rows.setdefault(row[PATHS], {key: row[key] or "" for key in row if key not in (PATHS, "")})
    return lambda name: rows.get(name, {})


def embed_source(
    encoder: Encoder, records: Dataset, keep: Callable[[list[str], np.ndarray, list[str], dict[str, str]], None]
) -> None:
    """Embeds pictures, a portion at a time: keep(names, float32 (n, D) unit rows, SHA-256 of each, what is left out).

    Args:
        keep: is handed each portion; what it has returned from is done with. Left out is {name: why}.
    """
    for first in range(0, len(records), PORTION):
        digests = {}
        part = _digested(records.subset(range(first, min(first + PORTION, len(records)))), digests)
        vectors, kept, bad = encoder.embed_records(part, progress=True)
        names = [part.names[i] for i in kept]
        left_out = {part.names[i].encode("utf-8", "backslashreplace").decode(): why for i, why in bad.items()}
        keep(names, vectors, [digests[name] for name in names], left_out)


def _digested(records: Dataset, digests: dict[str, str]) -> Dataset:
    """The same records, but for those whose name cannot be written; reading one notes the digest of its bytes."""

    def read(i: int) -> Record:
        if not is_utf8(records.names[i]):
            raise ValueError("its name is not UTF-8")
        record = records.read(i)
        data = record.image.tobytes() if isinstance(record.image, np.ndarray) else record.image
        digests[records.names[i]] = hashlib.sha256(data).hexdigest()
        return record

    return replace(records, read=read)
