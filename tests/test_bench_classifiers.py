"""The benchmark of classifiers, on the smallest one."""

import math

import keras
import pytest

from zoo.bench import bench_classifier
from zoo.bench.classifiers import PEERS

pytestmark = pytest.mark.backend


def test_one_round_of_predict_and_training():
    results = bench_classifier("convnext_atto", batch_size=2, image_size=32, rounds=1, train=True)
    assert [(r.model, r.job) for r in results] == [("convnext_atto", "predict"), ("convnext_atto", "train")]
    for result in results:
        assert (result.backend, result.batch_size, result.image_size) == (keras.backend.backend(), 2, 32)
        seconds = (result.build_seconds, result.first_call_seconds, result.median_seconds)
        assert all(math.isfinite(value) and value > 0 for value in seconds)
        assert result.images_per_second == pytest.approx(2 / result.median_seconds)
        assert result.times_ours == 1.0


def test_peers_exist_in_keras():
    missing = [peer for peer in PEERS.values() if not hasattr(keras.applications, peer)]
    assert not missing
