"""`zoo serve`: routes, batching and bounds, over real sockets of this machine."""

import asyncio
import base64
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from serve_case import album_with_index, data_uri, png, running, some_images, stub_pipeline, with_images

import zoo.serve
from zoo.data.preprocess import decode_image
from zoo.embeddings import Index
from zoo.embeddings.catalogue import NAME
from zoo.serve import Limits
from zoo.serve.batching import Batcher, Kind

TOKEN = "a-token-of-several-letters"


@pytest.fixture(scope="module")
def pipeline():
    return stub_pipeline()


@pytest.fixture(scope="module")
def images():
    return some_images()


@pytest.fixture(scope="module")
def photos(tmp_path_factory, pipeline, images):
    return album_with_index(tmp_path_factory.mktemp("photos"), images, "pair.safetensors", pipeline)


@pytest.fixture(scope="module")
def client(photos):
    with running(stub_pipeline(), index=photos / "index", name="pair") as client:
        yield client


@pytest.fixture(scope="module")
def strict(pipeline):
    """A service with a token and low limits."""
    limits = Limits(
        max_body=20_000,
        max_inputs=3,
        max_prompts=8,
        max_text=50,
        max_pixels=4096,
        max_connections=8,
        header_seconds=0.6,
        body_seconds=0.6,
    )
    with running(pipeline, limits, ready=False, token=TOKEN) as client:
        client.wait_until_ready()
        client.limits = limits
        yield client


def bearer(token=TOKEN):
    return {"Authorization": f"Bearer {token}"}


# Routes.


def test_embeddings_are_those_of_the_pipeline_as_floats_and_base64(client, pipeline, images):
    texts = ["a seven", "a photo of a three, written by hand on paper", "a seven"]
    answer = client.post("/v1/embeddings", input=texts, model="pair").json
    assert [entry["index"] for entry in answer["data"]] == [0, 1, 2]
    got = np.array([entry["embedding"] for entry in answer["data"]])
    np.testing.assert_allclose(got, pipeline.embed_texts(texts), atol=1e-6)
    answer = client.post(
        "/v1/embeddings", input=[data_uri(png(image)) for image in images], modality="image", encoding_format="base64"
    ).json
    got = np.stack([np.frombuffer(base64.b64decode(entry["embedding"]), "<f4") for entry in answer["data"]])
    np.testing.assert_allclose(got, pipeline.embed_images(images), atol=1e-5)


def test_the_openai_client_works_unchanged(client, strict, pipeline, images):
    import openai

    ours = openai.OpenAI(base_url=f"http://127.0.0.1:{client.port}/v1", api_key="any")
    (model,) = ours.models.list().data
    texts = ["a photo of a seven", "a cat"]
    for options in ({}, {"encoding_format": "float"}):  # by default the client asks for base64
        answer = ours.embeddings.create(model=model.id, input=texts, **options)
        np.testing.assert_allclose([entry.embedding for entry in answer.data], pipeline.embed_texts(texts), atol=1e-6)
    uris = [data_uri(png(image)) for image in images]
    answer = ours.embeddings.create(model=model.id, input=uris, extra_body={"modality": "image"})
    np.testing.assert_allclose([entry.embedding for entry in answer.data], pipeline.embed_images(images), atol=1e-5)
    with pytest.raises(openai.NotFoundError, match="this service has pair"):
        ours.embeddings.create(model="text-embedding-3-small", input="a")
    guarded = ours.with_options(base_url=f"http://127.0.0.1:{strict.port}/v1", api_key="another")
    with pytest.raises(openai.AuthenticationError, match="the token is missing or wrong"):
        guarded.models.list()
    assert guarded.with_options(api_key=TOKEN).models.list().data


def test_a_raw_image_is_a_body(client, pipeline, images):
    answer = client.send("POST", "/v1/embeddings", png(images[3]), {"Content-Type": "image/png"}).json
    np.testing.assert_allclose(answer["data"][0]["embedding"], pipeline.embed_images([images[3]])[0], atol=1e-5)
    path = "/v1/classify?labels=one&labels=two&labels=three&top=2"
    answer = client.send("POST", path, png(images[3]), {"Content-Type": "image/png"}).json
    expected = pipeline.classify([images[3]], ["one", "two", "three"])[0]
    assert [entry["index"] for entry in answer["classes"]] == list(np.argsort(-expected)[:2])


