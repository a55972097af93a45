"""Evaluation metrics as functions of NumPy arrays, without Keras.

Ties must not favour a model that gives every candidate the same score:
    among classes, the lower number wins, as in `argmax`, so such a model is correct as often as class 0 occurs;
    in retrieval, a negative ranks before a positive with the same score, so such a model finds nothing.

Scores that are not finite are refused: every comparison with NaN is false, which would give rank 1.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from zoo.utils.arrays import ACTIVATIONS

BLOCK = 1024  # queries per block
MOST_SCORES = 1 << 24  # of a block of queries with all candidates; with intermediate results they take about 300 MB


# Classification: scores (N, K), labels (N,).


def class_ranks(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the rank of each row's true class, 1 for the best: int (N,).

    >>> class_ranks(np.array([[0.1, 0.7, 0.2], [0.5, 0.4, 0.5]]), np.array([2, 2])).tolist()
    [2, 2]

    In the second row classes 0 and 2 tie, and the lower number wins.

    Args:
        scores: float (N, K), finite.
        labels: int (N,), 0 to K - 1.
    """
    scores, labels = _checked(scores, labels)
    true = scores[np.arange(len(labels)), labels][:, None]
    before = (scores == true) & (np.arange(scores.shape[1]) < labels[:, None])
    return 1 + (scores > true).sum(axis=1) + before.sum(axis=1)


def top_k_accuracy(scores: np.ndarray, labels: np.ndarray, k: int = 1) -> float:
    """Return the share of rows whose true class is among the k best; for k = 1, the accuracy of `argmax`.

    >>> top_k_accuracy(np.array([[0.1, 0.7, 0.2], [0.5, 0.4, 0.1]]), np.array([2, 0]), k=1)
    0.5
    >>> top_k_accuracy(np.array([[0.1, 0.7, 0.2], [0.5, 0.4, 0.1]]), np.array([2, 0]), k=2)
    1.0

    Args:
        scores: float (N, K), finite.
        labels: int (N,), 0 to K - 1.
        k: at least 1. The result is 1 for k ≥ K.
    """
    if k < 1:
        raise ValueError(f"k={k}; it must be at least 1")
    return float((class_ranks(scores, labels) <= k).mean())


def confusion(labels: np.ndarray, predictions: np.ndarray, classes: int = 10) -> np.ndarray:
    """Return counts (K, K): rows are true classes, columns predicted ones.

    >>> confusion([0, 1], [1, 1], 2).tolist()
    [[0, 1], [0, 1]]
    """
    if np.shape(labels) != np.shape(predictions) or np.ndim(labels) != 1:
        raise ValueError(f"labels {np.shape(labels)} and predictions {np.shape(predictions)}; both must be (N,)")
    counts = np.zeros((classes, classes), int)
    np.add.at(counts, (labels, predictions), 1)
    return counts


def mean_per_class_recall(counts: np.ndarray) -> float:
    """Return the mean recall over classes, which weighs classes of unequal size equally.

    >>> mean_per_class_recall(np.array([[9, 1], [1, 1]]))  # recalls of 0.9 and 0.5
    0.7

    Args:
        counts: int (K, K), of `confusion`. Classes without rows are ignored, as in scikit-learn's balanced accuracy.
    """
    counts = np.asarray(counts)
    sizes = counts.sum(axis=1)
    if not sizes.any():
        raise ValueError("counts are all zero; at least one row is needed")
    return float((np.diag(counts)[sizes > 0] / sizes[sizes > 0]).mean())


