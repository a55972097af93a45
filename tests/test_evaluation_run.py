"""`zoo eval zero-shot` on the original files of CIFAR and MNIST."""

import dataclasses
import json
import pickle
import re

import keras
import measure_chance
import numpy as np
import pytest
from helpers import randomize
from published_files import write_archive, write_cifar10, write_cifar100, write_mnist

import zoo
from clip import create_clip
from clip.variants import Pair, Text, ViT
from zoo.cli import main
from zoo.data.preprocess import PreprocessSpec
from zoo.weights import load

pytestmark = [pytest.mark.backend, pytest.mark.once]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("pair") / "pair.safetensors"
    row = Pair(16, 16, ViT(32, 1, 8, head_width=16), Text(width=32, heads=2, layers=1))
    pair = randomize(create_clip(row), np.random.default_rng(0), scale=0.1)
    zoo.save(pair, path, preprocess=PreprocessSpec(image_size=16))
    return path


def write_fashion(folder, images, labels):
    np.savez(folder / "fashion.npz", x_test=images, y_test=labels)
    return folder / "fashion.npz"


@pytest.mark.parametrize(
    "dataset, write, classes, templates",
    [
        ("cifar10", write_cifar10, 10, 18),
        ("cifar100", write_cifar100, 100, 18),
        ("mnist", write_mnist, 10, 1),
        ("fashion_mnist", write_fashion, 10, 1),
    ],
)
def test_original_files_are_classified(dataset, write, classes, templates, saved, rng, tmp_path, capsys):
    side = (32, 32, 3) if dataset.startswith("cifar") else (28, 28)
    labels = rng.integers(0, classes, 20)
    path = write(tmp_path, rng.integers(0, 256, (20, *side), np.uint8), labels)
    words = ["eval", "zero-shot", "--model", str(saved), "--dataset", dataset, "--data", str(path)]
    assert main([*words, "--json", "--output", str(tmp_path / "out")]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["dataset"], result["images"], result["classes"]) == (dataset, 20, classes)
    assert result["templates"] == templates
    counts = np.array(result["confusion"])
    np.testing.assert_array_equal(counts.sum(axis=1), np.bincount(labels, minlength=classes))
    assert result["accuracy"] == pytest.approx(np.trace(counts) / 20)
    assert json.loads((tmp_path / "out" / "zero_shot.json").read_text())["accuracy"] == result["accuracy"]


def test_an_archive_with_a_foreign_pickle_is_refused(saved, tmp_path, capsys):
    harm = {"cifar-10-batches-py/test_batch": pickle.dumps({b"data": print, b"labels": [1]})}
    path = write_archive(tmp_path / "cifar-10-python.tar.gz", harm)
    assert main(["eval", "zero-shot", "--model", str(saved), "--dataset", "cifar10", "--data", str(path)]) == 2
    error = capsys.readouterr().err.strip()
    assert "it names builtins.print, which a CIFAR batch does not" in error and "\n" not in error


def test_chance_accuracy_is_printed_beside_the_reported_one(capsys):
    assert measure_chance.main(["--images", "100", "--backend", keras.backend.backend()]) == 0
    printed = capsys.readouterr().out
    assert "cifar100: 100 images, 100 classes, 18 templates" in printed
    assert re.search(r"^accuracy +\d\.0 % .*^reported +1\.03 % of CIFAR-100", printed, re.DOTALL | re.MULTILINE)


def test_random_weights_of_a_name(tmp_path, monkeypatch, capsys):
    images = np.random.default_rng(0).integers(0, 256, (100, 32, 32, 3), np.uint8)
    write_cifar100(tmp_path, images, np.arange(100))
    row = Pair(16, 16, ViT(32, 1, 8, head_width=16), Text(width=32, heads=2, layers=1))
    info = dataclasses.replace(zoo.model_info("convnext_v2_atto"), input=(16, 16, 3), preprocess=None)
    monkeypatch.setattr("zoo.evaluation.zero_shot.create_model", lambda _: create_clip(row))
    monkeypatch.setattr("zoo.evaluation.zero_shot.model_info", lambda _: info)
    load._print_once.cache_clear()
    command = ["eval", "zero-shot", "--dataset", "cifar100", "--data", str(tmp_path), "--random-weights", "--model"]
    assert main([*command, "convnext_v2_atto"]) == 0
    said = capsys.readouterr()
    assert "clip/convnext_v2_atto: random weights" in said.err
    assert re.search(r"^chance +1\.0", said.out, re.MULTILINE)
    monkeypatch.undo()
    for name in ("ViT-B-32.openai", "resnet50"):
        assert main([*command, name]) == 2
        assert "name of a CLIP model without a tag" in capsys.readouterr().err
