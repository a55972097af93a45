"""The process of a case as the benchmark sees it; worker.py is what runs in it."""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from zoo.bench.cases import Case

LEAVE_SECONDS = 10.0


class Worker:
    """The process of a case, from its first answer on.

    Args:
        case: to build.

    Attributes:
        ready: what it told when it was warm.
        last: what it told with its last turn.

    Raises:
        WorkerError: it cannot be built.
    """

    def __init__(self, case: Case):
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
            answered = self.process.stdout.readline()
        except BrokenPipeError:
            answered = ""
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