@pytest.mark.parametrize("activation", ["auto", "sigmoid"])
def test_classify_gives_the_probabilities_of_the_pipeline(client, pipeline, images, activation):
    labels, templates = ["zero", "one", "two"], ["a {}", "the digit {}."]
    fields = {"image": data_uri(png(images[2])), "labels": labels, "templates": templates, "activation": activation}
    answer = client.post("/v1/classify", **fields).json
    expected = pipeline.classify([images[2]], labels, templates, activation=activation)[0]
    got = {entry["label"]: entry["probability"] for entry in answer["classes"]}
    np.testing.assert_allclose([got[label] for label in labels], expected, atol=1e-5)
    assert [entry["probability"] for entry in answer["classes"]] == sorted(got.values(), reverse=True)


def test_rerank_orders_texts_and_images_by_cosine(client, pipeline, images):
    documents = ["a cat", data_uri(png(images[0])), "a seven"]
    answer = client.post("/v1/rerank", query="seven", documents=documents, top_n=2, return_documents=True).json
    query = pipeline.embed_texts(["seven"])[0]
    vectors = [
        *pipeline.embed_texts(["a cat"]),
        *pipeline.embed_images([images[0]]),
        *pipeline.embed_texts(["a seven"]),
    ]
    cosines = np.stack(vectors) @ query
    order = np.argsort(-cosines)[:2]
    assert [entry["index"] for entry in answer["results"]] == list(order)
    np.testing.assert_allclose([entry["relevance_score"] for entry in answer["results"]], cosines[order], atol=1e-5)
    assert answer["results"][0]["document"] == documents[order[0]]


def test_search_by_text_expression_and_image(client, pipeline, photos, images):
    index = Index.open(photos / "index")
    for query in ("a seven", "seven - one + 2:zero"):
        answer = client.post("/v1/search", query=query, k=3).json
        ids, scores = pipeline.search(index, query, 3)
        assert [entry["id"] for entry in answer["results"]] == ids
        np.testing.assert_allclose([entry["score"] for entry in answer["results"]], scores, atol=1e-5)
    found = client.post("/v1/search", image=data_uri(png(images[5]))).json["results"]
    assert found[0]["id"] == "5.png" and found[0]["score"] == pytest.approx(1, abs=1e-5)
    assert len(found) == 7 and found[0]["metadata"]["kind"] == "odd"
    least = found[2]["score"] - 1e-6
    assert len(client.post("/v1/search", image=data_uri(png(images[5])), min_score=least).json["results"]) == 3
    odd = client.post("/v1/search", query="seven", where={"kind": "odd"}).json["results"]
    assert sorted(entry["id"] for entry in odd) == ["1.png", "3.png", "5.png"]
    assert client.post("/v1/search", query="seven", where={"\ud800": "odd"}).error["param"] == "where"
    assert client.get("/v1/index").json == {"object": "index", "images": 7, "filters": {"kind": ["even", "odd"]}}


def test_an_expression_of_a_stranger_opens_no_file(client, photos):
    path = str(photos / "secret.png")
    assert client.post("/v1/search", query=path).status == 200  # a text like any other
    answer = client.post("/v1/search", query="seven - seven")
    assert answer.status == 400 and answer.error["param"] == "query" and "cancel" in answer.error["message"]


def test_thumbnails_are_encoded_again_and_numbers_are_all_that_reaches_files(client, photos):
    found = client.post("/v1/search", query="seven", k=1).json["results"][0]
    answer = client.get(found["thumbnail"])
    assert answer.status == 200 and answer.headers["content-type"] == "image/jpeg" and answer.body[:2] == b"\xff\xd8"
    for path in (
        "7",
        "-1",
        "99999999999999999999",
        "9" * 5000,
        "secret.png",
        "..%2Fsecret.png",
        "../secret.png",
        "0/../secret.png",
    ):
        answer = client.get(f"/v1/thumbnails/{path}")
        assert answer.status == 404 and answer.error["code"] == 404, path


