"""A service on a free port of this machine, in a thread, and a client that sends it what tests need."""

import base64
import contextlib
import copy
import dataclasses
import http.client
import io
import json
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from zoo.data.preprocess import PreprocessSpec
from zoo.embeddings import TextCache
from zoo.inference.encoder import Encoder
from zoo.inference.pipeline import ClipPipeline
from zoo.search.build import build_index
from zoo.serve import Limits, create_app
from zoo.serve.server import Server, configure


@dataclass
class Answer:
    status: int
    headers: dict
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def error(self):
        return self.json["error"]


class Client:
    """Sends requests to a port, each on a connection of its own."""

    def __init__(self, port: int):
        self.port = port

    def send(self, method, path, body=None, headers=None, timeout=30.0) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            names = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, names, response.read())
        finally:
            connection.close()

    def get(self, path, **headers) -> Answer:
        return self.send("GET", path, headers=headers)

    def post(self, path, _headers=None, **fields) -> Answer:
        headers = {"Content-Type": "application/json", **(_headers or {})}
        return self.send("POST", path, json.dumps(fields), headers)

    def wait_until_ready(self, seconds=120.0):
        deadline = time.monotonic() + seconds
        while self.get("/ready").status != 200:
            assert time.monotonic() < deadline, "the service did not become ready"
            time.sleep(0.05)


def running(model, limits=None, ready=True, **options):
    """Run a service; yield its client."""
    limits = limits or Limits()
    return serving(create_app(model, limits=limits, **options), limits, ready)


@contextlib.contextmanager
def serving(app, limits, ready=True):
    """Run an application; yield its client."""
    server = Server(configure(app, limits))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        client = Client(server.servers[0].sockets[0].getsockname()[1])
        client.server = server
        if ready:
            client.wait_until_ready()
        yield client
    finally:
        server.should_exit = True
        thread.join(60)
    assert not thread.is_alive(), "the service did not stop"


class Process:
    """`zoo serve` as a process on a free port."""

    def __init__(self, folder, model, *options):
        self.log = folder / "server.log"
        command = [sys.executable, "-m", "zoo", "serve", "--model", str(model), "--port", "0", *options]
        with self.log.open("w") as errors:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        line = next((line for line in self.process.stdout if "Open http" in line), None)
        assert line, self.log.read_text()
        self.client = Client(int(re.search(r":(\d+)", line.split("http://")[1])[1]))
        self.client.wait_until_ready()

    def megabytes(self, field="VmRSS"):
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"{field}:\s+(\d+) kB", text)[1]) / 1e3

    def close(self):
        """Send SIGTERM; return the exit code."""
        self.process.terminate()
        code = self.process.wait(60)
        self.process.stdout.close()
        return code


def png(image: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG")
    return content.getvalue()


def data_uri(data: bytes, kind="png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def stub_pipeline():
    """Return a `ClipPipeline` whose towers are random projections: it needs no backend, and nothing is compiled."""
    rng, dim, side = np.random.default_rng(0), 32, 16
    pixels = rng.standard_normal((side * side * 3, dim), np.float32)
    words = rng.standard_normal((77, dim), np.float32)
    pipeline = object.__new__(ClipPipeline)
    pipeline.encoder = Encoder(
        lambda batch: batch.reshape(len(batch), -1) @ pixels,
        lambda tokens: tokens.astype(np.float32) @ words[: tokens.shape[1]],
        PreprocessSpec(image_size=side),
        dim,
        scale=10.0,
        shortens=True,
        batch_size=4,
    )
    pipeline.fingerprint, pipeline.cache, pipeline._classifiers = "a" * 64, TextCache(), {}
    return pipeline


def with_images(pipeline, images):
    """Return a copy of a pipeline with another image tower, and a cache of its own."""
    other = copy.copy(pipeline)
    other.encoder, other.cache = dataclasses.replace(pipeline.encoder, images=images), TextCache()
    return other


def some_images(count=7):
    """Return uint8 images (20, 20, 3)."""
    return list(np.random.default_rng(1).integers(0, 256, (count, 20, 20, 3), np.uint8))


def album_with_index(folder, images, model, pipeline=None):
    """Write images with metadata, their index, and a file that is not in the index; return the folder."""
    (folder / "secret.png").write_bytes(png(images[0]))
    rows = ["filepath,kind"]
    for i, image in enumerate(images):
        (folder / f"{i}.png").write_bytes(png(image))
        rows.append(f"{i}.png,{'odd' if i % 2 else 'even'}")
    table = folder / "photos.csv"
    table.write_text("\n".join(rows) + "\n")
    build_index(str(table), model=model, output=str(folder / "index"), pipeline=pipeline)
    return folder
