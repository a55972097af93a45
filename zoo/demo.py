"""The demo: a ConvNeXt-V2 CLIP learns handwritten digits from captions, then reads others from sentences it never saw.

Data: the 1,797 digits that come with scikit-learn (E. Alpaydin and C. Kaynak, UCI machine learning repository, CC BY
4.0). Nothing is downloaded. Importing this file imports Keras.
"""

import csv
import importlib
import importlib.util
import json
import math
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
from PIL import Image

from clip import CLASS_NAMES, TEMPLATES, class_matrix, create_clip, tokenize, zero_shot_classifier
from zoo import registry, report
from zoo.files import atomic_write
from zoo.preprocess import PreprocessSpec, batch
from zoo.report import percent

VARIANT, IMAGE_SIZE, STEM_STRIDE = "convnext_v2_atto", 32, 2
DIGITS_MEAN, DIGITS_STD = 0.69, 0.35  # of the drawn training pictures, on the scale 0...1
PREPROCESS = PreprocessSpec(image_size=IMAGE_SIZE, mean=(DIGITS_MEAN,) * 3, std=(DIGITS_STD,) * 3)

HELD_OUT_IMAGES, SPLIT_SEED = 360, 0
NUMERALS, WORDS = CLASS_NAMES["mnist"], CLASS_NAMES["digits"]
TRAIN_TEMPLATES = (
    "{}",
    "the number {}",
    "the digit {}.",
    "a {} written by hand",
    "a handwritten {}.",
    "somebody wrote a {}.",
    "a picture of the {} on paper",
    "{}, drawn by hand",
    "this is a {}.",
    "an image of a digit: {}",
    "it says {}.",
    "a blurry {}",
)
HELD_OUT_TEMPLATES = TEMPLATES["digits"]

# Chosen on a part of the training pictures, not on the held-out ones.
EPOCHS, BATCH_SIZE = 10, 64
READING_BATCH_SIZE = HELD_OUT_IMAGES // 3  # so that all batches have one shape, which JAX compiles once
PEAK_LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.05
NO_WEIGHT_DECAY = ["bias", "gamma", "beta", "embedding", "logit_scale"]
MAX_SHIFT, MAX_DEGREES, MAX_SHEAR, MAX_STRETCH = 2.0, 10.0, 0.1, 0.1

FACTORS = np.geomspace(1, 1000, 61)  # of the temperature plots
SHOWN_TEMPLATE = 2  # of HELD_OUT_TEMPLATES, in the similarity matrix


def run_demo(output: str | Path, *, seed: int = 0, epochs: int | None = None, train_images: int | None = None) -> dict:
    """Trains a pair on captioned digits, examines it on held-out ones, and leaves a report.

    Writes report.html and its PNGs, metrics.json, predictions.csv, model.safetensors and zero_shot_classifier.keras.

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
    model = create_clip(VARIANT, image_size=IMAGE_SIZE, stem_stride=STEM_STRIDE)
    tell(f"Created {VARIANT} on {keras.backend.backend()}: {model.count_params():,} parameters.")

    tell(f"Training for {epochs} epochs on {cores()} cores.")
    history, train_seconds = train_pair(model, train, held_out, seed=seed, epochs=epochs)
    tell(f"Trained in {train_seconds:.0f} s. Reading the held-out digits from sentences it never saw.")
    readings = read_digits(model, held_out)

    save_model(model, folder)
    agreeing = reload_and_compare(folder / "model.safetensors", readings, held_out)
    tell(f"Saved the pair; loaded again, it reads {agreeing} of {len(held_out)} digits as before.")

    metrics = {
        **measure(readings),
        "reloaded_predictions_equal": agreeing / len(held_out),
        **describe_run(seed=seed, epochs=epochs, train=train, model=model),
        "train_seconds": round(train_seconds, 1),
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
    missing = [name for name in ("sklearn", "matplotlib") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"The demo needs {' and '.join(missing)}. Install with: pip install 'convnext-clip-zoo[report]'"
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


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# The data.


@dataclass(frozen=True)
class Digits:
    """N pictures of digits.

    Args:
        pictures: uint8 (N, 32, 32, 3).
        labels: int32 (N,), 0 to 9.
        places: int (N,), where scikit-learn's data has each picture.
    """

    pictures: np.ndarray
    labels: np.ndarray
    places: np.ndarray

    def __len__(self):
        return len(self.labels)


def load_split(train_images: int | None = None) -> tuple[Digits, Digits]:
    """(training pictures, held-out pictures), as many of each digit in both as there are in all; always the same.

    Args:
        train_images: of the 1,437, drawn in shuffled order; all unless given.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    labels = data.target.astype(np.int32)
    pictures = np.stack([draw(gray) for gray in data.images])
    train, held_out = train_test_split(
        np.arange(len(labels)), test_size=HELD_OUT_IMAGES, stratify=labels, random_state=SPLIT_SEED
    )
    return tuple(Digits(pictures[i], labels[i], i) for i in (train[:train_images], np.sort(held_out)))


