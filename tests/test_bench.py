"""The benchmark with a fake clock and fake workers: turns, ratios, plans, tables."""

import dataclasses
import json
import math
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from bench_results import OURS_ON_JAX, OURS_ON_TORCH, REPORT, THEIRS_ON_JAX, TIMM, fields, result

import clip
from zoo import list_models, model_info
from zoo.bench import bench, harness, timing, to_text
from zoo.bench.cases import CAPTIONS, KERAS_APPLICATIONS, OURS, PEERS, SEARCHES, Case, Result, combine, flops_of
from zoo.bench.harness import best_rate, compare, plan, run_group
from zoo.bench.jobs import similarities
from zoo.bench.machine import command_of, describe_processor
from zoo.bench.presets import OPTIMIZATIONS, PRESETS, REPORTED, reported_figure
from zoo.bench.processes import WorkerError
from zoo.bench.table import plot, write
from zoo.bench.timing import percentile, ratios, take_turn, take_turns, timed, warm_up
from zoo.utils import report


@pytest.fixture
def clock(monkeypatch):
    """A fake clock for `timing`; only the test and sleeping advance it."""
    clock = SimpleNamespace(now=100.0, log=[])

    def sleep(seconds):
        clock.now += seconds
        clock.log.append("rest")

    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: clock.now, sleep=sleep))
    return clock


def fake_work(clock, name, seconds):
    """Return a function whose calls take `seconds`, one after the other."""
    left = iter(seconds)

    def call():
        clock.log.append(name)
        clock.now += next(left)

    return call


def test_timed_returns_seconds_and_result(clock):
    def work(answer=42):
        clock.now += 1.5
        return answer

    assert timed(work) == (1.5, 42)


def test_a_turn_is_one_long_call_or_several_short_ones(clock):
    assert take_turn(fake_work(clock, "long", [3.0, 4.0])) == [3.0]
    assert take_turn(fake_work(clock, "short", [0.125] * 9), at_least=0.5) == [0.125] * 4
    assert take_turn(fake_work(clock, "short", [0.125] * 9), at_least=0) == [0.125]


def test_warm_up_ends_when_three_calls_agree_or_time_is_up(clock):
    assert warm_up(fake_work(clock, "a", [0.9, 0.5, 0.101, 0.1, 0.1, 0.1])) == 5
    assert warm_up(fake_work(clock, "b", [0.5, 0.1] * 20)) == timing.WARM_UP_CALLS
    assert warm_up(fake_work(clock, "c", [4.0, 4.5, 5.0])) == 2


def test_cases_take_turns_with_a_rest_before_each_and_in_changing_order(clock):
    seconds = [float(n) for n in range(1, 9)]
    a, b = fake_work(clock, "a", seconds), fake_work(clock, "b", [10 * n for n in seconds])
    runs = take_turns({"a": lambda: [timed(a)[0]], "b": lambda: [timed(b)[0]]}, rounds=8)
    rounds = [clock.log[at : at + 4] for at in range(0, 32, 4)]
    assert {tuple(turn) for turn in rounds} == {("rest", "a", "rest", "b"), ("rest", "b", "rest", "a")}
    assert runs == {"a": [[n] for n in seconds], "b": [[10 * n] for n in seconds]}


def test_ratios_compare_the_medians_of_each_round():
    ours, theirs = [[1.0], [8.0, 10.0, 90.0], [2.0]], [[3.0], [20.0], [9.0, 7.0]]
    assert ratios(theirs, ours) == [3.0, 2.0, 4.0]
    with pytest.raises(ValueError):
        ratios([[1.0]], [[1.0], [2.0]])


def test_percentiles_are_measured_times():
    rounds = [[float(n) for n in range(1, 8)], [8.0, 9.0, 10.0]]
    random.Random(0).shuffle(rounds[0])
    assert (percentile(rounds, 0.5), percentile(rounds, 0.9), percentile([[4.0]], 0.9)) == (5.0, 9.0, 4.0)


# Plans


def test_every_combination_is_a_case_and_ours_come_first():
    cases = combine(["convnext_tiny"], {"backend": ("jax", "torch"), "peer": ("keras_applications", "timm")})
    assert fields(cases, "library", "backend", "mode") == [
        (OURS, "jax", "compiled"),
        (OURS, "torch", "eager"),
        ("keras_applications", "jax", "compiled"),
        ("keras_applications", "torch", "eager"),
        ("timm", "torch", "eager"),  # once, regardless of the backends
    ]


