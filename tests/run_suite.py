"""The whole suite: backend-free tests once, oracle outputs once, then each backend in a process of its own.

Tests marked `once` need a backend and say the same of each: they are a step of their own, under the last one.

    python tests/run_suite.py                            # what `make test` runs
    python tests/run_suite.py --backends jax -k grn -x   # unknown options and paths go to pytest

Logs and JUnit files land in build/suite/. A step fails when a test fails, when its process dies, and, unless
tests were selected with -k or by path, when no test passed.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "build" / "suite"
ORACLES = ROOT / "build" / "oracles"
BACKENDS = ("jax", "tensorflow", "torch")
QUIET = {
    "HF_HUB_OFFLINE": "1",  # the oracles have random weights: nothing here may reach for the network
    "MPLBACKEND": "agg",
    "PYTHONUNBUFFERED": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
JAX_PROGRAMS = {  # what JAX compiled is kept by content: many tests, and the processes they start, compile the same
    "JAX_COMPILATION_CACHE_DIR": str(OUTPUT / "jax-programs"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
}
THREAD_LIMITS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NPROC", "TF_NUM_INTRAOP_THREADS")


@dataclass
class Result:
    """How one step ended; `passed` stays 0 for a step that runs no tests."""

    name: str
    returncode: int
    seconds: float
    passed: int = 0
    skipped: int = 0
    failed: list[str] = field(default_factory=list)
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
    jobs = min(2, os.cpu_count() or 1)  # each needs up to 6 GB
    parser.add_argument("--jobs", type=int, default=jobs, help="steps that may run at the same time (%(default)s)")
    options, pytest_arguments = parser.parse_known_args()
    options.backends = [name for name in options.backends.split(",") if name]
    unknown = sorted(set(options.backends) - set(BACKENDS))
    if unknown or options.jobs < 1:
        got = ",".join(unknown) or options.jobs
        parser.error(f"--backends takes {', '.join(BACKENDS)}, --jobs at least 1; not {got}")
    return options, pytest_arguments


def run_steps(options: argparse.Namespace, pytest_arguments: list[str]) -> list[Result]:
    """Returns one Result a step, in the order of the last line: backend-free, oracles, backends, once."""
    environment = make_environment(options.jobs)
    pytest_arguments = pytest_arguments + (["-k", options.k] if options.k else [])
    speed = "" if options.all else " and not slow"

    with ThreadPoolExecutor(options.jobs) as pool:
        free = pool.submit(run_pytest, "backend-free", f"not backend{speed}", environment, pytest_arguments)
        oracles = pool.submit(compute_oracles, environment, options.all)

        def after_oracles(name: str, markers: str, backend: str) -> Result:
            oracles.result()
            own = environment | {"KERAS_BACKEND": backend, "KERAS_HOME": str(OUTPUT / f"keras-{name}")}
            return run_pytest(name, markers + speed, own, pytest_arguments)

        steps = [(backend, "backend and not once", backend) for backend in options.backends]
        steps.append(("once", "once", options.backends[-1]))  # torch unless narrowed: it compiles nothing
        backends = [pool.submit(after_oracles, *step) for step in steps]
        return [future.result() for future in (free, oracles, *backends)]


def make_environment(jobs: int) -> dict[str, str]:
    """Returns this process's environment, no backend chosen; several jobs share out the cores."""
    environment = os.environ | QUIET | JAX_PROGRAMS | {"ZOO_ORACLES": str(ORACLES)}
    environment.pop("KERAS_BACKEND", None)
    if jobs > 1:
        threads = str(max(1, (os.cpu_count() or 1) // jobs))
        environment |= dict.fromkeys(THREAD_LIMITS, threads)
    return environment


def compute_oracles(environment: dict[str, str], full: bool) -> Result:
    """Runs tests/oracles.py, which writes the reference implementations' answers that are not up to date."""
    script = ROOT / "tests" / "oracles.py"
    if not script.exists():
        return Result("oracles", 0, 0.0)
    ORACLES.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(script), str(ORACLES)] + (["--full"] if full else [])
    result = run_step("oracles", command, environment)
    if result.returncode:
        result.complaint = f"exit code {result.returncode}"
    return result


def run_pytest(name: str, markers: str, environment: dict[str, str], arguments: list[str]) -> Result:
    """Runs the tests that `markers` selects and reads the counts from pytest's JUnit file."""
    junit = OUTPUT / f"{name}.xml"
    junit.unlink(missing_ok=True)
    options = ["-q", "--tb=short", "-m", markers, f"--junitxml={junit}"]
    result = run_step(name, [sys.executable, "-m", "pytest", *options, *arguments], environment)
    read_junit(junit, result)
    narrowed = any(not argument.startswith("-") for argument in arguments)  # a path, or what follows -k
    no_tests = result.returncode == 5 and narrowed  # 5 is pytest's code for nothing collected
    if result.failed:
        result.complaint = f"{len(result.failed)} failed"
    elif result.returncode and not no_tests:
        result.complaint = f"exit code {result.returncode}"
    elif not result.passed and not narrowed:
        result.complaint = "no test passed"
    return result


def run_step(name: str, command: list[str], environment: dict[str, str]) -> Result:
    """Runs a command; its output goes to build/suite/NAME.log and, each line with the name, to stdout."""
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
    """Adds the counts of a JUnit file. Where a process died it is missing or broken; the exit code tells."""
    with contextlib.suppress(OSError, ElementTree.ParseError):
        for case in ElementTree.parse(path).getroot().iter("testcase"):
            verdicts = {child.tag for child in case}
            if verdicts & {"failure", "error"}:
                result.failed.append(f"{case.get('classname')}::{case.get('name')}")
            elif "skipped" in verdicts:
                result.skipped += 1
            else:
                result.passed += 1


def summarise(results: list[Result], seconds: float) -> None:
    """Prints every failed test and step, and the one line that sums up."""
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
    times = [f"{result.name} {clock(result.seconds)}" for result in results]
    print("suite: " + " · ".join([counts, *times, f"total {clock(seconds)}"]))


def clock(seconds: float) -> str:
    """Returns minutes and seconds: 62.4 -> 1m02."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}m{seconds:02d}"


if __name__ == "__main__":
    sys.exit(main())
