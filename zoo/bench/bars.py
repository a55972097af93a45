"""The project's speed targets as data, and how a report of the preset `bars` is judged by them.

A target (`Bar`) compares our fastest case with the fastest peer case of the same group, or with a lower bound on the
time.
"""

import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from zoo.bench import timing
from zoo.bench.cases import OURS, PEERS, Case, Report, Result

NAMES = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "torch"}
COMMANDS = {"zoo list": ("list",), "zoo info convnextv2_tiny": ("info", "convnextv2_tiny")}
MOST_SECONDS = 0.4  # target for a command


class Bar(NamedTuple):
    """A speed target, one line of the table.

    Args:
        work, against: labels of the two sides.
        ours, others: predicates that select the cases of each side.
        least: how many times as fast ours must be.
        floor: compare with the time that the FLOPs take at the best matrix-product rate; `least` is then the largest
            allowed multiple of it, and `others` is None.
    """

    work: str
    against: str
    ours: Callable[[Case], bool]
    others: Callable[[Case], bool] | None
    least: float
    floor: bool = False


class Verdict(NamedTuple):
    """A target and its measurement; `ratio` is None if a side was not timed."""

    bar: Bar
    ratio: float | None
    low: float | None = None
    high: float | None = None
    ours: Result | None = None
    other: Result | None = None

    @property
    def is_met(self) -> bool | None:
        if self.ratio is None:
            return None
        return self.ratio <= self.bar.least if self.bar.floor else self.ratio >= self.bar.least


def _matching(*, ours: bool = True, **wanted) -> Callable[[Case], bool]:
    """Return a predicate on cases: ours or a peer's, with these field values; a tuple allows each of its values."""

    def matches(case):
        allowed = {key: value if isinstance(value, tuple) else (value,) for key, value in wanted.items()}
        return (case.library == OURS) == ours and all(getattr(case, key) in allowed[key] for key in allowed)

    return matches


KERAS_PEERS = tuple(name for name, library in PEERS.items() if library.on_keras)
TIMM = {"tensorflow": (1.5, "eager"), "jax": (1.3, "compiled"), "torch": (1.1, "eager")}
BEST_PEER = {"tensorflow": 1.2, "jax": 3.5, "torch": 1.2}
FLOOR = {"convnext_tiny": 1.7, "convnextv2_tiny": 2.0}
TRAINED = {"convnextv2_atto": ("classifier, 64 px", "timm"), "clip/convnext_v2_atto": ("digits' pair", "open_clip")}


def bars() -> list[Bar]:
    return [*_backbones(), *_towers(), *_uses(), *_training(), *_predict(), *_tokens()]


def _backbones():
    for name, most in FLOOR.items():
        fields: dict[str, Any] = {"name": name, "part": "classifier", "batch_size": 8, "train": False}
        for backend, label in NAMES.items():
            ours = _matching(backend=backend, runtime="keras", **fields)
            same = _matching(ours=False, library=KERAS_PEERS, backend=backend, **fields)
            least, mode = TIMM[backend]
            timm = _matching(ours=False, library="timm", mode=mode, **fields)
            yield Bar(f"{name}, {label}", f"best Keras peer on {label}", ours, same, BEST_PEER[backend])
            yield Bar(f"{name}, {label}", f"timm, torch {mode}", ours, timm, least)
        yield Bar(
            f"{name}, best backend or runtime", "the floor", _matching(dtype="float32", **fields), None, most, True
        )


def _towers():
    for part in ("image", "text"):
        for backend, label in NAMES.items():
            ours = _matching(name="clip/ViT-B-32", part=part, backend=backend)
            for library, least in (("keras_hub", 1.2), ("open_clip", 1.0)):
                where = {"backend": backend} if library == "keras_hub" else {}
                other = _matching(ours=False, name="clip/ViT-B-32", part=part, library=library, **where)
                against = f"keras-hub on {label}" if where else "open_clip, torch"
                yield Bar(f"ViT-B-32 {part} tower, as built or folded, {label}", against, ours, other, least)


def _uses():
    fields: dict[str, Any] = {"name": "clip/convnext_v2_tiny", "part": "pictures"}
    work = "convnext_v2_tiny, files to probabilities over 100 classes"
    for dtype in ("float32", "int8"):
        label = "float32" if dtype == "float32" else "int8 in ONNX Runtime"
        yield Bar(
            f"{work}, {label}",
            "open_clip, torch",
            _matching(dtype=dtype, **fields),
            _matching(ours=False, **fields),
            2.0,
        )


def _training():
    for name, (what, library) in TRAINED.items():
        for backend, label in NAMES.items():
            ours = _matching(name=name, train=True, backend=backend)
            other = _matching(ours=False, name=name, train=True)
            yield Bar(f"training step, {what}, {label}", f"{library}, torch", ours, other, 1.0)


def _predict():
    fields: dict[str, Any] = {"name": "convnextv2_atto", "batch_size": 32, "train": False}
    for backend, label in NAMES.items():
        bare = _matching(backend=backend, mode=("compiled", "eager"), **fields)
        for mode, what in (("predict", "model.predict"), ("predictor", "compiled predictor")):
            whole = _matching(backend=backend, mode=mode, **fields)
            yield Bar(f"{what}, 256 images, {label}", "the bare forward", whole, bare, 0.8)


