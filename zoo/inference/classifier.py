"""A zero-shot classifier as a matrix: created from prompts, saved, loaded, averaged.

Paper: arXiv:2103.00020, sections 3.1 and 3.1.4.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from clip import Field, check_classes, class_matrix
from zoo.utils.arrays import ACTIVATIONS, unit_rows
from zoo.utils.strict_json import list_of, parse_json, text
from zoo.utils.text import shown
from zoo.weights import read_checkpoint, write_safetensors

FORMAT = "convnext-clip-zoo classifier"
FACTS = {
    "class_names": list_of(text()),
    "scale": Field.number(),
    "bias": Field.number(),
    "model": text(1000).or_null(),
    "activation": Field.one_of(*ACTIVATIONS),
}


@dataclass(frozen=True)
class Classifier:
    """A matrix from image embeddings to class scores.

    Args:
        matrix: float32 (D, K), unit columns.
        class_names: K names.
        scale, bias: from cosines to logits.
        model: fingerprint of the `ClipPipeline` whose image embeddings it classifies; None if unknown.
        activation: from logits to probabilities; "softmax", which sum to 1, or "sigmoid", one for each class alone.
    """

    matrix: np.ndarray
    class_names: tuple[str, ...]
    scale: float = 1.0
    bias: float = 0.0
    model: str | None = None
    activation: str = "softmax"

    def __post_init__(self):
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation={self.activation!r}; allowed are {', '.join(ACTIVATIONS)}")
        if self.matrix.ndim != 2 or self.matrix.shape[1] != len(self.class_names):
            raise ValueError(
                f"matrix has shape {self.matrix.shape}; it must be (D, {len(self.class_names)}), one column per class"
            )
        if not (np.isfinite(self.matrix).all() and np.isfinite([self.scale, self.bias]).all()):
            raise ValueError(f"the matrix, scale={self.scale!r} or bias={self.bias!r} holds NaN or infinity")

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Return logits float32 (N, K) of image embeddings float32 (N, D), unit rows."""
        return self.scale * (images @ self.matrix) + self.bias

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Return probabilities float64 (N, K) of image embeddings float32 (N, D), unit rows."""
        return ACTIVATIONS[self.activation](self.logits(images))

    def save(self, path: str | Path) -> None:
        """Write a `.safetensors` file atomically."""
        facts = {name: getattr(self, name) for name in ("class_names", "scale", "bias", "model", "activation")}
        write_safetensors(Path(path), {"matrix": self.matrix}, {"format": FORMAT, "classifier": json.dumps(facts)})

    @classmethod
    def load(cls, path: str | Path, *, model: str | None = None) -> "Classifier":
        """Return a saved classifier.

        Args:
            model: fingerprint of the pipeline that embeds the images; None, here or in the file, skips the check.

        Raises:
            ValueError: another kind of file, a damaged one, or a classifier of another model.
        """
        checkpoint = read_checkpoint(path)
        if checkpoint.metadata.get("format") != FORMAT or set(checkpoint.tensors) != {"matrix"}:
            raise ValueError(f"{shown(path)} is not a saved classifier")
        matrix = checkpoint.tensors["matrix"]
        try:
            stored = checkpoint.metadata.get("classifier", "")
            facts = parse_json(stored, "classifier", FACTS, optional=("model", "activation"), others=True)
            activation = facts.get("activation", "softmax")  # earlier files do not say
            names = tuple(facts["class_names"])
            classifier = cls(matrix, names, float(facts["scale"]), float(facts["bias"]), facts.get("model"), activation)
        except ValueError as error:
            raise ValueError(f"{shown(path)} is a damaged classifier: {shown(error)}") from error
        if model is not None and classifier.model is not None and model != classifier.model:
            raise ValueError(
                f"{shown(path)} was made with another model ({shown(classifier.model, 17)}) than the images "
                f"({model[:16]}…)"
            )
        return classifier


def create_classifier(
    encoder,
    class_names: Sequence[str] | Mapping[str, Sequence[str]],
    templates: Sequence[str] = ("a photo of a {}.",),
    *,
    activation: str = "auto",
) -> Classifier:
    """Return a `Classifier` with one column per class: the normalised mean of its prompts' embeddings.

    Args:
        encoder: an `Encoder` or a `ClipPipeline`.
        class_names: K names, which fill each template; or {name: its prompts}, without templates.
        templates: strings with one "{}" each.
        activation: "softmax" or "sigmoid"; "auto" is the encoder's: "sigmoid" if the pair has a bias.

    Raises:
        ValueError: classes or templates that `clip.class_matrix` refuses, or an unknown activation.
    """
    names, templates = check_classes(class_names, templates)
    if activation == "auto":
        activation = getattr(encoder, "activation", "softmax")
    elif activation not in ACTIVATIONS:
        raise ValueError(f"activation={activation!r}; allowed are auto, {', '.join(ACTIVATIONS)}")
    matrix = class_matrix(encoder.embed_texts, names, templates)
    fingerprint = getattr(encoder, "fingerprint", None)  # an `Encoder` has none
    return Classifier(matrix, tuple(names), encoder.scale, encoder.bias, fingerprint, activation)


def average(classifiers: Sequence[Classifier], weights: Sequence[float] | None = None) -> Classifier:
    """Return the normalised mean of classifiers of the same classes, such as those of several template sets.

    Args:
        weights: one per classifier; equal if None.

    Raises:
        ValueError: the classifiers differ in their classes, in D or in their activation.
    """
    if len({(c.class_names, c.matrix.shape, c.activation) for c in classifiers}) != 1:
        raise ValueError(
            "the classifiers have different classes, sizes or activations; only those of the same can be averaged"
        )
    mean = np.average([c.matrix for c in classifiers], axis=0, weights=weights)
    first = classifiers[0]
    model = first.model if len({c.model for c in classifiers}) == 1 else None
    return replace(first, matrix=np.ascontiguousarray(unit_rows(mean.T).T), model=model)
