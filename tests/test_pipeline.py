"""`ClipPipeline`: the same result for every kind of input, runtime and precision; texts encoded once."""

# ruff: noqa: F811  (arguments have the names of imported fixtures)

import io

import keras
import numpy as np
import pytest
from data_writers import encode
from helpers import predict, randomize
from PIL import Image
from pipeline_case import SPEC, images, model, pair, pipeline, saved  # noqa: F401

import zoo
from clip import create_clip, tokenize, zero_shot_classifier
from clip.variants import Pair, Text, ViT
from zoo import ClipPipeline
from zoo.data.preprocess import PreprocessSpec
from zoo.inference.pipeline import weights_digest
from zoo.search import Index, TextCache

pytestmark = [pytest.mark.backend, pytest.mark.once]

LABELS = ["zero", "one", "two"]


def test_classify_equals_the_zero_shot_classifier(model, pipeline, images):
    classifier = zero_shot_classifier(model, LABELS, ("a photo of a {}.", "the {}"))
    expected = predict(classifier, np.stack([SPEC.eval_transform()(image) for image in images]))
    found = pipeline.classify(images, LABELS, ("a photo of a {}.", "the {}"))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    own = pipeline.classify(images, {"zero": ["a photo of a zero."], "one": ["the one", "a photo of a one."]})
    assert own.shape == (7, 2)


@pytest.mark.parametrize("kind", ["path", "str", "PIL", "bytes", "stream"])
def test_any_kind_of_image_gives_the_same_embedding(kind, pipeline, images, tmp_path):
    files = [encode(image) for image in images]
    paths = [tmp_path / f"{i}.png" for i in range(7)]
    for path, content in zip(paths, files, strict=True):
        path.write_bytes(content)
    given = {
        "path": paths,
        "str": [str(path) for path in paths],
        "PIL": [Image.fromarray(image) for image in images],
        "bytes": files,
        "stream": [io.BytesIO(content) for content in files],
    }[kind]
    np.testing.assert_allclose(pipeline.embed_images(given), pipeline.embed_images(images), atol=1e-6)


@pytest.mark.parametrize("kind", ["array", "gray", "bytearray", "memoryview", "stream", "file", "one channel"])
def test_a_single_image_of_any_kind_is_accepted(kind, pipeline, images, tmp_path):
    content, gray = encode(images[3]), images[3][..., 0]
    (tmp_path / "a.png").write_bytes(content)
    with open(tmp_path / "a.png", "rb") as file:
        given = {
            "array": images[3],
            "gray": gray,
            "one channel": gray[..., None],
            "bytearray": bytearray(content),
            "memoryview": memoryview(content),
            "stream": io.BytesIO(content),
            "file": file,
        }[kind]
        np.testing.assert_allclose(pipeline.embed_images(given), pipeline.embed_images(images[3:4]), atol=1e-6)


def test_stacks_of_arrays_are_several_images(pipeline, images):
    assert len(pipeline.embed_images(np.stack(images))) == 7
    assert len(pipeline.embed_images(np.stack(images)[..., 0])) == 7


@pytest.mark.parametrize("batch_size", [1, 3, 7, 64])
def test_batch_size_does_not_change_embeddings(batch_size, model, pipeline, images):
    other = ClipPipeline(model, preprocess=SPEC, batch_size=batch_size)
    np.testing.assert_allclose(other.embed_images(images), pipeline.embed_images(images), atol=1e-5)
    alone = np.concatenate([pipeline.embed_images([image]) for image in images])
    np.testing.assert_allclose(alone, pipeline.embed_images(images), atol=1e-5)


def test_texts_are_encoded_once_and_cached(model):
    cached, plain = (ClipPipeline(model, preprocess=SPEC, cache=cache) for cache in (TextCache(), False))
    texts = ["a photo of a seven.", "a cat", "a photo of a seven."]
    first = cached.embed_texts(texts)
    np.testing.assert_allclose(first, plain.embed_texts(texts), atol=1e-6)
    np.testing.assert_array_equal(cached.embed_texts(texts), first)
    assert cached.cache.stats().misses == 2 and plain.cache is None


