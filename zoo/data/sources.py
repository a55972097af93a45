"""`open_dataset`: records from a path or a benchmark's name, whatever is there."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from zoo.data.annotations import CAPTION_KEYS, IMAGE_KEYS, METADATA, jsonl_fields, read_coco, read_jsonl
from zoo.data.benchmarks import ORIGINS, read_benchmark
from zoo.data.digits import load_split
from zoo.data.folders import read_folder, read_images
from zoo.data.paths import refuse_url
from zoo.data.records import MISSING, BadSample, Dataset, from_arrays
from zoo.data.shards import read_shards
from zoo.data.tables import csv_columns, parquet_columns, read_csv, read_parquet
from zoo.utils.text import quoted, shown

BENCHMARKS = ("digits", *ORIGINS)
TABLES = (".csv", ".tsv", ".txt")
ROWS = (*TABLES, ".parquet", ".jsonl")  # files whose rows name images
IMAGE_KEY = "filepath"  # the default of a table
TRIED = 20  # first rows, of which one has to be readable
COMPRESSED = (".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst", ".zip")


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
        ValueError: a URL, a file of another kind, data without what `needs` says, or a table whose first TRIED rows are
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
        if check_rows and isinstance(path, str | Path) and str(path).lower().endswith(ROWS):
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
    name = str(path)
    shards = shard_pattern(name)
    if shards is not None:
        return read_shards(shards, class_names=class_names)
    refuse_url(name)
    if not os.path.exists(path):
        if name in BENCHMARKS:
            return open_benchmark(name, columns["data_root"], split)
        if name.lower().endswith(".parquet") and (files := sorted(glob.glob(name))):
            return read_parquet(files, *_known_keys(keys, parquet_columns(files[0])), **columns)
        raise FileNotFoundError(f"{quoted(name)} does not exist")
    if Path(path).is_dir():
        if needs == "images":
            return read_images(path, plugins=plugins)
        return _read_metadata(Path(path), needs, keys, columns) or read_folder(path, class_names=class_names)
    if name.lower().endswith(".parquet"):
        return read_parquet(path, *_known_keys(keys, parquet_columns(path)), **columns)
    if name.lower().endswith(TABLES):
        return read_csv(path, *keys, **columns)
    if name.lower().endswith(".jsonl"):
        return _read_jsonl(path, keys, columns)
    if name.lower().endswith(".json"):
        return read_coco(path, data_root=columns["data_root"])
    if name.lower().endswith(COMPRESSED):
        raise ValueError(f"{quoted(name)} is compressed; unpack it first, for instance with gunzip, unzip or zstd -d")
    kinds = ", ".join((*TABLES, ".parquet", ".jsonl", ".json", ".tar"))
    raise ValueError(f"{quoted(name)} is not a data set; allowed are {kinds} and a folder")


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
    if image == IMAGE_KEY and image not in names:
        image = next((key for key in IMAGE_KEYS if key in names), image)
    if caption == "caption" and caption not in names:
        caption = next((key for key in CAPTION_KEYS if key in names), caption)
    return image, caption


def _read_metadata(folder: Path, needs: str | None, keys: tuple[str, str | None], columns: dict) -> Dataset | None:
    """The records of a folder's metadata.jsonl or metadata.csv; None where it has neither, or not the column needed."""
    file = next((folder / name for name in METADATA if (folder / name).is_file()), None)
    if file is None or not (needs == "captions" or columns["label_key"]):
        return None
    names = csv_columns(file) if file.suffix == ".csv" else jsonl_fields(file)
    if needs != "captions" and columns["label_key"] not in names:
        return None
    if file.suffix == ".csv":
        return read_csv(file, *_known_keys(keys, names), **columns)
    return _read_jsonl(file, keys, columns)


def _check_first_rows(dataset: Dataset, path: str, root: str) -> None:
    """Raise ValueError if all of the first rows are bad, with what is wrong and the root that files are found from."""
    problem = ""
    for i in range(min(TRIED, len(dataset))):
        try:
            dataset.record(i)
            return
        except BadSample as error:
            problem = problem or str(error)
    count, first = min(TRIED, len(dataset)), dataset.names[0]
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


def _read_jsonl(path, keys: tuple[str, str | None], columns: dict) -> Dataset:
    image_key = None if keys[0] == IMAGE_KEY else keys[0]
    return read_jsonl(path, image_key, keys[1], **columns)


def open_benchmark(name: str, data: str | Path | None = None, split: str = "test") -> Dataset:
    """Return the labelled images of one of BENCHMARKS; see `open_dataset`."""
    from clip import CLASS_NAMES

    if name == "digits":
        part = load_split()[split == "test"]
        return from_arrays(part.images, labels=part.labels, class_names=CLASS_NAMES[name])
    images, labels = read_benchmark(name, data, split)
    return from_arrays(images, labels=labels, class_names=CLASS_NAMES[name])


def _name(path) -> str:
    return "the data set" if isinstance(path, Dataset) else repr(str(path))
