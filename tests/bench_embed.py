"""Throughput of `zoo embed` with 1 and 2 workers, one core each: images/s of each engine, in alternating rounds.

    python tests/bench_embed.py [--images 2000] [--rounds 3] [--engine local,ray]

Images are photographs of scikit-learn (640 × 427, JPEG), the model is ConvNeXt-Atto's image tower with random weights.
A run's time is from its first to its last committed part, so that what every worker pays once (Python, the backend,
the model) is not in it.
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engine", default="local,ray")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[:2]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "images"
        folder.mkdir()
        write_photographs(options.images, folder)
        model = Path(scratch) / "pair.safetensors"
        pair = create_clip("convnext_v2_atto")
        zoo.save(pair, model, preprocess=PreprocessSpec(image_size=pair.image_encoder.input_shape[1]))
        for engine in options.engine.split(","):
            rates: dict[int, list[float]] = {1: [], 2: []}
            for number in range(options.rounds):
                for workers in rates:
                    os.sched_setaffinity(0, cores[:workers])  # inherited by the workers
                    output = Path(scratch) / f"{engine}-{workers}-{number}"
                    rates[workers].append(rate(str(folder), str(model), output, engine, workers))
                    os.sched_setaffinity(0, cores)
                    print(f"{engine}, {workers} workers: {rates[workers][-1]:.1f} images/s", flush=True)
            one, two = (statistics.median(values) for values in rates.values())
            print(f"{engine}: {one:.1f} → {two:.1f} images/s, {two / one:.2f} times")


def rate(source: str, model: str, output: Path, engine: str, workers: int) -> float:
    """Run `zoo embed` in a process of its own: threads that exist keep the cores that they were started on."""
    command = [sys.executable, "-m", "zoo", "embed", source, "--model", model, "--out", str(output)]
    command += ["--engine", engine, "--workers", str(workers), "--part-size", str(PART), "--batch-size", "25"]
    subprocess.run(command, check=True, capture_output=True)
    times = sorted(path.stat().st_mtime for path in output.glob("part-*.json"))
    return PART * (len(times) - workers) / (times[-1] - times[workers - 1])


if __name__ == "__main__":
    main()
