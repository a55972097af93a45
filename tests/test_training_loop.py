"""The loop: a run that is stopped, killed or disturbed ends like an uninterrupted one."""

import json
import os
import shutil
import signal
import threading

import keras
import numpy as np
import pytest
from data_writers import digits

from clip import CLIP, tokenize
from zoo.data import Batches, from_arrays
from zoo.data.preprocess import PreprocessSpec
from zoo.training import loop
from zoo.training.checkpoint import newest_checkpoint
from zoo.training.loop import Diverged, Outcome, RunConfig, fit_resumable
from zoo.training.optimizer import SkipNonFinite
from zoo.utils.files import Locked, lock

pytestmark = pytest.mark.backend

SPEC = PreprocessSpec(image_size=8)
CONFIG = RunConfig(epochs=2, save_every=3, log_every=2)  # of 5 steps each


def create_pair():
    """A pair of a few layers, with dropout, so that its seeds matter."""
    keras.utils.set_random_seed(5)
    images = keras.Input((8, 8, 3))
    x = keras.layers.Dropout(0.5)(keras.layers.Flatten()(images))
    image_tower = keras.Model(images, keras.layers.Dense(4, name="image_head")(x))
    tokens = keras.Input((None,), dtype="int32")
    x = keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(49408, 4)(tokens))
    text_tower = keras.Model(tokens, keras.layers.Dense(4, name="text_head")(x))
    pair = CLIP(image_tower, text_tower)
    pair.compile(SkipNonFinite(keras.optimizers.Adam(0.01), ema=0.9), auto_scale_loss=False)
    pair.optimizer.build(pair.trainable_variables)
    return pair


def create_batches(**options):
    images, captions, _ = digits(40)
    short = lambda texts: tokenize(texts, context_length=12, truncate=True)  # noqa: E731
    return Batches(
        from_arrays(images, captions),
        SPEC,
        **{"batch_size": 8, "tokenize": short, "seed": 3, "threads": 1, "prefetch": 0, **options},
    )


def run(folder, pair=None, *, config=CONFIG, arrange=lambda batch: batch, **options):
    """(pair, outcome) of a run."""
    pair = pair or create_pair()
    with create_batches() as batches:
        return pair, fit_resumable(pair, batches, folder, config, arrange=arrange, **options)


def state(pair):
    kinds = (pair.variables, pair.optimizer.variables)
    return [keras.ops.convert_to_numpy(variable).copy() for kind in kinds for variable in kind]


def same(one, other):
    return len(one) == len(other) and all(np.array_equal(*pair) for pair in zip(one, other, strict=True))


def rows(folder):
    """The history without its times."""
    lines = (folder / "history.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """(folder, state, outcome) of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("alone")
    validate = lambda: {"constant": 1.0}  # noqa: E731
    pair, outcome = run(folder, validate=validate)
    return folder, state(pair), outcome


def test_a_run_writes_history_curves_and_checkpoints(alone):
    folder, _, outcome = alone
    assert (outcome.finished, outcome.step, outcome.steps, outcome.skipped) == (True, 10, 10, 0)
    steps = [(row["epoch"], row["step"]) for row in rows(folder) if "loss" in row]
    assert steps == [(1, 2), (1, 4), (1, 5), (2, 6), (2, 8), (2, 10)]
    assert [row["step"] for row in rows(folder) if "val_constant" in row] == [5, 10]
    assert {"loss", "accuracy", "logit_scale", "learning_rate", "skipped"} <= set(rows(folder)[0])
    assert (folder / "history.csv").read_text().splitlines()[0].startswith("epoch,step,")
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in sorted((folder / "checkpoints").iterdir())] == [
        "checkpoint-000004",
        "checkpoint-000005",
    ]
    assert newest_checkpoint(folder / "checkpoints").progress["position"] == 10


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.wide)], ids=["SIGTERM", "Ctrl-C"]
)
def test_a_stopped_run_resumes_bit_for_bit(alone, tmp_path, number):
    folder, expected, _ = alone
    count = []

    def arrange(batch):
        count.append(1)
        if len(count) == 7:  # in the second epoch; a backend that reads ahead is stopped earlier
            os.kill(os.getpid(), number)
        return batch

    validate = lambda: {"constant": 1.0}  # noqa: E731
    _, stopped = run(tmp_path, arrange=arrange, validate=validate)
    assert not stopped.finished and 0 < stopped.step < 10
    assert newest_checkpoint(tmp_path / "checkpoints").progress["position"] == stopped.step
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    pair, outcome = run(tmp_path, resume=True, validate=validate)
    assert outcome.finished
    assert same(state(pair), expected)
    assert rows(tmp_path) == rows(folder)


