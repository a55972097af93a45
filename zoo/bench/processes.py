"""The process of a case, from the benchmark's side; worker.py runs in it."""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO, NamedTuple, cast

from zoo.bench.cases import Case
from zoo.bench.machine import resident_bytes

EXIT_SECONDS = 10.0
POLL_SECONDS = 0.1  # between checks of the limits


class Limits(NamedTuple):
    """Limits of a case; a process that exceeds one is killed, and its case is skipped.

    Args:
        seconds: from the start of the process until it is warm, and per turn; None for no limit.
        memory: resident bytes of the process, where the system reports them; None for no limit.
    """

    seconds: float | None = None
    memory: float | None = None


NO_LIMITS = Limits()


class Worker:
    """A running process of a case, built and warm.

    Args:
        case: the case to build.
        limits: its limits.

    Attributes:
        ready: its first answer, {"device", "parameters", …}.
        last: its answer to the last turn.

    Raises:
        WorkerError: the case cannot be built.
    """

    def __init__(self, case: Case, limits: Limits = NO_LIMITS):
        self.limits = limits
        self.errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 (`close` does)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "zoo.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=environment(case),
            encoding="utf-8",
        )
        self._stdin, self._stdout = cast(IO[str], self.process.stdin), cast(IO[str], self.process.stdout)
        self.last: dict = {}
        try:
            self.ready = self.ask(json.dumps(dataclasses.asdict(case)))
        except BaseException:
            self.close()
            raise

    def ask(self, line: str = "") -> dict:
        """Send a line; return the answer.

        Raises:
            WorkerError: a limit was exceeded, the process ended, or it answered with an error.
        """
        try:
            print(line, file=self._stdin, flush=True)
            with watched(self.process, self.limits) as exceeded:
                received = self._stdout.readline()
        except BrokenPipeError:
            received, exceeded = "", []
        if exceeded:
            raise WorkerError(exceeded[0])
        if not received:
            self.errors.seek(0)
            lines = [text for text in self.errors.read().splitlines() if text.strip()]
            raise WorkerError(f"its process ended with code {self.process.wait()}. {' '.join(lines[-1:])}")
        answer = json.loads(received)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def take_turn(self) -> list[float]:
        """Run one turn; return the seconds of each call."""
        self.last = self.ask()
        return self.last["seconds"]

    def close(self) -> None:
        """End the process: it exits when its input ends, and is killed if it does not."""
        with contextlib.suppress(BrokenPipeError):
            self._stdin.close()
        try:
            self.process.wait(EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._stdout.close()
        self.errors.close()


@contextlib.contextmanager
def watched(process: subprocess.Popen, limits: Limits):
    """Yield a list; once the process exceeds a limit it is killed and the list holds the reason."""
    exceeded, done = [], threading.Event()

    def watch():
        start = time.monotonic()
        while not done.wait(POLL_SECONDS):
            if limits.seconds and time.monotonic() - start > limits.seconds:
                exceeded.append(f"it exceeded the limit of {limits.seconds:g} seconds")
            elif limits.memory and _resident(process) > limits.memory:
                exceeded.append(f"it exceeded the limit of {limits.memory / 1e9:g} GB")
            if exceeded:
                return process.kill()

    watcher = threading.Thread(target=watch, daemon=True)
    if any(limits):
        watcher.start()
    try:
        yield exceeded
    finally:
        done.set()


def _resident(process):
    try:
        return resident_bytes(process=process.pid) or 0
    except OSError:  # the process has just ended
        return 0


class WorkerError(RuntimeError):
    """A case cannot be timed; the message says why."""


def environment(case: Case) -> dict[str, str]:
    """Return this process' environment with what a worker's libraries read at import."""
    root = str(Path(__file__).resolve().parents[2])
    counts = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TF_NUM_INTRAOP_THREADS")
    return {
        **os.environ,
        **dict.fromkeys(counts, str(case.threads)),
        "KERAS_BACKEND": case.backend,
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
        "ORT_DISABLE_TELEMETRY": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",  # otherwise TensorFlow allocates all device memory at once
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
