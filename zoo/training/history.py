"""What a run logs: rows in history.jsonl as they come, all of them in history.csv and curves.png when it pauses."""

import csv
import importlib.util
import json
import math
from collections.abc import Sequence
from pathlib import Path

from zoo.utils.files import LineFile, atomic_write
from zoo.utils.report import Panel, plot_panels

FIRST = ("epoch", "step")  # columns of every row
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
SHARES = {"accuracy", "image → text", "text → image"}


class History:
    """The rows of a run, in memory and in a file that grows by whole lines.

    Args:
        path: of history.jsonl. What it held before is replaced by `text`.
        text: lines from the checkpoint that the run goes on from.
    """

    def __init__(self, path: str | Path, text: str = ""):
        self.path = Path(path)
        self.restore(text)

    def restore(self, text: str) -> None:
        """Takes the lines of a checkpoint in place of those there are."""
        self.text = text
        with atomic_write(self.path, "w") as file:
            file.write(text)
        self._file = LineFile(self.path)

    @property
    def rows(self) -> list[dict]:
        return [json.loads(line) for line in self.text.splitlines()]

    def add(self, **row) -> None:
        """Logs a row; numbers that are not finite become null, which JSON can say."""
        row = {name: _plain(value) for name, value in row.items()}
        line = json.dumps(row, ensure_ascii=False)
        self.text += f"{line}\n"
        self._file.add(line)

    def write_csv(self, path: str | Path) -> None:
        """One line a row, a column for every name there is."""
        rows = self.rows
        columns = list(dict.fromkeys([*FIRST, *(name for row in rows for name in row)]))
        with atomic_write(path, "w") as file:
            lines = csv.DictWriter(file, columns, lineterminator="\n")
            lines.writeheader()
            lines.writerows(rows)

    def draw(self, path: str | Path) -> bool:
        """Curves over the steps as PNG; False when matplotlib is not installed or nothing was logged."""
        panels = curves(self.rows)
        if not panels or importlib.util.find_spec("matplotlib") is None:
            return False
        plot_panels(path, panels)
        return True


def curves(rows: Sequence[dict]) -> list[Panel]:
    """Panels over the steps of the metrics that at least two rows have, training's and validation's in one."""
    metrics = {name for row in rows for name in row} - NOT_DRAWN
    drawn = {name for name in metrics if sum(_is_number(row.get(name)) for row in rows) > 1}
    known = {name for curves in PANELS.values() for name in curves.values()}
    others = {name.replace("_", " "): {name: name} for name in sorted(drawn - known)}
    panels = []
    for title, curves in {**PANELS, **others}.items():
        shown = {label: name for label, name in curves.items() if name in drawn}
        if shown:
            panels.append(_panel(title, shown, rows))
    return panels


def _panel(title: str, curves: dict[str, str], rows: Sequence[dict]) -> Panel:
    """Metrics {label: name} over the steps that have any of them."""
    at = {}  # step → {name: value}: what training and validation say of a step are two rows
    for row in rows:
        found = {name: row[name] for name in curves.values() if _is_number(row.get(name))}
        if found:
            at.setdefault(row["step"], {}).update(found)
    steps = sorted(at)
    values = {label: [at[step].get(name, math.nan) for step in steps] for label, name in curves.items()}
    return Panel(title, steps, values, xlabel="step", percent=title in SHARES, joined=True)


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _plain(value):
    """A number or text as JSON has it."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
