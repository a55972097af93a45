"""The experiments' own plots: arrays and a path in, a PNG out, in the manner of `zoo.utils.report`."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from zoo.utils.report import BLUE, COLORS, GREEN, GREY, MOST_NUMBERED, RED, drawing, percent

BRIGHT = "#9db8cf"  # of bars that are not the right one
CLASS_COLORS = "tab10"


@dataclass(frozen=True)
class Guess:
    """What a pair says of one picture.

    Args:
        picture: uint8 (H, W, 3).
        names, shares: the best classes, the best first, and their probabilities.
        truth: the right class, or None where nobody knows.
    """

    picture: np.ndarray
    names: Sequence[str]
    shares: Sequence[float]
    truth: str | None = None


def plot_guesses(path: str | Path, guesses: Sequence[Guess], columns: int = 5) -> None:
    """Pictures, each over a bar for each of its best classes: green is right, red a first guess that is wrong.

    At most `columns` stand beside each other.
    """
    rows = -(-len(guesses) // columns)
    columns = -(-len(guesses) // rows)  # so that rows are of about one length
    with drawing(path, 1.9 * columns, 2.15 * rows) as canvas:
        grid = canvas.add_gridspec(2 * rows, columns, height_ratios=[1.15, 1] * rows)
        for i, guess in enumerate(guesses):
            row, column = divmod(i, columns)
            ax = canvas.add_subplot(grid[2 * row, column])
            ax.imshow(guess.picture, interpolation="nearest")
            ax.set_axis_off()
            _draw_bars(canvas.add_subplot(grid[2 * row + 1, column]), guess)


def _draw_bars(ax, guess: Guess) -> None:
    first = BLUE if guess.truth is None else RED
    colors = [GREEN if name == guess.truth else first if i == 0 else BRIGHT for i, name in enumerate(guess.names)]
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
    """A line of `plot_ranking`: an accuracy, the interval that it lies in, and the kind that its colour stands for."""

    label: str
    share: float
    interval: tuple[float, float]
    kind: str


def plot_ranking(path: str | Path, rows: Sequence[Ranked], kinds: Sequence[str]) -> None:
    """Accuracies as dots with their intervals, one line each, in the order given; `kinds` have the colours in turn."""
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
        ax.xaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
        ax.set_xlabel("accuracy, with its 95 % interval")
        ax.grid(axis="y", visible=False)
        ax.tick_params(axis="y", length=0)
        canvas.legend(loc="outside upper left", ncols=6, frameon=False, fontsize=9)


@dataclass(frozen=True)
class Matrix:
    """A heat map of `plot_matrices`: float (N, M), NaN for what there is not, under a title."""

    title: str
    values: np.ndarray
    rows: Sequence[str]
    columns: Sequence[str]


def plot_matrices(path: str | Path, matrices: Sequence[Matrix]) -> None:
    """Heat maps of cosines side by side, each with a scale of its own and its numbers where they can be read."""
    with drawing(path, 4.75 * len(matrices), 5.0) as canvas:
        canvas.get_layout_engine().set(wspace=0.06)
        for ax, matrix in zip(canvas.subplots(1, len(matrices), squeeze=False)[0], matrices, strict=True):
            values = np.asarray(matrix.values, float)
            known = values[np.isfinite(values)]
            low, high = (known.min(), known.max()) if len(known) else (0.0, 1.0)
            ax.imshow(values, cmap="Blues", vmin=low, vmax=high + 0.25 * (high - low) + 1e-9)
            side = max(values.shape)
            if side <= MOST_NUMBERED // 2 + 2:
                _write_cosines(ax, values, low, high)
            step = 1 if side <= 2 * MOST_NUMBERED else side // MOST_NUMBERED
            ax.set_xticks(
                range(0, values.shape[1], step), matrix.columns[::step], rotation=55, ha="right", rotation_mode="anchor"
            )
            ax.set_yticks(range(0, values.shape[0], step), matrix.rows[::step])
            ax.tick_params(length=0, labelsize=8.5)
            ax.set_title(matrix.title, loc="left")
            ax.grid(False)
            ax.spines[:].set_visible(False)


def _write_cosines(ax, values: np.ndarray, low: float, high: float) -> None:
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            color = "white" if value > low + 0.72 * (high - low) else "#3a4450"
            text = f"{round(value, 2) + 0.0:.2f}".replace("0.", ".").replace("-", "−")  # 0.0 takes the sign from −0
            ax.text(column, row, text, ha="center", va="center", fontsize=7, color=color)


@dataclass(frozen=True)
class Histogram:
    """Distributions of `plot_histograms` over one axis: {label: values, or none}, with dotted marks {label: x}."""

    title: str
    values: Mapping[str, np.ndarray]
    xlabel: str = "cosine"
    marks: Mapping[str, float] = field(default_factory=dict)
    percent: bool = False


def plot_histograms(path: str | Path, histograms: Sequence[Histogram], bins: int = 25) -> None:
    """Distributions side by side, each filled and with an area of one."""
    with drawing(path, 9.6 if len(histograms) > 1 else 6.4, 3.1) as canvas:
        canvas.get_layout_engine().set(wspace=0.05)
        for ax, histogram in zip(canvas.subplots(1, len(histograms), squeeze=False)[0], histograms, strict=True):
            every = np.concatenate(list(histogram.values.values()))
            low, high = (every.min(), every.max()) if len(every) else (0.0, 1.0)
            edges = np.linspace(low, high if high > low else low + 1e-3, bins + 1)
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
            for (label, x), color in zip(histogram.marks.items(), COLORS, strict=False):
                ax.axvline(x, color=color, linestyle=":", linewidth=1.6, label=label)
            if histogram.percent:
                ax.xaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
            ax.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
            ax.set_axisbelow(True)
            ax.set_title(histogram.title, loc="left")
            ax.set(xlabel=histogram.xlabel, ylabel="share of them")
            ax.set_ylim(0, 1.38 * highest or 1)
            ax.legend(fontsize=8.5, loc="upper left")


def plot_reliability(path: str | Path, panels: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Accuracy against confidence, {title: `metrics.reliability`}; a dot's area is its bin's share of the pictures."""
    with drawing(path, 3.3 * len(panels), 3.3) as canvas:
        for ax, (title, seen) in zip(canvas.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
            ax.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1.2, label="calibrated")
            size = 12 + 320 * seen["count"] / seen["count"].sum()
            ax.scatter(seen["confidence"], seen["accuracy"], s=size, color=BLUE, alpha=0.75, zorder=3, clip_on=False)
            ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy", aspect="equal")
            for axis in (ax.xaxis, ax.yaxis):
                axis.set_ticks(np.linspace(0, 1, 5))
                axis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
            ax.set_title(title, loc="left", pad=12)
            ax.legend(fontsize=8.5, loc="lower right")


