"""Records from tables: CSV and TSV files of image paths, parquet files of image paths or image bytes."""

import ast
import csv
import difflib
import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from zoo.data.folders import MAX_TEXT_BYTES
from zoo.data.paths import check_regular, inside, read_file
from zoo.data.records import BadSample, Dataset, Record, digest
from zoo.data.rows import RowReader, find_encoding

SEPARATORS = (",", "\t", ";", "|")
MAX_PARQUET_BYTES = 4 << 30  # of the columns, which are held in memory
MAX_CLASSES = 1_000_000  # arrays of this length are made for the labels
MAX_PATH = 4096  # characters, as on Linux
MAX_SHOWN, MAX_SHOWN_COLUMNS = 40, 8  # characters and columns, in a message


@dataclass
class Rows:
    """The columns of a table while it is read, all of one length, and the problems of bad rows."""

    names: list[str] = field(default_factory=list)
    images: list[str | bytes | None] = field(default_factory=list)
    captions: list[str | None] = field(default_factory=list)
    labels: list[str | None] = field(default_factory=list)
    others: list[list[str]] = field(default_factory=list)  # the fields of `other_keys`
    other_keys: list[str] = field(default_factory=list)
    wrong: dict[int, str] = field(default_factory=dict)

    def add(self, name: str, image=None, caption=None, label=None, others=(), wrong: str | None = None) -> None:
        if wrong is not None:
            self.wrong[len(self.names)] = wrong
        self.names.append(name)
        self.images.append(image)
        self.captions.append(caption)
        self.labels.append(label)
        if self.other_keys:
            self.others.append(others)

    def metadata(self, i: int) -> dict[str, str]:
        return dict(zip(self.other_keys, self.others[i], strict=False)) if self.other_keys else {}


def read_csv(
    path: str | Path,
    image_key: str = "filepath",
    caption_key: str | None = "caption",
    *,
    label_key: str | None = None,
    separator: str | None = None,
    data_root: str | Path | None = None,
    class_names: Sequence[str] | None = None,
    metadata: bool = False,
) -> Dataset:
    """Return the images that a CSV or TSV file with a header line names.

    A row with a missing field, or whose caption is empty or not UTF-8, is a bad record. The table is UTF-8, or UTF-16
    or UTF-32 with a byte order mark. An image has several captions if several rows name it, or if its caption is a
    list in JSON or in Python's notation; such a list becomes one record per caption.

    Args:
        image_key: column of paths, relative to `data_root`.
        caption_key: column of captions; None for no captions.
        label_key: column of classes: integers, or names, which are numbered in sorted order.
        separator: one character; default: the one of SEPARATORS with which the header contains the keys.
        data_root: base folder for relative paths, which no path may leave; default: the table's folder.
        class_names: names in the order of the labels, such as `class_names` of the training data.
        metadata: keep all columns but `image_key` as `Dataset.metadata`.

    Raises:
        ValueError: a missing column, no rows, or not a regular file. A quote that nothing closes causes a warning.
    """
    path = Path(path)
    check_regular(str(path), os.stat(path))
    wanted = [key for key in (image_key, caption_key, label_key) if key is not None]
    rows, encoding = Rows(), find_encoding(path)
    unknown_bytes = "surrogateescape" if encoding == "utf-8-sig" else "strict"
    try:
        with open(path, encoding=encoding, errors=unknown_bytes, newline="") as file:
            keys = (image_key, caption_key, label_key)
            reader = _read_lines(file, path, rows, keys, wanted, separator, metadata)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} begins as {encoding.upper()} and is cut off or damaged: {error.reason}") from None
    if reader.unclosed:
        count, first = len(reader.unclosed), reader.unclosed[0]
        where = f"line {first}" if count == 1 else f"{count} lines, the first is {first}"
        warnings.warn(
            f"{path.name}: a quote opens a field and nothing closes it ({where}); it is read as a character",
            stacklevel=2,
        )
    root = os.path.realpath(path.parent if data_root is None else data_root)
    return table_dataset(rows, root, caption_key, label_key, class_names, str(path))


