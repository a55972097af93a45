"""ONNX files have the same bytes on every backend. That they keep them over versions is tested in test_golden.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from zoo.utils.env import installed_backends

ROOT = Path(__file__).resolve().parent.parent


def digests(backend):
    """Return {case: {precision: SHA-256}} of all export cases, computed in a process of that backend."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "export_cases.py")],
        cwd=ROOT,
        env=os.environ | {"KERAS_BACKEND": backend, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        encoding="utf-8",
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_folded_files_of_every_precision_are_the_same_on_every_backend():
    backends = installed_backends()
    if len(backends) < 2:
        pytest.skip("needs two backends")
    first, *others = [digests(backend) for backend in backends]
    assert len(first) > 10
    for backend, found in zip(backends[1:], others, strict=True):
        assert found == first, f"{backend} differs from {backends[0]}"
