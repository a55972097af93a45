"""tests/gpu_check.py: every step runs, a failing or slow one ends alone, and what was measured is kept."""

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import gpu_check
import pytest

SCRIPT = Path(gpu_check.__file__)


def options(folder, **fields):
    given = {"output": folder, "work": folder, "dry_run": True, "minutes": 1.0, "wheels": None, "step": None}
    return SimpleNamespace(**{**given, **fields})


@pytest.mark.slow
def test_dry_run(tmp_path):
    start = time.monotonic()
    done = subprocess.run([sys.executable, str(SCRIPT), str(tmp_path), "--dry-run"], capture_output=True, text=True)
    rows = gpu_check.results(options(tmp_path))
    log = (tmp_path / "log.txt").read_text("utf-8")
    assert done.returncode == 0, log[-3000:]
    assert {row["status"] for row in rows if "status" in row} == {"done"}
    assert {row["step"] for row in rows if "status" in row} == {
        step.name for step in gpu_check.steps(options(tmp_path))
    }
    assert [row for row in rows if "error" in row and "within" not in row] == []
    parity = [row for row in rows if "within" in row]
    assert len(parity) == 3 * len(gpu_check.TINY_CASES)
    assert all(row["within"] for row in parity)
    kernels = [row for row in rows if "kernel" in row]
    assert {row["kernel"] for row in kernels} == {"affine", "conv2d", "depthwise_conv2d", "attention", "grn"}
    assert all(row["forward_ms"] > 0 and row["reference_gradients_ms"] > 0 for row in kernels)
    report = (tmp_path / "report.md").read_text("utf-8")
    assert all(f"## {title}" in report for title in gpu_check.COLUMNS if title != "Matrix products")
    assert "resnet18" in (tmp_path / "tables.md").read_text("utf-8")
    again = subprocess.run([sys.executable, str(SCRIPT), str(tmp_path), "--dry-run"], timeout=60)
    assert again.returncode == 0
    assert time.monotonic() - start < 300  # a minute on two quiet cores


def test_a_step_that_fails_or_hangs_ends_alone(tmp_path, monkeypatch):
    body = "import sys, time; from pathlib import Path; name = sys.argv[sys.argv.index('--step') + 1]\n"
    body += "Path(sys.argv[1], 'results.jsonl').open('a').write('{\"step\": \"%s\", \"rate\": 1}\\n' % name)\n"
    body += "time.sleep(60) if name == 'hangs' else sys.exit(name == 'fails')\n"
    script = tmp_path / "script.py"
    script.write_text(body, "utf-8")
    monkeypatch.setattr(gpu_check, "__file__", str(script))
    names = ("fails", "hangs", "works", "late")
    limits = dict(zip(names, (20, 2, 20, 20), strict=True))
    found = [gpu_check.Step(name, limits[name], None, None) for name in names[:3]]
    monkeypatch.setattr(gpu_check, "steps", lambda _: found)
    monkeypatch.setattr(gpu_check, "search_paths", lambda _: "")
    assert gpu_check.run_all(options(tmp_path, dry_run=False, minutes=2.0)) == 1
    rows = gpu_check.results(options(tmp_path))
    statuses = {row["step"]: row["status"] for row in rows if "status" in row}
    assert statuses == {"fails": "failed with code 1", "hangs": "stopped after 2 s", "works": "done"}
    assert [row["step"] for row in rows if "rate" in row] == ["fails", "hangs", "works"]
    monkeypatch.setattr(gpu_check, "LEAST_SECONDS", 1e9)  # no time left: nothing starts, and what was done stays
    gpu_check.run_all(options(tmp_path, dry_run=False))
    assert gpu_check.results(options(tmp_path)) == rows


def test_order_of_the_steps(tmp_path):
    names = [step.name for step in gpu_check.steps(options(tmp_path, dry_run=False))]
    assert len(set(names)) == len(names)
    assert names[:4] == ["references", "parity torch", "parity jax", "matrix rates"]
    targets = [names.index(f"bench {name}, bfloat16, batch 256") for name in ("convnext_tiny", "ViT-B-32", "ViT-L-14")]
    assert max(targets) < names.index("ONNX Runtime") < names.index("table towers") < len(names) - 1
    assert sum(name.startswith("bench ") for name in names) == 8 * 3 * 2
