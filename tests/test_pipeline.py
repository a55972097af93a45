"""The pipeline and the commands over it: one result whatever goes in how, texts encoded once, indices resumed."""

import io
import json

import keras
import numpy as np
import pytest
from data_writers import digits, encode
from helpers import predict, randomize
from PIL import Image

import zoo
from clip import create_clip, tokenize, zero_shot_classifier
from clip.variants import Pair, Text, ViT
from zoo import ClipPipeline, image_search, picture_source
from zoo.cli import main
from zoo.pipeline import weights_digest
from zoo.preprocess import PreprocessSpec
from zoo.search import Index, TextCache

pytestmark = [pytest.mark.backend, pytest.mark.once]

SPEC = PreprocessSpec(image_size=16)
LABELS = ["zero", "one", "two"]


def pair(seed):
    row = Pair(16, 16, ViT(32, 1, 8, head_width=16), Text(width=32, heads=2, layers=1))
    return randomize(create_clip(row), np.random.default_rng(seed), scale=0.1)


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return pair(0)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("pair") / "pair.safetensors"
    zoo.save(model, path, preprocess=SPEC)
    return path


@pytest.fixture(scope="module")
def pipeline(model):
    return ClipPipeline(model, preprocess=SPEC, batch_size=4)


@pytest.fixture(scope="module")
def pictures():
    return list(digits(7)[0])


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


# The commands.


@pytest.fixture
def album(tmp_path, pictures):
    """A folder of 7 pictures in two folders, a copy of one, and a damaged file."""
    folder = tmp_path / "album"
    for i, picture in enumerate(pictures):
        path = folder / ("left" if i < 4 else "right") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(picture))
    (folder / "right" / "copy.png").write_bytes(encode(pictures[0]))
    (folder / "right" / "bad.png").write_bytes(b"not a picture")
    return folder


def test_an_index_is_built_resumed_and_searched(album, saved, pictures, tmp_path, monkeypatch, capsys):
    out = str(tmp_path / "i")
    build = {"model": str(saved), "output": out}
    monkeypatch.setattr(picture_source, "PORTION", 3)
    add = Index.add

    def die_at_the_third(self, *arguments, **options):
        if len(self.segments) == 2:
            raise KeyboardInterrupt
        add(self, *arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Index, "add", die_at_the_third)
        image_search.build_index(str(album), **build)
    there = Index.open(out).ids
    assert 0 < len(there) < 7
    info = image_search.build_index(str(album), **build)
    assert info["vectors"] == 7 and Index.open(out).ids[: len(there)] == there
    assert set(info["left_out"]) == {"right/bad.png", "right/copy.png"}
    assert info["left_out"]["right/copy.png"] == "the same bytes as left/0.png"
    assert image_search.build_index(str(album), **build) == info  # nothing is twice

    cache = str(tmp_path / "t.sqlite")
    matches = image_search.search_images(out, "a seven", k=3, cache=cache, sheet=str(tmp_path / "s.png"))
    assert [match.rank for match in matches] == [1, 2, 3] and (tmp_path / "s.png").stat().st_size > 1000
    (found,) = image_search.search_images(out, model=str(saved), image=str(album / "right/5.png"), k=1, cache=cache)
    assert found.id == "right/5.png" and found.score == pytest.approx(1, abs=1e-5)
    assert image_search.cache_stats(cache)["entries"] == 1
    with pytest.raises(ValueError, match="one of the two"):
        image_search.search_images(out, model=str(saved))

    capsys.readouterr()
    assert main(["index", "remove", out, "left/1.png"]) == 0 and main(["index", "verify", out]) == 0
    assert "vectors 6" in " ".join(capsys.readouterr().out.split())
    assert main(["index", "remove", out, "left/1.png"]) == 2
    assert "is not in the index" in capsys.readouterr().err


