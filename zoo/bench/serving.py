"""`zoo bench --preset serve`: `zoo serve` under load, with the load on the same cores.

The server is a process of its own. The clients are threads of this one; each keeps its connection open. Calls without
HTTP, the same calls over HTTP, and those to another server take turns in several rounds, so that other load on the
machine affects all of them.
"""

import base64
import contextlib
import io
import itertools
import json
import os
import re
import socket
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
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from zoo.bench.machine import describe_machine, resident_bytes
from zoo.utils.arrays import unit_rows
from zoo.utils.env import available_cores, choose_backend, keep_freed_memory, let_threads_sleep
from zoo.utils.files import atomic_write

INDEX_SIZE, TOP_K = 10_000, 10
CLIENTS = 16
PER_REQUEST = 8  # images of a large request
CALLS, ROUNDS = 200, 5  # single calls for a median; rounds of all turns
IMAGES, SIDE = 64, 256  # distinct images; pixels per side
TURN_SECONDS, MAX_IMAGES = 4.0, 2048  # of one turn: the time without HTTP, and the most images
SMOKE_BATCH = 4
START_SECONDS = 600.0
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.I)
LISTENING = re.compile(r"Open (http://[\d.:]+)")
SMALL, LARGE, MIXED = (
    f"{CLIENTS} clients",
    f"{CLIENTS} clients, {PER_REQUEST} images a request",
    f"{CLIENTS} clients mixing texts and images",
)
LOADS = {SMALL: ("an image",), LARGE: ("a request",), MIXED: ("an image", "a text")}  # and what is timed in each
DIRECT = "embed_images without HTTP"
TARGETS = {
    "cached search, median ms": "≤ 3",
    "cached search, HTTP's own part, ms": "≤ 2",
    "search by a new sentence, median ms": "≤ 20",
    f"images/s, {LARGE}, relative to no HTTP": "≥ 0.9",
    f"{MIXED}, largest difference from single calls": "≤ 1e-5",
    f"images/s, {SMALL}, relative to the peer": "≥ 1.5",
    f"an image, {SMALL}, p99 ms, relative to the peer": "≤ 0.5",
}


@dataclass(frozen=True)
class ServeReport:
    """What a service did under load.

    Args:
        machine: processor, cores, load and versions.
        model: name of the CLIP model, the runtime, the precision and the number of rounds.
        figures: {what: value}; the names say the unit.
        peer: the same for another server; {} without one.
    """

    machine: dict
    model: str
    figures: dict[str, float]
    peer: dict[str, float]

    def to_text(self) -> str:
        """Return Markdown: the machine, and a table."""
        rows = [f"- {label}: {value}" for label, value in self.machine.items()]
        rows += ["", f"| {self.model} | zoo serve | peer | target |", "|---|--:|--:|--:|"]
        for name in dict.fromkeys([*self.figures, *self.peer]):
            cells = _shown(self.figures, name), _shown(self.peer, name), TARGETS.get(name, "")
            rows.append(f"| {name} | {' | '.join(cells)} |")
        return "\n".join(rows)


def _shown(figures: dict[str, float], name: str) -> str:
    return f"{figures[name]:.4g}" if name in figures else ""


def bench_serving(
    name: str | None = None,
    *,
    backend: str | None = None,
    runtime: str = "keras",
    precision: str = "float32",
    peer_url: str | None = None,
    rounds: int | None = None,
    smoke: bool = False,
    output: str | Path | None = None,
) -> ServeReport:
    """Measure `zoo serve` with a pair and an index of 10,000 random vectors.

    Args:
        name: name or path of a pair; by default one like the demo's, with random weights.
        backend, runtime, precision: as for `zoo serve`.
        peer_url: address of another server that gets the same requests; it takes OpenAI's embeddings requests with
            `modality`, as infinity-emb does.
        rounds: turns of each load; default 5, or 1 with `smoke`.
        smoke: make a short run.
        output: folder for serve.md and serve.json.
    """
    keep_freed_memory()  # both as in `zoo serve`
    let_threads_sleep()
    backend = choose_backend(backend)
    machine = describe_machine(available_cores())
    rounds = rounds or (1 if smoke else ROUNDS)
    with tempfile.TemporaryDirectory() as folder:
        path, model = _prepare(Path(folder), name)
        index_path = Path(folder) / "index"
        direct = _Direct(path, index_path, runtime, precision, batch_size=SMOKE_BATCH if smoke else "auto")
        arguments = ["--model", str(path), "--index", str(index_path), "--runtime", runtime, "--precision", precision]
        with _server([*arguments, "--batch-size", str(direct.batch_size)]) as (url, process):
            figures = _median_times(f"{url}/v1", direct, 20 if smoke else CALLS)
            servers = {"ours": f"{url}/v1"} | ({"peer": peer_url} if peer_url is not None else {})
            turns = _take_turns(direct, servers, process, rounds, smoke)
            memory = resident_bytes(peak=True, process=process)
    peer = _figures_of("peer", turns, direct) if peer_url is not None else {}
    figures |= _figures_of("ours", turns, direct) | _ratios(turns, rounds)
    if memory is not None:
        figures["memory of the server, largest MB"] = memory / 1e6
    title = f"{model}, {backend if runtime == 'keras' else runtime}, {precision}, {rounds} round{'s' * (rounds != 1)}"
    report = ServeReport(machine, title, {key: round(value, 8) for key, value in figures.items()}, peer)
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


