"""The bars of the benchmark: which cases each compares, and how they are reported; and the captions."""

import contextlib
import dataclasses
import random

import pytest
from bench_results import REPORT, fields, result

from zoo import model_info
from zoo.bench import bars, uses
from zoo.bench.bars import compare_two
from zoo.bench.cases import OURS, Result, combine
from zoo.bench.harness import plan
from zoo.utils import report


def test_every_bar_has_its_cases_in_one_group_of_the_preset():
    groups = plan((), {}, "bars")
    for bar in bars.bars():
        sides = [bar.ours] if bar.floor else [bar.ours, bar.others]
        assert any(all(any(side(case) for case in group) for side in sides) for group in groups), bar.work


def test_a_bar_compares_the_fastest_of_both_sides():
    text = {"name": "clip/ViT-B-32", "part": "text"}
    results = [
        result([[5.0], [5.0], [5.0]], backend="jax", **text),
        result([[4.0], [4.0], [4.0]], backend="jax", runtime="folded", **text),
        result([[8.0], [12.0], [6.0]], backend="jax", library="keras_hub", **text),
        result([[2.0], [2.0], [6.0]], library="open_clip", **text),
        result([[1.0]], error="it broke", backend="torch", **text),
    ]
    measured = dataclasses.replace(REPORT, results=tuple(results), commands={"zoo list": 0.3, "zoo info x": 0.5})
    found = {(v.bar.work, v.bar.against): v for v in bars.judge(measured) if v.ratio is not None}
    work = "ViT-B-32 text tower, as built or folded, JAX"
    assert [(key, v.ratio, v.low, v.high, v.is_met) for key, v in found.items()] == [
        ((work, "keras-hub on JAX"), 2.0, 1.5, 3.0, True),
        ((work, "open_clip, torch"), 0.5, 0.5, 1.5, False),
    ]
    lines = bars.to_text(measured).splitlines()
    assert len(lines) == 2 + len(bars.bars()) + 2
    sides = "jax, folded 4,000 ms, open_clip, torch 2,000 ms"
    assert f"| {work} | open_clip, torch | ≥ 1 | **0.50** | 0.50 to 1.50 | {sides} | missed |" in lines
    assert [line.split(" | ")[-1] for line in lines[-2:]] == ["met |", "missed |"]
    assert sum(line.endswith("| not timed |") for line in lines) == len(bars.bars()) - 2


def test_the_floor_is_the_best_rate_of_any_backend():
    flops = model_info("convnext_tiny").flops
    ours = dataclasses.replace(result([[0.25], [0.5]]), flops=flops)
    slower = dataclasses.replace(result([[2.0], [2.0]], runtime="onnx"), flops=flops)
    rates = {"torch, float32": 1.0, "jax, float32": 8 * flops / 0.125, "jax, bfloat16": 1e30}
    verdicts = bars.judge(dataclasses.replace(REPORT, results=(slower, ours), rates=rates))
    (verdict,) = [v for v in verdicts if v.bar.floor and v.ratio is not None]
    assert (verdict.bar.work, verdict.ratio, verdict.is_met) == ("convnext_tiny, best backend or runtime", 2.0, False)


def test_the_plot_has_a_line_for_each_bar_measured(tmp_path, monkeypatch):
    drawn, draw = [], report.drawing

    @contextlib.contextmanager
    def drawing(path, width, height):
        with draw(path, width, height) as canvas:
            yield canvas
            drawn.extend(label.get_text() for label in canvas.axes[0].get_yticklabels())

    monkeypatch.setattr("zoo.utils.report.drawing", drawing)
    ours = result([[2.0], [4.0]], backend="jax", mode="compiled")
    theirs = result([[8.0], [8.0]], library="timm", mode="compiled")
    bars.draw(dataclasses.replace(REPORT, results=(ours, theirs)), tmp_path / "bars.png")
    assert drawn == [
        "convnext_tiny, JAX · timm, torch compiled · ≥ 1.3",
        "convnext_tiny, best backend or runtime · the floor · ≤ 1.7",
    ]
    assert (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")


def test_predict_takes_many_images_and_is_compared_per_item():
    (predict,) = combine(["convnextv2_atto"], {"mode": ("predict",), "batch_size": (32,), "backend": ("jax",)})
    assert predict.items == 256
    bare = result([[1.0]], backend="jax", mode="compiled", batch_size=32)
    slow = Result(predict, rounds=((10.0,),), p50=10.0, items_per_second=25.6)
    assert compare_two(slow, bare)[0] == 0.8


@pytest.mark.parametrize("is_mixed", [False, True])
def test_captions_are_ascii_or_every_second_is_not(is_mixed):
    drawn = uses.draw_captions(random.Random(0), 100, is_mixed)
    assert [caption.isascii() or "&amp;" in caption for caption in drawn[::2]] == [True] * 50
    assert sum(not caption.isascii() or "&amp;" in caption for caption in drawn) == (50 if is_mixed else 0)
    assert len(set(drawn)) == 100


def test_captions_and_image_files_are_compared_with_open_clip_only():
    options = {"peer": ("open_clip", "transformers"), "backend": ("jax", "torch"), "runtime": ("keras", "onnx")}
    cases = combine(["ViT-B-32"], {**options, "part": ("captions",)})
    assert fields(cases, "library", "runs_on") == [(OURS, "–"), ("open_clip", "–")]
    cases = combine(["ViT-B-32"], {**options, "part": ("pictures",)})
    assert fields(cases, "library", "runs_on") == [
        (OURS, "jax"),
        (OURS, "ONNX Runtime"),
        (OURS, "torch"),
        ("open_clip", "torch"),
    ]