def test_further_sources_are_added_and_filtered(album, saved, pictures, tmp_path, capsys):
    out, cache = str(tmp_path / "i"), str(tmp_path / "t.sqlite")
    image_search.build_index(str(album / "left"), model=str(saved), output=out)
    more = tmp_path / "more" / "left"
    more.mkdir(parents=True)
    for name, picture in (("4.png", pictures[4]), ("0.png", pictures[0]), ("5.png", pictures[5])):
        (more / name).write_bytes(encode(picture))
    (more / "list.csv").write_text("filepath,author,year\n4.png,Ann,2001\n0.png,Bob,2002\n5.png,Bob,2003\n4.png,,\n")
    info = image_search.index_add(out, str(more / "list.csv"))
    assert Index.open(out).ids[4:] == ["list.csv/4.png", "list.csv/5.png"]
    assert info["left_out"] == {"list.csv/0.png": "the same bytes as 0.png"}
    assert Index.open(out).metadata("list.csv/5.png")["year"] == "2003"
    assert image_search.index_add(out) == info  # nothing new in either source

    (album / "left" / "9.png").write_bytes(encode(pictures[6]))
    assert main(["index", "add", out]) == 0
    assert "vectors 7" in " ".join(capsys.readouterr().out.split())
    search = ["search", out, "a seven", "--cache", cache, "-k", "9"]
    page = tmp_path / "found.html"
    assert main([*search, "--where", "author=Bob", "--where", "year=2003", "--sheet", str(page), "--json"]) == 0
    (match,) = json.loads(capsys.readouterr().out)
    assert match["id"] == "list.csv/5.png" and match["metadata"]["author"] == "Bob"
    assert "a seven</h1>" in page.read_text() and page.read_text().count("data:image/png") == 1
    assert main([*search, "--where", "author"]) == 2 and "is not KEY=VALUE" in capsys.readouterr().err
    for option in (["--approximate"], ["--expansion", "64"]):
        assert main([*search, *option]) == 2 and "no graph" in capsys.readouterr().err
    assert image_search.search_images(out, "a seven", k=9, where=["folder="], cache=cache)[0].rank == 1


def test_an_index_is_accelerated_by_command(album, saved, tmp_path, capsys):
    pytest.importorskip("usearch")
    out = str(tmp_path / "i")
    image_search.build_index(str(album), model=str(saved), output=out)
    assert main(["index", "accelerate", out]) == 0 and main(["index", "accelerate", out, "--kind", "hnsw"]) == 0
    assert "recall at 10" in capsys.readouterr().out
    assert image_search.index_info(out)["accelerators"] == ["int8", "hnsw"]


def test_an_index_that_does_not_know_its_model_asks_for_it(pipeline, pictures, saved, album, tmp_path):
    Index.build(pipeline.embed_images(pictures), tmp_path / "i", model=pipeline.fingerprint)
    with pytest.raises(ValueError, match="does not say which model made it"):
        image_search.search_images(str(tmp_path / "i"), "a")
    cache = str(tmp_path / "t.sqlite")
    assert len(image_search.search_images(str(tmp_path / "i"), "a", model=str(saved), cache=cache)) == 5
    info = image_search.index_add(str(tmp_path / "i"), str(album), model=str(saved))
    assert info["vectors"] == 14 and set(info["left_out"]) == {"right/bad.png", "right/copy.png"}


def test_the_cache_by_command(saved, tmp_path, capsys):
    path, other = str(tmp_path / "a.sqlite"), str(tmp_path / "b.sqlite")
    pipeline = ClipPipeline(saved, cache=path)
    pipeline.embed_texts(["one", "two"])
    pipeline.embed_texts(["one"])
    pipeline.cache.close()
    stats = image_search.cache_stats(path)
    assert (stats["entries"], stats["misses"], stats["memory_hits"], stats["hit_rate"]) == (2, 2, 1, 1 / 3)
    assert main(["cache", "export", other, "--cache", path]) == 0
    assert main(["cache", "export", other, "--cache", path]) == 2 and "is there already" in capsys.readouterr().err
    assert image_search.cache_clear(path) == {"dropped": 2} and image_search.cache_import(other, path) == {"read": 2}
    again = ClipPipeline(saved, cache=path)
    again.embed_texts(["one", "two"])
    assert again.cache.stats().disk_hits == 2 and image_search.cache_verify(path) == {"entries": 2, "damaged": 0}
    assert main(["cache", "import", str(tmp_path / "none"), "--cache", path]) == 2


