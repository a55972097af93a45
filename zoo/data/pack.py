"""Write tar shards in webdataset's layout from any source: `zoo data pack`. Equal sources give equal bytes."""

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from zoo.data.records import BadSample, Dataset, Record
from zoo.data.sources import open_dataset
from zoo.utils.files import folder_write, sha256
from zoo.utils.progress import show_progress

SHARD_SIZE = 1000  # samples; a part of `zoo embed` and of a shuffled read
EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp"}  # of the formats that are read
_LISTING = "shards.json"
_OWN_KEYS = ("filepath", "caption", "captions", "label")  # of a sample's .json


def pack(
    source: str,
    output: str,
    *,
    shard_size: int = SHARD_SIZE,
    shuffle_seed: int | None = None,
    image_key: str = "filepath",
    caption_key: str | None = None,
    label_key: str | None = None,
    data_root: str | None = None,
) -> dict:
    """Copy the images of a source, with captions, labels and metadata, into tar shards: `zoo data pack`.

    A sample is `00000012.jpg` with the bytes of the file, `.txt` with its caption (in `.json`, as "captions", if there
    are several), `.cls` with the number of its class, and `.json` with its name and its metadata. `classes.txt` holds
    the class names and `shards.json` the size and SHA-256 of each shard. Images that cannot be read are left out.

    Args:
        source: what `open_dataset` takes.
        output: folder, which must not exist; it appears when everything is written.
        shard_size: samples in a shard.
        shuffle_seed: seed of the order; by default the order of the source.
        image_key, caption_key, label_key, data_root: as in `open_dataset`. By default, a table's column "caption" is
            packed if it is there.

    Returns:
        {"samples", "shards", "left out", "bytes"}.

    Raises:
        FileExistsError: `output` exists. ValueError: no image could be read, or a size below 1.
    """
    if shard_size < 1:
        raise ValueError(f"shard_size={shard_size!r}; at least 1 is needed")
    if Path(output).exists():
        raise FileExistsError(f"{output!r} already exists; shards are written into a new folder")
    records = _open(source, image_key, caption_key, label_key, data_root)
    samples = list(records.rows_by_name().values())
    if shuffle_seed is not None:
        samples = [samples[i] for i in np.random.default_rng(shuffle_seed).permutation(len(samples))]
    left_out: dict[str, str] = {}
    shards: list[dict[str, Any]] = []
    with folder_write(output) as folder:
        starts = range(0, len(samples), shard_size)
        for number, first in enumerate(show_progress(starts, "shards")):
            path = folder / f"shard-{number:06d}.tar"
            count = _write_shard(path, records, samples[first : first + shard_size], first, left_out)
            shards.append({"file": path.name, "samples": count, "bytes": path.stat().st_size, "sha256": sha256(path)})
        packed = sum(shard["samples"] for shard in shards)
        if not packed:
            name, reason = next(iter(left_out.items()))
            raise ValueError(
                f"none of the {len(left_out)} images of {source!r} can be read; the first, {name!r}: {reason}"
            )
        listing = {"source": str(source), "shards": shards, "left_out": left_out}
        (folder / _LISTING).write_text(json.dumps(listing, indent=1, ensure_ascii=False), "utf-8")
        if records.class_names:
            (folder / "classes.txt").write_text("".join(f"{name}\n" for name in records.class_names), "utf-8")
    size = sum(shard["bytes"] for shard in shards)
    return {"samples": packed, "shards": len(shards), "left out": len(left_out), "bytes": size}


def _open(source: str, image_key: str, caption_key: str | None, label_key: str | None, data_root) -> Dataset:
    """Return the records; without `caption_key`, those of a table have its column "caption" if there is one."""
    columns = {"image_key": image_key, "label_key": label_key, "data_root": data_root, "metadata": True}
    if caption_key is not None:
        return open_dataset(source, caption_key=caption_key, **columns)
    try:
        return open_dataset(source, **columns)
    except ValueError as error:
        if "'caption'" not in str(error):
            raise
        return open_dataset(source, caption_key=None, **columns)


def _write_shard(
    path: Path, records: Dataset, samples: Sequence[list[int]], first: int, left_out: dict[str, str]
) -> int:
    """Write one shard, whose samples are numbered from `first` on; return how many could be read."""
    count = 0
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for number, rows in enumerate(samples, first):
            name = records.names[rows[0]].encode("utf-8", "backslashreplace").decode()
            try:
                members = list(_members(records, rows, name))
            except BadSample as error:
                left_out[name] = str(error)
                continue
            count += 1
            for extension, data in members:
                entry = tarfile.TarInfo(f"{number:08d}.{extension}")  # no time, owner or mode of the source
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
    return count


def _members(records: Dataset, rows: Sequence[int], name: str) -> Iterator[tuple[str, bytes]]:
    """Yield (extension, content) of one sample; raise BadSample if it cannot be used."""
    read = [records.record(i) for i in rows]
    yield _image(read[0])
    captions = list(dict.fromkeys(record.caption for record in read if record.caption is not None))
    notes: dict[str, Any] = {"filepath": name}
    notes |= {key: value for key, value in records.metadata(rows[0]).items() if key not in _OWN_KEYS}
    if len(captions) == 1:
        yield "txt", captions[0].encode()
    elif captions:
        notes["captions"] = captions
    if read[0].label is not None:
        yield "cls", str(read[0].label).encode()
    yield "json", json.dumps(notes, ensure_ascii=False, sort_keys=True).encode()


def _image(record: Record) -> tuple[str, bytes]:
    """Return (extension, bytes) of an image file as it is; an array becomes a PNG file."""
    if isinstance(record.image, np.ndarray):
        file = io.BytesIO()
        Image.fromarray(record.image.squeeze()).save(file, "PNG")
        return "png", file.getvalue()
    try:
        with Image.open(io.BytesIO(record.image), formats=tuple(EXTENSIONS)) as image:
            return EXTENSIONS[str(image.format)], record.image
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise BadSample(f"not an image; allowed are {', '.join(EXTENSIONS)}") from None
