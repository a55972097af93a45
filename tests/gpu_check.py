"""What the library does on a CUDA GPU: parity, speed beside timm and open_clip, training, kernels, ONNX Runtime.

    python tests/gpu_check.py results                     # up to eight minutes
    sh tests/gpu_wheels.sh wheels                         # before, where there is a network: what such a machine lacks
    python tests/gpu_check.py results --wheels wheels     # and on the machine without one
    python tests/gpu_check.py results --dry-run           # the same steps with tiny models on a CPU, within a minute

Steps run in order of value, each in a process of its own with a limit. One that fails or is stopped leaves what it has
measured, and the next one starts. Every figure is added to results/results.jsonl at once, and results/report.md is
written again after each step. A second run with the same folder does what is left.
"""

import argparse
import contextlib
import dataclasses
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

LEAST_SECONDS = 15.0  # no step starts with less time left
PARITY_CASES = (  # of tests/oracles.py
    *("timm-convnext_tiny", "timm-convnextv2_tiny", "open_clip-ViT-B-32"),
    *("open_clip-RN50", "open_clip-MobileCLIP-S2", "timm-resnet50"),
)
TINY_CASES = ("timm-convnextv2_tiny-narrow", "open_clip-RN50-narrow")
LIMITS = {"float32": 1e-4, "tfloat32": 1e-2, "float16": 2e-2, "bfloat16": 1e-1}  # of max |ours − theirs| / max |theirs|
MODELS = (  # ours, the peer, the part
    ("convnext_tiny", "timm", "classifier"),
    ("ViT-B-32", "open_clip", "image"),
    ("convnextv2_tiny", "timm", "classifier"),
    ("ViT-L-14", "open_clip", "image"),
    ("convnext_base", "timm", "classifier"),
    ("convnextv2_base", "timm", "classifier"),
    ("RN50", "open_clip", "image"),
    ("MobileCLIP-S2", "open_clip", "image"),
)
WORK = (("bfloat16", 256), ("bfloat16", 1), ("tfloat32", 256), ("bfloat16", 32), ("tfloat32", 1), ("tfloat32", 32))
DRY_RUN = {"OMP_NUM_THREADS": "1", "XLA_FLAGS": "--xla_backend_optimization_level=0"}  # it measures nothing
SEED_PRESETS = ("towers", "runtimes", "batching", "variants", "precision", "combined", "search", "cache")


@dataclass(frozen=True)
class Step:
    """One process of this script.

    Args:
        name: printed, and its key in the results.
        seconds: limit.
        backend: KERAS_BACKEND, or None.
        run: (options, record) → None; `record(**row)` adds a row to the results at once.
    """

    name: str
    seconds: float
    backend: str | None
    run: Callable


def steps(options) -> list[Step]:
    """Return every step in order of value."""
    rates = [] if options.dry_run else [Step("matrix rates", 60, None, matrix_rates)]
    found = [Step("references", 120, None, write_references)]
    found += [Step(f"parity {backend}", 100, backend, compare_parity) for backend in ("torch", "jax")]
    found += [*rates, *(Step(f"kernels {backend}", 40, backend, time_kernels) for backend in ("torch", "jax"))]
    models = [("convnextv2_atto", "timm", "classifier")] if options.dry_run else MODELS
    work = [("float32", 2)] if options.dry_run else WORK
    timed = [(model, *how) for how in work for model in models]
    first = 1 if options.dry_run else 4
    found += [bench_step(*one) for one in timed[:first]]  # ConvNeXt and ViT, which have targets
    found += [training_step(model, options.dry_run) for model in models[:2]]
    found.append(Step("ONNX Runtime", 60, None, time_onnx))
    found += [bench_step(*one) for one in timed[first : len(models)]]
    found += [training_step(model, options.dry_run) for model in models[2:]]
    found += [seed_step(preset) for preset in (["smoke"] if options.dry_run else SEED_PRESETS)]
    return found + [bench_step(*one) for one in timed[len(models) :]]