class _Direct:
    """The pair in this process: the calls without HTTP, and what single calls give."""

    def __init__(self, path: Path | str, index_path: Path, runtime: str, precision: str, *, batch_size: int | str):
        from zoo.embeddings import Index
        from zoo.inference.forward import CALLS_MANY_ROWS
        from zoo.inference.pipeline import ClipPipeline

        self.pipeline = ClipPipeline(path, batch_size=batch_size, runtime=runtime, precision=precision)
        self.batch_size = self.pipeline.encoder.batch_size
        vectors = np.random.default_rng(0).standard_normal((INDEX_SIZE, self.pipeline.encoder.dim), np.float32)
        self.index = Index.build(unit_rows(vectors), index_path, model=self.pipeline.fingerprint)
        self.images = _jpegs(IMAGES)
        self.uris = [f"data:image/jpeg;base64,{base64.b64encode(image).decode()}" for image in self.images]
        for _ in range(CALLS_MANY_ROWS):  # compiles
            self.pipeline.embed_images(self.images[: self.batch_size])

    def search(self) -> None:
        """Search by a text in the cache."""
        self.pipeline.search(self.index, "a photo of a seven", TOP_K)

    def embed_images(self, count: int) -> "_Turn":
        """Embed `count` images."""
        images = [self.images[i % IMAGES] for i in range(count)]
        cpu, start = time.process_time(), time.perf_counter()
        self.pipeline.embed_images(images)
        return _Turn(time.perf_counter() - start, count, [], clients=time.process_time() - cpu)

    def embed_one(self, request: "_Request") -> np.ndarray:
        """Return what single calls give for a request of one input."""
        if request.images:
            return self.pipeline.embed_images([self.images[request.number % IMAGES]])[0]
        return self.pipeline.encoder.embed_texts([_sentence(request.number)])[0]


def _sentence(number: int) -> str:
    return f"a photo of the number {number}, written by hand"


class _Request(NamedTuple):
    """The body of a request to /embeddings with its number and its number of images."""

    number: int
    images: int
    body: bytes


class _Reply(NamedTuple):
    """A request, the seconds until its answer, and the answer."""

    request: _Request
    seconds: float
    body: bytes


class _Turn(NamedTuple):
    """One turn of a load.

    Args:
        seconds: from the first request to the last answer.
        images: number embedded.
        replies: of all clients.
        server, clients: CPU seconds of `zoo serve` and of this process.
    """

    seconds: float
    images: int
    replies: list[_Reply]
    server: float = 0.0
    clients: float = 0.0