def test_an_index_that_changed_is_opened_again_and_one_of_another_model_is_refused(pipeline, tmp_path):
    vectors = np.eye(2, pipeline.encoder.dim, dtype=np.float32)
    index = Index.build(vectors, tmp_path / "index", model=pipeline.fingerprint)
    with running(pipeline, index=index.path) as client:
        assert client.get("/v1/index").json["images"] == 2
        index.remove(["0"])
        assert client.get("/v1/index").json["images"] == 1
        assert [entry["number"] for entry in client.post("/v1/search", query="a").json["results"]] == [1]
        index.path.rename(tmp_path / "before")
        index.path.mkdir()
        (index.path / NAME).write_bytes(b"no index" * 1000)
        assert client.post("/v1/search", query="a").json["results"], "the index before stays in use"
    other = Index.build(vectors, tmp_path / "other", model="f" * 64)
    with pytest.raises(ValueError, match="was made with another model"):
        zoo.serve.create_app(pipeline, index=other.path)


def test_numbers_of_metadata_that_json_does_not_have_are_null(pipeline, tmp_path):
    metadata = [{"size": float("nan"), "tags": [1]}, {"size": float("inf")}]
    vectors = np.eye(2, pipeline.encoder.dim, dtype=np.float32)
    index = Index.build(vectors, tmp_path / "index", metadata=metadata, model=pipeline.fingerprint)
    with running(pipeline, index=index.path) as client:
        found = client.post("/v1/search", query="a").json["results"]
        assert {entry["id"]: entry["metadata"] for entry in found} == {
            "0": {"size": None, "tags": [1]},
            "1": {"size": None},
        }
        assert client.get("/v1/index").json["filters"] == {}


def test_models_metrics_and_description(client):
    (model,) = client.get("/v1/models").json["data"]
    (vector,) = client.post("/v1/embeddings", input="a").json["data"]
    assert model["id"] == "pair" and model["dimensions"] == len(vector["embedding"])
    client.get("/anything/at/all?" + "x" * 100)
    client.send("BREW", "/v1/search")
    text = client.get("/metrics").body.decode()
    routes = {line.split('route="')[1].split('"')[0] for line in text.splitlines() if 'route="' in line}
    assert "other" in routes and not any("anything" in route for route in routes)
    assert "BREW" not in text and 'zoo_batch_size_count{kind="texts"}' in text
    description = client.get("/openapi.json").json
    assert set(description["paths"]) >= {"/v1/embeddings", "/v1/classify", "/v1/search", "/v1/thumbnails/{number}"}
    body = description["paths"]["/v1/search"]["post"]["requestBody"]["content"]["application/json"]
    (example,) = body["schema"]["properties"]["image"]["anyOf"][0]["examples"]
    assert client.post("/v1/search", image=example).json["results"]


# Batching.


def test_sixteen_clients_get_what_single_calls_give(client, pipeline, images):
    texts = [f"the digit {i}, written by hand" for i in range(40)] + ["seven"] * 8
    expected = [*pipeline.embed_texts(texts), *(pipeline.embed_images([image])[0] for image in images * 4)]

    def embed(i):
        if i < len(texts):
            answer = client.post("/v1/embeddings", input=texts[i])
        else:
            image = images[(i - len(texts)) % len(images)]
            answer = client.post("/v1/embeddings", input=data_uri(png(image)), modality="image")
        return answer.json["data"][0]["embedding"]

    order = np.random.default_rng(0).permutation(len(expected))
    with ThreadPoolExecutor(16) as pool:
        got = dict(zip(order, pool.map(embed, order), strict=True))
    np.testing.assert_allclose([got[i] for i in range(len(expected))], expected, atol=1e-5)
    sizes = [line for line in client.get("/metrics").body.decode().splitlines() if line.startswith("zoo_batch_size_")]
    facts = dict(line.rsplit(" ", 1) for line in sizes)
    assert float(facts['zoo_batch_size_sum{kind="images"}']) > float(facts['zoo_batch_size_count{kind="images"}'])


class Slow:
    """A model that waits until it is told to go on, and notes its batches."""

    def __init__(self, pipeline):
        self.go, self.batches, self.entered = threading.Event(), [], threading.Event()
        self.forward = pipeline.encoder.images

    def __call__(self, batch):
        self.entered.set()
        assert self.go.wait(30)
        self.batches.append(len(batch))
        return self.forward(batch)


