"""What a pair is examined on while it trains: retrieval among held-out pairs, and zero-shot classification."""

from collections.abc import Callable, Sequence

import numpy as np

from clip import CLIP, class_matrix
from zoo.data import Dataset
from zoo.data.preprocess import PreprocessSpec
from zoo.evaluation.metrics import retrieval_ranks, summarize_ranks, top_k_accuracy
from zoo.training.held_out import held_out_batches
from zoo.utils.arrays import pad_rows


class PairValidation:
    """Called with a pair, the metrics of retrieval both ways, and `zero_shot_accuracy` where the data has classes.

    Args:
        dataset: N records; captions for retrieval, labels for zero-shot classification. Bad ones are left out.
        spec: how pictures are prepared.
        tokenize: list of N texts → int32 (N, L).
        batch_size: records at a time; all batches are filled up to it, so that JAX compiles one program.
        class_names: K names of the labels; None for no zero-shot accuracy.
        templates: of the prompts.
        sources: of `held_out_batches`.
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
        **sources,
    ):
        if not dataset.captions and (class_names is None or dataset.labels is None):
            raise ValueError("validation data needs captions, or labels with class names")
        captioned = tokenize if dataset.captions else None
        self.batches = held_out_batches(dataset, spec, batch_size=batch_size, tokenize=captioned, **sources)
        self.tokenize, self.class_names, self.templates = tokenize, class_names, templates
        self.batch_size = batch_size

    def __call__(self, model: CLIP) -> dict[str, float]:
        images, texts, labels = [], [], []
        for batch in self.batches:
            if not len(batch["images"]):
                continue  # all of its records are bad
            images.append(self._embed(model.image_encoder, batch["images"]))
            if "tokens" in batch:
                texts.append(self._embed(model.text_encoder, batch["tokens"]))
            labels.append(batch.get("label"))
        images = np.concatenate(images)
        metrics = self._retrieval(images, np.concatenate(texts)) if texts else {}
        if self.class_names is not None and labels[0] is not None:
            matrix = class_matrix(model, self.class_names, self.templates, tokenizer=self.tokenize)
            metrics["zero_shot_accuracy"] = top_k_accuracy(images @ matrix, np.concatenate(labels))
        return metrics

    def _embed(self, encoder, rows: np.ndarray) -> np.ndarray:
        """float32 (≤ B, D), normalised."""
        filled = pad_rows(rows, self.batch_size)
        features = np.asarray(encoder.predict(filled, batch_size=self.batch_size, verbose=0), np.float32)[: len(rows)]
        return features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-12)

    def _retrieval(self, images: np.ndarray, texts: np.ndarray) -> dict[str, float]:
        places = np.arange(len(images))
        metrics = {}
        for name, pair in {"image_to_text": (images, texts), "text_to_image": (texts, images)}.items():
            summary = summarize_ranks(retrieval_ranks(*pair, places, places))
            metrics |= {f"{name}_{key}": value for key, value in summary.items() if key != "queries"}
        return metrics
