"""The history of a run: rows in history.jsonl during the run; history.csv and curves.png at its end."""

import csv
import importlib.util
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from clip import Field
from zoo.training.tensorboard import EventFile, is_number
from zoo.utils.files import LineFile, atomic_write
from zoo.utils.report import Panel, plot_panels
from zoo.utils.strict_json import check_fields, field_error, list_of, parse_json
from zoo.utils.strict_json import text as text_field

FIRST = ("epoch", "step")  # columns of every row
MOST_PANELS = 18  # three rows; matplotlib takes up to 0.5 s for each, and a run of ours has at most 12
MOST_POINTS = 5000  # of a curve; a panel is 500 pixels wide
NOT_DRAWN = {*FIRST, "seconds", "event", "skipped", "left_out"}
RECALLS = {f"R@{k}": f"recall_at_{k}" for k in (1, 5, 10)}
PANELS = {  # title: {curve: metric}; every other metric has a panel of its own
    "loss": {"training": "loss", "validation": "val_loss"},
    "accuracy": {
        **{"training": "accuracy", "validation": "val_accuracy"},
        **{"validation, top 5": "val_top_5_accuracy", "validation, zero-shot": "val_zero_shot_accuracy"},
    },
    "learning rate": {"of the step": "learning_rate"},
    "1 / temperature": {"exp(logit_scale)": "logit_scale"},
    "image → text": {label: f"val_image_to_text_{name}" for label, name in RECALLS.items()},
    "text → image": {label: f"val_text_to_image_{name}" for label, name in RECALLS.items()},
    "rank": {
        f"{kind}, {way.replace('_to_', ' → ')}": f"val_{way}_{kind}_rank"
        for way in ("image_to_text", "text_to_image")
        for kind in ("median", "mean")
    },
}
PERCENT = {"accuracy", "image → text", "text → image"}


STEP = Field.integer(0, (1 << 53) - 1)
ROW_FIELDS = {"epoch": STEP, "step": STEP, "event": text_field(1000), "left_out": list_of(STEP)}
FIGURE = Field(lambda value: value is None or isinstance(value, int | float), "null or a number")


def check_rows(lines: str, name: str) -> None:
    """Raise ValueError unless `History.add` could have written these lines: steps and figures.

    Args:
        name: of the file, for messages.
    """
    for line in lines.splitlines():
        row = parse_json(line, name)
        check_fields(row, ROW_FIELDS, name, optional=("event", "left_out"), others=True)
        for key, value in row.items():
            if key not in ROW_FIELDS and not FIGURE.allows(value):
                raise field_error(name, key, value, FIGURE.allowed)


def validation_text(step: int, metrics: Mapping[str, float]) -> str:
    """Return the results of a validation: retrieval as a table of five columns, the others in one line.

    Args:
        metrics: by their names in the history, such as val_image_to_text_recall_at_1.
    """
    table, used = [], set()
    for title, way in (("image to text", "image_to_text"), ("text to image", "text_to_image")):
        names = [f"val_{way}_{name}" for name in (*RECALLS.values(), "median_rank", "mean_rank")]
        if all(name in metrics for name in names):
            used |= set(names)
            values = [metrics[name] for name in names]
            cells = [*(f"{100 * value:.1f} %" for value in values[:3]), *(f"{value:.1f}" for value in values[3:])]
            table.append(f"  {title:<14}" + "".join(f"{cell:>13}" for cell in cells))
    if table:
        heads = (*RECALLS, "median rank", "mean rank")
        table.insert(0, f"  {'':<14}" + "".join(f"{head:>13}" for head in heads))
    others = [
        f"{name.removeprefix('val_').replace('_', ' ')} "
        + (f"{100 * value:.1f} %" if name.endswith("accuracy") else f"{value:.4g}")
        for name, value in metrics.items()
        if name not in used
    ]
    head = f"Step {step}, validation: {', '.join(others)}".removesuffix(" ")
    return "\n".join([head if others or table else f"{head} left out", *table])


class History:
    """The rows of a run, in memory and in a file that grows by whole lines.

    Args:
        path: history.jsonl; its content is replaced by `text`.
        text: lines from the checkpoint that is resumed.
        report_to: "tensorboard" also writes TensorBoard's event file beside it.
        writes: False keeps the rows in memory alone.
    """

    def __init__(self, path: str | Path, text: str = "", report_to: str | None = None, *, writes: bool = True):
        self.path, self.report_to, self.writes = Path(path), report_to, writes
        self.restore(text)

    def restore(self, text: str) -> None:
        """Replace the lines by those of a checkpoint."""
        self.text = text
        if not self.writes:
            return
        with atomic_write(self.path, "w") as file:
            file.write(text)
        self._file = LineFile(self.path)
        self._events = EventFile(self.path.parent, self.rows) if self.report_to else None

    @property
    def rows(self) -> list[dict]:
        return [json.loads(line) for line in self.text.splitlines()]

    def add(self, **row) -> None:
        """Log a row; numbers that are not finite become null."""
        row = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        line = json.dumps(row, ensure_ascii=False)
        self.text += f"{line}\n"
        if not self.writes:
            return
        self._file.add(line)
        if self._events is not None:
            self._events.add(row)

    def write_csv(self, path: str | Path) -> None:
        """Write one line per row, with a column for every name."""
        rows = self.rows
        columns = list(dict.fromkeys([*FIRST, *(name for row in rows for name in row)]))
        with atomic_write(path, "w") as file:
            lines = csv.DictWriter(file, columns, lineterminator="\n")
            lines.writeheader()
            lines.writerows(rows)

    def draw(self, path: str | Path) -> bool:
        """Plot the first MOST_PANELS metrics as PNG; return False without matplotlib or rows."""
        panels = curves(self.rows)[:MOST_PANELS]
        if not panels or importlib.util.find_spec("matplotlib") is None:
            return False
        plot_panels(path, panels)
        return True


def curves(rows: Sequence[dict]) -> list[Panel]:
    """Return panels of all metrics with at least two values; training and validation share a panel."""
    metrics = {name for row in rows for name in row} - NOT_DRAWN
    drawn = {name for name in metrics if sum(is_number(row.get(name)) for row in rows) > 1}
    known = {name for curves in PANELS.values() for name in curves.values()}
    others = {name.replace("_", " "): {name: name} for name in sorted(drawn - known)}
    panels = []
    for title, curves in {**PANELS, **others}.items():
        present = {label: name for label, name in curves.items() if name in drawn}
        if present:
            panels.append(_panel(title, present, rows))
    return panels


def _panel(title: str, curves: dict[str, str], rows: Sequence[dict]) -> Panel:
    """Return a panel of the metrics {label: name}."""
    at: dict = {}  # step → {name: value}: training and validation log separate rows for a step
    for row in rows:
        found = {name: row[name] for name in curves.values() if is_number(row.get(name))}
        if found:
            at.setdefault(row["step"], {}).update(found)
    steps = sorted(at)
    steps = steps[:: -(-len(steps) // MOST_POINTS)]
    values = {label: [at[step].get(name, math.nan) for step in steps] for label, name in curves.items()}
    return Panel(title, steps, values, xlabel="step", percent=title in PERCENT, joined=True)
