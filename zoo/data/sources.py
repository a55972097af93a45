"""`open_dataset`: records from a path or a benchmark's name, whatever is there."""

import glob
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from clip import CLASS_NAMES
from zoo.data.benchmarks import ORIGINS, read_benchmark
from zoo.data.digits import load_split
from zoo.data.folders import read_folder, read_images
from zoo.data.records import MISSING, BadSample, Dataset, from_arrays, refuse_url
from zoo.data.shards import read_shards
from zoo.data.tables import (
    CAPTION_KEYS,
    IMAGE_KEYS,
    csv_columns,
    jsonl_fields,
    parquet_columns,
    read_coco,
    read_csv,
    read_jsonl,
    read_parquet,
)
from zoo.utils.text import quoted, shown

_TABLES: dict[str, tuple[Callable, Callable]] = {  # files whose rows name images: (reader, names of their columns)
    **dict.fromkeys((".csv", ".tsv", ".txt"), (read_csv, csv_columns)),
    ".parquet": (read_parquet, parquet_columns),
    ".jsonl": (read_jsonl, jsonl_fields),
}
_METADATA = ("metadata.jsonl", "metadata.csv")  # of Hugging Face's image folders
_IMAGE_KEY = "filepath"  # the default of a table
_TRIED = 20  # first rows, of which one has to be readable
_COMPRESSED = (".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst", ".zip")


def open_dataset(
    path: str | Path | Sequence[str | Path] | Dataset,
    *,
    needs: str | None = None,
    image_key: str = "filepath",
    caption_key: str | None = "caption",
    label_key: str | None = None,
    data_root: str | Path | None = None,
    class_names: Sequence[str] | None = None,
    metadata: bool = False,
    split: str = "test",
    plugins: bool = False,
    check_rows: bool = True,
) -> Dataset:
    """Return the records of a table, a folder, tar shards or a benchmark.

    Args:
        path: a CSV or TSV file (.csv, .tsv, .txt), a .parquet file or several ("train-*.parquet"), a .jsonl file,
            COCO's captions_*.json, a folder (for captions and columns of labels also with a metadata.jsonl or
            metadata.csv, as in Hugging Face's image folders), tar shards ("train-{0000..0127}.tar" or
            "shards:PATTERN", or several), a benchmark's name ("digits", "cifar10", "cifar100", "mnist",
            "fashion_mnist"; an existing path of that name comes first), or a `Dataset`, which is returned as it is.
        needs: "captions" or "labels", without which the data is refused; or "images" alone: no column of captions is
            read, a folder may have any depth and nothing beside its images, and labels are dropped.
        image_key, caption_key, label_key: columns of a table. If a parquet file or the metadata of a folder has no
            column of the default name, "file_name" or "image", and "text" or "captions", are tried.
        data_root: base folder for the paths in a table, which they may not leave; default: the table's folder.
            For a benchmark, its original files: see `read_benchmark`.
        class_names: the names that labels are numbered by.
        metadata: keep the other columns of a table as `Dataset.metadata`.
        split: split of a benchmark: "test" or "train".
        plugins: in a folder of images alone, also take HEIC, AVIF and RAW files (`zoo.data.plugins`).
        check_rows: read the first rows of a table, of which one has to be usable.

    Raises:
        ValueError: a URL, a file of another kind, data without what `needs` says, or a table whose first 20 rows are
            all unusable. FileNotFoundError: no such path.
    """
    if needs not in (None, "captions", "labels", "images"):
        raise ValueError(f"needs={quoted(needs)}; allowed are None, 'captions', 'labels' and 'images'")
    if isinstance(path, Dataset):
        dataset = path
    else:
        columns = {"label_key": label_key, "data_root": data_root, "class_names": class_names, "metadata": metadata}
        if needs == "images":
            columns |= {"label_key": None, "class_names": None}
        keys = (image_key, caption_key if needs in (None, "captions") else None)
        dataset = _read(path, needs, keys, columns, split, plugins)
        if check_rows and isinstance(path, str | Path) and str(path).lower().endswith(tuple(_TABLES)):
            _check_first_rows(dataset, str(path), os.path.dirname(path) if data_root is None else str(data_root))
    if needs == "images":
        return dataset.without_labels()
    if needs == "captions" and not dataset.captions:
        raise ValueError(f"{_name(path)} has no captions; a .txt beside each image, or a column of them, is needed")
    if needs == "labels" and dataset.labels is None:
        raise ValueError(f"{_name(path)} has no labels; a folder for each class, or a column of labels, is needed")
    return dataset


