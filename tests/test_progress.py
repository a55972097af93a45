"""zoo.utils.progress: a counter on a terminal, whole lines now and then in a log file."""

import sys

import pytest

from zoo.utils import progress
from zoo.utils.progress import show_progress


class Clock:
    """A clock that takes some seconds per look."""

    def __init__(self, seconds: float):
        self.now, self.seconds = 0.0, seconds

    def monotonic(self) -> float:
        self.now += self.seconds
        return self.now


@pytest.mark.parametrize(
    ("terminal", "enabled", "printed"),
    [(True, True, "\r1 of 2 batches\r2 of 2 batches\n"), (True, False, ""), (False, True, "")],
)
def test_steps_are_counted_on_a_terminal(monkeypatch, capsys, terminal, enabled, printed):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    assert list(show_progress("ab", "batches", enabled)) == ["a", "b"]
    assert capsys.readouterr().err == printed


@pytest.mark.parametrize("seconds", [0.1, 3.0, 11.0])
def test_a_log_file_gets_whole_lines_at_most_one_in_ten_seconds(monkeypatch, capsys, seconds):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    clock = Clock(seconds)
    monkeypatch.setattr(progress, "time", clock)
    list(show_progress(range(40), "batches"))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) <= clock.now / 10 + 1
    assert (len(lines) > 2) == (seconds > 1) and all(line.endswith(" of 40 batches") for line in lines)
    list(show_progress(range(40), "batches", enabled=False))
    assert capsys.readouterr().err == ""
