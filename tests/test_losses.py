"""The contrastive losses against plain NumPy, and on hand-made matrices."""

import numpy as np
import pytest
from helpers import declare_torchvision_operators, gradients
from keras import Variable, ops

from clip import clip_loss, distillation_loss, siglip_loss
from clip.model import in_batch_accuracy

pytestmark = pytest.mark.backend


def value(x):
    return float(ops.convert_to_numpy(x))


def log_softmax(x, axis):
    x = x - x.max(axis=axis, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=axis, keepdims=True))


def test_clip_loss_is_both_cross_entropies(rng):
    logits = (5 * rng.standard_normal((6, 6))).astype("float32")
    rows, columns = log_softmax(logits, 1), log_softmax(logits, 0)
    expected = -(np.diag(rows).mean() + np.diag(columns).mean()) / 2
    assert value(clip_loss(ops.convert_to_tensor(logits))) == pytest.approx(expected, rel=1e-5)


def test_clip_loss_of_uniform_logits_is_ln_n():
    assert value(clip_loss(ops.zeros((7, 7)))) == pytest.approx(np.log(7), rel=1e-6)


def test_equal_labels_are_positives(rng):
    logits, labels = (3 * rng.standard_normal((4, 4))).astype("float32"), np.array([5, 2, 5, 1], "int32")
    targets = np.array([[0.5, 0, 0.5, 0], [0, 1, 0, 0], [0.5, 0, 0.5, 0], [0, 0, 0, 1]])
    rows, columns = log_softmax(logits, 1), log_softmax(logits, 0)
    expected = -((targets * rows).sum(1).mean() + (targets.T * columns).sum(0).mean()) / 2
    assert value(clip_loss(ops.convert_to_tensor(logits), labels)) == pytest.approx(expected, rel=1e-5)


def test_distinct_labels_equal_no_labels(rng):
    logits = ops.convert_to_tensor(rng.standard_normal((5, 5)).astype("float32"))
    for loss in (clip_loss, siglip_loss):
        assert value(loss(logits, np.array([9, 3, 4, 1, 0]))) == pytest.approx(value(loss(logits)), rel=1e-6)


def test_siglip_loss_sums_over_captions_and_averages_over_images(rng):
    logits = (3 * rng.standard_normal((4, 4))).astype("float32")
    labels = np.array([0, 1, 0, 2])
    signs = np.where(labels[:, None] == labels[None], 1, -1)
    expected = np.log1p(np.exp(-signs * logits)).sum() / 4
    assert value(siglip_loss(ops.convert_to_tensor(logits), labels)) == pytest.approx(expected, rel=1e-5)


def test_distillation_is_the_cross_entropy_to_the_teacher_both_ways(rng):
    ours, teachers = (4 * rng.standard_normal((2, 5, 5))).astype("float32")
    expected = -sum((np.exp(log_softmax(teachers, axis)) * log_softmax(ours, axis)).sum() for axis in (0, 1)) / 10
    assert value(distillation_loss(ops.convert_to_tensor(ours), teachers)) == pytest.approx(expected, rel=1e-5)
    assert not np.isclose(value(distillation_loss(ops.convert_to_tensor(teachers), ours)), expected, rtol=1e-3)


@pytest.mark.once
def test_distillation_matches_open_clip(rng):
    torch = pytest.importorskip("torch")
    declare_torchvision_operators()
    open_clip_loss = pytest.importorskip("open_clip.loss")
    features = [torch.nn.functional.normalize(torch.randn(6, 8), dim=-1) for _ in range(4)]
    scale, its_scale = torch.tensor(7.0), torch.tensor(30.0)
    theirs = open_clip_loss.DistillClipLoss()(*features[:2], scale, *features[2:], its_scale, output_dict=True)
    ours, teachers = scale * features[0] @ features[1].T, its_scale * features[2] @ features[3].T
    logits = ops.convert_to_tensor(ours.numpy())
    assert value(distillation_loss(logits, teachers.numpy())) == pytest.approx(float(theirs["distill_loss"]), rel=1e-5)
    assert value(clip_loss(logits)) == pytest.approx(float(theirs["contrastive_loss"]), rel=1e-5)


def test_losses_stay_finite_at_the_largest_logits():
    logits = ops.convert_to_tensor(100 * (1 - 2 * np.eye(3)).astype("float32"))
    for loss in (clip_loss, siglip_loss):
        assert np.isfinite(value(loss(logits)))


def test_accuracy_by_hand():
    logits = np.array(
        [[3, 1, 0], [2, 1, 0], [0, 0, 1]], "float32"
    )  # image 1 prefers caption 0; captions prefer 0, 0, 2
    assert value(in_batch_accuracy(ops.convert_to_tensor(logits))) == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert value(in_batch_accuracy(ops.convert_to_tensor(logits), np.array([4, 4, 1]))) == 1.0


@pytest.mark.parametrize("loss", [clip_loss, siglip_loss])
def test_gradient_matches_finite_differences(loss, rng):
    logits = Variable(rng.standard_normal((3, 3)).astype("float32"))
    labels = np.array([0, 1, 0])
    (gradient,) = gradients(lambda: loss(logits.value, labels), [logits])
    start, step = ops.convert_to_numpy(logits), np.zeros((3, 3), "float32")
    step[0, 2] = 1e-2
    above, below = (value(loss(ops.convert_to_tensor(start + s * step), labels)) for s in (1, -1))
    assert gradient[0, 2] == pytest.approx((above - below) / 2e-2, rel=1e-2)


@pytest.mark.wide
@pytest.mark.parametrize("shape", [(4, 1), (1, 4), (), (3,)])
@pytest.mark.parametrize("function", [clip_loss, siglip_loss, in_batch_accuracy])
def test_labels_of_another_shape_are_refused(function, shape, rng):
    logits = ops.convert_to_tensor(rng.standard_normal((4, 4)).astype("float32"))
    labels = np.zeros(shape, "int32")
    for given in (labels, ops.convert_to_tensor(labels)):
        with pytest.raises(ValueError, match="labels have the shape .*; .4,. is needed"):
            function(logits, given)