def calibration(logits: np.ndarray, labels: np.ndarray, bins: int = 10, activation: str = "softmax") -> dict:
    """Return how well predicted probabilities agree with accuracy.

    Args:
        logits: float (N, K).
        labels: int (N,).
        bins: number of bins of equal width over the confidence.
        activation: "softmax" or "sigmoid", from logits to probabilities.

    Returns:
        {"confidence": mean of the highest probability, "error": expected calibration error, the mean distance between
        confidence and accuracy over the bins, weighted by their rows, "loss": mean cross-entropy: −ln p(true class),
        plus, of the sigmoid, −ln(1 − p) of each other class}.

    Reference: arXiv:1706.04599, equation 3.
    """
    curve = reliability(logits, labels, bins, activation)
    error = np.abs(curve["confidence"] - curve["accuracy"]) @ curve["count"] / len(labels)
    probabilities = ACTIVATIONS[activation](logits)
    true = np.arange(logits.shape[1]) == np.asarray(labels)[:, None]
    counted = np.where(true, probabilities, 1 - probabilities if activation == "sigmoid" else 1.0)
    return {
        "confidence": float(probabilities.max(axis=1).mean()),
        "error": float(error),
        "loss": float(-np.log(np.maximum(counted, 1e-12)).sum(axis=1).mean()),
    }


def reliability(
    logits: np.ndarray, labels: np.ndarray, bins: int = 10, activation: str = "softmax"
) -> dict[str, np.ndarray]:
    """Return confidence and accuracy per bin, the data of a reliability diagram.

    Args:
        logits: float (N, K).
        labels: int (N,).
        bins: number of bins of equal width over the confidence.
        activation: "softmax" or "sigmoid", from logits to probabilities.

    Returns:
        {"confidence", "accuracy": means, "count": rows}, each (≤ bins,), without empty bins.

    Reference: arXiv:1706.04599, section 2.
    """
    logits, labels = _checked(logits, labels)
    probabilities = ACTIVATIONS[activation](logits)
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    sums = [np.bincount(place, weights=values, minlength=bins) for values in (confidence, correct)]
    count = np.bincount(place, minlength=bins)
    filled = count > 0
    confidence, accuracy = (values[filled] / count[filled] for values in sums)
    return {"confidence": confidence, "accuracy": accuracy, "count": count[filled]}


def temperature_sweep(
    cosines: np.ndarray,
    labels: np.ndarray,
    factors: Sequence[float] | np.ndarray,
    bias: float = 0.0,
    activation: str = "softmax",
) -> dict[str, list[float]]:
    """Return `calibration` of factor · cosines + bias: {name: one value per factor}."""
    results = [calibration(factor * cosines + bias, labels, activation=activation) for factor in factors]
    return {name: [result[name] for result in results] for name in results[0]}


def lowest_loss_factor(
    cosines: np.ndarray,
    labels: np.ndarray,
    low: float = 0.1,
    high: float = 1e4,
    bias: float = 0.0,
    activation: str = "softmax",
) -> float:
    """Return the factor from cosines to logits, in [low, high], with the lowest loss of `calibration`.

    >>> cosines = np.array([[0.5, 0.0]] * 4)  # three of four are correct: p = 3/4 at a factor of ln(3) / 0.5
    >>> round(lowest_loss_factor(cosines, np.array([0, 0, 0, 1])), 3)
    2.197

    The loss is convex in the factor, and a golden-section search finds its minimum. Where all rows are correct, the
    loss decreases without end and the result is `high`.

    Args:
        cosines: float (N, K).
        labels: int (N,).
        bias: added to the logits.
        activation: as in `calibration`.

    Reference: arXiv:1706.04599, section 4.2, temperature scaling.
    """

    def loss(logarithm):
        return calibration(math.exp(logarithm) * cosines + bias, labels, activation=activation)["loss"]

    golden = (math.sqrt(5) - 1) / 2
    left, right = math.log(low), math.log(high)
    for _ in range(40):  # leaves 0.618⁴⁰ of the range
        one, other = right - golden * (right - left), left + golden * (right - left)
        left, right = (left, other) if loss(one) <= loss(other) else (one, right)
    return math.exp((left + right) / 2)


