"""The formulas of evaluation: functions of NumPy arrays, without Keras.

Ties. A model that gives everything one score has learnt nothing, and must not look as if it had:
    among classes, the lower number wins, as in `argmax`, so that such a model is right as often as class 0 is there;
    in retrieval, a wrong candidate stands before the right one that it ties with, so that such a model finds nothing.

Scores that are not finite are refused: with NaN, every comparison is false, and a rank of 1 would follow.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np

BLOCK = 1024  # queries compared at a time


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis, in float64."""
    exponentials = np.exp(np.float64(logits) - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


# Classification: scores (N, K), labels (N,).


def class_ranks(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The place of each row's true class, 1 for the best: int (N,).

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
    """Share of rows whose true class is among the k best; with k = 1 the share that `argmax` gets right.

    >>> top_k_accuracy(np.array([[0.1, 0.7, 0.2], [0.5, 0.4, 0.1]]), np.array([2, 0]), k=1)
    0.5
    >>> top_k_accuracy(np.array([[0.1, 0.7, 0.2], [0.5, 0.4, 0.1]]), np.array([2, 0]), k=2)
    1.0

    Args:
        scores: float (N, K), finite.
        labels: int (N,), 0 to K - 1.
        k: 1 or more; from K on the result is 1.
    """
    if k < 1:
        raise ValueError(f"k={k}; it must be at least 1")
    return float((class_ranks(scores, labels) <= k).mean())


def confusion(labels: np.ndarray, predictions: np.ndarray, classes: int = 10) -> np.ndarray:
    """Counts (K, K): rows are true classes, columns predicted ones. confusion([0, 1], [1, 1], 2) → [[0, 1], [0, 1]]"""
    counts = np.zeros((classes, classes), int)
    np.add.at(counts, (labels, predictions), 1)
    return counts


def mean_per_class_recall(counts: np.ndarray) -> float:
    """The mean over classes of the share of a class that was recognised: what balances classes of unequal size.

    >>> mean_per_class_recall(np.array([[9, 1], [1, 1]]))  # of class 0 nine in ten, of class 1 one in two
    0.7

    Args:
        counts: int (K, K), of `confusion`. Classes without rows are left out, as in scikit-learn's balanced accuracy.
    """
    counts = np.asarray(counts)
    sizes = counts.sum(axis=1)
    if not sizes.any():
        raise ValueError("counts are all zero; at least one row is needed")
    return float((np.diag(counts)[sizes > 0] / sizes[sizes > 0]).mean())


def calibration(logits: np.ndarray, labels: np.ndarray, bins: int = 10) -> dict:
    """How far probabilities can be taken at their word.

    Args:
        logits: float (N, K).
        labels: int (N,).
        bins: of equal width, over the confidence.

    Returns:
        {"confidence": mean of the highest probability, "error": expected calibration error, the mean distance between
        confidence and accuracy over the bins weighted by their pictures, "loss": mean of −ln p(true class)}.

    Reference: arXiv:1706.04599, equation 3.
    """
    probabilities = softmax(logits)
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    distance = np.abs(np.bincount(place, weights=confidence - right, minlength=bins)).sum() / len(labels)
    true = probabilities[np.arange(len(labels)), labels]
    return {
        "confidence": float(confidence.mean()),
        "error": float(distance),
        "loss": float(-np.log(np.maximum(true, 1e-12)).mean()),
    }


def wilson_interval(right: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """The range in which a share may lie of which `right` in `total` were seen; 95 % with the default z.

    >>> tuple(round(bound, 3) for bound in wilson_interval(9, 10))
    (0.596, 0.982)

    Reference: E. B. Wilson, "Probable inference", JASA 22 (1927).
    """
    if not 0 <= right <= total or total < 1:
        raise ValueError(f"right={right}, total={total}; right must lie between 0 and total, which is at least 1")
    share, weight = right / total, z * z / total
    middle = (share + weight / 2) / (1 + weight)
    reach = z / (1 + weight) * math.sqrt(share * (1 - share) / total + weight / (4 * total))
    return max(0.0, middle - reach), min(1.0, middle + reach)


# Retrieval: Q queries among M candidates, of which some are right.


def best_ranks(scores: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """The place of each query's best right candidate, 1 for the top: int (Q,).

    >>> scores = np.array([[0.9, 0.8, 0.1], [0.9, 0.2, 0.3]])
    >>> positives = np.array([[False, True, True], [False, True, False]])
    >>> best_ranks(scores, positives).tolist()
    [2, 3]

    Args:
        scores: float (Q, M), finite.
        positives: bool (Q, M), at least one a row. A query that has several, as an image with five captions, counts
            by the best of them.
    """
    scores, positives = np.asarray(scores), np.asarray(positives, bool)
    if scores.shape != positives.shape or scores.ndim != 2:
        raise ValueError(f"scores {scores.shape} and positives {positives.shape}; both must be (Q, M)")
    _check_finite(scores)
    if not positives.any(axis=1).all():
        raise ValueError(f"query {int(np.argmin(positives.any(axis=1)))} has no right candidate; each needs one")
    best = np.where(positives, scores, -np.inf).max(axis=1, keepdims=True)
    return 1 + (~positives & (scores >= best)).sum(axis=1)


def retrieval_ranks(
    queries: np.ndarray,
    candidates: np.ndarray,
    query_items: Sequence[int],
    candidate_items: Sequence[int],
    *,
    block: int = BLOCK,
) -> np.ndarray:
    """`best_ranks` of inner products, `block` queries at a time, so that no (Q, M) array is held: int (Q,).

    Args:
        queries: float32 (Q, D), normalised.
        candidates: float32 (M, D), normalised.
        query_items, candidate_items: int (Q,) and (M,): a candidate is right for the queries of the same item. With
            captions c of images i: text → image is query_items=i, candidate_items=range(M), and the other way round.
    """
    query_items, candidate_items = np.asarray(query_items), np.asarray(candidate_items)
    ranks = [
        best_ranks(scores, query_items[rows, None] == candidate_items)
        for rows, scores in score_blocks(queries, candidates, block=block)
    ]
    return np.concatenate(ranks)


def score_blocks(
    queries: np.ndarray, candidates: np.ndarray, *, block: int = BLOCK
) -> Iterator[tuple[slice, np.ndarray]]:
    """(rows of `queries`, their inner products with all candidates, float32 (≤ block, M)), block by block."""
    for first in range(0, len(queries), block):
        rows = slice(first, min(first + block, len(queries)))
        yield rows, queries[rows] @ candidates.T


def recall_at_k(ranks: np.ndarray, k: int) -> float:
    """Share of queries with a right candidate among the first k: CLIP_benchmark's retrieval recall@k.

    >>> recall_at_k(np.array([1, 3, 12]), 5)
    0.6666666666666666
    """
    if k < 1:
        raise ValueError(f"k={k}; it must be at least 1")
    return float((np.asarray(ranks) <= k).mean())


def summarize_ranks(ranks: np.ndarray, ks: Sequence[int] = (1, 5, 10)) -> dict:
    """{"recall_at_1", "recall_at_5", "recall_at_10", "median_rank", "mean_rank", "queries"}.

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
    """The mean over queries of the share of right ones among the k best candidates.

    >>> precision_at_k(np.array([[0.9, 0.8, 0.1]]), np.array([[True, False, True]]), k=2)
    0.5

    Args:
        scores: float (Q, M), finite.
        positives: bool (Q, M).
        k: 1 to M.
    """
    scores, positives = np.asarray(scores), np.asarray(positives, bool)
    _check_finite(scores)
    if not 1 <= k <= scores.shape[1]:
        raise ValueError(f"k={k}; it must be between 1 and the {scores.shape[1]} candidates")
    order = np.lexsort((positives, -scores), axis=1)[:, :k]  # a wrong one stands before the right one it ties with
    return float(np.take_along_axis(positives, order, axis=1).mean())


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