def test_unsupported_combinations_are_dropped():
    cases = combine(
        ["convnextv2_atto"], {"runtime": ("keras", "onnx"), "dtype": ("float32", "bfloat16", "int8"), "peer": ("timm",)}
    )
    assert fields(cases, "library", "runtime", "dtype") == [
        (OURS, "keras", "float32"),
        (OURS, "keras", "bfloat16"),
        (OURS, "onnx", "float32"),
        (OURS, "onnx", "int8"),
        ("timm", "keras", "float32"),
        ("timm", "keras", "bfloat16"),
    ]


def test_peers_are_compared_with_every_runtime_of_ours():
    options = {"runtime": ("onnx",), "dtype": ("int8",), "peer": ("open_clip",), "part": ("pictures",)}
    assert fields(combine(["ViT-B-32"], options), "library", "runtime", "dtype", "mode") == [
        (OURS, "onnx", "int8", "compiled"),
        ("open_clip", "keras", "float32", "eager"),
    ]
    assert combine(["ViT-B-32"], {**options, "dtype": ("bfloat16",)}) == []


def test_only_our_forward_passes_are_folded():
    options = {"runtime": ("folded",), "backend": ("jax", "torch"), "peer": ("keras_applications", "timm")}
    assert fields(combine(["resnet50"], options), "library", "backend", "mode", "runs_on") == [
        (OURS, "jax", "compiled", "jax, folded"),
        (OURS, "torch", "eager", "torch, folded"),
        ("keras_applications", "jax", "compiled", "jax"),
        ("keras_applications", "torch", "eager", "torch"),
        ("timm", "torch", "eager", "torch"),
    ]
    assert combine(["resnet50"], {**options, "train": (True,)}) == []
    assert combine(["ViT-B-32"], {"runtime": ("folded",), "part": ("pictures", "search", "captions")}) == []


def test_defaults_come_from_the_model():
    (case,) = combine(["clip/convnext_base_w"], {})
    assert (case.part, case.image_size, case.library) == ("pair", 256, OURS)
    ours, peer = combine(["resnet50"], {"peer": None})
    assert (ours.part, ours.image_size, peer.library) == ("classifier", 224, "keras_applications")
    assert fields(combine(["resnet50"], {"peer": ("none",)}), "library") == [(OURS,)]


def test_cases_of_the_same_model_and_batch_size_form_a_group():
    groups = plan(
        ("convnext_tiny", "convnextv2_tiny"), {"batch_size": (1, 8), "peer": ("timm",), "backend": ("torch",)}
    )
    assert [fields(group, "name", "batch_size", "library") for group in groups] == [
        [(name, size, OURS), (name, size, "timm")] for name in ("convnext_tiny", "convnextv2_tiny") for size in (1, 8)
    ]


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_name_existing_models(preset):
    groups = plan((), {"backend": ("torch",)}, preset)
    cases = [case for group in groups for case in group]
    assert all(flops_of(case) > 0 for case in cases if case.part not in (*SEARCHES, *CAPTIONS))
    assert all(len(group) > 1 for group in groups), "nothing to compare with"
    given = plan((), {"backend": ("torch",), "batch_size": (2,)}, preset)
    assert {case.batch_size for group in given for case in group} == {2}


def test_presets_have_the_cases_of_their_tables():
    (group, other) = plan((), {"backend": ("torch",)}, "towers")
    assert fields(group, "name", "batch_size") == [("clip/ViT-B-32", 1), ("clip/convnext_v2_tiny", 1)]
    assert fields(other, "batch_size") == [(32,), (32,)]
    (group,) = plan((), {"backend": ("torch",)}, "runtimes")
    assert fields(group, "runs_on", "dtype") == [
        ("torch", "float32"),
        ("torch", "float16"),
        ("ONNX Runtime", "float32"),
        ("ONNX Runtime", "float16"),
    ]


def test_names_of_peers_exist():
    assert set(KERAS_APPLICATIONS) <= set(list_models())
    assert {peer for sweeps in PRESETS.values() for sweep in sweeps for peer in sweep.get("peer", ())} <= {
        *PEERS,
        "none",
    }


def test_flops_depend_on_part_and_image_size():
    tiny = model_info("convnext_tiny").flops
    assert flops_of(Case("convnext_tiny")) == tiny
    assert flops_of(Case("convnext_tiny", train=True)) == 3 * tiny
    assert flops_of(Case("resnet50", image_size=448)) == pytest.approx(4 * model_info("resnet50").flops, rel=1e-3)
    image, text, pair = (flops_of(Case("clip/ViT-B-32", part=part)) for part in ("image", "text", "pair"))
    assert image + text == pair == clip.flops(clip.VARIANTS["ViT-B-32"])
    assert flops_of(Case("clip/ViT-B-32", part="zero-shot")) == image


