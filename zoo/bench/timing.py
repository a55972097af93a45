"""Timing that survives a noisy machine: candidates take turns, medians are quoted, ratios are taken run by run."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple


class Timing(NamedTuple):
    """Seconds of one candidate.

    `first` is the first call, compilation included; `runs` are the calls after it, one a round.
    """

    name: str
    build: float
    first: float
    runs: list[float]

    @property
    def median(self):
        return statistics.median(self.runs)


def take_turns(candidates: dict[str, Callable[[], Callable]], rounds: int) -> list[Timing]:
    """Times candidates in turn, A B A B …, so that a slow minute of the machine falls on all of them.

    Args:
        candidates: name → function that builds and returns the function to time; that one must finish its work
            before it returns.
        rounds: timed calls of each, after the first.
    """
    functions, builds, firsts = {}, {}, {}
    for name, build in candidates.items():
        builds[name], functions[name] = timed(build)
        firsts[name], _ = timed(functions[name])
    runs = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, function in functions.items():
            runs[name].append(timed(function)[0])
    return [Timing(name, builds[name], firsts[name], runs[name]) for name in candidates]


def timed(function):
    """(seconds, result) of one call."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def ratio(peer: Timing, ours: Timing) -> float:
    """How many times as long the peer takes: the median over rounds of peer / ours."""
    return statistics.median(theirs / own for theirs, own in zip(peer.runs, ours.runs, strict=True))
