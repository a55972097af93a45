"""The training loop of every mode, around Keras' `fit`. A run resumes from any checkpoint bit for bit.

Batches are functions of (seed, epoch, step), and a checkpoint holds every variable: weights, statistics, dropout
seeds, moments, averages and metrics. So a resumed run continues as if it had never stopped.
"""

import contextlib
import dataclasses
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from zoo.data import Batches
from zoo.training import processes
from zoo.training.checkpoint import CHECKPOINTS, Checkpoint, first_epochs, newest_checkpoint, save_checkpoint
from zoo.training.config import REPORTS, TrainConfig
from zoo.training.devices import without_distribution
from zoo.training.history import STEP, History, check_rows, validation_text
from zoo.training.processes import VALIDATING
from zoo.training.randomness import random_state, set_random_state
from zoo.utils.files import lock, remove_leftovers
from zoo.utils.strict_json import OBJECT, check_fields, list_of
from zoo.utils.text import quoted, shown

LOCK, HISTORY = ".lock", "history.jsonl"
RANDOM = "random"
PROGRESS = {"identity": OBJECT, "position": STEP, "left_out": list_of(STEP)}  # of a checkpoint
MAX_ROLLBACKS = 3  # to the same checkpoint


class Diverged(ValueError):
    """The loss is not finite even after returning to the last checkpoint."""