@pytest.mark.parametrize("options", [{}, {"fold": True}, {"precision": "bfloat16"}, {"runtime": "onnx"}])
def test_refresh_takes_the_current_weights(options, images, tmp_path):
    trained = pair(0)
    made = ClipPipeline(trained, preprocess=SPEC, cache=tmp_path / "t.sqlite", **options)
    before = (made.embed_texts(LABELS), made.embed_images(images), made.classify(images, LABELS), made.scale)
    Index.build(before[1], tmp_path / "i", model=made.fingerprint)
    for weight in trained.weights:
        weight.assign(0.9 * weight + 0.01)
    made.refresh()
    new = ClipPipeline(trained, preprocess=SPEC, **options)
    after = (made.embed_texts(LABELS), made.embed_images(images), made.classify(images, LABELS), made.scale)
    now = (new.embed_texts(LABELS), new.embed_images(images), new.classify(images, LABELS), new.scale)
    for one, other, old in zip(after, now, before, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
        assert np.abs(one - old).max() > 1e-4
    assert made.fingerprint == new.fingerprint
    with pytest.raises(ValueError, match="made with another model"):
        made.search(tmp_path / "i", "a seven")


def test_refresh_reads_the_file_again(tmp_path):
    path = tmp_path / "own.safetensors"
    zoo.save(pair(0), path, preprocess=SPEC)
    made = ClipPipeline(path, batch_size="auto")
    size, before = made.encoder.batch_size, made.embed_texts(LABELS)
    zoo.save(pair(1), path, preprocess=SPEC)
    made.refresh()
    assert made.encoder.batch_size == size and np.abs(made.embed_texts(LABELS) - before).max() > 1e-3


@pytest.mark.parametrize("cache", [True, False])
def test_progress_is_shown_on_request(cache, model, images, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr("zoo.inference.encoder.TEXT_BATCH_SIZE", 2)
    made = ClipPipeline(model, preprocess=SPEC, batch_size=4, cache=cache)
    for embed, steps in (
        (lambda **options: made.embed_images(images, **options), ["2 of 2 batches"]),
        (lambda **options: made.embed_texts([*LABELS, "three"], **options), ["2 of 2 batches of texts"]),
        (
            lambda **options: made.similarity(images, ["a", "b", "c"], **options),
            ["2 of 2 batches", "2 of 2 batches of texts"],
        ),
        (lambda **options: made.classify(images, LABELS, **options), ["2 of 2 batches"]),
    ):
        result, printed = embed(progress=True), capsys.readouterr().err
        assert all(step in printed for step in steps)
        np.testing.assert_allclose(embed(), result, atol=1e-6)
        assert capsys.readouterr().err == ""


def test_other_weights_have_another_fingerprint(model, saved, pipeline):
    assert weights_digest(pair(1)) != weights_digest(model)
    assert ClipPipeline(saved).fingerprint == pipeline.fingerprint
    narrow = ClipPipeline(model, preprocess=PreprocessSpec(image_size=16, interpolation="bilinear"))
    assert narrow.fingerprint != pipeline.fingerprint


def test_similarity_and_search(pipeline, images, tmp_path):
    vectors = pipeline.embed_images(images)
    index = Index.build(vectors, tmp_path / "i", model=pipeline.fingerprint)
    cosines = pipeline.similarity(images, ["a seven"])[:, 0]
    ids, scores = pipeline.search(tmp_path / "i", "a seven", 3)
    assert ids == [str(place) for place in np.argsort(-cosines)[:3]]
    np.testing.assert_allclose(scores, np.sort(cosines)[::-1][:3], atol=1e-5)
    assert pipeline.search(index, images[4], 1)[0] == ["4"]


def test_an_index_of_another_pair_is_refused(model, pipeline, images, tmp_path):
    Index.build(pipeline.embed_images(images), tmp_path / "i", model=pipeline.fingerprint)
    with pytest.raises(ValueError, match="made with another model"):
        ClipPipeline(pair(1), preprocess=SPEC).search(tmp_path / "i", "a seven")


@pytest.mark.parametrize("precision, error", [("bfloat16", 3e-2), ("float16", 3e-3)])
def test_other_precisions_are_near_float32_and_differ(precision, error, model, pipeline, images):
    low = ClipPipeline(model, preprocess=SPEC, precision=precision)
    difference = np.abs(low.similarity(images, LABELS) - pipeline.similarity(images, LABELS)).max()
    assert 0 < difference < error
    assert low.fingerprint != pipeline.fingerprint
    assert keras.config.dtype_policy().name == "float32"


def test_folded_weights_give_the_same_embeddings(model, pipeline, images):
    folded = ClipPipeline(model, preprocess=SPEC, fold=True)
    np.testing.assert_allclose(folded.embed_images(images), pipeline.embed_images(images), atol=1e-5)
    np.testing.assert_allclose(folded.embed_texts(["a seven"]), pipeline.embed_texts(["a seven"]), atol=1e-5)
    low = ClipPipeline(model, preprocess=SPEC, fold=True, precision="bfloat16")
    assert 0 < np.abs(low.embed_images(images) - pipeline.embed_images(images)).max() < 3e-2


def test_onnx_equals_keras(model, pipeline, images):
    onnx = ClipPipeline(model, preprocess=SPEC, runtime="onnx", batch_size=4)
    np.testing.assert_allclose(onnx.embed_images(images), pipeline.embed_images(images), atol=1e-4)
    texts = ["a", "word " * 20, "a photo of a seven."]
    np.testing.assert_allclose(onnx.embed_texts(texts), pipeline.embed_texts(texts), atol=1e-4)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"runtime": "torch"}, "allowed are keras, onnx"),
        ({"batch_size": 0}, 'positive integer or "auto"'),
        ({"precision": "int8"}, "with runtime='keras' allowed are float32"),
        ({"precision": "bfloat16", "runtime": "onnx"}, "with runtime='onnx' allowed are"),
    ],
)
def test_unknown_options_are_refused(options, message, model):
    with pytest.raises(ValueError, match=message):
        ClipPipeline(model, preprocess=SPEC, **options)


