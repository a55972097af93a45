"""Progress of long work on stderr: a line that changes on a terminal, whole lines now and then elsewhere."""

import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")
SECONDS = 10.0  # between two lines, where stderr is no terminal


def show_progress(steps: Sequence[T], what: str, enabled: bool = True) -> Iterator[T]:
    """Yield the steps and count them on stderr, "3 of 10 batches".

    On a terminal the count stays on one line. Elsewhere, as in a log file, it is a line of its own, at most one every
    SECONDS seconds, and none for work that is done sooner.
    """
    terminal = enabled and sys.stderr.isatty()
    shown = time.monotonic()
    for done, step in enumerate(steps, 1):
        yield step
        text = f"{done} of {len(steps)} {what}"
        if terminal:
            print(f"\r{text}", end="\n" if done == len(steps) else "", file=sys.stderr, flush=True)
        elif enabled and time.monotonic() - shown >= SECONDS:
            shown = time.monotonic()
            print(text, file=sys.stderr, flush=True)
