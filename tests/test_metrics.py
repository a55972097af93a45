"""Evaluation metrics on hand-made matrices, compared with scikit-learn and CLIP_benchmark's definitions."""

import doctest

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, top_k_accuracy_score

from zoo.evaluation import metrics
from zoo.utils.arrays import sigmoid, softmax


def test_docstring_examples():
    done = doctest.testmod(metrics)
    assert (done.failed, done.attempted > 8) == (0, True)


# Classification.


SCORES = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.1, 0.5, 0.4], [0.4, 0.35, 0.25]])
LABELS = np.array([0, 1, 2, 2])


def test_ranks_and_accuracies_of_a_hand_made_matrix():
    assert metrics.class_ranks(SCORES, LABELS).tolist() == [1, 1, 2, 3]
    assert [metrics.top_k_accuracy(SCORES, LABELS, k) for k in (1, 2, 3, 9)] == [0.5, 0.75, 1.0, 1.0]


def test_a_tie_goes_to_the_lower_class_as_in_argmax(rng):
    flat = np.zeros((6, 3))
    assert metrics.class_ranks(flat, np.array([0, 1, 2, 0, 1, 2])).tolist() == [1, 2, 3, 1, 2, 3]
    coarse = rng.integers(0, 3, (500, 5)).astype(float)
    labels = rng.integers(0, 5, 500)
    assert metrics.top_k_accuracy(coarse, labels) == (coarse.argmax(axis=1) == labels).mean()


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_accuracy_equals_scikit_learn(k, rng):
    scores, labels = rng.standard_normal((300, 7)), rng.integers(0, 7, 300)
    expected = top_k_accuracy_score(labels, scores, k=k, labels=range(7))
    assert metrics.top_k_accuracy(scores, labels, k) == pytest.approx(expected)


def test_confusion_counts_rows_of_truth(rng):
    assert metrics.confusion(np.array([0, 0, 1]), np.array([0, 1, 1]), 2).tolist() == [[1, 1], [0, 1]]
    labels, predictions = rng.integers(0, 6, (2, 200))
    np.testing.assert_array_equal(
        metrics.confusion(labels, predictions, 6), confusion_matrix(labels, predictions, labels=range(6))
    )


def test_mean_per_class_recall_is_balanced_accuracy(rng):
    labels = rng.choice(5, 400, p=[0.6, 0.2, 0.1, 0.1, 0.0])  # unequal classes, one of them empty
    predictions = np.where(rng.random(400) < 0.7, labels, rng.integers(0, 4, 400))
    recall = metrics.mean_per_class_recall(metrics.confusion(labels, predictions, 5))
    assert recall == pytest.approx(balanced_accuracy_score(labels, predictions))
    assert recall != pytest.approx((labels == predictions).mean(), abs=1e-4)


def test_calibration_of_a_hand_made_case():
    logits = np.log(np.array([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.4, 0.6]]))
    result = metrics.calibration(logits, np.array([0, 0, 1, 1]))
    assert result["confidence"] == pytest.approx((0.9 * 3 + 0.6) / 4)
    assert result["error"] == pytest.approx((3 * abs(0.9 - 2 / 3) + abs(0.6 - 1)) / 4)
    assert result["loss"] == pytest.approx(-np.log([0.9, 0.9, 0.1, 0.6]).mean())
    sure = metrics.calibration(np.array([[100.0, 0.0]]), np.array([0]))  # confidence 1.0 belongs to the last bin
    assert sure == {"confidence": 1.0, "error": 0.0, "loss": pytest.approx(0.0)}


def test_calibration_bins_do_not_cancel():
    logits = np.log(np.array([[0.9, 0.1], [0.6, 0.4]]))
    labels = np.array([1, 0])  # once overconfident, once underconfident
    assert metrics.calibration(logits, labels)["error"] == pytest.approx((0.9 + 0.4) / 2)
    assert metrics.calibration(logits, labels, bins=1)["error"] == pytest.approx(0.25)


