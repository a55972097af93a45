"""The process of a case as the benchmark sees it; worker.py is what runs in it."""

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
from typing import NamedTuple

from zoo.bench.cases import Case
from zoo.bench.devices import resident_bytes

LEAVE_SECONDS = 10.0
LOOK_SECONDS = 0.1  # between two looks at what a process holds


class Limits(NamedTuple):
    """What a case may take; a process that takes more is killed, and its case is left out.

    Args:
        seconds: from the start of its process until it is warm, and of each turn; None for any.
        memory: bytes that its process may hold, where the system tells; None for any.
    """

    seconds: float | None = None
    memory: float | None = None


NO_LIMITS = Limits()


class Worker:
    """The process of a case, from its first answer on.

    Args:
        case: to build.
        limits: on what it may take.

    Attributes:
        ready: what it told when it was warm.
        last: what it told with its last turn.

    Raises:
        WorkerError: it cannot be built.
    """

    def __init__(self, case: Case, limits: Limits = NO_LIMITS):
        self.limits = limits
        self.complaints = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 (`close` does)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "zoo.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.complaints,
            env=environment(case),
            encoding="utf-8",
        )
        self.last = {}
        try:
            self.ready = self.ask(json.dumps(dataclasses.asdict(case)))
        except BaseException:
            self.close()
            raise

    def ask(self, line: str = "") -> dict:
        """The answer to a line."""
        try:
            print(line, file=self.process.stdin, flush=True)
            with watched(self.process, self.limits) as broken:
                answered = self.process.stdout.readline()
        except BrokenPipeError:
            answered, broken = "", []
        if broken:
            raise WorkerError(broken[0])
        if not answered:
            self.complaints.seek(0)
            said = [text for text in self.complaints.read().splitlines() if text.strip()]
            raise WorkerError(f"its process ended with code {self.process.wait()}. {' '.join(said[-1:])}")
        answer = json.loads(answered)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def take_turn(self) -> list[float]:
        """Seconds of each call of one turn."""
        self.last = self.ask()
        return self.last["seconds"]

    def close(self) -> None:
        """Ends the process: at the end of its input it leaves; one that does not is killed."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.complaints.close()


@contextlib.contextmanager
def watched(process: subprocess.Popen, limits: Limits):
    """A list; once the process goes over a limit it is killed, and the list says which."""
    broken, done = [], threading.Event()

    def watch():
        start = time.monotonic()
        while not done.wait(LOOK_SECONDS):
            if limits.seconds and time.monotonic() - start > limits.seconds:
                broken.append(f"it takes more than the {limits.seconds:g} seconds that a case may take")
            elif limits.memory and _held(process) > limits.memory:
                broken.append(f"it holds more than the {limits.memory / 1e9:g} GB that a case may hold")
            if broken:
                return process.kill()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start() if any(limits) else None
    try:
        yield broken
    finally:
        done.set()


def _held(process):
    try:
        return resident_bytes(process=process.pid) or 0
    except OSError:  # it has just ended
        return 0


class WorkerError(RuntimeError):
    """A case that cannot be timed, and why."""


def environment(case: Case) -> dict[str, str]:
    """This process' environment with what the libraries of a worker read when they are imported."""
    root = str(Path(__file__).resolve().parents[2])
    counts = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TF_NUM_INTRAOP_THREADS")
    return {
        **os.environ,
        **dict.fromkeys(counts, str(case.threads)),
        "KERAS_BACKEND": case.backend,
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",  # else all of the device's memory is taken at once
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
