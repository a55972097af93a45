"""A benchmark report as Markdown, JSON and a plot."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

from zoo.bench import bars
from zoo.bench.cases import Case, Ratio, Report, Result
from zoo.bench.presets import REPORTED, SCALED, reported_figure
from zoo.bench.serving import ServeReport
from zoo.utils.files import atomic_write


class Column(NamedTuple):
    """A column of the table; a description that is the same for all results is printed once, above the table."""

    title: str
    text: Callable[[Result], str]
    is_figure: bool = True


def _work(result):
    return result.case.part + (", training" if result.case.train else "")


DESCRIPTIONS = (
    Column("model", lambda r: r.case.name, False),
    Column("part", _work, False),
    Column("library", lambda r: r.case.library, False),
    Column("runs on", lambda r: r.case.runs_on, False),
    Column("mode", lambda r: r.case.mode if r.case.runtime != "onnx" else "–", False),
    Column("dtype", lambda r: r.case.dtype, False),
    Column("device", lambda r: r.device or "–", False),
    Column("batch", lambda r: str(r.case.batch_size)),
    Column("pixels", lambda r: str(r.case.image_size)),
)


def _number(value, factor=1.0, digits=0):
    return "–" if value is None else f"{value * factor:,.{digits}f}"


def _milliseconds(seconds):
    return _number(seconds, 1e3, 1 if seconds is not None and seconds < 0.1 else 0)


FIGURES = (
    Column("build s", lambda r: _number(r.build_seconds, digits=1)),
    Column("first call s", lambda r: _number(r.first_seconds, digits=1)),
    Column("p50 ms", lambda r: _milliseconds(r.p50)),
    Column("p90 ms", lambda r: _milliseconds(r.p90)),
    Column("a second", lambda r: _number(r.items_per_second, digits=1)),
    Column("of the matrix rate", lambda r: "–" if r.share is None else f"{r.share:.0%}"),
    Column("peak MB", lambda r: _number(r.host_bytes, 1e-6)),
    Column("libraries MB", lambda r: _number(r.library_bytes, 1e-6)),
    Column("device MB", lambda r: _number(r.device_bytes, 1e-6)),
    Column("parameters M", lambda r: _number(r.parameters, 1e-6, 2)),
    Column("GFLOP an item", lambda r: _number(r.flops, 1e-9, 2)),
    Column("similarity differs by", lambda r: "–" if r.difference is None else f"{r.difference:.1e}"),
)
ALWAYS = ("model", "library", "runs on")


def to_text(report: Report | ServeReport) -> str:
    """Return the report in Markdown: command, machine, a row per case, a row per ratio."""
    if isinstance(report, ServeReport):
        return report.to_text()
    blocks = [f"```sh\n{report.command}\n```", _machine(report)]
    good = [result for result in report.results if not result.error]
    varying, constant = _split(good)
    if constant:
        blocks.append(f"In all lines: {', '.join(constant)}.")
    reported = REPORTED.get(report.preset or "")
    figures = [
        *FIGURES,
        *([Column("reported", lambda r: reported_figure(str(report.preset), r.case))] if reported else []),
    ]
    figures = [column for column in figures if any(column.text(result) != "–" for result in good)]
    blocks.append(_table([*varying, *figures], good))
    if reported:
        note = f" ({reported.note})" if reported.note else ""
        blocks.append(f"Reported: figures of an earlier report, on {reported.hardware}{note}; not from this machine.")
    if report.ratios:
        blocks.append(_ratios(report, [column for column in varying if column.title != "device"]))
    blocks += _best_batches(good)
    if report.preset == "bars":
        blocks.insert(2, bars.to_text(report))
    failed = [
        f"* {_name(result.case, DESCRIPTIONS, result)}: {result.error}" for result in report.results if result.error
    ]
    if failed:
        blocks.append("\n".join(["Not timed:", "", *failed]))
    return "\n\n".join(blocks)


def _machine(report):
    lines = [f"* {what}: {value}" for what, value in report.machine.items()]
    if report.rates:
        rates = ", ".join(f"{key} {rate / 1e9:,.0f}" for key, rate in report.rates.items())
        lines.append(f"* matrix products, GFLOP/s: {rates}")
    return "\n".join(lines)


def _split(results):
    """Return (columns whose text differs between results, ["dtype float32", "batch 8", …] of the others)."""
    varying, constant = [], []
    for column in DESCRIPTIONS:
        texts = {column.text(result) for result in results}
        if column.title in ALWAYS or len(texts) > 1:
            varying.append(column)
        else:
            constant.append(f"{column.title} {texts.pop()}")
    return varying, constant


def _table(columns, results):
    rule = "|".join("--:" if column.is_figure else "---" for column in columns)
    rows = [[column.text(result) for column in columns] for result in results]
    lines = [f"| {' | '.join(row)} |" for row in ([column.title for column in columns], *rows)]
    return "\n".join([lines[0], f"|{rule}|", *lines[1:]])


def _ratios(report, columns):
    """Return the table of ratios, per item, with their range over rounds."""
    lines = ["| this | against | times as fast | over rounds |", "|---|---|--:|--:|"]
    for ratio in report.ratios:
        one, other = (_name(report.results[i].case, columns, report.results[i]) for i in (ratio.case, ratio.other))
        lines.append(f"| {one} | {other} | **{ratio.median:.2f}×** | {ratio.low:.2f} to {ratio.high:.2f} |")
    return "\n".join(lines)


def _best_batches(results):
    """Return, for cases timed at several batch sizes, a list of the sizes with the most items per second."""
    sizes: dict[Case, list[Result]] = {}
    for result in results:
        sizes.setdefault(replace(result.case, batch_size=0), []).append(result)
    best = [max(found, key=lambda r: r.items_per_second or 0.0) for found in sizes.values() if len(found) > 1]
    if not best:
        return []
    columns = [column for column in _split(best)[0] if column.title != "batch"]
    lines = (
        f"{_name(r.case, columns, r)}: batch {r.case.batch_size}, {r.items_per_second:,.1f} a second" for r in best
    )
    return ["Best batch size:\n\n" + "\n".join(f"* {line}" for line in lines)]


def _name(case: Case, columns, result: Result):
    """Return a label of a case made of these columns."""
    before = {"batch": "batch ", "pixels": ""}
    after = {"pixels": " px"}
    words = [f"{before.get(c.title, '')}{c.text(result)}{after.get(c.title, '')}" for c in columns]
    return ", ".join(word for word in words if word != "–") or case.name


def write(report: Report, folder: Path) -> None:
    """Write bench.md, bench.json and, if matplotlib is installed, bench.png."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / "bench.md", "w") as file:
        file.write(to_text(report) + "\n")
    with atomic_write(folder / "bench.json", "w") as file:
        json.dump(asdict(report), file, indent=1, ensure_ascii=False)
    try:
        plot(report, folder / "bench.png")
    except ImportError:
        print("bench.png needs matplotlib: pip install 'convnext-clip-zoo[report]'", flush=True)