def test_softmax_of_large_logits_is_finite():
    np.testing.assert_array_equal(softmax(np.float32([[1000.0, 0.0], [-1000.0, -1000.0]])), [[1, 0], [0.5] * 2])


def test_wilson_interval_contains_the_share_and_narrows():
    few, many = metrics.wilson_interval(8, 10), metrics.wilson_interval(800, 1000)
    assert few[0] < many[0] < 0.8 < many[1] < few[1]
    assert (metrics.wilson_interval(0, 5)[0], metrics.wilson_interval(5, 5)[1]) == pytest.approx((0.0, 1.0))
    assert many == pytest.approx((0.7741, 0.8236), abs=5e-5)


# Retrieval.


def test_the_best_of_several_positives_counts():
    scores = np.array([[0.1, 0.9, 0.8, 0.7], [0.5, 0.4, 0.3, 0.2]])
    positives = np.array([[1, 0, 1, 0], [0, 0, 0, 1]], bool)
    assert metrics.best_ranks(scores, positives).tolist() == [2, 4]


def test_a_collapsed_pair_finds_nothing():
    same = np.ones((20, 4), np.float32) / 2
    ranks = metrics.retrieval_ranks(same, same, range(20), range(20))
    assert ranks.tolist() == [20] * 20
    assert metrics.summarize_ranks(ranks)["recall_at_10"] == 0.0
    assert metrics.precision_at_k(np.zeros((1, 4)), np.array([[True, True, False, False]]), 2) == 0.0


def clip_benchmark_recall(scores, positives, k):
    """LAION-AI/CLIP_benchmark's retrieval recall: the share of queries with any positive in the top k."""
    top = np.argsort(-scores, axis=1)[:, :k]
    found = np.take_along_axis(positives, top, axis=1).sum(axis=1) / positives.sum(axis=1)
    return (found > 0).mean()


def captioned(rng, images=60, captions=5, dim=8):
    """Return unit embeddings of images and captions, with noise that puts recall between 0 and 1."""
    owners = np.repeat(np.arange(images), captions)
    image = rng.standard_normal((images, dim)).astype(np.float32)
    text = image[owners] + 0.9 * rng.standard_normal((len(owners), dim)).astype(np.float32)
    return *(x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text)), owners


def test_recall_with_five_captions_per_image_equals_clip_benchmark(rng):
    images, texts, owners = captioned(rng)
    places = np.arange(len(images))
    to_image = metrics.retrieval_ranks(texts, images, owners, places)
    to_text = metrics.retrieval_ranks(images, texts, places, owners)
    for k in (1, 5, 10):
        expected = clip_benchmark_recall(texts @ images.T, owners[:, None] == places, k)
        assert 0 < expected < 1 and metrics.recall_at_k(to_image, k) == pytest.approx(expected)
        expected = clip_benchmark_recall(images @ texts.T, places[:, None] == owners, k)
        assert metrics.recall_at_k(to_text, k) == pytest.approx(expected)


@pytest.mark.parametrize("block", [1, 7, 60, 1000])
def test_block_size_does_not_change_ranks(block, rng):
    images, texts, owners = captioned(rng)
    whole = metrics.best_ranks(texts @ images.T, owners[:, None] == np.arange(len(images)))
    np.testing.assert_array_equal(
        metrics.retrieval_ranks(texts, images, owners, range(len(images)), block=block), whole
    )


def test_a_perfect_pair_ranks_first(rng):
    images, _, _ = captioned(rng)
    ranks = metrics.retrieval_ranks(images, images, range(len(images)), range(len(images)))
    summary = metrics.summarize_ranks(ranks)
    assert summary == {
        **dict.fromkeys(["recall_at_1", "recall_at_5", "recall_at_10", "median_rank", "mean_rank"], 1.0),
        "queries": 60,
    }