# The run.


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="folder of results.jsonl, report.md and log.txt")
    parser.add_argument("--wheels", type=Path, metavar="FOLDER", help="wheels of packages that may be missing")
    parser.add_argument("--minutes", type=float, default=8.0, help="limit of the whole run (default %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="tiny models, on any machine")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="where the references are kept")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    if options.step:
        step = next(step for step in steps(options) if step.name == options.step)
        step.run(options, lambda **row: record(options, step=step.name, **row))
        return 0
    return run_all(options)


def record(options, **row):
    """Add a row to the results."""
    with (options.output / "results.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row), flush=True)


def results(options) -> list[dict]:
    path = options.output / "results.jsonl"
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


def run_all(options) -> int:
    """Run the steps that are left; return 1 if one of them failed."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        options.work = options.work or Path(scratch) / "work"
        options.work.mkdir(parents=True, exist_ok=True)
        paths = search_paths(install(options.wheels, Path(scratch) / "site") if options.wheels else None)
        done = {row["step"] for row in results(options) if row.get("status") == "done"} - {"references"}

        def attempt(step) -> bool:
            left = 60 * options.minutes - (time.monotonic() - start)
            if left < LEAST_SECONDS:
                print(f"{step.name}: not started, {left:.0f} s are left", flush=True)
                return True
            limit = 3 * step.seconds if options.dry_run else step.seconds  # steps that share a CPU take longer
            good = run_step(step, min(limit, left), options, paths)
            keep_table(step, options)
            (options.output / "report.md").write_text(report(results(options)), "utf-8")
            return good

        first, *rest = [step for step in steps(options) if step.name not in done]
        good = [attempt(first)]
        with ThreadPoolExecutor(2 if options.dry_run else 1) as pool:  # a dry run measures nothing
            good += pool.map(attempt, rest)
    return 0 if all(good) else 1


def install(wheels, site) -> Path:
    """Unpack the wheels of packages that are not installed into a folder for PYTHONPATH; return it."""
    missing = [str(path) for path in sorted(wheels.glob("*.whl")) if not is_installed(path.name.partition("-")[0])]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
    if missing:
        subprocess.run([*pip, "--target", str(site), *missing], check=True)
    return site


def is_installed(distribution) -> bool:
    try:
        return bool(importlib.metadata.version(distribution))
    except importlib.metadata.PackageNotFoundError:
        return False


def search_paths(site) -> str:
    """Return PYTHONPATH: the repository, the unpacked wheels, and tests/peer_shim if torchvision cannot be imported."""
    folders = [ROOT, ROOT / "tests", *([site] if site else []), *filter(None, [os.environ.get("PYTHONPATH")])]
    paths = os.pathsep.join(map(str, folders))
    command = [sys.executable, "-c", "import torchvision"]
    works = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True).returncode == 0
    return paths if works else os.pathsep.join([str(ROOT / "tests" / "peer_shim"), paths])


def run_step(step, seconds, options, paths) -> bool:
    """Run a step in a process group of its own and record how it ended."""
    command = [sys.executable, __file__, str(options.output), "--step", step.name, "--work", str(options.work)]
    command += ["--dry-run"] if options.dry_run else []
    environment = {
        **os.environ,
        "PYTHONPATH": paths,
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "HF_HUB_OFFLINE": "1",
    }
    if step.backend:
        environment["KERAS_BACKEND"] = step.backend
    if options.dry_run:
        environment |= DRY_RUN
    start = time.monotonic()
    with (options.output / "log.txt").open("a", encoding="utf-8") as log:
        print(f"\n== {step.name}", file=log, flush=True)
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            code = process.wait(seconds)
            status = "done" if code == 0 else f"failed with code {code}"
        except subprocess.TimeoutExpired:
            status = f"stopped after {seconds:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # a worker may outlive its step
            process.wait()
    record(options, step=step.name, status=status, seconds=round(time.monotonic() - start, 1))
    return status == "done"


# Parity.


def parity_cases(options):
    return TINY_CASES if options.dry_run else PARITY_CASES


def write_references(options, record):
    """The references' own weights and outputs, computed by timm and open_clip on the CPU in float32."""
    import oracles

    wanted = {case.name: case for case in oracles.cases()}
    for name in parity_cases(options):
        case = wanted[name]
        if not oracles.is_current(case, options.work):
            small = dataclasses.replace(case, sizes=case.sizes[:1])
            record(case=name, seconds=round(oracles.write_case(small, options.work)[0], 1))


def compare_parity(options, record):
    """Each case in each precision on this backend: max |ours − theirs| / max |theirs| of the final outputs."""
    import keras
    import numpy as np

    from zoo.bench import parity
    from zoo.bench.cases import Case
    from zoo.bench.jobs import _set_precision, keras_device

    backend = keras.backend.backend()
    precisions = ("float32", "bfloat16", "tfloat32", "float16")
    for dtype in precisions[: 2 if backend == "torch" else 1] if options.dry_run else precisions:
        _set_precision(Case("", backend=backend, dtype=dtype))
        for name in parity_cases(options):
            folder = options.work / name
            with reported(record, case=name, backend=backend, dtype=dtype):
                about, expected = (
                    json.loads((folder / "case.json").read_text()),
                    dict(np.load(folder / "reference.npz")),
                )
                errors = output_errors(parity.load_case(folder, about), expected)
                worst = max(errors.values())
                record(
                    case=name,
                    backend=backend,
                    device=keras_device(),
                    dtype=dtype,
                    error=worst,
                    within=bool(worst <= LIMITS[dtype]),
                )
    keras.config.set_dtype_policy("float32")


def output_errors(model, expected):
    """Return {output: error} of a pair's embeddings, or of a classifier's logits."""
    from zoo.bench.parity import error, predict

    def error_of(tower, inputs, output):
        return error(predict(tower, inputs).astype("float32"), output)

    if hasattr(model, "image_encoder"):
        return {
            "image": error_of(model.image_encoder, expected["images"], expected["image_embedding"]),
            "text": error_of(model.text_encoder, expected["tokens"], expected["text_embedding"]),
        }
    size = next(key for key in expected if key.endswith("/images")).partition("/")[0]
    return {"logits": error_of(model, expected[f"{size}/images"], expected[f"{size}/logits"])}


@contextlib.contextmanager
def reported(record, **about):
    """Record an exception as a row, and go on."""
    try:
        yield
    except Exception as error:  # of any library
        record(**about, error=f"{type(error).__name__}: {' '.join(str(error).split())}"[:300])


# Speed.


def matrix_rates(options, record):
    """The card's best matrix products, by which `share` is computed."""
    from zoo.bench.cases import Case
    from zoo.bench.harness import _measure_rates

    for dtype in ("bfloat16", "tfloat32", "float32", "float16"):
        for key, rate in _measure_rates([Case("matmul", part="matmul", backend="torch", dtype=dtype)], 3).items():
            record(rate=key, tflops=round(rate / 1e12, 1), flops=rate)


def bench_step(model, dtype, batch) -> Step:
    name, peer, part = model
    cases = sides(name, peer, part=part, dtype=dtype, batch_size=batch)
    return Step(f"bench {name}, {dtype}, batch {batch}", 120, None, timer(cases))


def training_step(model, dry_run) -> Step:
    name, peer, part = model
    dtype, batch = ("float32", 2) if dry_run else ("bfloat16", 64)
    part = "pair" if part == "image" else part
    cases = sides(name, peer, part=part, dtype=dtype, batch_size=batch, train=True)
    return Step(f"training {name}", 120, None, timer(cases))


def sides(name, peer, **fields) -> list[dict]:
    """Return the fields of the cases that take turns: ours on torch and JAX, the peer's, eager and compiled."""
    ways = (("zoo", "torch", "compiled"), (peer, "torch", "compiled"), ("zoo", "jax", "compiled"))
    ways += (("zoo", "torch", "eager"), (peer, "torch", "eager"))
    return [{"name": name, "library": own, "backend": backend, "mode": mode, **fields} for own, backend, mode in ways]


def timer(fields) -> Callable:
    """Return a step that times cases in turns. Their processes start together, since compiling takes longest."""

    def run(options, record):
        from zoo import model_info
        from zoo.bench.cases import OURS, Case
        from zoo.bench.harness import best_rate, run_group
        from zoo.bench.processes import Limits
        from zoo.utils.env import available_cores

        info = model_info(fields[0]["name"])
        shape = {"threads": 1 if options.dry_run else available_cores(), "is_short": options.dry_run}
        shape["image_size"] = 32 if options.dry_run else info.input[0]
        cases = [Case(**{**own, "name": info.name}, **shape) for own in fields]
        if options.dry_run:  # compiling takes too long there; parity and kernels run JAX
            cases = [case for case in cases if case.mode == "eager"]
        rates = {row["rate"]: row["flops"] for row in results(options) if "rate" in row}
        found = run_group(cases, 3, rates, Limits(seconds=90), starting=len(cases))
        for result in found:
            case = result.case
            about = {
                "model": case.name,
                "part": case.part + ", training" * case.train,
                "library": f"{case.library}{f' on {case.backend}' * (case.library == OURS)}, {case.mode}",
                "dtype": case.dtype,
                "batch": case.batch_size,
                "runtime": case.runtime,
            }
            if result.error:
                record(**about, error=result.error)
                continue
            share = None if best_rate(case, rates) is None or result.share is None else round(result.share, 3)
            record(
                **about,
                ms=round(1e3 * result.p50, 3),
                items_per_second=round(result.items_per_second, 1),
                peak_mb=result.device_bytes and round(result.device_bytes / 1e6),
                share=share,
                device=result.device,
            )
        if all(result.error for result in found):
            raise SystemExit("no case could be timed")

    return run


def time_onnx(options, record):
    """ONNX Runtime on CUDA, where it is installed, beside the same tower in torch."""
    try:
        import onnxruntime
    except ImportError:
        return record(skipped="onnxruntime is not installed")
    providers = onnxruntime.get_available_providers()
    if "CUDAExecutionProvider" not in providers and not options.dry_run:
        return record(skipped=f"onnxruntime has no CUDA here: {', '.join(providers)}")
    name, part, dtypes = ("convnext_v2_tiny", "image", ("float32", "float16"))
    if options.dry_run:
        name, part, dtypes = "convnextv2_atto", "classifier", ("float32",)
    fields = [
        {"name": name, "part": part, "batch_size": 1, "dtype": dtype, "runtime": runtime, "backend": "torch"}
        for dtype in dtypes
        for runtime in (("onnx",) if options.dry_run else ("onnx", "keras"))
    ]
    timer(fields)(options, record)


def seed_step(preset) -> Step:
    return Step(f"table {preset}", 75, None, lambda options, record: seed_table(preset, options, record))


def seed_table(preset, options, record):
    """A table of an earlier report, by `zoo bench --preset`."""
    from zoo.bench import bench

    del record
    choice = {"names": ("resnet18",), "smoke": True, "peer": ("none",)} if preset == "smoke" else {"preset": preset}
    bench(backend=("torch",), rounds=2, output=options.work / f"table {preset}", **choice)


def keep_table(step, options):
    """Add what a step of `seed_table` has written, finished or not, to tables.md."""
    written = options.work / step.name / "bench.md"
    if written.exists():
        with (options.output / "tables.md").open("a", encoding="utf-8") as file:
            file.write(f"# {step.name}\n\n{written.read_text('utf-8')}\n\n")


# Kernels.


def time_kernels(options, record):
    """Which form each kernel takes on this device, and its time beside the reference's, forward and with gradients."""
    import keras
    import numpy as np

    from convnext import kernels
    from zoo.bench.jobs import keras_device

    side, channels, length = (4, 8, 5) if options.dry_run else (28, 192, 197)
    batch, same = 2 if options.dry_run else 64, kernels.Geometry(padding="same")
    maps, vector = (batch, side, side, channels), (channels,)
    calls = {
        "affine": ([maps, (channels, 4 * channels), (4 * channels,)], (keras.activations.gelu,)),
        "conv2d": ([maps, (2, 2, channels, 2 * channels), (2 * channels,)], (kernels.Geometry((2, 2)),)),
        "depthwise_conv2d": ([maps, (7, 7, channels, 1), vector], (same,)),
        "attention": ([(batch, length, 3, 2, 4 if options.dry_run else 64)], (True,)),
        "grn": ([maps, vector, vector], ()),
    }
    rng = np.random.default_rng(0)
    compiles = options.dry_run and keras.backend.backend() == "jax"  # which takes longest there
    for dtype in ("float32", "bfloat16")[: 1 if compiles else 2]:
        for name, (shapes, extra) in calls.items():
            arrays = [keras.ops.cast(rng.standard_normal(shape).astype("float32"), dtype) for shape in shapes]
            with reported(record, kernel=name, dtype=dtype):
                times = kernel_times(name, arrays, extra, 1 if options.dry_run else 20)
                record(
                    kernel=name,
                    dtype=dtype,
                    backend=keras.backend.backend(),
                    device=keras_device(),
                    form=form_taken(name, arrays, extra),
                    **times,
                )


def form_taken(name, arrays, extra) -> str:
    """Return "reference" if a call is handed on to the reference, else the file of the faster one."""
    from convnext import kernels
    from convnext.kernels import reference

    used, own = [], getattr(reference, name)
    try:
        setattr(reference, name, lambda x, *rest: used.append(x is arrays[0]) or own(x, *rest))
        getattr(kernels, name)(*arrays, *extra)
    finally:
        setattr(reference, name, own)
    return "reference" if any(used) else kernels.in_use()[name]


def kernel_times(name, arrays, extra, repeats) -> dict[str, float]:
    """Return milliseconds of the form in use and of the reference, each without and with gradients."""
    from convnext import kernels

    def milliseconds(make):
        call = make(lambda *inputs: getattr(kernels, name)(*inputs, *extra), arrays)
        call()
        times = []
        for _ in range(3):
            start = time.perf_counter()
            for _ in range(repeats):
                wait = call()
            wait()
            times.append(1e3 * (time.perf_counter() - start) / repeats)
        return round(min(times), 4)

    found = {}
    for what, make in (("forward_ms", forward_of), ("gradients_ms", gradients_of)):
        found[what] = milliseconds(make)
        with kernels.use_reference():
            found[f"reference_{what}"] = milliseconds(make)
    return found


def forward_of(function, arrays):
    """Return a call that starts a forward pass and returns a function that waits for it."""
    import keras

    if keras.backend.backend() == "jax":
        import jax

        compiled = jax.jit(function)
        return lambda: compiled(*arrays).block_until_ready
    import torch

    from zoo.bench.machine import wait_for_cuda

    def call():
        with torch.no_grad():
            function(*arrays)
        return wait_for_cuda

    return call


def gradients_of(function, arrays):
    """The same, of the gradients of the sum of the outputs' squares."""
    import keras

    if keras.backend.backend() == "jax":
        import jax

        compiled = jax.jit(jax.grad(lambda inputs: (function(*inputs).astype("float32") ** 2).sum()))
        return lambda: compiled(arrays)[0].block_until_ready
    import torch

    from zoo.bench.machine import wait_for_cuda

    leaves = [array.detach().requires_grad_() for array in arrays]

    def call():
        torch.autograd.grad(function(*leaves).float().square().sum(), leaves)
        return wait_for_cuda

    return call


# The report.

COLUMNS = {
    "Parity: max |ours − theirs| / max |theirs|": ("case", "backend", "dtype", "error", "within", "device"),
    "Matrix products": ("rate", "tflops"),
    "Speed": (
        *("model", "part", "library", "dtype", "batch", "runtime"),
        *("ms", "items_per_second", "peak_mb", "share", "device", "error"),
    ),
    "Kernels": (
        *("kernel", "dtype", "backend", "form", "forward_ms", "reference_forward_ms"),
        *("gradients_ms", "reference_gradients_ms", "device"),
    ),
    "Steps": ("step", "status", "seconds"),
}


def report(rows) -> str:
    """Return all results as Markdown, a table for each kind of row."""
    lines = ["# GPU check", "", f"`python {' '.join(sys.argv)}`", ""]
    for title, columns in COLUMNS.items():
        key = "status" if title == "Steps" else columns[0]
        own = [row for row in rows if key in row and (title.startswith("Parity") or "case" not in row)]
        if title.startswith("Parity"):
            own = [row for row in own if "backend" in row]
        if own:
            lines += [f"## {title}", "", f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
            lines += [f"| {' | '.join(cell(row.get(column)) for column in columns)} |" for row in own] + [""]
    return "\n".join(lines)


def cell(value) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) and value < 1 else str(value).replace("|", "/")


if __name__ == "__main__":
    sys.exit(main())
