"""Progress of long work on a terminal."""

import sys
from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def show_progress(steps: Sequence[T], what: str, enabled: bool = True) -> Iterator[T]:
    """Yield the steps and count them on one line of stderr, "3 of 10 batches", if stderr is a terminal."""
    enabled = enabled and sys.stderr.isatty()
    for done, step in enumerate(steps, 1):
        yield step
        if enabled:
            end = "\n" if done == len(steps) else ""
            print(f"\r{done} of {len(steps)} {what}", end=end, file=sys.stderr, flush=True)
