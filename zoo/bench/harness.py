"""`bench`: starts a process for each case, lets them take turns, and gathers a `Report`."""

import contextlib
import dataclasses
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

from zoo.bench import timing
from zoo.bench.bars import compare_two, time_commands
from zoo.bench.cases import DTYPES, MODES, OURS, PARTS, PEERS, RUNTIMES, Case, Ratio, Report, Result, combine, flops_of
from zoo.bench.machine import command_of, describe_machine
from zoo.bench.presets import ACROSS, LIMITS, PRESETS
from zoo.bench.processes import NO_LIMITS, Limits, Worker, WorkerError
from zoo.bench.table import write
from zoo.utils.env import BACKENDS, available_cores, installed_backends

ROUNDS = 5
SMOKE = {"batch_size": (2,), "image_size": (32,), "is_short": (True,)}
SMOKE_NAME = "resnet50"  # the smallest that a library which is always there, Keras, has as well
YARDSTICK = "matmul"
ALLOWED = {"part": PARTS, "dtype": DTYPES, "mode": MODES, "runtime": RUNTIMES, "peer": (*PEERS, "none")}


def bench(
    names: Sequence[str] = (),
    *,
    backend: Sequence[str] | None = None,
    batch_size: Sequence[int] | None = None,
    image_size: Sequence[int] | None = None,
    dtype: Sequence[str] | None = None,
    part: Sequence[str] | None = None,
    mode: Sequence[str] | None = None,
    runtime: Sequence[str] | None = None,
    peer: Sequence[str] | None = None,
    train: bool = False,
    preset: str | None = None,
    rounds: int | None = None,
    threads: int | None = None,
    limit: float | None = None,
    memory: float | None = None,
    smoke: bool = False,
    output: str | Path | None = None,
) -> Report:
    """Times models beside peers, each case in a process of its own, turn and turn about.

    Every combination of the options is a case. Cases of one name, part, batch size and image size take turns.

    Args:
        names: of models; a preset has its own.
        backend: Keras' names; $KERAS_BACKEND or the first one installed unless given.
        batch_size: 8 unless given.
        image_size: in pixels, the model's own unless given.
        dtype: "float32", "bfloat16", "float16"; "tfloat32" on CUDA; "int8" with ONNX Runtime.
        part: "classifier"; of a pair "image", "text", "pair" or "zero-shot".
        mode: "eager", "compiled", "predict", "predictor"; eager in torch and compiled elsewhere unless given.
        runtime: "keras", "folded", "onnx".
        peer: libraries to time the same architecture from; keras.applications where it has it unless given; "none".
        train: time a training step too.
        preset: of `zoo.bench.presets`.
        rounds: turns of each case, 5 unless given.
        threads: of a call; the cores this process may use unless given.
        limit: seconds that a case may take until it is warm, and for a turn; what takes longer is left out. Any unless
            given or the preset has one.
        memory: gigabytes (10⁹ bytes) that the process of a case may hold; likewise.
        smoke: a tiny run, to see that everything works; its figures mean nothing.
        output: folder for bench.md, bench.json and bench.png.

    Raises:
        ValueError: unknown names or values, a backend or a peer that is not installed, or nothing that could be timed.
    """
    options = {
        "backend": backend,
        "batch_size": batch_size,
        "image_size": image_size,
        "dtype": dtype,
        "part": part,
        "mode": mode,
        "runtime": runtime,
        "peer": peer,
    }
    options = {key: tuple(values) for key, values in options.items() if values}
    check_options(options)
    others = {"rounds": rounds, "threads": threads, "limit": limit, "memory": memory, "smoke": smoke, "output": output}
    command = command_of(names, options, train=train, preset=preset, **others)
    options |= {"train": (False, True)} if train else {}
    rounds = rounds or (2 if smoke else ROUNDS)
    groups = plan(names, options, preset, threads, smoke)
    limits = choose_limits(preset, limit, memory)
    yardsticks = plan_yardsticks(groups, smoke)
    machine = describe_machine(groups[0][0].threads)
    rates = {f"{case.backend}, {case.dtype}": rate for case, rate in measure_rates(yardsticks, rounds)}
    commands = time_commands() if preset == "bars" else {}
    results, ratios = [], []
    for group in groups:
        found = run_group(group, rounds, rates, limits)
        ratios += compare(found, len(results))
        results += found
        report = Report(command, machine, rates, tuple(results), tuple(ratios), preset, commands)
        if output is not None and any(not result.error for result in results):
            write(report, Path(output))  # after each group: a run that is stopped has not been for nothing
    if all(result.error for result in results):
        raise ValueError(f"No case could be timed. {label(results[0].case)}: {results[0].error}")
    return report


# Cases.


