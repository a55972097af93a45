"""Records from tables, whose rows name images: CSV and TSV, parquet, JSON lines, and COCO's `captions_*.json`."""

import ast
import csv
import difflib
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from clip import Field
from zoo.data.folders import MAX_TEXT_BYTES
from zoo.data.records import BadSample, Dataset, Record, digest, inside
from zoo.data.rows import RowReader, find_encoding
from zoo.utils.env import require_packages
from zoo.utils.files import check_regular, open_file, read_file
from zoo.utils.strict_json import OBJECT, is_utf8, list_of, parse_json, read_json
from zoo.utils.text import quoted, shown

IMAGE_KEYS, CAPTION_KEYS = ("file_name", "image", "filepath", "path"), ("caption", "captions", "text")
MAX_PARQUET_BYTES = 4 << 30  # of the columns, which are held in memory
MAX_JSON_BYTES = 1 << 30  # of a file; the captions of COCO's training images take about 90 MB
_SEPARATORS = (",", "\t", ";", "|")
_MAX_CLASSES = 1_000_000  # arrays of this length are made for the labels
_MAX_PATH = 4096  # characters, as on Linux
_MAX_SHOWN, _MAX_SHOWN_COLUMNS = 40, 8  # characters and columns, in a message

Keys = tuple[str, str | None, str | None]  # the columns of images, captions and labels


@dataclass
class _Table:
    """The columns of a table while it is read, all of one length, and the problems of bad rows."""

    keys: Keys
    other_keys: list[str] = field(default_factory=list)  # columns that are kept as metadata
    names: list[str] = field(default_factory=list)
    images: list[str | bytes | None] = field(default_factory=list)
    captions: list[str | None] = field(default_factory=list)
    labels: list[str | None] = field(default_factory=list)
    others: list[Sequence[str]] = field(default_factory=list)  # the values of `other_keys`
    wrong: dict[int, str] = field(default_factory=dict)

    def add_row(self, where: str, row: Mapping[str, Any]) -> None:
        """Add a row of {column: value}; see `add`."""
        image, caption, label = (None if key is None else row.get(key) for key in self.keys)
        others = ["" if row.get(key) is None else str(row[key]) for key in self.other_keys]
        self.add(where, image, caption, label, others)

    def add(self, where: str, image, caption=None, label=None, others: Sequence[str] = ()) -> None:
        """Add a row: one record for each caption, or a bad record.

        Args:
            where: name of the row, which a record has that is bad or whose image has no path.
            image: a path, the bytes of a file, or {"bytes", "path"} as in Hugging Face's data sets.
            caption: a text, or a list of texts, of which empty ones are left out.
        """
        if isinstance(image, dict):
            image = image.get("bytes") or image.get("path")
        captions: list[str | None] = [_as_text(caption)]
        if isinstance(caption, list):
            captions = [text for text in caption if isinstance(text, str) and text.strip()] or [None]
        label = _as_text(label)
        image_key, caption_key, label_key = self.keys
        for key, value in ((image_key, image), *((caption_key, text) for text in captions), (label_key, label)):
            longest = _MAX_PATH if key == image_key else MAX_TEXT_BYTES
            if key is not None and (problem := _problem(key, value, longest)):
                self.add_bad(where, problem)
                return
        for text in captions:
            self._append(image if isinstance(image, str) else where, image, text, label, others)

    def add_bad(self, where: str, problem: str) -> None:
        """Add a bad record."""
        self.wrong[len(self.names)] = problem
        self._append(where, None, None, None, ())

    def _append(self, name: str, image: str | bytes | None, caption, label, others: Sequence[str]) -> None:
        self.names.append(name)
        self.images.append(image)
        self.captions.append(caption)
        self.labels.append(label)
        if self.other_keys:
            self.others.append(others)

    def dataset(self, path: Path, data_root: str | Path | None, class_names: Sequence[str] | None) -> Dataset:
        """Return the data set of the table at `path`; ValueError if it has no rows."""
        if not self.names:
            raise ValueError(f"{path} has no rows")
        root, labels = _root(path, data_root), None
        if self.keys[2] is not None:
            labels, class_names = _number_labels(self.labels, self.wrong, class_names)

        def read(i: int) -> Record:
            if i in self.wrong:
                raise BadSample(self.wrong[i])
            image = self.images[i]
            data = image if isinstance(image, bytes) else read_file(inside(root, image or ""))
            return Record(data, self.names[i], self.captions[i], None if labels is None else int(labels[i]))

        texts = (value or b"" for column in (self.images, self.captions, self.labels) for value in column)
        names_of_classes = None if class_names is None else tuple(class_names)
        has_captions = self.keys[1] is not None
        return Dataset(self.names, read, digest(texts), has_captions, labels, names_of_classes, self._metadata)

    def _metadata(self, i: int) -> dict[str, str]:
        return dict(zip(self.other_keys, self.others[i], strict=False)) if self.other_keys else {}


