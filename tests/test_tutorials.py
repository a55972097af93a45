"""The tutorials' commands and programs, run in their order as a reader would."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.backend, pytest.mark.once]

ROOT = Path(__file__).resolve().parent.parent
TUTORIALS = ("fine-tune", "train-clip", "search", "deploy")  # a later one uses what earlier ones wrote
BLOCK = re.compile(
    r"<!-- (run|write (?P<path>\S+)) -->\n```(?P<language>\w+)\n(?P<source>.*?)^```", re.DOTALL | re.MULTILINE
)


def run(source, language, folder):
    if language == "sh":
        lines = [f'"{sys.executable}" -m {line}' for line in source.splitlines() if line.startswith("zoo ")]
        command = ["bash", "-euc", "\n".join(lines)]
    else:
        command = [sys.executable, "-c", source]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    environment |= {"ZOO_TEXT_CACHE": str(folder / "texts.sqlite")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, encoding="utf-8", timeout=900)
    assert done.returncode == 0, f"{source}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_tutorials_run_and_reach_their_results(tmp_path):
    printed = {}
    for name in TUTORIALS:
        text = (ROOT / "docs" / "tutorials" / f"{name}.md").read_text(encoding="utf-8")
        blocks = list(BLOCK.finditer(text))
        assert len(blocks) == text.count("<!-- run -->") + text.count("<!-- write ")
        for number, block in enumerate(blocks):
            if block["path"]:
                (tmp_path / block["path"]).write_text(block["source"], encoding="utf-8")
            else:
                printed[name, number] = run(block["source"], block["language"], tmp_path)
    said = {name: "".join(text for (page, _), text in printed.items() if page == name) for name in TUTORIALS}
    for name, text in said.items():
        print(f"== {name}\n{text}")
    assert re.search(r"^seven: \d", said["fine-tune"], re.MULTILINE)
    assert "['seven', 'eight']" in said["train-clip"]
    assert (tmp_path / "found.html").is_file()
    assert re.search(r"^7$", said["deploy"], re.MULTILINE)  # the digit that the ONNX file reads
