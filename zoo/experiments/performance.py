"""Experiment 7: latency, throughput by batch, memory, and what narrower numbers change."""

import contextlib
import ctypes
import functools
import io
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from clip import prompts_for
from zoo.bench.machine import on_cuda, peak_device_bytes, resident_bytes
from zoo.bench.timing import percentile, take_turn, take_turns, timed, warm_up
from zoo.data.preprocess import batch
from zoo.experiments.setting import Outcome, Setting
from zoo.inference.pipeline import ClipPipeline
from zoo.utils import report
from zoo.utils.report import Panel, percent, plot_panels

BATCHES, SMOKE_BATCHES = (1, 2, 4, 8, 16, 32, 64), (1, 4)
PUBLISHED_THROUGHPUT = {1: 148, 4: 465, 8: 994, 16: 1234, 32: 1304, 64: 1608}  # ViT-B/32 on an RTX 4060 laptop
PUBLISHED_DIFFERENCE = 0.000028  # float16 against float32, ViT-L/14, on the same
PRECISIONS = (("keras", "bfloat16"), ("keras", "float16"), ("onnx", "float32"), ("onnx", "int8"))
ROUNDS, SMOKE_ROUNDS, TURN_SECONDS = 7, 1, 0.05
PRECISION_BATCH = 16


def run(setting: Setting) -> Outcome:
    rounds, batches = (SMOKE_ROUNDS, SMOKE_BATCHES) if setting.smoke else (ROUNDS, BATCHES)
    pixels, texts = inputs(setting, max(batches))
    latency = latencies(setting, pixels, texts, rounds)
    throughput = {
        "images": by_batch(lambda count: setting.pipeline.encoder.embed_batches([pixels[:count]]), batches, rounds),
        "texts": by_batch(lambda count: setting.pipeline.encoder.embed_texts(texts[:count]), batches, rounds),
    }
    precisions = precision_rows(setting, pixels[:PRECISION_BATCH], texts, rounds)
    metrics = {
        "image_size": pixels.shape[1],
        "rounds": rounds,
        "latency": latency,
        "throughput": throughput,
        "precision": precisions,
        "precision_pictures": min(PRECISION_BATCH, len(pixels)),
        "short_texts": short_texts(setting, texts, rounds),
    }
    path = setting.folder / "performance-throughput.png"
    plot_panels(path, panels(throughput))
    single, best = throughput["images"][0], max(row["per_second"] for row in throughput["images"])
    headline = (f"pictures a second in batches; one alone takes {single['milliseconds']:.1f} ms", f"{best:,.0f}")
    return Outcome("Speed, memory and precision", headline, metrics, told(metrics, path))


def inputs(setting: Setting, count: int) -> tuple[np.ndarray, list[str]]:
    """(float32 (count, H, W, 3), count sentences): pictures and prompts of the main data, over and over."""
    subject = setting.main
    chosen = np.resize(np.arange(len(subject.labels)), count)
    pictures = [subject.picture(int(i)) for i in chosen]
    prompts = [text for row in zip(*prompts_for(subject.names, subject.data.templates), strict=True) for text in row]
    return batch(pictures, setting.pipeline.encoder.spec), [prompts[i % len(prompts)] for i in range(count)]


def latencies(setting: Setting, pixels: np.ndarray, texts: list[str], rounds: int) -> dict[str, dict]:
    """Milliseconds of single things, each taken in turn with the others."""
    pipeline, names = setting.pipeline, setting.main.names
    file = io.BytesIO()
    Image.fromarray(setting.main.picture(0)).save(file, "PNG")
    jobs = {
        "one picture encoded": lambda: pipeline.encoder.embed_batches([pixels[:1]]),
        "one sentence encoded": lambda: pipeline.encoder.embed_texts(texts[:1]),
        "one sentence from the cache": lambda: pipeline.embed_texts(texts[:1]),
        f"one PNG decoded and classified among {len(names)}": lambda: pipeline.classify([file.getvalue()], names),
    }
    return clocked(jobs, rounds)