def _as_text(value: object) -> str | None:
    """Return a text or a number as a text; None for nothing, a list and an object."""
    return None if value is None or isinstance(value, list | dict) else str(value)


def _problem(key: str, value: object, longest: int) -> str | None:
    """Return what is wrong with a row's value in a column; None for nothing."""
    if not value or (isinstance(value, str) and not value.strip()):
        return f"no {key}"
    if isinstance(value, bytes):
        return None
    if not isinstance(value, str):
        return f"{key} is {type(value).__name__}; allowed are bytes and a path"
    if not is_utf8(value):  # bytes that are not UTF-8 were read as surrogates
        return f"{key} is not UTF-8; save the table as UTF-8, for instance with iconv -f LATIN1 -t UTF-8"
    if len(value) > longest:
        return f"{key} has {len(value)} characters; at most {longest} are allowed"
    return None


def _root(path: Path, data_root: str | Path | None) -> str:
    """Return the real path of the base folder of a table's paths."""
    return os.path.realpath(path.parent if data_root is None else data_root)


def _number_labels(
    values: Sequence[str | None], wrong: dict[int, str], class_names: Sequence[str] | None
) -> tuple[np.ndarray, Sequence[str] | None]:
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
    classes = _MAX_CLASSES if class_names is None else len(class_names)
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
    return labels, class_names


# CSV.


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
        separator: one character; default: that of , tab ; and | with which the header contains the keys.
        data_root: base folder for relative paths, which no path may leave; default: the table's folder.
        class_names: names in the order of the labels, such as `class_names` of the training data.
        metadata: keep all columns but `image_key` as `Dataset.metadata`.

    Raises:
        ValueError: a missing column, no rows, or not a regular file. A quote that nothing closes causes a warning.
    """
    path = Path(path)
    encoding = find_encoding(path)
    unknown_bytes = "surrogateescape" if encoding == "utf-8-sig" else "strict"
    try:
        with open(path, encoding=encoding, errors=unknown_bytes, newline="") as file:
            table, unclosed = _read_lines(file, path, (image_key, caption_key, label_key), separator, metadata)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} begins as {encoding.upper()} and is cut off or damaged: {error.reason}") from None
    if unclosed:
        where = f"line {unclosed[0]}" if len(unclosed) == 1 else f"{len(unclosed)} lines, the first is {unclosed[0]}"
        warnings.warn(
            f"{path.name}: a quote opens a field and nothing closes it ({where}); it is read as a character",
            stacklevel=2,
        )
    return table.dataset(path, data_root, class_names)


def csv_columns(path: str | Path) -> list[str]:
    """Return the names in the header of a CSV or TSV file, whose separator is the one that gives most of them."""
    with open(path, encoding=find_encoding(path), errors="replace", newline="") as file:
        header = file.readline()
    return max(([cell.strip() for cell in _cells(header, mark, path)] for mark in _SEPARATORS), key=len)


def _read_lines(file, path: Path, keys: Keys, separator, metadata: bool) -> tuple[_Table, list[int]]:
    """Return the rows of an open table, and the lines with a quote that nothing closes."""
    header_line = file.readline()
    if not separator:  # the one with which the header has most of the keys; the first one on a tie
        found = {mark: {cell.strip() for cell in _cells(header_line, mark, path)} for mark in _SEPARATORS}
        separator = max(_SEPARATORS, key=lambda mark: len(found[mark] & set(keys)))
    cells = _cells(header_line, separator, path)
    header = [cell.strip() for cell in cells]
    columns = [None if key is None else _column(key, header, path) for key in keys]
    padded = {i for i, cell in enumerate(cells) if cell != header[i]}  # columns whose values may have spaces too
    others = {key: i for i, key in enumerate(header) if key not in (keys[0], "")} if metadata else {}
    table = _Table(keys, [_printable(key) for key in others])
    spaced = any(cell.startswith(" ") for cell in cells[1:])
    reader = RowReader(file, separator, header, header.index(keys[0]), spaced)
    for number, fields in reader:
        where = f"{path.name} line {number}"
        if isinstance(fields, str):
            table.add_bad(where, fields)
        elif len(fields) != len(header):
            table.add_bad(where, f"{len(fields)} fields under a header of {len(header)}")
        else:
            fields = [field.strip() if i in padded else field for i, field in enumerate(fields)] if padded else fields
            image, caption, label = (None if i is None else fields[i] for i in columns)
            table.add(where, image, _list_in(caption), label, [_printable(fields[i]) for i in others.values()])
    return table, reader.unclosed


def _list_in(cell: str | None) -> str | list[str] | None:
    """Return the list of texts that a cell holds in JSON or in Python's notation, else the cell itself."""
    if cell is None or len(cell) > MAX_TEXT_BYTES or not (cell.startswith("[") and cell.endswith("]")):
        return cell
    for parse in (lambda text: parse_json(text, "a caption"), ast.literal_eval):
        try:
            texts = parse(cell)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(texts, list) and texts and all(isinstance(text, str) and text.strip() for text in texts):
            return texts
    return cell