def test_a_crashed_run_resumes_from_its_last_checkpoint(alone, tmp_path):
    folder, expected, _ = alone

    def validate():
        if len(calls) == 2:
            raise KeyboardInterrupt  # what no handler of ours catches
        calls.append(1)
        return {"constant": 1.0}

    calls = []
    config = RunConfig(epochs=2, save_every=3, log_every=2, validate_every=4)
    with pytest.raises(KeyboardInterrupt):
        calls.append(1)
        run(tmp_path, config=config, validate=validate)
    assert newest_checkpoint(tmp_path / "checkpoints").progress["position"] == 6
    pair, _ = run(tmp_path, resume=True)
    assert same(state(pair), expected)
    assert [row for row in rows(tmp_path) if "loss" in row] == [row for row in rows(folder) if "loss" in row]


def test_a_run_resumes_bit_for_bit_between_two_epochs(alone, tmp_path):
    folder, expected, _ = alone
    run(tmp_path, config=RunConfig(epochs=2, save_every=5, log_every=2))
    last = sorted((tmp_path / "checkpoints").iterdir())[-1]
    shutil.rmtree(last)
    assert newest_checkpoint(tmp_path / "checkpoints").progress["position"] == 5
    pair, _ = run(tmp_path, resume=True)
    assert same(state(pair), expected)
    assert rows(tmp_path) == [row for row in rows(folder) if "loss" in row]


@pytest.mark.once
def test_resuming_a_finished_run_changes_nothing(alone, capsys):
    folder, expected, _ = alone
    pair, outcome = run(folder, resume=True)
    assert outcome.finished and same(state(pair), expected)
    assert "at step 10 of 10" in capsys.readouterr().out


@pytest.mark.once
def test_resuming_without_a_checkpoint_says_so(tmp_path, capsys):
    _, outcome = run(tmp_path, config=RunConfig(epochs=1), resume=True)
    assert outcome.finished
    assert "Nothing to resume" in capsys.readouterr().out


@pytest.mark.once
def test_another_run_is_neither_overwritten_nor_resumed(alone):
    with pytest.raises(ValueError, match="holds checkpoints of a run"):
        run(alone[0])
    with pytest.raises(ValueError, match="loss was None and is 'siglip'"):
        run(alone[0], identity={"loss": "siglip"}, resume=True)
    other = from_arrays(*digits(41)[:2])
    for batches, said in (
        (create_batches(batch_size=4), "batch_size was 8 and is 4"),
        (Batches(other, SPEC, batch_size=8), "data was '40 records, .*' and is '41 records"),
    ):
        with batches, pytest.raises(ValueError, match=said):
            fit_resumable(create_pair(), batches, alone[0], CONFIG, resume=True)


@pytest.mark.once
def test_the_outcome_is_one_line():
    assert loop.to_text(Outcome(True, 4, 4, skipped=0)) == "Finished: step 4 of 4."
    said = loop.to_text(Outcome(False, 2, 4, skipped=1, bad=2))
    assert said == "Stopped; continue with --resume: step 2 of 4, 1 update skipped, 2 bad samples replaced."


