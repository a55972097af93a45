"""Who embeds the parts: this process, others on this machine, or Ray actors. All run `Worker` of `zoo.search.embed`."""

import multiprocessing
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, NamedTuple

from zoo.utils.env import require_packages, share_of_cores, thread_limits
from zoo.utils.progress import SECONDS
from zoo.utils.text import shown

if TYPE_CHECKING:
    from zoo.search.embed import Done, Job, Worker

_ENGINES = ("local", "ray")
_PATIENCE = 60.0  # seconds between two lines while no worker of a cluster can be placed
_MAX_DEATHS = 3  # of the workers that embed one part, before the part is given up
_OBJECT_STORE_BYTES = 100 << 20  # Ray's least, nearly; what goes through it is a few numbers a part
_CRASHED = "its worker died"


def check_engine(engine: str, workers: int, address: str | None) -> None:
    """Raise ValueError for an unknown engine or options that do not fit it, ImportError where Ray is missing."""
    if engine not in _ENGINES:
        raise ValueError(f"engine={engine!r}; allowed are {', '.join(_ENGINES)}")
    if workers < 1:
        raise ValueError(f"workers={workers!r}; at least 1 is needed")
    if address is not None and engine != "ray":
        raise ValueError(f"address={address!r} is for engine='ray', got engine={engine!r}")
    if engine == "ray":
        require_packages("engine='ray'", ["ray"], extras="scale")


def run_parts(
    job: "Job",
    todo: Sequence[int],
    total: int,
    engine: str,
    workers: int,
    address: str | None,
    here: Callable[[], "Worker"],
) -> None:
    """Embed and commit the parts `todo` of `total`.

    A part whose worker dies is given to another.

    Args:
        here: makes the worker of this process.

    Raises:
        RuntimeError: a part whose workers died _MAX_DEATHS times.
    """
    if not todo:
        return
    workers = min(workers, len(todo))
    progress = _Progress(total, total - len(todo))
    if engine == "local" and workers == 1:
        worker = here()
        for number in todo:
            progress.add(worker.embed(number))
        return
    pool = Actors(job, workers, address) if engine == "ray" else Processes(job, workers)
    queue, deaths, busy = deque(todo), Counter[int](), 0
    try:
        while queue or busy:
            while queue and pool.idle():
                pool.give(queue.popleft())
                busy += 1
            for number, outcome in pool.collect():
                busy -= 1
                if not isinstance(outcome, str):
                    progress.add(outcome)
                    continue
                deaths[number] += 1
                progress.note(f"part {number}: {outcome}; attempt {deaths[number]} of {_MAX_DEATHS}")
                if deaths[number] == _MAX_DEATHS:
                    raise RuntimeError(
                        f"the worker died {_MAX_DEATHS} times on part {number} ({outcome}). "
                        "Finished parts are kept; run the same command again to continue."
                    )
                queue.appendleft(number)
    finally:
        pool.close()