def check_options(options: dict) -> None:
    """ValueError for a value that an option does not have, or a library that is not there."""
    for key, allowed in ALLOWED.items():
        unknown = [value for value in options.get(key, ()) if value not in allowed]
        if unknown:
            raise ValueError(f"{key} must be one of {', '.join(map(repr, allowed))}, got {unknown[0]!r}.")
    for key in ("batch_size", "image_size"):
        if any(value < 1 for value in options.get(key, ())):
            raise ValueError(f"{key} must be positive, got {min(options[key])}.")
    for name in options.get("backend", ()):
        if name not in BACKENDS:
            raise ValueError(f"Unknown backend {name!r}. Allowed: {', '.join(BACKENDS)}.")
        if name not in installed_backends():
            raise ValueError(f"Backend {name!r} is not installed: pip install 'convnext-clip-zoo[{name}]'.")
    for name in options.get("peer", ()):
        library = PEERS.get(name)
        if library and not importlib.util.find_spec(library.module):
            raise ValueError(f"peer {name!r} is not installed: pip install {library.package}")


def plan(names, options, preset=None, threads=None, smoke=False) -> list[list[Case]]:
    """Groups of cases that take turns.

    Raises:
        ValueError: no names, an unknown preset, or no case.
    """
    if preset is not None and preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(map(repr, PRESETS))}, got {preset!r}.")
    if not (names or preset or smoke):
        raise ValueError(f"Name a model, or a preset: {', '.join(PRESETS)}.")
    cores = available_cores()
    if threads is not None and not 1 <= threads <= cores:
        raise ValueError(f"threads must be 1 to {cores}, the cores this process may use, got {threads}.")
    usual = {"threads": (threads or cores,), "backend": (usual_backend(),)}
    own = {**(SMOKE if smoke else {}), **options}
    groups: dict[tuple, dict[Case, None]] = {}
    for number, sweep in enumerate(PRESETS[preset] if preset else ({"names": (SMOKE_NAME,)},)):
        sweep = {"across": ACROSS, **sweep}
        across, its_names, label = sweep.pop("across"), sweep.pop("names"), sweep.pop("group", number)
        with_ours = sweep.pop("ours", True)
        for case in combine(names or its_names, {**usual, **sweep, **own}):
            if case.library == OURS and not with_ours:
                continue
            key = (label, *(getattr(case, field.name) for field in dataclasses.fields(case)
                             if field.name not in across))  # fmt: skip
            groups.setdefault(key, {})[case] = None  # once, where sweeps of a group have it in common
    if not groups:
        raise ValueError(
            f"Nothing runs by `{command_of(names, own)}`: int8 takes --runtime onnx; onnx and folded take a forward "
            "pass of a model of ours, no --train, and onnx float32, float16 or int8."
        )
    return [list(group) for group in groups.values()]


def usual_backend() -> str:
    """The environment's choice, else the first backend installed.

    Raises:
        ValueError: none is.
    """
    installed = installed_backends()
    if not installed:
        raise ValueError("No backend is installed: pip install 'convnext-clip-zoo[jax]' (or tensorflow, torch).")
    chosen = os.environ.get("KERAS_BACKEND") or installed[0]
    check_options({"backend": (chosen,)})
    return chosen


def choose_limits(preset: str | None, limit: float | None, memory: float | None) -> Limits:
    """What the user gives, else what the preset has.

    Raises:
        ValueError: a limit that leaves nothing.
    """
    for name, value in (("limit", limit), ("memory", memory)):
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be positive, got {value}.")
    seconds, gigabytes = LIMITS.get(preset, (None, None))
    seconds, gigabytes = limit or seconds, memory or gigabytes
    return Limits(seconds, gigabytes and 1e9 * gigabytes)


def plan_yardsticks(groups, smoke) -> list[Case]:
    """A matrix product for each dtype of the cases and each backend that is installed."""
    cases = [case for group in groups for case in group]
    backends = {case.backend for case in cases} if smoke else installed_backends()
    dtypes = dict.fromkeys(["float32", *(case.dtype for case in cases if case.dtype != "int8")])
    short = {"threads": cases[0].threads, "is_short": smoke}
    return [
        Case(YARDSTICK, part="matmul", backend=name, dtype=dtype, **short)
        for dtype in dtypes
        for name in sorted(backends)
    ]


# Running.