def clocked(jobs: Mapping[str, Callable], rounds: int) -> dict[str, dict[str, float]]:
    """{job: milliseconds of its first call, and of the median and the slowest twentieth of those after it}."""
    firsts = {name: timed(job)[0] for name, job in jobs.items()}
    for job in jobs.values():
        warm_up(job)
    turns = {name: functools.partial(take_turn, job, TURN_SECONDS) for name, job in jobs.items()}
    return {
        name: {
            "first": 1000 * firsts[name],
            "median": 1000 * percentile(runs, 0.5),
            "p95": 1000 * percentile(runs, 0.95),
        }
        for name, runs in take_turns(turns, rounds, rest=0.0).items()
    }


def by_batch(encode: Callable[[int], np.ndarray], batches: tuple[int, ...], rounds: int) -> list[dict]:
    """A row a batch size: time, throughput, and the memory that one call takes."""
    memory = {count: call_memory(functools.partial(encode, count)) for count in batches}
    times = clocked({str(count): functools.partial(encode, count) for count in batches}, rounds)
    alone = times[str(batches[0])]["median"] / batches[0]
    return [
        {
            "batch": count,
            "milliseconds": times[str(count)]["median"],
            "per_second": 1000 * count / times[str(count)]["median"],
            "speedup": alone * count / times[str(count)]["median"],
            "bytes": memory[count],
        }
        for count in batches
    ]


def call_memory(function: Callable) -> int | None:
    """Bytes that a call takes at its height: of an accelerator, the most so far, weights included; of a process on
    Linux, what this call adds to it; None elsewhere, and with XLA, which gives back nothing that it once had. Go from
    small calls to large ones."""
    import keras

    function()  # compiles, which takes memory of its own
    backend = keras.backend.backend()
    if on_cuda(backend):
        return peak_device_bytes(backend)
    if backend == "jax":
        return None
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)  # gives back what the allocator keeps of earlier calls
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): sets the peak to what is held
        held = resident_bytes()
        function()
        return max(0, resident_bytes(peak=True) - held)
    return None


def precision_rows(setting: Setting, pixels: np.ndarray, texts: list[str], rounds: int) -> list[dict]:
    """What each precision and runtime changes in cosines, and how long it takes; those that cannot run here say why."""
    exact = setting.pipeline
    rows = [{"runtime": "keras", "precision": "float32", **compared(exact, exact, pixels, texts, rounds)}]
    for runtime, precision in PRECISIONS[:1] if setting.smoke else PRECISIONS:
        try:
            options = {"runtime": runtime, "precision": precision, "cache": False}
            pipeline = ClipPipeline(setting.loaded.model, preprocess=setting.loaded.info.preprocess, **options)
            row = compared(pipeline, exact, pixels, texts, rounds)
        except Exception as error:  # a library or a backend's kernel may be missing, and each says so in its own way
            row = {"error": " ".join(str(error).split())[:120]}
        rows.append({"runtime": runtime, "precision": precision, **row})
    return rows


def compared(pipeline: ClipPipeline, exact: ClipPipeline, pixels: np.ndarray, texts: list[str], rounds: int) -> dict:
    """Cosines and times of a pipeline beside the exact one's, which takes turns with it."""
    encoders = {"this": pipeline.encoder, "exact": exact.encoder}
    images = {name: functools.partial(encoder.embed_batches, [pixels]) for name, encoder in encoders.items()}
    cosines, expected = (images[name]() @ encoders[name].embed_texts(texts).T for name in encoders)
    times = clocked(images, rounds)
    difference = np.abs(cosines - expected)
    return {
        "similarity": float(cosines.mean()),
        "mean_difference": float(difference.mean()),
        "largest_difference": float(difference.max()),
        "same_best_text": float((cosines.argmax(axis=1) == expected.argmax(axis=1)).mean()),
        "milliseconds": times["this"]["median"],
        "times_as_long": times["this"]["median"] / times["exact"]["median"],
    }


def short_texts(setting: Setting, texts: list[str], rounds: int) -> dict | None:
    """Texts cut after their end beside texts of full length; None for towers that see the padding."""
    encoder = setting.pipeline.encoder
    if not encoder.shortens:
        return None
    whole, few = replace(encoder, shortens=False), texts[:PRECISION_BATCH]
    times = clocked({"short": lambda: encoder.embed_texts(few), "full": lambda: whole.embed_texts(few)}, rounds)
    return {
        "speedup": times["full"]["median"] / times["short"]["median"],
        "largest_difference": float(np.abs(encoder.embed_texts(few) - whole.embed_texts(few)).max()),
    }


