"""Every numbered example runs with --smoke: in this process, which saves starting a backend, and one in its own."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import zoo
from convnext import create_convnext_v2

pytestmark = [pytest.mark.backend, pytest.mark.once]

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("[0-9]*.py"))


def run(script, *arguments, cwd):
    """Run an example in another folder, so that it writes nothing into the checkout; return its output."""
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        timeout=600,
    )
    assert done.returncode == 0, f"{script.name} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def example(start):
    (script,) = (path for path in EXAMPLES if path.name.startswith(start))
    return script


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_smoke(script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(script), "--smoke"])
    runpy.run_path(str(script), run_name="__main__")
    assert capsys.readouterr().out.strip()


def test_the_examples_are_numbered():
    assert [path.name[:2] for path in EXAMPLES] == [f"{number:02}" for number in range(1, len(EXAMPLES) + 1)]


def test_classify_loads_a_weight_file(tmp_path):
    zoo.save(create_convnext_v2("atto", 7), tmp_path / "seven.safetensors")
    printed = run(example("01"), "--smoke", "--weights", "seven.safetensors", cwd=tmp_path)
    assert "Most probable classes with seven.safetensors:" in printed
    assert "random weights" not in printed