def csv_columns(path: str | Path) -> list[str]:
    """Return the names in the header of a CSV or TSV file, whose separator is the one that gives most of them."""
    check_regular(str(path), os.stat(path))
    with open(path, encoding=find_encoding(path), errors="replace", newline="") as file:
        header = file.readline()
    return max(([cell.strip() for cell in _cells(header, mark, Path(path))] for mark in SEPARATORS), key=len)


def _read_lines(file, path: Path, rows: Rows, keys, wanted: list[str], separator, metadata: bool) -> RowReader:
    """Add the rows of an open table; return their reader."""
    header_line = file.readline()
    separator = separator or _detect_separator(header_line, wanted, path)
    cells = _cells(header_line, separator, path)
    header = [cell.strip() for cell in cells]
    columns = {key: _column(key, header, path) for key in wanted}
    padded = {i for i, cell in enumerate(cells) if cell != header[i]}  # columns whose values may have spaces too
    others: dict[str, int] = {}
    if metadata:
        others = {key: i for i, key in enumerate(header) if key not in (keys[0], "")}
        rows.other_keys = [_printable(key) for key in others]
    spaced = any(cell.startswith(" ") for cell in cells[1:])
    reader = RowReader(file, separator, header, columns[keys[0]], spaced)
    for where, fields in reader:
        if not isinstance(fields, str):
            fields = [field.strip() if i in padded else field for i, field in enumerate(fields)] if padded else fields
        problem = fields if isinstance(fields, str) else _row_problem(fields, header, columns)
        if problem or isinstance(fields, str):
            rows.add(f"{path.name} line {where}", wrong=problem)
            continue
        image, caption, label = (fields[columns[key]] if key else None for key in keys)
        assert image is not None
        for text in _captions_in(caption):
            rows.add(image, image, text, label, [_printable(fields[i]) for i in others.values()])
    return reader


def _captions_in(caption: str | None) -> Sequence[str | None]:
    """Return the captions of a cell: the strings of a list in JSON or in Python's notation, else the text itself."""
    if caption is None or not (caption.startswith("[") and caption.endswith("]")):
        return [caption]
    for parse in (json.loads, ast.literal_eval):
        try:
            texts = parse(caption)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(texts, list) and texts and all(isinstance(text, str) and text.strip() for text in texts):
            return texts
    return [caption]


def _cells(header: str, separator: str, path: Path) -> list[str]:
    try:
        return next(csv.reader([header], delimiter=separator), [])
    except csv.Error as error:  # which is no ValueError
        raise ValueError(f"{path} does not begin with the names of columns: {error}") from None


def _detect_separator(header: str, wanted: Sequence[str], path: Path) -> str:
    """Return the separator with which the header has most of the wanted columns; the first one on a tie."""

    def found(separator: str) -> int:
        return len(set(wanted) & {cell.strip() for cell in _cells(header, separator, path)})

    return max(SEPARATORS, key=found)


def _column(key: str, header: list[str], path) -> int:
    if key not in header:
        known = [name[:MAX_SHOWN] for name in header[:MAX_SHOWN_COLUMNS]]
        nearest = (difflib.get_close_matches(key[:100], known, n=1, cutoff=0.0) or [""])[0]
        more = f" and {len(header) - len(known)} more" if len(header) > len(known) else ""
        raise ValueError(f"{path} has no column {key!r}; nearest is {nearest!r}, columns are {known}{more}")
    return header.index(key)


