"""Validation while training: `held_out_batches` for every mode, `PairValidation` for pairs."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from clip import CLIP, class_matrix
from zoo.data import Batches, Dataset, TooManyBadSamples
from zoo.data.preprocess import PreprocessSpec
from zoo.evaluation.metrics import top_k_accuracy
from zoo.evaluation.retrieval import retrieval_metrics
from zoo.inference.encoder import Encoder, keras_encoder


def held_out_batches(dataset: Dataset, spec: PreprocessSpec, *, batch_size: int, **options: Any) -> Batches:
    """Return batches of all records in order; bad records are left out, and the last batch may be smaller.

    Args:
        dataset, spec, batch_size, options: as in `Batches`.

    Raises:
        ValueError: none of the first records can be used, or too many are bad. It is raised before training.
    """
    whole = {"shuffle": False, "drop_last": False, "replace_bad": False, "max_bad_fraction": 1.0}
    batches = Batches(dataset, spec, batch_size=batch_size, **{**whole, **options})
    if not len(batches[0]["images"]):
        first, *others = batches.indices(0, 0)
        names = f"first {1 + len(others)} records none can be used, beginning with {dataset.names[first]!r}"
        raise ValueError(f"of the validation data's {names}: {batches.bad.reasons[int(first)]}")
    return batches


class PairValidation:
    """A function from a pair to metrics: retrieval in both directions, and `zero_shot_accuracy` if there are labels.

    Retrieval is measured as `zoo eval retrieval` measures it: all captions of an image are correct for it.

    Args:
        dataset: N records with captions for retrieval, or labels for zero-shot classification. Bad ones are left out.
        spec: image preprocessing.
        tokenize: list of N texts → int32 (N, L).
        batch_size: records per batch.
        class_names: K names of the labels; None for no zero-shot accuracy.
        templates: prompt templates.
        options: options of `held_out_batches`.
    """

    def __init__(
        self,
        dataset: Dataset,
        spec: PreprocessSpec,
        tokenize: Callable[[list[str]], np.ndarray],
        *,
        batch_size: int,
        class_names: Sequence[str] | None = None,
        templates: Sequence[str] = ("a photo of a {}.",),
        **options: Any,
    ):
        if not dataset.captions and (class_names is None or dataset.labels is None):
            raise ValueError("validation data needs captions, or labels with class names")
        captioned = tokenize if dataset.captions else None
        self.batches = held_out_batches(dataset, spec, batch_size=batch_size, tokenize=captioned, **options)
        self.tokenize, self.class_names, self.templates = tokenize, class_names, templates
        self.encoder: Encoder | None = None

    def __call__(self, model: CLIP) -> dict[str, float]:
        encoder = self._encoder(model)
        try:
            return self._evaluate(encoder)
        except TooManyBadSamples:
            raise
        except ValueError as error:  # an embedding that is zero or not finite must not end the run
            warnings.warn(f"this validation is left out: {error}", stacklevel=2)
            return {}

    def _encoder(self, model: CLIP) -> Encoder:
        """Return a new encoder, except on JAX, where it would be compiled again.

        On torch and TensorFlow an encoder chooses kernels by how often it has met a shape, and so the metrics of a
        resumed run would depend on the validations before it.
        """
        if self.encoder is None or keras.backend.backend() != "jax":
            batch_size = self.batches.batch_size
            self.encoder = keras_encoder(model, self.batches.spec, tokenizer=self.tokenize, batch_size=batch_size)
        return self.encoder

    def _evaluate(self, encoder: Encoder) -> dict[str, float]:
        vectors, tokens, labels, owners = [], [], [], []
        place_of: dict[str, int] = {}  # of each image among those embedded: one with several captions is embedded once
        names = self.batches.dataset.names
        captioned, labelled = self.batches.tokenize is not None, self.batches.dataset.labels is not None
        for step in range(self.batches.steps):
            batch, rows = self.batches.batch_and_indices(0, step)
            fresh = []
            for place, row in enumerate(rows):
                if names[row] not in place_of:
                    place_of[names[row]] = len(place_of)
                    fresh.append(place)
                owners.append(place_of[names[row]])
            if len(rows):  # else all of its records are bad
                vectors += [encoder.embed_batches([batch["images"][fresh]])] if fresh else []
                tokens += [batch["tokens"]] if captioned else []
                labels += [batch["label"]] if labelled else []
        images, of_row = np.concatenate(vectors), np.array(owners)
        metrics: dict[str, float] = {}
        if captioned:
            found = retrieval_metrics(images, encoder.embed_tokens(np.concatenate(tokens)), of_row)
            for way in ("image_to_text", "text_to_image"):
                metrics |= {f"{way}_{key}": value for key, value in found[way].items() if key != "queries"}
        if self.class_names is not None and labelled:
            matrix = class_matrix(encoder.embed_texts, self.class_names, self.templates)
            metrics["zero_shot_accuracy"] = top_k_accuracy(images[of_row] @ matrix, np.concatenate(labels))
        return metrics