@pytest.mark.parametrize("job", [["stats"], ["verify"], ["clear"], ["import", "FILE"]])
def test_cache_commands_leave_other_files_where_they_are(job, pictures, tmp_path, capsys):
    picture = tmp_path / "a.png"
    picture.write_bytes(encode(pictures[0]))
    for path, message in (
        (picture, "no cache of texts"),
        (tmp_path, "unable to open"),
        (tmp_path / "typo" / "x.sqlite", "No cache of texts at"),
    ):
        command = ["cache", *(str(path) if part == "FILE" else part for part in job)]
        assert main(command if "FILE" in job else [*command, "--cache", str(path)]) == 2
        error = capsys.readouterr().err
        assert message in error and str(path) in error
    assert list(tmp_path.iterdir()) == [picture] and picture.read_bytes() == encode(pictures[0])


def test_embed_writes_vectors_with_their_ids(album, saved, pipeline, pictures, tmp_path):
    from safetensors.numpy import load_file

    result = image_search.embed_images(str(album), model=str(saved), output=str(tmp_path / "e"))
    assert result == {"images": 8, "shards": 1, "left out": 1}
    manifest = json.loads((tmp_path / "e" / "manifest.json").read_text())
    (shard,) = manifest["shards"]
    vectors = load_file(tmp_path / "e" / shard["file"])["embeddings"]
    place = shard["ids"].index("right/6.png")
    np.testing.assert_allclose(vectors[place], pipeline.embed_images([pictures[6]])[0], atol=1e-5)
    assert list(manifest["left_out"]) == ["right/bad.png"]


def test_an_index_remembers_the_precision_of_its_vectors(album, saved, pipeline, pictures, tmp_path):
    from safetensors.numpy import load_file

    out, narrow = str(tmp_path / "i"), {"model": str(saved), "precision": "bfloat16"}
    image_search.build_index(str(album), output=out, **narrow)
    image_search.embed_images(str(album), output=str(tmp_path / "e"), **narrow)
    shard = json.loads((tmp_path / "e" / "manifest.json").read_text())["shards"][0]
    embedded = load_file(tmp_path / "e" / shard["file"])["embeddings"][shard["ids"].index("left/0.png")]
    indexed = Index.open(out).vector("left/0.png")
    np.testing.assert_allclose(embedded, indexed, atol=1e-3)
    assert 1e-5 < np.abs(indexed - pipeline.embed_images([pictures[0]])[0]).max() < 0.05
    assert main(["search", out, "a seven", "--cache", str(tmp_path / "t.sqlite")]) == 0
    with pytest.raises(ValueError, match="another model"):
        image_search.build_index(str(album), output=out, model=str(saved))


@pytest.mark.once
def test_facts_are_said_in_words():
    facts = {
        "vectors": 2,
        "accelerators": [],
        "sources": {"": "/photos"},
        "left_out": {"a.png": "damaged", "b.png": ""},
    }
    expected = [
        "vectors       2",
        "accelerators  none",
        "sources       1, e.g. /photos",
        "left out      2, e.g. a.png: damaged",
    ]
    assert image_search.to_text(facts).splitlines() == expected
    assert image_search.to_text({"accelerators": ["int8", "hnsw"], "left_out": {}}).splitlines() == [
        "accelerators  int8, hnsw",
        "left out      0",
    ]


def test_tokenizer_is_the_pairs_own(saved):
    assert ClipPipeline(saved).encoder.tokenizer is tokenize
