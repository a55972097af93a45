"""Experiment 3: zero-shot classification of CIFAR-10, class by class, beside what chance would give."""

import numpy as np

from zoo.evaluation.zero_shot import ZeroShotResult, draw_mistakes, evaluate_zero_shot
from zoo.experiments.published import published
from zoo.experiments.setting import Outcome, Setting
from zoo.utils import report
from zoo.utils.report import percent, plot_confusion


def run(setting: Setting) -> Outcome:
    subject = setting.subject("cifar10")
    classifier = setting.pipeline.classifier(subject.names, subject.data.templates)
    result, logits, kept = evaluate_zero_shot(
        setting.pipeline.encoder,
        subject.data,
        classifier=classifier,
        embedded=(subject.vectors, subject.kept, subject.bad),
    )
    chance = shuffled_accuracy(logits, subject.labels, setting.seed)
    others = published(setting.name, subject.data.name)
    figures = [setting.folder / f"cifar10-{name}.png" for name in ("confusion", "mistakes")]
    plot_confusion(figures[0], np.array(result.confusion), result.class_names)
    figures[1].unlink(missing_ok=True)
    draw_mistakes(figures[1], subject.data, logits, kept)
    captions = ("What each picture is, and what it was read as.", "The mistakes that the pair was surest of.")
    blocks = [
        *([report.paragraph(subject.note)] if subject.note else []),
        report.paragraph(told(result, subject.title, chance, others)),
        *(report.figure(path, text) for path, text in zip(figures, captions, strict=True) if path.exists()),
        report.table(["class", "pictures", "recognised", "most often taken for"], class_rows(result)),
    ]
    metrics = {
        "data": subject.data.name,
        "note": subject.note,
        "accuracy": result.accuracy,
        "accuracy_at_5": result.accuracy_at_5,
        "interval": result.interval,
        "mean_per_class_recall": result.mean_per_class_recall,
        "calibration": result.calibration,
        "shuffled_labels": chance,
        "published": others,
        "images": result.images,
        "templates": list(subject.data.templates),
        "classes": list(result.class_names),
        "confusion": result.confusion,
        "left_out": result.bad,
    }
    label = f"of {subject.title} named right, zero-shot"
    return Outcome("CIFAR-10, zero-shot", (label, percent(result.accuracy)), metrics, tuple(blocks))


def shuffled_accuracy(logits: np.ndarray, labels: np.ndarray, seed: int, times: int = 100) -> float:
    """The mean accuracy when labels are dealt out anew: what the same guesses are worth by chance."""
    rng, guesses = np.random.default_rng(seed), logits.argmax(axis=1)
    return float(np.mean([(guesses == rng.permutation(labels)).mean() for _ in range(times)]))


def told(result: ZeroShotResult, title: str, chance: float, others: float | None) -> str:
    low, high = result.interval
    beside = "" if others is None else f" open_clip publishes {percent(others)} for these weights."
    return (
        f"{result.images:,} pictures of {title}, {result.classes} classes, each class the mean of {result.templates} "
        f"prompts. {percent(result.accuracy)} are named right (95 % interval {percent(low)} to {percent(high)}), "
        f"{percent(result.accuracy_at_5)} are right among the first five, the mean recall of a class is "
        f"{percent(result.mean_per_class_recall)}. As a control, the same guesses beside labels dealt out anew are "
        f"right for {percent(chance)}.{beside}"
    )


def class_rows(result: ZeroShotResult) -> list[list]:
    counts, rows = np.array(result.confusion), []
    for place, name in enumerate(result.class_names):
        total = int(counts[place].sum())
        if not total:
            continue
        wrong = np.where(np.arange(len(counts)) == place, 0, counts[place])
        most = int(wrong.argmax())
        taken = f"{result.class_names[most]} ({wrong[most]})" if wrong[most] else "none"
        rows.append([name, total, percent(counts[place, place] / total), taken])
    return rows
