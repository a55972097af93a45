"""The demo: a ConvNeXt-V2 CLIP learns handwritten digits from captions, then reads others from sentences it never saw.

Data: the 1,797 digits that come with scikit-learn (E. Alpaydin and C. Kaynak, UCI machine learning repository, CC BY
4.0). Nothing is downloaded. Importing this package imports Keras.
"""

import csv
import importlib
import importlib.util
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import keras

from clip import zero_shot_classifier
from zoo.data.digits import Digits, load_split
from zoo.demo.data import BATCH_SIZE, HELD_OUT_TEMPLATES, PREPROCESS, WORDS, short_tokens
from zoo.demo.deploy import export_reader
from zoo.demo.page import draw_plots, write_report
from zoo.demo.reading import Readings, measure, read_digits
from zoo.demo.training import EPOCHS, VARIANT, create_pair, train_pair
from zoo.models import registry
from zoo.utils.env import available_cores
from zoo.utils.files import atomic_write
from zoo.utils.report import percent


def run_demo(output: str | Path, *, seed: int = 0, epochs: int | None = None, train_images: int | None = None) -> dict:
    """Trains a pair on captioned digits, examines it on held-out ones, and leaves a report.

    Writes report.html and its PNGs, metrics.json, predictions.csv, model.safetensors, zero_shot_classifier.keras, and
    the same classifier as digits-float32.onnx, digits-float16.onnx and digits-int8.onnx.

    Args:
        output: folder for them, made if it is not there. Other files in it stay as they are.
        seed: of the weights, the captions and the augmentation. The split is the same for every seed.
        epochs: of training; EPOCHS unless given.
        train_images: learn from only so many of the training pictures; from all unless given.

    Returns:
        What metrics.json holds.

    Raises:
        ValueError: an argument out of range, or a folder that cannot be written; ImportError: the report's libraries
            are not installed. Both before anything is trained.
    """
    epochs = EPOCHS if epochs is None else epochs
    check_arguments(seed, epochs, train_images)
    check_libraries()
    folder = prepare_folder(output)
    tell = stopwatch()

    train, held_out = load_split(train_images)
    tell(f"Drew {len(train)} handwritten digits to learn from and {len(held_out)} held-out ones.")
    keras.utils.set_random_seed(seed)
    model = create_pair()
    tell(f"Created {VARIANT} on {keras.backend.backend()}: {model.count_params():,} parameters.")

    tell(f"Training for {epochs} epochs on {available_cores()} cores.")
    history, train_seconds = train_pair(model, train, held_out, seed=seed, epochs=epochs)
    tell(f"Trained in {train_seconds:.0f} s. Reading the held-out digits from sentences it never saw.")
    readings = read_digits(model, held_out)

    classifier = save_model(model, folder)
    agreeing = reload_and_compare(folder / "model.safetensors", readings, held_out)
    tell(f"Saved the pair; loaded again, it reads {agreeing} of {len(held_out)} digits as before.")
    files = export_reader(classifier, folder, readings, held_out)
    tell(f"Exported the reader of digits as ONNX: {', '.join(file['precision'] for file in files)}.")

    metrics = {
        **measure(readings),
        "reloaded_predictions_equal": agreeing / len(held_out),
        **describe_run(seed=seed, epochs=epochs, train=train, model=model),
        "train_seconds": round(train_seconds, 1),
        "onnx": files,
        "history": history,
    }
    write_predictions(folder / "predictions.csv", readings, held_out)
    with atomic_write(folder / "metrics.json", "w") as file:
        json.dump(metrics, file, indent=1, ensure_ascii=False)
    draw_plots(folder, metrics, readings, train, held_out, seed=seed)
    write_report(folder / "report.html", metrics)
    tell("Wrote the report.")
    print(summary(folder, metrics))
    return metrics


def check_arguments(seed, epochs, train_images):
    """ValueError for what no run can mean."""
    least = {"seed": 0, "epochs": 1, "train_images": BATCH_SIZE}
    for name, value in (("seed", seed), ("epochs", epochs), ("train_images", train_images)):
        if value is None and name == "train_images":
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < least[name]:
            raise ValueError(f"{name} must be an integer of at least {least[name]}, got {value!r}.")


