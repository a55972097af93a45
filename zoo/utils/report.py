"""Reports: one self-contained HTML page, and the plots that go on it.

`page(title, *blocks)` takes the strings that `section`, `paragraph`, `tiles`, `table`, `figure`, `code` and `details`
return; all of them escape their text. The plot functions take arrays and a path and write a PNG.
"""

import base64
import contextlib
import html
import re
import struct
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.utils.files import atomic_write
from zoo.utils.text import shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FIGURE = re.compile(r"[\d.,]+( ?(%|×|s|ms|µs|MB|M))?|–")
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
CSS_PIXELS_PER_INCH, DPI = 96, 144

STYLE = """
:root { color-scheme: light dark; --text: #1d2430; --soft: #5b6675; --page: #f6f7f9; --card: #ffffff;
  --line: #dfe3e8; --accent: #24527a; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e9ee; --soft: #a3adba; --page: #14171c; --card: #1d2229;
  --line: #333b46; --accent: #8fc1ea; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 960px; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.3rem; margin: 2.75rem 0 .5rem; padding-top: 1.25rem; border-top: 1px solid var(--line); }
p { margin: .6rem 0; max-width: 46rem; }
.lead { font-size: 1.1rem; color: var(--soft); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); gap: .75rem; margin: 1.5rem 0; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .9rem 1rem; }
.tile b { display: block; font-size: 1.7rem; line-height: 1.2; color: var(--accent);
  font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: .88rem; }
figure { margin: 1.25rem 0; }
figure div { background: #ffffff; border: 1px solid var(--line); border-radius: 10px; padding: .75rem; }
figure img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
figcaption { color: var(--soft); font-size: .9rem; margin-top: .5rem; max-width: 46rem; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; background: var(--card); font-size: .94rem; }
th, td { border: 1px solid var(--line); padding: .4rem .75rem; text-align: left; vertical-align: top; }
th { color: var(--soft); font-weight: 600; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
td.number { white-space: nowrap; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1rem; overflow-x: auto;
  font: .88rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
summary { cursor: pointer; color: var(--accent); margin: .6rem 0; }
@media print { body { background: #ffffff; } figure, .tiles, table, pre { break-inside: avoid; } }
"""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{content}
</main>
</body>
</html>
"""


def page(title: str, *blocks: str, lead: str = "") -> str:
    """Return an HTML document.

    Args:
        title: heading and window title.
        blocks: what the functions below return.
        lead: one or two sentences under the heading.
    """
    heading = f"<h1>{html.escape(title)}</h1>"
    opening = [f'<p class="lead">{html.escape(lead)}</p>'] if lead else []
    return _PAGE.format(title=html.escape(title), style=STYLE, content="\n".join([heading, *opening, *blocks]))


def write_page(path: str | Path, title: str, *blocks: str, lead: str = "") -> None:
    """Write `page(…)` to a file atomically."""
    with atomic_write(path, "w") as file:
        file.write(page(title, *blocks, lead=lead))


def section(title: str, *blocks: str) -> str:
    """Return blocks under a heading."""
    return "\n".join([f"<section><h2>{html.escape(title)}</h2>", *blocks, "</section>"])


def paragraph(text: str) -> str:
    """Return a paragraph; a number and its "%" are not broken across lines."""
    return f"<p>{html.escape(text).replace(' %', '&nbsp;%')}</p>"


def tiles(values: Mapping[str, object]) -> str:
    """Return a row of large figures from {label: figure}."""
    inner = "".join(
        f'<div class="tile"><b>{html.escape(str(value))}</b><span>{html.escape(label)}</span></div>'
        for label, value in values.items()
    )
    return f'<div class="tiles">{inner}</div>'


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table. Columns of numbers, with or without a unit and with "–" for a missing one, are right-aligned.

    Raises:
        ValueError: a row and the header differ in length.
    """
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"row {list(row)!r} has {len(row)} cells; the header has {len(header)}")
    numeric = [bool(rows) and all(_is_figure(row[i]) for row in rows) for i in range(len(header))]
    head = _row("th", header, numeric)
    body = "\n".join(_row("td", row, numeric) for row in rows)
    return f'<div class="scroll"><table><thead>{head}</thead><tbody>\n{body}\n</tbody></table></div>'


