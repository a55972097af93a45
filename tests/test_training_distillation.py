"""Distillation: the teacher's similarities are a part of the loss, and the teacher stays as it is."""

import keras
import numpy as np
import pytest
from data_writers import write_csv
from training_case import BASE, ROW, losses, no_curves  # noqa: F401

import zoo
from clip import Pair, Text, ViT, create_clip
from convnext import create_convnext_v2
from zoo.data.preprocess import IMAGENET_MEAN, IMAGENET_STD, PreprocessSpec
from zoo.training import setup
from zoo.training.distillation import Teacher

pytestmark = pytest.mark.backend
once = pytest.mark.once

LARGER = Pair(12, 16, ViT(24, 1, 8, head_width=8), Text(width=24, heads=2, layers=1))


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return write_csv(tmp_path_factory.mktemp("data"), 16)


@pytest.fixture(scope="module")
def teacher():
    keras.utils.set_random_seed(7)
    return create_clip(LARGER)


@pytest.mark.parametrize(
    "accumulate", [pytest.param(1, marks=once), pytest.param(2, marks=once), pytest.param(4, marks=pytest.mark.slow)]
)
def test_a_teacher_adds_to_the_loss_and_does_not_change(table, teacher, tmp_path, monkeypatch, accumulate):
    """Slow alone under JAX, which compiles four programs; accumulation in 4 chunks is examined on every backend."""
    seen = {}

    def fit_resumable(pair, batches, output, config, *, arrange, **options):
        seen["batch"] = batch = arrange(batches[0])
        seen["embeddings"] = pair.predict_on_batch({name: batch[name] for name in ("images", "tokens")})
        seen["logits"] = keras.ops.convert_to_numpy(pair.logits(*seen["embeddings"].values()))
        return original(pair, batches, output, config, arrange=arrange, **options)

    original = setup.fit_resumable
    monkeypatch.setattr(setup, "fit_resumable", fit_resumable)
    before = teacher.get_weights()
    zoo.train(ROW, table, output=tmp_path, **BASE, teacher=teacher, distill_weight=0.5, accumulate=accumulate)
    assert all(np.array_equal(*pair) for pair in zip(before, teacher.get_weights(), strict=True))
    logits, targets = seen["logits"], seen["batch"]["teacher_logits"]
    own = -np.mean([np.diag(log_softmax(logits, axis)).mean() for axis in (0, 1)])
    pairs = [(np.exp(log_softmax(targets, axis)), log_softmax(logits, axis)) for axis in (0, 1)]
    taught = -np.mean([(target * ours).sum() / len(logits) for target, ours in pairs])
    assert losses(tmp_path)[0] == pytest.approx(own + 0.5 * taught, rel=1e-5)
    assert taught > 0.1


def log_softmax(x, axis):
    x = x - x.max(axis=axis, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=axis, keepdims=True))


@once
def test_images_are_renormalised_for_the_teacher(teacher, rng):
    pixels = rng.random((4, 16, 16, 3)).astype("float32")
    tokens = np.ones((4, 12), "int32")
    ours, its = PreprocessSpec(16, IMAGENET_MEAN, IMAGENET_STD), PreprocessSpec(16)
    batch = {"images": (pixels - np.float32(ours.mean)) / np.float32(ours.std), "tokens": tokens}
    got = Teacher(teacher, its, ours)(batch)["teacher_logits"]
    known = {"images": (pixels - np.float32(its.mean)) / np.float32(its.std), "tokens": tokens}
    np.testing.assert_allclose(got, Teacher(teacher, its, its)(known)["teacher_logits"], rtol=1e-4, atol=1e-4)


@once
def test_unsuitable_teachers_are_refused(table, teacher, tmp_path):
    zoo.save(create_convnext_v2("atto", 2), tmp_path / "classifier.safetensors")
    zoo.save(create_clip(LARGER, image_size=24), tmp_path / "other.safetensors")
    for options, message in (
        ({"teacher": tmp_path / "classifier.safetensors"}, "is not a CLIP model"),
        ({"teacher": tmp_path / "other.safetensors"}, "takes images of 24x24 pixels, the student of 16x16"),
        ({"teacher": "clip/ViT-B-32"}, "is an architecture without weights"),
        ({"teacher": teacher, "distill_weight": -1.0}, "distill_weight=-1"),
    ):
        with pytest.raises(ValueError, match=message):
            zoo.train(ROW, table, output=tmp_path / "out", **BASE, **options)
    with pytest.raises(FileNotFoundError):
        zoo.train(ROW, table, output=tmp_path / "out", **BASE, teacher=tmp_path / "none.safetensors")
