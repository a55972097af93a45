"""The benchmark of classifiers, on the smallest one."""

import math

import keras
import pytest

from convnext import Variant, create_convnext_v1
from zoo.bench import bench_classifier, classifiers
from zoo.bench.classifiers import PEERS

pytestmark = pytest.mark.backend


def check(result, model, job):
    assert (result.model, result.job, result.backend) == (model, job, keras.backend.backend())
    assert (result.batch_size, result.image_size, result.times_ours) == (2, 32, 1.0)
    seconds = (result.build_seconds, result.first_call_seconds, result.median_seconds)
    assert all(math.isfinite(value) and value > 0 for value in seconds)
    assert result.images_per_second == pytest.approx(2 / result.median_seconds)


def test_one_round_of_predict():
    (result,) = bench_classifier("convnext_atto", batch_size=2, image_size=32, rounds=1)
    check(result, "convnext_atto", "predict")


def test_one_round_of_predict_and_training(monkeypatch):
    row = Variant(depths=(1, 1), dims=(8, 16))  # the smallest published size would take half a minute to compile
    monkeypatch.setattr(classifiers, "create_model", lambda _, **options: create_convnext_v1(row, **options))
    results = bench_classifier("convnext_atto", batch_size=2, image_size=32, rounds=1, train=True)
    for result, job in zip(results, ("predict", "train"), strict=True):
        check(result, "convnext_atto", job)


def test_peers_exist_in_keras():
    missing = [peer for peer in PEERS.values() if not hasattr(keras.applications, peer)]
    assert not missing
