"""Groups of vectors that are near each other: all pairs compared, in blocks."""

from collections.abc import Callable

import numpy as np

BLOCK = 2048  # vectors
_ROUNDING = 1e-6  # of a cosine of float32 vectors


def near_groups(rows: Callable[[slice], np.ndarray], count: int, threshold: float) -> list[list[tuple[int, float]]]:
    """Return the groups that pairs of a cosine of at least `threshold` join, the largest first.

    Args:
        rows: a slice of 0 … count → vectors float32 (n, D). A zero vector is near no other.

    Returns:
        Groups of at least two (number of the vector, its highest cosine with another one), in ascending order.
    """
    parent, best = np.arange(count), np.zeros(count, np.float32)

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return int(i)

    for first in range(0, count, BLOCK):
        one = _unit(rows(slice(first, min(first + BLOCK, count))))
        for second in range(first, count, BLOCK):
            other = one if first == second else _unit(rows(slice(second, min(second + BLOCK, count))))
            cosines = one @ other.T
            if first == second:
                cosines = np.triu(cosines, 1)
            a, b = np.nonzero(cosines >= threshold - _ROUNDING)
            np.maximum.at(best, first + a, cosines[a, b])
            np.maximum.at(best, second + b, cosines[a, b])
            while (parent[parent] != parent).any():
                parent = parent[parent]
            joined = np.stack([parent[first + a], parent[second + b]], axis=1)
            for i, j in np.unique(joined[joined[:, 0] != joined[:, 1]], axis=0).tolist():
                i, j = root(i), root(j)
                parent[max(i, j)] = min(i, j)
    groups: dict[int, list[tuple[int, float]]] = {}
    for i in np.flatnonzero(best).tolist():
        groups.setdefault(root(i), []).append((i, float(best[i])))
    return sorted(groups.values(), key=lambda group: (-len(group), group[0][0]))


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)
