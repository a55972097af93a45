"""`Batcher`: one thread that runs the model, over bounded queues of what waits for it.

Whenever the thread is free, it takes all that waits of one kind and shape, up to the kind's largest batch and rounded
down to a power of two, so that the batch shapes are few and nothing is padded. There is no delay unless one is asked
for. Kinds come in the order of priority; a kind that waits is still taken after `TURNS` batches of the ones before it.
"""

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any, NamedTuple

import numpy as np

from zoo.serve.limits import ApiError

TURNS = 8  # batches of preferred kinds, before a kind that waits is taken too
MAX_RETRY_SECONDS = 60


class Kind(NamedTuple):
    """One kind of work.

    Args:
        name: for metrics and the name of its queue.
        run: (n, …) → (n, D), called with n a power of two.
        max_batch: largest n.
        max_waiting: bound of the queue.
    """

    name: str
    run: Callable[[np.ndarray], np.ndarray]
    max_batch: int
    max_waiting: int


class _Job:
    """The inputs of one request, which may be spread over several batches."""

    def __init__(self, count: int):
        self.loop = asyncio.get_running_loop()
        self.done: asyncio.Future[list] = self.loop.create_future()
        self.rows: list = [None] * count
        self.missing = count
        self.dropped = False


def _finish(jobs: Sequence[_Job], error: Exception | None = None) -> None:
    """Hand rows, or an error, to the requests of one event loop, which is woken once: each time is a system call."""

    def act() -> None:
        for job in jobs:
            if job.done.done():
                continue
            if error is None:
                job.done.set_result(job.rows)
            else:
                job.done.set_exception(error)

    if jobs and not jobs[0].loop.is_closed():
        jobs[0].loop.call_soon_threadsafe(act)


class _Item(NamedTuple):
    job: _Job
    place: int
    value: np.ndarray
    since: float