def _row(tag: str, cells: Sequence[object], numeric: Sequence[bool]) -> str:
    marks = [' class="number"' if is_number else "" for is_number in numeric]
    inner = "".join(f"<{tag}{mark}>{html.escape(str(cell))}</{tag}>" for cell, mark in zip(cells, marks, strict=True))
    return f"<tr>{inner}</tr>"


def _is_figure(cell: object) -> bool:
    return not isinstance(cell, str) or _FIGURE.fullmatch(cell) is not None


def figure(png: str | Path, caption: str) -> str:
    """Return an embedded PNG file with its caption, at the size it was drawn for or smaller to fit the page."""
    data = Path(png).read_bytes()
    width = round(png_size(data)[0] * CSS_PIXELS_PER_INCH / DPI)
    text = html.escape(caption)
    source = "data:image/png;base64," + base64.b64encode(data).decode("ascii")
    image = f'<div><img src="{source}" width="{width}" alt="{text}"></div>'
    return f"<figure>{image}<figcaption>{text}</figcaption></figure>"


def png_size(data: bytes) -> tuple[int, int]:
    """Return (width, height) in pixels from the header of a PNG.

    Raises:
        ValueError: the data is not a PNG.
    """
    if not data.startswith(_PNG_SIGNATURE):
        raise ValueError(f"not a PNG: it begins with {data[:8]!r}; a PNG begins with {_PNG_SIGNATURE!r}")
    return struct.unpack(">II", data[16:24])


def code(text: str) -> str:
    """Return preformatted text."""
    return f"<pre><code>{html.escape(text)}</code></pre>"


def details(summary: str, *blocks: str) -> str:
    """Return blocks that are hidden until the reader opens them."""
    return "\n".join([f"<details><summary>{html.escape(summary)}</summary>", *blocks, "</details>"])


def percent(share: float) -> str:
    """Format a share: 0.98056 → "98.1 %"."""
    return f"{100 * share:.1f} %"


# Plots.

BLUE, _ORANGE, GREEN, RED, GREY = "#24527a", "#d1702a", "#2e8b57", "#c0392b", "#8a94a0"
COLORS = (BLUE, _ORANGE, GREEN, RED, "#7a4fa3", "#4a9aa8")
_MOST_IN_A_ROW = 6  # panels
_MOST_TICKS = 10  # with more positions matplotlib chooses the ticks
_TICK_DISTANCE = 0.1  # least distance of two ticks, as a share of a logarithmic axis
MOST_NUMBERED = 20  # rows or columns; numbers in more cells are not legible
MOST_CLASSES = 1000  # of a confusion matrix, as many as ImageNet has; the plot is 1,600 pixels wide
MOST_NAMED = 100  # ticks; with more the names overlap, and matplotlib takes milliseconds for each
LONGEST_LABEL = 300  # characters of a name or caption that are drawn; about ten lines next to an image
_PLOT_STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.edgecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e9ed",
    "legend.framealpha": 0.9,
    "legend.edgecolor": "white",
    "text.parse_math": False,  # a "$" in a class name is a dollar
}