def _cells(header: str, separator: str, path: str | Path) -> list[str]:
    try:
        return next(csv.reader([header], delimiter=separator), [])
    except csv.Error as error:  # which is no ValueError
        raise ValueError(f"{path} does not begin with the names of columns: {error}") from None


def _column(key: str, header: list[str], path) -> int:
    if key not in header:
        known = [name[:_MAX_SHOWN] for name in header[:_MAX_SHOWN_COLUMNS]]
        nearest = (difflib.get_close_matches(key[:100], known, n=1, cutoff=0.0) or [""])[0]
        more = f" and {len(header) - len(known)} more" if len(header) > len(known) else ""
        raise ValueError(f"{path} has no column {key!r}; nearest is {nearest!r}, columns are {known}{more}")
    return header.index(key)


def _printable(text: str) -> str:
    """Return the text with U+FFFD for bytes that are not UTF-8."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


# Parquet.


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
    table = _Table((image_key, caption_key, label_key))
    for part in paths:
        with _open_parquet(part) as file:
            max_bytes -= _add_parquet(table, file, part, metadata, max_bytes)
            if label_key is not None and part == paths[0]:
                class_names = class_names or _class_names(file.schema_arrow, label_key)
    return table.dataset(paths[0], data_root, class_names)


def _open_parquet(path: Path):
    require_packages("Reading parquet", ("pyarrow",), extras="parquet")
    import pyarrow.parquet as parquet

    check_regular(path, os.stat(path))
    return parquet.ParquetFile(path)


def parquet_columns(path: str | Path) -> list[str]:
    """Return the names of the columns of a parquet file."""
    with _open_parquet(Path(path)) as file:
        return file.schema_arrow.names


def _add_parquet(table: _Table, file, path: Path, metadata: bool, max_bytes: int) -> int:
    """Add the rows of an open file; return the uncompressed size of its columns.

    Raises:
        ValueError: a missing column, or more than `max_bytes` according to the file's metadata.
    """
    wanted = [key for key in table.keys if key is not None]
    for key in wanted:
        _column(key, file.schema_arrow.names, path)
    if metadata:
        table.other_keys = table.other_keys or _scalar_columns(file.schema_arrow, table.keys[0])
    needed, size = list(dict.fromkeys([*wanted, *table.other_keys])), 0
    for group in range(file.metadata.num_row_groups):
        chunks = (file.metadata.row_group(group).column(i) for i in range(file.metadata.num_columns))
        size += sum(c.total_uncompressed_size for c in chunks if c.path_in_schema.partition(".")[0] in needed)
    if size > max_bytes:
        raise ValueError(f"{path} unpacks to {size} bytes; at most {max_bytes} are held in memory. Use tar shards")
    rows = (row for piece in file.iter_batches(columns=needed) for row in piece.to_pylist())
    for number, row in enumerate(rows):
        table.add_row(f"{path.name} row {number}", row)
    return size


def _scalar_columns(schema, image_key: str) -> list[str]:
    """Return the columns of numbers, booleans and strings, without the images."""
    import pyarrow.types as types

    kinds = (types.is_string, types.is_large_string, types.is_integer, types.is_floating, types.is_boolean)
    return [f.name for f in schema if f.name != image_key and any(kind(f.type) for kind in kinds)]


def _class_names(schema, label_key: str) -> list[str] | None:
    """Return the class names that Hugging Face's `datasets` writes into a parquet file, or None."""
    try:
        content = parse_json((schema.metadata or {})[b"huggingface"], "huggingface")
        names = content["info"]["features"][label_key]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    known = isinstance(names, list) and 0 < len(names) <= _MAX_CLASSES and all(isinstance(name, str) for name in names)
    return names if known else None


# JSON: a `metadata.jsonl` as in Hugging Face's image folders, and COCO.


