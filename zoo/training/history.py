"""What a run logs: rows in history.jsonl as they come, all of them in history.csv and curves.png when it pauses."""

import csv
import importlib.util
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

from zoo.files import atomic_write
from zoo.report import Panel, plot_panels

FIRST = ("epoch", "step")  # columns of every row
MOST_PANELS = 6
NOT_DRAWN = {*FIRST, "seconds", "event", "skipped", "left_out"}


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

    @property
    def rows(self) -> list[dict]:
        return [json.loads(line) for line in self.text.splitlines()]

    def add(self, **row) -> None:
        """Logs a row; numbers that are not finite become null, which JSON can say."""
        row = {name: _plain(value) for name, value in row.items()}
        line = json.dumps(row, ensure_ascii=False) + "\n"
        self.text += line
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)

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
    """A panel for each metric that at least two rows have; what validation measured has panels of its own."""
    names = dict.fromkeys(name for row in rows for name in row if name not in NOT_DRAWN)
    panels = []
    for name in names:
        points = [(row["step"], row[name]) for row in rows if isinstance(row.get(name), int | float)]
        if len(points) > 1:
            steps, values = zip(*points, strict=True)
            panels.append(Panel(name.replace("_", " "), steps, {name: values}, xlabel="step"))
    return panels[:MOST_PANELS]


def _plain(value):
    """A number or text as JSON has it."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