@pytest.mark.parametrize(
    ("names", "options", "complaint"),
    [
        ((), {}, "Name a model, or a preset: towers"),
        (("convnext_tinny",), {}, "Unknown model 'convnext_tinny'. Did you mean"),
        (("convnext_tiny",), {"part": ("text",)}, "convnext_tiny is a classifier and has no part 'text'"),
        (("ViT-B-32",), {"part": ("classifier",)}, "clip/ViT-B-32 is a CLIP model and has no part 'classifier'"),
        (
            ("ViT-B-32",),
            {"part": ("image",), "train": True, "runtime": ("onnx",), "dtype": ("bfloat16",)},
            "no supported case",
        ),
        (
            ("ViT-B-32",),
            {"part": ("captions",), "runtime": ("folded",)},
            "no supported case.*folded support only forward",
        ),
        (
            ("resnet50",),
            {"dtype": ("int8",)},
            "`zoo bench resnet50 --dtype int8` has no supported case: int8 needs --runtime onnx",
        ),
        (("resnet50",), {"dtype": ("float8",)}, "dtype must be one of 'float32'.*got 'float8'"),
        (("resnet50",), {"peer": ("timmm",)}, "peer must be one of 'timm'.*got 'timmm'"),
        (("resnet50",), {"backend": ("theano",)}, "Unknown backend 'theano'"),
        (("resnet50",), {"batch_size": (0,)}, "batch_size must be positive, got 0"),
        (("resnet50",), {"threads": 10_000}, "threads must be 1 to .*got 10000"),
        ((), {"preset": "tower"}, "preset must be one of 'towers'.*got 'tower'"),
    ],
)
def test_bad_options_are_refused_before_anything_runs(names, options, complaint, monkeypatch):
    monkeypatch.setattr(harness, "Worker", lambda case: pytest.fail(f"started {case}"))
    with pytest.raises(ValueError, match=complaint):
        bench(names, **options)


def test_a_missing_peer_names_the_package_to_install(monkeypatch):
    monkeypatch.setattr(harness.importlib.util, "find_spec", lambda *_: None)
    with pytest.raises(ValueError, match="peer 'open_clip' is not installed: pip install open_clip_torch"):
        harness.check_options({"peer": ("open_clip",)})


# Results


def test_our_cases_are_compared_with_peers_of_the_same_work():
    results = [OURS_ON_JAX, OURS_ON_TORCH, THEIRS_ON_JAX, TIMM]
    found = [(ratio.case, ratio.other, ratio.median, ratio.low, ratio.high) for ratio in compare(results)]
    assert found == [
        (0, 2, 3.0, 2.0, 4.0),  # median of the rounds' ratios; the ratio of the medians would be 8 / 2
        (0, 3, 0.5, 0.4, 2.0),
        (1, 3, 1.0, 0.8, 8.0),  # keras.applications on JAX is not compared with ours on torch
    ]


def test_without_peers_the_first_case_is_compared_with_the_others_per_item():
    one, eight = result([[1.0], [1.0]], batch_size=1), result([[4.0], [2.0]], batch_size=8)
    failed = result([], batch_size=16, error="out of memory")
    (ratio,) = compare([failed, one, eight])
    assert (ratio.case, ratio.other, ratio.median) == (1, 2, 0.375)  # 0.5 and 0.25 s an item against 1 s
    assert compare([failed]) == []


def test_peers_have_the_same_precision_or_float32_for_int8():
    half = result([[1.0]], dtype="float16")
    int8 = result([[1.5]], dtype="int8", runtime="onnx")
    peer, half_peer = result([[3.0]], library="timm"), result([[8.0]], library="timm", dtype="float16")
    found = compare([half, int8, peer, half_peer])
    assert [(ratio.case, ratio.other, ratio.median) for ratio in found] == [(0, 3, 8.0), (1, 2, 2.0)]


def test_the_share_refers_to_the_best_rate():
    rates = {"torch, float32": 1e9, "jax, float32": 4e9, "torch, bfloat16": 9e9, "torch, float16": 1e6}
    assert best_rate(Case("resnet50"), rates) == 4e9
    assert best_rate(Case("resnet50", dtype="bfloat16"), rates) == 9e9
    assert best_rate(Case("resnet50", dtype="float16"), rates) == 4e9  # float32 counts as well
    assert best_rate(Case("resnet50", dtype="int8", runtime="onnx"), rates) is None


