"""Throughput of the batches in images/s, compared with a plain PIL loop over the same files.

    python tests/bench_data.py [--folder IMAGES] [--count 256] [--image-size 224] [--threads N]

Without a folder, the images are copies of scikit-learn's two sample photographs (640 x 427).
"""

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from zoo.bench.uses import write_photographs
from zoo.data.augment import CLASSIFICATION, CONTRASTIVE
from zoo.data.batches import Batches, default_threads
from zoo.data.folders import read_folder
from zoo.data.preprocess import PreprocessSpec
from zoo.data.records import Dataset

BATCH_SIZE = 32


def measure(folder: str | Path, *, image_size: int = 224, threads: int | None = None, seconds: float = 5.0) -> dict:
    """Return {pipeline: images/s}, each measured for `seconds` after a first batch.

    Args:
        folder: at least BATCH_SIZE images, as in `read_folder`.
    """
    dataset, spec = read_folder(folder), PreprocessSpec(image_size)
    threads = threads or default_threads()
    rates = {"plain PIL loop": _rate(plain_loop(dataset, Path(folder), spec), seconds)}
    for name, augment in (("evaluation", None), ("contrastive", CONTRASTIVE), ("classification", CLASSIFICATION)):
        for count in sorted({1, threads}):
            with Batches(dataset, spec, batch_size=BATCH_SIZE, augment=augment, threads=count) as batches:
                endless = (batches[i] for i in itertools.count())
                rates[f"{name}, {count} threads"] = _rate(endless, seconds)
    return rates


def plain_loop(dataset: Dataset, folder: Path, spec: PreprocessSpec) -> Iterable[dict]:
    """Yield batches of a hand-written pipeline without end: open, resize, crop, scale, normalise, stack."""
    mean, std = np.asarray(spec.mean, np.float32), np.asarray(spec.std, np.float32)
    names = itertools.cycle(dataset.names)
    while True:
        rows = []
        for name in itertools.islice(names, BATCH_SIZE):
            image = Image.open(folder / name).convert("RGB")
            scale = max(spec.size[1] / image.width, spec.size[0] / image.height)
            image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
            left, top = (image.width - spec.size[1]) // 2, (image.height - spec.size[0]) // 2
            image = image.crop((left, top, left + spec.size[1], top + spec.size[0]))
            rows.append((np.asarray(image, np.float32) / 255 - mean) / std)
        yield {"images": np.stack(rows)}


def _rate(batches: Iterable[dict], seconds: float) -> float:
    """Return images/s, without the first batch."""
    batches = iter(batches)
    next(batches)
    start, images = time.perf_counter(), 0
    while (passed := time.perf_counter() - start) < seconds:
        images += len(next(batches)["images"])
    return images / passed


def main(arguments: list[str] | None = None) -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(prog="python tests/bench_data.py", description=__doc__.splitlines()[0])
    parser.add_argument("--folder", help="images to read (default: scikit-learn's photographs)")
    parser.add_argument("--count", type=int, default=256, help="photographs to write (default %(default)s)")
    parser.add_argument("--image-size", type=int, default=224, help="image side in pixels (default %(default)s)")
    parser.add_argument("--threads", type=int, help="decoding threads (default: the cores, at most 8)")
    parser.add_argument("--seconds", type=float, default=5.0, help="seconds per measurement (default %(default)s)")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        folder = chosen.folder or scratch
        if not chosen.folder:
            write_photographs(chosen.count, scratch)
        rates = measure(folder, image_size=chosen.image_size, threads=chosen.threads, seconds=chosen.seconds)
    print(json.dumps({name: round(rate, 1) for name, rate in rates.items()}, indent=1))


if __name__ == "__main__":
    main()
