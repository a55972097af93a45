"""`bench`: start a process per case, let the cases take turns, collect a `Report`."""

import contextlib
import dataclasses
import importlib.util
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from convnext import renamed
from zoo.bench import timing
from zoo.bench.bars import compare_two, time_commands
from zoo.bench.cases import DTYPES, MODES, OURS, PARTS, PEERS, RUNTIMES, Case, Ratio, Report, Result, combine, flops_of
from zoo.bench.machine import command_of, describe_machine
from zoo.bench.presets import ACROSS, LIMITS, PRESETS
from zoo.bench.processes import NO_LIMITS, Limits, Worker, WorkerError
from zoo.bench.serving import ServeReport, bench_serving
from zoo.bench.table import write
from zoo.utils.env import BACKENDS, available_cores, installed_backends

ROUNDS = 5
SMOKE = {"batch_size": (2,), "image_size": (32,), "is_short": (True,)}
SMOKE_NAME = "resnet50"  # the smallest model that keras.applications also has
SERVE = "serve"  # a preset of its own: see serving.py
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
    peer_url: str | None = None,
) -> Report | ServeReport:
    """Time models and the same models of other libraries, each case in its own process, in turns.

    Every combination of the options is a case. Cases with the same name, part, batch size and image size take turns.

    Args:
        names: model names; a preset has its own.
        backend: Keras backends; default $KERAS_BACKEND, else the first one installed.
        batch_size: default 8.
        image_size: in pixels; default the model's.
        dtype: "float32", "bfloat16", "float16"; "tfloat32" on CUDA; "int8" with ONNX Runtime.
        part: "classifier"; for a pair "image", "text", "pair" or "zero-shot".
        mode: "eager", "compiled", "predict", "predictor"; default eager in torch, compiled elsewhere.
        runtime: "keras", "folded", "onnx".
        peer: libraries to compare with, or "none"; default keras.applications if it has the architecture.
        train: also time a training step.
        preset: a name in `zoo.bench.presets`, or of a function of the source documents; or "serve", for
            `zoo.bench.serving.bench_serving`.
        rounds: turns per case, default 5.
        threads: CPU threads per call; default all cores this process may use.
        limit: seconds that a case may take until it is warm, and per turn; slower cases are skipped. Default the
            preset's, else no limit.
        memory: GB (10⁹ bytes) that the process of a case may hold. Default the preset's, else no limit.
        smoke: a tiny run that checks that everything works; its figures mean nothing.
        output: folder for bench.md, bench.json and bench.png.
        peer_url: see `zoo.bench.serving.bench_serving`.

    Returns:
        `Report`, or `ServeReport` of the preset "serve".

    Raises:
        ValueError: unknown names or values, a backend or peer that is not installed, or no case could be timed.
    """
    preset = renamed("zoo bench --preset").get(preset, preset) if preset else None
    options: dict[str, Any] = {
        "backend": backend,
        "batch_size": batch_size,
        "image_size": image_size,
        "dtype": dtype,
        "part": part,
        "mode": mode,
        "runtime": runtime,
        "peer": peer,
    }
    if preset == SERVE:
        lists = {"name": names, "backend": backend, "runtime": runtime, "precision": dtype}
        chosen = {key: values[0] for key, values in lists.items() if values}
        return bench_serving(**chosen, peer_url=peer_url, rounds=rounds, smoke=smoke, output=output)
    options = {key: tuple(values) for key, values in options.items() if values}
    check_options(options)
    others = {"rounds": rounds, "threads": threads, "limit": limit, "memory": memory, "smoke": smoke, "output": output}
    command = command_of(names, options, train=train, preset=preset, **others)
    options |= {"train": (False, True)} if train else {}
    rounds = rounds or (2 if smoke else ROUNDS)
    groups = plan(names, options, preset, threads, smoke)
    limits = choose_limits(preset, limit, memory)
    machine = describe_machine(groups[0][0].threads)  # before any load of ours
    rates = _measure_rates(_plan_matmuls(groups, smoke), rounds)
    commands = time_commands() if preset == "bars" else {}
    report = Report(command, machine, rates, (), (), preset, commands)
    for group in groups:
        found = run_group(group, rounds, rates, limits)
        ratios = compare(found, len(report.results))
        report = dataclasses.replace(report, results=(*report.results, *found), ratios=(*report.ratios, *ratios))
        if output is not None and any(not result.error for result in report.results):
            write(report, Path(output))  # after each group, so that an interrupted run leaves its results
    if all(result.error for result in report.results):
        first = report.results[0]
        raise ValueError(f"No case could be timed. {label(first.case)}: {first.error}")
    return report


