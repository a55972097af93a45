"""`zoo serve` as a process under hostile clients, in bounded loops: it answers, stays small and writes no traceback."""

import contextlib
import io
import json
import re
import socket
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pipeline_case import *  # noqa: F403
from serve_case import Process, album_with_index, data_uri, png

pytestmark = [pytest.mark.backend, pytest.mark.once, pytest.mark.slow]

MAX_GROWTH = 1_500  # MB above the idle process: 2 decoded images of 50 million pixels, bodies, queues
MAX_HEALTH = 5.0  # seconds, on a machine that does other work too


@pytest.fixture(scope="module")
def server(tmp_path_factory, saved, images):
    if not Path("/proc/self/status").exists():
        pytest.skip("reads /proc")
    folder = album_with_index(tmp_path_factory.mktemp("photos"), images, str(saved))
    server = Process(folder, saved, "--index", str(folder / "index"))
    server.idle = server.megabytes()
    yield server
    assert server.close() == 0
    log = server.log.read_text()
    print(f"idle {server.idle:.0f} MB, largest {server.largest:.0f} MB, slowest /health {server.slowest:.2f} s")
    assert "Traceback" not in log, log
    assert server.largest < server.idle + MAX_GROWTH
    assert server.slowest < MAX_HEALTH


@pytest.fixture(autouse=True)
def watched(server):
    """While a test runs, /health is asked all the time; at the end no answer may have been a 500."""
    stop, times = threading.Event(), []

    def ask():
        while not stop.is_set():
            start = time.monotonic()
            assert server.client.get("/health").status == 200
            times.append(time.monotonic() - start)
            time.sleep(0.02)

    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        try:
            yield
        finally:
            stop.set()
            asking.result(60)
    server.slowest = max(getattr(server, "slowest", 0), *times)
    server.largest = server.megabytes("VmHWM")
    assert not re.search(r'zoo_requests_total\{[^}]*status="500"', server.client.get("/metrics").body.decode())


def bomb(width, height):
    """A PNG of a few kilobytes that decodes to width × height."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes((width + 1) * min(height, 2000)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_bombs_and_cut_images(server, images):
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)).save(content, "JPEG")
    whole = content.getvalue()
    cut = [whole[:length] for length in (0, 2, 20, 200, len(whole) // 2, len(whole) - 3)]
    flipped = [bytes(b ^ 0xFF if i % 97 == 0 else b for i, b in enumerate(whole)), whole[::-1]]
    bombs = [bomb(100_000, 100_000), bomb(7000, 7000), bomb(1, 49_000_000), bomb(49_000_000, 1), bomb(0, 5)]
    for data in (*cut, *flipped, *bombs):
        answer = server.client.send("POST", "/v1/embeddings", data, {"Content-Type": "image/png"}, timeout=60)
        assert answer.status in (200, 400, 504), answer.body
    big = data_uri(bomb(7000, 7000))  # within the bounds; 64 of them at once
    with ThreadPoolExecutor(8) as pool:
        send = lambda _: server.client.post("/v1/embeddings", input=[big] * 8, modality="image").status  # noqa: E731
        assert set(pool.map(send, range(8))) <= {200, 400, 429, 504}
    assert server.client.post("/v1/embeddings", input=data_uri(png(images[0])), modality="image").status == 200


VALUES = (None, True, -1, 0, 1.5, 10**400, "", "a", "x" * 5000, "\0", "{}", "{", [], [[]], ["a", 1], {}, {"a": {}})


def test_wrong_types_in_every_field(server, images):
    description = server.client.get("/openapi.json").json
    good = {"image": data_uri(png(images[0])), "labels": ["a"], "query": "a", "documents": ["a"], "input": "a"}
    count = 0
    for path, methods in description["paths"].items():
        if "post" not in methods:
            continue
        schema = methods["post"]["requestBody"]["content"]["application/json"]["schema"]
        filled = {name: good[name] for name in (*schema["required"], *(["labels"] if "classify" in path else []))}
        for name in (*schema["properties"], "no such field", "__class__", "\ud83d\ude00"):
            for value in VALUES:
                text = json.dumps({**filled, name: value})
                answer = server.client.send("POST", path, text, {"Content-Type": "application/json"})
                assert answer.status in (200, 400, 404), (path, name, value, answer.body)
                assert "Traceback" not in answer.body.decode()
                count += 1
    assert count > 300


def test_paths_that_lead_elsewhere(server):
    for path in (
        "../" * 8 + "etc/passwd",
        "%2e%2e/%2e%2e/secret.png",
        "..%5c..%5csecret.png",
        "static/../../app.py",
        "//",
    ):
        for root in ("/", "/static/", "/v1/thumbnails/"):
            assert (
                server.client.get(root + path).status in (200, 404, 405)
                and server.client.get(root + path).body[:4] != b"root"
            )


def connect(server, data=b""):
    connection = socket.create_connection(("127.0.0.1", server.client.port), timeout=30)
    connection.sendall(data)
    return connection


def test_a_thousand_connections(server):
    heads = (
        b"",
        b"GET / HT",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ",
        b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\n",
    )
    held = [connect(server, heads[i % len(heads)]) for i in range(1000)]
    time.sleep(1)
    assert server.client.get("/health").status == 200
    for connection in held:
        connection.close()


def test_slow_bodies_and_clients_that_vanish(server, images):
    uri = data_uri(png(images[0]))
    body = json.dumps({"input": [uri] * 64, "modality": "image"}).encode()
    head = b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += b"Content-Length: %d\r\n\r\n"
    slow = [connect(server, head % len(body) + body[: 50 * i]) for i in range(100)]
    for _ in range(200):  # in the middle of a batch
        gone = connect(server, head % len(body) + body)
        gone.close()
    for _ in range(50):  # answers that nobody reads
        with contextlib.suppress(OSError):
            unread = connect(server, (head % len(body) + body) * 2)
            slow.append(unread)
    for connection in slow:
        connection.close()
    deadline = time.monotonic() + 60
    while server.client.post("/v1/embeddings", input=uri, modality="image").status != 200:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    text = server.client.get("/metrics").body.decode()
    assert 'zoo_waiting{kind="images"} ' in text and "zoo_held_bytes" in text