@dataclass(frozen=True)
class Cloud:
    """Points of `plot_clouds` in two dimensions.

    Args:
        points: float (N, 2), a dot each, coloured by `labels`, int (N,).
        names: K names, written at the middle of each class.
        stars: float (M, 2) of texts, or None; `star_labels` int (M,) colours them.
        shares: of the variance, along both axes.
    """

    title: str
    points: np.ndarray
    labels: np.ndarray
    names: Sequence[str]
    shares: Sequence[float]
    stars: np.ndarray | None = None
    star_labels: np.ndarray | None = None


def plot_clouds(path: str | Path, clouds: Sequence[Cloud]) -> None:
    """Embeddings seen in two dimensions, panels side by side."""
    import matplotlib

    with drawing(path, 4.75 * len(clouds), 4.5) as canvas:
        colors = matplotlib.colormaps[CLASS_COLORS].colors
        for ax, cloud in zip(canvas.subplots(1, len(clouds), squeeze=False)[0], clouds, strict=True):
            of = [colors[label % len(colors)] for label in cloud.labels]
            ax.scatter(*cloud.points.T, c=of, s=11, alpha=0.55, linewidths=0)
            if cloud.stars is not None:
                of = [colors[label % len(colors)] for label in cloud.star_labels]
                ax.scatter(*cloud.stars.T, c=of, s=120, marker="*", edgecolors="#1d2430", linewidths=0.7, zorder=4)
            for label in np.unique(cloud.labels) if len(cloud.names) <= MOST_NUMBERED else []:
                _name_class(ax, cloud, int(label), tuple(0.75 * c for c in colors[label % len(colors)]))
            ax.set_title(cloud.title, loc="left")
            ax.set_xlabel(f"first axis, {percent(cloud.shares[0])} of the variance")
            ax.set_ylabel(f"second axis, {percent(cloud.shares[1])}")
            ax.margins(0.08)
            ax.locator_params(nbins=6)


def _name_class(ax, cloud: Cloud, label: int, color) -> None:
    """The class's name in the middle of its dots, or above its stars."""
    box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.75}
    middle, lift = np.median(cloud.points[cloud.labels == label], axis=0), 0
    if cloud.stars is not None:
        stars = cloud.stars[cloud.star_labels == label]
        middle, lift = (stars[:, 0].mean(), stars[:, 1].max()), 12
    style = {"fontsize": 9, "weight": "bold", "color": color, "ha": "center", "va": "center", "bbox": box, "zorder": 5}
    ax.annotate(cloud.names[label], middle, xytext=(0, lift), textcoords="offset points", **style)


def plot_sizes(path: str | Path, groups: Mapping[str, Sequence[tuple[str, float, float]]], here=None) -> None:
    """Parameters against work, both logarithmic: {kind: [(name, GFLOPs, millions of parameters)]}.

    Args:
        here: (label, GFLOPs, millions) of the pair at hand, marked with a star.
    """
    with drawing(path, 9.4, 5.2) as canvas:
        ax = canvas.subplots()
        for (kind, rows), color in zip(groups.items(), COLORS, strict=False):
            ax.scatter([x for _, x, _ in rows], [y for *_, y in rows], s=34, color=color, label=kind, alpha=0.85)
        ax.set(xscale="log", yscale="log", xlabel="GFLOPs of one picture and one caption", ylabel="million parameters")
        if here is not None:
            ax.scatter(*here[1:], s=210, marker="*", color=RED, edgecolors="white", label=here[0], zorder=4)
        ax.margins(0.09)
        ax.set_axisbelow(True)
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter(lambda x, _: f"{x:g}")
        ax.legend(fontsize=9, loc="upper left")
        canvas.draw_without_rendering()  # so that points have their places
        kinds = itertools.zip_longest(*groups.values())  # one of each kind in turn: names are left to the first
        _name_points(ax, [row for rows in kinds for row in rows if row is not None], blocked=here and here[1:])


def _name_points(ax, rows: Sequence[tuple[str, float, float]], blocked=None) -> None:
    """The names of the points, each at the first free side of its own; those that find none are left out.

    `blocked` is a place (x, y) more that no name may cover.
    """
    points = [row[1:] for row in rows] + ([blocked] if blocked else [])
    places = ax.transAxes.inverted().transform(ax.transData.transform(points))
    taken = [(x - 0.006, x + 0.006, y - 0.009, y + 0.009) for x, y in places]
    for (name, x, y), (left, middle) in zip(rows, places, strict=False):
        width, height = 0.0098 * len(name), 0.028
        sides = {  # text's alignment, its offset in points, the left end and the middle of its box
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
