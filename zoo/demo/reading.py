"""What a trained pair makes of held-out pictures and sentences, in numbers."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np

from clip import class_matrix
from zoo.data.digits import HELD_OUT_IMAGES, Digits
from zoo.demo.data import HELD_OUT_TEMPLATES, NUMERALS, PREPROCESS, WORDS, short_tokens
from zoo.evaluation.metrics import calibration, confusion, softmax, temperature_sweep
from zoo.utils.arrays import unit_rows

READING_BATCH_SIZE = HELD_OUT_IMAGES // 3  # so that all batches have one shape, which JAX compiles once
FACTORS = np.geomspace(1, 1000, 61)  # of the temperature plots


@dataclass(frozen=True)
class Readings:
    """What a pair makes of N pictures, and of P held-out prompts.

    Args:
        images: float32 (N, D), normalised.
        texts: float32 (2, T, 10, D), normalised: numerals and words, templates, digits.
        cosines: float32 (N, 10), with each digit's column of the class matrix of the words.
        labels: int32 (N,), the digits they are.
        factor: exp(logit_scale), from cosines to logits.
    """

    images: np.ndarray
    texts: np.ndarray
    cosines: np.ndarray
    labels: np.ndarray
    factor: float

    @property
    def probabilities(self) -> np.ndarray:
        return softmax(self.factor * self.cosines)

    @property
    def predictions(self) -> np.ndarray:
        return self.cosines.argmax(axis=1)


def read_digits(model, digits: Digits, transform: Callable | None = None) -> Readings:
    """Embeds pictures, and compares them with the words of the digits in all the held-out templates together.

    Args:
        model: `clip.CLIP`.
        digits: N pictures and labels.
        transform: from a picture to the tower's input; PREPROCESS's unless given.
    """
    transform = transform or PREPROCESS.eval_transform()
    pictures = np.stack([transform(picture) for picture in digits.pictures])
    images = unit_rows(model.image_encoder.predict(pictures, batch_size=READING_BATCH_SIZE, verbose=0))
    prompts = [t.format(name) for names in (NUMERALS, WORDS) for t in HELD_OUT_TEMPLATES for name in names]
    texts = unit_rows(model.text_encoder.predict(short_tokens(prompts), batch_size=len(prompts), verbose=0))
    matrix = class_matrix(model, WORDS, HELD_OUT_TEMPLATES, tokenizer=short_tokens)
    return Readings(
        images=images,
        texts=texts.reshape(2, len(HELD_OUT_TEMPLATES), len(WORDS), -1),
        cosines=images @ matrix,
        labels=digits.labels,
        factor=float(np.exp(keras.ops.convert_to_numpy(model.logit_scale.logit_scale))),
    )


def measure(readings: Readings) -> dict:
    """The figures of metrics.json that say how well the pair reads."""
    labels, factor = readings.labels, readings.factor
    alone = np.einsum("nd,stkd->stnk", readings.images, readings.texts)  # each template, each spelling
    right = (alone.argmax(axis=-1) == labels).mean(axis=-1)
    found = text_to_image_ranks(readings)
    sweep = temperature_sweep(readings.cosines, labels, factors=FACTORS)
    return {
        "zero_shot_accuracy": float((readings.predictions == labels).mean()),
        "held_out_images": len(labels),
        "accuracy_per_template": {
            template: {"numerals": float(right[0, i]), "words": float(right[1, i])}
            for i, template in enumerate(HELD_OUT_TEMPLATES)
        },
        "confusion": confusion(labels, readings.predictions).tolist(),
        "retrieval": {
            "text_to_image_recall_at_1": float(found[:, 0].mean()),
            "text_to_image_precision_at_10": float(found[:, :10].mean()),
            "texts": len(found),
        },
        "logit_scale": math.log(factor),
        "temperature": 1 / factor,
        "calibration": {
            "learned": calibration(factor * readings.cosines, labels),
            "lowest_loss_factor": float(FACTORS[int(np.argmin(sweep["loss"]))]),
            "sweep": {"factor": FACTORS.tolist(), **sweep},
        },
    }


def text_to_image_ranks(readings: Readings) -> np.ndarray:
    """For each of P held-out prompts, whether each picture shows its digit, best match first: bool (P, N)."""
    texts = readings.texts.reshape(-1, readings.texts.shape[-1])
    asked = np.tile(np.arange(len(WORDS)), len(texts) // len(WORDS))
    order = np.argsort(-texts @ readings.images.T, axis=1, kind="stable")
    return readings.labels[order] == asked[:, None]
