"""`zoo bench --preset serve`: `zoo serve` under load, with the load on the same cores.

The server is a process of its own. The clients are threads of this one; each keeps its connection. What a call costs
without HTTP is measured in this process before the server starts.
"""

import base64
import contextlib
import http.client
import io
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from zoo.bench.machine import describe_machine
from zoo.utils.arrays import unit_rows
from zoo.utils.env import available_cores, choose_backend
from zoo.utils.files import atomic_write

INDEX_SIZE, TOP_K = 10_000, 10
CLIENTS = 16
CALLS = 200  # of one client, for a median
IMAGES, SIDE = 320, 256  # images per measurement, pixels
START_SECONDS = 600.0
LISTENING = re.compile(r"Open http://([\d.]+):(\d+)")


@dataclass(frozen=True)
class ServeReport:
    """What a service did under load.

    Args:
        machine: processor, cores and versions.
        model: name of the pair.
        figures: {what: value}; the names say the unit.
        peer: the same of another server, {} without one.
    """

    machine: dict
    model: str
    figures: dict[str, float]
    peer: dict[str, float]

    def to_text(self) -> str:
        """Return a Markdown table."""
        rows = [f"| {self.model} | zoo serve | peer |", "|---|---|---|"]
        names = dict.fromkeys([*self.figures, *self.peer])
        rows += [f"| {name} | {_shown(self.figures, name)} | {_shown(self.peer, name)} |" for name in names]
        return "\n".join(rows)


def _shown(figures: dict[str, float], name: str) -> str:
    return f"{figures[name]:.4g}" if name in figures else "–"


def bench_serving(
    name: str | None = None,
    *,
    runtime: str = "keras",
    peer_url: str | None = None,
    smoke: bool = False,
    output: str | Path | None = None,
) -> ServeReport:
    """Measure `zoo serve` with a pair of random weights and an index of 10,000 vectors.

    Args:
        name: name or path of a pair; by default one like the demo's.
        runtime: "keras" or "onnx".
        peer_url: address of another server with OpenAI's embeddings and `modality`, such as infinity-emb's, which
            gets the same load of images.
        smoke: a tiny run.
        output: folder for serve.md and serve.json.
    """
    choose_backend()
    machine = describe_machine(available_cores())
    with tempfile.TemporaryDirectory() as folder:
        path, model = _prepare(Path(folder), name)
        images = _jpegs(32 if smoke else IMAGES)
        calls = 20 if smoke else CALLS
        figures, expected = _in_process(path, Path(folder) / "index", images, runtime, calls)
        arguments = ["--model", str(path), "--index", str(Path(folder) / "index"), "--runtime", runtime]
        with _server(arguments) as (host, port, process):
            figures |= _over_http(host, port, process, images, calls, expected)
    figures["HTTP's own part of a cached search, ms"] = (
        figures["cached search, median ms"] - figures["cached search without HTTP, median ms"]
    )
    figures["images/s, of those without HTTP"] = (
        figures[f"images/s, {CLIENTS} clients"] / figures["images/s without HTTP"]
    )
    peer = {}
    if peer_url is not None:
        address = urllib.parse.urlsplit(peer_url)
        peer = _load_images(Connections(address.hostname or "", address.port or 80, address.path), images)
    report = ServeReport(machine, model, {key: round(value, 6) for key, value in figures.items()}, peer)
    if output is not None:
        Path(output).mkdir(parents=True, exist_ok=True)
        for file, text in (("serve.md", report.to_text()), ("serve.json", json.dumps(report.__dict__, indent=1))):
            with atomic_write(Path(output) / file, "w") as target:
                target.write(f"{text}\n")
    return report


def _prepare(folder: Path, name: str | None) -> tuple[Path | str, str]:
    """Return the pair, saved if it is made here, and its name."""
    if name is not None:
        return (Path(name) if Path(name).exists() else name), Path(name).name
    from clip import create_clip
    from zoo.data.preprocess import PreprocessSpec
    from zoo.models.registry import save

    model = create_clip("convnext_v2_atto", image_size=32, stem_stride=2)
    path = folder / "pair.safetensors"
    save(model, path, preprocess=PreprocessSpec(image_size=32))
    return path, "convnext_v2_atto at 32 pixels, as in the demo"


def _jpegs(count: int) -> list[bytes]:
    rng, found = np.random.default_rng(0), []
    for _ in range(count):
        coarse = rng.integers(0, 256, (8, 8, 3), np.uint8)
        content = io.BytesIO()
        Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(content, "JPEG", quality=90)
        found.append(content.getvalue())
    return found


def _median_ms(call: Callable[[], Any], count: int) -> float:
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return 1e3 * statistics.median(seconds)


def _rate(call: Callable[[], Any], count: int) -> float:
    start = time.perf_counter()
    call()
    return count / (time.perf_counter() - start)


def _in_process(
    path: Path | str, index_path: Path, images: Sequence[bytes], runtime: str, calls: int
) -> tuple[dict[str, float], np.ndarray]:
    """Return the figures without HTTP, and the embeddings of the first CLIENTS images."""
    from zoo.embeddings import Index
    from zoo.inference.pipeline import ClipPipeline

    pipeline = ClipPipeline(path, batch_size="auto", runtime=runtime)
    vectors = np.random.default_rng(0).standard_normal((INDEX_SIZE, pipeline.encoder.dim), np.float32)
    index = Index.build(unit_rows(vectors), index_path, model=pipeline.fingerprint)
    rate = max(_rate(lambda: pipeline.embed_images(images), len(images)) for _ in range(3))  # the first one compiles
    cached = _median_ms(lambda: pipeline.search(index, "a photo of a seven", TOP_K), calls)
    single = np.concatenate([pipeline.embed_images([image]) for image in images[:CLIENTS]])
    return {"images/s without HTTP": rate, "cached search without HTTP, median ms": cached}, single