# Cases.


def check_options(options: dict) -> None:
    """Raise ValueError for a value that an option does not allow, or a library that is not installed."""
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
    """Return groups of cases that take turns.

    Raises:
        ValueError: no names, an unknown preset, or no supported case.
    """
    if preset is not None and preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(map(repr, (*PRESETS, SERVE)))}, got {preset!r}.")
    if not (names or preset or smoke):
        raise ValueError(f"Name a model, or a preset: {', '.join(PRESETS)}.")
    cores = available_cores()
    if threads is not None and not 1 <= threads <= cores:
        raise ValueError(f"threads must be 1 to {cores}, the cores this process may use, got {threads}.")
    defaults = {"threads": (threads or cores,), "backend": (default_backend(),)}
    given = {**(SMOKE if smoke else {}), **options}
    groups: dict[tuple, dict[Case, None]] = {}
    for number, sweep in enumerate(PRESETS[preset] if preset else ({"names": (SMOKE_NAME,)},)):
        sweep = {"across": ACROSS, **sweep}
        across, sweep_names, group = sweep.pop("across"), sweep.pop("names"), sweep.pop("group", number)
        with_ours = sweep.pop("ours", True)
        for case in combine(names or sweep_names, {**defaults, **sweep, **given}):
            if case.library == OURS and not with_ours:
                continue
            fields = (field.name for field in dataclasses.fields(case) if field.name not in across)
            key = (group, *(getattr(case, field) for field in fields))
            groups.setdefault(key, {})[case] = None  # sweeps of a group may share cases
    if not groups:
        raise ValueError(
            f"`{command_of(names, given)}` has no supported case: int8 needs --runtime onnx; onnx and folded support "
            "only forward passes of our models, without --train, and onnx only float32, float16 and int8."
        )
    return [list(group) for group in groups.values()]


def default_backend() -> str:
    """Return $KERAS_BACKEND, else the first backend installed.

    Raises:
        ValueError: no backend is installed, or $KERAS_BACKEND is not.
    """
    installed = installed_backends()
    if not installed:
        raise ValueError("No backend is installed: pip install 'convnext-clip-zoo[jax]' (or tensorflow, torch).")
    chosen = os.environ.get("KERAS_BACKEND") or installed[0]
    check_options({"backend": (chosen,)})
    return chosen


def choose_limits(preset: str | None, limit: float | None, memory: float | None) -> Limits:
    """Return the user's limits, else the preset's.

    Raises:
        ValueError: a limit that is not positive.
    """
    for name, value in (("limit", limit), ("memory", memory)):
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be positive, got {value}.")
    seconds, gigabytes = LIMITS.get(preset or "", (None, None))
    seconds, gigabytes = limit or seconds, memory or gigabytes
    return Limits(seconds, gigabytes and 1e9 * gigabytes)


def _plan_matmuls(groups, smoke) -> list[Case]:
    """Return a matrix-product case for each dtype of the cases and each installed backend."""
    cases = [case for group in groups for case in group]
    backends = {case.backend for case in cases} if smoke else installed_backends()
    dtypes = dict.fromkeys(["float32", *(case.dtype for case in cases if case.dtype != "int8")])
    short = {"threads": cases[0].threads, "is_short": smoke}
    return [
        Case("matmul", part="matmul", backend=name, dtype=dtype, **short)
        for dtype in dtypes
        for name in sorted(backends)
    ]


# Running.


