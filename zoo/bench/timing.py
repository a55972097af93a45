"""Timing that survives a noisy machine: cases take turns, medians are quoted, ratios are taken round by round."""

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

TURN_SECONDS = 0.2  # a turn repeats short calls for that long
MOST_CALLS = 1000  # of a turn
REST_SECONDS = 0.2  # before a turn: threads of the one before spin on for a while
STEADY = 0.02  # warm-up ends when the last three calls differ by no more
WARM_UP_CALLS, WARM_UP_SECONDS = 10, 5.0  # or after that many calls, or that long

Turn = Callable[[], Sequence[float]]
Rounds = Sequence[Sequence[float]]


def timed(function):
    """(seconds, result) of one call."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def warm_up(function: Callable) -> int:
    """Calls a function until it takes as long as before; the number of calls."""
    calls, total = [], 0.0
    while len(calls) < WARM_UP_CALLS and total < WARM_UP_SECONDS:
        calls.append(timed(function)[0])
        total += calls[-1]
        if len(calls) >= 3 and max(calls[-3:]) <= (1 + STEADY) * min(calls[-3:]):
            break
    return len(calls)


def take_turn(function: Callable, at_least: float = TURN_SECONDS) -> list[float]:
    """Seconds of each call of one turn, at least one call."""
    calls, total = [], 0.0
    while not calls or (total < at_least and len(calls) < MOST_CALLS):
        calls.append(timed(function)[0])
        total += calls[-1]
    return calls


def take_turns(turns: Mapping[str, Turn], rounds: int, rest: float = REST_SECONDS) -> dict[str, list[Sequence[float]]]:
    """Every case once a round, so that a slow minute of the machine falls on all of them.

    The order is drawn anew for each round, the same in every run: what a case leaves behind, caches and threads that
    spin on, falls on another one each time.

    Args:
        turns: {key: function that runs one turn and gives the seconds of its calls}.
        rounds: turns of each.
        rest: seconds without work before each turn.

    Returns:
        {key: what its turns gave, round by round}.
    """
    runs = {key: [] for key in turns}
    order, drawn = list(turns), random.Random(0)
    for _ in range(rounds):
        drawn.shuffle(order)
        for key in order:
            time.sleep(rest)
            runs[key].append(turns[key]())
    return runs


def ratios(theirs: Rounds, ours: Rounds) -> list[float]:
    """How many times as long they take, round by round: of the medians of a round's calls."""
    pairs = zip(theirs, ours, strict=True)
    return [statistics.median(their_calls) / statistics.median(our_calls) for their_calls, our_calls in pairs]


def percentile(rounds: Rounds, share: float) -> float:
    """The smallest time that this share of all calls does not exceed."""
    calls = sorted(seconds for calls in rounds for seconds in calls)
    return calls[max(0, math.ceil(share * len(calls)) - 1)]