def wilson_interval(correct: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Return the confidence interval of a share of which `correct` in `total` were observed; 95 % at the default z.

    >>> tuple(round(bound, 3) for bound in wilson_interval(9, 10))
    (0.596, 0.982)

    Reference: E. B. Wilson, "Probable inference", JASA 22 (1927).
    """
    if not 0 <= correct <= total or total < 1:
        raise ValueError(f"correct={correct}, total={total}; needed are total ≥ 1 and 0 ≤ correct ≤ total")
    share, weight = correct / total, z * z / total
    middle = (share + weight / 2) / (1 + weight)
    reach = z / (1 + weight) * math.sqrt(share * (1 - share) / total + weight / (4 * total))
    return max(0.0, middle - reach), min(1.0, middle + reach)


def first_places(correct: np.ndarray, *, resamples: int = 1000, seed: int = 0) -> np.ndarray:
    """Return how often each of T classifiers is the best in bootstrap resamples of N images, float (T,); the sum is 1.

    All are compared on the same images in each resample, so images on which two agree count for neither. Ties share
    the first place.

    Args:
        correct: bool (T, N), whether each classifier is correct on each image.
        resamples: number of resamples of N images.
        seed: seed of the resamples.

    Reference: B. Efron, "Bootstrap methods", Annals of Statistics 7 (1979).
    """
    correct = np.asarray(correct, np.float64)
    rng = np.random.default_rng(seed)
    shares = np.zeros(len(correct))
    even = np.full(correct.shape[1], 1 / correct.shape[1])
    for _ in range(resamples):
        scores = correct @ rng.multinomial(correct.shape[1], even)
        best = scores == scores.max()
        shares += best / best.sum()
    return shares / resamples


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Return Spearman's rank correlation, with ties at their mean rank; NaN if either input is constant.

    >>> round(rank_correlation(np.array([1, 2, 3, 4]), np.array([10, 30, 20, 40])), 3)
    0.8

    Args:
        a, b: float (N,).
    """
    one, other = (_mean_ranks(np.asarray(x)) for x in (a, b))
    one, other = one - one.mean(), other - other.mean()
    spread = math.sqrt((one @ one) * (other @ other))
    return float(one @ other / spread) if spread else math.nan


def _mean_ranks(x: np.ndarray) -> np.ndarray:
    """Return ranks, 1 for the smallest, ties at their mean rank: float (N,)."""
    _, place, counts = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


# Retrieval: Q queries among M candidates, some of which are positives.


def best_ranks(scores: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """Return the rank of each query's best positive, 1 for the top: int (Q,).

    >>> scores = np.array([[0.9, 0.8, 0.1], [0.9, 0.2, 0.3]])
    >>> positives = np.array([[False, True, True], [False, True, False]])
    >>> best_ranks(scores, positives).tolist()
    [2, 3]

    Args:
        scores: float (Q, M), finite.
        positives: bool (Q, M), at least one per row. Of several, such as the five captions of an image, the best
            counts.
    """
    scores, positives = np.asarray(scores), np.asarray(positives, bool)
    if scores.shape != positives.shape or scores.ndim != 2:
        raise ValueError(f"scores {scores.shape} and positives {positives.shape}; both must be (Q, M)")
    _check_finite(scores)
    if not positives.any(axis=1).all():
        raise ValueError(f"query {int(np.argmin(positives.any(axis=1)))} has no positive; each needs one")
    best = np.where(positives, scores, -np.inf).max(axis=1, keepdims=True)
    return 1 + (~positives & (scores >= best)).sum(axis=1)


def retrieval_ranks(
    queries: np.ndarray,
    candidates: np.ndarray,
    query_items: Sequence[int] | np.ndarray,
    candidate_items: Sequence[int] | np.ndarray,
    *,
    block: int = BLOCK,
) -> np.ndarray:
    """Return `best_ranks` of inner products, int (Q,), computed in blocks of queries to bound memory.

    Args:
        queries: float32 (Q, D), normalised.
        candidates: float32 (M, D), normalised.
        query_items, candidate_items: int (Q,) and (M,). A candidate is a positive of the queries with its item. For
            captions of images i, text → image is query_items=i, candidate_items=range(M), and image → text the
            reverse.
    """
    queried, offered = np.asarray(query_items), np.asarray(candidate_items)
    ranks = [
        best_ranks(scores, queried[rows, None] == offered)
        for rows, scores in _score_blocks(queries, candidates, block=block)
    ]
    return np.concatenate(ranks)


def _score_blocks(
    queries: np.ndarray, candidates: np.ndarray, *, block: int = BLOCK
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield (rows of `queries`, their inner products with all candidates, float32 (≤ block, M)), block by block."""
    block = max(1, min(block, MOST_SCORES // max(1, len(candidates))))
    for first in range(0, len(queries), block):
        rows = slice(first, min(first + block, len(queries)))
        yield rows, queries[rows] @ candidates.T


def recall_at_k(ranks: np.ndarray, k: int) -> float:
    """Return the share of queries with a positive among the first k: CLIP_benchmark's retrieval recall@k.

    >>> recall_at_k(np.array([1, 3, 12]), 5)
    0.6666666666666666
    """
    if k < 1:
        raise ValueError(f"k={k}; it must be at least 1")
    return float((np.asarray(ranks) <= k).mean())


def summarize_ranks(ranks: np.ndarray, ks: Sequence[int] = (1, 5, 10)) -> dict:
    """Return {"recall_at_1", "recall_at_5", "recall_at_10", "median_rank", "mean_rank", "queries"}.

    >>> summarize_ranks(np.array([1, 3, 12, 2]), ks=(1, 5))
    {'recall_at_1': 0.25, 'recall_at_5': 0.75, 'median_rank': 2.5, 'mean_rank': 4.5, 'queries': 4}
    """
    recalls = {f"recall_at_{k}": recall_at_k(ranks, k) for k in ks}
    return {
        **recalls,
        "median_rank": float(np.median(ranks)),
        "mean_rank": float(np.mean(ranks)),
        "queries": len(ranks),
    }


def precision_at_k(scores: np.ndarray, positives: np.ndarray, k: int) -> float:
    """Return the share of positives among the k best candidates, mean over queries.

    >>> precision_at_k(np.array([[0.9, 0.8, 0.1]]), np.array([[True, False, True]]), k=2)
    0.5

    Args:
        scores: float (Q, M), finite.
        positives: bool (Q, M).
        k: 1 to M.
    """
    found = _ranked(scores, positives)
    if not 1 <= k <= found.shape[1]:
        raise ValueError(f"k={k}; it must be between 1 and {found.shape[1]}, the number of candidates")
    return float(found[:, :k].mean())


def retrieval_curves(scores: np.ndarray, positives: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return precision and recall of the k best candidates, mean over queries: float (M,) each, at place k - 1.

    >>> precision, recall = retrieval_curves(np.array([[0.9, 0.8, 0.1]]), np.array([[True, False, True]]))
    >>> precision.round(2).tolist(), recall.tolist()
    ([1.0, 0.5, 0.67], [0.5, 0.5, 1.0])

    Args:
        scores: float (Q, M), finite.
        positives: bool (Q, M), at least one per row. Negatives rank before positives with the same score.
    """
    found = _ranked(scores, positives).cumsum(axis=1)
    cuts = np.arange(1, found.shape[1] + 1)
    return (found / cuts).mean(axis=0), (found / found[:, -1:]).mean(axis=0)


def _ranked(scores: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """Return whether each query's candidate at each rank is a positive: bool (Q, M)."""
    scores, positives = np.asarray(scores), np.asarray(positives, bool)
    _check_finite(scores)
    order = np.lexsort((positives, -scores), axis=1)  # a negative ranks before a positive with the same score
    return np.take_along_axis(positives, order, axis=1)


# Embeddings: unit rows (N, D).


def class_similarity(vectors: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Return the mean cosines between rows of two classes, float (K, K). A row is not compared with itself.

    >>> vectors = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    >>> class_similarity(vectors, np.array([0, 0, 1]), 2).tolist()
    [[0.0, 0.7], [0.7, nan]]

    Class 1 has a single row and therefore no pair.

    Args:
        vectors: float (N, D), unit rows.
        labels: int (N,), 0 to classes - 1.
    """
    vectors = np.asarray(vectors, np.float64)
    members = np.eye(classes)[labels]  # (N, K)
    sizes = members.sum(axis=0)
    pairs = np.outer(sizes, sizes) - np.diag(sizes)
    sums = members.T @ vectors  # (K, D)
    totals = sums @ sums.T - np.diag(members.T @ (vectors * vectors).sum(axis=1))
    return np.divide(totals, pairs, out=np.full_like(totals, np.nan), where=pairs > 0)


def separation(vectors: np.ndarray, labels: np.ndarray, *, block: int = BLOCK) -> dict[str, float]:
    """Return how well classes are separated.

    Args:
        vectors: float (N, D), unit rows.
        labels: int (N,). A class with one row counts in "between" only.

    Returns:
        {"within": mean cosine over pairs of rows of the same class, "between": over pairs of different classes,
        "nearest_same": share of rows whose nearest other row has the same class}; NaN where there is no pair.
    """
    labels = np.unique(labels, return_inverse=True)[1]
    sizes = np.bincount(labels)
    means = np.nan_to_num(class_similarity(vectors, labels, len(sizes)))
    pairs = np.outer(sizes, sizes) - np.diag(sizes)
    same = np.eye(len(sizes), dtype=bool)
    hits = 0
    for rows, scores in _score_blocks(vectors, vectors, block=block):
        scores[np.arange(len(scores)), np.arange(len(vectors))[rows]] = -np.inf
        hits += (labels[scores.argmax(axis=1)] == labels[rows]).sum()
    counts = [pairs[where].sum() for where in (same, ~same)]
    sums = [(means * pairs)[where].sum() for where in (same, ~same)]
    within, between = (float(s / n) if n else math.nan for s, n in zip(sums, counts, strict=True))
    nearest = float(hits / len(labels)) if len(labels) > 1 else math.nan
    return {"within": within, "between": between, "nearest_same": nearest}


def principal_components(vectors: np.ndarray, count: int = 2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the principal components of rows, with signs that make the largest entry of each axis positive.

    Returns:
        (mean (D,), axes (count, D) with unit rows, shares (count,) of the variance). The coordinates of a row x are
        (x - mean) @ axes.T. With fewer rows than `count`, the remaining axes have a share of 0.
    """
    vectors = np.asarray(vectors, np.float64)
    mean = vectors.mean(axis=0)
    padded = np.pad(vectors - mean, ((0, max(0, count - len(vectors))), (0, 0)))
    _, sizes, axes = np.linalg.svd(padded, full_matrices=False)
    axes = axes[:count]
    axes *= np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])[:, None]
    return mean, axes, (sizes**2 / max((sizes**2).sum(), np.finfo(float).tiny))[:count]


def modality_gap(images: np.ndarray, texts: np.ndarray) -> float:
    """Return the distance between the mean image and the mean text embedding, in [0, 2].

    >>> modality_gap(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]]))
    1.4142135623730951

    Args:
        images: float (N, D), unit rows.
        texts: float (M, D), unit rows.

    Reference: arXiv:2203.02053, section 4.2.
    """
    return float(np.linalg.norm(np.mean(images, axis=0) - np.mean(texts, axis=0)))


def _checked(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 2 or labels.shape != scores.shape[:1] or not len(labels):
        raise ValueError(f"scores {scores.shape} and labels {labels.shape}; they must be (N, K) and (N,), N ≥ 1")
    _check_finite(scores)
    if labels.min() < 0 or labels.max() >= scores.shape[1]:
        raise ValueError(f"labels run from {labels.min()} to {labels.max()}; allowed are 0 to {scores.shape[1] - 1}")
    return scores, labels


def _check_finite(scores: np.ndarray) -> None:
    if not np.isfinite(scores).all():
        place = tuple(map(int, np.argwhere(~np.isfinite(scores))[0]))
        raise ValueError(f"scores{list(place)} is {scores[place]}; all must be finite")