def run_group(
    cases: Sequence[Case], rounds: int, rates: dict[str, float], limits: Limits = NO_LIMITS, starting: int = 1
) -> list[Result]:
    """Run cases in turns, of which `starting` build and warm up at a time; return their results in the same order."""
    workers: dict[Case, Worker] = {}
    results: dict[Case, Result] = {}

    def start(case):
        print(f"{label(case)}: starting", flush=True)
        try:
            workers[case] = Worker(case, limits)
        except WorkerError as error:
            results[case] = Result(case, error=str(error))
            print(f"{label(case)}: {error}", flush=True)

    try:
        with ThreadPoolExecutor(starting) as pool:
            list(pool.map(start, cases))
        print(f"{len(workers)} taking turns, {rounds} rounds", flush=True)
        try:
            turns = timing.take_turns({case: worker.take_turn for case, worker in workers.items()}, rounds)
        except WorkerError as error:  # the turns so far are not comparable any more
            turns = {}
            results |= {case: Result(case, error=f"a process of its group failed: {error}") for case in workers}
        results |= {case: _gather(case, workers[case], turns[case], rates) for case in turns}
    finally:
        for worker in workers.values():
            worker.close()
    return with_differences([results[case] for case in cases])


def _gather(case: Case, worker: Worker, rounds, rates: dict[str, float]) -> Result:
    """Return the `Result` of a worker's turns."""
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
    """Return the results of a group with `difference` filled in against the same work in float32 Keras."""
    exact: dict[Case, Result] = {}
    for result in results:
        if result.similarities and (result.case.dtype, result.case.runtime) == ("float32", "keras"):
            exact.setdefault(_same_work(result.case), result)

    def with_difference(result):
        other = exact.get(_same_work(result.case))
        if other is None or other is result or not (result.similarities and other.similarities):
            return result
        gaps = [abs(a - b) for a, b in zip(result.similarities, other.similarities, strict=True)]
        return dataclasses.replace(result, difference=max(gaps))

    return [with_difference(result) for result in results]


def _same_work(case: Case) -> Case:
    """Return the case with the fields that only change rounding reset. One backend draws the same random weights."""
    return dataclasses.replace(case, dtype="float32", mode="eager", runtime="keras")


def best_rate(case: Case, rates: dict[str, float]) -> float | None:
    """Return the best matrix-product FLOP/s of any backend in the case's dtype or float32; None for int8.

    float32 counts too because CPUs without half-precision products are faster in it.
    """
    if case.dtype == "int8":
        return None
    dtypes = {case.dtype, "float32"}
    return max((rate for key, rate in rates.items() if key.partition(", ")[2] in dtypes), default=None)


def _measure_rates(cases: Sequence[Case], rounds: int) -> dict[str, float]:
    """Return {"backend, dtype": FLOP/s} of matrix products, from the best call of each; failures are skipped."""
    rates = {}
    for case in cases:
        print(f"matrix product, {case.backend}, {case.dtype}", flush=True)
        try:
            with contextlib.closing(Worker(case)) as worker:
                calls = [seconds for _ in range(rounds) for seconds in worker.take_turn()]
                rates[f"{case.backend}, {case.dtype}"] = worker.ready["call_flops"] / min(calls)
        except WorkerError as error:
            print(f"skipped: {error}", flush=True)
    return rates


def compare(results: Sequence[Result], start: int = 0) -> list[Ratio]:
    """Return the ratios of a group: each of our cases to each of its peers; without peers, the first to all others.

    Args:
        start: index of the first of these results in the report.
    """
    timed = [i for i, result in enumerate(results) if not result.error]
    pairs = [(i, j) for i in timed for j in timed if _is_peer(results[j].case, results[i].case)]
    pairs = pairs or [(timed[0], j) for j in timed[1:]]
    return [Ratio(start + i, start + j, *compare_two(results[i], results[j])) for i, j in pairs]


def _is_peer(other: Case, case: Case) -> bool:
    """Return whether `other` is the same work in another library; Keras libraries only on the same backend."""
    if case.library != OURS or other.library == OURS:
        return False
    same = all(getattr(case, f) == getattr(other, f) for f in ("name", "part", "batch_size", "image_size", "train"))
    same &= other.dtype == ("float32" if case.dtype == "int8" else case.dtype)
    return same and (not PEERS[other.library].on_keras or other.backend == case.backend)


def label(case: Case) -> str:
    """Return a one-line label of a case."""
    what = case.part + (" training" if case.train else "")
    where = f"{case.runs_on} {case.mode}" if case.runtime != "onnx" else case.runs_on
    return f"{case.name} {what}, {case.library}, {where}, {case.dtype}, {case.batch_size} × {case.image_size} px"
