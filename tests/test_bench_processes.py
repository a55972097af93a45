"""The processes that cases run in: what a case may take, and what is said of one that cannot be timed."""

import contextlib
import subprocess
import sys

import pytest

from zoo.bench.cases import Case
from zoo.bench.processes import Limits, Worker, WorkerError, watched


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (Limits(seconds=0.05), "takes more than the 0.05 seconds"),
        pytest.param(
            Limits(memory=1e6),
            "holds more than the 0.001 GB",
            marks=pytest.mark.skipif(sys.platform != "linux", reason="no memory of another process is told"),
        ),
    ],
)
def test_a_process_that_takes_too_much_is_killed(limits, words):
    waits = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    with subprocess.Popen(waits, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        with watched(process, limits) as broken:
            assert process.stdout.read() == b""  # ends with the process
        assert process.wait() != 0
    assert words in broken[0]


def test_a_case_that_takes_too_much_is_left_out(monkeypatch):
    monkeypatch.setattr("zoo.bench.processes.watched", lambda *_: contextlib.nullcontext(["it takes too much"]))
    with pytest.raises(WorkerError, match="it takes too much"):
        Worker(Case("resnet50", library="nobody"))


def test_a_worker_tells_why_it_cannot():
    with pytest.raises(WorkerError, match="KeyError: 'nobody'"):
        Worker(Case("resnet50", library="nobody"))