class _Connection:
    """A connection to a server, kept open. It shares the server's cores, so a request is one system call, and of the
    answer's headers only the length is read.

    Args:
        url: http://host:port/prefix; the prefix is the beginning of the paths.
    """

    def __init__(self, url: str):
        address = urllib.parse.urlsplit(url)
        self._prefix, self._host = address.path.rstrip("/"), address.netloc
        self._socket = socket.create_connection((address.hostname or "", address.port or 80), timeout=300)

    def get(self, path: str) -> int:
        """Return the status of an answer."""
        return self._send("GET", path)[0]

    def post(self, path: str, body: bytes) -> bytes:
        """Return the body of an answer; ValueError for a refusal."""
        status, answer = self._send("POST", path, body)
        if status != 200:
            raise ValueError(f"{path} answered {status}: {answer[:200]!r}")
        return answer

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def _send(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        head = f"{method} {self._prefix}{path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: application/json\r\n"
        self._socket.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        received, start, size = b"", 0, sys.maxsize
        while len(received) < size:
            part = self._socket.recv(1 << 20)
            if not part:
                raise ValueError(f"{path}: the connection ended after {received[:200]!r}")
            received += part
            if not start and (end := received.find(b"\r\n\r\n")) > 0:
                length = LENGTH.search(received, 0, end)
                if length is None:
                    raise ValueError(f"{path}: the answer has no Content-Length: {received[:end]!r}")
                start, size = end + 4, end + 4 + int(length[1])
        return int(received.split(maxsplit=2)[1]), received[start:]


@contextlib.contextmanager
def _server(arguments: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Run `zoo serve` on a free port; once it is ready, yield its URL and process id."""
    command = [sys.executable, "-m", "zoo", "serve", "--port", "0", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            found = next((match for line in process.stdout if (match := LISTENING.search(line))), None)
            if found is None:
                raise ValueError(f"zoo serve did not start: exit code {process.wait()}")
            deadline = time.monotonic() + START_SECONDS
            with contextlib.closing(_Connection(found[1])) as connection:
                while connection.get("/ready") != 200:
                    if time.monotonic() > deadline:
                        raise ValueError(f"zoo serve was not ready within {START_SECONDS:g} s")
                    time.sleep(0.1)
            yield found[1], process.pid
        finally:
            process.terminate()


def _median_times(url: str, direct: _Direct, calls: int) -> dict[str, float]:
    """Return the medians of single calls that take turns."""
    ours, numbers = _Connection(url), itertools.count(10**6)

    def search(text: str) -> None:
        ours.post("/search", json.dumps({"query": text, "k": TOP_K}).encode())

    every: dict[str, Callable[[], Any]] = {
        "cached search, median ms": lambda: search("a photo of a seven"),
        "cached search without HTTP, median ms": direct.search,
        "search by a new sentence, median ms": lambda: search(_sentence(next(numbers))),
    }
    seconds: dict[str, list[float]] = {what: [] for what in every}
    for _ in range(calls):
        for what, call in every.items():
            start = time.perf_counter()
            call()
            seconds[what].append(time.perf_counter() - start)
    medians = {what: 1e3 * statistics.median(found) for what, found in seconds.items()}
    own = medians["cached search, median ms"] - medians["cached search without HTTP, median ms"]
    return medians | {"cached search, HTTP's own part, ms": own}


def _take_turns(
    direct: _Direct, servers: dict[str, str], process: int, rounds: int, smoke: bool
) -> dict[tuple[str, str], list[_Turn]]:
    """Return {(server, load): its turns} of {server: URL}; `DIRECT` is a load of no server."""
    unit = CLIENTS * PER_REQUEST
    count = unit // 4
    if not smoke:
        rate = unit / direct.embed_images(unit).seconds
        count = min(MAX_IMAGES, unit * max(1, round(rate * TURN_SECONDS / unit)))
    numbers = itertools.count()
    loads: dict[str, Callable[[], list[list[_Request]]]] = {
        SMALL: lambda: [[_of_images(direct, i, 1)] for i in range(count)],
        LARGE: lambda: [[_of_images(direct, i, PER_REQUEST)] for i in range(0, count, PER_REQUEST)],
        MIXED: lambda: [[_of_text(next(numbers)), _of_images(direct, i, 1)] for i in range(count)],
    }
    turns: dict[tuple[str, str], list[_Turn]] = {("", DIRECT): []}
    turns |= {(server, load): [] for load in loads for server in servers}
    for url in servers.values():  # warms up
        for make in loads.values():
            _run(url, make()[: 2 * CLIENTS], process)
    for _ in range(rounds):
        turns["", DIRECT].append(direct.embed_images(count))
        for load, make in loads.items():
            groups = make()
            for server, url in servers.items():
                turns[server, load].append(_run(url, groups, process))
    return turns


def _of_images(direct: _Direct, number: int, count: int) -> _Request:
    uris = [direct.uris[i % IMAGES] for i in range(number, number + count)]
    return _Request(number, count, _body(input=uris, modality="image"))


def _of_text(number: int) -> _Request:
    return _Request(number, 0, _body(input=[_sentence(number)]))


def _body(**fields: Any) -> bytes:
    return json.dumps({**fields, "encoding_format": "base64"}).encode()


def _run(url: str, groups: list[list[_Request]], process: int) -> _Turn:
    """Let CLIENTS clients send groups of requests, each client one request after the other."""

    def client(own: list[list[_Request]]) -> list[_Reply]:
        with contextlib.closing(_Connection(url)) as connection:
            replies = []
            for request in itertools.chain.from_iterable(own):
                start = time.perf_counter()
                answer = connection.post("/embeddings", request.body)
                replies.append(_Reply(request, time.perf_counter() - start, answer))
            return replies

    shares = [groups[i::CLIENTS] for i in range(CLIENTS)]
    with ThreadPoolExecutor(CLIENTS) as pool:
        server, clients, start = _cpu_seconds(process), time.process_time(), time.perf_counter()
        replies = list(itertools.chain.from_iterable(pool.map(client, shares)))
        seconds = time.perf_counter() - start
    images = sum(reply.request.images for reply in replies)
    return _Turn(seconds, images, replies, _cpu_seconds(process) - server, time.process_time() - clients)


def _figures_of(server: str, turns: dict[tuple[str, str], list[_Turn]], direct: _Direct) -> dict[str, float]:
    """Return the figures of a server's turns; rates are medians over rounds, latencies are over all requests."""
    figures = {}
    if server == "ours":
        figures[f"images/s, {DIRECT}"] = statistics.median(map(_rate, turns["", DIRECT]))
        figures[f"{DIRECT}: CPU ms per image"] = _cpu_ms(turns["", DIRECT], "clients")
    for load, timed in LOADS.items():
        own = turns[server, load]
        figures[f"images/s, {load}"] = statistics.median(map(_rate, own))
        for what in timed:
            seconds = _latencies(own, what)
            figures[f"{what}, {load}, median ms"] = 1e3 * statistics.median(seconds)
            figures[f"{what}, {load}, p99 ms"] = 1e3 * float(np.percentile(seconds, 99))
        if server == "ours":
            for side in ("server", "clients"):
                figures[f"{load}, {side}: CPU ms per image"] = _cpu_ms(own, side)
    replies = turns[server, MIXED][0].replies[: 2 * CLIENTS]
    worst = max(float(np.abs(_vector(reply) - direct.embed_one(reply.request)).max()) for reply in replies)
    return figures | {f"{MIXED}, largest difference from single calls": worst}


def _ratios(turns: dict[tuple[str, str], list[_Turn]], rounds: int) -> dict[str, float]:
    """Return our rates divided by those without HTTP and by the peer's: medians over rounds."""
    figures = {}
    for load, (what, *_) in LOADS.items():
        ours = turns["ours", load]
        if load != MIXED:
            shares = [_rate(ours[i]) / _rate(turns["", DIRECT][i]) for i in range(rounds)]
            figures[f"images/s, {load}, relative to no HTTP"] = statistics.median(shares)
        if peer := turns.get(("peer", load)):
            gains = [_rate(ours[i]) / _rate(peer[i]) for i in range(rounds)]
            figures[f"images/s, {load}, relative to the peer"] = statistics.median(gains)
            tails = [float(np.percentile(_latencies(side, what), 99)) for side in (ours, peer)]
            figures[f"{what}, {load}, p99 ms, relative to the peer"] = tails[0] / tails[1]
    return figures


def _rate(turn: _Turn) -> float:
    return turn.images / turn.seconds


def _cpu_ms(turns: Sequence[_Turn], side: str) -> float:
    return 1e3 * sum(getattr(turn, side) for turn in turns) / sum(turn.images for turn in turns)


def _latencies(turns: Sequence[_Turn], what: str) -> list[float]:
    replies = itertools.chain.from_iterable(turn.replies for turn in turns)
    return [reply.seconds for reply in replies if bool(reply.request.images) is (what != "a text")]


def _vector(reply: _Reply) -> np.ndarray:
    return np.frombuffer(base64.b64decode(json.loads(reply.body)["data"][0]["embedding"]), "<f4")


def _cpu_seconds(process: int) -> float:
    """Return the CPU time of a process; 0 where the system has no /proc."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0
