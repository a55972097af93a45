"""The plots of the experiments and the demo: arrays and a path in, a PNG out, in the style of `zoo.utils.report`."""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zoo.utils.report import (
    BLUE,
    COLORS,
    GREEN,
    GREY,
    MOST_NUMBERED,
    RED,
    Panel,
    SheetRow,
    drawing,
    percent,
    show_percent,
    write_cells,
)

LIGHT_BLUE = "#9db8cf"
CLASS_COLORS = "tab10"
SEARCH_RESULTS = 8  # images in a row of `search_row`
MOST_GUESSES = 5  # images in a row of `plot_guesses`
BINS = 25  # of a histogram


@contextlib.contextmanager
def _axes_in_a_row(path: str | Path, count: int, width: float, height: float, *, wspace: float = 0.02) -> Iterator:
    """Yield `count` matplotlib axes side by side, in a figure of that many inches that is written to `path`."""
    with drawing(path, width, height) as canvas:
        canvas.get_layout_engine().set(wspace=wspace)
        yield canvas.subplots(1, count, squeeze=False)[0]


def search_row(text: str, cosines: np.ndarray, correct: np.ndarray, image: Callable[[int], np.ndarray]) -> SheetRow:
    """Return the images that match a text best, for `plot_sheet`.

    Args:
        text: what was searched for.
        cosines: float (N,), of each image with the text.
        correct: bool (N,), whether each image matches.
        image: i → uint8 (H, W, 3).
    """
    best = np.argsort(-cosines, kind="stable")[:SEARCH_RESULTS]
    notes = [f"{cosine:.2f}" for cosine in cosines[best]]
    return SheetRow(f"“{text}”", [image(int(i)) for i in best], notes, correct[best])


def temperature_panels(
    sweep: Mapping[str, Sequence[float]], accuracy: float, marks: Mapping[str, float]
) -> list[Panel]:
    """Return confidence, calibration error and loss against the logit scale, for `plot_panels`.

    Args:
        sweep: {"factor": scales} and what `metrics.temperature_sweep` returns for them.
        accuracy: does not depend on the scale.
        marks: {label: scale} of vertical lines.
    """
    axis: dict[str, Any] = {
        "x": sweep["factor"],
        "marks": marks,
        "log_x": True,
        "xlabel": "logit scale, 1 / temperature",
    }
    confidence = {"mean confidence": sweep["confidence"]}
    return [
        Panel("Confidence", curves=confidence, levels={"accuracy": accuracy}, percent=True, **axis),
        Panel("Calibration error", curves={"expected error": sweep["error"]}, percent=True, **axis),
        Panel("Cross-entropy", curves={"mean over images": sweep["loss"]}, **axis),
    ]


@dataclass(frozen=True)
class Guess:
    """The prediction for one image.

    Args:
        image: uint8 (H, W, 3).
        names, shares: the most probable classes, best first, and their probabilities.
        truth: the true class, or None if unknown.
    """

    image: np.ndarray
    names: Sequence[str]
    shares: Sequence[float]
    truth: str | None = None


