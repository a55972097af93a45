"""Experiment 3: zero-shot classification of CIFAR-10, per class, with a shuffled-label control."""

import numpy as np

from zoo.evaluation.zero_shot import ZeroShotResult, draw_mistakes, evaluate_zero_shot
from zoo.experiments.context import Context, Outcome
from zoo.experiments.published import published_accuracy
from zoo.utils import report
from zoo.utils.report import percent, plot_confusion

SHUFFLES = 100  # of the labels


def run(context: Context) -> Outcome:
    data = context.embedded("cifar10")
    result, logits, kept = evaluate_zero_shot(
        context.pipeline.encoder,
        data.data,
        classifier=context.pipeline.classifier(data.names, data.data.templates),
        embedded=(data.vectors, data.kept, data.bad),
    )
    chance = _shuffled_accuracy(logits, data.labels, context.seed)
    published = published_accuracy(context.name, data.data.name)
    plots = [context.folder / f"cifar10-{name}.png" for name in ("confusion", "mistakes")]
    plot_confusion(plots[0], np.array(result.confusion), result.class_names)
    plots[1].unlink(missing_ok=True)
    draw_mistakes(plots[1], data.data, logits, kept)
    captions = ("Confusion matrix.", "The most confident mistakes.")
    blocks = [
        *data.note_blocks,
        report.paragraph(describe(result, data.title, chance, published)),
        *(report.figure(path, text) for path, text in zip(plots, captions, strict=True) if path.exists()),
        report.table(["class", "images", "recall", "most often confused with"], _class_rows(result)),
    ]
    metrics = {
        "data": data.data.name,
        "note": data.note,
        "accuracy": result.accuracy,
        "accuracy_at_5": result.accuracy_at_5,
        "interval": result.interval,
        "mean_per_class_recall": result.mean_per_class_recall,
        "calibration": result.calibration,
        "shuffled_labels": chance,
        "published": published,
        "images": result.images,
        "templates": list(data.data.templates),
        "classes": list(result.class_names),
        "confusion": result.confusion,
        "left_out": result.bad,
    }
    label = f"zero-shot accuracy on {data.title}"
    return Outcome("CIFAR-10, zero-shot", (label, percent(result.accuracy)), metrics, tuple(blocks))


def _shuffled_accuracy(logits: np.ndarray, labels: np.ndarray, seed: int) -> float:
    """Return the mean accuracy of the same predictions against shuffled labels, which is chance level."""
    rng, predicted = np.random.default_rng(seed), logits.argmax(axis=1)
    return float(np.mean([(predicted == rng.permutation(labels)).mean() for _ in range(SHUFFLES)]))


def describe(result: ZeroShotResult, title: str, chance: float, published: float | None) -> str:
    low, high = result.interval
    comparison = "" if published is None else f" open_clip publishes {percent(published)} for these weights."
    return (
        f"{result.images:,} images of {title}, {result.classes} classes, each class the mean of {result.templates} "
        f"prompts. Accuracy {percent(result.accuracy)} (95 % interval {percent(low)} to {percent(high)}), top-5 "
        f"accuracy {percent(result.accuracy_at_5)}, mean per-class recall {percent(result.mean_per_class_recall)}. "
        f"With shuffled labels the same predictions are correct for {percent(chance)}.{comparison}"
    )


def _class_rows(result: ZeroShotResult) -> list[list]:
    counts, rows = np.array(result.confusion), []
    for label, name in enumerate(result.class_names):
        total = int(counts[label].sum())
        if not total:
            continue
        wrong = np.where(np.arange(len(counts)) == label, 0, counts[label])
        most = int(wrong.argmax())
        confused = f"{result.class_names[most]} ({wrong[most]})" if wrong[most] else "none"
        rows.append([name, total, percent(counts[label, label] / total), confused])
    return rows
