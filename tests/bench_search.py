"""Benchmark search, text cache and pipeline against the project's targets and earlier figures.

    python tests/bench_search.py vectors --count 100000 --accelerate int8 hnsw
    python tests/bench_search.py pipeline --backend tensorflow --model convnext_v2_tiny [--runtime onnx]
    python tests/bench_search.py usearch --count 100000
    python tests/bench_search.py stores --count 100000

`vectors` writes an index of synthetic vectors in another process, and searches it. Random vectors are the worst case
for a graph, because all distances are similar; `--vectors low-rank` draws them near a subspace of 32 dimensions, which
is closer to the embeddings of trained pairs. `usearch` compares an index with usearch's own exact search and graph,
without ours around it; `stores` compares an index, its graph and a Lance data set of it. `pipeline` needs no trained
weights: the time does not depend on them.
"""

import argparse
import ctypes
import functools
import io
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from zoo.embeddings.accelerator import EXPANSION, usearch  # noqa: E402
from zoo.search import Index, TextCache  # noqa: E402
from zoo.utils.arrays import unit_rows  # noqa: E402
from zoo.utils.env import available_cores  # noqa: E402

DIM, PORTION, RANK = 512, 50_000, 32
MANY = 64  # queries at once
WARM_UP = 4  # times as many queries before a graph is timed
SENTENCES = [f"a {kind} of {i}." for kind in ("photo", "sketch") for i in range(10, 60)]  # 8 tokens each
SHORT, PROMPTS = "a photo of a seven.", [f"a photo of a {name}." for name in ("dog", "cat", "car", "tree")] * 16


DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIGIT_TEXTS = ("{}", "a photo of the digit {}.", "the number {}", "a handwritten {}", "a drawing of a {}")
EVERYDAY = """dog cat car airplane lake wedding cake beach chair horse train ship frog bird pizza tree guitar football
skyline baby laptop castle bridge flower elephant shoe hat map clock bicycle river forest cow sheep truck bus banana
apple book letter dance king queen tiger lion whale snow fire rain mountain"""
EMOJI = """😀 😂 😍 😎 😢 😡 👍 👏 🙏 💪 🐶 🐱 🐭 🐰 🦊 🐻 🐼 🐯 🦁 🐮 🐷 🐸 🐵 🐔 🐧 🐦 🦄 🐝 🦋 🐢
🐙 🐳 🌵 🌲 🌹 🌻 🍎 🍌 🍇 🍓 🍕 🍔 🍟 🍩 🍺 ⚽ 🏀 🎸 🎹 🚗 🚕 🚲 🚀 🏠 ⏰ 📱 💡 🔑 🎁"""


class Figure(NamedTuple):
    """One row: what was measured, its value and unit, the target, the earlier figure."""

    what: str
    value: float
    unit: str
    target: str = ""
    earlier: str = ""


