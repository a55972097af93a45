"""`zoo bench --preset serve`: a tiny run through every step."""

import json

import pytest

from zoo.bench import bench, to_text

pytestmark = [pytest.mark.backend, pytest.mark.once, pytest.mark.slow]


def test_a_tiny_run_measures_everything(tmp_path):
    report = bench(preset="serve", smoke=True, output=tmp_path)
    figures = report.figures
    assert figures["images/s, 16 clients"] > 0 and figures["images/s without HTTP"] > 0
    assert figures["an image, 16 clients, p99 ms"] >= figures["an image, 16 clients, median ms"] > 0
    assert figures["largest difference of 16 mixing clients from single calls"] <= 1e-5
    assert json.loads((tmp_path / "serve.json").read_text())["figures"] == figures
    assert (tmp_path / "serve.md").read_text().rstrip("\n") == to_text(report)