@pytest.fixture
def slow(pipeline):
    """A service whose images wait until `slow.go` is set; its queue holds 6 images."""
    slow = Slow(pipeline)
    slow.go.set()
    limits = Limits(max_waiting_images=6, deadline_seconds=2.0)
    with running(with_images(pipeline, slow), limits) as client:
        slow.batches.clear()
        slow.entered.clear()
        slow.go.clear()
        slow.client = client
        yield slow
        slow.go.set()


def test_what_waits_is_taken_together_and_a_full_queue_says_when_to_come_back(slow, images):
    uris = [data_uri(png(image)) for image in images]
    post = slow.client.post
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(post, "/v1/embeddings", input=uris[0], modality="image")
        assert slow.entered.wait(10)
        rest = [pool.submit(post, "/v1/embeddings", input=uri, modality="image") for uri in uris[1:6]]
        wait_for(slow.client, 'zoo_waiting{kind="images"} 5.0')
        text = pool.submit(post, "/v1/embeddings", input="texts do not wait for the images")
        refused = post("/v1/embeddings", input=uris[:2], modality="image")
        assert refused.status == 429 and int(refused.headers["retry-after"]) >= 1
        assert slow.client.get("/health").status == 200
        slow.go.set()
        assert {answer.result().status for answer in (first, text, *rest)} == {200}
    assert slow.batches == [1, 4, 1]  # powers of two of what waits


def test_clients_that_left_are_dropped_and_the_deadline_is_kept(slow, images):
    uri = data_uri(png(images[0]))
    with ThreadPoolExecutor(4) as pool:
        waiting = pool.submit(slow.client.post, "/v1/embeddings", input=uri, modality="image")
        assert slow.entered.wait(10)
        body = json.dumps({"input": [uri] * 3, "modality": "image"}).encode()
        gone = raw(
            slow.client,
            b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body) + body,
        )
        wait_for(slow.client, 'zoo_waiting{kind="images"} 3.0')
        gone.close()
        wait_for(slow.client, 'zoo_waiting{kind="images"} 0.0')
        answer = waiting.result()
        assert answer.status == 504 and "2 s" in answer.error["message"]
        slow.go.set()
    assert slow.client.post("/v1/embeddings", input=uri, modality="image").status == 200
    assert slow.batches == [1, 1]


def wait_for(client, line, seconds=10.0):
    deadline = time.monotonic() + seconds
    while line not in client.get("/metrics").body.decode():
        assert time.monotonic() < deadline, f"{line} was not seen"
        time.sleep(0.02)


def test_what_is_in_progress_is_answered_before_the_service_stops(pipeline, images):
    slow = Slow(pipeline)
    slow.go.set()
    with ThreadPoolExecutor(1) as pool:
        with running(with_images(pipeline, slow)) as client:
            slow.entered.clear()
            slow.go.clear()
            answer = pool.submit(client.post, "/v1/embeddings", input=data_uri(png(images[0])), modality="image")
            assert slow.entered.wait(10)
            client.server.should_exit = True
            time.sleep(0.3)
            with pytest.raises(ConnectionError):
                client.get("/health")
            slow.go.set()
        assert answer.result().status == 200


def test_texts_come_first_and_a_batch_waits_only_if_it_is_told_to():
    async def sizes(max_wait, values):
        """Return the batches of one-row values that come 50 ms apart."""
        batches = []
        kinds = [Kind(name, lambda rows, name=name: batches.append(name * len(rows)) or rows, 4, 99) for name in "ti"]
        batcher = Batcher(kinds, max_wait=max_wait)
        busy = threading.Event()
        if not max_wait:
            batcher.call(busy.wait)
        runs = []
        for name in values:
            runs.append(asyncio.ensure_future(batcher.run(name, [np.zeros(1)])))
            await asyncio.sleep(0.05)
        busy.set()
        await asyncio.gather(*runs)
        batcher.close()
        return batches

    assert asyncio.run(sizes(0, "iitiit")) == ["tt", "iiii"]
    assert asyncio.run(sizes(30.0, "iiii")) == ["iiii"]  # full before the time is over
    assert asyncio.run(sizes(0.2, "ii")) == ["ii"]


