"""The processes that cases run in: what a case may take, and what is said of one that cannot be timed."""

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
    monkeypatch.setattr("zoo.bench.processes.watched", lambda *_: contextlib.nullcontext(["it exceeded"]))
    with pytest.raises(WorkerError, match="it exceeded"):
        Worker(Case("resnet50", library="nobody"))


def test_a_worker_tells_why_it_cannot():
    with pytest.raises(WorkerError, match="KeyError: 'nobody'"):
        Worker(Case("resnet50", library="nobody"))


def test_a_smoke_run_from_command_to_files(tmp_path):
    """The one run with real processes: ours, as it is and folded, beside timm, torch, a model of 32 pixels."""
    shim = Path(__file__).resolve().parent / "peer_shim"
    options = [
        "--backend",
        "torch",
        "--runtime",
        "keras,folded",
        "--peer",
        "timm",
        "--threads",
        "1",
        "--smoke",
        "--json",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "zoo", "bench", "convnextv2_atto", *options, "--output", str(tmp_path)],
        cwd=shim.parent.parent,
        env=os.environ | {"PYTHONPATH": str(shim)},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    told_all = json.loads(done.stdout)
    ours, folded, peer = told_all["results"]
    assert [told["error"] for told in (ours, folded, peer)] == [None, None, None]
    assert ours["parameters"] == peer["parameters"] == model_info("convnextv2_atto").parameters
    assert folded["parameters"] < ours["parameters"]  # norms' gains and offsets are in the products
    assert folded["difference"] < 1e-5
    for told in (ours, folded, peer):
        assert len(told["rounds"]) == 2
        assert told["items_per_second"] == pytest.approx(2 / told["p50"])
        assert 0 < told["share"] < 1
        assert min(told[key] for key in ("build_seconds", "first_seconds", "p90", "host_bytes", "library_bytes")) > 0
    assert [(ratio["case"], ratio["other"]) for ratio in told_all["ratios"]] == [(0, 2), (1, 2)]
    assert all(0 < ratio["low"] <= ratio["median"] <= ratio["high"] for ratio in told_all["ratios"])
    assert set(told_all["rates"]) == {"torch, float32"}
    assert "| convnextv2_atto | timm | torch |" in (tmp_path / "bench.md").read_text(encoding="utf-8")
