"""Every numbered example runs with --smoke, in this process, which saves starting a backend."""

import runpy
import sys
from pathlib import Path

import pytest

import zoo
from convnext import create_convnext_v2

pytestmark = [pytest.mark.backend, pytest.mark.once]

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("[0-9]*.py"))


LONG = "10_first_document"


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """A function that runs an example in another folder, so that it writes nothing into the checkout."""

    def run(script, *arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [str(script), *arguments])
        runpy.run_path(str(script), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize(
    "script",
    [pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem == LONG else []) for path in EXAMPLES],
)
def test_smoke(script, run):
    assert run(script, "--smoke").strip()


def test_the_examples_are_numbered():
    assert [path.name[:2] for path in EXAMPLES] == [f"{number:02}" for number in range(1, len(EXAMPLES) + 1)]


def test_classify_loads_a_weight_file(tmp_path, run):
    zoo.save(create_convnext_v2("atto", 7), tmp_path / "seven.safetensors")
    printed = run(EXAMPLES[0], "--smoke", "--weights", "seven.safetensors")
    assert "Most probable classes with seven.safetensors:" in printed
    assert "random weights" not in printed
