"""What a row of the table of published weights says."""

from dataclasses import dataclass

from zoo.data.preprocess import PreprocessSpec

TIMM_FILES = ("model.safetensors", "pytorch_model.bin")
OPEN_CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")

FREE = ("MIT", "Apache-2.0", "BSD-3-Clause")
# Licences of weights that are not free for every use, with what to know of them.
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
        name: of the architecture, as `zoo.list_models` prints it.
        tag: of the weights; `name.tag` loads them.
        repository: on huggingface.co.
        files: looked for in the repository, in this order.
        licence: of the weights; RESTRICTED says which are not free for every use.
        preprocess: how pictures were made ready when they were trained, and by default are.
        test: how the authors made them ready for their best figure; None where that is `preprocess`.
        classes: K of a classifier; 0 for a trunk without one, None for a pair.
        embedding: whether a classifier's outputs are a pair's image embedding, no scores of classes.
        head_norm: whether the file holds the norm after a trunk's pooling.
        activation: of a pair's transformers, "gelu" (exact) or "quick_gelu"; None for a classifier.
        score: published top-1 accuracy on ImageNet-1k in percent, zero-shot for a pair; None where none is at hand.
        revision: commit of the repository; None for its newest.
        sha256: of the first of `files`, where a public source documents it; None for "unpinned": the digest is written
            down at the first download and holds from then on.
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
    """What to know of a licence that does not allow every use, or None."""
    return RESTRICTED.get(licence)


def spelled_licence(said: str | None) -> str | None:
    """A licence as this table spells it ("apache-2.0" → "Apache-2.0"); one it does not know stays as it is."""
    if not isinstance(said, str) or not said:
        return None
    return next((known for known in (*FREE, *RESTRICTED) if said.lower().startswith(known.lower())), said)
