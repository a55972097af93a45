"""The pipeline: one result whatever goes in how, texts encoded once."""

# ruff: noqa: F811  (arguments have the names of fixtures, which are imported)

import io

import keras
import numpy as np
import pytest
from data_writers import encode
from helpers import predict
from PIL import Image
from pipeline_case import SPEC, model, pair, pictures, pipeline, saved  # noqa: F401

from clip import tokenize, zero_shot_classifier
from zoo import ClipPipeline
from zoo.pipeline import weights_digest
from zoo.preprocess import PreprocessSpec
from zoo.search import Index, TextCache

pytestmark = [pytest.mark.backend, pytest.mark.once]

LABELS = ["zero", "one", "two"]


def test_classes_are_those_of_the_zero_shot_classifier(model, pipeline, pictures):
    classifier = zero_shot_classifier(model, LABELS, ("a photo of a {}.", "the {}"))
    expected = predict(classifier, np.stack([SPEC.eval_transform()(picture) for picture in pictures]))
    found = pipeline.classify(pictures, LABELS, ("a photo of a {}.", "the {}"))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    own = pipeline.classify(pictures, {"zero": ["a photo of a zero."], "one": ["the one", "a photo of a one."]})
    assert own.shape == (7, 2)


@pytest.mark.parametrize("kind", ["path", "str", "PIL", "bytes", "stream"])
def test_any_kind_of_image_gives_the_same(kind, pipeline, pictures, tmp_path):
    files = [encode(picture) for picture in pictures]
    paths = [tmp_path / f"{i}.png" for i in range(7)]
    for path, content in zip(paths, files, strict=True):
        path.write_bytes(content)
    given = {
        "path": paths,
        "str": [str(path) for path in paths],
        "PIL": [Image.fromarray(picture) for picture in pictures],
        "bytes": files,
        "stream": [io.BytesIO(content) for content in files],
    }[kind]
    np.testing.assert_allclose(pipeline.embed_images(given), pipeline.embed_images(pictures), atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 64])
def test_batching_does_not_matter(batch_size, model, pipeline, pictures):
    other = ClipPipeline(model, preprocess=SPEC, batch_size=batch_size)
    np.testing.assert_allclose(other.embed_images(pictures), pipeline.embed_images(pictures), atol=1e-5)
    alone = np.concatenate([pipeline.embed_images([picture]) for picture in pictures])
    np.testing.assert_allclose(alone, pipeline.embed_images(pictures), atol=1e-5)


def test_texts_are_encoded_once_and_cached_ones_are_the_same(model):
    cached, plain = (ClipPipeline(model, preprocess=SPEC, cache=cache) for cache in (TextCache(), False))
    texts = ["a photo of a seven.", "a cat", "a photo of a seven."]
    first = cached.embed_texts(texts)
    np.testing.assert_allclose(first, plain.embed_texts(texts), atol=1e-6)
    np.testing.assert_array_equal(cached.embed_texts(texts), first)
    assert cached.cache.stats().misses == 2 and plain.cache is None


def test_other_weights_have_another_fingerprint(model, saved, pipeline):
    assert weights_digest(pair(1)) != weights_digest(model)
    assert ClipPipeline(saved).fingerprint == pipeline.fingerprint
    narrow = ClipPipeline(model, preprocess=PreprocessSpec(image_size=16, interpolation="bilinear"))
    assert narrow.fingerprint != pipeline.fingerprint


def test_similarity_and_search(pipeline, pictures, tmp_path):
    vectors = pipeline.embed_images(pictures)
    index = Index.build(vectors, tmp_path / "i", model=pipeline.fingerprint)
    cosines = pipeline.similarity(pictures, ["a seven"])[:, 0]
    ids, scores = pipeline.search(tmp_path / "i", "a seven", 3)
    assert ids == [str(place) for place in np.argsort(-cosines)[:3]]
    np.testing.assert_allclose(scores, np.sort(cosines)[::-1][:3], atol=1e-5)
    assert pipeline.search(index, pictures[4], 1)[0] == ["4"]


def test_another_pairs_index_is_refused(model, pipeline, pictures, tmp_path):
    Index.build(pipeline.embed_images(pictures), tmp_path / "i", model=pipeline.fingerprint)
    with pytest.raises(ValueError, match="made with another model"):
        ClipPipeline(pair(1), preprocess=SPEC).search(tmp_path / "i", "a seven")


@pytest.mark.parametrize("precision, error", [("bfloat16", 3e-2), ("float16", 3e-3)])
def test_precisions_are_near_float32_and_not_it(precision, error, model, pipeline, pictures):
    low = ClipPipeline(model, preprocess=SPEC, precision=precision)
    difference = np.abs(low.similarity(pictures, LABELS) - pipeline.similarity(pictures, LABELS)).max()
    assert 0 < difference < error
    assert low.fingerprint != pipeline.fingerprint
    assert keras.config.dtype_policy().name == "float32"


def test_folded_weights_give_the_same(model, pipeline, pictures):
    folded = ClipPipeline(model, preprocess=SPEC, fold=True, batch_size="auto")
    np.testing.assert_allclose(folded.embed_images(pictures), pipeline.embed_images(pictures), atol=1e-5)
    np.testing.assert_allclose(folded.embed_texts(["a seven"]), pipeline.embed_texts(["a seven"]), atol=1e-5)
    assert folded.encoder.shortens and folded.encoder.images is not pipeline.encoder.images
    assert folded.encoder.batch_size in (1, 2, 4, 8, 16, 32, 64)
    low = ClipPipeline(model, preprocess=SPEC, fold=True, precision="bfloat16")
    assert 0 < np.abs(low.embed_images(pictures) - pipeline.embed_images(pictures)).max() < 3e-2


def test_onnx_gives_what_keras_gives(model, pipeline, pictures):
    onnx = ClipPipeline(model, preprocess=SPEC, runtime="onnx", batch_size=4)
    np.testing.assert_allclose(onnx.embed_images(pictures), pipeline.embed_images(pictures), atol=1e-4)
    texts = ["a", "word " * 20, "a photo of a seven."]
    np.testing.assert_allclose(onnx.embed_texts(texts), pipeline.embed_texts(texts), atol=1e-4)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"runtime": "torch"}, "one of keras, onnx"),
        ({"batch_size": 0}, 'positive integer or "auto"'),
        ({"precision": "int8"}, "with keras it is one of float32"),
        ({"precision": "bfloat16", "runtime": "onnx"}, "with onnx it is one of"),
    ],
)
def test_unknown_options_are_refused(options, message, model):
    with pytest.raises(ValueError, match=message):
        ClipPipeline(model, preprocess=SPEC, **options)


def test_what_is_no_image_is_refused(pipeline):
    with pytest.raises(ValueError, match="is a URL"):
        pipeline.embed_images(["https://example.org/a.png"])
    with pytest.raises(ValueError, match="not an image"):
        pipeline.embed_images([b"text"])
    with pytest.raises(TypeError, match="image is int"):
        pipeline.embed_images([3])


def test_tokenizer_is_the_pairs_own(saved):
    assert ClipPipeline(saved).encoder.tokenizer is tokenize