def test_precision_is_the_share_of_positives_among_the_best():
    scores = np.array([[0.9, 0.8, 0.7, 0.1], [0.1, 0.2, 0.3, 0.4]])
    positives = np.array([[1, 0, 1, 1], [1, 0, 0, 1]], bool)
    assert metrics.precision_at_k(scores, positives, 1) == 1.0
    assert metrics.precision_at_k(scores, positives, 3) == pytest.approx((2 / 3 + 1 / 3) / 2)


# Invalid arguments.


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: metrics.class_ranks(np.array([[0.1, np.nan]]), np.array([0])), r"scores\[0, 1\] is nan"),
        (lambda: metrics.best_ranks(np.array([[np.inf]]), np.array([[True]])), r"scores\[0, 0\] is inf"),
        (lambda: metrics.class_ranks(SCORES, np.array([0, 1, 2, 3])), "labels run from 0 to 3; allowed are 0 to 2"),
        (lambda: metrics.class_ranks(SCORES, LABELS[:2]), r"scores \(4, 3\) and labels \(2,\)"),
        (lambda: metrics.top_k_accuracy(SCORES, LABELS, 0), "k=0"),
        (lambda: metrics.recall_at_k(np.array([1]), 0), "k=0"),
        (lambda: metrics.precision_at_k(SCORES, SCORES > 0.3, 4), "k=4; it must be between 1 and 3"),
        (lambda: metrics.best_ranks(SCORES, SCORES > 0.4), "query 3 has no positive"),
        (lambda: metrics.best_ranks(SCORES, np.ones((4, 2), bool)), "both must be"),
        (lambda: metrics.mean_per_class_recall(np.zeros((2, 2))), "all zero"),
        (lambda: metrics.wilson_interval(3, 2), "correct=3, total=2"),
    ],
)
def test_invalid_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# Confidence, rankings and embeddings.


def test_reliability_bins_sum_to_the_calibration_error(rng):
    logits, labels = 3 * rng.standard_normal((500, 4)), rng.integers(0, 4, 500)
    seen = metrics.reliability(logits, labels)
    assert seen["count"].sum() == 500 and (seen["count"] > 0).all()
    error = np.abs(seen["confidence"] - seen["accuracy"]) @ seen["count"] / 500
    assert metrics.calibration(logits, labels)["error"] == pytest.approx(error)
    assert seen["accuracy"] @ seen["count"] / 500 == pytest.approx((logits.argmax(axis=1) == labels).mean())


def test_the_lowest_loss_factor_recovers_the_true_factor(rng):
    cosines = rng.uniform(-0.3, 0.3, (4000, 6))
    labels = np.array([rng.choice(6, p=row) for row in softmax(12 * cosines)])
    found = metrics.lowest_loss_factor(cosines, labels)
    assert found == pytest.approx(12, rel=0.05)
    sweep = metrics.temperature_sweep(cosines, labels, [found / 2, found, 2 * found])
    assert sweep["loss"][1] == min(sweep["loss"]) and sweep["error"][1] == min(sweep["error"])
    assert sweep["confidence"] == sorted(sweep["confidence"])


def test_the_lowest_loss_factor_of_perfect_scores_is_the_upper_bound():
    assert metrics.lowest_loss_factor(np.array([[0.3, 0.1]]), np.array([0]), high=50) == pytest.approx(50, rel=1e-3)


