"""Table of published weights: `name.tag` → repository, files, digest, licence, preprocessing, activation, score.

`classifiers` has timm's weights, `pairs` those of open_clip's table; this module the class of a row and the
licences. Read without Keras.
"""

import functools
from dataclasses import dataclass

from zoo.data.preprocess import PreprocessSpec

OPEN_CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")

_FREE = ("MIT", "Apache-2.0", "BSD-3-Clause")
# Licences of weights that restrict their use, and how.
RESTRICTED = {
    "CC-BY-NC-4.0": "not for commercial use",
    "FAIR-Noncommercial-Research": "research only, not for commercial use",
    "Apple-AMLR": "research only, not for commercial use",
    "Apple-ASCL": "Apple's sample code licence: its own terms",
    "DINOv3": "Meta's DINOv3 licence: its own terms",
    "not stated": "the authors state no licence",
}


@dataclass(frozen=True)
class Weights:
    """One set of published weights of one architecture.

    Args:
        name: name of the architecture, as `zoo.list_models` prints it.
        tag: tag of the weights; `name.tag` loads them.
        repository: on huggingface.co.
        files: names in the repository, in order of preference.
        licence: licence of the weights; RESTRICTED lists those that restrict their use.
        preprocess: how images are prepared.
        test: preprocessing for the published score, where it differs from `preprocess`; else None.
        classes: K of a classifier; 0 for a trunk without one, None for a pair.
        embedding: whether a classifier's outputs are the image embedding of a pair instead of class scores.
        head_norm: whether a trunk without classifier has the norm after the pooling.
        activation: activation of a pair's transformers.
        score: top-1 accuracy on ImageNet-1k in percent, zero-shot for a pair; None if unknown.
        revision: commit of the repository; None for its newest.
        sha256: digest of the first of `files`, if a public source documents it; else None: the digest is recorded at
            the first download and verified from then on.
    """

    name: str
    tag: str
    repository: str
    files: tuple[str, ...]
    licence: str
    preprocess: PreprocessSpec
    test: PreprocessSpec | None = None
    classes: int | None = None
    embedding: bool = False
    head_norm: bool = True
    activation: str | None = None
    score: float | None = None
    revision: str | None = None
    sha256: str | None = None

    @property
    def full_name(self) -> str:
        """`name.tag`."""
        return f"{self.name}.{self.tag}"


def restriction(licence: str | None) -> str | None:
    """How a licence restricts the use of weights, or None."""
    return RESTRICTED.get(licence or "")


def spelled_licence(text: object) -> str | None:
    """A licence in this table's spelling ("apache-2.0" → "Apache-2.0"); an unknown one is returned unchanged."""
    if not isinstance(text, str) or not text:
        return None
    return next((known for known in (*_FREE, *RESTRICTED) if text.lower().startswith(known.lower())), text)


@functools.cache
def all_weights() -> dict[str, dict[str, Weights]]:
    """{name of an architecture: {tag: `Weights`}}."""
    from zoo.weights.published import classifiers, pairs

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
