"""The demo's last step: the reader of digits as ONNX files, side by side."""

import statistics
import time
from pathlib import Path

import numpy as np

from zoo.data.digits import Digits
from zoo.demo.data import PREPROCESS
from zoo.demo.reading import Readings
from zoo.export import OnnxModel, export_onnx

PRECISIONS = ("float32", "float16", "int8")
ROUNDS = 20  # timed predictions of one picture


def export_reader(classifier, folder: Path, readings: Readings, digits: Digits) -> list[dict]:
    """Writes digits-PRECISION.onnx from the zero-shot classifier; for each file how it reads the held-out pictures.

    float32 is checked against Keras; what the other two cost is told by the digits themselves.

    Returns:
        [{"precision", "bytes", "accuracy", "agreement": share of pictures read as Keras reads them, "milliseconds":
        median for one picture}, …].
    """
    transform = PREPROCESS.eval_transform()
    pictures = np.stack([transform(picture) for picture in digits.pictures])
    rows = []
    for precision in PRECISIONS:
        path = folder / f"digits-{precision}.onnx"
        written = export_onnx(classifier, path, precision=precision, verify=precision == PRECISIONS[0])
        model = OnnxModel(path)
        guesses = model.predict(pictures).argmax(axis=1)
        rows.append(
            {
                "precision": precision,
                "bytes": written.bytes,
                "accuracy": float((guesses == digits.labels).mean()),
                "agreement": float((guesses == readings.predictions).mean()),
                "milliseconds": time_one(model, pictures[:1]),
            }
        )
    return rows


def time_one(model: OnnxModel, picture: np.ndarray) -> float:
    """Median milliseconds of a prediction."""
    seconds = []
    for _ in range(1 + ROUNDS):
        start = time.perf_counter()
        model.predict(picture)
        seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds[1:])
