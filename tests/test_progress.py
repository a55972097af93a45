"""zoo.utils.progress: a counter on a terminal, nothing elsewhere."""

import sys

import pytest

from zoo.utils.progress import show_progress


@pytest.mark.parametrize(
    ("terminal", "enabled", "printed"),
    [(True, True, "\r1 of 2 batches\r2 of 2 batches\n"), (True, False, ""), (False, True, "")],
)
def test_steps_are_counted_on_a_terminal(monkeypatch, capsys, terminal, enabled, printed):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    assert list(show_progress("ab", "batches", enabled)) == ["a", "b"]
    assert capsys.readouterr().err == printed
