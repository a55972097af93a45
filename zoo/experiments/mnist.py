"""Experiment 4: handwritten digits read zero-shot, with several ways to say in words what a digit is."""

import numpy as np

from clip import CLASS_NAMES, TEMPLATES
from zoo.evaluation.classifier import Classifier, average
from zoo.evaluation.metrics import confusion, mean_per_class_recall, top_k_accuracy, wilson_interval
from zoo.experiments.plots import Ranked, plot_ranking
from zoo.experiments.published import published
from zoo.experiments.setting import Outcome, Setting
from zoo.utils import report
from zoo.utils.report import percent, plot_confusion

NUMERALS, WORDS = CLASS_NAMES["mnist"], CLASS_NAMES["digits"]
STRATEGIES = {  # name: (kind, class names, templates)
    "the numeral alone, “7”": ("numerals", NUMERALS, ("{}",)),
    "the word alone, “seven”": ("words", WORDS, ("{}",)),
    "“a photo of a 7.”": ("numerals", NUMERALS, TEMPLATES["simple"]),
    "“a photo of a seven.”": ("words", WORDS, TEMPLATES["simple"]),
    'OpenAI\'s sentence, “… the number: "7".”': ("numerals", NUMERALS, TEMPLATES["mnist"]),
    "OpenAI's sentence with words": ("words", WORDS, TEMPLATES["mnist"]),
    "mean of four sentences on handwriting, numerals": ("numerals", NUMERALS, TEMPLATES["digits"]),
    "mean of four sentences on handwriting, words": ("words", WORDS, TEMPLATES["digits"]),
}
BOTH = "both of these means together"


def run(setting: Setting) -> Outcome:
    subject = setting.subject("mnist")
    classifiers = strategies(setting)
    logits = {name: classifier.logits(subject.vectors) for name, (_, classifier) in classifiers.items()}
    found = {name: measured(scores, subject.labels) for name, scores in logits.items()}
    ranking = sorted(found, key=lambda name: -found[name]["accuracy"])
    rows = [Ranked(name, found[name]["accuracy"], found[name]["interval"], classifiers[name][0]) for name in ranking]
    paths = [setting.folder / f"mnist-{name}.png" for name in ("strategies", "confusion")]
    plot_ranking(paths[0], rows, ("numerals", "words", "both"))
    plot_confusion(paths[1], confusion(subject.labels, logits[BOTH].argmax(axis=1)), NUMERALS)
    best, worst, others = ranking[0], ranking[-1], published(setting.name, subject.data.name)
    beside = "" if others is None else f" open_clip publishes {percent(others)} for OpenAI's sentence."
    blocks = [
        *([report.paragraph(subject.note)] if subject.note else []),
        report.paragraph(
            f"{len(subject.labels):,} pictures of {subject.title} and {len(found)} ways to name a digit. The best, "
            f"{best}, reads {percent(found[best]['accuracy'])} right; the worst, {worst}, "
            f"{percent(found[worst]['accuracy'])}. "
            f"Chance is 10 %. Intervals that overlap leave open which way is the better one.{beside}"
        ),
        report.figure(paths[0], "Ways to name a digit, ranked. Lines are 95 % intervals (Wilson)."),
        report.figure(paths[1], f"What each digit was read as, with {BOTH}: chosen before the figures were seen."),
    ]
    metrics = {
        "data": subject.data.name,
        "note": subject.note,
        "strategies": found,
        "ranking": ranking,
        "published": others,
    }
    label = f"of {subject.title} read right, numerals and words together"
    return Outcome("MNIST, and what to call a digit", (label, percent(found[BOTH]["accuracy"])), metrics, tuple(blocks))


def strategies(setting: Setting) -> dict[str, tuple[str, Classifier]]:
    """{name: (kind, class matrix)}; the last is the mean of the two means."""
    made = {
        name: (kind, setting.pipeline.classifier(names, templates))
        for name, (kind, names, templates) in STRATEGIES.items()
    }
    numerals, words = (classifier.matrix for _, classifier in list(made.values())[-2:])
    both = [Classifier(matrix, NUMERALS, setting.pipeline.scale, setting.pipeline.bias) for matrix in (numerals, words)]
    return {**made, BOTH: ("both", average(both))}


def measured(logits: np.ndarray, labels: np.ndarray) -> dict:
    counts = confusion(labels, logits.argmax(axis=1))
    return {
        "accuracy": top_k_accuracy(logits, labels),
        "interval": wilson_interval(int(np.trace(counts)), len(labels)),
        "mean_per_class_recall": mean_per_class_recall(counts),
        "images": len(labels),
    }
