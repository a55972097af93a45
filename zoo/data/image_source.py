"""Pictures of any source, one by one, with what the source says of them: for embedding and for indices."""

import csv
from collections.abc import Callable
from pathlib import Path

from zoo.data import Dataset, Record, read_csv, read_shards
from zoo.data.folders import image_names
from zoo.data.paths import inside, read_file
from zoo.data.tables import SEPARATORS

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
