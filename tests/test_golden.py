"""Artefacts that an earlier commit wrote load today, with the same variables and the same results.

`tests/golden/make_golden.py` says which commit wrote them. Variables, digests, ids and rewritten files must be equal
bit for bit. Computed numbers may differ by the order of additions, which depends on processor, backend and kernel: by
at most REASSOCIATION times the largest number of the same array.
"""

import json
import re
import shutil
import tarfile
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from golden import make_golden as golden

import zoo
import zoo.training.optimizer  # registers the optimizer's class
from zoo.cli import main
from zoo.embeddings.parts import read_parts

pytestmark = pytest.mark.backend
once = pytest.mark.once

GOLDEN = Path(golden.__file__).resolve().parent
FACTS = json.loads((GOLDEN / "facts.json").read_text())
REASSOCIATION = 3e-5


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The folder of all golden files; manifests name it where they named the folder that they were made in."""
    root = tmp_path_factory.mktemp("golden")
    with tarfile.open(GOLDEN / "golden.tar.xz") as archive:
        archive.extractall(root, filter="data")
    for path in root.rglob("manifest.json"):
        path.write_text(path.read_text().replace(golden.ROOT_MARK, str(root / "search")))
    return root


@pytest.fixture(scope="module")
def expected(files):
    return np.load(files / "models" / "outputs.npz"), np.load(files / "search" / "outputs.npz")


def assert_same(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=0, atol=REASSOCIATION * np.abs(wanted).max())


def assert_outputs(model, name, expected):
    for key, value in golden.outputs(model).items():
        assert_same(value, expected[0][f"{name}/{key}"])


@once
@pytest.mark.parametrize("name", golden.ARCHIVED)
def test_a_keras_archive_loads(files, expected, name):
    model = zoo.load(files / "models" / f"{name}.keras").model
    assert golden.digest(model.weights) == FACTS["weights"][name]
    assert_outputs(model, name, expected)


@once
@pytest.mark.parametrize("name", golden.COMPILED)
def test_a_compiled_archive_loads_with_its_optimizer_and_trains_on(files, expected, name):
    model = keras.saving.load_model(files / "models" / f"{name}.keras")
    assert golden.digest(model.weights) == FACTS["weights"][name]
    assert golden.digest(model.optimizer.variables) == FACTS["optimizer"][name]
    assert_outputs(model, name, expected)
    keras.utils.set_random_seed(0)
    assert golden.fit_once(model) == pytest.approx(float(expected[0][f"{name}/next loss"]), rel=1e-4)


@once
@pytest.mark.parametrize("name", [*golden.CLASSIFIERS, *golden.PAIRS])
def test_a_safetensors_file_loads_and_is_written_with_the_same_bytes(files, expected, tmp_path, name):
    path = files / "models" / f"{name}.safetensors"
    model = zoo.load(path).model
    assert golden.digest(model.weights) == FACTS["weights"][name]
    assert_outputs(model, name, expected)
    zoo.save(model, tmp_path / "again.safetensors")
    assert golden.sha256(tmp_path / "again.safetensors") == golden.sha256(path)


@once
@pytest.mark.parametrize("name", golden.WEIGHTS_H5)
def test_a_weights_file_of_keras_loads(files, name):
    model = golden.MODELS[name]()
    model.load_weights(files / "models" / f"{name}.weights.h5")
    assert golden.digest(model.weights) == FACTS["weights"][name]


@pytest.mark.parametrize("name", golden.ONNX)
def test_an_onnx_file_has_the_same_bytes_on_every_backend(name):
    facts = {"onnx": {}}
    golden.digest_onnx(facts, [name])
    assert facts["onnx"] == {key: value for key, value in FACTS["onnx"].items() if key.startswith(f"{name} ")}


@once
def test_every_class_of_the_earlier_commit_is_in_an_archive_and_registered(files):
    text = ""
    for path in files.rglob("*.keras"):
        with zipfile.ZipFile(path) as archive:
            text += archive.read("config.json").decode()
    archived = set(re.findall(r"convnext_clip_zoo>\w+", text))
    assert archived == set(FACTS["classes"])
    for name in archived:
        assert keras.saving.get_registered_object(name) is not None, f"{name} is no longer registered"


# Indices, caches and embeddings


@once
@pytest.mark.parametrize("name", FACTS["search"])
def test_an_index_gives_the_same_results(files, expected, name):
    from zoo.search import Index

    index = Index.open(files / "search" / name)
    index.verify()
    ids, scores = index.search(expected[1]["queries"], 10)
    assert ids == FACTS["search"][name]
    assert_same(scores, expected[1][name])


@once
def test_an_index_keeps_metadata_removals_and_accelerators(files, expected):
    from zoo.search import Index

    index = Index.open(files / "search" / "index", model="f" * 64)
    assert len(index) == golden.VECTORS - 3 + 4
    assert "image 5" not in index.ids
    assert index.metadata("image 6") == {"color": "blue", "number": 6}
    np.testing.assert_array_equal(index.vector("image 6"), golden.vectors()[6])
    query = expected[1]["queries"][0]
    ids, _ = index.search(query, 4, where={"color": "green"})
    assert sorted(ids) == [f"later {i}" for i in range(4)]
    approximate, _ = index.search(query, 10, approximate=True)
    assert len(set(approximate) & set(FACTS["search"]["index"][0])) >= 8


@once
def test_an_unfinished_index_is_resumed(files, expected, tmp_path):
    from zoo.search import Index

    shutil.copytree(files / "search" / "half", tmp_path / "half")
    before = Index.open(tmp_path / "half").ids
    assert len(before) == 4
    source, pair = files / "search" / "album", files / "search" / "pair.safetensors"
    assert main(["index", "build", str(source), "--model", str(pair), "--output", str(tmp_path / "half")]) == 0
    index = Index.open(tmp_path / "half")
    assert index.ids == [f"left/{i}.png" for i in range(4)] + [f"right/{i}.png" for i in range(4, 8)]
    assert index.ids[:4] == before
    assert_same(np.stack([index.vector(identity) for identity in index.ids]), expected[1]["images"])


@once
def test_embeddings_of_a_folder_are_the_same(files, expected, tmp_path):
    from safetensors.numpy import load_file

    folder = files / "search"
    arguments = ["--model", str(folder / "pair.safetensors"), "--output", str(tmp_path / "embedded")]
    assert main(["embed", str(folder / "album"), *arguments]) == 0
    old, new = (json.loads((path / "embedded" / "manifest.json").read_text()) for path in (folder, tmp_path))
    for manifest in (old, new):
        assert manifest["model"] == FACTS["fingerprint"]
    assert [(s["ids"], s["images"]) for s in new["shards"]] == [(s["ids"], s["images"]) for s in old["shards"]]
    (stored,) = read_parts(folder / "embedded").parts  # before, a shard had no plan and no file of its own in JSON
    assert (stored.ids, stored.digests) == (old["shards"][0]["ids"], old["shards"][0]["images"])
    assert_same(stored.vectors, expected[1]["images"])
    assert_same(load_file(tmp_path / "embedded" / new["shards"][0]["file"])["embeddings"], stored.vectors)


@once
def test_a_text_cache_answers_for_the_same_model(files, expected, tmp_path):
    shutil.copy(files / "search" / "texts.sqlite", tmp_path / "texts.sqlite")
    pipeline = zoo.ClipPipeline(str(files / "search" / "pair.safetensors"), cache=tmp_path / "texts.sqlite")
    assert pipeline.fingerprint == FACTS["fingerprint"]
    np.testing.assert_array_equal(pipeline.embed_texts(list(golden.CAPTIONS)), expected[1]["texts"])
    stats = pipeline.cache.stats()
    assert (stats.disk_hits, stats.misses) == (len(golden.CAPTIONS), 0)
    pipeline.cache.close()
    cold = zoo.ClipPipeline(str(files / "search" / "pair.safetensors"), cache=False)
    assert_same(cold.embed_texts(list(golden.CAPTIONS)), expected[1]["texts"])


@once
def test_a_saved_classifier_loads(files, expected):
    from zoo.evaluation.classifier import Classifier

    classifier = Classifier.load(files / "search" / "classifier.safetensors", model=FACTS["fingerprint"])
    assert classifier.class_names == golden.CAPTIONS
    logits = classifier.logits(expected[1]["images"])
    assert_same(logits, classifier.scale * expected[1]["images"] @ classifier.matrix + classifier.bias)


@once
def test_a_training_run_is_resumed(files, tmp_path):
    """AdamW divides a gradient by its size, so that a rounding error in a tiny one moves a weight by up to a step."""
    shutil.copytree(files / "run" / "run", tmp_path / "run")
    outcome = golden.train(tmp_path / "run", resume=True)
    assert (outcome.finished, outcome.step) == (True, 4)
    rows = [row for row in outcome.rows if "loss" in row]
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in FACTS["run"]], rel=1e-4)
    paths = tmp_path / "run" / "model.safetensors", files / "run" / "trained.safetensors"
    trained, wanted = (zoo.load(path).model for path in paths)
    for one, other in zip(trained.weights, wanted.weights, strict=True):
        difference = np.abs(keras.ops.convert_to_numpy(one) - keras.ops.convert_to_numpy(other))
        assert difference.max() < 2e-3 and np.mean(difference > 1e-5) < 0.02, one.path
