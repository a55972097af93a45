"""Scaling of training from one process to two, one core each: seconds of a step of `zoo train contrastive`.

    python tests/bench_processes.py [--backend jax] [--rounds 3] [--batch-size 64] [--image-size 128]

Trains ConvNeXt V2 Atto's CLIP model on captioned photographs and prints the efficiency of two processes:

- weak scaling, the usual figure of data parallelism: each process has the batch that one process had alone, and the
  efficiency is the images/s of two over twice the images/s of one;
- strong scaling: two processes share the batch of one, and the efficiency is the time of one over twice that of two;
- unconnected: as weak scaling, with two runs that do not know of each other. This is what the machine allows, whose
  cores share memory and clock.

The time of an update, and of what two processes exchange, follow from the same runs. A time is the median of a run's
steps after the first, in which the step is compiled, and then over the rounds, which alternate.
"""

import argparse
import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from zoo.bench.uses import write_photographs
from zoo.weights import read_checkpoint

RUNS = {  # name: (runs at the same time, processes of each, images of a batch as a multiple of --batch-size)
    "one": (1, 1, 1),
    "one, half the batch": (1, 1, 0.5),
    "unconnected": (2, 1, 1),
    "weak": (1, 2, 2),
    "strong": (1, 2, 1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default="jax", choices=("jax", "torch"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--context-length", type=int, default=77)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "compiled")
        write_photographs(2 * options.batch_size * options.steps, folder)
        seconds: dict[str, list[float]] = {name: [] for name in RUNS}
        for _ in range(options.rounds):
            for name, (copies, processes, multiple) in RUNS.items():
                step, weights = train(folder, copies, processes, int(multiple * options.batch_size), options)
                seconds[name].append(step)
                print(f"{name}: {step:.3f} s a step", flush=True)
    report({name: statistics.median(values) for name, values in seconds.items()}, weights, options)


def train(folder: Path, copies: int, processes: int, batch_size: int, options) -> tuple[float, int]:
    """Train on `processes` cores, or in `copies` runs on a core each; return (seconds of a step, number of weights)."""
    cores = sorted(os.sched_getaffinity(0))
    table = write_table(folder, batch_size * options.steps)
    command = [sys.executable, "-m", "zoo", "train", "contrastive", "--model", "convnext_v2_atto"]
    command += ["--backend", options.backend, "--train-data", str(table), "--image-size", str(options.image_size)]
    command += ["--batch-size", str(batch_size), "--context-length", str(options.context_length), "--epochs", "1"]
    command += ["--log-every", "1", "--threads", "1"]
    command += ["--local-processes", str(processes)] if processes > 1 else []
    outputs = [folder / f"run-{number}" for number in range(copies)]
    started = []
    for number, output in enumerate(outputs):
        os.sched_setaffinity(0, cores[number : number + processes])  # inherited by the run
        started.append(subprocess.Popen([*command, "--output", str(output)], stdout=subprocess.DEVNULL))
    os.sched_setaffinity(0, cores)
    if any([run.wait() for run in started]):
        sys.exit(f"failed: {' '.join(command)}")
    rows = [json.loads(line) for output in outputs for line in (output / "history.jsonl").read_text().splitlines()]
    weights = sum(array.size for array in read_checkpoint(outputs[0] / "model.safetensors").tensors.values())
    for output in outputs:
        shutil.rmtree(output)
    return statistics.median(row["seconds"] for row in rows if row["step"] > 1), weights


def write_table(folder: Path, count: int) -> Path:
    """Write a table with a caption of each of the first photographs."""
    path = folder / "train.csv"
    with open(path, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["filepath", "caption"])
        rows.writerows([f"{i % 2}/{i:05d}.jpg", f"photograph number {i}"] for i in range(count))
    return path


def report(seconds: dict[str, float], weights: int, options) -> None:
    """Print what the medians say."""
    one, half, unconnected, weak, strong = seconds.values()
    size, pixels = options.batch_size, options.image_size
    fewer = ", less the rows of the token table that no caption uses" if options.backend == "torch" else ""
    print(
        f"\n{options.backend}, {weights:,} weights, images of {pixels} × {pixels}, {options.context_length} tokens\n"
        f"{size} pairs on one process: {one:.3f} s a step, {size / one:.1f} images/s; the update, which does "
        f"not depend on the batch: {max(0.0, 2 * half - one):.3f} s\n"
        f"each process sends and receives {4 * weights / 1e6:.0f} MB of gradients a step{fewer}, which takes "
        f"{weak - unconnected:.3f} s, waiting included\n"
        f"weak scaling, {size} pairs a process: {one:.3f} → {weak:.3f} s, efficiency {one / weak:.2f}\n"
        f"two unconnected runs of {size} pairs: {one:.3f} → {unconnected:.3f} s, efficiency {one / unconnected:.2f}\n"
        f"strong scaling, {size // 2} pairs a process: {one:.3f} → {strong:.3f} s, efficiency {one / strong / 2:.2f}"
    )


if __name__ == "__main__":
    main()
