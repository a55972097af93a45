"""Training on several processes, of one machine or many: each reads its part of every batch, and losses and gradients
are those of the whole. `process_groups` connects them.

The first process alone writes files; all processes take every decision together. `Watch` ends a run whose processes
wait for one that is stuck, and names it.
"""

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras

from convnext import changed_by_call
from zoo.training.config import TrainConfig
from zoo.training.process_groups import GROUPS, Alone, TorchGroup, from_torchrun
from zoo.utils.env import share_of_cores
from zoo.utils.files import atomic_write, make_folder
from zoo.utils.strict_json import OBJECT, read_json

STUCK = 600.0  # seconds without a step after which a run ends; the first step of each function compiles
REPORT = 5.0  # seconds between two reports of a process
VALIDATING = "validating"  # what takes as long as its data are many, and is not watched
FAILED, STUCK_CODE = 1, 70

_group: Alone = Alone()


def count() -> int:
    """Return the number of processes of this run."""
    return _group.count


def rank() -> int:
    """Return the number of this process, 0 for the first."""
    return _group.rank


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return rank() == 0


@contextlib.contextmanager
def joined(config: TrainConfig) -> Iterator[None]:
    """Connect to the other processes of a run for the duration of the block; nothing for a run of one process.

    A process that fails ends at once, so that the others do not wait for it.

    Args:
        config: with coordinator, processes and process_id; without them, torchrun's values are used if it started
            this process.

    Raises:
        ValueError: options that do not fit each other.
    """
    if config.coordinator is None and config.processes is None and config.process_id is None:
        config = dataclasses.replace(config, **from_torchrun())
    address = _checked_address(config)
    if address is None:
        yield
        return
    global _group
    try:
        _group = GROUPS[keras.backend.backend()](*address)
    except (RuntimeError, OSError) as error:
        raise ValueError(f"process {address[2]} cannot join the run at {address[0]}: {error}") from None
    silent = contextlib.nullcontext() if is_first() else contextlib.redirect_stdout(open(os.devnull, "w"))  # noqa: SIM115
    try:
        with silent:
            yield
        _group.close()
    except Exception as error:
        print(f"zoo: process {rank()}: {error}", file=sys.stderr, flush=True)
        os._exit(FAILED)
    _group = Alone()


def _checked_address(config: TrainConfig) -> tuple[str, int, int] | None:
    """Return coordinator, processes and process_id, None for a run of one; ValueError for options that do not fit."""
    coordinator, processes, process_id = config.coordinator, config.processes, config.process_id
    if coordinator is None or processes is None or process_id is None:
        given = [name for name in ("coordinator", "processes", "process_id") if getattr(config, name) is not None]
        if given:
            raise ValueError(
                f"{', '.join(given)}: coordinator, processes and process_id belong together; set all or none"
            )
        return None
    backend = keras.backend.backend()
    if backend not in GROUPS:
        raise ValueError(f"processes={processes} needs JAX or PyTorch, not {backend}; run with --backend jax")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"coordinator={coordinator!r}; it must be HOST:PORT")
    if not 0 <= process_id < processes:
        raise ValueError(f"process_id={process_id}; it must be from 0 to processes - 1 = {processes - 1}")
    if config.batch_size % processes:
        raise ValueError(f"batch_size={config.batch_size} must be a multiple of processes={processes}")
    chunks = getattr(config, "accumulate", 1)
    refused = {
        "devices": (config.devices not in (None, 1), "every process uses all of its own devices"),
        "model_axis": (config.model_axis not in (None, 1), "every process writes or reads whole weights"),
        "accumulate": (chunks > 1 and backend == "jax", "a chunk would span several processes"),
        "teacher": (getattr(config, "teacher", None) is not None, "it runs outside the step, on one process's images"),
    }
    for name, (is_given, why) in refused.items():
        if is_given:
            raise ValueError(f"{name} cannot be used with several processes: {why}")
    if config.batch_size // processes % chunks:
        raise ValueError(f"accumulate={chunks} must divide the {config.batch_size // processes} pairs of a process")
    return (coordinator, processes, process_id) if processes > 1 else None


def barrier(name: str) -> None:
    """Wait until all processes are here."""
    _group.barrier(name)


def total(number: int) -> int:
    """Return the sum of a number over all processes, which all must ask for."""
    return _group.total(number)


def gathers() -> bool:
    """Whether each process computes on its own part of a batch, and embeddings and gradients are exchanged."""
    return isinstance(_group, TorchGroup)


def gather(rows: Any) -> Any:
    """Return the rows of all processes, where they exchange them; see `TorchGroup.gather`."""
    return _group.gather(rows)


def average(values: Sequence) -> None:
    """Replace tensors or variables by their means over the processes, where they exchange them; None is skipped."""
    if isinstance(_group, TorchGroup):
        _group.average([getattr(value, "value", value) for value in values if value is not None])


