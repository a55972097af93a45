"""What a run logs, and the curves that are drawn of it."""

import os

import numpy as np
import pytest
from PIL import Image

from zoo.training.history import History, curves, validation_text
from zoo.utils.report import Panel, plot_panels

WAYS = ("image_to_text", "text_to_image")
EXAMINED = {f"val_{way}_{name}": 0.5 for way in WAYS for name in ("recall_at_1", "recall_at_5", "recall_at_10")}
EXAMINED |= {f"val_{way}_{kind}_rank": 3.0 for way in WAYS for kind in ("median", "mean")}


def pair_rows():
    rows = []
    for step in (2, 4, 6, 8):
        rows.append({"epoch": 1, "step": step, "loss": 1 / step, "accuracy": 0.5, "learning_rate": 0.1, "skipped": 0})
        if step % 4 == 0:
            rows.append({"epoch": 1, "step": step, **EXAMINED, "val_zero_shot_accuracy": 0.3, "val_of_ones_own": step})
    return rows


def test_related_metrics_share_a_panel():
    panels = {panel.title: panel for panel in curves(pair_rows())}
    titles = ["loss", "accuracy", "learning rate", "image → text", "text → image", "rank", "val of ones own"]
    assert list(panels) == titles
    assert list(panels["accuracy"].curves) == ["training", "validation, zero-shot"]
    assert list(panels["image → text"].curves) == ["R@1", "R@5", "R@10"] and len(panels["rank"].curves) == 4
    assert panels["image → text"].percent and not panels["rank"].percent
    drawn = sum(len(panel.curves) for panel in panels.values())
    assert drawn == len({name for row in pair_rows() for name in row} - {"epoch", "step", "skipped"})


def test_validation_is_plotted_at_its_own_steps():
    accuracy = next(panel for panel in curves(pair_rows()) if panel.title == "accuracy")
    assert accuracy.x == [2, 4, 6, 8] and accuracy.joined
    np.testing.assert_array_equal(accuracy.curves["training"], [0.5] * 4)
    np.testing.assert_array_equal(accuracy.curves["validation, zero-shot"], [np.nan, 0.3, np.nan, 0.3])


def test_a_metric_with_one_value_is_not_plotted():
    assert curves(pair_rows()[:1]) == []
    assert [panel.title for panel in curves([*pair_rows()[:1], {"step": 3, "loss": 0.2}])] == ["loss"]


def test_a_loss_that_is_not_finite_is_null_in_the_file_and_a_gap_in_the_curve(tmp_path):
    history = History(tmp_path / "history.jsonl")
    for step, loss in enumerate((2.0, float("nan"), 1.0), 1):
        history.add(epoch=1, step=step, loss=loss)
    assert [row["loss"] for row in history.rows] == [2.0, None, 1.0]
    assert curves(history.rows)[0].x == [1, 3]


def test_a_full_disk_does_not_end_the_run(tmp_path, monkeypatch):
    history, write = History(tmp_path / "history.jsonl"), os.write
    monkeypatch.setattr(os, "write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.warns(UserWarning, match="No space left"):
        history.add(epoch=1, step=1, loss=2.0)
    monkeypatch.setattr(os, "write", write)
    history.add(epoch=1, step=2, loss=1.0)
    assert (tmp_path / "history.jsonl").read_text() == history.text and len(history.rows) == 2


@pytest.mark.parametrize(
    ("count", "rows", "columns"), [(1, 1, 1), (7, 2, 4), pytest.param(13, 3, 5, marks=pytest.mark.slow)]
)
def test_many_panels_are_arranged_in_rows(tmp_path, count, rows, columns):
    pytest.importorskip("matplotlib")
    plot_panels(tmp_path / "one.png", [Panel("a", [1, 2], {"a": [1, 2]})])
    plot_panels(tmp_path / "many.png", [Panel("a", [1, 2], {"a": [1, 2]})] * count)
    one, many = (Image.open(tmp_path / name).size for name in ("one.png", "many.png"))
    assert np.round(np.divide(many, one)).tolist() == [columns, rows]


def test_a_validation_is_an_aligned_table_of_five_figures():
    metrics = {f"val_{way}_recall_at_{k}": k / 16 for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)}
    ranks = {"image_to_text": (1.0, 2.25), "text_to_image": (12.5, 1234.567)}
    for way, (median, mean) in ranks.items():
        metrics |= {f"val_{way}_median_rank": median, f"val_{way}_mean_rank": mean}
    text = validation_text(26, {**metrics, "val_zero_shot_accuracy": 0.125})
    assert text.splitlines() == [
        "Step 26, validation: zero shot accuracy 12.5 %",
        "                          R@1          R@5         R@10  median rank    mean rank",
        "  image to text         6.2 %       31.2 %       62.5 %          1.0          2.2",
        "  text to image         6.2 %       31.2 %       62.5 %         12.5       1234.6",
    ]
    assert validation_text(3, metrics).splitlines()[0] == "Step 3, validation:"
    plain = validation_text(7, {"val_loss": 0.51234, "val_accuracy": 0.5, "val_top_5_accuracy": 1.0})
    assert plain == "Step 7, validation: loss 0.5123, accuracy 50.0 %, top 5 accuracy 100.0 %"
    assert validation_text(7, {}) == "Step 7, validation: left out"