class FakeWorker:
    """A worker without a process."""

    ready = {
        "call_flops": 1e9,
        "device": "cpu",
        "parameters": 10,
        "build_seconds": 0.5,
        "first_seconds": 2.0,
        "library_bytes": 1,
        "similarities": None,
    }
    last = {"host_bytes": 3, "device_bytes": None}
    closed: list[Case] = []

    def __init__(self, case, limits=None):
        if case.library == "timm":
            raise WorkerError("ImportError: no timm")
        self.case = case

    def take_turn(self):
        if self.case.dtype == "float16":
            raise WorkerError("its process ended with code -9")
        return [0.5]

    def close(self):
        self.closed.append(self.case)


@pytest.fixture
def fake_workers(monkeypatch, clock):
    monkeypatch.setattr(harness, "Worker", FakeWorker)
    monkeypatch.setattr(FakeWorker, "closed", [])


def test_a_case_that_cannot_be_built_does_not_stop_the_others(fake_workers):
    cases = [Case("resnet50", batch_size=4), Case("resnet50", library="timm", batch_size=4)]
    ours, peer = run_group(cases, 3, {"torch, float32": 1e12})
    assert (ours.p50, ours.items_per_second, ours.rounds) == (0.5, 8.0, ((0.5,),) * 3)
    assert ours.share == pytest.approx(8 * model_info("resnet50").flops / 1e12)
    assert (peer.error, peer.p50) == ("ImportError: no timm", None)
    assert FakeWorker.closed == cases[:1]


def test_a_process_that_dies_fails_its_group(fake_workers):
    cases = [Case("resnet50"), Case("resnet50", dtype="float16")]
    results = run_group(cases, 3, {})
    assert ["code -9" in result.error for result in results] == [True, True]
    assert FakeWorker.closed == cases


def test_precisions_are_compared_with_float32_in_keras():
    half = {"dtype": "float16"}
    given = [((1.0, 0.5), {}), ((1.0, 0.25), half), ((0.5, 0.5), {"runtime": "onnx"})]
    given += [((0.0, 0.0), {**half, "batch_size": 16}), (None, {**half, "library": "timm"})]  # nothing to compare with
    results = [dataclasses.replace(result([[1.0]], **case), similarities=values) for values, case in given]
    found = harness.with_differences([*results, result([], error="it broke")])
    assert [r.difference for r in found] == [None, 0.25, 0.5, None, None, None]
    assert "| 2.5e-01 |" in to_text(dataclasses.replace(REPORT, results=tuple(found), ratios=()))
    assert "similarity" not in to_text(REPORT)


def test_similarities_are_computed_for_our_outputs_only():
    rows = np.random.default_rng(3).standard_normal((20, 16)).astype("float32")
    case = Case("resnet50")
    found = similarities(case, [2 * rows])
    assert found == pytest.approx(similarities(case, rows), abs=1e-7) and len(found) == 64
    assert all(abs(cosine) < 1 for cosine in found) and len({round(cosine, 6) for cosine in found}) == 64
    assert similarities(dataclasses.replace(case, train=True), rows) is None
    assert similarities(dataclasses.replace(case, library="timm"), rows) is None


def test_limits_come_from_the_user_or_the_preset():
    assert harness.choose_limits(None, None, None) == (None, None)
    assert harness.choose_limits("scaling", None, 2.5) == (60.0, 2.5e9)
    with pytest.raises(ValueError, match="limit must be positive, got -1"):
        harness.choose_limits(None, -1, None)


def test_presets_print_the_reported_figures():
    for preset, table in REPORTED.items():
        cases = [case for group in plan((), {"backend": ("torch",)}, preset) for case in group]
        assert set(table.figures) <= {tuple(getattr(case, field) for field in table.fields) for case in cases}
    one = result([[0.5]], name="clip/ViT-B-32", part="pair", batch_size=1)
    text = to_text(dataclasses.replace(REPORT, preset="towers", results=(one,), ratios=()))
    assert "| 16.35 ms, 592 MB |" in text and "an NVIDIA GPU that the report does not name (151.28 M" in text
    assert "eported" not in to_text(REPORT)


def test_optimizations_have_the_figures_of_their_six_tables():
    groups = plan((), {"backend": ("torch",)}, "optimizations")
    texts = {reported_figure("optimizations", case) for group in groups for case in group}
    figures = {figure for name in OPTIMIZATIONS for figure in REPORTED[name].figures.values()}
    assert [figure for figure in figures if not any(figure in text for text in texts)] == []
    assert "1,234 a second; 1,265 a second" in texts  # ViT-B-32 at batch 16 stands in two tables