def average_logs(logs: Mapping[str, float]) -> dict[str, float]:
    """Return the means of metrics over the processes."""
    return dict(zip(logs, _group.means(list(logs.values())), strict=True))


def begin_together(model: keras.Model) -> None:
    """Give all processes the weights of the first, on PyTorch.

    Raises:
        ValueError: the model has a layer whose result depends on the whole batch or is drawn at random, so that the run
            would differ from that of one process.
    """
    if not isinstance(_group, TorchGroup):
        return
    trained = {variable.path.rpartition("/")[0] for variable in model.trainable_variables}
    for variable in changed_by_call(model.non_trainable_variables):
        layer = variable.path.rpartition("/")[0]
        if variable.name == "seed_generator_state":
            raise ValueError(
                f"{layer} draws random numbers for a batch (dropout, stochastic depth, masks); each PyTorch process "
                "would draw them for its own part of the batch. Use a rate of 0, one process, or --backend jax"
            )
        if layer in trained:
            raise ValueError(
                f"{layer} is a BatchNorm, whose statistics would be those of one process's part of a batch. Freeze it, "
                "use one process, or use --backend jax, which takes the statistics of the whole batch"
            )
    _group.take_over([variable.value for variable in model.variables])


def own_name(name: str) -> str:
    """Return the name of a file that every process writes its own of: that of the first is `name`."""
    stem, dot, extension = name.rpartition(".")
    return name if is_first() else f"{stem}-{rank()}{dot}{extension}"


def own_folder(output: Path) -> Path:
    """Return the folder for what every process writes: that of the first is the run's own."""
    return output if is_first() else make_folder(output / "processes" / f"files-{rank()}")


class Watch:
    """Ends the run if this process makes no step for STUCK seconds, and says which process the others wait for.

    Args:
        output: folder of the run, in whose folder "processes" each process reports what it does.
    """

    def __init__(self, output: Path, seconds: float = STUCK):
        self.folder, self.seconds = output / "processes", seconds
        self.position, self.doing, self.since = 0, "starting", time.monotonic()
        self._end = threading.Event()
        if count() > 1:
            make_folder(self.folder)
            threading.Thread(target=self._watch, daemon=True).start()

    def note(self, position: int, doing: str) -> None:
        """Remember what this process does now, at which step of the run."""
        self.position, self.doing, self.since = position, doing, time.monotonic()

    def close(self) -> None:
        """Stop watching."""
        self._end.set()

    def _watch(self) -> None:
        own = self.folder / f"{rank()}.json"
        while not self._end.wait(min(REPORT, self.seconds / 4)):
            idle = time.monotonic() - self.since
            report = {"step": self.position, "doing": self.doing, "idle": round(idle, 1), "host": socket.gethostname()}
            with contextlib.suppress(OSError), atomic_write(own, "w") as file:
                json.dump({**report, "pid": os.getpid()}, file)
            if idle > self.seconds and self.doing != VALIDATING:
                print(f"\nzoo: {self._culprits()}", file=sys.stderr, flush=True)
                os._exit(STUCK_CODE)

    def _culprits(self) -> str:
        """Name the processes that are behind: those that read a batch, else those at the lowest step."""
        reports = {}
        for number in range(count()):
            with contextlib.suppress(OSError, ValueError):
                reports[number] = read_json(self.folder / f"{number}.json", OBJECT)
        behind = [n for n, report in reports.items() if report.get("doing") == "reading"]
        least = min((report.get("step", 0) for report in reports.values()), default=0)
        behind = behind or [n for n, report in reports.items() if report.get("step") == least]
        where = (f"process {n} on {reports[n].get('host')}, {reports[n].get('doing')} at step {least}" for n in behind)
        return (
            f"no step for {self.seconds:.0f} s; the run waits for {'; '.join(where) or 'a process that never started'}"
        )


def launch(processes: int, arguments: Sequence[str]) -> int:
    """Run a training command in several processes of this machine, connected over 127.0.0.1: `--local-processes`.

    Each process has its share of the cores. If one fails, the others are ended.

    Args:
        arguments: of the command `zoo`, without `--local-processes`.

    Returns:
        The exit code: 0, or that of the first process that failed.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [sys.executable, "-m", "zoo", *arguments, "--coordinator", address, "--processes", str(processes)]
    children = []
    for number in range(processes):
        with share_of_cores(number, processes) as variables:
            children.append(subprocess.Popen([*command, "--process-id", str(number)], env=os.environ | variables))
    return wait_for(children)


def wait_for(children: Sequence[subprocess.Popen]) -> int:
    """Return the exit code of the first that fails, having ended the others; pass on SIGTERM and Ctrl-C."""

    def pass_on(number: int, _: object) -> None:
        for child in children:
            child.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    while True:
        codes = [child.poll() for child in children]
        failed = next((code for code in codes if code), 0)  # negative for a child that a signal ended
        if failed:
            for child in children:
                child.kill()
        if failed or None not in codes:
            return failed
        time.sleep(0.2)
