"""The processes of the cases: limits, errors, and a run of the command."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from zoo import model_info
from zoo.bench.cases import Case
from zoo.bench.processes import Limits, Worker, WorkerError, watched


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (Limits(seconds=0.05), "exceeded the limit of 0.05 seconds"),
        pytest.param(
            Limits(memory=1e6),
            "exceeded the limit of 0.001 GB",
            marks=pytest.mark.skipif(sys.platform != "linux", reason="memory of other processes is not reported"),
        ),
    ],
)
def test_a_process_that_exceeds_a_limit_is_killed(limits, words):
    waits = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    with subprocess.Popen(waits, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        with watched(process, limits) as broken:
            assert process.stdout.read() == b""  # ends with the process
        assert process.wait() != 0
    assert words in broken[0]


def test_a_case_that_exceeds_a_limit_is_an_error(monkeypatch):
    monkeypatch.setattr("zoo.bench.processes.watched", lambda *_: contextlib.nullcontext(["it exceeded"]))
    with pytest.raises(WorkerError, match="it exceeded"):
        Worker(Case("resnet50", library="nobody"))


def test_a_worker_reports_why_it_failed():
    with pytest.raises(WorkerError, match="KeyError: 'nobody'"):
        Worker(Case("resnet50", library="nobody"))


def test_a_worker_times_a_case():
    size = {"image_size": 32, "batch_size": 2, "threads": 1, "is_short": True}
    with contextlib.closing(Worker(Case("convnextv2_atto", backend="torch", mode="eager", **size))) as worker:
        assert worker.ready["parameters"] == model_info("convnextv2_atto").parameters
        (seconds,) = worker.take_turn()
    assert seconds > 0 and worker.last["host_bytes"] > 0


@pytest.mark.slow
def test_a_smoke_run_from_command_to_files(tmp_path):
    """The whole command: our model and timm's on torch, at 32 pixels."""
    shim = Path(__file__).resolve().parent / "peer_shim"
    words = "convnextv2_atto --backend torch --peer timm --threads 1 --smoke --json --output"
    done = subprocess.run(
        [sys.executable, "-m", "zoo", "bench", *words.split(), str(tmp_path)],
        cwd=shim.parent.parent,
        env=os.environ | {"PYTHONPATH": str(shim)},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [result["case"]["library"] for result in report["results"]] == ["zoo", "timm"]
    for result in report["results"]:
        assert result["error"] is None
        assert result["parameters"] == model_info("convnextv2_atto").parameters
        assert len(result["rounds"]) == 2
        assert result["items_per_second"] == pytest.approx(2 / result["p50"])
        assert 0 < result["share"] < 1
        assert min(result[key] for key in ("build_seconds", "first_seconds", "p90", "host_bytes", "library_bytes")) > 0
    (ratio,) = report["ratios"]
    assert (ratio["case"], ratio["other"]) == (0, 1)
    assert 0 < ratio["low"] <= ratio["median"] <= ratio["high"]
    assert set(report["rates"]) == {"torch, float32"}
    assert "| convnextv2_atto | timm | torch |" in (tmp_path / "bench.md").read_text(encoding="utf-8")