@contextlib.contextmanager
def drawing(path: str | Path, width: float, height: float) -> "Iterator[Figure]":
    """Yield a matplotlib figure, size in inches, and write it to `path` as PNG when the block ends.

    The figure needs no window system, and matplotlib's settings are restored afterwards.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_PLOT_STYLE):
        canvas = Figure(figsize=(width, height), layout="constrained", facecolor="white")
        yield canvas
        with atomic_write(path) as file:
            canvas.savefig(file, format="png", dpi=DPI)


@dataclass(frozen=True)
class Panel:
    """One plot in `plot_panels`.

    Args:
        title: text above the plot.
        x: N positions, shared by the curves.
        curves: {label: N values}; NaN for a missing value.
        levels: {label: y} of dashed horizontal lines.
        marks: {label: x} of dotted vertical lines.
        xlabel: text below the plot.
        log_x: use a logarithmic x axis.
        percent: show the values as percentages.
        joined: connect a curve across missing values.
    """

    title: str
    x: Sequence[float] | np.ndarray
    curves: Mapping[str, Sequence[float] | np.ndarray]
    levels: Mapping[str, float] = field(default_factory=dict)
    marks: Mapping[str, float] = field(default_factory=dict)
    xlabel: str = ""
    log_x: bool = False
    percent: bool = False
    joined: bool = False


def plot_panels(path: str | Path, panels: Sequence[Panel]) -> None:
    """Plot curves side by side, at most six plots in a row."""
    rows = -(-len(panels) // _MOST_IN_A_ROW)
    columns = -(-len(panels) // rows)
    with drawing(path, 3.15 * columns, 2.9 * rows) as canvas:
        canvas.get_layout_engine().set(wspace=0.06)
        axes = canvas.subplots(rows, columns, squeeze=False).ravel()
        for ax, panel in zip(axes, panels, strict=False):
            _draw_panel(ax, panel)
        for ax in axes[len(panels) :]:
            ax.remove()


def _draw_panel(ax: "Axes", panel: Panel) -> None:
    for (label, values), color in zip(panel.curves.items(), COLORS, strict=False):
        there = np.isfinite(values) if panel.joined else np.full(len(panel.x), True)
        dots = "o" if there.sum() <= 30 else None
        x, y = np.compress(there, panel.x), np.compress(there, values)
        ax.plot(x, y, color=color, label=label, marker=dots, markersize=3.5, linewidth=1.8)
    for label, level in panel.levels.items():
        ax.axhline(level, color=GREY, linestyle="--", linewidth=1.2, label=label)
    for (label, mark), color in zip(panel.marks.items(), (GREY, _ORANGE), strict=False):
        ax.axvline(mark, color=color, linestyle=":", linewidth=1.6, label=label)
    if panel.log_x:
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        if len(panel.x) <= _MOST_TICKS:
            ax.set_xticks(ticks_apart(sorted(panel.x)))
            ax.minorticks_off()
    elif np.all(np.mod(panel.x, 1) == 0):
        ax.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    if panel.percent:
        show_percent(ax.yaxis)
    ax.set_title(panel.title, loc="left")
    ax.set_xlabel(panel.xlabel)
    ax.legend(fontsize=8.5)


def show_percent(axis: Any) -> None:
    """Label the ticks of a matplotlib axis, shares in [0, 1], as percentages."""
    axis.set_major_formatter(lambda share, _: f"{100 * share:g} %")


def ticks_apart(x: Sequence[float]) -> list[float]:
    """Return the ascending positions on a logarithmic axis whose labels do not overlap."""
    least = _TICK_DISTANCE * np.log(x[-1] / x[0])
    kept = [x[0]]
    for position in x[1:]:
        if np.log(position / kept[-1]) >= least:
            kept.append(position)
    return kept


def plot_confusion(path: str | Path, counts: np.ndarray, class_names: Sequence[str]) -> None:
    """Plot a confusion matrix: correct predictions blue, errors orange, each row as shares of its sum.

    Args:
        path: path of the PNG.
        counts: int (K, K); rows are true classes, columns predicted ones. Of more than MOST_CLASSES, those with the
            most errors are drawn.
        class_names: K strings.

    Raises:
        ValueError: the shapes do not match.
    """
    counts = np.asarray(counts)
    _check_shape("counts", counts, (len(class_names), len(class_names)))
    totals = counts.sum(axis=1)
    if len(counts) > MOST_CLASSES:
        errors = counts.sum(axis=0) + totals - 2 * np.diag(counts)
        drawn = np.sort(np.argsort(-errors, kind="stable")[:MOST_CLASSES])
        counts, totals, class_names = counts[np.ix_(drawn, drawn)], totals[drawn], [class_names[i] for i in drawn]
    shares = counts / np.maximum(totals, 1)[:, None]
    right = np.eye(len(counts), dtype=bool)
    side = 2.2 + 0.46 * min(len(counts), MOST_NUMBERED)
    with drawing(path, side + 0.4, side) as canvas:
        ax = canvas.subplots()
        ax.imshow(np.where(right, shares, np.nan), cmap="Blues", vmin=0, vmax=1.25)
        # The square root makes an error in a hundred visible.
        ax.imshow(np.where(right | (counts == 0), np.nan, np.sqrt(shares)), cmap="Oranges", vmin=-0.1, vmax=1)
        if len(counts) <= MOST_NUMBERED:
            write_cells(ax, counts, lambda n: str(n) if n else "·", dark=shares > 0.6)
        _name_ticks(ax, class_names, class_names)
        ax.set_xlabel("predicted class")
        ax.set_ylabel("true class")


def plot_similarity(
    path: str | Path, cosines: np.ndarray, images: Sequence[np.ndarray] | np.ndarray, captions: Sequence[str]
) -> None:
    """Plot the cosine of each image and caption in a matrix, with the images as row labels.

    Args:
        path: path of the PNG.
        cosines: float (N, M), in [-1, 1].
        images: N uint8 arrays (H, W, 3).
        captions: M strings.

    Raises:
        ValueError: the shapes do not match.
    """
    cosines = np.asarray(cosines)
    _check_shape("cosines", cosines, (len(images), len(captions)))
    rows, columns = cosines.shape
    low, high = float(cosines.min()), float(cosines.max())
    with drawing(path, 2.2 + 0.62 * columns, 1.6 + 0.62 * rows) as canvas:
        ax = canvas.subplots()
        ax.imshow(cosines, cmap="Blues", vmin=low, vmax=high + 0.2 * (high - low))
        if max(rows, columns) <= MOST_NUMBERED:
            write_cells(ax, cosines, lambda c: f"{c:.2f}", dark=cosines > low + 0.75 * (high - low))
        _name_ticks(ax, [""] * rows, captions)
        for row, image in enumerate(images):
            inset = ax.inset_axes((-1.5, row - 0.45, 0.9, 0.9), transform=ax.transData)  # left of the row, as its label
            inset.imshow(image)
            inset.set_axis_off()


@dataclass(frozen=True)
class SheetRow:
    """One row of `plot_sheet`.

    Args:
        text: left of the images.
        images: uint8 arrays (H, W, 3).
        notes: one string under each image; empty for none.
        right: one bool for each image, framed in green if true, else in red; empty for no frames.
    """

    text: str
    images: Sequence[np.ndarray] | np.ndarray
    notes: Sequence[str] = ()
    right: Sequence[bool] | np.ndarray = ()


def plot_sheet(path: str | Path, rows: Sequence[SheetRow]) -> None:
    """Plot a row of images for each text: search results, examples of a class, errors."""
    columns = max(len(row.images) for row in rows)
    with drawing(path, 2.6 + 0.86 * columns, 0.3 + 1.0 * len(rows)) as canvas:
        grid = canvas.add_gridspec(len(rows), columns + 1, width_ratios=[2.6, *[0.86] * columns])
        for r, row in enumerate(rows):
            label = canvas.add_subplot(grid[r, 0])
            label.set_axis_off()
            text = "\n".join(textwrap.wrap(row.text[:LONGEST_LABEL], 30))
            label.text(1, 0.5, text, ha="right", va="center", transform=label.transAxes)
            for c, image in enumerate(row.images):
                ax = canvas.add_subplot(grid[r, c + 1])
                _draw_image(
                    ax,
                    image,
                    note=row.notes[c] if len(row.notes) else "",
                    color=(GREEN if row.right[c] else RED) if len(row.right) else "#ffffff",
                )


def _draw_image(ax: "Axes", image: np.ndarray, note: str, color: str) -> None:
    ax.imshow(image, interpolation="nearest")
    ax.grid(False)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_xlabel(note, fontsize=8, color=GREY, labelpad=2)
    for spine in ax.spines.values():
        spine.set(visible=True, color=color, linewidth=2.2)


def write_cells(
    ax: "Axes", values: np.ndarray, text: Callable[[Any], str], *, dark: np.ndarray, fontsize: float = 9
) -> None:
    """Write `text(value)` into each cell, in white where the cell is dark; nothing for NaN."""
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            color = "white" if dark[row, column] else "#3a4450"
            ax.text(column, row, text(value), ha="center", va="center", fontsize=fontsize, color=color)


def _name_ticks(ax: "Axes", rows: Sequence[str], columns: Sequence[str]) -> None:
    ax.grid(False)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    if max(len(rows), len(columns)) > MOST_NAMED:
        ax.set_xticks([])
        ax.set_yticks([])
        return
    rows, columns = ([shown(name, LONGEST_LABEL) for name in names] for names in (rows, columns))
    longest = max(map(len, columns), default=0)
    slant = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if longest > 4 else {}
    ax.set_xticks(range(len(columns)), columns, **slant)
    ax.set_yticks(range(len(rows)), rows)


def _check_shape(name: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}; its names and images need {shape}")
