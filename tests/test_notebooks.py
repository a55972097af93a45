"""The notebooks run from top to bottom and reach a result; committed without outputs."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))


def cells(path, kind):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == kind]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_have_no_outputs_and_choose_a_backend_before_any_import_of_keras(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    first, *_ = cells(path, "code")
    imported = {name.name for node in ast.walk(ast.parse(first)) if isinstance(node, ast.Import) for name in node.names}
    assert "KERAS_BACKEND" in first and imported.isdisjoint({"keras", "zoo", "clip", "convnext"})
    assert '"convnext-clip-zoo[jax,onnx,report]"' in first  # what pip installs if the package is missing


def run(name, result, folder):
    """Run a notebook's code in a process of its own; return the value of the expression `result` at its end."""
    (path,) = [path for path in NOTEBOOKS if path.stem == name]
    script = folder / "notebook.py"
    script.write_text("\n".join([*cells(path, "code"), f"print('RESULT', {result})"]), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, str(script)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, encoding="utf-8", timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.rpartition("RESULT")[2])


@pytest.mark.slow
@pytest.mark.backend
@pytest.mark.once
def test_fine_tune_learns_the_digits(tmp_path):
    accuracy, cosine = run("fine_tune", "[float(accuracy), report.cosine]", tmp_path)
    assert accuracy > 0.9
    assert cosine > 0.999


@pytest.mark.slow
@pytest.mark.backend
@pytest.mark.once
def test_clip_search_finds_sevens(tmp_path):
    accuracy, precision = run("clip_search", "[float(accuracy), float(precision)]", tmp_path)
    assert accuracy > 0.9
    assert precision >= 0.9
