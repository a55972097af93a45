"""Embed the images of a source: portion by portion for an index, in parts on one machine or many for `zoo embed`."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zoo.data import Dataset, Record, open_dataset
from zoo.data.records import digest, image_digest
from zoo.data.remote import find_remote_shards, is_remote, open_remote, staged
from zoo.data.shards import find_shards
from zoo.data.sources import shard_pattern
from zoo.embeddings.parts import Part, Plan, commit_part, committed_parts, read_plan, start_folder, write_manifest
from zoo.inference.encoder import Embedded, Encoder
from zoo.inference.pipeline import ClipPipeline
from zoo.utils.files import lock, make_folder
from zoo.utils.strict_json import is_utf8
from zoo.utils.text import quoted

PORTION = 1024  # images between two commits of an index, and in a part


def open_images(source: str | Path, data_root: str | None = None) -> Dataset:
    """Return the images of a folder, table or tar shards, each name once, with their metadata.

    Args:
        data_root: base folder for the paths in a table; default: the table's folder.
    """
    return open_dataset(source, needs="images", data_root=data_root, metadata=True, plugins=True).unique()


def recorded_root(facts: Mapping[str, Any], source: str | Path) -> str | None:
    """Return the data root that the facts of an index record for a source; None for the table's folder."""
    return facts.get("data_roots", {}).get(str(Path(source).resolve()))


def embed_portions(encoder: Encoder, records: Dataset) -> Iterator[Part]:
    """Yield the embeddings of at least PORTION records at a time, in whole batches; the last may be fewer."""
    digests: dict[int, str] = {}
    batches: list[Embedded] = []
    for batch in encoder.iterate_records(_with_digests(records, digests), progress=True):
        batches.append(batch)
        if sum(len(batch.indices) + len(batch.bad) for batch in batches) >= PORTION:
            yield _join(batches, records, digests)
            batches = []
    if batches:
        yield _join(batches, records, digests)


def _join(batches: list[Embedded], records: Dataset, digests: dict[int, str]) -> Part:
    indices = [int(i) for batch in batches for i in batch.indices]
    return Part(
        ids=[records.names[i] for i in indices],
        vectors=np.concatenate([batch.vectors for batch in batches]),
        digests=[digests.pop(i) for i in indices],
        metadata=[records.metadata(i) for i in indices],
        left_out={_as_text(records.names[i]): reason for batch in batches for i, reason in batch.bad.items()},
    )