def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    jobs = parser.add_subparsers(dest="job", required=True)
    vectors = jobs.add_parser("vectors")
    vectors.add_argument("--count", type=int, default=100_000)
    vectors.add_argument("--vectors", choices=("random", "low-rank"), default="random")
    vectors.add_argument("--dtype", choices=("float32", "float16", "int8"), default="float32")
    vectors.add_argument("--accelerate", nargs="*", default=[], metavar="KIND", help="int8, hnsw")
    vectors.add_argument("--connectivity", type=int, default=32, help="of the graph")
    vectors.add_argument(
        "--expansion", type=int, nargs="*", default=[128], metavar="N", help="candidates of a graph search"
    )
    vectors.add_argument("--queries", type=int, default=50)
    vectors.add_argument("--folder", help="folder for the index; an existing one is searched")
    compared = jobs.add_parser("usearch")
    compared.add_argument("--count", type=int, default=100_000)
    compared.add_argument("--vectors", choices=("random", "low-rank"), default="low-rank")
    compared.add_argument(
        "--compare",
        nargs="+",
        default=["exact", "ours", "f16/16", "f16/32", "i8/32"],
        metavar="WHAT",
        help="exact; graphs: ours, or usearch's with a dtype and a connectivity",
    )
    compared.add_argument("--expansion", type=int, nargs="+", default=[64, 128, 256], metavar="N")
    compared.add_argument("--rounds", type=int, default=MANY, help="of one exact search")
    stores = jobs.add_parser("stores")
    stores.add_argument("--count", type=int, default=100_000)
    stores.add_argument("--probes", type=int, nargs="*", default=[8, 16, 32, 64], help="partitions that a search reads")
    stores.add_argument("--queries", type=int, default=50)
    stores.add_argument("--folder", help="folder for the index and the data set; existing ones are searched")
    pipeline = jobs.add_parser("pipeline")
    pipeline.add_argument("--backend", default=os.environ.get("KERAS_BACKEND", "tensorflow"))
    pipeline.add_argument("--model", default="convnext_v2_tiny")
    pipeline.add_argument("--runtime", choices=("keras", "onnx"), default="keras")
    pipeline.add_argument("--precision", default="float32")
    pipeline.add_argument("--rounds", type=int, default=20)
    nothing = jobs.add_parser("nothing")
    nothing.add_argument("--model", required=True, help="model.safetensors of zoo demo")
    for job in (vectors, compared, stores, pipeline, nothing):
        job.add_argument("--json", action="store_true")
    options = vars(parser.parse_args(arguments))
    as_json = options.pop("json")
    job = {"vectors": time_vectors, "usearch": compare_usearch, "stores": time_stores}
    job |= {"pipeline": time_pipeline, "nothing": measure_nothing}
    figures = job[options.pop("job")](**options)
    if as_json:
        print(json.dumps([figure._asdict() for figure in figures]))
        return
    print("| | measured | target | earlier |\n|---|--:|--:|--:|")
    for f in figures:
        print(f"| {f.what} | {f.value:.3g} {f.unit} | {f.target} | {f.earlier} |", flush=True)


def milliseconds(function, rounds: int, clock=time.perf_counter) -> tuple[float, float]:
    """Return (median, 99th percentile) of calls with 0, 1, …, after two untimed calls: the second may compile."""
    function(-1)
    function(-2)
    taken = []
    for i in range(rounds):
        start = clock()
        function(i)
        taken.append(1e3 * (clock() - start))
    return statistics.median(taken), float(np.percentile(taken, 99))


# Vectors.


def time_vectors(count, vectors, dtype, accelerate, connectivity, expansion, queries, folder) -> list[Figure]:
    with tempfile.TemporaryDirectory() as scratch:
        path = folder or f"{scratch}/index"
        index = open_index(path, count, vectors, dtype)
        queries_timed, warm_up = np.split(draw(vectors, (1 + WARM_UP) * queries, seed=1), [queries])
        figures = [*time_search(index, queries_timed, f"{count:,} × {DIM} {vectors}, {dtype}")]
        for kind in accelerate:
            start = time.perf_counter()
            options = {"connectivity": connectivity} if kind == "hnsw" else {}
            made = index._accelerators.get(kind, index._store.current())
            if made is None or made.count < len(index):  # a graph may have been interrupted
                index.accelerate(kind, **options)
                figures.append(Figure(f"building {kind}", time.perf_counter() - start, "s"))
            for query in warm_up if kind == "hnsw" else ():  # else the timing includes mapping its pages
                index.search(query, 10, approximate=max(expansion))
            for kept in expansion if kind == "hnsw" else [False]:
                figures += time_search(
                    index, queries_timed, f"{kind}, {kept} candidates" if kept else kind, approximate=kept
                )
        return figures


