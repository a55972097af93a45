"""`zoo serve` with real models: a pair and a classifier, and the command."""

import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers import randomize
from pipeline_case import *  # noqa: F403
from serve_case import Process, data_uri, png, running

import zoo
from zoo import ClipPipeline
from zoo.cli import main
from zoo.data.preprocess import PreprocessSpec
from zoo.inference.encoder import load_encoder
from zoo.serve.model import open_model

pytestmark = [pytest.mark.backend, pytest.mark.once]


def test_sixteen_clients_get_what_single_calls_give(saved, pipeline, images, monkeypatch):
    monkeypatch.setattr("zoo.serve.model.TEXT_BATCH", 4)  # fewer shapes to compile
    texts = [f"the digit {i}, written by hand" for i in range(12)] + ["seven"] * 4
    expected = [*pipeline.embed_texts(texts), *pipeline.embed_images(images)]
    with running(open_model(str(saved), batch_size=4)) as client:

        def embed(i):
            if i < len(texts):
                answer = client.post("/v1/embeddings", input=texts[i])
            else:
                uri = data_uri(png(images[i - len(texts)]))
                answer = client.post("/v1/embeddings", input=uri, modality="image")
            return answer.json["data"][0]["embedding"]

        with ThreadPoolExecutor(16) as pool:
            got = list(pool.map(embed, range(len(expected))))
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_a_classifier_is_served_without_labels(tmp_path, images):
    network = zoo.create_model("convnext_atto", num_classes=7, input_shape=(32, 32, 3))
    randomize(network, np.random.default_rng(0), scale=0.05)
    zoo.save(network, tmp_path / "atto.safetensors", preprocess=PreprocessSpec(image_size=32))
    loaded = zoo.load(tmp_path / "atto.safetensors")
    with running(open_model(str(tmp_path / "atto.safetensors"), batch_size=1), name="atto") as client:
        answer = client.send("POST", "/v1/classify", png(images[1]), {"Content-Type": "image/png"}).json
        expected = loaded.model.predict(loaded.transform(images[1])[None], verbose=0)[0]
        assert [entry["index"] for entry in answer["classes"]] == list(np.argsort(-expected)[:5])
        assert answer["classes"][0]["probability"] == pytest.approx(float(expected.max()), abs=1e-5)
        assert client.post("/v1/classify", image=data_uri(png(images[1])), labels=["a"]).error["param"] == "labels"
        assert client.post("/v1/embeddings", input="a text").status == 400
        assert client.post("/v1/search", query="a").status == 404


def test_another_host_needs_a_token(saved, tmp_path, capsys):
    assert main(["serve", "--model", str(saved), "--host", "0.0.0.0"]) == 2
    assert "--token-file" in capsys.readouterr().err
    short = tmp_path / "token"
    short.write_text("short\n")
    assert main(["serve", "--model", str(saved), "--token-file", str(short)]) == 2
    assert "16 to 4096" in capsys.readouterr().err


def test_encoder_lengths_are_those_that_texts_are_cut_to(saved):
    encoder = load_encoder(str(saved))
    tokens = np.asarray(encoder.tokenizer(["a", "word " * 20, "word " * 60]), np.int32)
    assert set(encoder.token_lengths(tokens)) <= set(encoder.lengths(tokens.shape[1])) == {8, 16, 32, 77}


def test_onnx_runtime_is_told_to_send_nothing():
    code = "import os, zoo.export.runtime as r; r.choose_providers(); assert os.environ['ORT_DISABLE_TELEMETRY'] == '1'"
    own = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    subprocess.run([sys.executable, "-c", code], env=own, check=True)


@pytest.fixture
def int8(saved, tmp_path):
    process = Process(tmp_path, saved, "--runtime", "onnx", "--precision", "int8", "--batch-size", "4")
    yield process
    process.process.kill()


@pytest.mark.slow
def test_the_command_serves_int8_and_answers_what_is_in_progress_before_it_stops(int8, saved, images):
    texts, post = ["a seven", "a photo of a three"], int8.client.post  # one by one: int8's scales are those of a batch
    answers = [post("/v1/embeddings", input=text) for text in texts]
    answers += [post("/v1/embeddings", input=data_uri(png(image)), modality="image") for image in images]
    got = np.array([answer.json["data"][0]["embedding"] for answer in answers])
    int8_pipeline, float_pipeline = (ClipPipeline(str(saved), runtime="onnx", precision=p) for p in ("int8", "float32"))
    for pipeline, same in ((int8_pipeline, True), (float_pipeline, False)):
        single = [pipeline.embed_texts([text])[0] for text in texts]
        single += [pipeline.embed_images([image])[0] for image in images]
        assert (np.abs(got - single).max(axis=1) <= 1e-5).all() == same

    body = b'{"input": "a text whose body arrives in two parts"}'
    head = b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", int8.client.port), timeout=30) as connection:
        connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body[:20])
        time.sleep(0.5)
        int8.process.terminate()
        deadline = time.monotonic() + 20
        with pytest.raises(ConnectionError):
            while time.monotonic() < deadline:
                int8.client.get("/health")
        connection.sendall(body[20:])
        assert connection.makefile("rb").readline() == b"HTTP/1.1 200 OK\r\n"
        assert int8.process.wait(20) == 0
    assert "Traceback" not in int8.log.read_text()
