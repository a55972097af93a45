"""Measure how an index grows: adds, opening, memory and filters at several sizes, one index that is extended.

    python tests/bench_index.py --sizes 10000 400000 1000000 5000000 --folder FOLDER

Vectors are synthetic, float16, 256 dimensions. Every one has an id like a path and metadata with its folder (1,000
vectors each), a year (one of ten) and a digest. At each size, 1,024 vectors are added 20 times, as `zoo index build`
does; another process opens the index; and searches are timed without a filter, with one folder and with one year.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from zoo.search import Index  # noqa: E402

DIM, PORTION, ADDED, ADDS, SEARCHES = 256, 50_000, 1024, 20, 7


def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 400_000])
    parser.add_argument("--folder", help="folder for the index, which stays and is continued; default: a temporary one")
    parser.add_argument("--random-ids", action="store_true", help="ids in no order")
    parser.add_argument("--quick", action="store_true", help="repeat vectors, without metadata, up to a size")
    parser.add_argument("--open", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.open:
        print(json.dumps(opening(options.folder)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(options.folder or scratch) / "index"
        if path.is_dir():  # of a run that was interrupted, or measured smaller sizes
            index = Index.open(path)
        else:
            index = Index.build(np.empty((0, DIM), np.float32), path, dtype="float16")
        size = len(index)
        for wanted in options.sizes:
            while size < wanted:
                count = min((10 if options.quick else 1) * PORTION, wanted - size)
                fill(index, size, count) if options.quick else add(index, size, count, options.random_ids)
                size += count
            print(f"## {size:,} vectors", flush=True)
            taken = []
            for _ in range(ADDS):
                taken.append(add(index, size, ADDED, options.random_ids))
                size += ADDED
            show("add of 1,024", taken)
            child = [sys.executable, __file__, "--open", "--folder", str(path)]
            figures = json.loads(subprocess.run(child, check=True, capture_output=True, text=True).stdout)
            print(f"{'another process':32}{figures}", flush=True)
            for name, where in (
                ("search", None),
                ("search, one folder", {"folder": "00003"}),
                ("search, one year", {"year": 2003}),
            ):
                rng = np.random.default_rng(1)
                show(
                    name, [timed(lambda q, w=where: index.search(q, where=w), unit(rng, 1)[0]) for _ in range(SEARCHES)]
                )
            print(f"{'segments':32}{index.info()['segments']}", flush=True)


def unit(rng, count: int) -> np.ndarray:
    rows = rng.standard_normal((count, DIM), np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def fill(index: Index, first: int, count: int) -> None:
    ids = [f"photos/{i // 1000:05d}/IMG_{i:08d}.jpg" for i in range(first, first + count)]
    index.add(np.resize(unit(np.random.default_rng(0), 1000), (count, DIM)), ids=ids)


def add(index: Index, first: int, count: int, random_ids: bool) -> float:
    """Add vectors and return the seconds that took."""
    rng = np.random.default_rng(first)
    numbers = range(first, first + count)
    digests = [f"{high:016x}{low:016x}" * 2 for high, low in rng.integers(0, 2**62, (count, 2)).tolist()]
    metadata = [
        {"folder": f"{i // 1000:05d}", "year": 2000 + i % 10, "sha256": digest}
        for i, digest in zip(numbers, digests, strict=True)
    ]
    ids = digests if random_ids else [f"photos/{i // 1000:05d}/IMG_{i:08d}.jpg" for i in numbers]
    vectors = unit(rng, count)
    return timed(lambda: index.add(vectors, ids=ids, metadata=metadata))


def timed(function, *arguments) -> float:
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def show(what: str, taken: list[float]) -> None:
    middle, mean, most = (1e3 * value for value in (statistics.median(taken), statistics.mean(taken), max(taken)))
    print(f"{what:32}p50 {middle:.1f} ms, mean {mean:.1f} ms, longest {most:.1f} ms", flush=True)


def opening(path: str) -> dict:
    """Return what opening an index takes in a fresh process: time, and its own memory without mapped files."""
    before = own_memory()
    start = time.perf_counter()
    index = Index.open(path)
    count = len(index)
    seconds = time.perf_counter() - start
    opened = own_memory() - before
    index.search(unit(np.random.default_rng(0), 1)[0])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "vectors": count,
        "open_s": round(seconds, 4),
        "own_mib_opened": round(opened, 1),
        "own_mib_after_a_search": round(own_memory() - before, 1),
        "peak_resident_mib_with_mapped_files": round(peak),
    }


def own_memory() -> float:
    """Return the process' anonymous memory, MiB (Linux)."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["RssAnon"].split()[0]) / 1024


if __name__ == "__main__":
    main()