@dataclass(frozen=True)
class RunConfig:
    """How long a run is, and how often it logs, validates and saves. Steps are counted through all epochs.

    Args:
        epochs: passes over the data.
        save_every: steps between checkpoints; None for one per epoch.
        log_every: steps per row of the history.
        validate_every: steps between validations; None for one per epoch.
        max_skipped: consecutive skipped updates after which the run returns to its last checkpoint.
        report_to: "tensorboard" also writes the history for it.
    """

    epochs: int
    save_every: int | None = None
    log_every: int = 10
    validate_every: int | None = None
    max_skipped: int = 10
    report_to: str | None = None

    def __post_init__(self):
        if self.report_to not in (None, *REPORTS):
            raise ValueError(f"report_to={self.report_to!r}; it must be one of {', '.join(REPORTS)}")
        for name, value in vars(self).items():
            if name == "report_to" or value is None and name in ("save_every", "validate_every"):
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name}={value!r}; it must be an integer of at least 1")

    @classmethod
    def of(cls, config: TrainConfig) -> "RunConfig":
        """Return the part of a mode's config that the loop needs."""
        return cls(**{field.name: getattr(config, field.name) for field in dataclasses.fields(cls)})


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Fields:
        finished: False if a signal stopped it.
        step: steps done of `steps`.
        skipped: updates skipped because a gradient was not finite.
        bad: samples that could not be used and were replaced; bad_samples.jsonl names them.
        rows: rows of the history.
        files: {what it is: path} of what the run wrote.
        use: commands for the model.
    """

    finished: bool
    step: int
    steps: int
    skipped: int
    bad: int = 0
    rows: list[dict] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    use: tuple[str, ...] = ()


def to_text(outcome: Outcome) -> str:
    """Return how a run ended in one line, then where its files are and what to do with the model, a line each."""
    how = "Finished" if outcome.finished else "Stopped; continue with --resume"
    skipped = f", {_count(outcome.skipped, 'update')} skipped" if outcome.skipped else ""
    bad = f", {_count(outcome.bad, 'bad sample')} replaced" if outcome.bad else ""
    lines = [f"{how}: step {outcome.step} of {outcome.steps}{skipped}{bad}."]
    lines += [f"  {label:<9}{path}" for label, path in outcome.files.items()]
    lines += [f"  {'use it' if i == 0 else '':<9}{command}" for i, command in enumerate(outcome.use)]
    return "\n".join(lines)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


class Steps(keras.utils.PyDataset):
    """The batches at some places of a run, in order.

    Args:
        batches: `zoo.data.Batches`; batch i counts through all epochs.
        places: numbers of the batches.
        arrange: from a batch to what `fit` takes.
        note: told the place and what this process does with it, for `processes.Watch`.
    """

    def __init__(self, batches, places, arrange, note=lambda place, doing: None):  # noqa: ARG005
        super().__init__()
        self.batches, self.places, self.arrange, self.note = batches, places, arrange, note
        self.error = None

    def __len__(self):
        return len(self.places)

    def __getitem__(self, index):
        self.note(self.places[index], "reading")
        try:
            return self.arrange(self.batches[self.places[index]])
        except Exception as error:
            self.error = error  # TensorFlow wraps what a data set raises
            raise
        finally:
            self.note(self.places[index], "computing")


def fit_resumable(
    model: keras.Model,
    batches: Batches,
    output: str | Path,
    config: RunConfig,
    *,
    arrange: Callable = lambda batch: batch,
    validate: Callable[[], Mapping[str, float]] | None = None,
    should_stop: Callable[[list[dict]], bool] | None = None,
    identity: Mapping[str, object] | None = None,
    resume: bool = False,
    schedule: str = "",
) -> Outcome:
    """Train a compiled model with checkpoints; with `resume`, continue an unfinished run.

    SIGTERM, or Ctrl-C once, ends the run after the current step, with a checkpoint; a run of several processes after
    the next step that is logged, since they have to agree.

    Args:
        model: compiled with a built `SkipNonFinite` optimizer.
        batches: `zoo.data.Batches`.
        output: folder for checkpoints/, history.jsonl, history.csv and curves.png.
        arrange: from a batch to what `fit` takes.
        validate: returns metrics of the model; called with the averaged weights if there is an EMA.
        should_stop: called with the rows of the history after each validation; True ends the run.
        identity: JSON values that must be the same for a checkpoint to be resumed, besides those of the batches.
        resume: resume from the newest intact checkpoint, also with more epochs than the run had.
        schedule: line about the learning rate, printed when a run begins.

    Raises:
        ValueError: another process trains in the folder; it holds another run's checkpoints; the run `Diverged`; too
            many samples are bad.
    """
    if validate is None and config.validate_every is not None:
        raise ValueError(f"validate_every={config.validate_every}, but there is no validation data")
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    identity = json.loads(json.dumps({**batches.identity, **(identity or {})}))
    held = lock(output / LOCK) if processes.is_first() else contextlib.nullcontext()
    with held, _stop_on_signal() as stop:
        run = _Run(model, batches, output, config, (arrange, validate, should_stop), identity, stop)
        run.begin(resume)
        if schedule and run.position == 0:
            print(schedule, flush=True)
        while not run.over:
            run.fit_epoch()
        run.close()
    bad = processes.total(len(batches.bad))
    return Outcome(run.finished, run.position, run.steps, run.skipped, bad, run.history.rows)


class _Run(keras.callbacks.Callback):
    """The state of a run between steps. `position` is the place of the next batch, counted through all epochs."""

    def __init__(self, model, batches, output, config, functions, identity, stop):
        super().__init__()
        self.set_model(model)  # on JAX, `self.model` first copies back the variables that `fit` holds
        self.batches, self.output, self.config = batches, output, config
        self.arrange, self.validate, self.should_stop = functions
        self.identity, self.stop = identity, stop
        self.steps = config.epochs * batches.steps
        self.folder = output / CHECKPOINTS
        self.position, self.left_out = 0, []  # numbers of the batches that led to non-finite updates
        self.metrics, self.rollbacks, self.rolled_back_to = None, 0, None
        self.stopping, self.ends_early = False, False
        self.first_epochs = config.epochs
        self.said_skipped = self.logged = 0  # updates that a line has named; step of the last row
        self.watch = processes.Watch(output)
        self.random = random_state()  # of the next step

    @property
    def finished(self) -> bool:
        return self.position >= self.steps or self.ends_early

    @property
    def over(self) -> bool:
        return self.finished or self.stopping

    @property
    def skipped(self) -> int:
        return int(ops.convert_to_numpy(self.model.optimizer.skipped))

    # The start and the end.

    def begin(self, resume: bool) -> None:
        if processes.is_first():
            remove_leftovers(self.folder)
        processes.barrier("the folder is clean")
        found = newest_checkpoint(self.folder)
        processes.barrier("all have read the checkpoint")  # before the first one writes another
        if found is not None and not resume:
            raise ValueError(
                f"{shown(self.folder)} holds checkpoints of a run. Resume it (resume), or give another output folder."
            )
        if found is not None:
            self._check_identity(found)
            self._restore(found)
        text = "" if found is None else found.history
        self.history = History(self.output / HISTORY, text, self.config.report_to, writes=processes.is_first())
        if found is None:
            if resume:
                print(f"Nothing to resume in {shown(self.output)}: starting from the beginning.", flush=True)
            self.save()
            return
        self._stop_early()
        print(f"Resuming from {shown(found.path)} at step {self.position} of {self.steps}.", flush=True)
        before = found.progress["identity"].get("epochs", self.config.epochs)
        if before != self.config.epochs:
            print(
                f"With {self.config.epochs} epochs instead of {before}, the learning rate falls to 0 at step "
                f"{self.steps}; it continues at {self.learning_rate():.3g}.",
                flush=True,
            )

    def learning_rate(self) -> float:
        return float(ops.convert_to_numpy(self.model.optimizer.learning_rate))

    def _stop_early(self) -> None:
        self.ends_early = self.should_stop is not None and self.should_stop(self.history.rows)

    def close(self) -> None:
        self.watch.close()
        if not processes.is_first():
            return
        self.history.write_csv(self.output / "history.csv")
        self.history.draw(self.output / "curves.png")

    def _check_identity(self, found: Checkpoint) -> None:
        where = f"{shown(found.path)}: progress.json"
        check_fields(found.progress, PROGRESS, where, others=True)
        check_rows(found.history, f"{shown(found.path)}: {HISTORY}")
        theirs = found.progress["identity"]
        names = [name for name in {**theirs, **self.identity} if theirs.get(name) != self.identity.get(name)]
        if isinstance(before := theirs.get("epochs"), int) and before < self.config.epochs:
            names = [name for name in names if name != "epochs"]
        if names:
            told = [(shown(name), quoted(theirs.get(name)), quoted(self.identity.get(name))) for name in names[:8]]
            pairs = "; ".join(f"{name} was {before} and is {now}" for name, before, now in told)
            raise ValueError(f"{shown(found.path)} is of another run: {pairs}")

    # Checkpoints.

    def save(self) -> None:
        """Write a checkpoint; of several processes the first does. If that fails, say so and continue."""
        processes.average(self.model.metrics_variables)
        if not processes.is_first():
            return
        state = {name: ops.convert_to_numpy(variable) for name, variable in self.variables().items()}
        state |= {f"{RANDOM}/{name}": array for name, array in random_state().items()}
        progress = {"identity": self.identity, "position": self.position, "left_out": self.left_out}
        progress["first_epochs"] = self.first_epochs
        try:
            save_checkpoint(self.folder, state, progress, history=self.history.text)
        except OSError as error:
            print(
                f"\nNo checkpoint at step {self.position}: {shown(error)}. The previous one is kept.",
                file=sys.stderr,
                flush=True,
            )

    def _restore(self, found: Checkpoint) -> None:
        """Take over a checkpoint's state. ValueError, with nothing changed, if it does not fit the run."""
        position, left_out = found.progress["position"], found.progress["left_out"]
        if max([position, *(place + 1 for place in left_out)]) > self.steps:
            raise ValueError(
                f"{shown(found.path)} is at step {position} and leaves out {len(left_out)} batches, up to "
                f"{max(left_out, default=0)}; the run has {self.steps} steps"
            )
        expected = self.variables()
        outside = {name for name in found.state if name.startswith(RANDOM)}
        if expected.keys() != found.state.keys() - outside:
            raise ValueError(
                f"{shown(found.path)} holds {len(found.state)} variables; the model and optimizer have {len(expected)}"
            )
        for name, variable in expected.items():
            values = found.state[name]
            if tuple(variable.shape) != values.shape:
                raise ValueError(
                    f"{shown(found.path)}: {name} has shape {values.shape}; {variable.path} needs {variable.shape}"
                )
            if name.startswith("model/") and values.dtype.kind == "f" and not np.isfinite(values).all():
                raise ValueError(f"{shown(found.path)}: {name}, {variable.path}, holds NaN or infinity")
        set_random_state({name.removeprefix(f"{RANDOM}/"): found.state[name] for name in outside})
        for name, variable in expected.items():
            variable.assign(found.state[name])
        self.random = random_state()
        self.metrics = None
        if position % self.batches.steps:  # within an epoch; `fit` resets them
            self.metrics = [found.state[name] for name in expected if name.startswith("metrics/")]
        self.position, self.left_out = position, left_out
        self.first_epochs = first_epochs(found.progress) or self.config.epochs
        self.said_skipped, self.logged = self.skipped, self.position

    def variables(self) -> dict[str, Any]:
        """Return {name in a checkpoint: variable}."""
        model = self.model
        groups = {"model": model.variables, "optimizer": model.optimizer.variables, "metrics": model.metrics_variables}
        return {f"{group}/{i:05d}": variable for group, those in groups.items() for i, variable in enumerate(those)}

    # The steps of one epoch.

    def fit_epoch(self) -> None:
        epoch = self.position // self.batches.steps
        ends = (epoch + 1) * self.batches.steps
        left_out = set(self.left_out)
        places = [place for place in range(self.position, ends) if place not in left_out]
        if not places:
            self.position, self.metrics = ends, None
            return
        data = Steps(self.batches, places, self.arrange, self.watch.note)
        self.places, self.in_trouble = places, False
        verbosity = 1 if sys.stdout.isatty() else 2  # a progress bar on a terminal, one line per epoch elsewhere
        self.bar = keras.utils.Progbar(self.batches.steps, verbose=verbosity, unit_name="step")
        self.started = time.perf_counter()
        print(f"Epoch {epoch + 1}/{self.config.epochs}", flush=True)
        try:
            self.model.fit(data, shuffle=False, verbose=0, callbacks=[self])
        except Exception:
            if data.error is not None:
                raise data.error from None
            raise
        if self.in_trouble:
            self._roll_back()

    def on_epoch_begin(self, *_):
        if self.metrics is not None:
            for variable, value in zip(self.model.metrics_variables, self.metrics, strict=True):
                variable.assign(value)
        self.metrics = None

    def on_train_batch_begin(self, batch, logs=None):  # noqa: ARG002
        if batch == 0:
            set_random_state(self.random)  # torch's data loader draws a number at each call of `fit`

    def on_train_batch_end(self, batch, logs=None):
        self.position = self.places[batch] + 1
        ends = batch == len(self.places) - 1
        if ends:
            self.position = -(-self.position // self.batches.steps) * self.batches.steps
        due = lambda every: ends if every is None else self.position % every == 0  # noqa: E731
        logs_now = ends or due(self.config.log_every)
        stops = self._agreed_to_stop(logs_now)
        if logs_now or stops:
            self.in_trouble = self._in_a_row() >= self.config.max_skipped
        if logs_now:
            self._log(logs)
        if self.in_trouble:
            self.model.stop_training = True
            return
        if self.validate is not None and due(self.config.validate_every):
            self._validate()
        self.stopping = stops and not self.finished
        if due(self.config.save_every) and not self._in_a_row() or self.stopping or self.finished:
            self.save()
        if ends:
            self.random = random_state()  # as a checkpoint at this step holds it
        if self.over:
            self.model.stop_training = True

    def _agreed_to_stop(self, logged: bool) -> bool:
        """Whether the run is to stop: because of a signal, in several processes because of one to any of them."""
        if processes.count() == 1:
            return self.stop.is_set()
        return logged and processes.total(self.stop.is_set()) > 0

    def _in_a_row(self) -> int:
        return int(ops.convert_to_numpy(self.model.optimizer.in_a_row))

    def _log(self, logs) -> None:
        """Log a row."""
        row: dict[str, Any] = {**processes.average_logs(logs), "learning_rate": self.learning_rate()}
        seconds, self.started = time.perf_counter() - self.started, time.perf_counter()
        self.bar.stateful_metrics = set(row)  # not averaged again
        self.bar.update((self.position - 1) % self.batches.steps + 1, values=list(row.items()))
        self._say_skipped()
        self.history.add(epoch=self._epoch, step=self.position, **row, skipped=self.skipped, seconds=round(seconds, 3))
        self.model.reset_metrics()

    def _say_skipped(self) -> None:
        """Print how many updates were skipped since the last row, and why."""
        new, first = self.skipped - self.said_skipped, self.logged + 1
        self.said_skipped, self.logged = self.skipped, self.position
        if new <= 0:
            return
        steps = f"Step {first}" if first == self.position else f"Steps {first} to {self.position}"
        what = "1 update was" if new == 1 else f"{new} updates were"
        if self.model.optimizer.initial_scale is None:
            next_ = f"after {self.config.max_skipped} in a row the run returns to its last checkpoint"
        else:
            next_ = "each halves the loss scale, which is usual at the start of training in float16"
        print(
            f"\n{steps}: {what} skipped because a gradient was not finite (NaN or infinite); "
            f"the weights stay as they were, and {next_}.",
            flush=True,
        )

    @property
    def _epoch(self) -> int:
        """The number of the last step's epoch, from 1."""
        return (self.position - 1) // self.batches.steps + 1

    def _validate(self) -> None:
        self.watch.note(self.position, VALIDATING)
        with self.model.optimizer.averaged(), without_distribution():
            metrics = {f"val_{name}": value for name, value in self.validate().items()}
        self.watch.note(self.position, "computing")
        self.history.add(epoch=self._epoch, step=self.position, **metrics)
        print(f"\n{validation_text(self.position, metrics)}", flush=True)
        self._stop_early()
        if self.ends_early and self.position < self.steps:
            print("Early stopping: the validations no longer improve.", flush=True)

    def _roll_back(self) -> None:
        """Return to the last checkpoint and leave out the batches of the skipped updates from now on."""
        count = self._in_a_row()
        done = (place for place in range(self.position) if place not in self.left_out)
        culprits = list(done)[-count:]
        processes.barrier("the checkpoint is written")
        found = newest_checkpoint(self.folder)
        if found is None:
            raise Diverged(f"The loss is not finite for {count} steps, and there is no checkpoint to return to.")
        self.rollbacks = self.rollbacks + 1 if found.path == self.rolled_back_to else 1
        self.rolled_back_to = found.path
        if self.rollbacks > MAX_ROLLBACKS:
            raise Diverged(
                f"The loss is not finite for {count} consecutive steps, {MAX_ROLLBACKS} times after returning to step "
                f"{found.progress['position']}. Lower the learning rate, or check the data."
            )
        left_out = sorted({*self.left_out, *culprits})
        self._restore(found)
        self.left_out = left_out
        self.history.restore(found.history)
        self.history.add(epoch=self._epoch, step=self.position, event="went back", left_out=culprits)
        print(f"\nReturned to step {self.position}; leaving out batches {culprits}.", flush=True)


@contextlib.contextmanager
def _stop_on_signal() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM or the first Ctrl-C sets; a second Ctrl-C interrupts as usual."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event  # only the main thread can handle signals
        return

    def handle(number, _):
        event.set()
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        with contextlib.suppress(OSError):
            os.write(2, b"\nStopping after this step.\n")  # the signal may have interrupted a `print`

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
