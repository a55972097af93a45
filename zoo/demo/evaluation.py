"""The demo's evaluation: zero-shot predictions on held-out images, metrics, and the ONNX exports."""

import math
import statistics
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from zoo.bench.timing import timed
from zoo.data.digits import Digits
from zoo.data.preprocess import batch
from zoo.demo.training import HELD_OUT_TEMPLATES, NUMERALS, PREPROCESS, WORDS
from zoo.evaluation.metrics import calibration, confusion, temperature_sweep
from zoo.export import OnnxModel, export_onnx
from zoo.inference.pipeline import ClipPipeline
from zoo.utils.arrays import softmax

SCALES = np.geomspace(1, 1000, 61)  # of the temperature plots
PRECISIONS = ("float32", "float16", "int8")
TIMED_RUNS = 20


@dataclass(frozen=True)
class Predictions:
    """The embeddings and zero-shot predictions of N images.

    Args:
        images: float32 (N, D), unit rows.
        texts: float32 (2, T, 10, D), unit rows: the held-out prompts by spelling (numerals, words), template, digit.
        cosines: float32 (N, 10), with the class matrix of the digits' words.
        labels: int32 (N,), the true digits.
        scale: exp(logit_scale), from cosines to logits.
    """

    images: np.ndarray
    texts: np.ndarray
    cosines: np.ndarray
    labels: np.ndarray
    scale: float

    @property
    def probabilities(self) -> np.ndarray:
        """float64 (N, 10)."""
        return softmax(self.scale * self.cosines)

    @property
    def classes(self) -> np.ndarray:
        """Predicted digits, int (N,)."""
        return self.cosines.argmax(axis=1)


def predict(pipeline: ClipPipeline, digits: Digits) -> Predictions:
    """Embed images and the held-out prompts, and classify the images with the prompts' ensemble."""
    images = pipeline.embed_images(list(digits.images))
    prompts = [t.format(name) for names in (NUMERALS, WORDS) for t in HELD_OUT_TEMPLATES for name in names]
    texts = pipeline.embed_texts(prompts)
    classifier = pipeline.classifier(WORDS, HELD_OUT_TEMPLATES)
    return Predictions(
        images=images,
        texts=texts.reshape(2, len(HELD_OUT_TEMPLATES), len(WORDS), -1),
        cosines=images @ classifier.matrix,
        labels=digits.labels,
        scale=pipeline.scale,
    )


def measure(predictions: Predictions) -> dict:
    """Return the metrics of a set of predictions, as metrics.json has them."""
    labels, scale = predictions.labels, predictions.scale
    single = np.einsum("nd,stkd->stnk", predictions.images, predictions.texts)  # each template and spelling alone
    correct = (single.argmax(axis=-1) == labels).mean(axis=-1)
    found = _rank_images(predictions)
    sweep = temperature_sweep(predictions.cosines, labels, factors=SCALES)
    return {
        "zero_shot_accuracy": float((predictions.classes == labels).mean()),
        "held_out_images": len(labels),
        "accuracy_per_template": {
            template: {"numerals": float(correct[0, i]), "words": float(correct[1, i])}
            for i, template in enumerate(HELD_OUT_TEMPLATES)
        },
        "confusion": confusion(labels, predictions.classes).tolist(),
        "retrieval": {
            "text_to_image_recall_at_1": float(found[:, 0].mean()),
            "text_to_image_precision_at_10": float(found[:, :10].mean()),
            "texts": len(found),
        },
        "logit_scale": math.log(scale),
        "temperature": 1 / scale,
        "calibration": {
            "learned": calibration(scale * predictions.cosines, labels),
            "lowest_loss_factor": float(SCALES[int(np.argmin(sweep["loss"]))]),
            "sweep": {"factor": SCALES.tolist(), **sweep},
        },
    }


def _rank_images(predictions: Predictions) -> np.ndarray:
    """Rank all images for each of P prompts, best match first: bool (P, N), whether the image shows its digit."""
    texts = predictions.texts.reshape(-1, predictions.texts.shape[-1])
    digits = np.tile(np.arange(len(WORDS)), len(texts) // len(WORDS))
    order = np.argsort(-texts @ predictions.images.T, axis=1, kind="stable")
    return predictions.labels[order] == digits[:, None]


def export_classifier(classifier: keras.Model, folder: Path, predictions: Predictions, digits: Digits) -> list[dict]:
    """Export the zero-shot classifier as digits-PRECISION.onnx and evaluate each file on the held-out images.

    The float32 file is verified against Keras; the other two are judged by their accuracy.

    Returns:
        [{"precision", "bytes", "accuracy", "agreement": share of images classified as in Keras, "milliseconds":
        median for one image}, …].
    """
    images = batch(digits.images, PREPROCESS)
    rows = []
    for precision in PRECISIONS:
        path = folder / f"digits-{precision}.onnx"
        exported = export_onnx(classifier, path, precision=precision, verify=precision == PRECISIONS[0])
        model = OnnxModel(path, seconds=None)
        classes = model.predict(images).argmax(axis=1)
        rows.append(
            {
                "precision": precision,
                "bytes": exported.bytes,
                "accuracy": float((classes == digits.labels).mean()),
                "agreement": float((classes == predictions.classes).mean()),
                "milliseconds": _median_latency(model, images[:1]),
            }
        )
    return rows


def _median_latency(model: OnnxModel, image: np.ndarray) -> float:
    """Return the median milliseconds of a prediction, without the first."""
    _, *seconds = (timed(lambda: model.predict(image))[0] for _ in range(1 + TIMED_RUNS))
    return 1000 * statistics.median(seconds)
