"""Batches as functions of (seed, epoch, step). They have no state, so a run resumes anywhere, bit for bit.

The order of an epoch is a permutation drawn from (seed, epoch); a sample's augmentation is drawn from (seed, epoch,
index). Threads, prefetching and the number of processes change when a batch is made, never its content.
"""

import functools
import itertools
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from zoo.data.bad_samples import BadSamples, TooManyBadSamples
from zoo.data.mix import Mix
from zoo.data.preprocess import MAX_PIXELS, PreprocessSpec, preprocess
from zoo.data.records import BadSample, Dataset, Record, digest, open_record
from zoo.utils.env import available_cores

_ORDER, _AUGMENT, _CAPTION, _MIX = range(4)  # purposes of random streams
CHUNK = 8  # samples per task of a thread
_MAX_THREADS = 8

Sample = dict[str, np.ndarray]
Row = tuple[int, Sample]  # a record's number and what it becomes


@dataclass
class _Job:
    """A batch in progress: its images, and the other columns of its samples, CHUNK by CHUNK."""

    images: np.ndarray
    futures: list[Future]


@dataclass(repr=False, eq=False)
class Batches:
    """Batches of a data set for every epoch: `batch(epoch, step)`, or `batches[i]` counted through all epochs.

    A batch is {"images": float32 (B, H, W, 3), normalised; "tokens": int32 (B, L), with `tokenize`; "label": int32
    (B,), if the data set has labels; "target": float32 (B, K), with `mix`}.

    A bad record is logged in `bad_samples` and replaced by the next good one in the epoch's order, starting one batch
    later. The replacement depends only on the order and the files, and is the same for every rank.

    It is thread-safe; `close()`, or leaving its `with` block, ends its own threads.

    Args:
        dataset: N records.
        spec: image size, statistics and interpolation; the preprocessing if `augment` is None.
        batch_size: B over all ranks.
        seed: seed of order, augmentation, captions and mixing; at least 0.
        shuffle: a new order each epoch instead of the data set's.
        augment: (PIL image, rng, spec) → float32 (H, W, 3), normalised; an `Augment` or a custom function.
        mix: a `Mix`, which draws from (seed, epoch, step). It needs labels and an even number of rows per rank.
        tokenize: list of N texts → int (N, L) with constant L.
        caption: (Record, rng) → text that replaces the record's caption, such as a random choice of several.
        rank, world_size: number of this process, and of all. Rank r has the r-th part of each batch.
        drop_last: drop the incomplete last batch; with shuffling, other records each epoch.
        replace_bad: False leaves bad records out, so batches become smaller; for evaluation.
        bad_samples: log file, one per process; see `BadSamples`.
        max_bad_fraction: largest allowed fraction of N; more bad records end the run.
        threads: number of threads that read and decode; by default that of the cores, at most 8.
        prefetch: batches made in advance. At most prefetch + 1 are in memory.
        max_pixels: a larger image is bad and is not decoded.

    Raises:
        ValueError: an argument out of range, or data without the captions or labels that the arguments need.
        TooManyBadSamples: by `batch`.
    """

    dataset: Dataset
    spec: PreprocessSpec
    _: KW_ONLY
    batch_size: int
    seed: int = 0
    shuffle: bool = True
    augment: Callable[[Image.Image, np.random.Generator, PreprocessSpec], np.ndarray] | None = None
    mix: Mix | None = None
    tokenize: Callable[[list[str]], np.ndarray] | None = None
    caption: Callable[[Record, np.random.Generator], str] | None = None
    rank: int = 0
    world_size: int = 1
    drop_last: bool = True
    replace_bad: bool = True
    bad_samples: str | Path | None = None
    max_bad_fraction: float = 0.01
    threads: int | None = None
    prefetch: int = 2
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        self.threads = self.threads or default_threads()
        self._check()
        self.bad = BadSamples(self.dataset.names, self.bad_samples, self.max_bad_fraction)
        self._seen_bad: set[int] = set()
        self._lock = threading.Lock()
        self._jobs: dict[tuple[int, int], _Job] = {}
        order = functools.partial(_draw_order, len(self.dataset), self.seed, self.shuffle)
        self._order = functools.lru_cache(maxsize=2)(order)
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="zoo-data")
        self._end = weakref.finalize(self, self._pool.shutdown, wait=False, cancel_futures=True)

    def _check(self) -> None:
        least = {"batch_size": 1, "seed": 0, "rank": 0, "world_size": 1, "threads": 1, "prefetch": 0, "max_pixels": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < low:
                raise ValueError(f"{name}={value!r}; it must be an integer of at least {low}")
        if self.batch_size % self.world_size or self.rank >= self.world_size:
            raise ValueError(
                f"batch_size={self.batch_size}, rank={self.rank}, world_size={self.world_size}; "
                "ranks must run below world_size, which must divide batch_size"
            )
        if not self.steps:
            raise ValueError(f"{len(self.dataset)} records do not fill a batch of {self.batch_size}")
        if self.tokenize and not (self.dataset.captions or self.caption):
            raise ValueError("tokenize is given, but the data has no captions; name their column, or pass `caption`")
        if self.mix and (self.dataset.labels is None or self.batch_size // self.world_size % 2):
            raise ValueError(f"mix needs labels and an even batch per rank; batch_size={self.batch_size}")

    @property
    def steps(self) -> int:
        """The number of batches per epoch."""
        whole, rest = divmod(len(self.dataset), self.batch_size)
        return whole if self.drop_last else whole + bool(rest)

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> Sample:
        """Return batch `index`, counted through all epochs: step index % steps of epoch index // steps."""
        return self.batch(*divmod(index, self.steps))

    def __iter__(self) -> Iterator[Sample]:
        """Yield the batches of epoch 0."""
        return self.epoch(0)

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Sample]:
        """Yield the batches of an epoch from step `start` on."""
        return (self.batch(epoch, step) for step in range(start, self.steps))

    def batch(self, epoch: int, step: int) -> Sample:
        """Return this rank's part of a batch; the following batches are started.

        Raises:
            IndexError: no such batch. TooManyBadSamples: see `max_bad_fraction`.
        """
        return self.batch_and_indices(epoch, step)[0]

    def batch_and_indices(self, epoch: int, step: int) -> tuple[Sample, np.ndarray]:
        """Return `batch(epoch, step)` and the record of each row, int64 (B,), after bad records are replaced or left
        out."""
        self._check_place(epoch, step)
        with self._lock:
            job = self._jobs.pop((epoch, step), None) or self._start(epoch, step)
            self._read_ahead(epoch, step)
        rows = [row for future in job.futures for row in future.result()]
        kept = [place for place, row in enumerate(rows) if row is not None]
        indices = np.array([row[0] for row in rows if row is not None], np.int64)
        samples = [row[1] for row in rows if row is not None]
        images = job.images if len(kept) == len(rows) else job.images[kept]
        return self._collate(images, samples, epoch, step), indices

    def indices(self, epoch: int, step: int) -> np.ndarray:
        """Return the records of this rank's part of a batch before bad ones are replaced, int64 (B,)."""
        self._check_place(epoch, step)
        return self._order(epoch)[self._places(step)]

    def sample(self, epoch: int, index: int) -> Sample:
        """Return one row of a batch: record `index` in epoch `epoch`; raise BadSample if it cannot be used."""
        record = self.dataset.record(index)
        least_size = getattr(self.augment, "least_size", lambda _: None)(self.spec)
        image = open_record(record, max_pixels=self.max_pixels, least_size=least_size)
        try:
            if self.augment is None:
                row = {"images": preprocess(image, self.spec)}
            else:
                row = {"images": self.augment(image, _stream(self.seed, _AUGMENT, epoch, index), self.spec)}
            if self.tokenize is not None:
                own = record.caption or ""
                text = own if self.caption is None else self.caption(record, _stream(self.seed, _CAPTION, epoch, index))
                row["tokens"] = np.asarray(self.tokenize([text]), np.int32)[0]
        except (ValueError, OSError) as error:
            raise BadSample(str(error)) from error
        if self.dataset.labels is not None:
            row["label"] = np.asarray(record.label, np.int32)
        return row

    @property
    def identity(self) -> dict[str, str | int]:
        """What the batches depend on, the same for all ranks: a digest of the data, and the arguments by name.

        A custom function is identified by its name only.
        """
        numbers = {name: getattr(self, name) for name in ("batch_size", "seed", "shuffle", "drop_last", "replace_bad")}
        functions = {name: _name(getattr(self, name)) for name in ("augment", "mix", "tokenize", "caption")}
        data = f"{len(self.dataset)} records, {self.dataset.fingerprint[:16]}"
        return {"data": data, **numbers, "spec": repr(self.spec), **functions}

    @property
    def fingerprint(self) -> str:
        """A digest of `identity`."""
        return digest([repr(self.identity)])

    def close(self) -> None:
        """End the threads and drop prefetched batches."""
        self._end()

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _check_place(self, epoch: int, step: int) -> None:
        if epoch < 0 or not 0 <= step < self.steps:
            raise IndexError(f"epoch {epoch}, step {step}; an epoch has {self.steps} steps")

    def _places(self, step: int) -> slice:
        """Return the slice of the order for this rank's part of a batch."""
        part = self.batch_size // self.world_size
        first = step * self.batch_size + self.rank * part
        return slice(min(first, len(self.dataset)), min(first + part, len(self.dataset)))

    def _start(self, epoch: int, step: int) -> _Job:
        self._order(epoch)  # draw it once, before the threads need it
        places = self._places(step)
        images = np.empty((places.stop - places.start, *self.spec.size, 3), np.float32)
        chunks = [range(i, min(i + CHUNK, places.stop)) for i in range(places.start, places.stop, CHUNK)]
        return _Job(images, [self._pool.submit(self._make, images, chunk, places.start, epoch) for chunk in chunks])

    def _read_ahead(self, epoch: int, step: int) -> None:
        """Start the following batches and cancel all others."""
        first = epoch * self.steps + step + 1
        wanted = [divmod(i, self.steps) for i in range(first, first + self.prefetch)]
        for place in [place for place in self._jobs if place not in wanted]:
            for future in self._jobs.pop(place).futures:
                future.cancel()
        for place in wanted:
            if place not in self._jobs:
                self._jobs[place] = self._start(*place)

    def _make(self, images: np.ndarray, places: range, first: int, epoch: int) -> list[Row | None]:
        """Write the images at these places of the order; return the rest of their rows, None for a row left out."""
        rows = []
        for place in places:
            row = self._row_at(epoch, place)
            if row is not None:
                pixels = row[1].pop("images")
                if pixels.shape != images.shape[1:]:
                    raise TypeError(f"augment gave an image of shape {pixels.shape}, not {images.shape[1:]}")
                images[place - first] = pixels
            rows.append(row)
        return rows

    def _row_at(self, epoch: int, place: int) -> Row | None:
        """Return the row at a place of the order, or of the record that replaces it there."""
        order = self._order(epoch)
        # Starting one batch later, because an image should not be in a batch twice.
        further = itertools.count(place + self.batch_size)
        for candidate in itertools.chain([place], itertools.islice(further, len(order) * self.replace_bad)):
            index = int(order[candidate % len(order)])
            if index in self._seen_bad:
                continue
            try:
                return index, self.sample(epoch, index)
            except BadSample as error:
                self.bad.add(index, str(error))
                self._seen_bad.add(index)
        if self.replace_bad:
            raise TooManyBadSamples(f"all {len(order)} samples are bad")
        return None

    def _collate(self, images: np.ndarray, samples: list[Sample], epoch: int, step: int) -> Sample:
        batch = {"images": images}
        if self.tokenize is not None and samples:
            batch["tokens"] = np.stack([sample["tokens"] for sample in samples])
        if self.dataset.labels is not None:
            batch["label"] = np.array([sample["label"] for sample in samples], np.int32)
        return batch if self.mix is None else self.mix(batch, _stream(self.seed, _MIX, epoch, step))


def _draw_order(count: int, seed: int, shuffle: bool, epoch: int) -> np.ndarray:
    """Return the records in the order of an epoch, int64 (N,)."""
    return _stream(seed, _ORDER, epoch).permutation(count) if shuffle else np.arange(count)


def _stream(seed: int, purpose: int, *place: int) -> np.random.Generator:
    """Return an independent random generator for each purpose and place."""
    return np.random.default_rng((seed, purpose, *place))


def _name(function: Any) -> str:
    return f"{function.__module__}.{function.__qualname__}" if hasattr(function, "__qualname__") else repr(function)


def default_threads() -> int:
    """Return the number of threads that read and prepare images."""
    return min(_MAX_THREADS, available_cores())