def test_nothing_timed_is_an_error(fake_workers):
    with pytest.raises(ValueError, match="No case could be timed.*code -9"):
        bench(["resnet50"], dtype=["float16"], peer=["none"], backend=["torch"])


# Reports


def test_the_table_shows_what_differs_and_states_the_rest_once():
    text = to_text(REPORT)
    assert "```sh\nzoo bench convnext_tiny\n```" in text
    assert "jax, float32 368" in text
    assert "In all lines: part classifier, mode compiled, dtype float32, device cpu, batch 8, pixels 224." in text
    header, rule, ours, peer = [line for line in text.splitlines() if line.startswith("|")][:4]
    assert header.count("|") == rule.count("|") == ours.count("|") == peer.count("|")
    cells = dict(zip(header.split(" | "), peer.split(" | "), strict=True))
    assert (cells["library"], cells["p50 ms"], cells["a second"]) == ("keras_applications", "8,000", "1.0")
    assert "| convnext_tiny, zoo, jax | convnext_tiny, keras_applications, jax | **3.00×** | 2.00 to 4.00 |" in text
    assert text.endswith("batch 8, 224 px: no such file")


def test_the_best_batch_size_is_shown_if_several_were_timed():
    one, eight, more = (result([[s]], batch_size=n) for n, s in ((1, 1.0), (8, 2.0), (16, 5.0)))
    report = dataclasses.replace(REPORT, results=(one, eight, more, OURS_ON_JAX), ratios=())
    assert "Best batch size:\n\n* convnext_tiny, zoo, torch: batch 8, 4.0 a second" in to_text(report)
    assert "Best batch" not in to_text(REPORT)


def test_json_holds_every_figure():
    report = json.loads(json.dumps(dataclasses.asdict(REPORT)))
    assert report["results"][0]["rounds"] == [[1.0], [10.0], [2.0]]
    assert report["results"][1]["case"]["library"] == "keras_applications"


def test_the_command_repeats_the_run():
    options = {"batch_size": (1, 8), "peer": ("timm",)}
    command = command_of(("resnet50",), options, train=True, rounds=None, smoke=False, output="a folder")
    assert command == "zoo bench resnet50 --batch-size 1,8 --peer timm --train --output 'a folder'"


def test_the_processor_is_described_with_its_widest_vectors():
    cpu = "processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu avx2 fma{}\n\n"
    assert describe_processor(2 * cpu.format("")) == "AMD EPYC, AVX2"
    assert describe_processor(cpu.format(" avx512f avx512dq")) == "AMD EPYC, AVX-512"
    assert describe_processor("processor\t: 0\nFeatures\t: fp asimd\n").endswith(", NEON")
    assert describe_processor("") != ""


def test_report_files_are_written(tmp_path):
    pytest.importorskip("matplotlib")
    write(REPORT, tmp_path / "new")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["bench.json", "bench.md", "bench.png"]
    assert (tmp_path / "new" / "bench.md").read_text(encoding="utf-8") == to_text(REPORT) + "\n"


def test_scaling_plots_time_and_memory_of_each_sweep(monkeypatch):
    cases = [case for group in plan((), {"backend": ("jax", "torch")}, "scaling") for case in group]
    skipped = next(case for case in cases if (case.backend, case.batch_size) == ("torch", 64))
    results = [
        Result(case, flops=flops_of(case), items_per_second=1e3 * case.batch_size, host_bytes=10**6 * case.image_size)
        for case in cases
        if case != skipped
    ]
    drawn = []
    monkeypatch.setattr(report, "plot_panels", lambda _, panels: drawn.extend(panels))
    plot(dataclasses.replace(REPORT, preset="scaling", results=tuple(results), ratios=()), Path("nowhere"))
    assert [(panel.title, panel.xlabel) for panel in drawn] == [
        (title, x) for x in ("batch size", "pixels", "GFLOP an image") for title in ("ms an image", "peak MB")
    ]
    time_of_batches, _, _, memory_of_pixels, *_ = drawn
    assert time_of_batches.x == [1, 2, 4, 8, 16, 32, 64]
    assert time_of_batches.curves["jax"] == [1 / size for size in time_of_batches.x]
    assert time_of_batches.curves["torch"][:-1] == time_of_batches.curves["jax"][:-1]
    assert math.isnan(time_of_batches.curves["torch"][-1])  # a skipped case breaks the curve
    assert memory_of_pixels.curves == dict.fromkeys(("jax", "torch"), [96, 160, 224, 288, 384])