def draw(gray: np.ndarray) -> np.ndarray:
    """One digit, ink 0 to 16 as (8, 8), in black on white paper: uint8 (32, 32, 3)."""
    paper = Image.fromarray(255 - np.rint(gray * (255 / 16)).astype(np.uint8))
    return np.asarray(paper.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC).convert("RGB"))


def captions(templates: Sequence[str]) -> list[list[str]]:
    """For each digit, every template with its numeral and with its word: 10 lists of 2 T captions."""
    return [[t.format(name) for t in templates for name in names] for names in zip(NUMERALS, WORDS, strict=True)]


def short_tokens(texts: Sequence[str]) -> np.ndarray:
    """int32 (N, L), L of the longest text: the tower is causal, so padding would only take time."""
    tokens = tokenize(texts)
    return tokens[:, : np.flatnonzero(tokens.any(axis=0))[-1] + 1]


def jiggle(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A picture turned, stretched, slanted and shifted a little, on white: uint8 (32, 32, 3) → same."""
    angle = math.radians(rng.uniform(-MAX_DEGREES, MAX_DEGREES))
    stretch_x, stretch_y = np.exp(rng.uniform(-MAX_STRETCH, MAX_STRETCH, 2))
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    matrix = turn @ np.array([[stretch_x, rng.uniform(-MAX_SHEAR, MAX_SHEAR)], [0.0, stretch_y]])
    middle = np.full(2, IMAGE_SIZE / 2)
    offset = middle - matrix @ (middle + rng.uniform(-MAX_SHIFT, MAX_SHIFT, 2))
    coefficients = (*matrix[0], offset[0], *matrix[1], offset[1])  # from a place in the result to one in the picture
    moved = Image.fromarray(picture).transform(
        (IMAGE_SIZE, IMAGE_SIZE),
        Image.Transform.AFFINE,
        coefficients,
        resample=Image.Resampling.BILINEAR,
        fillcolor=(255, 255, 255),
    )
    return np.asarray(moved)


class CaptionedDigits(keras.utils.PyDataset):
    """Batches of pictures with captions for `fit`, one epoch after the other: use it with `steps_per_epoch=data.steps`.

    Batch i is a function of the arguments and i alone. A backend may read ahead, and TensorFlow reads past the end of
    an epoch, so nothing here changes when an epoch ends. All batches have the same size: an epoch leaves out the few
    pictures that do not fill one, other ones each time.

    Args:
        digits: N pictures and labels.
        templates: of the captions.
        seed: of the order, the captions and the augmentation.
        epochs: how many there are.
        augment: jiggle the pictures.

    A batch is {"images": float32 (B, 32, 32, 3), "tokens": int32 (B, L), "label": int32 (B,)}.
    """

    def __init__(self, digits, templates, *, seed, epochs=1, augment=True):
        super().__init__()
        self.digits = digits
        self.tokens = short_tokens(sum(captions(templates), [])).reshape(len(WORDS), 2 * len(templates), -1)
        self.seed = seed
        self.epochs = epochs
        self.augment = augment
        self.steps = len(digits) // BATCH_SIZE
        self._drawn = (None, None)

    def __len__(self):
        return self.epochs * self.steps

    def __getitem__(self, index):
        epoch, step = divmod(index, self.steps)
        number, arrays = self._drawn
        if number != epoch:
            arrays = self.draw_epoch(epoch)
            self._drawn = (epoch, arrays)
        return {name: array[step * BATCH_SIZE : (step + 1) * BATCH_SIZE] for name, array in arrays.items()}

    def draw_epoch(self, epoch):
        """All that is seen in one epoch: {"images", "tokens", "label"}, each of N rows."""
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self.digits))
        labels = self.digits.labels[order]
        chosen = rng.integers(self.tokens.shape[1], size=len(order))
        pictures = self.digits.pictures[order]
        if self.augment:
            pictures = [jiggle(picture, rng) for picture in pictures]
        return {"images": batch(pictures, PREPROCESS), "tokens": self.tokens[labels, chosen], "label": labels}


def lowest_loss(data: CaptionedDigits) -> float:
    """The loss of a perfect pair on the first epoch: a picture with n positives in its batch cannot go below ln n."""
    labels = data.draw_epoch(0)["label"][: data.steps * BATCH_SIZE].reshape(data.steps, BATCH_SIZE)
    return float(np.log((labels[:, :, None] == labels[:, None, :]).sum(axis=-1)).mean())


# Training.


def train_pair(model, train: Digits, held_out: Digits, *, seed: int, epochs: int) -> tuple[dict, float]:
    """Fits the pair to captioned pictures; ({metric: a value an epoch}, seconds).

    The held-out pictures are looked at after each epoch, with captions from the held-out templates; nothing is chosen
    by what is seen there.
    """
    data = CaptionedDigits(train, TRAIN_TEMPLATES, seed=seed, epochs=epochs)
    watched = CaptionedDigits(held_out, HELD_OUT_TEMPLATES, seed=seed, augment=False)
    model.compile(create_optimizer(data.steps, epochs))
    start = time.perf_counter()
    history = model.fit(
        data,
        epochs=epochs,
        steps_per_epoch=data.steps,
        shuffle=False,
        validation_data=watched,
        verbose=progress_verbosity(),
    ).history
    seconds = time.perf_counter() - start
    history = {name: [float(value) for value in values] for name, values in history.items()}
    return {**history, "lowest_loss": lowest_loss(data)}, seconds


def create_optimizer(steps: int, epochs: int) -> keras.optimizers.Optimizer:
    """AdamW with one epoch of warm-up and a cosine to zero; no decay of gains, offsets, embeddings, temperature."""
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, max(1, (epochs - 1) * steps), warmup_target=PEAK_LEARNING_RATE, warmup_steps=steps
    )
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=WEIGHT_DECAY)
    optimizer.exclude_from_weight_decay(var_names=NO_WEIGHT_DECAY)
    return optimizer


def progress_verbosity() -> int:
    """A moving bar on a terminal, a line an epoch elsewhere."""
    return 1 if sys.stdout.isatty() else 2


# Reading.


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
    images = unit(model.image_encoder.predict(pictures, batch_size=READING_BATCH_SIZE, verbose=0))
    prompts = [t.format(name) for names in (NUMERALS, WORDS) for t in HELD_OUT_TEMPLATES for name in names]
    texts = unit(model.text_encoder.predict(short_tokens(prompts), batch_size=len(prompts), verbose=0))
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


def confusion(labels: np.ndarray, predictions: np.ndarray, classes: int = 10) -> np.ndarray:
    """Counts (K, K): rows are true classes, columns predicted ones. confusion([0, 1], [1, 1], 2) → [[0, 1], [0, 1]]"""
    counts = np.zeros((classes, classes), int)
    np.add.at(counts, (labels, predictions), 1)
    return counts


def text_to_image_ranks(readings: Readings) -> np.ndarray:
    """For each of P held-out prompts, whether each picture shows its digit, best match first: bool (P, N)."""
    texts = readings.texts.reshape(-1, readings.texts.shape[-1])
    asked = np.tile(np.arange(len(WORDS)), len(texts) // len(WORDS))
    order = np.argsort(-texts @ readings.images.T, axis=1, kind="stable")
    return readings.labels[order] == asked[:, None]


def calibration(logits: np.ndarray, labels: np.ndarray, bins: int = 10) -> dict:
    """How far probabilities can be taken at their word.

    Args:
        logits: float (N, K).
        labels: int (N,).
        bins: of equal width, over the confidence.

    Returns:
        {"confidence": mean of the highest probability, "error": expected calibration error, the mean distance between
        confidence and accuracy over the bins weighted by their pictures, "loss": mean of −ln p(true class)}.

    Reference: arXiv:1706.04599, equation 3.
    """
    probabilities = softmax(logits)
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    distance = np.abs(np.bincount(place, weights=confidence - right, minlength=bins)).sum() / len(labels)
    true = probabilities[np.arange(len(labels)), labels]
    return {
        "confidence": float(confidence.mean()),
        "error": float(distance),
        "loss": float(-np.log(np.maximum(true, 1e-12)).mean()),
    }


def temperature_sweep(cosines: np.ndarray, labels: np.ndarray, factors: np.ndarray) -> dict:
    """`calibration` at each factor: {name: one value a factor}."""
    results = [calibration(factor * cosines, labels) for factor in factors]
    return {name: [result[name] for result in results] for name in results[0]}


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis, in float64."""
    exponentials = np.exp(np.float64(logits) - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def unit(x: np.ndarray) -> np.ndarray:
    """x / ‖x‖₂ over the last axis."""
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


# Results.


def save_model(model, folder: Path) -> None:
    """The pair as model.safetensors, and as zero_shot_classifier.keras what reads digits without the text tower."""
    registry.save(model, folder / "model.safetensors", preprocess=PREPROCESS)
    classifier = zero_shot_classifier(model, WORDS, HELD_OUT_TEMPLATES, tokenizer=short_tokens)
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch) / "zero_shot_classifier.keras"  # Keras writes to a path of this suffix only
        classifier.save(whole)
        with atomic_write(folder / whole.name) as file:
            file.write(whole.read_bytes())


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
        "cores": cores(),
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


def draw_plots(folder: Path, metrics: dict, readings: Readings, train: Digits, held_out: Digits, *, seed: int) -> None:
    """The PNGs of the report."""
    report.plot_sheet(folder / "examples.png", example_rows(train, seed))
    report.plot_panels(folder / "training.png", training_panels(metrics["history"]))
    report.plot_confusion(folder / "confusion.png", metrics["confusion"], NUMERALS)
    one_each = [int(np.flatnonzero(held_out.labels == digit)[0]) for digit in range(len(WORDS))]
    sentences = readings.texts[1, SHOWN_TEMPLATE]  # (10, D)
    report.plot_similarity(
        folder / "similarity.png",
        readings.images[one_each] @ sentences.T,
        held_out.pictures[one_each],
        [HELD_OUT_TEMPLATES[SHOWN_TEMPLATE].format(word) for word in WORDS],
    )
    report.plot_sheet(folder / "searches.png", search_rows(readings, held_out))
    report.plot_sheet(folder / "hardest.png", hardest_rows(readings, held_out))
    report.plot_panels(folder / "temperature.png", temperature_panels(metrics))


def example_rows(train: Digits, seed: int, columns: int = 8) -> list[report.SheetRow]:
    """A few captions, each with training pictures as the pair sees them."""
    rng = np.random.default_rng(seed)
    rows = []
    for digit in (2, 5, 8):
        text = rng.choice(captions(TRAIN_TEMPLATES)[digit])
        chosen = rng.choice(np.flatnonzero(train.labels == digit), columns)
        rows.append(report.SheetRow(f"“{text}”", [jiggle(train.pictures[i], rng) for i in chosen]))
    return rows


def training_panels(history: dict) -> list[report.Panel]:
    epochs = range(1, len(history["loss"]) + 1)
    return [
        report.Panel(
            "Contrastive loss",
            epochs,
            {"training": history["loss"], "held-out": history["val_loss"]},
            levels={"a perfect pair": history["lowest_loss"]},
            xlabel="epoch",
        ),
        report.Panel(
            "Best match in the batch",
            epochs,
            {"training": history["accuracy"], "held-out": history["val_accuracy"]},
            xlabel="epoch",
            percent=True,
        ),
        report.Panel("1 / temperature", epochs, {"exp(logit_scale)": history["logit_scale"]}, xlabel="epoch"),
    ]


def search_rows(readings: Readings, held_out: Digits, columns: int = 8) -> list[report.SheetRow]:
    """For each digit a held-out sentence, numerals and words in turn, and the pictures that match it best."""
    rows = []
    for digit, names in enumerate(zip(NUMERALS, WORDS, strict=True)):
        spelling, template = digit % 2, digit % len(HELD_OUT_TEMPLATES)
        cosines = readings.images @ readings.texts[spelling, template, digit]
        best = np.argsort(-cosines, kind="stable")[:columns]
        rows.append(
            report.SheetRow(
                f"“{HELD_OUT_TEMPLATES[template].format(names[spelling])}”",
                held_out.pictures[best],
                notes=[f"{cosine:.2f}" for cosine in cosines[best]],
                right=held_out.labels[best] == digit,
            )
        )
    return rows


def hardest_rows(readings: Readings, held_out: Digits, columns: int = 8, rows: int = 2) -> list[report.SheetRow]:
    """The pictures whose own digit got the lowest probabilities."""
    true = readings.probabilities[np.arange(len(held_out)), held_out.labels]
    order = np.argsort(true, kind="stable")
    sheet = []
    for row in range(rows):
        chosen = order[row * columns : (row + 1) * columns]
        notes = [f"{held_out.labels[i]}, read as {readings.predictions[i]}" for i in chosen]
        text = "the least certain" if row == 0 else "the next"
        sheet.append(
            report.SheetRow(
                text, held_out.pictures[chosen], notes, readings.predictions[chosen] == held_out.labels[chosen]
            )
        )
    return sheet


def temperature_panels(metrics: dict) -> list[report.Panel]:
    """Confidence and calibration against the factor that turns cosines into logits."""
    sweep, accuracy = metrics["calibration"]["sweep"], metrics["zero_shot_accuracy"]
    marks = {"learned": 1 / metrics["temperature"], "lowest loss": metrics["calibration"]["lowest_loss_factor"]}
    axis = {"x": sweep["factor"], "marks": marks, "log_x": True, "xlabel": "factor, 1 / temperature"}
    return [
        report.Panel(
            "Confidence and accuracy",
            curves={"mean confidence": sweep["confidence"]},
            levels={"accuracy, at any factor": accuracy},
            percent=True,
            **axis,
        ),
        report.Panel("Calibration error", curves={"expected calibration error": sweep["error"]}, percent=True, **axis),
        report.Panel("−ln p(true digit)", curves={"mean over pictures": sweep["loss"]}, **axis),
    ]


LOAD_AGAIN = """import zoo
from clip import zero_shot_classifier
from PIL import Image

pair, transform, tokenizer, info = zoo.load("model.safetensors")
names = {words}
reader = zero_shot_classifier(pair, names, ["a handwritten digit {{}}."])
picture = transform(Image.open("a digit, black on white.png"))  # (32, 32, 3)
print(names[reader.predict(picture[None]).argmax()])
"""


def write_report(path: Path, metrics: dict) -> None:
    """report.html, from the metrics and the PNGs beside it."""
    sections = (what_it_saw, how_it_learned, reading, one_space, searching, certainty, use_again)
    report.write_page(
        path,
        "Digits, read from sentences",
        headline(metrics),
        *(section(metrics, path.parent) for section in sections),
        lead="A small CLIP, a ConvNeXt V2 for pictures and a transformer for text, trained from nothing on captioned "
        "handwriting, then asked about digits and sentences it had not met.",
    )


def headline(metrics):
    retrieval = metrics["retrieval"]
    return report.tiles(
        {
            "of the held-out digits read right, zero-shot": percent(metrics["zero_shot_accuracy"]),
            f"of {retrieval['texts']} new sentences find a right picture first": percent(
                retrieval["text_to_image_recall_at_1"]
            ),
            f"of training: {metrics['epochs']} epochs on {metrics['cores']} cores": f"{metrics['train_seconds']:.0f} s",
            "parameters in the pair": f"{metrics['parameters'] / 1e6:.1f} M",
        }
    )


def what_it_saw(metrics, folder):
    return report.section(
        "What it saw",
        report.paragraph(
            f"{metrics['train_images']:,} handwritten digits, drawn as 32 × 32 pixels. In every epoch each is moved a "
            f"little and gets another caption: one of {len(TRAIN_TEMPLATES)} templates around a numeral or a word. "
            "Pictures and captions of the same digit are positives of each other."
        ),
        report.figure(folder / "examples.png", "Captions, and pictures as training moves them."),
    )


def how_it_learned(_, folder):
    return report.section(
        "How it learned",
        report.figure(
            folder / "training.png",
            "The held-out curves are of pictures and templates that training never uses; nothing was chosen by them. "
            "In a batch several captions are right for each picture: the dashed line is the loss that this leaves to a "
            "perfect pair.",
        ),
    )


def reading(metrics, folder):
    accuracy, pictures = metrics["zero_shot_accuracy"], metrics["held_out_images"]
    rows = [[t, percent(row["numerals"]), percent(row["words"])] for t, row in metrics["accuracy_per_template"].items()]
    return report.section(
        "Reading digits from sentences it never saw",
        report.paragraph(
            f"A class is the mean of {len(rows)} sentences about a digit, none of which was a caption. A picture is "
            f"read as the class nearest to it, and {round(accuracy * pictures)} of {pictures} held-out pictures are "
            "read right. Each sentence alone does this well:"
        ),
        report.table(["sentence", "with numerals", "with words"], rows),
        report.figure(folder / "confusion.png", "Held-out pictures: what each is, and what it was read as."),
        report.figure(
            folder / "hardest.png",
            "The held-out pictures whose own digit got the least probability. A red frame: read wrong.",
        ),
    )


def one_space(_, folder):
    return report.section(
        "Pictures and sentences in one space",
        report.figure(
            folder / "similarity.png",
            "Cosines between the first held-out picture of each digit and ten sentences.",
        ),
    )


def searching(metrics, folder):
    retrieval = metrics["retrieval"]
    return report.section(
        "Finding pictures by words",
        report.paragraph(
            f"A sentence searches the held-out pictures. Of {retrieval['texts']} sentences, "
            f"{percent(retrieval['text_to_image_recall_at_1'])} find a right picture first; of the first ten pictures, "
            f"{percent(retrieval['text_to_image_precision_at_10'])} are right."
        ),
        report.figure(
            folder / "searches.png", "The best matches of ten sentences, with their cosines. Green is right."
        ),
    )


def certainty(metrics, folder):
    learned, best = metrics["calibration"]["learned"], metrics["calibration"]["lowest_loss_factor"]
    return report.section(
        "How sure it is",
        report.paragraph(
            f"The learned factor {1 / metrics['temperature']:.1f} (temperature {metrics['temperature']:.3f}) makes "
            f"probabilities of cosines. With it the mean confidence is {percent(learned['confidence'])} and the "
            f"calibration error {percent(learned['error'])}. A factor of {best:.0f} would have given these pictures "
            "the lowest loss. Which digit is read does not depend on it."
        ),
        report.figure(folder / "temperature.png", "Confidence, calibration and loss against the factor."),
    )


def use_again(metrics, _):
    return report.section(
        "Use it again",
        report.paragraph(
            "model.safetensors holds the pair, and how a picture is made ready for it. Loaded again, it read "
            f"{percent(metrics['reloaded_predictions_equal'])} of the held-out pictures as before."
        ),
        report.code(LOAD_AGAIN.format(words=list(WORDS))),
        report.table(["", "this run"], list(facts(metrics).items())),
    )


def facts(metrics: dict) -> dict[str, str]:
    """What a reader needs to repeat the run."""
    return {
        "command": f"zoo demo --seed {metrics['seed']} --epochs {metrics['epochs']} --backend {metrics['backend']}",
        "versions": ", ".join(f"{name} {number}" for name, number in metrics["versions"].items()),
        "machine": f"{metrics['cores']} cores, {metrics['machine']}",
        "training": f"{metrics['train_seconds']:.0f} s, batches of {metrics['batch_size']}",
        "model": f"{metrics['model']}, {metrics['parameters']:,} parameters",
        "data": "scikit-learn's load_digits: E. Alpaydin, C. Kaynak, UCI machine learning repository, CC BY 4.0",
    }


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