def panels(throughput: dict) -> list[Panel]:
    x = [row["batch"] for row in throughput["images"]]
    axis = {"x": x, "log_x": True, "xlabel": "batch size"}
    panels = [
        Panel(
            "Encoded a second", curves={k: [r["per_second"] for r in rows] for k, rows in throughput.items()}, **axis
        ),
        Panel(
            "Milliseconds a call",
            curves={k: [r["milliseconds"] for r in rows] for k, rows in throughput.items()},
            **axis,
        ),
    ]
    taken = {kind: [row["bytes"] for row in rows] for kind, rows in throughput.items()}
    if None not in (*taken["images"], *taken["texts"]):
        panels.append(Panel("Memory of a call, MB", curves={k: [n / 1e6 for n in v] for k, v in taken.items()}, **axis))
    return panels


def told(metrics: dict, path) -> tuple[str, ...]:
    images, texts = metrics["throughput"]["images"], metrics["throughput"]["texts"]
    speed = max(row["speedup"] for row in images)
    short = metrics["short_texts"]
    cut = short and (
        f" Texts are cut after their end, which a causal tower looks at last: {short['speedup']:.1f} times as fast as "
        f"at full length; embeddings {differing(short['largest_difference'])}."
    )
    return (
        report.paragraph(
            f"Pictures of {metrics['image_size']} × {metrics['image_size']} pixels; jobs take turns, and medians are "
            f"given. A batch encodes up to {speed:.1f} times as many pictures a second as one at a time.{cut or ''}"
        ),
        report.table(
            ["", "median", "95 % within", "first call"],
            [
                [name, *(duration(row[k]) for k in ("median", "p95", "first"))]
                for name, row in metrics["latency"].items()
            ],
        ),
        report.figure(path, "Throughput, latency and memory by batch size."),
        report.table(
            [
                "batch",
                "images",
                "images a second",
                "times batch 1",
                "texts a second",
                "memory of a call",
                "published: ViT-B/32, RTX 4060",
            ],
            [throughput_row(image, text) for image, text in zip(images, texts, strict=True)],
        ),
        report.paragraph(
            f"Cosines of {metrics['precision_pictures']} pictures with sentences, beside those in float32 through "
            f"Keras. For comparison: {PUBLISHED_DIFFERENCE:.6f} between float16 and float32 is published for ViT-L/14."
        ),
        report.table(
            [
                "runtime",
                "precision",
                "mean similarity",
                "mean difference",
                "largest difference",
                "same best text",
                "time",
                "of float32",
            ],
            [precision_row(row) for row in metrics["precision"]],
        ),
    )


def differing(largest: float) -> str:
    return f"differ by {largest:.1g} at most" if largest else "are the same, bit for bit"


def duration(milliseconds: float) -> str:
    return f"{milliseconds:.1f} ms" if milliseconds >= 1 else f"{1000 * milliseconds:.1f} µs"


def throughput_row(image: dict, text: dict) -> list:
    taken = "–" if image["bytes"] is None else f"{image['bytes'] / 1e6:,.1f} MB"
    other = PUBLISHED_THROUGHPUT.get(image["batch"])
    return [
        image["batch"],
        duration(image["milliseconds"]),
        f"{image['per_second']:,.0f}",
        f"{image['speedup']:.2f}×",
        f"{text['per_second']:,.0f}",
        taken,
        f"{other:,}" if other else "–",
    ]


def precision_row(row: dict) -> list[str]:
    if "error" in row:
        return [row["runtime"], row["precision"], f"not here: {row['error']}", *["–"] * 5]
    return [
        row["runtime"],
        row["precision"],
        f"{row['similarity']:.6f}",
        f"{row['mean_difference']:.6f}",
        f"{row['largest_difference']:.6f}",
        percent(row["same_best_text"]),
        duration(row["milliseconds"]),
        f"{row['times_as_long']:.2f}×",
    ]
