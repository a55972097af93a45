"""The whole suite: backend-free tests, oracle outputs, then the tests of each backend in processes of their own.

Tests marked `once` need a backend but give the same result on each, so they run under the last one only. Those marked
`wide` are slow where models are compiled (conftest.py), so torch alone runs them by default.

    python tests/run_suite.py                            # what `make test` runs
    python tests/run_suite.py --backends jax -k grn -x   # unknown options and paths go to pytest

Logs and JUnit files are in build/suite/. A step fails when a test fails, when its process dies, and, unless tests were
selected with -k or by path, when no test passed.

Steps run two at a time, each on its own share of the cores: processes that share cores spend most of their time
spinning while they wait for each other.
"""

import argparse
import contextlib
import os
import queue
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "build" / "suite"
ORACLES = ROOT / "build" / "oracles"
BACKENDS = ("jax", "tensorflow", "torch")
SHOWN = 20  # of the slowest tests
PARTS = 2  # processes for each backend: less memory each, and the slots end together
QUIET = {
    "HF_HUB_OFFLINE": "1",  # the oracles have random weights, so nothing needs the network
    "MPLBACKEND": "agg",
    "PYTHONUNBUFFERED": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
JAX_CACHE = {  # compiled programs, keyed by content: many tests and their subprocesses compile the same ones
    "JAX_COMPILATION_CACHE_DIR": str(OUTPUT / "jax-programs"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
}
QUICK_XLA = "--xla_backend_optimization_level=0"  # halves the time to compile; make test-all compiles as users do
THREAD_LIMITS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NPROC", "TF_NUM_INTRAOP_THREADS")


@dataclass(frozen=True)
class Step:
    """One process: pytest with a marker expression on some files, or the oracles where `markers` is None.

    Args:
        name: of its log and JUnit file.
        markers: pytest's -m.
        backend: KERAS_BACKEND, or None.
        part: which of the PARTS shares of the test files; None for all files.
    """

    name: str
    markers: str | None = None
    backend: str | None = None
    part: int | None = None


@dataclass
class Result:
    """How a step ended; `passed` is 0 for a step without tests."""

    name: str
    returncode: int
    seconds: float
    passed: int = 0
    skipped: int = 0
    failed: list[str] = field(default_factory=list)
    durations: list[tuple[float, str]] = field(default_factory=list)
    complaint: str = ""


def main() -> int:
    options, pytest_arguments = parse_arguments()
    OUTPUT.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    results = run_steps(options, pytest_arguments)
    summarise(results, time.monotonic() - start)
    good = any(result.passed for result in results) and not any(result.complaint for result in results)
    return 0 if good else 1


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--backends", default=",".join(BACKENDS), help="default: %(default)s")
    parser.add_argument("--all", action="store_true", help="include the tests marked slow")
    parser.add_argument("-k", metavar="EXPRESSION", help="pytest's -k, for every step")
    jobs = min(2, len(usable_cores()))  # each needs up to 6 GB
    parser.add_argument("--jobs", type=int, default=jobs, help="steps that run at the same time (%(default)s)")
    options, pytest_arguments = parser.parse_known_args()
    options.backends = [name for name in options.backends.split(",") if name]
    unknown = sorted(set(options.backends) - set(BACKENDS))
    if unknown or options.jobs < 1:
        got = ",".join(unknown) or options.jobs
        parser.error(f"--backends takes {', '.join(BACKENDS)}, --jobs at least 1; not {got}")
    return options, pytest_arguments


def make_steps(backends: Sequence[str], parts: int = PARTS) -> list[Step]:
    """Return the steps in the order in which they start: those that others wait for, then the longest first."""
    steps = [Step("oracles"), Step("backend-free", "not backend")]
    marked = [("once", "once", backends[-1]), *((backend, "backend and not once", backend) for backend in backends)]
    for name, markers, backend in marked:
        several = [Step(f"{name}-{part + 1}", markers, backend, part) for part in range(parts)]
        steps += several if parts > 1 else [Step(name, markers, backend)]
    return steps


def run_steps(options: argparse.Namespace, pytest_arguments: list[str]) -> list[Result]:
    """Run every step and return the results in the order of `make_steps`."""
    arguments = pytest_arguments + (["-k", options.k] if options.k else [])
    is_whole = not options.k and not any(not argument.startswith("-") for argument in pytest_arguments)
    steps = make_steps(options.backends, PARTS if is_whole else 1)
    shares: queue.Queue[list[int]] = queue.Queue()
    cores = usable_cores()
    for job in range(options.jobs):
        shares.put(cores[job :: options.jobs] or cores)
    oracles_are_ready = threading.Event()

    def run(step: Step) -> Result:
        share = shares.get()
        try:
            environment = make_environment(step, share, options)
            if step.markers is None:
                try:
                    return compute_oracles(environment, options.all)
                finally:
                    oracles_are_ready.set()
            if step.backend:
                oracles_are_ready.wait()
            markers = step.markers + ("" if options.all else " and not slow")
            files = [] if step.part is None else test_files()[step.part :: PARTS]
            return run_pytest(step.name, markers, environment, files, arguments, is_whole)
        finally:
            shares.put(share)

    with ThreadPoolExecutor(options.jobs) as pool:
        return list(pool.map(run, steps))


def usable_cores() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def test_files() -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests").glob("test_*.py"))


def make_environment(step: Step, cores: Sequence[int], options: argparse.Namespace) -> dict[str, str]:
    """Return the environment of a step; where several jobs run, it is limited to its share of the cores.

    Threads that wait do so without spinning: a training step of a small model in torch takes 0.25 s on a quiet
    machine, 3 to 5 s beside another process, and 0.25 to 0.35 s with OMP_WAIT_POLICY=PASSIVE.
    """
    environment = os.environ | QUIET | JAX_CACHE | {"ZOO_ORACLES": str(ORACLES)}
    environment.pop("KERAS_BACKEND", None)
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if step.backend:
        environment |= {"KERAS_BACKEND": step.backend, "KERAS_HOME": str(OUTPUT / f"keras-{step.name}")}
    if not options.all:
        environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} {QUICK_XLA}".strip()
    if options.jobs > 1:
        environment |= dict.fromkeys(THREAD_LIMITS, str(len(cores)))
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, cores)  # of this thread; the process it starts inherits it
    return environment


