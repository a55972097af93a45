"""Embed the images of a source, portion by portion: `zoo embed`, and what an index is built from."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from zoo.data import Dataset, Record, open_dataset
from zoo.embeddings.segment import is_utf8
from zoo.inference.encoder import Embedded, Encoder
from zoo.inference.pipeline import ClipPipeline
from zoo.utils.files import atomic_write, sha256
from zoo.weights import write_safetensors

PORTION = 1024  # images between two commits


class Portion(NamedTuple):
    """The embeddings of consecutive records.

    Args:
        indices: the n records embedded.
        vectors: float32 (n, D), unit rows.
        digests: SHA-256 of each image, in hexadecimal.
        left_out: {name: reason} of the other records.
    """

    indices: list[int]
    vectors: np.ndarray
    digests: list[str]
    left_out: dict[str, str]


def open_images(source: str | Path) -> Dataset:
    """Return the images of a folder, table or tar shards, each name once, with their metadata."""
    return open_dataset(source, needs="images", metadata=True).unique()


def embed_portions(encoder: Encoder, records: Dataset) -> Iterator[Portion]:
    """Yield portions of at least PORTION records, in whole batches; the last one may be smaller."""
    digests: dict[int, str] = {}
    batches: list[Embedded] = []
    for batch in encoder.iterate_records(_with_digests(records, digests), progress=True):
        batches.append(batch)
        if sum(len(batch.indices) + len(batch.bad) for batch in batches) >= PORTION:
            yield _portion(batches, records, digests)
            batches = []
    if batches:
        yield _portion(batches, records, digests)


def _portion(batches: list[Embedded], records: Dataset, digests: dict[int, str]) -> Portion:
    indices = [int(i) for batch in batches for i in batch.indices]
    bad = {i: reason for batch in batches for i, reason in batch.bad.items()}
    left_out = {records.names[i].encode("utf-8", "backslashreplace").decode(): reason for i, reason in bad.items()}
    vectors = np.concatenate([batch.vectors for batch in batches])
    return Portion(indices, vectors, [digests.pop(i) for i in indices], left_out)


def _with_digests(records: Dataset, digests: dict[int, str]) -> Dataset:
    """Return the records; reading one stores the digest of its bytes. A name that is not UTF-8 is a bad record."""

    def read(i: int) -> Record:
        if not is_utf8(records.names[i]):
            raise ValueError("its name is not UTF-8")
        record = records.read(i)
        data = record.image.tobytes() if isinstance(record.image, np.ndarray) else record.image
        digests[i] = hashlib.sha256(data).hexdigest()
        return record

    return replace(records, read=read)


def embed_images(
    source: str, *, model: str, output: str, batch_size: int = 64, runtime: str = "keras", precision: str = "float32"
) -> dict:
    """Write the embeddings of images as shards of safetensors, with a manifest: `zoo embed`.

    Shard i holds `embeddings`, float32 (n, D), unit rows. The manifest holds the ids and digests of each shard, and
    the images left out. Shards of an earlier run in the same folder are replaced.

    Args:
        source: a folder of images, a CSV or TSV file with a column `filepath`, or tar shards.
        model: name or path of a pair.
        output: folder, created if missing.
        batch_size, runtime, precision: options of `ClipPipeline`.

    Returns:
        {"images", "shards", "left out"}: counts.
    """
    records = open_images(source)
    pipeline = ClipPipeline(model, batch_size=batch_size, runtime=runtime, precision=precision, cache=False)
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[dict] = []
    left_out: dict[str, str] = {}
    for portion in embed_portions(pipeline.encoder, records):
        left_out |= portion.left_out
        if portion.indices:
            path = folder / f"embeddings-{len(shards):05d}.safetensors"
            write_safetensors(path, {"embeddings": portion.vectors}, {"model": pipeline.fingerprint})
            ids = [records.names[i] for i in portion.indices]
            shards.append({"file": path.name, "sha256": sha256(path), "ids": ids, "images": portion.digests})
    manifest = {"model": pipeline.fingerprint, "source": str(source), "shards": shards, "left_out": left_out}
    with atomic_write(folder / "manifest.json", "w") as file:
        json.dump(manifest, file, indent=1, ensure_ascii=False)
    for path in set(folder.glob("embeddings-*.safetensors")) - {folder / shard["file"] for shard in shards}:
        path.unlink()  # of an earlier, longer run
    return {"images": sum(len(shard["ids"]) for shard in shards), "shards": len(shards), "left out": len(left_out)}
