"""`zoo bench --preset serve`: a tiny run through every step, with a peer, which is a second `zoo serve`."""

import json

import pytest
from pipeline_case import *  # noqa: F403
from serve_case import running

from zoo.bench import bench, serving, to_text
from zoo.serve.model import open_model

pytestmark = [pytest.mark.backend, pytest.mark.once, pytest.mark.slow]


def test_a_tiny_run_measures_everything(saved, tmp_path):
    with running(open_model(str(saved), batch_size=4)) as peer:
        url = f"http://127.0.0.1:{peer.port}/v1"
        report = bench([str(saved)], preset="serve", smoke=True, output=tmp_path, peer_url=url)
    figures = report.figures
    assert set(serving.TARGETS) <= set(figures) and min(figures.values()) >= 0
    for side in (figures, report.peer):
        assert side["images/s, 16 clients"] > 0 and side["images/s, 16 clients mixing texts and images"] > 0
        assert side["an image, 16 clients, p99 ms"] >= side["an image, 16 clients, median ms"] > 0
        assert side["16 clients mixing texts and images, largest difference from single calls"] <= 1e-5
    assert json.loads((tmp_path / "serve.json").read_text())["figures"] == figures
    text = (tmp_path / "serve.md").read_text()
    assert text.rstrip("\n") == to_text(report) and "load at the start" in text
