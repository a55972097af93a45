"""Timing on a noisy machine: cases take turns, medians are reported, ratios are taken within each round."""

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

TURN_SECONDS = 0.2  # minimum duration of a turn; short calls are repeated
MOST_CALLS = 1000  # per turn
REST_SECONDS = 0.2  # before a turn: threads of the previous case may still spin
STEADY = 0.02  # warm-up ends once the last three calls differ by at most this share
WARM_UP_CALLS, WARM_UP_SECONDS = 10, 5.0  # limits of the warm-up

K = TypeVar("K")
Turn = Callable[[], Sequence[float]]
Rounds = Sequence[Sequence[float]]


def timed(function):
    """Call a function; return (seconds, result)."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def warm_up(function: Callable) -> int:
    """Call a function until its time is steady; return the number of calls."""
    calls: list[float] = []
    total = 0.0
    while len(calls) < WARM_UP_CALLS and total < WARM_UP_SECONDS:
        calls.append(timed(function)[0])
        total += calls[-1]
        if len(calls) >= 3 and max(calls[-3:]) <= (1 + STEADY) * min(calls[-3:]):
            break
    return len(calls)


def take_turn(function: Callable, at_least: float = TURN_SECONDS) -> list[float]:
    """Call a function for one turn, at least once; return the seconds of each call."""
    calls: list[float] = []
    total = 0.0
    while not calls or (total < at_least and len(calls) < MOST_CALLS):
        calls.append(timed(function)[0])
        total += calls[-1]
    return calls


def take_turns(turns: Mapping[K, Turn], rounds: int, rest: float = REST_SECONDS) -> dict[K, list[Sequence[float]]]:
    """Run every case once per round, so that slow phases of the machine affect all of them.

    Each round has its own random order, the same in every run, so that the after-effects of a case (caches, spinning
    threads) fall on a different one each time.

    Args:
        turns: {key: function that runs one turn and returns the seconds of its calls}.
        rounds: turns per case.
        rest: idle seconds before each turn.

    Returns:
        {key: results of its turns, by round}.
    """
    runs: dict[K, list[Sequence[float]]] = {key: [] for key in turns}
    order, drawn = list(turns), random.Random(0)
    for _ in range(rounds):
        drawn.shuffle(order)
        for key in order:
            time.sleep(rest)
            runs[key].append(turns[key]())
    return runs


def ratios(theirs: Rounds, ours: Rounds) -> list[float]:
    """Return, for each round, the ratio of the median times theirs / ours."""
    pairs = zip(theirs, ours, strict=True)
    return [statistics.median(their_calls) / statistics.median(our_calls) for their_calls, our_calls in pairs]


def percentile(rounds: Rounds, share: float) -> float:
    """Return the smallest measured time that at least this share of all calls does not exceed."""
    calls = sorted(seconds for calls in rounds for seconds in calls)
    return calls[max(0, math.ceil(share * len(calls)) - 1)]
