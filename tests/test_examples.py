"""Every numbered example runs to its end, in a process of its own, on the backend at hand."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import zoo
from convnext import create_convnext_v2
from zoo.data.preprocess import PreprocessSpec
from zoo.demo import load_split

pytestmark = [pytest.mark.backend, pytest.mark.once]

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("[0-9]*.py"))


def run(script, *arguments, cwd):
    """What an example prints. Started elsewhere, so that nothing it leaves lands in the checkout."""
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
def test_smoke(script, tmp_path):
    assert run(script, "--smoke", cwd=tmp_path).strip()


def test_the_first_ones_are_there():
    assert [path.name[:2] for path in EXAMPLES][:3] == ["01", "02", "03"]


def test_classify_reads_a_weight_file(tmp_path):
    zoo.save(create_convnext_v2("atto", 7), tmp_path / "seven.safetensors")
    printed = run(example("01"), "--smoke", "--weights", "seven.safetensors", cwd=tmp_path)
    assert "Classes by seven.safetensors:" in printed
    assert "at random" not in printed


def test_zero_shot_reads_the_digits_that_the_demo_holds_out():
    spec = importlib.util.spec_from_file_location("zero_shot_example", example("03"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    pictures, labels = module.held_out_digits()
    _, held_out = load_split()
    np.testing.assert_array_equal(labels, held_out.labels)
    transform = PreprocessSpec(image_size=32).eval_transform()
    for ours, theirs in zip(pictures[:20], held_out.pictures, strict=False):
        np.testing.assert_array_equal(transform(ours), transform(theirs))