def test_rank_correlation_equals_scipy(rng):
    stats = pytest.importorskip("scipy.stats")
    a, b = rng.integers(0, 8, (2, 60))  # with ties
    assert metrics.rank_correlation(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    assert np.isnan(metrics.rank_correlation(np.ones(4), np.arange(4)))


def test_first_places_share_ties_and_depend_on_the_seed(rng):
    right = rng.random((3, 200)) < np.array([[0.9], [0.5], [0.9]])
    shares = metrics.first_places(right)
    assert shares.sum() == pytest.approx(1) and shares[1] == 0
    np.testing.assert_array_equal(shares, metrics.first_places(right))
    assert (shares != metrics.first_places(right, seed=1)).any()
    np.testing.assert_allclose(metrics.first_places(np.stack([right[0]] * 2)), 0.5)


def test_class_similarities_are_means_over_pairs(rng):
    vectors = rng.standard_normal((30, 5))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    labels = rng.integers(0, 3, 30)
    found = metrics.class_similarity(vectors, labels, 4)
    cosines, others = vectors @ vectors.T, ~np.eye(30, dtype=bool)
    for i in range(3):
        for j in range(3):
            chosen = np.outer(labels == i, labels == j) & others
            assert found[i, j] == pytest.approx(cosines[chosen].mean())
    assert np.isnan(found[3]).all()
    same = np.equal.outer(labels, labels)
    apart = metrics.separation(vectors, labels, block=7)
    assert apart["within"] == pytest.approx(cosines[same & others].mean())
    assert apart["between"] == pytest.approx(cosines[~same].mean())
    nearest = np.where(others, cosines, -2).argmax(axis=1)
    assert apart["nearest_same"] == pytest.approx((labels[nearest] == labels).mean())


def test_principal_components_equal_scikit_learn_up_to_sign(rng):
    from sklearn.decomposition import PCA

    vectors = rng.standard_normal((40, 6)) * [5, 3, 1, 1, 1, 1]
    mean, axes, shares = metrics.principal_components(vectors)
    expected = PCA(2).fit(vectors)
    np.testing.assert_allclose(np.abs((vectors - mean) @ axes.T), np.abs(expected.transform(vectors)), atol=1e-9)
    np.testing.assert_allclose(shares, expected.explained_variance_ratio_)
    again = metrics.principal_components(vectors[::-1])
    np.testing.assert_allclose(again[1], axes, atol=1e-9)


def test_calibration_of_a_sigmoid_takes_each_class_alone():
    logits, labels = np.array([[0.0, -2.0], [-2.0, 0.0]]), np.array([0, 0])
    result = metrics.calibration(logits, labels, activation="sigmoid")
    assert result["confidence"] == pytest.approx(0.5)
    of_each = [[0.5, 1 - sigmoid(-2.0)], [sigmoid(-2.0), 0.5]]  # p of the true class, 1 - p of the other
    assert result["loss"] == pytest.approx(-np.log(of_each).sum() / 2)
    np.testing.assert_array_equal(sigmoid(np.float32([-1000.0, 0.0, 1000.0])), [0.0, 0.5, 1.0])  # no overflow


def test_the_factor_of_a_sigmoid_is_fitted_with_its_bias(rng):
    labels = rng.integers(0, 4, 400)
    cosines = 0.1 * rng.standard_normal((400, 4)) + 0.3 * (np.arange(4) == labels[:, None])
    options = {"bias": -6.0, "activation": "sigmoid"}
    found = metrics.lowest_loss_factor(cosines, labels, **options)
    sweep = metrics.temperature_sweep(cosines, labels, [found / 1.3, found, 1.3 * found], **options)
    assert 10 < found < 100 and sweep["loss"][1] == min(sweep["loss"])
    assert sweep["error"][1] == metrics.calibration(found * cosines - 6.0, labels, activation="sigmoid")["error"]


@pytest.mark.parametrize(
    "metric",
    [
        metrics.class_ranks,
        metrics.top_k_accuracy,
        metrics.calibration,
        metrics.reliability,
        lambda scores, labels: metrics.confusion(labels, scores.argmax(axis=1), 3),
    ],
)
def test_labels_of_another_shape_are_refused(metric, rng):
    scores = rng.standard_normal((4, 3))
    metric(scores, np.array([0, 1, 2, 0]))
    for shape in ((4, 1), (1, 4), (3,)):
        with pytest.raises(ValueError, match="labels"):
            metric(scores, np.zeros(shape, int))