@contextlib.contextmanager
def _server(arguments: Sequence[str]) -> Iterator[tuple[str, int, subprocess.Popen]]:
    """Run `zoo serve` on a free port until it is ready; yield its host, port and process."""
    command = [sys.executable, "-m", "zoo", "serve", "--port", "0", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            found = next((match for line in process.stdout if (match := LISTENING.search(line))), None)
            if found is None:
                raise ValueError(f"zoo serve did not start: exit code {process.wait()}")
            host, port = found[1], int(found[2])
            deadline = time.monotonic() + START_SECONDS
            while Connections(host, port).get("/ready")[0] != 200:
                if time.monotonic() > deadline:
                    raise ValueError(f"zoo serve was not ready within {START_SECONDS:g} s")
                time.sleep(0.1)
            yield host, port, process
        finally:
            process.terminate()


class Connections:
    """One connection a thread, kept open.

    Args:
        host, port: of the server.
        prefix: beginning of the paths.
    """

    def __init__(self, host: str, port: int, prefix: str = ""):
        self._open = lambda: http.client.HTTPConnection(host, port, timeout=300)
        self._prefix, self._kept = prefix.rstrip("/"), self._open()

    def fresh(self) -> "Connections":
        """Return the same with a connection of its own."""
        other = object.__new__(Connections)
        other.__dict__.update(self.__dict__, _kept=self._open())
        return other

    def get(self, path: str) -> tuple[int, bytes]:
        """Return the status and the body."""
        return self._send("GET", path, None)

    def post(self, path: str, fields: dict) -> dict:
        """Return the JSON of an answer; ValueError for a refusal."""
        status, body = self._send("POST", path, json.dumps(fields).encode())
        if status != 200:
            raise ValueError(f"{path} answered {status}: {body[:200]!r}")
        return json.loads(body)

    def _send(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        headers = {} if body is None else {"Content-Type": "application/json"}
        self._kept.request(method, self._prefix + path, body, headers)
        response = self._kept.getresponse()
        return response.status, response.read()


def _over_http(
    host: str, port: int, process: subprocess.Popen, images: Sequence[bytes], calls: int, expected: np.ndarray
) -> dict[str, float]:
    one = Connections(host, port)
    texts = iter(f"a photo of the number {i}, written by hand" for i in range(10**9))
    figures = {
        "/health, median ms": _median_ms(lambda: one.get("/health"), calls),
        "cached search, median ms": _median_ms(
            lambda: one.post("/v1/search", {"query": "a photo of a seven", "k": TOP_K}), calls
        ),
        "search by a new sentence, median ms": _median_ms(
            lambda: one.post("/v1/search", {"query": next(texts), "k": TOP_K}), calls
        ),
    }
    before = _cpu_seconds(process.pid), time.process_time()
    figures |= _load_images(Connections(host, port, "/v1"), images)
    figures["CPU seconds of the server in that load"] = _cpu_seconds(process.pid) - before[0]
    figures["CPU seconds of the clients in that load"] = time.process_time() - before[1]
    worst = _mixed_difference(host, port, images, expected)
    figures["largest difference of 16 mixing clients from single calls"] = worst
    figures["memory of the server, largest MB"] = _peak_megabytes(process.pid)
    return figures


def _load_images(connections: Connections, images: Sequence[bytes]) -> dict[str, float]:
    """Return the images/s and latencies of CLIENTS clients that send one image a request."""
    bodies = [_image_request(image) for image in images]
    share = [bodies[i::CLIENTS] for i in range(CLIENTS)]

    def client(own: Sequence[dict]) -> list[float]:
        connection, seconds = connections.fresh(), []
        for body in own:
            start = time.perf_counter()
            connection.post("/embeddings", body)
            seconds.append(time.perf_counter() - start)
        return seconds

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(client, [own[:2] for own in share]))  # warms up
        start = time.perf_counter()
        seconds = sorted(sum(pool.map(client, share), []))
        took = time.perf_counter() - start
    return {
        f"images/s, {CLIENTS} clients": len(images) / took,
        f"an image, {CLIENTS} clients, median ms": 1e3 * statistics.median(seconds),
        f"an image, {CLIENTS} clients, p99 ms": 1e3 * seconds[min(len(seconds) - 1, int(0.99 * len(seconds)))],
    }


def _image_request(image: bytes) -> dict:
    uri = f"data:image/jpeg;base64,{base64.b64encode(image).decode()}"
    return {"input": [uri], "modality": "image", "encoding_format": "base64"}


def _mixed_difference(host: str, port: int, images: Sequence[bytes], expected: np.ndarray) -> float:
    """Return the largest difference between embeddings under a mixed load and those of single calls."""

    def client(number: int) -> float:
        connection, worst = Connections(host, port), 0.0
        for turn in range(8):
            connection.post("/v1/embeddings", {"input": f"text {turn} of client {number}"})
            request = {"input": _image_request(images[number])["input"], "modality": "image"}
            got = connection.post("/v1/embeddings", request)["data"][0]["embedding"]
            worst = max(worst, float(np.abs(np.array(got, np.float32) - expected[number]).max()))
        return worst

    with ThreadPoolExecutor(CLIENTS) as pool:
        return max(pool.map(client, range(len(expected))))


def _cpu_seconds(process: int) -> float:
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return float(resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime)


def _peak_megabytes(process: int) -> float:
    with contextlib.suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
        if found:
            return int(found[1]) / 1e3
    return float("nan")
