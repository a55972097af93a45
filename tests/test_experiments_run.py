"""The command `zoo experiment` with a small saved pair, from its metrics to the report."""

# ruff: noqa: F811  (arguments have the names of fixtures, which are imported)

import html
import json
import re

import keras
import numpy as np
import pytest
from data_writers import write_class_folders
from pipeline_case import SPEC, model, saved  # noqa: F401

from clip import CLASS_NAMES
from zoo.cli import main
from zoo.data import from_arrays
from zoo.data.datasets import Labelled, find_templates
from zoo.evaluation.zero_shot import evaluate_zero_shot
from zoo.experiments import EXPERIMENTS, performance
from zoo.experiments.command import run_experiments
from zoo.inference.encoder import keras_encoder
from zoo.utils import report
from zoo.utils.report import png_size

pytestmark = pytest.mark.backend

PNGS = {
    "exploration": ["sizes"],
    "classification": ["0", "1"],
    "cifar10": ["confusion", "mistakes"],
    "mnist": ["confusion", "strategies"],
    "retrieval": ["precision", "sheet"],
    "embedding_space": ["clouds", "cosines", "matrices"],
    "performance": ["throughput"],
    "temperature": ["cosines", "reliability", "sweep"],
    "prompts": ["ranking"],
}


@pytest.fixture(scope="module")
def run(saved, tmp_path_factory):
    """(folder, results) of all nine experiments on a few digits."""
    folder = tmp_path_factory.mktemp("experiments") / "output" / "of the run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "DPI", 72)  # draws three times as fast
        return folder, run_experiments("all", model=saved, output=folder, smoke=True)


@pytest.mark.once
def test_all_nine_write_metrics_plots_and_one_report(run):
    folder, results = run
    assert list(results) == ["run", *EXPERIMENTS]
    pngs = sorted(f"{name}-{plot}.png" for name, plots in PNGS.items() for plot in plots)
    files = ["metrics.json", "report.html", *pngs, *(f"{name}.json" for name in EXPERIMENTS)]
    assert sorted(path.name for path in folder.iterdir()) == sorted(files)
    assert json.loads((folder / "metrics.json").read_text(encoding="utf-8")) == results
    for name in EXPERIMENTS:
        alone = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        assert alone.pop("run") == results["run"] and alone == results[name]
    for name in pngs:
        width, height = png_size((folder / name).read_bytes())
        assert width >= 240 and height >= 60, name
    source = (folder / "report.html").read_text(encoding="utf-8")
    assert source.count('src="data:image/png;base64,') == len(pngs)
    assert not re.search(r'(?:src|href)="(?!data:)', source)
    assert re.findall(r"<h2>(\d)\. ", source) == [str(number) for number in range(1, 10)]


@pytest.mark.once
def test_speed_and_lower_precision(run):
    found = run[1]["performance"]
    for rows in found["throughput"].values():
        assert [row["batch"] for row in rows] == list(performance.SMOKE_BATCHES)
        for row in rows:
            assert row["per_second"] == pytest.approx(1000 * row["batch"] / row["milliseconds"])
            assert row["bytes"] is None or 0 <= row["bytes"] < 1e9
    exact, narrow = found["precision"]
    assert exact["largest_difference"] == 0 and exact["same_best_text"] == 1
    assert 0 < narrow["mean_difference"] <= narrow["largest_difference"] < 0.1
    assert found["short_texts"]["largest_difference"] <= 1e-5
    cached = found["latency"]["one sentence from the cache"]["median"]
    assert 0 < cached < found["latency"]["one sentence encoded"]["median"]


@pytest.mark.wide
def test_the_command_runs_on_every_backend(saved, model, tmp_path, capsys):
    arguments = [
        "experiment",
        "exploration",
        "temperature",
        "--smoke",
        "--output",
        str(tmp_path),
        "--model",
        str(saved),
    ]
    assert main([*arguments, "--backend", keras.backend.backend(), "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    own, found = results["exploration"]["model"], results["temperature"]
    assert own["parameters"] == model.count_params() == own["image_parameters"] + own["text_parameters"] + 1
    assert (own["image_size"], own["context_length"], own["vocabulary"], own["embed_dim"]) == (16, 77, 49408, 16)
    assert found["learned"]["factor"] == pytest.approx(own["logit_scale"]) and found["images"] == 120
    assert found["fitted"]["fitted_on"] == found["fitted"]["judged_on"] == 60
    assert results["run"]["backend"] == keras.backend.backend() and list(results["run"]["seconds"]) == arguments[1:3]


@pytest.mark.once
def test_a_failing_experiment_does_not_stop_the_others(saved, tmp_path, capsys, monkeypatch):
    write_class_folders(tmp_path / "own", 1)
    monkeypatch.setattr(report, "DPI", 72)

    def broken(*_):
        left = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
        assert list(left) == ["run", "exploration", "temperature"], "written before the next experiment starts"
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("zoo.experiments.mnist.run", broken)
    names = ["exploration", "temperature", "mnist", "embedding_space"]
    arguments = ["experiment", *names, "--model", str(saved), "--images", str(tmp_path / "own")]
    assert main([*arguments, "--output", str(tmp_path / "out"), "--backend", keras.backend.backend()]) == 1
    printed, source = capsys.readouterr(), (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    results = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert list(results) == ["run", *names] and "model" in results["exploration"]
    reasons = {"temperature": "have one class, '0_zero'", "mnist": "ZeroDivisionError: division by zero"}
    for name in names:
        found = json.loads((tmp_path / "out" / f"{name}.json").read_text(encoding="utf-8"))
        assert found.pop("run") == results["run"] and found == results[name]
        assert ("error" in found) == (name in reasons)
    for name, reason in reasons.items():
        assert reason in results[name]["error"] and html.escape(results[name]["error"]) in source
        assert f"zoo: {name} failed: {results[name]['error']}" in printed.err
    assert "Traceback" in printed.err and printed.err.count("Traceback") == 1  # for the bug, not for the bad input


@pytest.mark.once
def test_a_random_pair_has_chance_accuracy(model, rng):
    """The evaluation favours no class: images of CIFAR-100's size, its 100 class names and 18 templates."""
    coarse = rng.uniform(0, 255, (2000, 4, 4, 3))
    images = np.kron(coarse, np.ones((1, 8, 8, 1))).astype(np.uint8)
    data = Labelled(
        "cifar100",
        from_arrays(images, labels=np.tile(np.arange(100), 20)),
        CLASS_NAMES["cifar100"],
        find_templates("cifar"),
    )
    result, logits, _ = evaluate_zero_shot(keras_encoder(model, SPEC), data)
    assert len(np.unique(logits.argmax(axis=1))) > 5, "a constant prediction also has chance accuracy"
    low, high = result.interval
    assert low < 0.01 < high