def test_an_error_of_the_model_concerns_one_image_and_tells_nothing(pipeline, images, caplog):
    def fail(batch):
        if batch.mean(axis=(1, 2, 3)).max() > 1.5:  # a white image
            raise RuntimeError("a secret of the server")
        return pipeline.encoder.images(batch)

    white = data_uri(png(np.full((20, 20, 3), 255, np.uint8)))
    with running(with_images(pipeline, fail)) as client, ThreadPoolExecutor(4) as pool:
        post = lambda uri: client.post("/v1/embeddings", input=uri, modality="image")  # noqa: E731
        answers = list(pool.map(post, [data_uri(png(images[0])), white, data_uri(png(images[1]))]))
    assert [answer.status for answer in answers] == [200, 500, 200]
    assert "secret" not in answers[1].body.decode() and answers[1].error["code"] == 500
    assert "a secret of the server" in caplog.text


def test_decodes_at_the_same_time_are_bounded(pipeline, images, monkeypatch):
    lock, now, most = threading.Lock(), [0], [0]

    def decode(*arguments, **options):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.05)
        with lock:
            now[0] -= 1
        return decode_image(*arguments, **options)

    monkeypatch.setattr("zoo.serve.model.decode_image", decode)
    with running(pipeline, Limits(max_decodes=3)) as client:
        uris = [data_uri(png(image)) for image in images]
        assert client.post("/v1/embeddings", input=uris, modality="image").status == 200
    assert most == [3]


# Bounds.


def test_the_token_guards_everything_but_the_page(strict):
    for path in ("/", "/health", "/ready", "/static/app.js", "/static/style.css"):
        assert strict.get(path).status == 200, path
    for path in ("/v1/models", "/metrics", "/openapi.json", "/v1/thumbnails/0", "/anything"):
        for headers in ({}, bearer("wrong"), {"Authorization": TOKEN}):
            answer = strict.send("GET", path, headers=headers)
            assert answer.status == 401 and answer.headers["www-authenticate"] == "Bearer", path
    assert strict.send("GET", "/v1/models", headers=bearer()).status == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "", "127.0.0.1.evil.example:80"])
def test_another_host_is_refused(client, host):
    assert client.get("/health", Host=host).status in (400, 421)


def test_this_machine_and_named_hosts_are_known(pipeline):
    with running(pipeline, ready=False, allowed_hosts=["photos.example"]) as client:
        for host in ("localhost:8000", "127.0.0.1", "[::1]:8000", "192.168.1.2:80", "PHOTOS.example"):
            assert client.get("/health", Host=host).status == 200, host


