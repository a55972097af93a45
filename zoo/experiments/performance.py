"""Experiment 7: latency, throughput and memory by batch size, and the effect of lower precision."""

import contextlib
import ctypes
import functools
import io
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clip import prompts_for
from zoo.bench.machine import on_cuda, peak_device_bytes, resident_bytes
from zoo.bench.timing import percentile, take_turn, take_turns, timed, warm_up
from zoo.data.preprocess import batch
from zoo.experiments.context import Context, Outcome
from zoo.inference.pipeline import ClipPipeline
from zoo.utils import report
from zoo.utils.report import Panel, percent, plot_panels

BATCHES, SMOKE_BATCHES = (1, 2, 4, 8, 16, 32, 64), (1, 4)
PUBLISHED_THROUGHPUT = {1: 148, 4: 465, 8: 994, 16: 1234, 32: 1304, 64: 1608}  # ViT-B/32 on an RTX 4060 laptop
PUBLISHED_DIFFERENCE = 0.000028  # float16 against float32, ViT-L/14, on the same
PRECISIONS = (("keras", "bfloat16"), ("keras", "float16"), ("onnx", "float32"), ("onnx", "int8"))
ROUNDS, SMOKE_ROUNDS, TURN_SECONDS = 7, 1, 0.05
PRECISION_BATCH = 16


def run(context: Context) -> Outcome:
    rounds, batches = (SMOKE_ROUNDS, SMOKE_BATCHES) if context.smoke else (ROUNDS, BATCHES)
    pixels, texts = inputs(context, max(batches))
    latency = _latencies(context, pixels, texts, rounds)
    throughput = {
        "images": _by_batch(lambda count: context.pipeline.encoder.embed_batches([pixels[:count]]), batches, rounds),
        "texts": _by_batch(lambda count: context.pipeline.encoder.embed_texts(texts[:count]), batches, rounds),
    }
    precisions = _precision_rows(context, pixels[:PRECISION_BATCH], texts, rounds)
    metrics = {
        "image_size": pixels.shape[1],
        "rounds": rounds,
        "latency": latency,
        "throughput": throughput,
        "precision": precisions,
        "precision_pictures": min(PRECISION_BATCH, len(pixels)),
        "short_texts": short_texts(context, texts, rounds),
    }
    path = context.folder / "performance-throughput.png"
    plot_panels(path, panels(throughput))
    single, best = throughput["images"][0], max(row["per_second"] for row in throughput["images"])
    headline = (f"images/s in batches; one image takes {single['milliseconds']:.1f} ms", f"{best:,.0f}")
    return Outcome("Speed, memory and precision", headline, metrics, describe(metrics, path))


def inputs(context: Context, count: int) -> tuple[np.ndarray, list[str]]:
    """Return (float32 (count, H, W, 3), count prompts), repeating the images and prompts of the main data."""
    data = context.main
    chosen = np.resize(np.arange(len(data.labels)), count)
    images = [data.thumbnail(int(i)) for i in chosen]
    prompts = [text for row in zip(*prompts_for(data.names, data.data.templates), strict=True) for text in row]
    return batch(images, context.pipeline.encoder.spec), [prompts[i % len(prompts)] for i in range(count)]


def _latencies(context: Context, pixels: np.ndarray, texts: list[str], rounds: int) -> dict[str, dict]:
    """Return the milliseconds of single calls, measured in alternating rounds."""
    pipeline, names = context.pipeline, context.main.names
    file = io.BytesIO()
    Image.fromarray(context.main.thumbnail(0)).save(file, "PNG")
    jobs = {
        "one picture encoded": lambda: pipeline.encoder.embed_batches([pixels[:1]]),
        "one sentence encoded": lambda: pipeline.encoder.embed_texts(texts[:1]),
        "one sentence from the cache": lambda: pipeline.embed_texts(texts[:1]),
        f"one PNG decoded and classified among {len(names)}": lambda: pipeline.classify([file.getvalue()], names),
    }
    return measure(jobs, rounds)


def measure(jobs: Mapping[str, Callable], rounds: int) -> dict[str, dict[str, float]]:
    """Return {job: milliseconds of the first call, and the median and 95th percentile of the later ones}."""
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


def _by_batch(encode: Callable[[int], np.ndarray], batches: tuple[int, ...], rounds: int) -> list[dict]:
    """Return one row per batch size: time, throughput and memory of a call."""
    memory = {count: _call_memory(functools.partial(encode, count)) for count in batches}
    times = measure({str(count): functools.partial(encode, count) for count in batches}, rounds)
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


def _call_memory(function: Callable) -> int | None:
    """Return the peak memory of a call in bytes; call it with small batches first.

    On an accelerator it is the peak so far, weights included; of a process on Linux, what the call adds. None
    elsewhere, and with XLA on the CPU, which never returns memory.
    """
    import keras

    function()  # compiles, which needs memory too
    backend = keras.backend.backend()
    if on_cuda(backend):
        return peak_device_bytes(backend)
    if backend == "jax":
        return None
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)  # returns what the allocator kept from earlier calls
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak
        held = resident_bytes()
        function()
        peak = resident_bytes(peak=True)
        return None if held is None or peak is None else max(0, peak - held)
    return None