def time_search(index: Index, queries, name: str, *, approximate: bool | int = False) -> list[Figure]:
    exact = {1_000: "1 ms", 100_000: "10 ms", 1_000_000: "90 ms"}
    target = "1.5 ms" if approximate else exact.get(len(index), "")
    search = lambda i: index.search(queries[i], 10, approximate=approximate)  # noqa: E731
    middle, slow = milliseconds(search, len(queries))
    figures = [
        Figure(f"{name}: p50", middle, "ms", f"≤ {target}" if target else ""),
        Figure(f"{name}: p99", slow, "ms"),
    ]
    if approximate:  # CPU time excludes other processes
        own, _ = milliseconds(search, len(queries), time.thread_time)
        figures.append(Figure(f"{name}: p50 of CPU time", own, "ms"))
        figures.append(Figure(f"{name}: recall@10", index.recall(queries, approximate=approximate), "", "≥ 0.95"))
    if sys.platform == "linux":
        matrix = index.info()["bytes"] / 2**20
        what = f"{name}: memory, besides {matrix:,.0f} MiB of mapped files"
        figures.append(Figure(what, read_status("RssAnon"), "MiB"))
    return figures


def write_index(path: str, count: int, vectors: str, dtype: str) -> None:
    index = Index.build(np.empty((0, DIM), np.float32), path, dtype=dtype)
    for first in range(0, count, PORTION):
        index.add(draw(vectors, min(PORTION, count - first), seed=2 + first))


def draw(vectors: str, count: int, seed: int, dim: int = DIM) -> np.ndarray:
    """float32 (count, dim), unit rows."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((count, dim), np.float32)
    if vectors == "low-rank":
        plane = np.random.default_rng(0).standard_normal((RANK, dim), np.float32)
        rows = rng.standard_normal((count, RANK), np.float32) @ plane / RANK**0.5 + 0.1 * rows
    return unit_rows(rows)


# Ours and usearch's own.


def compare_usearch(count, vectors, compare, expansion, rounds, dim=256) -> Iterator[Figure]:
    """Compare an index with usearch's own exact search and graphs of the same rows."""
    portions = [(first, min(PORTION, count - first)) for first in range(0, count, PORTION)]
    rows = np.concatenate([draw(vectors, size, 2 + first, dim) for first, size in portions])
    asked = draw(vectors, MANY, 1, dim)
    with tempfile.TemporaryDirectory() as scratch:
        for dtype in ("float32", "float16") if "exact" in compare else ("float16",):
            index = Index.build(rows[:0], f"{scratch}/{dtype}", dtype=dtype)
            for first, size in portions:
                index.add(rows[first : first + size])
            truth = search_index(index)(asked)
            if "exact" in compare:
                stored = rows.astype(dtype)
                theirs = lambda q, of=stored: np.atleast_2d(usearch().search(of, q, 10, exact=True).keys)  # noqa: E731
                yield from time_both(f"{dtype}, ours", search_index(index), asked, truth, rounds)
                yield from time_both(f"{dtype}, usearch", theirs, asked, truth, rounds)
                index.accelerate("int8")
                yield from time_both(f"{dtype}, ours with a copy in int8", search_index(index), asked, truth, rounds)
        for what in compare:
            if what != "exact":
                yield from time_graph(what, index, rows, asked, truth, expansion)


def time_graph(what: str, index: Index, rows, asked, truth, expansion) -> Iterator[Figure]:
    """Build and search a graph: "ours", or usearch's with a dtype and a connectivity, such as "f16/16"."""
    start, cpu = time.perf_counter(), time.process_time()
    if what == "ours":
        size = index.accelerate("hnsw")["bytes"]
    else:
        dtype, connectivity = what.split("/")
        graph = usearch().Index(
            ndim=rows.shape[1], dtype=dtype, connectivity=int(connectivity), expansion_add=EXPANSION
        )
        graph.add(np.arange(len(rows)), rows)
        size = graph.serialized_length
    yield Figure(f"graph, {what}: build", time.perf_counter() - start, "s")
    yield Figure("of CPU time, all cores", time.process_time() - cpu, "s")
    yield Figure("its size", size / 2**20, "MiB")
    for kept in expansion:
        if what == "ours":
            search = search_index(index, approximate=kept)
        else:
            graph.expansion_search = kept
            search = lambda queries: np.atleast_2d(graph.search(queries, 10).keys)  # noqa: E731
        yield from time_both(f"graph, {what}, {kept} candidates", search, asked, truth)


