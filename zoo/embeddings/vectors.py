"""The vectors of an index at one moment: reading them, and the exact search that compares a query with all of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zoo.embeddings.segment import BLOCK_BYTES, Segment
from zoo.embeddings.terms import contains
from zoo.utils.text import shown

_DIRECT = 8  # if a filter leaves at most one in so many vectors, only those are scored


@dataclass(frozen=True, eq=False)
class Vectors:
    """The vectors that a search reads; later writes do not change them.

    A place is the number of a vector in the order they were added, whether or not earlier ones were removed.

    Args:
        path: folder of the index.
        dim: D.
        segments: in the order of their vectors.
        removed: places of the removed vectors, int64, ascending.
    """

    path: Path
    dim: int
    segments: tuple[Segment, ...]
    removed: np.ndarray

    @property
    def total(self) -> int:
        """Vectors ever added."""
        return self.segments[-1].first + self.segments[-1].count if self.segments else 0

    def __len__(self) -> int:
        return self.total - len(self.removed)

    def find(self, terms: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return (which, places) of terms among the vectors that are not removed, int64 (n,)."""
        wanted = np.array(terms, "<u8")
        order = np.argsort(wanted)  # which makes the binary searches faster
        found = [(np.empty(0, np.int64),) * 2, *(segment.find(wanted[order]) for segment in self.segments)]
        which, places = (np.concatenate(parts) for parts in zip(*found, strict=True))
        kept = ~contains(self.removed, places)
        return order[which[kept]], places[kept]

    def rows(self, places: np.ndarray) -> np.ndarray:
        """Return the vectors at places in ascending order, float32 (n, D)."""
        rows = np.empty((len(places), self.dim), np.float32)
        for segment in self.segments:
            for part, positions in segment.parts(places):
                rows[positions] = segment.rows(part)
        return rows

    def blocks(self, first: int = 0, end: int | None = None) -> Iterator[np.ndarray]:
        """Yield the vectors from place `first` to `end`, removed ones too, in blocks, float32 (n, D)."""
        end = self.total if end is None else end
        size = max(1, BLOCK_BYTES // (4 * self.dim))
        for start in range(first, end, size):
            yield self.rows(np.arange(start, min(start + size, end)))

    def sample(self, count: int) -> np.ndarray:
        """Return up to `count` vectors at even distances, float32 (n, D)."""
        return self.rows(np.unique(np.linspace(0, self.total - 1, count).astype(int)))

    def scores(self, queries: np.ndarray, places: np.ndarray | None = None) -> np.ndarray:
        """Return the inner products with all vectors, or those at ascending places, float32 (Q, N), block by block."""
        scores = np.empty((len(queries), self.total if places is None else len(places)), np.float32)
        for segment in self.segments:
            for part, positions in segment.parts(places, len(queries)):
                scores[:, positions] = segment.products(queries, part)
        return self.finite(scores)

    def finite(self, scores: np.ndarray) -> np.ndarray:
        """Return scores; ValueError for NaN, which compares with nothing and would hide what a search should find."""
        if not np.isfinite(scores).all():
            count = int((~np.isfinite(scores)).any(axis=tuple(range(scores.ndim - 1))).sum())
            raise ValueError(
                f"{shown(self.path)} is damaged: {count} of its vectors are NaN or infinite; build it again"
            )
        return scores

    def few(self, allowed: np.ndarray | None) -> bool:
        """Whether the allowed places, None for all, are so few that only they should be scored."""
        return allowed is not None and len(allowed) * _DIRECT <= self.total

    def nearest(
        self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return (places, scores) of the k best for each query, best first.

        Args:
            queries: float32 (Q, D).
            allowed: the places that may be found, int64, ascending; None for all that are not removed.
        """
        scored = allowed if self.few(allowed) else None
        scores = self.scores(queries, scored)
        if scored is None and allowed is not None:
            others = np.ones(self.total, bool)
            others[allowed] = False
            scores[:, others] = -np.inf
        elif scored is None and len(self.removed):
            scores[:, self.removed] = -np.inf
        k = min(k, len(self) if allowed is None else len(allowed))
        found = [(places, row[places]) for row in scores for places in [best(row, k)]]
        return found if scored is None else [(scored[places], row) for places, row in found]


def best(scores: np.ndarray, k: int) -> np.ndarray:
    """Return the places of the k highest scores, best first, ties by place: int (min(k, N),)."""
    if k < len(scores):
        threshold = np.partition(scores, len(scores) - k)[len(scores) - k] if k else np.inf
        above = np.flatnonzero(scores > threshold)
        level = np.flatnonzero(scores == threshold)[: k - len(above)]
        chosen = np.sort(np.concatenate([above, level]))
    else:
        chosen = np.arange(len(scores))
    return chosen[np.argsort(-scores[chosen], kind="stable")]