def _printable(text: str) -> str:
    """Return the text with U+FFFD for bytes that are not UTF-8."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _row_problem(fields: list[str], header: list[str], columns: dict[str, int]) -> str | None:
    image = next(iter(columns.values()))
    if len(fields) != len(header):
        return f"{len(fields)} fields under a header of {len(header)}"
    for key, i in columns.items():
        if not fields[i].strip():
            return f"no {key}"
        try:
            fields[i].encode()
        except UnicodeEncodeError:  # bytes that are not UTF-8 were read as surrogates
            return f"{key} is not UTF-8; save the table as UTF-8, for instance with iconv -f LATIN1 -t UTF-8"
        allowed = MAX_PATH if i == image else MAX_TEXT_BYTES
        if len(fields[i]) > allowed:
            return f"{key} has {len(fields[i])} characters; at most {allowed} are allowed"
    return None


def read_parquet(
    path: str | Path | Sequence[str | Path],
    image_key: str = "image",
    caption_key: str | None = "caption",
    *,
    label_key: str | None = None,
    data_root: str | Path | None = None,
    class_names: Sequence[str] | None = None,
    metadata: bool = False,
    max_bytes: int = MAX_PARQUET_BYTES,
) -> Dataset:
    """Return the rows of a parquet file, or of several, one after the other; needs pyarrow.

    Args:
        image_key: column of image files as bytes, of paths, or of {"bytes", "path"} as in Hugging Face data sets.
        max_bytes: uncompressed size of the columns, which are held in memory.
        caption_key: column of texts, or of lists of texts: a list becomes one record per caption.
        label_key, data_root, class_names: as in `read_csv`. Labels of Hugging Face data sets have the file's names.
        metadata: keep the other columns of numbers and texts as `Dataset.metadata`.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: a missing column, no rows, or more than `max_bytes`.
    """
    paths = [Path(path)] if isinstance(path, str | Path) else [Path(part) for part in path]
    keys, rows = (image_key, caption_key, label_key), Rows()
    for part in paths:
        max_bytes -= _add_parquet(rows, part, keys, metadata, max_bytes)
    if label_key is not None:
        class_names = class_names or _class_names(_open_parquet(paths[0]).schema_arrow, label_key)
    root = os.path.realpath(paths[0].parent if data_root is None else data_root)
    return table_dataset(rows, root, caption_key, label_key, class_names, ", ".join(map(str, paths[:2])))


def _open_parquet(path: Path):
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise ImportError("Reading parquet needs pyarrow. Install with: pip install pyarrow") from None
    check_regular(str(path), os.stat(path))
    return parquet.ParquetFile(path)


def parquet_columns(path: str | Path) -> list[str]:
    """Return the names of the columns of a parquet file."""
    with _open_parquet(Path(path)) as file:
        return file.schema_arrow.names


def _add_parquet(rows: Rows, path: Path, keys, metadata: bool, max_bytes: int) -> int:
    """Add the rows of one file; return the uncompressed size of its columns."""
    wanted = [key for key in keys if key is not None]
    with _open_parquet(path) as file:
        for key in wanted:
            _column(key, file.schema_arrow.names, path)
        if metadata:
            rows.other_keys = rows.other_keys or _scalar_columns(file.schema_arrow, keys[0])
        needed = list(dict.fromkeys([*wanted, *rows.other_keys]))
        size = _check_size(file.metadata, needed, path, max_bytes)
        pieces = file.iter_batches(columns=needed)
        for number, row in enumerate(row for piece in pieces for row in piece.to_pylist()):
            _add_row(rows, path, number, row, *keys)
    return size


def _class_names(schema, label_key: str) -> list[str] | None:
    """Return the class names that Hugging Face's `datasets` writes into a parquet file, or None."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[label_key]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    known = isinstance(names, list) and 0 < len(names) <= MAX_CLASSES and all(isinstance(name, str) for name in names)
    return names if known else None


def _scalar_columns(schema, image_key: str) -> list[str]:
    """Return the columns of numbers, booleans and strings, without the images."""
    import pyarrow.types as types

    kinds = (types.is_string, types.is_large_string, types.is_integer, types.is_floating, types.is_boolean)
    return [f.name for f in schema if f.name != image_key and any(kind(f.type) for kind in kinds)]