@pytest.mark.once
def test_two_runs_cannot_share_a_folder(tmp_path):
    with lock(tmp_path / loop.LOCK), pytest.raises(Locked, match=f"process {os.getpid()}"):
        run(tmp_path)


@pytest.mark.once
def test_a_checkpoint_that_cannot_be_written_does_not_end_the_run(alone, tmp_path, monkeypatch, capsys):
    save, count = loop.save_checkpoint, []

    def full(*arguments, **options):
        count.append(1)
        if len(count) == 2:
            raise OSError(28, "No sconfig left on device")
        return save(*arguments, **options)

    monkeypatch.setattr(loop, "save_checkpoint", full)
    pair, outcome = run(tmp_path)
    assert outcome.finished and same(state(pair), alone[1])
    assert "No checkpoint at step 3" in capsys.readouterr().err


def poisoned(places, seen):
    """An `arrange` that makes the images of batches NaN, known by their first caption."""

    def arrange(batch):
        with create_batches() as batches:
            place = next(i for i in range(10) if np.array_equal(batches[i]["images"], batch["images"]))
        seen.append(place)
        return {**batch, "images": batch["images"] * np.nan} if place in places else batch

    return arrange


def test_a_non_finite_update_is_skipped_and_the_run_continues(tmp_path, capsys):
    pair, outcome = run(tmp_path, arrange=poisoned({4, 6}, []), schedule="10 steps.")
    printed = capsys.readouterr().out
    assert printed.startswith("10 steps.\n") and printed.count(" skipped because a gradient was not finite (NaN") == 2
    assert "Step 5: 1 update was skipped" in printed and "Steps 7 to 8: 1 update was skipped" in printed
    assert "after 10 in a row the run returns to its last checkpoint" in printed and "skipped:" not in printed
    assert outcome.finished and outcome.skipped == 2
    assert all(np.isfinite(array).all() for array in state(pair))
    losses = {row["step"]: row["loss"] for row in rows(tmp_path)}
    assert losses[5] is losses[8] is None and all(losses[step] > 0 for step in (2, 4, 6, 10))


def test_many_consecutive_skips_roll_back_and_leave_out_the_batches(tmp_path, capsys):
    config = RunConfig(epochs=2, save_every=3, log_every=1, max_skipped=2)
    seen = []
    pair, outcome = run(tmp_path, config=config, arrange=poisoned({3, 4}, seen))
    assert outcome.finished and outcome.skipped == 0  # the count went back as well
    assert "Returned to step 3; leaving out batches [3, 4]" in capsys.readouterr().out
    event = next(row for row in rows(tmp_path) if "event" in row)
    assert event["left_out"] == [3, 4]
    assert sorted(set(seen)) == list(range(10))
    assert all(np.isfinite(array).all() for array in state(pair))


@pytest.mark.wide
def test_a_diverged_run_ends_with_one_clear_line(tmp_path):
    config = RunConfig(epochs=2, save_every=1, log_every=1, max_skipped=2)
    with pytest.raises(Diverged, match="not finite for 2 consecutive steps, 3 times after returning to step 0"):
        run(tmp_path, config=config, arrange=poisoned(set(range(10)), []))


@pytest.mark.once
def test_an_error_of_the_data_is_raised_unchanged(tmp_path):
    def arrange(batch):
        raise ValueError("one clear line")

    with pytest.raises(ValueError, match="^one clear line$"):
        run(tmp_path, arrange=arrange)


@pytest.mark.once
def test_a_config_is_checked():
    with pytest.raises(ValueError, match="log_every=0"):
        RunConfig(epochs=1, log_every=0)
    with pytest.raises(ValueError, match="epochs=None"):
        RunConfig(epochs=None)


@pytest.mark.wide
def test_training_works_outside_the_main_thread(tmp_path):
    outcomes = []
    thread = threading.Thread(target=lambda: outcomes.append(run(tmp_path, config=RunConfig(epochs=1))[1]))
    thread.start()
    thread.join()
    assert outcomes[0].finished