def _as_text(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()


def _with_digests(records: Dataset, digests: dict[int, str]) -> Dataset:
    """Return the records; reading one stores the digest of its bytes. A name that is not UTF-8 is a bad record."""

    def read(i: int) -> Record:
        if not is_utf8(records.names[i]):
            raise ValueError("its name is not UTF-8")
        record = records.read(i)
        digests[i] = image_digest(record)
        return record

    return replace(records, read=read)


class Partition:
    """A source cut into parts that can be read apart from each other.

    A part of tar shards is one shard, so that a worker opens no other; a part of anything else is a run of `part_size`
    images in the order of the names.

    Args:
        source: what `open_dataset` takes, or the URL of an object store.
        part_size: images in a part.
        data_root: as in `open_images`.

    Raises:
        ValueError: a data root for the URL of an object store.
    """

    def __init__(self, source: str, part_size: int = PORTION, data_root: str | None = None):
        pattern = shard_pattern(source)
        self.records: Dataset | None = None
        self.shards: list[tuple[str, int]] = []
        if pattern is None:
            if is_remote(source) and data_root is not None:
                raise ValueError(f"data_root={quoted(data_root)} is for a table on this machine, not for a URL")
            self.records = open_remote(source).unique() if is_remote(source) else open_images(source, data_root)
            self.part_size, self.parts = part_size, -(-len(self.records) // part_size)
            self.names = digest(self.records.names)
        else:
            local = not is_remote(pattern)
            sized = [(path, os.path.getsize(path)) for path in find_shards(pattern)] if local else None
            self.shards = find_remote_shards(pattern) if sized is None else sized
            self.part_size, self.parts = 0, len(self.shards)
            self.names = digest(f"{path.rpartition('/')[2]} {size}" for path, size in self.shards)

    @contextmanager
    def open(self, number: int) -> Iterator[Dataset]:
        """Open the images of one part for the duration of the block."""
        if self.records is not None:
            first = number * self.part_size
            yield self.records.subset(range(first, min(first + self.part_size, len(self.records))))
            return
        path = self.shards[number][0]
        with staged(path) if is_remote(path) else nullcontext(path) as local:
            yield open_images(local)


class Done(NamedTuple):
    """How many images of a part were embedded and left out."""

    images: int
    left_out: int


@dataclass(frozen=True)
class Job:
    """What a worker needs to know: `options` are those of `ClipPipeline`."""

    source: str
    model: str
    folder: str
    options: dict[str, Any]
    data_root: str | None = None


class Worker:
    """Embeds parts of a job and commits them; in the main process, in others, or as a Ray actor.

    Raises:
        ValueError: what it finds under the job's names is not what the plan says, as on a host with other files.
    """

    def __init__(self, job: Job, pipeline: ClipPipeline | None = None, partition: Partition | None = None):
        self.folder = Path(job.folder)
        self.plan = read_plan(self.folder)
        self.partition = partition or Partition(job.source, self.plan.part_size or PORTION, job.data_root)
        self.pipeline = pipeline or ClipPipeline(job.model, cache=False, **job.options)
        for what, here, planned in (
            ("the images of " + repr(job.source), self.partition.names, self.plan.names),
            (repr(job.model), self.pipeline.fingerprint, self.plan.model),
        ):
            if here != planned:
                raise ValueError(f"this worker finds other content in {what} than the one that made the plan")

    def ready(self) -> None:
        """Return at once: an answer says that the worker has been made."""

    def embed(self, number: int) -> Done:
        """Embed one part and commit it."""
        try:
            with self.partition.open(number) as records:
                digests: dict[int, str] = {}
                batches = list(self.pipeline.encoder.iterate_records(_with_digests(records, digests)))
                part = _join(batches, records, digests)
        except ValueError as error:
            if not self.partition.shards:
                raise
            # One damaged shard does not end the work on ten thousand others.
            name = self.partition.shards[number][0].rpartition("/")[2]
            part = Part([], np.empty((0, 0), np.float32), [], [], {name: str(error)})
        commit_part(self.folder, number, part, self.plan.model)
        return Done(len(part.ids), len(part.left_out))


def embed_images(
    source: str,
    *,
    model: str,
    output: str,
    data_root: str | None = None,
    batch_size: int = 64,
    runtime: str = "keras",
    precision: str = "float32",
    engine: str = "local",
    workers: int = 1,
    address: str | None = None,
    part_size: int = PORTION,
    overwrite: bool = False,
) -> dict:
    """Write the embeddings of images in parts, on one machine or on a Ray cluster: `zoo embed`.

    A run that was interrupted, or whose workers died, goes on where it was: a part is done when its .json file is
    there. Parts are the same files whichever engine writes them. See `zoo.embeddings.parts` for the folder.

    Args:
        source: a folder of images, a CSV or TSV file with a column `filepath`, parquet, or tar shards; or the URL of
            one of them in an object store that fsspec knows.
        model: name or path of a pair.
        output: folder, created if missing; all workers must see it.
        data_root: base folder for the paths in a table; default: the table's folder.
        batch_size, runtime, precision: options of `ClipPipeline`.
        engine: "local", or "ray" for Ray actors.
        workers: processes, or actors with one CPU each (and one GPU where the cluster has any).
        address: "HOST:PORT" of a running Ray cluster; by default Ray runs on this machine alone.
        part_size: images in a part. A part of tar shards is one shard.
        overwrite: replace embeddings that are in the folder.

    Returns:
        {"images", "shards", "left out"}: counts.

    Raises:
        ValueError: the folder holds embeddings of another plan; or a part killed its worker several times.
    """
    from zoo.search.engines import check_engine, run_parts

    check_engine(engine, workers, address)
    options: dict[str, Any] = {"batch_size": batch_size, "runtime": runtime, "precision": precision}
    root = None if data_root is None else os.path.abspath(data_root)
    where = source if is_remote(source) else _absolute(source)
    job = Job(where, _absolute(model), os.path.abspath(output), options, root)
    partition = Partition(job.source, part_size, root)
    pipeline = ClipPipeline(model, cache=False, **options)
    spec = {name: repr(value) for name, value in asdict(pipeline.encoder.spec).items()}
    plan = Plan(
        source=job.source,
        data_root=root,
        names=partition.names,
        model=pipeline.fingerprint,
        runtime=runtime,
        precision=precision,
        preprocessing=spec,
        part_size=partition.part_size,
        parts=partition.parts,
    )
    folder = Path(job.folder)
    make_folder(folder)
    with lock(folder / ".lock"):
        start_folder(folder, plan, overwrite=overwrite)
        todo = sorted(set(range(plan.parts)) - committed_parts(folder))
        run_parts(job, todo, plan.parts, engine, workers, address, lambda: Worker(job, pipeline, partition))
        return write_manifest(folder, plan)


def _absolute(path: str) -> str:
    """Return the absolute path of a path that exists, since workers have other working folders; else the name."""
    return os.path.abspath(path) if os.path.exists(path) else str(path)
