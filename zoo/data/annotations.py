"""Records from JSON: a `metadata.jsonl` as in Hugging Face's image folders, and COCO's `captions_*.json`."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoo.data.paths import inside, read_file
from zoo.data.records import Dataset
from zoo.data.tables import MAX_PATH, Rows, caption_list, table_dataset
from zoo.utils.text import quoted, shown

MAX_JSON_BYTES = 1 << 30  # read as a whole; the captions of COCO's training images take about 90 MB
IMAGE_KEYS, CAPTION_KEYS = ("file_name", "image", "filepath", "path"), ("caption", "captions", "text")
METADATA = ("metadata.jsonl", "metadata.csv")  # of Hugging Face's image folders


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
        ValueError: a missing field, or no rows.
    """
    path = Path(path)
    lines = read_file(os.path.realpath(path), max_bytes=MAX_JSON_BYTES).splitlines()
    objects = [(number, _parse_line(line)) for number, line in enumerate(lines, 1) if line.strip()]
    first = next((value for _, value in objects if isinstance(value, dict)), {})
    image_key = _field(image_key, IMAGE_KEYS, first, path)
    if caption_key is not None:
        caption_key = _field(caption_key, CAPTION_KEYS, first, path)
    if label_key is not None:
        _field(label_key, (), first, path)
    used = (image_key, caption_key, label_key)
    rows = Rows(other_keys=[key for key, value in first.items() if key not in used and _is_scalar(value)])
    rows.other_keys = rows.other_keys if metadata else []
    for number, value in objects:
        name = f"{path.name} line {number}"
        if isinstance(value, str):
            rows.add(name, wrong=value)
            continue
        image, label = value.get(image_key), value.get(label_key) if label_key else None
        captions = [None] if caption_key is None else caption_list(value.get(caption_key))
        if not isinstance(image, str) or not 0 < len(image) <= MAX_PATH:
            rows.add(name, wrong=f"no {image_key}")
        elif label_key and (label is None or not _is_scalar(label)):
            rows.add(name, wrong=f"no {label_key}")
        elif not all(text is None or text.strip() for text in captions or [""]):
            rows.add(name, wrong=f"no {caption_key}")
        else:
            others = [str(value.get(key, "")) for key in rows.other_keys]
            for caption in captions:
                rows.add(image, image, caption, None if label is None else str(label), others)
    root = os.path.realpath(path.parent if data_root is None else data_root)
    return table_dataset(rows, root, caption_key, label_key, class_names, str(path))


def jsonl_fields(path: str | Path) -> list[str]:
    """Return the names of the fields of the first object in a file with one JSON object per line."""
    with open(path, "rb") as file:
        first = next((line for line in file if line.strip()), b"")
    value = _parse_line(first)
    return list(value) if isinstance(value, dict) else []


def _parse_line(line: bytes) -> dict[str, Any] | str:
    """Return an object, or what is wrong with the line."""
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return "not a JSON object in UTF-8"
    return value if isinstance(value, dict) else "not a JSON object in UTF-8"


def _field(key: str | None, others: Sequence[str], first: dict, path: Path) -> str:
    found = next((name for name in (key, *others) if name is not None and name in first), None)
    if found is None:
        names = ", ".join(repr(name[:40]) for name in list(first)[:8]) or "none"
        wanted = " or ".join(map(repr, dict.fromkeys(filter(None, (key, *others)))))
        raise ValueError(f"{shown(path)}: its first object has no {wanted}; its fields are {names}")
    return found


def _is_scalar(value: object) -> bool:
    return isinstance(value, (str, int, float))


def read_coco(path: str | Path, *, data_root: str | Path | None = None) -> Dataset:
    """Return the images of COCO's `captions_*.json`, one record per caption, in the order of the annotations.

    Args:
        data_root: folder of the images; default: the file's folder.

    Raises:
        ValueError: another JSON file, or the first image is not in `data_root`.
    """
    path = Path(path)
    try:
        content = json.loads(read_file(os.path.realpath(path), max_bytes=MAX_JSON_BYTES))
        names = {image["id"]: image["file_name"] for image in content["images"]}
        captions = [(names.get(note["image_id"]), note["caption"]) for note in content["annotations"]]
    except (TypeError, KeyError, RecursionError, json.JSONDecodeError, UnicodeDecodeError):
        raise ValueError(
            f"{shown(path)} is not a caption file of COCO, which holds images with id and file_name, and annotations "
            "with image_id and caption; allowed are also .jsonl, tables, .tar and a folder"
        ) from None
    rows = Rows()
    for number, (name, caption) in enumerate(captions):
        if not isinstance(name, str) or not 0 < len(name) <= MAX_PATH:
            rows.add(f"{path.name} annotation {number}", wrong="no image of its image_id")
        elif not isinstance(caption, str) or not caption.strip():
            rows.add(f"{path.name} annotation {number}", wrong="no caption")
        else:
            rows.add(name, name, caption)
    root = os.path.realpath(path.parent if data_root is None else data_root)
    first = next((image for image in rows.images if isinstance(image, str)), None)
    if first is not None and not os.path.exists(inside(root, first)):
        raise ValueError(
            f"{quoted(root)} has no {quoted(first)}, the first image of {shown(path)}; name its folder with data_root"
        )
    return table_dataset(rows, root, "caption", None, None, str(path))