def test_headers_forbid_what_the_page_does_not_need(client):
    for path in ("/", "/v1/models", "/nothing", "/v1/search"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
        assert "unsafe" not in headers["content-security-policy"]
        assert not [name for name in headers if name.startswith("access-control")]
    assert client.send("OPTIONS", "/v1/search", headers={"Origin": "http://evil.example"}).status == 405


URI = data_uri(png(np.zeros((8, 8, 3), np.uint8)))
WRONG = [
    ("/v1/embeddings", {}, "input"),
    ("/v1/embeddings", {"input": []}, "input"),
    ("/v1/embeddings", {"input": 3}, "input"),
    ("/v1/embeddings", {"input": ["a", 3]}, "input"),
    ("/v1/embeddings", {"input": [[1, 2]]}, "input"),
    ("/v1/embeddings", {"input": ["a"] * 4}, "input"),
    ("/v1/embeddings", {"input": "a" * 51}, "input"),
    ("/v1/embeddings", {"input": "\ud800"}, "input"),
    ("/v1/embeddings", {"input": "a", "inptu": "b"}, "inptu"),
    ("/v1/embeddings", {"input": "a", "encoding_format": "int8"}, "encoding_format"),
    ("/v1/embeddings", {"input": "a", "dimensions": 3}, "dimensions"),
    ("/v1/embeddings", {"input": "a", "dimensions": True}, "dimensions"),
    ("/v1/embeddings", {"input": "http://127.0.0.1/a.png", "modality": "image"}, "input"),
    ("/v1/embeddings", {"input": "file:///etc/passwd", "modality": "image"}, "input"),
    ("/v1/embeddings", {"input": "data:image/png;base64,!!!", "modality": "image"}, "input"),
    ("/v1/embeddings", {"input": "data:image/png;base64,\u00e9", "modality": "image"}, "input"),
    ("/v1/embeddings", {"input": data_uri(b"not an image"), "modality": "image"}, "input"),
    ("/v1/embeddings", {"input": data_uri(png(np.zeros((65, 64, 3), np.uint8))), "modality": "image"}, "input"),
    ("/v1/classify", {"labels": ["a"]}, "image"),
    ("/v1/classify", {"image": URI}, "labels"),
    ("/v1/classify", {"image": URI, "labels": ["a"] * 9}, "labels"),
    ("/v1/classify", {"image": URI, "labels": ["a"] * 5, "templates": ["{}", "a {}"]}, "labels"),
    ("/v1/classify", {"image": URI, "labels": ["a"], "templates": ["no place"]}, "templates"),
    ("/v1/classify", {"image": URI, "labels": ["a"], "templates": ["{0.__class__}"]}, "templates"),
    ("/v1/classify", {"image": URI, "labels": ["a"], "top": 0}, "top"),
    ("/v1/rerank", {"query": "a", "documents": "b", "top_n": 1.5}, "top_n"),
    ("/v1/rerank", {"query": "a", "documents": ["b"] * 4}, "documents"),
]


@pytest.mark.parametrize(
    ("path", "body", "field"), WRONG, ids=lambda value: str(value)[:40] if isinstance(value, str) else ""
)
def test_a_wrong_field_is_named(strict, path, body, field):
    answer = strict.send("POST", path, json.dumps(body), {"Content-Type": "application/json", **bearer()})
    assert answer.status == 400, answer.body
    assert answer.error["param"] == field
    assert len(answer.error["message"]) < 400 and "Traceback" not in answer.error["message"]


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"[]", "application/json", 400),
        (b"\xff", "application/json", 400),
        (b'{"k": NaN}', "application/json", 400),
        (b"[" * 9000, "application/json", 400),
        (b'{"input": [' + b"1," * 19_000 + b"1]}", "application/json", 413),
        (b"{}", "text/plain", 415),
        (b"--x\r\n\r\n--x--", "multipart/form-data; boundary=x", 415),
        (b"not an image", "image/jpeg", 400),
    ],
)
def test_another_body_is_refused(strict, body, kind, status):
    answer = strict.send("POST", "/v1/embeddings", body, {"Content-Type": kind, **bearer()})
    assert answer.status == status and answer.error["code"] == status


def raw(client, data):
    connection = socket.create_connection(("127.0.0.1", client.port), timeout=10)
    connection.sendall(data)
    return connection


HEAD = f"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n".encode()


def test_bodies_are_counted_while_they_arrive_and_slow_ones_end(strict):
    declared = raw(strict, HEAD + b"Content-Length: 20001\r\n\r\n")
    assert b" 413 " in declared.recv(200)
    streamed = raw(strict, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"5000\r\n" + b"x" * 0x5000 + b"\r\n")
    assert b" 413 " in streamed.recv(200)
    slow = raw(strict, HEAD + b"Content-Length: 100\r\n\r\n{")
    start = time.monotonic()
    assert b" 408 " in slow.recv(200) and time.monotonic() - start < 5


def test_slow_headers_end_and_connections_are_bounded(strict):
    slow = raw(strict, b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: ")
    start = time.monotonic()
    assert ended(slow) and time.monotonic() - start < 5
    many = [raw(strict, b"GET") for _ in range(20)]
    assert strict.get("/health").status == 200
    assert sum(map(ended, many[:8])) == 8
    for connection in many:
        connection.close()
    long = raw(strict, b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 40_000)
    assert b" 400 " in long.recv(200) or ended(long)


def ended(connection):
    try:
        return connection.recv(200) == b""
    except ConnectionError:
        return True


def test_nothing_is_answered_by_the_model_before_it_is_ready(pipeline):
    slow = Slow(pipeline)
    with running(with_images(pipeline, slow), ready=False) as client:
        assert client.get("/ready").status == 503 and client.get("/health").status == 200
        answer = client.post("/v1/embeddings", input="a")
        assert answer.status == 503 and "retry-after" in answer.headers
        slow.go.set()
        client.wait_until_ready()
