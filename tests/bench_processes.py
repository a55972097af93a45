"""Scaling of training from one process to two, one core each: steps/s of the same global batch, in alternating rounds.

    python tests/bench_processes.py [--backend jax] [--rounds 3] [--batch-size 64] [--image-size 64]

Trains ConvNeXt V2 Atto's pair on captioned photographs through `zoo train contrastive`, alone on one core and with
`--local-processes 2` on two. The efficiency is the speed of two over twice the speed of one. The first epoch, in which
the step is compiled, does not count.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from zoo.bench.uses import write_photographs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--backend", default="jax", choices=("jax", "torch"))
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[:2]
    with tempfile.TemporaryDirectory() as scratch:
        table = write_table(Path(scratch), options.images)
        seconds: dict[int, list[float]] = {1: [], 2: []}
        for number in range(options.rounds):
            for processes in seconds:
                os.sched_setaffinity(0, cores[:processes])
                seconds[processes].append(step(table, Path(scratch) / f"{processes}-{number}", processes, options))
                os.sched_setaffinity(0, cores)
                print(f"{processes} processes: {1000 * seconds[processes][-1]:.0f} ms a step", flush=True)
        one, two = (statistics.median(values) for values in seconds.values())
        print(f"1 → 2 processes: {1000 * one:.0f} → {1000 * two:.0f} ms a step, efficiency {one / two / 2:.2f}")


def write_table(folder: Path, count: int) -> Path:
    """Write photographs and a table with a caption of each."""
    write_photographs(count, folder)
    path = folder / "train.csv"
    with open(path, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["filepath", "caption"])
        rows.writerows([f"{i % 2}/{i:05d}.jpg", f"photograph number {i}"] for i in range(count))
    return path


def step(table: Path, output: Path, processes: int, options: argparse.Namespace) -> float:
    """Return the seconds of a step, the median over the epochs after the first."""
    command = [sys.executable, "-m", "zoo", "train", "contrastive", "--model", "convnext_v2_atto"]
    command += ["--backend", options.backend, "--train-data", str(table), "--output", str(output)]
    command += ["--image-size", str(options.image_size)]
    command += ["--batch-size", str(options.batch_size), "--epochs", str(options.epochs), "--log-every", "1"]
    command += ["--context-length", "16", "--save-every", "1000", "--threads", "1"]
    command += ["--local-processes", str(processes)] if processes > 1 else []
    subprocess.run(command, check=True, capture_output=True)
    rows = [json.loads(line) for line in (output / "history.jsonl").read_text().splitlines()]
    return statistics.median(row["seconds"] for row in rows if row["epoch"] > 1 and "seconds" in row)


if __name__ == "__main__":
    main()
