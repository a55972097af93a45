"""A zero-shot classifier as a matrix: made of prompts, saved, loaded, averaged with others.

Paper: arXiv:2103.00020, sections 3.1 and 3.1.4.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from clip import prompts_for
from zoo.evaluation.metrics import softmax
from zoo.inference.encoding import Encoder, unit
from zoo.weights import read_checkpoint, write_safetensors

FORMAT = "convnext-clip-zoo classifier"


@dataclass(frozen=True)
class Classifier:
    """What turns image embeddings into class scores.

    Args:
        matrix: float32 (D, K), unit columns.
        class_names: K names.
        scale, bias: cosines to logits.
        model: fingerprint of the `ClipPipeline` that made it, whose images alone it classifies; None where unknown.
    """

    matrix: np.ndarray
    class_names: tuple[str, ...]
    scale: float = 1.0
    bias: float = 0.0
    model: str | None = None

    def __post_init__(self):
        if self.matrix.ndim != 2 or self.matrix.shape[1] != len(self.class_names):
            raise ValueError(
                f"matrix is {self.matrix.shape}; it must be (D, {len(self.class_names)}), a column a class"
            )

    def logits(self, images: np.ndarray) -> np.ndarray:
        """float32 (N, D), unit rows → float32 (N, K)."""
        return self.scale * (images @ self.matrix) + self.bias

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """float32 (N, D), unit rows → float64 (N, K), rows that sum to 1."""
        return softmax(self.logits(images))

    def save(self, path: str | Path) -> None:
        """Writes a `.safetensors` file, whole or not at all."""
        facts = {name: getattr(self, name) for name in ("class_names", "scale", "bias", "model")}
        write_safetensors(Path(path), {"matrix": self.matrix}, {"format": FORMAT, "classifier": json.dumps(facts)})

    @classmethod
    def load(cls, path: str | Path, *, model: str | None = None) -> "Classifier":
        """What `save` wrote.

        Args:
            model: fingerprint of what embeds the images; None, here or in the file, fits any.

        Raises:
            ValueError: another file, a damaged one, or a classifier made with another pair.
        """
        checkpoint = read_checkpoint(path)
        if checkpoint.metadata.get("format") != FORMAT or set(checkpoint.tensors) != {"matrix"}:
            raise ValueError(f"{path} is not a saved classifier")
        try:
            facts = json.loads(checkpoint.metadata["classifier"])
            names = tuple(str(name) for name in facts["class_names"])
            scale, bias, made = float(facts["scale"]), float(facts["bias"]), facts.get("model")
            classifier = cls(checkpoint.tensors["matrix"], names, scale, bias, made and str(made))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is a damaged classifier: {error}") from error
        if None not in (model, classifier.model) and model != classifier.model:
            raise ValueError(
                f"{path} was made with another pair ({classifier.model[:16]}…) than the images' ({model[:16]}…)"
            )
        return classifier


def create_classifier(
    encoder: Encoder,
    class_names: Sequence[str] | Mapping[str, Sequence[str]],
    templates: Sequence[str] = ("a photo of a {}.",),
) -> Classifier:
    """One column a class: each prompt normalised, averaged over the class's prompts, normalised.

    Args:
        class_names: K names, which go into each template; or {name: prompts of its own}, without templates.
        templates: each with one "{}".
    """
    own = isinstance(class_names, Mapping)
    prompts = [list(texts) for texts in class_names.values()] if own else prompts_for(class_names, templates)
    if not prompts or not all(prompts):
        raise ValueError("each class needs at least one prompt")
    distinct = list(dict.fromkeys(prompt for row in prompts for prompt in row))
    vectors = dict(zip(distinct, encoder.embed_texts(distinct), strict=True))
    matrix = unit(np.stack([np.mean([vectors[prompt] for prompt in row], axis=0) for row in prompts])).T
    model = getattr(encoder, "fingerprint", None)  # a pipeline's; an `Encoder` has none
    return Classifier(np.ascontiguousarray(matrix), tuple(class_names), encoder.scale, encoder.bias, model)


def average(classifiers: Sequence[Classifier], weights: Sequence[float] | None = None) -> Classifier:
    """The normalised mean of matrices of the same classes, as of several template sets or checkpoints of one model.

    Args:
        weights: of the mean; equal unless given.
    """
    if len({(c.class_names, c.matrix.shape) for c in classifiers}) != 1:
        raise ValueError("the classifiers have different classes or sizes; only those of the same can be averaged")
    mean = np.average([c.matrix for c in classifiers], axis=0, weights=weights)
    first = classifiers[0]
    model = first.model if len({c.model for c in classifiers}) == 1 else None
    return replace(first, matrix=np.ascontiguousarray(unit(mean.T).T), model=model)