class Batcher:
    """Queues and the thread that empties them.

    Args:
        kinds: the preferred ones first.
        max_wait: seconds that the first of a batch may wait for others; 0 for none.
        observe: called after each batch with (kind's name, n, seconds).

    Attributes:
        queues: {kind's name: what waits}.
    """

    def __init__(
        self,
        kinds: Sequence[Kind],
        *,
        max_wait: float = 0.0,
        observe: Callable[[str, int, float], None] = lambda *_: None,
    ):
        self._kinds = {kind.name: kind for kind in kinds}
        self.queues: dict[str, deque[_Item]] = {name: deque() for name in self._kinds}
        self._coming = dict.fromkeys(self._kinds, 0)  # values that are being prepared
        self._passed_over = dict.fromkeys(self._kinds, 0)
        self._seconds = dict.fromkeys(self._kinds, 0.0)  # an item takes, a moving average
        self._changed = threading.Condition()
        self._max_wait, self._observe, self._open = max_wait, observe, True
        self._calls: deque[Callable[[], None]] = deque()
        self._thread = threading.Thread(target=self._work, name="zoo-model", daemon=True)
        self._thread.start()

    def call(self, function: Callable[[], None]) -> None:
        """Run a function on the thread of the model before anything that waits."""
        with self._changed:
            self._calls.append(function)
            self._changed.notify()

    async def run(
        self,
        name: str,
        values: Sequence,
        prepare: Callable[[Any], np.ndarray] | None = None,
        threads: Executor | None = None,
    ) -> np.ndarray:
        """Return the model's rows of N values, float32 (N, D). Values of a caller that is cancelled are dropped.

        Args:
            prepare: from a value to the model's input, called on `threads`; None for values that are inputs.

        Raises:
            ApiError: the queue has no room for all of them. Errors of `prepare` and of the model.
        """
        job, queue = _Job(len(values)), self.queues[name]
        with self._changed:
            if not self._open or len(queue) + self._coming[name] + len(values) > self._kinds[name].max_waiting:
                seconds = min(MAX_RETRY_SECONDS, max(1, math.ceil(len(queue) * self._seconds[name])))
                raise ApiError(429, f"the queue is full; try again in {seconds} s", retry_after=seconds)
            if prepare is None:
                now = time.monotonic()
                queue.extend(_Item(job, place, value, now) for place, value in enumerate(values))
                self._changed.notify()
            else:
                self._coming[name] += len(values)
        try:
            if prepare is not None and threads is not None:
                for place, value in enumerate(values):
                    threads.submit(self._prepare, name, job, place, value, prepare)
            return np.stack(await job.done)
        finally:
            if job.missing:
                self._drop(name, job)

    def _prepare(self, name: str, job: _Job, place: int, value: Any, prepare: Callable[[Any], np.ndarray]) -> None:
        """Prepare a value and put it into its queue, without the event loop in between."""
        prepared: np.ndarray | None = None
        error: Exception | None = None
        try:
            prepared = None if job.dropped else prepare(value)
        except Exception as raised:
            error = raised
        with self._changed:
            self._coming[name] -= 1
            if prepared is not None and not job.dropped:
                self.queues[name].append(_Item(job, place, prepared, time.monotonic()))
            self._changed.notify()
        if error is not None:
            _finish([job], error)

    def close(self) -> None:
        """Finish what waits, then stop the thread."""
        with self._changed:
            self._open = False
            self._changed.notify()
        self._thread.join()

    def _drop(self, name: str, job: _Job) -> None:
        with self._changed:
            job.dropped, queue = True, self.queues[name]
            kept = [item for item in queue if item.job is not job]
            queue.clear()
            queue.extend(kept)

    def _work(self) -> None:
        while (taken := self._take()) is not None:
            name, items = taken
            start = time.perf_counter()
            self._run(self._kinds[name], items)
            seconds = time.perf_counter() - start
            self._seconds[name] += 0.2 * (seconds / len(items) - self._seconds[name])
            self._observe(name, len(items), seconds)

    def _take(self) -> tuple[str, list[_Item]] | None:
        """Return the next batch as soon as there is one; None once the batcher is closed and empty."""
        while True:
            with self._changed:
                while not self._calls and not any(self.queues.values()):
                    if not self._open and not any(self._coming.values()):
                        return None
                    self._changed.wait()
                call = self._calls.popleft() if self._calls else None
                if call is None:
                    name = self._choose()
                    left = self._time_left(name)
                    if left <= 0:
                        return name, self._pop(name)
                    self._changed.wait(left)
            if call is not None:
                call()

    def _choose(self) -> str:
        waiting = [name for name, queue in self.queues.items() if queue]
        return next((name for name in waiting if self._passed_over[name] >= TURNS), waiting[0])

    def _time_left(self, name: str) -> float:
        """Return the seconds for which a batch that is not full may wait for more."""
        if not self._max_wait or not self._open or len(self.queues[name]) >= self._kinds[name].max_batch:
            return 0.0
        return self.queues[name][0].since + self._max_wait - time.monotonic()

    def _pop(self, name: str) -> list[_Item]:
        """Take the first item and those of the same shape: as many as the largest power of two allows."""
        for other, waits in self.queues.items():
            self._passed_over[other] += bool(waits)
        self._passed_over[name] = 0
        queue = self.queues[name]
        same = [item for item in queue if item.value.shape == queue[0].value.shape]
        count = min(self._kinds[name].max_batch, len(same))
        taken = same[: 1 << (count.bit_length() - 1)]
        gone = set(map(id, taken))
        rest = [item for item in queue if id(item) not in gone]
        queue.clear()
        queue.extend(rest)
        return taken

    def _run(self, kind: Kind, items: list[_Item]) -> None:
        try:
            rows = kind.run(np.stack([item.value for item in items]))
        except Exception as error:  # of one value, perhaps; the others are still answered
            if len(items) == 1:
                _finish([items[0].job], error)
                return
            for item in items:
                self._run(kind, [item])
            return
        for item, row in zip(items, rows, strict=True):
            item.job.rows[item.place] = row
            item.job.missing -= 1
        _finish([job for job in dict.fromkeys(item.job for item in items) if not job.missing])
