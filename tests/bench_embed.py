"""Throughput of `zoo embed` with 1 and 2 workers, one core each: images/s of each engine, in alternating rounds.

    python tests/bench_embed.py [--images 2000] [--rounds 3] [--engine local,ray]

Images are photographs of scikit-learn (640 × 427, JPEG), the model is ConvNeXt-Atto's image tower with random weights.
A run's time is from its first to its last committed part, so that what every worker pays once (Python, the backend,
the model) is not in it. "Unconnected" are two runs of one worker at the same time, on a core each: what the machine
allows, whose cores share memory and clock.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import zoo
from clip import create_clip
from zoo.bench.uses import write_photographs
from zoo.data.preprocess import PreprocessSpec

PART = 50
RUNS = {"1 worker": (1, 1), "2 workers": (1, 2), "unconnected": (2, 1)}  # name: (runs at once, workers of each)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engine", default="local,ray")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "images"
        folder.mkdir()
        write_photographs(options.images, folder)
        model = Path(scratch) / "pair.safetensors"
        pair = create_clip("convnext_v2_atto")
        zoo.save(pair, model, preprocess=PreprocessSpec(image_size=pair.image_encoder.input_shape[1]))
        for engine in options.engine.split(","):
            rates: dict[str, list[float]] = {name: [] for name in RUNS}
            for number in range(options.rounds):
                for name, (copies, workers) in RUNS.items():
                    outputs = [Path(scratch) / f"{engine}-{name}-{number}-{copy}" for copy in range(copies)]
                    rates[name].append(rate(str(folder), str(model), outputs, engine, workers))
                    print(f"{engine}, {name}: {rates[name][-1]:.1f} images/s", flush=True)
            one, two, unconnected = (statistics.median(values) for values in rates.values())
            print(
                f"{engine}: {one:.1f} → {two:.1f} images/s, {two / one:.2f} times; "
                f"unconnected {unconnected:.1f} images/s, {unconnected / one:.2f} times"
            )


def rate(source: str, model: str, outputs: list[Path], engine: str, workers: int) -> float:
    """Run `zoo embed` once for each output at the same time, on a core for each worker; return images/s of all.

    Each run is a process of its own: threads that exist keep the cores that they were started on.
    """
    cores = sorted(os.sched_getaffinity(0))
    started = []
    for number, output in enumerate(outputs):
        command = [sys.executable, "-m", "zoo", "embed", source, "--model", model, "--out", str(output)]
        command += ["--engine", engine, "--workers", str(workers), "--part-size", str(PART), "--batch-size", "25"]
        os.sched_setaffinity(0, cores[number : number + workers])  # inherited by the workers
        started.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True))
    os.sched_setaffinity(0, cores)
    for run in started:
        errors = run.communicate()[1]
        if run.returncode:
            sys.exit(errors)
    return sum(images_per_second(output, workers) for output in outputs)


def images_per_second(output: Path, workers: int) -> float:
    times = sorted(path.stat().st_mtime for path in output.glob("part-*.json"))
    return PART * (len(times) - workers) / (times[-1] - times[workers - 1])


if __name__ == "__main__":
    main()