def _tokens():
    for part, what, least in (("captions", "ASCII", 3.0), ("mixed-captions", "mixed", 1.5)):
        yield Bar(f"tokenisation, {what}", "open_clip", _matching(part=part), _matching(ours=False, part=part), least)


# Judging a report.


def judge(report: Report) -> list[Verdict]:
    """Return the `Verdict` on each target."""
    good = [result for result in report.results if not result.error]
    return [_floor(bar, good, report.rates) if bar.floor else _beside(bar, good) for bar in bars()]


def _beside(bar, results):
    ours, other = _best(results, bar.ours), _best(results, bar.others)
    if ours is None or other is None:
        return Verdict(bar, None)
    return Verdict(bar, *compare_two(ours, other), ours, other)


def _floor(bar, results, rates):
    ours = _best(results, bar.ours)
    rate = max((rate for key, rate in rates.items() if key.endswith("float32")), default=None)
    if ours is None or rate is None or ours.flops is None or ours.p50 is None or ours.p90 is None:
        return Verdict(bar, None)
    seconds = [ours.flops * ours.case.items / rate, min(min(calls) for calls in ours.rounds), ours.p90]
    floor = seconds[0]
    return Verdict(bar, ours.p50 / floor, seconds[1] / floor, seconds[2] / floor, ours)


def _best(results: Sequence[Result], matches) -> Result | None:
    """Return the matching result with the most items per second."""
    found = [result for result in results if matches(result.case)]
    return max(found, key=lambda result: result.items_per_second or 0.0, default=None)


def compare_two(ours: Result, other: Result) -> tuple[float, float, float]:
    """Return how many times as fast ours is per item: (median over rounds, least, most)."""
    per_item = ours.case.items / other.case.items
    values = [per_item * value for value in timing.ratios(other.rounds, ours.rounds)]
    return statistics.median(values), min(values), max(values)


def time_commands() -> dict[str, float]:
    """Return {command: least wall seconds} of the commands in COMMANDS."""

    def run(words):
        subprocess.run([sys.executable, "-m", "zoo", *words], check=True, stdout=subprocess.DEVNULL)

    return {
        name: min(timing.timed(lambda words=words: run(words))[0] for _ in range(3)) for name, words in COMMANDS.items()
    }


def to_text(report: Report) -> str:
    """Return the table of targets in Markdown."""
    lines = ["| work | against | target | measured | over rounds | ours, theirs | |", "|---|---|--:|--:|--:|---|---|"]
    lines += [_line(verdict) for verdict in judge(report)]
    for name, seconds in report.commands.items():
        mark = "met" if seconds <= MOST_SECONDS else "missed"
        lines.append(f"| {name} | – | ≤ {MOST_SECONDS} s | **{seconds:.2f} s** | – | – | {mark} |")
    return "\n".join(lines)


def draw(report: Report, path: Path) -> None:
    """Plot each measured ratio and its range relative to its target, which is met to the right of 1."""
    from zoo.utils.report import BLUE, RED, drawing

    verdicts = [verdict for verdict in judge(report) if verdict.ratio is not None]
    with drawing(path, 9.0, 1.0 + 0.28 * len(verdicts)) as canvas:
        ax = canvas.subplots()
        for row, verdict in enumerate(verdicts):
            bar, color = verdict.bar, BLUE if verdict.is_met else RED
            low, middle, high = sorted(_in_bars(bar, value) for value in (verdict.low, verdict.ratio, verdict.high))
            ax.plot([low, high], [row, row], color=color, linewidth=1)
            ax.plot(middle, row, "o", color=color)
            ax.annotate(
                f"{verdict.ratio:.2f}", (high, row), (5, 0), textcoords="offset points", va="center", fontsize=8
            )
        ax.axvline(1, color="black", linewidth=1)
        labels = [f"{bar.work} · {bar.against} · {_wanted(bar)}" for bar, *_ in verdicts]
        ax.set_yticks(range(len(verdicts)), labels, fontsize=8)
        ax.set_ylim(len(verdicts) - 0.5, -0.5)
        ax.set_xscale("log")
        ticks = (0.25, 0.5, 1, 2, 4)
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.minorticks_off()
        ax.margins(x=0.1)
        ax.set_xlabel("relative to the target: met right of 1")


def _in_bars(bar, value):
    return bar.least / value if bar.floor else value / bar.least


def _wanted(bar):
    return f"{'≤' if bar.floor else '≥'} {bar.least:g}"


def _line(verdict):
    bar = verdict.bar
    head = f"| {bar.work} | {bar.against} | {_wanted(bar)} |"
    if verdict.ratio is None:
        return f"{head} – | – | – | not timed |"
    sides = ", ".join(_side(result) for result in (verdict.ours, verdict.other) if result)
    mark = "met" if verdict.is_met else "missed"
    return f"{head} **{verdict.ratio:.2f}** | {verdict.low:.2f} to {verdict.high:.2f} | {sides} | {mark} |"


def _side(result):
    where = f"{result.case.library}, {result.case.runs_on}" if result.case.library != OURS else result.case.runs_on
    return f"{where} {1e3 * result.case.items / result.items_per_second:,.0f} ms"
