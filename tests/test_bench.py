"""The benchmark's clockwork, on functions that only pretend to take time."""

import json
from types import SimpleNamespace

import pytest

from zoo import list_models
from zoo.bench import timing, to_text
from zoo.bench.classifiers import PEERS, Result, to_json
from zoo.bench.timing import Timing, ratio, take_turns, timed


@pytest.fixture
def clock(monkeypatch):
    """The time that `timing` sees: it stands still unless a test moves it."""
    clock = SimpleNamespace(now=100.0, log=[])
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


def candidate(clock, name, build, seconds):
    """A candidate that takes `build` s to build and then, call by call, `seconds`."""
    left = iter(seconds)

    def call():
        clock.log.append(name)
        clock.now += next(left)

    def start():
        clock.log.append(f"build {name}")
        clock.now += build
        return call

    return start


def test_timed_gives_seconds_and_result(clock):
    def work(answer=42):
        clock.now += 1.5
        return answer

    assert timed(work) == (1.5, 42)


def test_candidates_take_turns_and_the_first_call_is_kept_apart(clock):
    candidates = {
        "a": candidate(clock, "a", 0.5, [8.0, 1.0, 3.0, 2.0]),
        "b": candidate(clock, "b", 0.25, [4.0, 2.0, 6.0, 8.0]),
    }
    ours, peer = take_turns(candidates, rounds=3)
    assert clock.log == ["build a", "a", "build b", "b", *["a", "b"] * 3]
    assert ours == Timing("a", 0.5, 8.0, [1.0, 3.0, 2.0])
    assert peer == Timing("b", 0.25, 4.0, [2.0, 6.0, 8.0])


def test_median_is_of_the_runs_alone():
    assert Timing("a", 50.0, 90.0, [3.0, 1.0, 2.0]).median == 2.0


def test_ratio_is_taken_round_by_round():
    ours, peer = Timing("a", 0, 0, [1.0, 10.0, 2.0]), Timing("b", 0, 0, [3.0, 20.0, 8.0])
    assert ratio(peer, ours) == 3.0  # of 3, 2 and 4, though the medians' own ratio is 8 / 2
    assert ratio(ours, ours) == 1.0


def test_ratio_of_unequal_counts_is_refused():
    with pytest.raises(ValueError):
        ratio(Timing("a", 0, 0, [1.0]), Timing("b", 0, 0, [1.0, 2.0]))


RESULTS = [
    Result("convnext_tiny", "predict", "jax", 8, 224, 1.25, 3.5, 0.25, 32.0, 1.0),
    Result("keras.applications.ConvNeXtTiny", "predict", "jax", 8, 224, 2.0, 6.0, 1.0, 8.0, 4.0),
]


def test_text_is_a_table_with_a_line_a_result():
    header, rule, ours, peer = to_text(RESULTS).splitlines()
    assert header.count("|") == rule.count("|") == ours.count("|") == peer.count("|")
    cells = [cell.strip() for cell in peer.strip("|").split("|")]
    assert cells == ["keras.applications.ConvNeXtTiny", "predict", "jax", "8", "2.0", "6.0", "1000", "8.0", "4.00×"]


def test_json_holds_every_field():
    ours, _ = json.loads(json.dumps(to_json(RESULTS)))
    assert ours == {**vars(RESULTS[0])}


def test_peers_are_asked_of_names_that_exist():
    assert set(PEERS) <= set(list_models())
