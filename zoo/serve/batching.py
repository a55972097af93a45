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
from typing import NamedTuple

import numpy as np

TURNS = 8  # batches of preferred kinds, before a kind that waits is taken too
MAX_RETRY_SECONDS = 60


class Full(Exception):
    """A queue has no room; `retry_after` is the estimated time until it has, in seconds."""

    def __init__(self, retry_after: int):
        super().__init__(f"the queue is full; try again in {retry_after} s")
        self.retry_after = retry_after


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

    def deliver(self, place: int, row: np.ndarray) -> None:
        self.rows[place] = row
        self.missing -= 1
        if not self.missing:
            self._finish(lambda: self.done.set_result(self.rows))

    def fail(self, error: Exception) -> None:
        self._finish(lambda: self.done.set_exception(error))

    def _finish(self, action: Callable[[], None]) -> None:
        def act() -> None:
            if not self.done.done():
                action()

        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(act)


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
    """

    def __init__(
        self,
        kinds: Sequence[Kind],
        *,
        max_wait: float = 0.0,
        observe: Callable[[str, int, float], None] = lambda *_: None,
    ):
        self._kinds = {kind.name: kind for kind in kinds}
        self._queues: dict[str, deque[_Item]] = {name: deque() for name in self._kinds}
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

    async def run(self, name: str, values: Sequence[np.ndarray]) -> np.ndarray:
        """Return the model's rows of N values, float32 (N, D). Values of a caller that is cancelled are dropped.

        Raises:
            Full: the queue has no room for all of them.
        """
        job, queue = _Job(len(values)), self._queues[name]
        now = time.monotonic()
        with self._changed:
            if not self._open or len(queue) + len(values) > self._kinds[name].max_waiting:
                raise Full(min(MAX_RETRY_SECONDS, max(1, math.ceil(len(queue) * self._seconds[name]))))
            queue.extend(_Item(job, place, value, now) for place, value in enumerate(values))
            self._changed.notify()
        try:
            return np.stack(await job.done)
        finally:
            if job.missing:
                self._drop(name, job)

    def waiting(self, name: str) -> int:
        """Return the number of values in a queue."""
        return len(self._queues[name])

    def close(self) -> None:
        """Finish what waits, then stop the thread."""
        with self._changed:
            self._open = False
            self._changed.notify()
        self._thread.join()

    def _drop(self, name: str, job: _Job) -> None:
        with self._changed:
            queue = self._queues[name]
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
                while not self._calls and not any(self._queues.values()):
                    if not self._open:
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
        waiting = [name for name, queue in self._queues.items() if queue]
        return next((name for name in waiting if self._passed_over[name] >= TURNS), waiting[0])

    def _time_left(self, name: str) -> float:
        """Return the seconds for which a batch that is not full may wait for more."""
        if not self._max_wait or not self._open or len(self._queues[name]) >= self._kinds[name].max_batch:
            return 0.0
        return self._queues[name][0].since + self._max_wait - time.monotonic()

    def _pop(self, name: str) -> list[_Item]:
        """Take the first item and those of the same shape: as many as the largest power of two allows."""
        for other, waits in self._queues.items():
            self._passed_over[other] += bool(waits)
        self._passed_over[name] = 0
        queue = self._queues[name]
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
                items[0].job.fail(error)
                return
            for item in items:
                self._run(kind, [item])
            return
        for item, row in zip(items, rows, strict=True):
            item.job.deliver(item.place, row)