def plot_guesses(path: str | Path, guesses: Sequence[Guess]) -> None:
    """Plot images, each above bars for its most probable classes: green is the true class, red a wrong prediction."""
    rows = -(-len(guesses) // MOST_GUESSES)
    columns = -(-len(guesses) // rows)  # rows of similar length
    with drawing(path, 1.9 * columns, 2.15 * rows) as canvas:
        grid = canvas.add_gridspec(2 * rows, columns, height_ratios=[1.15, 1] * rows)
        for i, guess in enumerate(guesses):
            row, column = divmod(i, columns)
            ax = canvas.add_subplot(grid[2 * row, column])
            ax.imshow(guess.image, interpolation="nearest")
            ax.set_axis_off()
            _draw_bars(canvas.add_subplot(grid[2 * row + 1, column]), guess)


def _draw_bars(ax, guess: Guess) -> None:
    first = BLUE if guess.truth is None else RED
    colors = [GREEN if name == guess.truth else first if i == 0 else LIGHT_BLUE for i, name in enumerate(guess.names)]
    places = range(len(guess.names))
    ax.barh(places, guess.shares, color=colors, height=0.62)
    for place, share in zip(places, guess.shares, strict=True):
        ax.text(share + 0.03, place, f"{100 * share:.0f} %", va="center", fontsize=7.5, color="#3a4450")
    ax.set_yticks(places, guess.names, fontsize=8)
    ax.set(xlim=(0, 1.45), xticks=[])
    ax.invert_yaxis()
    ax.grid(False)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


@dataclass(frozen=True)
class Ranked:
    """A line of `plot_ranking`: an accuracy, its confidence interval, and the kind that sets its colour."""

    label: str
    share: float
    interval: tuple[float, float]
    kind: str


def plot_ranking(path: str | Path, rows: Sequence[Ranked], kinds: Sequence[str]) -> None:
    """Plot accuracies as dots with their intervals, one line each, in the given order."""
    with drawing(path, 9.2, 1.0 + 0.27 * len(rows)) as canvas:
        ax = canvas.subplots()
        for place, row in enumerate(rows):
            color = COLORS[kinds.index(row.kind) % len(COLORS)]
            ax.plot(row.interval, [place, place], color=color, linewidth=2, alpha=0.45, solid_capstyle="round")
            ax.plot([row.share], [place], "o", color=color, markersize=5.5)
            ax.annotate(
                percent(row.share), (1.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=8.5
            )
        for kind, color in zip(kinds, COLORS, strict=False):
            ax.plot([], [], "o-", color=color, label=kind, linewidth=2)
        ax.set_yticks(range(len(rows)), [row.label for row in rows])
        ax.set_ylim(len(rows) - 0.4, -0.6)
        show_percent(ax.xaxis)
        ax.set_xlabel("accuracy, with its 95 % interval")
        ax.grid(axis="y", visible=False)
        ax.tick_params(axis="y", length=0)
        canvas.legend(loc="outside upper left", ncols=6, frameon=False, fontsize=9)


@dataclass(frozen=True)
class Matrix:
    """A heat map of `plot_matrices`: float (N, N), NaN where undefined, and N names."""

    title: str
    values: np.ndarray
    names: Sequence[str]


def plot_matrices(path: str | Path, matrices: Sequence[Matrix]) -> None:
    """Plot heat maps of cosines side by side, each with its own scale, and with numbers where they are legible."""
    with _axes_in_a_row(path, len(matrices), 4.75 * len(matrices), 5.0, wspace=0.06) as axes:
        for ax, matrix in zip(axes, matrices, strict=True):
            values = np.asarray(matrix.values, float)
            known = values[np.isfinite(values)]
            low, high = (known.min(), known.max()) if len(known) else (0.0, 1.0)
            ax.imshow(values, cmap="Blues", vmin=low, vmax=high + 0.25 * (high - low) + 1e-9)
            side = len(values)
            if side <= MOST_NUMBERED // 2 + 2:
                write_cells(ax, values, _short_cosine, dark=values > low + 0.72 * (high - low), fontsize=7)
            step = 1 if side <= 2 * MOST_NUMBERED else side // MOST_NUMBERED
            places, names = range(0, side, step), matrix.names[::step]
            ax.set_xticks(places, names, rotation=55, ha="right", rotation_mode="anchor")
            ax.set_yticks(places, names)
            ax.tick_params(length=0, labelsize=8.5)
            ax.set_title(matrix.title, loc="left")
            ax.grid(False)
            ax.spines[:].set_visible(False)


def _short_cosine(value: float) -> str:
    """Return "−.25" for −0.25."""
    return f"{round(value, 2) + 0.0:.2f}".replace("0.", ".").replace("-", "−")  # + 0.0 drops the sign of −0


@dataclass(frozen=True)
class Histogram:
    """Distributions of `plot_histograms` over one axis: {label: values}."""

    title: str
    values: Mapping[str, np.ndarray]
    xlabel: str = "cosine"
    percent: bool = False


def plot_histograms(path: str | Path, histograms: Sequence[Histogram]) -> None:
    """Plot distributions side by side; the bins of each sum to 1."""
    with _axes_in_a_row(path, len(histograms), 9.6 if len(histograms) > 1 else 6.4, 3.1, wspace=0.05) as axes:
        for ax, histogram in zip(axes, histograms, strict=True):
            every = np.concatenate(list(histogram.values.values()))
            low, high = (every.min(), every.max()) if len(every) else (0.0, 1.0)
            edges = np.linspace(low, high if high > low else low + 1e-3, BINS + 1)
            highest = 0.0
            for (label, values), color in zip(histogram.values.items(), COLORS, strict=False):
                if not len(values):
                    ax.plot([], [], color=color, label=f"{label}: none")
                    continue
                share, _ = np.histogram(values, edges)
                share = share / share.sum()
                highest = max(highest, share.max())
                ax.stairs(share, edges, fill=True, color=color, alpha=0.3)
                ax.stairs(share, edges, color=color, linewidth=1.4, label=label)
            if histogram.percent:
                show_percent(ax.xaxis)
            show_percent(ax.yaxis)
            ax.set_axisbelow(True)
            ax.set_title(histogram.title, loc="left")
            ax.set(xlabel=histogram.xlabel, ylabel="share")
            ax.set_ylim(0, 1.38 * highest or 1)
            ax.legend(fontsize=8.5, loc="upper left")


def plot_reliability(path: str | Path, panels: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Plot accuracy against confidence, {title: `metrics.reliability`}; a dot's area is its share of the images."""
    with _axes_in_a_row(path, len(panels), 3.3 * len(panels), 3.3) as axes:
        for ax, (title, bins) in zip(axes, panels.items(), strict=True):
            ax.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1.2, label="calibrated")
            size = 12 + 320 * bins["count"] / bins["count"].sum()
            ax.scatter(bins["confidence"], bins["accuracy"], s=size, color=BLUE, alpha=0.75, zorder=3, clip_on=False)
            ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy", aspect="equal")
            for axis in (ax.xaxis, ax.yaxis):
                axis.set_ticks(np.linspace(0, 1, 5))
                show_percent(axis)
            ax.set_title(title, loc="left", pad=12)
            ax.legend(fontsize=8.5, loc="lower right")


@dataclass(frozen=True)
class Scatter:
    """Embeddings in two dimensions, for `plot_scatters`.

    Args:
        points: float (N, 2) of images, drawn as dots, coloured by `labels`, int (N,).
        names: K class names, written at the median of each class.
        shares: shares of the variance, along both axes.
        stars: float (M, 2) of texts, drawn as stars, coloured by `star_labels`, int (M,); or None.
    """

    title: str
    points: np.ndarray
    labels: np.ndarray
    names: Sequence[str]
    shares: Sequence[float] | np.ndarray
    stars: np.ndarray | None = None
    star_labels: np.ndarray | None = None


def plot_scatters(path: str | Path, scatters: Sequence[Scatter]) -> None:
    """Plot embeddings in two dimensions, panels side by side."""
    import matplotlib

    with _axes_in_a_row(path, len(scatters), 4.75 * len(scatters), 4.5) as axes:
        colors = matplotlib.colormaps[CLASS_COLORS].colors
        for ax, scatter in zip(axes, scatters, strict=True):
            of = [colors[label % len(colors)] for label in scatter.labels]
            ax.scatter(*scatter.points.T, c=of, s=11, alpha=0.55, linewidths=0)
            if scatter.stars is not None and scatter.star_labels is not None:
                of = [colors[label % len(colors)] for label in scatter.star_labels]
                ax.scatter(*scatter.stars.T, c=of, s=120, marker="*", edgecolors="#1d2430", linewidths=0.7, zorder=4)
            for label in np.unique(scatter.labels) if len(scatter.names) <= MOST_NUMBERED else []:
                _name_class(ax, scatter, int(label), tuple(0.75 * c for c in colors[label % len(colors)]))
            ax.set_title(scatter.title, loc="left")
            ax.set_xlabel(f"first component, {percent(scatter.shares[0])} of the variance")
            ax.set_ylabel(f"second component, {percent(scatter.shares[1])}")
            ax.margins(0.08)
            ax.locator_params(nbins=6)


def _name_class(ax, scatter: Scatter, label: int, color) -> None:
    """Write a class's name at the median of its dots, or above its stars."""
    box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.75}
    middle, lift = np.median(scatter.points[scatter.labels == label], axis=0), 0
    if scatter.stars is not None:
        stars = scatter.stars[scatter.star_labels == label]
        middle, lift = (stars[:, 0].mean(), stars[:, 1].max()), 12
    style = {"fontsize": 9, "weight": "bold", "color": color, "ha": "center", "va": "center", "bbox": box, "zorder": 5}
    ax.annotate(scatter.names[label], middle, xytext=(0, lift), textcoords="offset points", **style)


def plot_sizes(path: str | Path, groups: Mapping[str, Sequence[tuple[str, float, float]]], here=None) -> None:
    """Plot parameters against FLOPs, both logarithmic.

    Args:
        groups: {kind: [(name, GFLOPs, millions of parameters)]}.
        here: (label, GFLOPs, millions of parameters) of the pair in use, drawn as a star.
    """
    with drawing(path, 9.4, 5.2) as canvas:
        ax = canvas.subplots()
        for (kind, rows), color in zip(groups.items(), COLORS, strict=False):
            ax.scatter([x for _, x, _ in rows], [y for *_, y in rows], s=34, color=color, label=kind, alpha=0.85)
        ax.set(xscale="log", yscale="log", xlabel="GFLOPs per image and caption", ylabel="million parameters")
        if here is not None:
            ax.scatter(*here[1:], s=210, marker="*", color=RED, edgecolors="white", label=here[0], zorder=4)
        ax.margins(0.09)
        ax.set_axisbelow(True)
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter(lambda x, _: f"{x:g}")
        ax.legend(fontsize=9, loc="upper left")
        canvas.draw_without_rendering()  # fixes the positions of the points
        kinds = itertools.zip_longest(*groups.values())  # alternate between kinds: the first names have priority
        _name_points(ax, [row for rows in kinds for row in rows if row is not None], blocked=here and here[1:])


def _name_points(ax, rows: Sequence[tuple[str, float, float]], blocked=None) -> None:
    """Write the name of each point at its first free side; names without one are left out.

    `blocked` is another point (x, y) that no name may cover.
    """
    points = [row[1:] for row in rows] + ([blocked] if blocked else [])
    places = ax.transAxes.inverted().transform(ax.transData.transform(points))
    taken = [(x - 0.006, x + 0.006, y - 0.009, y + 0.009) for x, y in places]
    for (name, x, y), (left, middle) in zip(rows, places, strict=False):
        width, height = 0.0098 * len(name), 0.028
        sides = {  # alignment, offset in points, left end and middle of the text's box
            "right": ("left", (6, 0), left + 0.009, middle),
            "left": ("right", (-6, 0), left - 0.009 - width, middle),
            "above": ("center", (0, 8), left - width / 2, middle + 0.026),
            "below": ("center", (0, -8), left - width / 2, middle - 0.026),
        }
        for align, offset, start, centre in sides.values():
            box = (start, start + width, centre - height / 2, centre + height / 2)
            if start > 0.01 and box[1] < 0.99 and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                style = {"fontsize": 7.5, "color": "#3a4450", "ha": align, "va": "center"}
                ax.annotate(name, (x, y), xytext=offset, textcoords="offset points", **style)
                break


def _overlap(a: tuple, b: tuple) -> bool:
    return a[0] < b[1] and b[0] < a[1] and a[2] < b[3] and b[2] < a[3]
