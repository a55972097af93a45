"""The demo: a small ConvNeXt V2 CLIP learns handwritten digits from captions and classifies new ones zero-shot.

Data: the 1,797 digits that come with scikit-learn (E. Alpaydin and C. Kaynak, UCI machine learning repository, CC BY
4.0). Nothing is downloaded. Importing this package imports Keras.
"""

import csv
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import keras
from PIL import Image

from clip import zero_shot_classifier
from zoo.data.digits import Digits, load_split
from zoo.demo.evaluation import Predictions, export_classifier, measure, predict
from zoo.demo.page import draw_plots, write_report
from zoo.demo.training import (
    BATCH_SIZE,
    EPOCHS,
    HELD_OUT_TEMPLATES,
    PREPROCESS,
    VARIANT,
    WORDS,
    create_pair,
    short_tokens,
    train_pair,
)
from zoo.inference.pipeline import ClipPipeline
from zoo.models import registry
from zoo.search.build import build_index
from zoo.utils.env import available_cores, describe_runtime, require_packages
from zoo.utils.files import atomic_path, atomic_write, folder_write, remove_folder
from zoo.utils.report import percent


def run_demo(
    output: str | Path,
    *,
    seed: int = 0,
    epochs: int | None = None,
    train_images: int | None = None,
    serve: bool = False,
) -> dict:
    """Train a CLIP model on captioned digits, evaluate it on held-out images and prompts, and write a report.

    Writes report.html with its PNGs, metrics.json, predictions.csv, model.safetensors, zero_shot_classifier.keras and
    the same classifier as digits-float32.onnx, digits-float16.onnx and digits-int8.onnx; and the held-out images in
    digits/ with their index, digits.index, to search.

    Args:
        output: folder, created if missing; its other files are kept.
        seed: seed of the weights, captions and augmentation; the data split does not depend on it.
        epochs: training epochs, 10 if None.
        train_images: number of training images, at least 64; all 1,437 if None.
        serve: serve the model with the index at the end, until the process is stopped.

    Returns:
        The contents of metrics.json.

    Raises:
        ValueError: an argument is out of range, or the folder cannot be written.
        ImportError: a package of the extras `onnx`, `report` or `serve` is missing. Both are raised before training.
    """
    epochs = EPOCHS if epochs is None else epochs
    check_arguments(seed, epochs, train_images)
    require_packages("The demo", ("sklearn", "matplotlib", "onnx", "onnxruntime"), extras="onnx,report")
    if serve:
        from zoo.serve import serve as serve_model
    folder = _prepare_folder(output)
    log = _stopwatch()

    train, held_out = load_split(train_images)
    log(f"Data: {len(train):,} training images and {len(held_out)} held-out images of handwritten digits.")
    keras.utils.set_random_seed(seed)
    model = create_pair()
    log(f"Model: {VARIANT}, {model.count_params():,} parameters, on {keras.backend.backend()}.")

    log(f"Training for {epochs} epochs on {available_cores()} cores.")
    history, train_seconds = train_pair(model, train, held_out, seed=seed, epochs=epochs)
    log(f"Trained in {train_seconds:.0f} s. Classifying the held-out images with prompts not used in training.")
    predictions = predict(ClipPipeline(model, preprocess=PREPROCESS), held_out)

    classifier = _save_model(model, folder)
    pipeline = ClipPipeline(folder / "model.safetensors")
    reloaded = predict(pipeline, held_out)
    equal = int((reloaded.classes == predictions.classes).sum())
    log(f"Saved model.safetensors; after reloading, {equal} of {len(held_out)} predictions are the same.")
    index = _save_index(folder, pipeline, held_out)
    log(f"Indexed the {index['vectors']} held-out images.")
    onnx_files = export_classifier(classifier, folder, predictions, held_out)
    log(f"Exported the zero-shot classifier to ONNX: {', '.join(file['precision'] for file in onnx_files)}.")

    metrics = {
        **measure(predictions),
        "reloaded_predictions_equal": equal / len(held_out),
        "seed": seed,
        "epochs": epochs,
        "batch_size": BATCH_SIZE,
        "train_images": len(train),
        "model": VARIANT,
        "parameters": model.count_params(),
        **describe_runtime(),
        "train_seconds": round(train_seconds, 1),
        "onnx": onnx_files,
        "history": history,
    }
    _write_predictions(folder / "predictions.csv", predictions, held_out)
    with atomic_write(folder / "metrics.json", "w") as file:
        json.dump(metrics, file, indent=1, ensure_ascii=False)
    draw_plots(folder, metrics, predictions, train, held_out, seed=seed)
    write_report(folder / "report.html", metrics)
    log("Wrote the report.")
    print(summary(folder, metrics))
    if serve:
        serve_model(str(folder / "model.safetensors"), index=str(folder / "digits.index"))
    return metrics