def _precision_rows(context: Context, pixels: np.ndarray, texts: list[str], rounds: int) -> list[dict]:
    """Return the difference in cosines and the time of each precision and runtime, or why it cannot run here."""
    exact = context.pipeline
    rows = [{"runtime": "keras", "precision": "float32", **compare(exact, exact, pixels, texts, rounds)}]
    for runtime, precision in PRECISIONS[:1] if context.smoke else PRECISIONS:
        try:
            options: dict[str, Any] = {"runtime": runtime, "precision": precision, "cache": False}
            pipeline = ClipPipeline(context.pair, **options)
            row = compare(pipeline, exact, pixels, texts, rounds)
        except Exception as error:  # a library or a kernel may be missing
            row = {"error": " ".join(str(error).split())[:120]}
        rows.append({"runtime": runtime, "precision": precision, **row})
    return rows


def compare(pipeline: ClipPipeline, exact: ClipPipeline, pixels: np.ndarray, texts: list[str], rounds: int) -> dict:
    """Compare cosines and times of a pipeline with those of the exact one, in alternating rounds."""
    encoders = {"this": pipeline.encoder, "exact": exact.encoder}
    images = {name: functools.partial(encoder.embed_batches, [pixels]) for name, encoder in encoders.items()}
    cosines, expected = (images[name]() @ encoders[name].embed_texts(texts).T for name in encoders)
    times = measure(images, rounds)
    difference = np.abs(cosines - expected)
    return {
        "similarity": float(cosines.mean()),
        "mean_difference": float(difference.mean()),
        "largest_difference": float(difference.max()),
        "same_best_text": float((cosines.argmax(axis=1) == expected.argmax(axis=1)).mean()),
        "milliseconds": times["this"]["median"],
        "times_as_long": times["this"]["median"] / times["exact"]["median"],
    }


def short_texts(context: Context, texts: list[str], rounds: int) -> dict | None:
    """Compare texts cut after their end with texts of full length; None for towers that see the padding."""
    encoder = context.pipeline.encoder
    if not encoder.shortens:
        return None
    padded, few = replace(encoder, shortens=False), texts[:PRECISION_BATCH]
    times = measure({"short": lambda: encoder.embed_texts(few), "full": lambda: padded.embed_texts(few)}, rounds)
    return {
        "speedup": times["full"]["median"] / times["short"]["median"],
        "largest_difference": float(np.abs(encoder.embed_texts(few) - padded.embed_texts(few)).max()),
    }


def panels(throughput: dict) -> list[Panel]:
    x = [row["batch"] for row in throughput["images"]]
    axis: dict[str, Any] = {"x": x, "log_x": True, "xlabel": "batch size"}
    panels = [
        Panel(
            "Throughput, items/s", curves={k: [r["per_second"] for r in rows] for k, rows in throughput.items()}, **axis
        ),
        Panel(
            "Latency of a call, ms",
            curves={k: [r["milliseconds"] for r in rows] for k, rows in throughput.items()},
            **axis,
        ),
    ]
    taken = {kind: [row["bytes"] for row in rows] for kind, rows in throughput.items()}
    if None not in (*taken["images"], *taken["texts"]):
        panels.append(Panel("Memory of a call, MB", curves={k: [n / 1e6 for n in v] for k, v in taken.items()}, **axis))
    return panels


def describe(metrics: dict, path: Path) -> tuple[str, ...]:
    images, texts = metrics["throughput"]["images"], metrics["throughput"]["texts"]
    speed = max(row["speedup"] for row in images)
    short = metrics["short_texts"]
    cut = short and (
        f" Tokens after the end of a text, which a causal tower ignores, are cut: {short['speedup']:.1f}× as fast as "
        f"the full length; embeddings {difference(short['largest_difference'])}."
    )
    return (
        report.paragraph(
            f"Images of {metrics['image_size']} × {metrics['image_size']} pixels; medians of alternating rounds. "
            f"Batches encode up to {speed:.1f}× as many images per second as single images.{cut or ''}"
        ),
        report.table(
            ["", "median", "95th percentile", "first call"],
            [
                [name.replace("picture", "image"), *(duration(row[k]) for k in ("median", "p95", "first"))]
                for name, row in metrics["latency"].items()
            ],
        ),
        report.figure(path, "Throughput, latency and memory by batch size."),
        report.table(
            ["batch", "images", "images/s", "speed-up", "texts/s", "memory of a call", "published: ViT-B/32, RTX 4060"],
            [_throughput_row(image, text) for image, text in zip(images, texts, strict=True)],
        ),
        report.paragraph(
            f"Cosines of {metrics['precision_pictures']} images with prompts, compared with those of Keras in float32. "
            f"The published difference between float16 and float32 for ViT-L/14 is {PUBLISHED_DIFFERENCE:.6f}."
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
                "relative time",
            ],
            [_precision_row(row) for row in metrics["precision"]],
        ),
    )


def difference(largest: float) -> str:
    return f"differ by at most {largest:.1g}" if largest else "are bitwise equal"


def duration(milliseconds: float) -> str:
    return f"{milliseconds:.1f} ms" if milliseconds >= 1 else f"{1000 * milliseconds:.1f} µs"


def _throughput_row(image: dict, text: dict) -> list:
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


def _precision_row(row: dict) -> list[str]:
    if "error" in row:
        return [row["runtime"], row["precision"], f"not available: {row['error']}", *["–"] * 5]
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