def search_index(index: Index, **options):
    """Return a function from queries (Q, D) to the places of the 10 best, int (Q, 10)."""

    def search(queries):
        found = [index.search(queries[0], **options)[0]] if len(queries) == 1 else index.search(queries, **options)[0]
        return np.array(found, np.int64)

    return search


def time_both(name: str, search, asked, truth, rounds: int = MANY) -> list[Figure]:
    """Time one query, `rounds` times, and all at once; the memory that these take, and the recall."""
    found, taken = search(asked), []  # which maps the pages
    for query in asked[:rounds]:
        start, cpu = time.perf_counter(), time.process_time()
        search(query[None])
        taken.append((time.perf_counter() - start, time.process_time() - cpu))
    one, cpu = 1e3 * np.median(taken, axis=0)
    start = time.perf_counter()
    memory = peak(lambda: search(asked))
    many = 1e3 * (time.perf_counter() - start)
    recall = np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found, truth, strict=True)])
    return [
        Figure(f"{name}: 1 query", float(one), "ms"),
        Figure("of CPU time, all cores", float(cpu), "ms"),
        Figure(f"{len(asked)} queries", many, "ms"),
        Figure("memory of these", memory, "MiB"),
        Figure("recall@10", float(recall), ""),
    ]


def peak(call) -> float:
    """Return the most memory that a call takes besides what the process holds, MiB (Linux)."""
    ctypes.CDLL(None).malloc_trim(0)  # gives back what earlier calls have freed
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = read_status("VmRSS")
    call()
    return read_status("VmHWM") - before