def _read(path, needs: str | None, keys: tuple[str, str | None], columns: dict, split: str, plugins: bool) -> Dataset:
    class_names = columns["class_names"]
    if isinstance(path, Sequence) and not isinstance(path, str):
        return read_shards(path, class_names=class_names)
    name, suffix = str(path), Path(path).suffix.lower()
    shards = shard_pattern(name)
    if shards is not None:
        return read_shards(shards, class_names=class_names)
    refuse_url(name)
    if not os.path.exists(path):
        if name in ("digits", *ORIGINS):
            return open_benchmark(name, columns["data_root"], split)
        if suffix == ".parquet" and (files := sorted(glob.glob(name))):
            return _read_table(files, keys, columns)
        raise FileNotFoundError(f"{quoted(name)} does not exist")
    if os.path.isdir(path):
        if needs == "images":
            return read_images(path, plugins=plugins)
        return _read_metadata(Path(path), needs, keys, columns) or read_folder(path, class_names=class_names)
    if suffix in _TABLES:
        return _read_table(path, keys, columns)
    if suffix == ".json":
        return read_coco(path, data_root=columns["data_root"])
    if suffix in _COMPRESSED:
        raise ValueError(f"{quoted(name)} is compressed; unpack it first, for instance with gunzip, unzip or zstd -d")
    kinds = ", ".join((*_TABLES, ".json", ".tar"))
    raise ValueError(f"{quoted(name)} is not a data set; allowed are {kinds} and a folder")


def _read_table(
    path: str | Path | list[str], keys: tuple[str, str | None], columns: dict, *, usual: bool = False
) -> Dataset:
    """Return the records of a table, or of several parquet files.

    Args:
        usual: whether the usual names of columns are tried in a CSV file too.
    """
    file = path[0] if isinstance(path, list) else path
    read, names_of = _TABLES[Path(file).suffix.lower()]
    if usual or read is not read_csv:
        keys = _known_keys(keys, names_of(file))
    return read(path, *keys, **columns)


def shard_pattern(source: str | Path) -> str | None:
    """Return the pattern of tar shards that a source is ("shards:PATTERN", "….tar", a glob), or None for another kind.

    A path that exists comes before its reading as a glob.
    """
    name = str(source)
    kind, _, where = name.partition(":")
    if kind == "shards" and where:
        return where
    is_glob = glob.has_magic(name) and not name.lower().endswith(".parquet") and not os.path.exists(name)
    return name if name.endswith(".tar") or is_glob else None


def _known_keys(keys: tuple[str, str | None], names: Sequence[str]) -> tuple[str, str | None]:
    """The keys of image and caption, or, where the default is no column, the usual names that are."""
    image, caption = keys
    if image == _IMAGE_KEY and image not in names:
        image = next((key for key in IMAGE_KEYS if key in names), image)
    if caption == "caption" and caption not in names:
        caption = next((key for key in CAPTION_KEYS if key in names), caption)
    return image, caption


def _read_metadata(folder: Path, needs: str | None, keys: tuple[str, str | None], columns: dict) -> Dataset | None:
    """The records of a folder's metadata.jsonl or metadata.csv; None where it has neither, or not the column needed."""
    file = next((folder / name for name in _METADATA if (folder / name).is_file()), None)
    if file is None or not (needs == "captions" or columns["label_key"]):
        return None
    if needs != "captions" and columns["label_key"] not in _TABLES[file.suffix][1](file):
        return None
    return _read_table(file, keys, columns, usual=True)


def _check_first_rows(dataset: Dataset, path: str, root: str) -> None:
    """Raise ValueError if all of the first rows are bad, with what is wrong and the root that files are found from."""
    problem = ""
    for i in range(min(_TRIED, len(dataset))):
        try:
            dataset.record(i)
            return
        except BadSample as error:
            problem = problem or str(error)
    count, first = min(_TRIED, len(dataset)), dataset.names[0]
    if os.path.isfile(first):
        is_absolute = os.path.isabs(first)
        folders = [os.path.dirname(name) for name in dataset.names[:count] if os.path.isabs(name)]
        remedy = os.path.commonpath(folders) if is_absolute else "."
        place = repr(remedy) if is_absolute else "the working folder"
        raise ValueError(
            f"{shown(path)}: the first file, {quoted(first)}, is not below {root or '.'!r}, but is found from {place}; "
            f"add --data-root {remedy} (data_root={remedy!r}), or put the table there"
        )
    hint = "; name their folder with --data-root (data_root)" if problem == MISSING else ""
    rows = f"the first {count} rows are all bad" if count > 1 else "its row is bad"
    raise ValueError(f"{shown(path)}: {rows}; {quoted(first)}: {shown(problem)}{hint}")


def open_benchmark(name: str, data: str | Path | None = None, split: str = "test") -> Dataset:
    """Return the labelled images of a benchmark; see `open_dataset`."""
    if name == "digits":
        part = load_split()[split == "test"]
        return from_arrays(part.images, labels=part.labels, class_names=CLASS_NAMES[name])
    images, labels = read_benchmark(name, data, split)
    return from_arrays(images, labels=labels, class_names=CLASS_NAMES[name])


def _name(path) -> str:
    return "the data set" if isinstance(path, Dataset) else repr(str(path))