def run_group(cases: Sequence[Case], rounds: int, rates: dict[str, float], limits: Limits = NO_LIMITS) -> list[Result]:
    """The results of cases that take turns."""
    workers, results = {}, {}
    try:
        for case in cases:
            say(f"{label(case)}: starting")
            try:
                workers[case] = Worker(case, limits)
            except WorkerError as error:
                results[case] = Result(case, error=str(error))
                say(f"{label(case)}: {error}")
        say(f"{len(workers)} taking turns, {rounds} rounds")
        try:
            turns = timing.take_turns({case: worker.take_turn for case, worker in workers.items()}, rounds)
        except WorkerError as error:  # which one it was is not known any more, and the turns are not comparable
            turns = {}
            results |= {case: Result(case, error=f"a process of its group failed: {error}") for case in workers}
        results |= {case: gather(case, workers[case], turns[case], rates) for case in turns}
    finally:
        for worker in workers.values():
            worker.close()
    return with_differences([results[case] for case in cases])


def gather(case: Case, worker: Worker, rounds, rates: dict[str, float]) -> Result:
    """The `Result` of a worker's turns."""
    p50, p90 = timing.percentile(rounds, 0.5), timing.percentile(rounds, 0.9)
    flops, best = flops_of(case), best_rate(case, rates)
    per_second = case.items / p50
    return Result(
        case,
        worker.ready["device"],
        worker.ready["parameters"],
        flops,
        worker.ready["build_seconds"],
        worker.ready["first_seconds"],
        tuple(map(tuple, rounds)),
        p50,
        p90,
        per_second,
        worker.ready["library_bytes"],
        worker.last["host_bytes"],
        worker.last["device_bytes"],
        per_second * flops / best if best and flops else None,
        worker.ready["similarities"] and tuple(worker.ready["similarities"]),
    )


def with_differences(results: Sequence[Result]) -> list[Result]:
    """The results of a group with how far those in other precisions and runtimes are from float32's by Keras."""
    exact: dict[Case, Result] = {}
    for result in results:
        if result.similarities and (result.case.dtype, result.case.runtime) == ("float32", "keras"):
            exact.setdefault(same_work(result.case), result)

    def with_difference(result):
        other = exact.get(same_work(result.case))
        if other in (None, result) or not result.similarities:
            return result
        gaps = [abs(a - b) for a, b in zip(result.similarities, other.similarities, strict=True)]
        return dataclasses.replace(result, difference=max(gaps))

    return [with_difference(result) for result in results]


def same_work(case: Case) -> Case:
    """A case without what may change its rounding alone. Random weights are the same on one backend."""
    return dataclasses.replace(case, dtype="float32", mode="eager", runtime="keras")


def best_rate(case: Case, rates: dict[str, float]) -> float | None:
    """FLOP/s of the best matrix product in a case's dtype or in float32, by any backend; of int8 there is none.

    float32 counts for the others because CPUs without half-precision products are faster by way of it.
    """
    if case.dtype == "int8":
        return None
    dtypes = {case.dtype, "float32"}
    return max((rate for key, rate in rates.items() if key.partition(", ")[2] in dtypes), default=None)


def measure_rates(cases: Sequence[Case], rounds: int) -> list[tuple[Case, float]]:
    """(case, FLOP/s) of the yardsticks that can be measured, the best call of each."""
    rates = []
    for case in cases:
        say(f"matrix product, {case.backend}, {case.dtype}")
        try:
            with contextlib.closing(Worker(case)) as worker:
                calls = [seconds for _ in range(rounds) for seconds in worker.take_turn()]
                rates.append((case, worker.ready["call_flops"] / min(calls)))
        except WorkerError as error:
            say(f"left out: {error}")
    return rates


def compare(results: Sequence[Result], start: int = 0) -> list[Ratio]:
    """The ratios of a group: each of ours to each peer of it; where there is none, the first to all others.

    Args:
        start: number of the first of these results among all.
    """
    timed = [i for i, result in enumerate(results) if not result.error]
    pairs = [(i, j) for i in timed for j in timed if is_peer(results[j].case, results[i].case)]
    pairs = pairs or [(timed[0], j) for j in timed[1:]]
    return [Ratio(start + i, start + j, *compare_two(results[i], results[j])) for i, j in pairs]


def is_peer(other: Case, case: Case) -> bool:
    """Whether `other` is another library's of the same work; a library on Keras on the same backend."""
    if case.library != OURS or other.library == OURS:
        return False
    same = all(getattr(case, f) == getattr(other, f) for f in ("name", "part", "batch_size", "image_size", "train"))
    same &= other.dtype == ("float32" if case.dtype == "int8" else case.dtype)
    return same and (not PEERS[other.library].on_keras or other.backend == case.backend)


def label(case: Case) -> str:
    """A case in one line."""
    what = case.part + (" training" if case.train else "")
    where = f"{case.runs_on} {case.mode}" if case.runtime != "onnx" else case.runs_on
    return f"{case.name} {what}, {case.library}, {where}, {case.dtype}, {case.batch_size} × {case.image_size} px"


def say(text: str) -> None:
    print(text, flush=True)
