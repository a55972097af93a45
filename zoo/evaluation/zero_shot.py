"""Zero-shot classification of a data set.

Reference: arXiv:2103.00020, section 3.1. Metrics: those of LAION's CLIP_benchmark (acc1, acc5, mean per-class recall),
a confidence interval and the calibration.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zoo.data import open_record
from zoo.data.datasets import Labelled, load_labelled
from zoo.data.preprocess import PreprocessSpec, to_display
from zoo.evaluation.metrics import calibration, class_ranks, confusion, mean_per_class_recall, wilson_interval
from zoo.evaluation.results import embed_readable, format_left_out, write_result
from zoo.inference.classifier import Classifier, create_classifier
from zoo.inference.encoder import Encoder
from zoo.inference.stored import open_encoder
from zoo.models.names import find
from zoo.models.registry import LoadedPair, create_model, load_pair, model_info
from zoo.utils.report import SheetRow, percent, plot_confusion, plot_sheet
from zoo.weights.load import announce_random
from zoo.weights.schema import CLIP

_MAX_MISTAKES = 8  # on the sheet


@dataclass(frozen=True)
class ZeroShotResult:
    """The result of a zero-shot evaluation.

    Args:
        model, dataset: names.
        images, classes, templates: counts; 0 templates where each class has its own prompts.
        accuracy, accuracy_at_5: shares of images.
        interval: 95 % confidence interval of the accuracy (Wilson).
        mean_per_class_recall: over classes with images.
        calibration: {"confidence", "error", "loss"}, see `metrics.calibration`; of the sigmoid if the pair has a bias.
        confusion: counts (K, K), rows are true classes.
        class_names: K names.
        bad: {record: reason} of the records left out.
    """

    model: str
    dataset: str
    images: int
    classes: int
    templates: int
    accuracy: float
    accuracy_at_5: float
    interval: tuple[float, float]
    mean_per_class_recall: float
    calibration: dict
    confusion: list
    class_names: tuple[str, ...]
    bad: dict


def evaluate_zero_shot(
    encoder: Encoder,
    data: Labelled,
    *,
    classifier: Classifier | None = None,
    embedded: tuple[np.ndarray, np.ndarray, dict] | None = None,
    progress: bool = False,
) -> tuple[ZeroShotResult, np.ndarray, np.ndarray]:
    """Classify a data set by prompts and compare with its labels.

    Args:
        classifier: by default created from the data set's class names and templates.
        embedded: the result of `encoder.embed_records`, if the images are embedded already.

    Returns:
        (result, logits float32 (N, K), int (N,) their records).
    """
    classifier = classifier or create_classifier(encoder, data.prompts or data.class_names, data.templates)
    vectors, kept, bad = embedded or embed_readable(encoder, data.records, progress=progress)
    logits, labels = classifier.logits(vectors), data.labels[kept]
    ranks = class_ranks(logits, labels)
    counts = confusion(labels, logits.argmax(axis=1), len(data.class_names))
    result = ZeroShotResult(
        model=encoder.name,
        dataset=data.name,
        images=len(labels),
        classes=len(data.class_names),
        templates=len(data.templates),
        accuracy=float((ranks == 1).mean()),
        accuracy_at_5=float((ranks <= 5).mean()),
        interval=wilson_interval(int((ranks == 1).sum()), len(ranks)),
        mean_per_class_recall=mean_per_class_recall(counts),
        calibration=calibration(logits, labels, activation=classifier.activation),
        confusion=counts.tolist(),
        class_names=data.class_names,
        bad={data.records.names[i]: reason for i, reason in bad.items()},
    )
    return result, logits, kept


def run(
    model: str,
    *,
    dataset: str = "digits",
    data: str | None = None,
    templates: str | None = None,
    class_names: str | None = None,
    random_weights: bool = False,
    batch_size: int = 64,
    embeddings: Sequence[str] = (),
    output: str | None = None,
) -> ZeroShotResult:
    """Evaluate zero-shot classification: `zoo eval zero-shot`.

    Args:
        model: name or path of a pair.
        random_weights: `model` is the name of an architecture, whose weights are drawn anew, always the same.
        dataset, data, templates, class_names: as in `load_labelled`.
        batch_size: images per batch.
        embeddings: folders of `zoo embed` with the images' embeddings, which are then not computed.
        output: folder for zero_shot.json, confusion.png and, if there are mistakes, mistakes.png.
    """
    labelled = load_labelled(dataset, data, class_names=class_names, templates=templates)
    encoder = open_encoder(_create_random(model) if random_weights else model, embeddings, batch_size=batch_size)
    result, logits, kept = evaluate_zero_shot(encoder, labelled, progress=True)
    if output is not None:
        folder = Path(output)
        write_result(folder, "zero_shot", result)
        plot_confusion(folder / "confusion.png", np.array(result.confusion), result.class_names)
        draw_mistakes(folder / "mistakes.png", labelled, logits, kept)
    return result


def _create_random(name: str) -> LoadedPair:
    """Return a CLIP model by name with random weights, and its name's preprocessing, else OpenAI's.

    Raises:
        ValueError: an unknown name, the name of a classifier, or one with a tag of weights.
    """
    import keras

    info = model_info(name)
    if info.family != CLIP or find(name).tag is not None:
        raise ValueError(f"random weights need the name of a CLIP model without a tag, got {name!r}.")
    keras.utils.set_random_seed(0)
    announce_random(info.name)
    return load_pair(create_model(name), preprocess=info.preprocess or PreprocessSpec(image_size=info.input[0] or 224))


def draw_mistakes(path: Path, data: Labelled, logits: np.ndarray, kept: np.ndarray) -> None:
    """Draw the most confident mistakes, each with its true and its predicted class; no file without mistakes."""
    labels, predictions = data.labels[kept], logits.argmax(axis=1)
    margin = logits.max(axis=1) - logits[np.arange(len(labels)), labels]
    worst = [int(i) for i in np.argsort(-margin, kind="stable")[:_MAX_MISTAKES] if predictions[i] != labels[i]]
    if not worst:
        return
    images = [to_display(open_record(data.records.record(int(kept[i])))) for i in worst]
    names = data.class_names
    notes = [f"{names[labels[i]]}\n→ {names[predictions[i]]}" for i in worst]
    plot_sheet(path, [SheetRow("most confident mistakes: true class → predicted class", images, notes)])


def to_text(result: ZeroShotResult) -> str:
    """Format a result, one figure per line."""
    low, high = result.interval
    templates = "1 template" if result.templates == 1 else f"{result.templates} templates"
    prompts = templates if result.templates else "their own prompts"
    lines = {
        "data": f"{result.dataset}: {result.images} images, {result.classes} classes, {prompts}",
        "chance": percent(1 / result.classes),
        "accuracy": f"{percent(result.accuracy)} (95 %: {percent(low)} to {percent(high)})",
        "accuracy at 5": percent(result.accuracy_at_5),
        "class recall": percent(result.mean_per_class_recall),
        "confidence": percent(result.calibration["confidence"]),
        "calibration": f"off by {percent(result.calibration['error'])}",
    }
    if result.bad:
        lines["left out"] = format_left_out(result.bad)
    return "\n".join(f"{name:<16}{value}" for name, value in {"model": result.model, **lines}.items())