def _check_size(metadata, wanted: Sequence[str], path, max_bytes: int) -> int:
    """Return the size of the columns according to the file's metadata; ValueError if it exceeds `max_bytes`."""
    total = 0
    for group in range(metadata.num_row_groups):
        chunks = (metadata.row_group(group).column(i) for i in range(metadata.num_columns))
        total += sum(c.total_uncompressed_size for c in chunks if c.path_in_schema.partition(".")[0] in wanted)
    if total > max_bytes:
        raise ValueError(f"{path} unpacks to {total} bytes; at most {max_bytes} are held in memory. Use tar shards")
    return total


def caption_list(value: object) -> list[str | None]:
    """Return the captions of an image: of a list the texts that are not empty, else the value as text; [] for None."""
    if not isinstance(value, list):
        return [] if value is None else [str(value)]
    return [text for text in value if isinstance(text, str) and text.strip()]


def _add_row(rows: Rows, path: Path, number: int, row: dict, image_key, caption_key, label_key) -> None:
    name = f"{path.name} row {number}"
    for key in filter(None, (image_key, caption_key, label_key)):
        if row[key] is None or row[key] == "":
            return rows.add(name, wrong=f"no {key}")
    image = row[image_key]
    if isinstance(image, dict):
        image = image.get("bytes") or image.get("path")
    if not isinstance(image, (str, bytes)):
        return rows.add(name, wrong=f"{image_key} is {type(image).__name__}; allowed are bytes and a path")
    label = None if label_key is None else str(row[label_key])
    captions = [None] if caption_key is None else caption_list(row[caption_key])
    if not captions:
        return rows.add(name, wrong=f"no {caption_key}")
    others = ["" if row.get(key) is None else str(row[key]) for key in rows.other_keys]
    for caption in captions:
        rows.add(image if isinstance(image, str) else name, image, caption, label, others)


def table_dataset(rows: Rows, root: str, caption_key, label_key, class_names, source: str) -> Dataset:
    """Return the data set of a table that was read; ValueError if it has no rows."""
    if not rows.names:
        raise ValueError(f"{source} has no rows")
    labels = None
    if label_key is not None:
        labels, class_names = number_labels(rows.labels, rows.wrong, class_names)

    def read(i: int) -> Record:
        if i in rows.wrong:
            raise BadSample(rows.wrong[i])
        image = rows.images[i]
        data = image if isinstance(image, bytes) else read_file(inside(root, image or ""))
        return Record(data, rows.names[i], rows.captions[i], None if labels is None else int(labels[i]))

    texts = (value or b"" for column in (rows.images, rows.captions, rows.labels) for value in column)
    return Dataset(rows.names, read, digest(texts), caption_key is not None, labels, class_names, rows.metadata)


def number_labels(
    values: Sequence[str | None], wrong: dict[int, str], class_names: Sequence[str] | None
) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Return (int32 (N,), class names); integers are kept, names are numbered in sorted order.

    Args:
        values: N labels, None for a bad row.
        wrong: {row: reason}; rows with unknown classes are added.
        class_names: the known names; None to take them from the values.
    """
    known = {value for value in values if value is not None}
    are_numbers = all(value.isascii() and value.isdigit() for value in known) and not known & set(class_names or ())
    if class_names is None and not are_numbers:
        class_names = sorted(known)
    classes = MAX_CLASSES if class_names is None else len(class_names)
    if are_numbers:
        number_of = {value: int(value) for value in known if len(value) < 10 and int(value) < classes}
    else:
        number_of = {name: i for i, name in enumerate(class_names or ())}
    labels = np.full(len(values), -1, np.int32)
    for i, value in enumerate(values):
        if value is not None and value in number_of:
            labels[i] = number_of[value]
        elif value is not None:
            wrong[i] = f"class {value!r} is not among the {classes} known"
    return labels, None if class_names is None else tuple(class_names)