# Plots.


def plot(report: Report, path: Path) -> None:
    """Plot curves for the preset `scaling`, ratios for `bars`, times otherwise."""
    if report.preset == "scaling":
        _plot_scaling(report, path)
    elif report.preset == "bars":
        bars.draw(report, path)
    else:
        _plot_bars(report, path)


def _plot_bars(report, path):
    """Plot milliseconds per item, a bar per case, labelled with the ratios of our cases to it."""
    from zoo.utils.report import BLUE, GREY, drawing

    results = [result for result in report.results if not result.error]
    columns, _ = _split(results)
    columns = [column for column in columns if column.title != "device"]
    notes: dict[int, list[Ratio]] = {}
    for ratio in report.ratios:
        notes.setdefault(ratio.other, []).append(ratio)
    with drawing(path, 9.0, 1.0 + 0.34 * len(results)) as canvas:
        ax = canvas.subplots()
        for row, result in enumerate(results):
            seconds = 1 / result.items_per_second
            ax.barh(row, 1e3 * seconds, color=BLUE if result.case.library == "zoo" else GREY, height=0.7)
            times = [f"{ratio.median:.2f}×" for ratio in notes.get(report.results.index(result), [])]
            ax.text(1e3 * seconds, row, f" {1e3 * seconds:.3g} ms  {' · '.join(times)}", va="center", fontsize=8)
        ax.set_yticks(range(len(results)), [_name(result.case, columns, result) for result in results], fontsize=8)
        ax.invert_yaxis()
        ax.margins(x=0.25)
        ax.grid(False, axis="y")
        ax.set_xlabel("milliseconds per item, median; × : how many times as fast ours is")


def _plot_scaling(report, path):
    """Plot time and memory against batch size, image size and FLOPs of the model, a curve per backend."""
    from zoo.utils.report import plot_panels

    results = [result for result in report.results if not result.error]
    scaled = [result for result in results if result.case.name == SCALED]
    sweeps = {
        "batch size": ([r for r in scaled if r.case.image_size == 224], lambda r: r.case.batch_size),
        "pixels": ([r for r in scaled if r.case.batch_size == 8], lambda r: r.case.image_size),
        "GFLOP an image": ([r for r in results if r not in scaled], lambda r: float(f"{r.flops / 1e9:.2g}")),
    }
    panels = [
        _scaling_panel(title, xlabel, points, x_of, y_of)
        for xlabel, (points, x_of) in sweeps.items()
        for title, y_of in (("ms an image", lambda r: 1e3 / r.items_per_second), ("peak MB", _megabytes))
        if points
    ]
    plot_panels(path, panels)


def _scaling_panel(title, xlabel, points, x_of, y_of):
    """Return a panel with a curve per backend, broken where a case is missing; of two points at one x, the last."""
    from zoo.utils.report import Panel

    x = sorted({x_of(result) for result in points})
    values: dict[str, dict] = {}
    for result in points:
        values.setdefault(result.case.backend, {})[x_of(result)] = y_of(result)
    curves = {backend: [ys.get(at, math.nan) for at in x] for backend, ys in values.items()}
    return Panel(title, x, curves, xlabel=xlabel, log_x=xlabel != "pixels")


def _megabytes(result):
    return ((result.device_bytes or result.host_bytes) or 0) / 1e6
