"""One loop for every kind of training, around Keras' `fit`, which is resumed bit for bit from any step.

Batches are functions of (seed, epoch, step), and a checkpoint holds every variable there is: weights, statistics,
seeds of dropout, moments, averages, metrics. So a run goes on from a checkpoint as if it had never stopped.
"""

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import keras
from keras import ops

from zoo.training.checkpoint import Checkpoint, newest_checkpoint, save_checkpoint
from zoo.training.devices import undivided
from zoo.training.history import History
from zoo.training.randomness import random_state, set_random_state
from zoo.utils.files import lock, remove_leftovers

CHECKPOINTS, LOCK, HISTORY = "checkpoints", ".lock", "history.jsonl"
RANDOM = "random"
MAX_RETURNS = 3  # to the same checkpoint


class Diverged(ValueError):
    """The loss stays out of the finite numbers wherever the run goes on from."""


@dataclass(frozen=True)
class Pace:
    """How often a run does what. Steps are counted through all epochs.

    Args:
        epochs: of the whole run.
        save_every: steps between checkpoints; None for once an epoch.
        log_every: steps that a row of the history is the mean of.
        validate_every: steps between validations; None for once an epoch.
        max_skipped: updates left out in a row after which the run goes back to its last checkpoint.
        keep: checkpoints that stay.
    """

    epochs: int
    save_every: int | None = None
    log_every: int = 10
    validate_every: int | None = None
    max_skipped: int = 10
    keep: int = 2

    def __post_init__(self):
        for name, value in vars(self).items():
            if name in ("save_every", "validate_every") and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}={value!r}; it must be an integer of at least 1")


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Fields:
        finished: False when it was told to stop before.
        step: optimisation steps done of `steps`.
        skipped: updates left out because they were not finite.
        bad: samples that could not be used, and were replaced; bad_samples.jsonl names them.
        rows: of the history.
    """

    finished: bool
    step: int
    steps: int
    skipped: int
    bad: int = 0
    rows: list[dict] = field(default_factory=list)


def to_text(outcome: Outcome) -> str:
    """Where a run stands, in one line."""
    how = "Finished" if outcome.finished else "Stopped; --resume goes on"
    skipped = f", {_count(outcome.skipped, 'update')} left out" if outcome.skipped else ""
    bad = f", {_count(outcome.bad, 'bad sample')} replaced" if outcome.bad else ""
    return f"{how}: step {outcome.step} of {outcome.steps}{skipped}{bad}."


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


class Steps(keras.utils.PyDataset):
    """The batches at some places of a run, in their order.

    Args:
        batches: `zoo.data.Batches`; batch i counts through all epochs.
        places: of the batches to give.
        arrange: from a batch to what `fit` takes.
    """

    def __init__(self, batches, places, arrange):
        super().__init__()
        self.batches, self.places, self.arrange = batches, places, arrange
        self.error = None

    def __len__(self):
        return len(self.places)

    def __getitem__(self, index):
        try:
            return self.arrange(self.batches[self.places[index]])
        except Exception as error:
            self.error = error  # TensorFlow wraps what a data set raises in an error of its own
            raise


def train_durably(
    model: keras.Model,
    batches,
    output: str | Path,
    pace: Pace,
    *,
    arrange: Callable = lambda batch: batch,
    validate: Callable[[], Mapping[str, float]] | None = None,
    enough: Callable[[list[dict]], bool] | None = None,
    identity: Mapping[str, object] | None = None,
    resume: bool = False,
) -> Outcome:
    """Trains a compiled model; what it left unfinished in `output` is gone on with when asked.

    SIGTERM, or Ctrl-C once, ends the run after the step it is in, with a checkpoint.

    Args:
        model: compiled with a `Guarded` optimizer that is built.
        batches: `zoo.data.Batches`.
        output: folder for checkpoints/, history.jsonl, history.csv and curves.png.
        arrange: from a batch to what `fit` takes.
        validate: gives metrics of the model as it is; called with the averaged weights when there are any.
        enough: after each validation, whether the rows of the history are reason to end the run.
        identity: what has to be the same for a run to be gone on with, beside the batches: JSON.
        resume: go on from the newest checkpoint that verifies.

    Raises:
        ValueError: another trainer is at work in the folder; it holds another run's checkpoints; the run `Diverged`;
            too many samples are bad.
    """
    if validate is None and pace.validate_every is not None:
        raise ValueError(f"validate_every={pace.validate_every}, but there is no validation data")
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    identity = json.loads(json.dumps({**batches.identity, **(identity or {})}))
    with lock(output / LOCK), told_to_stop() as stop:
        run = _Run(model, batches, output, pace, (arrange, validate, enough), identity, stop)
        run.begin(resume)
        while not run.over:
            run.fit_epoch()
        run.close()
    return Outcome(run.finished, run.position, run.steps, run.skipped, len(batches.bad), run.history.rows)


class _Run(keras.callbacks.Callback):
    """The state of a run between steps. `position` is the place of the next batch, counted through all epochs."""

    def __init__(self, model, batches, output, pace, functions, identity, stop):
        super().__init__()
        self.set_model(model)  # from here on `self.model`, which on JAX first brings back what `fit` holds
        self.batches, self.output, self.pace = batches, output, pace
        self.arrange, self.validate, self.enough = functions
        self.identity, self.stop = identity, stop
        self.steps = pace.epochs * batches.steps
        self.folder = output / CHECKPOINTS
        self.position, self.left_out = 0, []
        self.metrics, self.returns, self.came_from = None, 0, None
        self.stopping, self.has_enough = False, False

    @property
    def finished(self) -> bool:
        return self.position >= self.steps or self.has_enough

    @property
    def over(self) -> bool:
        return self.finished or self.stopping

    @property
    def skipped(self) -> int:
        return int(ops.convert_to_numpy(self.model.optimizer.skipped))

    # Where a run begins, and what it leaves.

    def begin(self, resume: bool) -> None:
        if self.folder.is_dir():
            remove_leftovers(self.folder)
        found = newest_checkpoint(self.folder)
        if found is not None and not resume:
            raise ValueError(
                f"{self.folder} holds checkpoints of a run. Go on with it (resume), or give another output folder."
            )
        if found is None:
            self.history = History(self.output / HISTORY)
            if resume:
                print(f"Nothing to resume in {self.output}: starting afresh.", flush=True)
            self.save()
        else:
            self._check_identity(found)
            self.history = History(self.output / HISTORY, found.history)
            self._restore(found)
            self.has_enough = self.enough is not None and self.enough(self.history.rows)
            print(f"Resuming from {found.path} at step {self.position} of {self.steps}.", flush=True)

    def close(self) -> None:
        self.history.write_csv(self.output / "history.csv")
        self.history.draw(self.output / "curves.png")

    def _check_identity(self, found: Checkpoint) -> None:
        theirs = found.progress["identity"]
        names = [name for name in {**theirs, **self.identity} if theirs.get(name) != self.identity.get(name)]
        if names:
            pairs = [f"{name} was {theirs.get(name)!r} and is {self.identity.get(name)!r}" for name in names]
            raise ValueError(f"{found.path} is of another run: {'; '.join(pairs)}")

    # What a checkpoint holds.

    def save(self) -> None:
        """Writes a checkpoint; one that cannot be written is warned of, and the run goes on."""
        groups = self._variables().items()
        state = {f"{group}/{i:05d}": ops.convert_to_numpy(v) for group, vs in groups for i, v in enumerate(vs)}
        state |= {f"{RANDOM}/{name}": array for name, array in random_state().items()}
        progress = {"identity": self.identity, "position": self.position, "left_out": self.left_out}
        try:
            save_checkpoint(self.folder, state, progress, history=self.history.text, keep=self.pace.keep)
        except OSError as error:
            print(
                f"\nNo checkpoint at step {self.position}: {error}. The one before stays.", file=sys.stderr, flush=True
            )

    def _restore(self, found: Checkpoint) -> None:
        groups = self._variables()
        expected = {f"{group}/{i:05d}": v for group, vs in groups.items() for i, v in enumerate(vs)}
        outside = {name for name in found.state if name.startswith(RANDOM)}
        if expected.keys() != found.state.keys() - outside:
            raise ValueError(
                f"{found.path} holds {len(found.state)} variables; the model and optimizer have {len(expected)}"
            )
        for name, variable in expected.items():
            if tuple(variable.shape) != found.state[name].shape:
                raise ValueError(
                    f"{found.path}: {name} is {found.state[name].shape}; {variable.path} is {variable.shape}"
                )
        for name, variable in expected.items():
            variable.assign(found.state[name])
        set_random_state({name.removeprefix(f"{RANDOM}/"): found.state[name] for name in outside})
        self.metrics = [found.state[name] for name in expected if name.startswith("metrics/")]  # `fit` resets them
        self.position, self.left_out = found.progress["position"], found.progress["left_out"]

    def _variables(self) -> dict[str, list]:
        model = self.model
        return {"model": model.variables, "optimizer": model.optimizer.variables, "metrics": model.metrics_variables}

    # The steps of one epoch.

    def fit_epoch(self) -> None:
        epoch = self.position // self.batches.steps
        ends = (epoch + 1) * self.batches.steps
        left_out = set(self.left_out)
        places = [place for place in range(self.position, ends) if place not in left_out]
        if not places:
            self.position, self.metrics = ends, None
            return
        data = Steps(self.batches, places, self.arrange)
        self.places, self.in_trouble = places, False
        self.bar = keras.utils.Progbar(self.batches.steps, verbose=_verbosity(), unit_name="step")
        self.started = time.perf_counter()
        self.random = random_state()
        print(f"Epoch {epoch + 1}/{self.pace.epochs}", flush=True)
        try:
            self.model.fit(data, shuffle=False, verbose=0, callbacks=[self])
        except Exception:
            if data.error is not None:
                raise data.error from None
            raise
        if self.in_trouble:
            self._go_back()

    def on_epoch_begin(self, *_):
        if self.metrics is not None:
            for variable, value in zip(self.model.metrics_variables, self.metrics, strict=True):
                variable.assign(value)
        self.metrics = None

    def on_train_batch_begin(self, batch, logs=None):  # noqa: ARG002
        if batch == 0:
            set_random_state(self.random)  # torch's data loader has drawn a number, once for each call of `fit`

    def on_train_batch_end(self, batch, logs=None):
        self.position = self.places[batch] + 1
        ends = batch == len(self.places) - 1
        if ends:
            self.position = -(-self.position // self.batches.steps) * self.batches.steps
        due = self._due
        if due(self.pace.log_every, ends) or ends or self.stop.is_set():
            self._look(logs, whole=due(self.pace.log_every, ends) or ends)
        if self.in_trouble:
            self.model.stop_training = True
            return
        if self.validate is not None and due(self.pace.validate_every, ends):
            self._validate()
        self.stopping = self.stop.is_set() and not self.finished
        if due(self.pace.save_every, ends) and not self._in_a_row() or self.stopping or self.finished:
            self.save()
        if self.over:
            self.model.stop_training = True

    def _due(self, every: int | None, epoch_ends: bool) -> bool:
        return epoch_ends if every is None else self.position % every == 0

    def _in_a_row(self) -> int:
        return int(ops.convert_to_numpy(self.model.optimizer.in_a_row))

    def _look(self, logs, *, whole: bool) -> None:
        """Logs a row if one is due, and sees whether updates are left out one after the other."""
        self.in_trouble = self._in_a_row() >= self.pace.max_skipped
        if not whole:
            return
        rate = float(ops.convert_to_numpy(self.model.optimizer.learning_rate))
        seconds, self.started = time.perf_counter() - self.started, time.perf_counter()
        row = {**logs, "learning_rate": rate, "skipped": self.skipped}
        self.bar.stateful_metrics = set(row)  # shown as they are
        self.bar.update((self.position - 1) % self.batches.steps + 1, values=[(k, v) for k, v in row.items()])
        self.history.add(epoch=self._epoch, step=self.position, **row, seconds=round(seconds, 3))
        self.model.reset_metrics()

    @property
    def _epoch(self) -> int:
        """The epoch of the last step, from 1."""
        return (self.position - 1) // self.batches.steps + 1

    def _validate(self) -> None:
        with self.model.optimizer.averaged(), undivided():
            metrics = {f"val_{name}": value for name, value in self.validate().items()}
        self.history.add(epoch=self._epoch, step=self.position, **metrics)
        text = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        print(f"\nStep {self.position}: {text}", flush=True)
        self.has_enough = self.enough is not None and self.enough(self.history.rows)
        if self.has_enough and self.position < self.steps:
            print("The run ends early: validations got no better.", flush=True)

    def _go_back(self) -> None:
        """To the last checkpoint, leaving out the batches whose updates were left out one after the other."""
        count, culprits, place = self._in_a_row(), [], self.position - 1
        while len(culprits) < count and place >= 0:
            if place not in self.left_out:
                culprits.append(place)
            place -= 1
        found = newest_checkpoint(self.folder)
        if found is None:
            raise Diverged(f"The loss is not finite for {count} steps, and there is no checkpoint to go back to.")
        self.returns = self.returns + 1 if found.path == self.came_from else 1
        self.came_from = found.path
        if self.returns > MAX_RETURNS:
            raise Diverged(
                f"The loss is not finite for {count} steps in a row, {MAX_RETURNS} times after going back to step "
                f"{found.progress['position']}. Lower the learning rate, or look at the data."
            )
        left_out = sorted({*self.left_out, *culprits})
        self._restore(found)
        self.left_out = left_out
        self.history.restore(found.history)
        self.history.add(epoch=self._epoch, step=self.position, event="went back", left_out=sorted(culprits))
        print(f"\nWent back to step {self.position}; left out: batches {sorted(culprits)}.", flush=True)


@contextlib.contextmanager
def told_to_stop():
    """An event that SIGTERM sets during the block, and Ctrl-C the first time; a second one interrupts as usual."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event  # signals are the main thread's
        return

    def handle(number, _):
        event.set()
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        with contextlib.suppress(OSError):
            os.write(2, b"\nStopping after this step.\n")  # `print` may be what the signal interrupted

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _verbosity() -> int:
    """A moving bar on a terminal, a line an epoch elsewhere."""
    return 1 if sys.stdout.isatty() else 2