def read_status(field: str) -> float:
    """Return a field of the process' status, MiB (Linux)."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[field].split()[0]) / 1024


# Stores.


def time_stores(count: int, probes: list[int], queries: int, folder: str | None) -> Iterator[Figure]:
    """Compare an index of low-rank vectors in float16 with its graph and its Lance data set, of the same numbers."""
    from zoo.search.lance_store import LanceStore, export_index

    asked = draw("low-rank", queries, seed=1)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(folder or scratch, "index")
        data = path.with_suffix(".lance")
        index = open_index(str(path), count, "low-rank", "float16")
        for name, there, write in (
            ("Lance with IVF_PQ", data.exists(), lambda: export_index(str(path), to=str(data), ann=True)),
            ("graph", "hnsw" in index.accelerators(), lambda: index.accelerate("hnsw", connectivity=32)),
        ):
            start = time.perf_counter()
            if not there:
                write()
                yield Figure(f"writing: {name}", time.perf_counter() - start, "s")
        store = LanceStore(data)
        searches: dict[str, Callable] = {
            "index, exact": lambda query: list(zip(*index.search(query, 10), strict=True)),
            "index, usearch HNSW": lambda query: list(zip(*index.search(query, 10, approximate=128), strict=True)),
            "Lance, exact": lambda query: store.search(query, 10, approximate=False),
        }
        for number in probes:
            searches[f"Lance, nprobes {number}"] = functools.partial(store.search, k=10, probes=number)
        exact = [searches["index, exact"](query) for query in asked]
        for name, search in searches.items():
            yield from compare_store(name, search, asked, exact)


def compare_store(name: str, search: Callable, queries: np.ndarray, exact: list) -> Iterator[Figure]:
    """Time a search, and compare its results (id, score, …) with the exact ones."""
    middle, slow = milliseconds(lambda i: search(queries[i]), len(queries))
    found = [search(query) for query in queries]
    both = list(zip(found, exact, strict=True))
    same = [len({row[0] for row in rows} & {row[0] for row in best}) / 10 for rows, best in both]
    scores = [[[row[1] for row in rows] for rows in side] for side in (found, exact)]
    yield Figure(f"{name}: p50", middle, "ms")
    yield Figure(f"{name}: p99", slow, "ms")
    yield Figure(f"{name}: recall@10", statistics.mean(same), "", "≥ 0.95")
    yield Figure(f"{name}: largest difference of the ten scores", float(np.abs(np.subtract(*scores)).max()), "")
    yield Figure(f"{name}: memory, besides mapped files", read_status("RssAnon"), "MiB")


def open_index(path: str, count: int, vectors: str, dtype: str) -> Index:
    """Return the index at a path, written by another process if there is none."""
    if not Path(path).exists():
        child = multiprocessing.get_context("spawn").Process(target=write_index, args=(path, count, vectors, dtype))
        child.start()
        child.join()
    return Index.open(path)


# Queries that match nothing.


def measure_nothing(model: str) -> list[Figure]:
    """Calibrate an index of the 1,797 digits, and search it for texts of digits, for other things and for emoji."""
    from sklearn.datasets import load_digits

    from zoo import ClipPipeline
    from zoo.search.build import UNRELATED

    pipeline = ClipPipeline(model, cache=False)
    images = [np.kron(image, np.ones((4, 4))).astype(np.uint8) * 15 for image in load_digits().images]
    queries = {
        "texts of digits": [text.format(name) for text in DIGIT_TEXTS for name in DIGITS],
        "other texts": [text.format(name) for text in ("{}", "a photo of a {}") for name in EVERYDAY.split()],
        "emoji": EMOJI.split(),
    }
    with tempfile.TemporaryDirectory() as scratch:
        index = Index.build(pipeline.embed_images(images), f"{scratch}/index")
        index.calibrate(pipeline.embed_texts(UNRELATED))
        best = {name: index.search(pipeline.embed_texts(texts), 1)[1][:, 0] for name, texts in queries.items()}
    return [
        Figure(f"{name} that find something, rate {rate}", 100 * float((scores >= index.score_limit(rate)).mean()), "%")
        for rate in (0.01, 0.05, 0.1)
        for name, scores in best.items()
    ]


# Pipeline and cache.


def time_pipeline(backend, model, runtime, precision, rounds) -> list[Figure]:
    os.environ["KERAS_BACKEND"] = backend
    from PIL import Image

    from clip import create_clip
    from zoo import ClipPipeline
    from zoo.data.preprocess import PreprocessSpec

    pair = create_clip(model)
    spec = PreprocessSpec(image_size=pair.image_encoder.input_shape[1])
    pipeline = ClipPipeline(pair, preprocess=spec, runtime=runtime, precision=precision, cache=False)
    image = np.random.default_rng(0).integers(0, 256, (375, 500, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG")
    with tempfile.TemporaryDirectory() as scratch:
        index = Index.build(draw("random", 1000, 0)[:, : pipeline.embed_texts(["a"]).shape[1]], f"{scratch}/index")
        new, _ = milliseconds(lambda i: pipeline.search(index, SENTENCES[i], 5), rounds)
        pipeline.cache = TextCache()
        again, _ = milliseconds(lambda _: pipeline.search(index, SENTENCES[0], 5), 500)
        beyond, _ = milliseconds(lambda i: index.search(index.vector(str(i % 1000)), 5), 500)
        classify = lambda _: pipeline.classify([file.getvalue()], SENTENCES[:10])  # noqa: E731
        cores = available_cores()
        figures = [
            Figure(f"{model}, {backend if runtime == 'keras' else 'ONNX Runtime'}, {precision}", cores, "cores"),
            Figure("search with a new text, 1,000 images", new, "ms", "≤ 25 ms", "25 ms"),
            Figure("of that, without encoding", beyond, "ms", "≤ 1 ms"),
            Figure("search with a cached text", again, "ms", "≤ 0.2 ms"),
            Figure("classifying one JPEG, with decoding", milliseconds(classify, rounds)[0], "ms", "≤ 100 ms"),
        ]
        if runtime == "keras":
            figures += time_one_row(pipeline, pair.text_encoder, rounds)
        return figures + time_lengths(pipeline, rounds) + time_cache(pipeline, Path(scratch, "texts.sqlite"))


def time_one_row(pipeline, tower, rounds: int) -> list[Figure]:
    """Compare one text in the general compiled function with the function specialised for one row."""
    import zoo.inference.forward

    encoder, most = pipeline.encoder, zoo.inference.forward.MAX_SHAPES
    tokens = np.asarray(encoder.tokenizer([SHORT]), np.int32)
    cut = tokens[:, : int(encoder.token_lengths(tokens).max())]
    own, _ = milliseconds(lambda _: encoder.texts(cut), rounds)
    zoo.inference.forward.MAX_SHAPES = 0
    any_batch = zoo.inference.forward.compile_forward(tower)
    plain, _ = milliseconds(lambda _: any_batch(cut), rounds)
    zoo.inference.forward.MAX_SHAPES = most
    return [Figure("one text, general function", plain, "ms"), Figure("one text, specialised", own, "ms")]


def time_lengths(pipeline, rounds: int) -> list[Figure]:
    """Compare prompts cut after their end with all 77 tokens, for batches of 1 and 64."""
    from zoo.inference.forward import CALLS_MANY_ROWS

    encoder, figures = pipeline.encoder, []
    for texts, times in (([SHORT], rounds), (PROMPTS, max(3, rounds // 4))):
        tokens = np.asarray(encoder.tokenizer(texts), np.int32)
        cut = tokens[:, : int(encoder.token_lengths(tokens).max())]
        for rows in [cut, tokens] * CALLS_MANY_ROWS:  # until both shapes have specialised functions
            encoder.texts(rows)
        short, whole = (milliseconds(lambda _, rows=rows: encoder.texts(rows), times)[0] for rows in (cut, tokens))
        unit = [unit_rows(encoder.texts(rows)) for rows in (cut, tokens)]
        what = f"{len(texts)} × {cut.shape[1]} tokens in {short:.1f} ms, × 77 in {whole:.1f} ms"
        figures.append(Figure(what, whole / short, "×", "≥ 3×"))
        figures.append(Figure("their difference", float(np.abs(unit[0] - unit[1]).max()), "", "≤ 1e-5"))
    return figures


def time_cache(pipeline, path: Path) -> list[Figure]:
    """Time hits and misses, then 100 texts one by one with a cache that has 99 of them, and without a cache."""
    plain = pipeline.encoder.embed_texts
    cache = TextCache(path)
    cache.embed("bench", SENTENCES, plain)
    hit, _ = milliseconds(lambda _: cache.embed("bench", SENTENCES[:1], plain), 2000)
    disk = TextCache(path, memory=0)
    far, _ = milliseconds(lambda i: disk.embed("bench", [SENTENCES[i % 100]], plain), 500)
    miss, _ = milliseconds(lambda i: cache.embed(f"other {i}", SENTENCES[1:2], plain), 20)
    encode, _ = milliseconds(lambda _: plain(SENTENCES[1:2]), 20)

    def one_by_one(i, embed):
        for sentence in [*SENTENCES[:99], f"a picture of {20 + i}."]:
            embed([sentence])

    kept, _ = milliseconds(lambda i: one_by_one(i, lambda texts: cache.embed("bench", texts, plain)), 20)
    encoded, _ = milliseconds(lambda i: one_by_one(i, plain), 20)
    for one in (cache, disk):
        one.close()
    return [
        Figure("cache hit, memory", 1e3 * hit, "µs", "≤ 15 µs"),
        Figure("cache hit, disk", 1e3 * far, "µs", "≤ 200 µs"),
        Figure("cache miss", miss, "ms"),
        Figure("encoding without a cache", encode, "ms"),
        Figure("100 encodings, 99 of them hits", encoded / kept, "×", "≥ 90×", "35×"),
    ]


if __name__ == "__main__":
    main()