def test_inputs_that_are_not_images_are_refused(pipeline):
    with pytest.raises(ValueError, match="is a URL"):
        pipeline.embed_images(["https://example.org/a.png"])
    with pytest.raises(ValueError, match="not an image"):
        pipeline.embed_images([b"text"])
    with pytest.raises(TypeError, match="image is int"):
        pipeline.embed_images([3])


def test_the_tokenizer_is_the_one_of_the_pair(saved):
    assert ClipPipeline(saved).encoder.tokenizer is tokenize


def test_a_pair_with_a_bias_gives_sigmoid_probabilities(images):
    row = Pair(16, 16, ViT(32, 1, 8, head_width=16), Text(width=32, heads=2, layers=1))
    biased = randomize(create_clip(row, init_logit_bias=-10.0), np.random.default_rng(0), scale=0.1)
    made = ClipPipeline(biased, preprocess=SPEC)
    cosines = made.similarity(images, [f"a photo of a {label}." for label in LABELS])
    expected = 1 / (1 + np.exp(-(made.scale * cosines + made.bias)))
    np.testing.assert_allclose(made.classify(images, LABELS), expected, atol=1e-5)
    np.testing.assert_allclose(made.classify(images, LABELS, activation="softmax").sum(axis=1), 1)
    with pytest.raises(ValueError, match="activation='relu'; allowed are auto, softmax, sigmoid"):
        made.classify(images, LABELS, activation="relu")


@pytest.mark.parametrize(
    "labels, templates",
    [({"zero": "a photo of a zero"}, ()), ({"zero", "one"}, ("{}",)), ("zero", ("{}",)), (["zero"], "a {}")],
)
def test_labels_that_would_be_misread_are_refused(pipeline, images, labels, templates):
    with pytest.raises(ValueError, match="is (the string|a set)"):
        pipeline.classify(images, labels, templates)


def test_one_text_is_one_text(pipeline):
    one = pipeline.encoder.embed_texts("a zero")
    np.testing.assert_allclose(one, pipeline.embed_texts(["a zero"]), atol=1e-6)