def check_arguments(seed: int, epochs: int, train_images: int | None) -> None:
    """Raise ValueError for an argument that is not an integer or too small."""
    least = {"seed": 0, "epochs": 1, "train_images": BATCH_SIZE}
    for name, value in (("seed", seed), ("epochs", epochs), ("train_images", train_images)):
        if value is None and name == "train_images":
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < least[name]:
            raise ValueError(f"{name} must be an integer of at least {least[name]}, got {value!r}.")


def _prepare_folder(output: str | Path) -> Path:
    """Create the folder if needed and check that files can be written to it; ValueError otherwise."""
    folder = Path(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(f"output={str(output)!r} is not a writable folder: {error}") from error
    return folder


def _stopwatch() -> Callable[[str], None]:
    """Return a function that prints a line with the seconds since this call in front."""
    start = time.perf_counter()
    return lambda text: print(f"[{time.perf_counter() - start:5.1f} s] {text}", flush=True)


def _save_model(model: keras.Model, folder: Path) -> keras.Model:
    """Save the pair as model.safetensors and its zero-shot classifier as .keras; return the classifier."""
    registry.save(model, folder / "model.safetensors", preprocess=PREPROCESS)
    classifier = zero_shot_classifier(model, WORDS, HELD_OUT_TEMPLATES, tokenizer=short_tokens)
    with atomic_path(folder / "zero_shot_classifier.keras") as path:
        classifier.save(path)
    return classifier


def _save_index(folder: Path, pipeline: ClipPipeline, digits: Digits) -> dict:
    """Write digits/, images with a table of what they show, and their index digits.index; return `Index.info`."""
    images, index = folder / "digits", folder / "digits.index"
    for old in (images, index):
        if old.exists():
            remove_folder(old)
    with folder_write(images) as new, open(new / "digits.csv", "w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(["filepath", "digit"])
        for number, pixels, label in zip(digits.indices, digits.images, digits.labels, strict=True):
            Image.fromarray(pixels).save(new / f"{number}.png")
            lines.writerow([f"{number}.png", WORDS[label]])
    model = str(folder / "model.safetensors")
    return build_index(str(images / "digits.csv"), model=model, output=str(index), pipeline=pipeline)


def _write_predictions(path: Path, predictions: Predictions, digits: Digits) -> None:
    """Write a CSV row per held-out image: its index in scikit-learn's data, its class, and what was predicted."""
    with atomic_write(path, "w") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(["image", "digit", "read_as", "correct", "probability", *(f"p_{name}" for name in WORDS)])
        rows = zip(digits.indices, digits.labels, predictions.classes, predictions.probabilities, strict=True)
        for index, label, predicted, probabilities in rows:
            cells = [f"{p:.6f}" for p in probabilities]
            lines.writerow([index, label, predicted, int(label == predicted), cells[predicted], *cells])


def summary(folder: Path, metrics: dict) -> str:
    """Return the last lines for the terminal: the main results, the files to look at, the command for the page."""
    retrieval, learned = metrics["retrieval"], metrics["calibration"]["learned"]
    command = sys.argv[0] if Path(sys.argv[0]).name == "zoo" else "zoo"
    rows = {
        "zero-shot accuracy": f"{percent(metrics['zero_shot_accuracy'])} of {metrics['held_out_images']} images",
        "text-to-image search": f"the best match is correct for {percent(retrieval['text_to_image_recall_at_1'])} of "
        f"{retrieval['texts']} prompts",
        "calibration": f"temperature {metrics['temperature']:.3f}, expected error {percent(learned['error'])}",
        "training": f"{metrics['train_seconds']:.0f} s on {metrics['cores']} cores with {metrics['backend']}",
        "report": folder / "report.html",
        "model": folder / "model.safetensors",
        "page": f"{command} serve --model {folder / 'model.safetensors'} --index {folder / 'digits.index'}",
    }
    return "\n" + "\n".join(f"  {name:<22}{value}" for name, value in rows.items())