def check_libraries():
    """ImportError that names what to install."""
    needed = ("sklearn", "matplotlib", "onnx", "onnxruntime")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"The demo needs {' and '.join(missing)}. Install with: pip install 'convnext-clip-zoo[onnx,report]'"
        )


def prepare_folder(output) -> Path:
    """The folder, made if needed and tried with a small file; ValueError when it cannot be written."""
    folder = Path(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial = folder / f".zoo-demo-{os.getpid()}"
        with open(trial, "x"):
            pass
        trial.unlink()
    except OSError as error:
        raise ValueError(f"output={str(output)!r} is not a folder that can be written: {error}") from error
    return folder


def stopwatch() -> Callable[[str], None]:
    """A function that prints a line behind the seconds since this call."""
    start = time.perf_counter()
    return lambda text: print(f"[{time.perf_counter() - start:5.1f} s] {text}", flush=True)


def save_model(model, folder: Path) -> keras.Model:
    """The pair as model.safetensors; as zero_shot_classifier.keras, and returned, what reads without the text tower."""
    registry.save(model, folder / "model.safetensors", preprocess=PREPROCESS)
    classifier = zero_shot_classifier(model, WORDS, HELD_OUT_TEMPLATES, tokenizer=short_tokens)
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch) / "zero_shot_classifier.keras"  # Keras writes to a path of this suffix only
        classifier.save(whole)
        with atomic_write(folder / whole.name) as file:
            file.write(whole.read_bytes())
    return classifier


def reload_and_compare(path: Path, readings: Readings, digits: Digits) -> int:
    """How many digits the saved pair reads as the one in memory does."""
    loaded = registry.load(path)
    again = read_digits(loaded.model, digits, loaded.transform)
    return int((again.predictions == readings.predictions).sum())


def describe_run(*, seed: int, epochs: int, train: Digits, model) -> dict:
    """The figures of metrics.json that say what was run, and where."""
    backend = keras.backend.backend()
    modules = {name: importlib.import_module(name) for name in ("keras", backend, "numpy")}
    return {
        "seed": seed,
        "epochs": epochs,
        "batch_size": BATCH_SIZE,
        "train_images": len(train),
        "model": VARIANT,
        "parameters": model.count_params(),
        "backend": backend,
        "versions": {"python": platform.python_version()} | {name: m.__version__ for name, m in modules.items()},
        "cores": available_cores(),
        "machine": platform.machine(),
    }


def write_predictions(path: Path, readings: Readings, digits: Digits) -> None:
    """One line a held-out picture: its place in scikit-learn's data, what it is, what it was read as."""
    with atomic_write(path, "w") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(["image", "digit", "read_as", "correct", "probability", *(f"p_{name}" for name in WORDS)])
        rows = zip(digits.places, digits.labels, readings.predictions, readings.probabilities, strict=True)
        for place, label, guess, probabilities in rows:
            shares = [f"{p:.6f}" for p in probabilities]
            lines.writerow([place, label, guess, int(label == guess), shares[guess], *shares])


def summary(folder: Path, metrics: dict) -> str:
    """The last lines on the terminal: the main figures, and where to look."""
    retrieval, learned = metrics["retrieval"], metrics["calibration"]["learned"]
    right = f"{percent(metrics['zero_shot_accuracy'])} of {metrics['held_out_images']} held-out digits"
    found = f"{percent(retrieval['text_to_image_recall_at_1'])} of {retrieval['texts']} new sentences find a right one"
    rows = {
        "zero-shot accuracy": right,
        "text to image": found,
        "temperature": f"{metrics['temperature']:.3f}, calibration error {percent(learned['error'])}",
        "training": f"{metrics['train_seconds']:.0f} s on {metrics['cores']} cores, {metrics['backend']}",
        "report": folder / "report.html",
        "the pair": folder / "model.safetensors",
    }
    return "\n" + "\n".join(f"  {name:<20}{value}" for name, value in rows.items())