def compute_oracles(environment: dict[str, str], full: bool) -> Result:
    """Run tests/oracles.py, which computes the outputs of the reference implementations that are not up to date."""
    script = ROOT / "tests" / "oracles.py"
    if not script.exists():
        return Result("oracles", 0, 0.0)
    ORACLES.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(script), str(ORACLES)] + (["--full"] if full else [])
    result = run_process("oracles", command, environment)
    if result.returncode:
        result.complaint = f"exit code {result.returncode}"
    return result


def run_pytest(
    name: str,
    markers: str,
    environment: dict[str, str],
    files: Sequence[str],
    arguments: Sequence[str],
    must_pass_some: bool,
) -> Result:
    """Run the tests that `markers` selects and read the counts from pytest's JUnit file."""
    junit = OUTPUT / f"{name}.xml"
    junit.unlink(missing_ok=True)
    options = ["-q", "--tb=short", "-m", markers, f"--junitxml={junit}"]
    result = run_process(name, [sys.executable, "-m", "pytest", *options, *files, *arguments], environment)
    read_junit(junit, result)
    found_none = result.returncode == 5 and not must_pass_some  # 5: pytest collected no tests
    if result.failed:
        result.complaint = f"{len(result.failed)} failed"
    elif result.returncode and not found_none:
        result.complaint = f"exit code {result.returncode}"
    elif not result.passed and must_pass_some:
        result.complaint = "no test passed"
    return result


def run_process(name: str, command: list[str], environment: dict[str, str]) -> Result:
    """Run a command; its output goes to build/suite/NAME.log and, each line with the name, to stdout."""
    start = time.monotonic()
    with (
        open(OUTPUT / f"{name}.log", "w", buffering=1, encoding="utf-8") as log,
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
        ) as process,
    ):
        for line in process.stdout:
            log.write(line)
            sys.stdout.write(f"{name:>12} | {line}")
            sys.stdout.flush()
    return Result(name, process.returncode, time.monotonic() - start)


def read_junit(path: Path, result: Result) -> None:
    """Add the counts of a JUnit file. It is missing or broken where the process died; the exit code says so."""
    with contextlib.suppress(OSError, ElementTree.ParseError):
        for case in ElementTree.parse(path).getroot().iter("testcase"):
            verdicts, test = {child.tag for child in case}, f"{case.get('classname')}::{case.get('name')}"
            result.durations.append((float(case.get("time", 0)), test))
            if verdicts & {"failure", "error"}:
                result.failed.append(test)
            elif "skipped" in verdicts:
                result.skipped += 1
            else:
                result.passed += 1


def summarise(results: list[Result], total_seconds: float) -> None:
    """Print the slowest tests, every failed test and step, and one line with the totals."""
    times = sorted((seconds, f"{result.name}: {test}") for result in results for seconds, test in result.durations)
    for seconds, test in times[-SHOWN:]:
        print(f"{seconds:6.1f} s  {test}")
    for result in results:
        for test in result.failed:
            print(f"FAILED {result.name}: {test}")
        if result.complaint:
            print(f"FAILED {result.name}: {result.complaint}; see build/suite/{result.name}.log")

    def total(count: Callable[[Result], int]) -> int:
        return sum(map(count, results))

    counts = (
        f"{total(lambda result: result.passed)} passed, {total(lambda result: result.skipped)} skipped, "
        f"{total(lambda result: len(result.failed))} failed"
    )
    steps = [f"{result.name} {clock(result.seconds)}" for result in results]
    print("suite: " + " · ".join([counts, *steps, f"total {clock(total_seconds)}"]))


def clock(seconds: float) -> str:
    """Format a duration in minutes and seconds: 62.4 → "1m02"."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}m{seconds:02d}"


if __name__ == "__main__":
    sys.exit(main())