class _Progress:
    """Says on stderr how many parts are done: on a terminal in one line, elsewhere in a line every SECONDS seconds."""

    def __init__(self, total: int, before: int):
        self.total, self.done, self.before = total, before, before
        self.images = self.left_out = 0
        self.start = self.shown = time.monotonic()
        self.terminal = sys.stderr.isatty()
        if before:
            self.note(f"{before} of {total} parts were done before")

    def add(self, done: "Done") -> None:
        self.done += 1
        self.images += done.images
        self.left_out += done.left_out
        now, last = time.monotonic(), self.done == self.total
        if not self.terminal and now - self.shown < SECONDS and not (last and now - self.start >= SECONDS):
            return
        self.shown = now
        rate = self.images / max(now - self.start, 1e-9)
        text = f"{self.done} of {self.total} parts, {rate:,.1f} images/s, {self.left_out} left out"
        end = "\n" if last or not self.terminal else ""
        print(f"\r{text}" if self.terminal else text, end=end, file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        print(f"\n{text}" if self.terminal and self.done > self.before else text, file=sys.stderr, flush=True)


class Processes:
    """Workers that each embed one part at a time: processes of this machine, each with its share of the cores."""

    def __init__(self, job: "Job", workers: int):
        self.job, self.workers = job, workers
        self.context = multiprocessing.get_context("spawn")
        self.free = [self._start(share) for share in range(workers)]
        self.busy: dict[Connection, tuple[_Child, int]] = {}

    def _start(self, share: int) -> "_Child":
        ours, theirs = self.context.Pipe()
        process = self.context.Process(target=_work, args=(self.job, theirs), daemon=True)
        before = dict(os.environ)
        with share_of_cores(share, self.workers) as variables:
            os.environ.update(variables)  # read by the libraries when the process imports them
            try:
                process.start()
            finally:
                os.environ.clear()
                os.environ.update(before)
        theirs.close()
        return _Child(process, ours, share)

    def idle(self) -> int:
        """Return how many parts could be given out now."""
        return len(self.free)

    def give(self, number: int) -> None:
        """Let an idle worker embed a part."""
        child = self.free.pop()
        try:
            child.pipe.send(number)
        except OSError:  # it died while it was idle
            child = self._replace(child)
            child.pipe.send(number)
        self.busy[child.pipe] = child, number

    def _replace(self, dead: "_Child") -> "_Child":
        dead.process.join()
        return self._start(dead.share)

    def collect(self) -> Iterator[tuple[int, "Done | str"]]:
        """Wait until something happens; yield each part that ended: (number, `Done`, or why its worker died).

        A worker that died is replaced.

        Raises:
            Exception: what a worker raised, which would be raised again.
        """
        for pipe in wait(list(self.busy)):
            assert isinstance(pipe, Connection)
            child, number = self.busy.pop(pipe)
            try:
                outcome = pipe.recv()
            except (EOFError, OSError):
                self.free.append(self._replace(child))
                yield number, f"{_CRASHED} with exit code {child.process.exitcode}"
                continue
            if isinstance(outcome, Exception):
                raise outcome
            self.free.append(child)
            yield number, outcome

    def close(self) -> None:
        for child in [*self.free, *(child for child, _ in self.busy.values())]:
            child.pipe.close()
            child.process.terminate()
            child.process.join()


class _Child(NamedTuple):
    """A process with our end of its pipe, and the number of its share of the cores."""

    process: Any
    pipe: Connection
    share: int


def _work(job: "Job", pipe: Connection) -> None:
    """Embed the parts whose numbers come through the pipe; send back each outcome. Runs in a process of its own."""
    from zoo.search.embed import Worker

    worker = None
    while True:
        try:
            number = pipe.recv()
        except EOFError:
            return
        try:
            worker = worker or Worker(job)
            pipe.send(worker.embed(number))
        except Exception as error:  # raised again in the main process
            pipe.send(error)


class Actors:
    """As `Processes`: Ray actors, one CPU each, and one GPU each where the cluster has any."""

    def __init__(self, job: "Job", workers: int, address: str | None):
        import ray

        self.ray = ray
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        self.own = not self.ray.is_initialized()
        if self.own and address is not None:
            self.ray.init(address=address, log_to_driver=False)
        elif self.own:
            self.ray.init(
                num_cpus=workers,
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE_BYTES,
                log_to_driver=False,
                _node_ip_address="127.0.0.1",
            )
        self.job, self.failed_starts = job, 0
        self.free: list[Any] = []
        self.busy: dict[Any, tuple[Any, int]] = {}
        self.starting: dict[Any, Any] = {}  # a cluster that lost a node may have no place for all of them
        for _ in range(workers):
            self._start()

    def _start(self) -> None:
        from zoo.search.embed import Worker

        variables = thread_limits(1)
        if "KERAS_BACKEND" in os.environ:
            variables["KERAS_BACKEND"] = os.environ["KERAS_BACKEND"]
        gpus = 1 if self.ray.cluster_resources().get("GPU", 0) else 0
        kind = self.ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=0, scheduling_strategy="SPREAD")(Worker)
        actor = kind.options(runtime_env={"env_vars": variables}).remote(self.job)
        self.starting[actor.ready.remote()] = actor

    def idle(self) -> int:
        return len(self.free)

    def give(self, number: int) -> None:
        actor = self.free.pop()
        self.busy[actor.embed.remote(number)] = actor, number

    def collect(self) -> Iterator[tuple[int, "Done | str"]]:
        errors = self.ray.exceptions
        limit = None if self.busy else _PATIENCE
        references = self.ray.wait([*self.busy, *self.starting], num_returns=1, timeout=limit)[0]
        if not references:
            print("waiting until the Ray cluster has a place for a worker", file=sys.stderr, flush=True)
        for reference in references:
            actor, number = self.busy.pop(reference, None) or (self.starting.pop(reference), None)
            try:
                outcome = self.ray.get(reference)
            except errors.RayTaskError as error:
                raise error.as_instanceof_cause() from None
            except (errors.RayActorError, errors.WorkerCrashedError, errors.NodeDiedError) as error:
                self._start()
                if number is not None:
                    yield number, _CRASHED
                else:
                    self._count_failed_start(error)
            else:
                self.free.append(actor)
                self.failed_starts = 0
                if number is not None:
                    yield number, outcome

    def _count_failed_start(self, error: Exception) -> None:
        self.failed_starts += 1
        if self.failed_starts == _MAX_DEATHS:
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
            raise RuntimeError(
                f"{_MAX_DEATHS} workers in a row could not be started; the last: {shown(reason)}"
            ) from None

    def close(self) -> None:
        for actor in [*self.free, *(actor for actor, _ in self.busy.values()), *self.starting.values()]:
            self.ray.kill(actor)
        if self.own:
            self.ray.shutdown()
