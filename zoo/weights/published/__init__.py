"""Table of published weights: `name.tag` → repository, files, digest, licence, preprocessing, activation, score.

`classifiers` has timm's weights, `pairs` those of open_clip's table, `rows` the row's class. Read without Keras.
"""

import functools

from zoo.weights.published import classifiers, pairs
from zoo.weights.published.rows import OPEN_CLIP_FILES, RESTRICTED, TIMM_FILES, Weights, restriction, spelled_licence

__all__ = [
    "OPEN_CLIP_FILES",
    "RESTRICTED",
    "TIMM_FILES",
    "Weights",
    "all_weights",
    "find_weights",
    "restriction",
    "spelled_licence",
    "tags",
]


@functools.cache
def all_weights() -> dict[str, dict[str, Weights]]:
    """{name of an architecture: {tag: `Weights`}}."""
    table: dict[str, dict[str, Weights]] = {}
    for row in (*classifiers.rows(), *pairs.rows()):
        table.setdefault(row.name, {})[row.tag] = row
    return table


def tags(name: str) -> dict[str, Weights]:
    """{tag: `Weights`} of an architecture, {} if nothing is published."""
    return all_weights().get(name, {})


def find_weights(name: str, tag: str) -> Weights | None:
    """The row of a tag, in either of open_clip's spellings ("laion2b-s34b-b79k"), or None."""
    return tags(name).get(tag) or tags(name).get(tag.lower().replace("-", "_"))