def read_jsonl(
    path: str | Path,
    image_key: str | None = None,
    caption_key: str | None = "caption",
    *,
    label_key: str | None = None,
    data_root: str | Path | None = None,
    class_names: Sequence[str] | None = None,
    metadata: bool = False,
) -> Dataset:
    """Return the images that a file with one JSON object per line names.

    Args:
        image_key: field of paths; default: the first of IMAGE_KEYS that the first object has.
        caption_key: field of a text or a list of texts, which becomes one record per caption; None for no captions. If
            the first object has no such field, the first of CAPTION_KEYS that it has.
        label_key, data_root, class_names: as in `read_csv`.
        metadata: keep the other numbers and texts as `Dataset.metadata`.

    Raises:
        ValueError: a missing field, no rows, or a file of more than MAX_JSON_BYTES.
    """
    path = Path(path)
    first = _first_object(path)
    image_key = _field(image_key, IMAGE_KEYS, first, path)
    if caption_key is not None:
        caption_key = _field(caption_key, CAPTION_KEYS, first, path)
    if label_key is not None:
        _field(label_key, (), first, path)
    table = _Table((image_key, caption_key, label_key))
    if metadata:
        scalars = [key for key, value in first.items() if isinstance(value, str | int | float)]
        table.other_keys = [key for key in scalars if key not in table.keys]
    for where, value in _read_objects(path):
        if isinstance(value, str):
            table.add_bad(where, value)
        else:
            table.add_row(where, value)
    return table.dataset(path, data_root, class_names)


def jsonl_fields(path: str | Path) -> list[str]:
    """Return the names of the fields of the first object in a file with one JSON object per line."""
    return list(_first_object(Path(path)))


def _first_object(path: Path) -> dict[str, Any]:
    return next((value for _, value in _read_objects(path) if isinstance(value, dict)), {})


def _read_objects(path: Path) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """Yield (name of the line, its object or what is wrong with it) of the lines that are not empty."""
    with open_file(path, max_bytes=MAX_JSON_BYTES) as file:
        for number, line in enumerate(file, 1):
            where = f"{path.name} line {number}"
            if line.strip():
                try:
                    yield where, parse_json(line, where, OBJECT)
                except ValueError as error:
                    yield where, f"not a JSON object: {error}"


def _field(key: str | None, others: Sequence[str], first: dict, path: Path) -> str:
    found = next((name for name in (key, *others) if name is not None and name in first), None)
    if found is None:
        names = ", ".join(quoted(name, _MAX_SHOWN) for name in list(first)[:_MAX_SHOWN_COLUMNS]) or "none"
        wanted = " or ".join(map(repr, dict.fromkeys(filter(None, (key, *others)))))
        raise ValueError(f"{shown(path)}: its first object has no {wanted}; its fields are {names}")
    return found


def _with_fields(*names: str) -> Field:
    """Allow an object with these fields, of which the first is an id."""

    def allows(value: Any) -> bool:
        return isinstance(value, dict) and value.keys() >= set(names) and isinstance(value[names[0]], int | float | str)

    return Field(allows, f"an object with {' and '.join(names)}")


_COCO = {
    "images": list_of(_with_fields("id", "file_name")),
    "annotations": list_of(_with_fields("image_id", "caption")),
}


def read_coco(path: str | Path, *, data_root: str | Path | None = None) -> Dataset:
    """Return the images of COCO's `captions_*.json`, one record per caption, in the order of the annotations.

    Args:
        data_root: folder of the images; default: the file's folder.

    Raises:
        ValueError: another JSON file, or the first image is not in `data_root`.
    """
    path = Path(path)
    try:
        content = read_json(path, _COCO, others=True, max_bytes=MAX_JSON_BYTES)
    except ValueError as error:
        raise ValueError(
            f"{shown(path)} is not a caption file of COCO, which holds images with id and file_name, and annotations "
            f"with image_id and caption; allowed are also .jsonl, tables, .tar and a folder. {error}"
        ) from None
    file_of = {image["id"]: image["file_name"] for image in content["images"]}
    table = _Table(("image of its image_id", "caption", None))
    for number, note in enumerate(content["annotations"]):
        table.add(f"{path.name} annotation {number}", file_of.get(note["image_id"]), note["caption"])
    root, first = _root(path, data_root), next((image for image in table.images if isinstance(image, str)), None)
    if first is not None and not os.path.exists(inside(root, first)):
        raise ValueError(
            f"{quoted(root)} has no {quoted(first)}, the first image of {shown(path)}; name its folder with data_root"
        )
    return table.dataset(path, data_root, None)
