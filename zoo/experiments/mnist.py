"""Experiment 4: zero-shot classification of handwritten digits with different ways to name a digit."""

import numpy as np

from clip import CLASS_NAMES, TEMPLATES
from zoo.evaluation.metrics import confusion, mean_per_class_recall, top_k_accuracy, wilson_interval
from zoo.experiments.context import Context, Outcome
from zoo.experiments.plots import Ranked, plot_ranking
from zoo.experiments.published import published_accuracy
from zoo.inference.classifier import Classifier, average
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


def run(context: Context) -> Outcome:
    data = context.embedded("mnist")
    classifiers = create_classifiers(context)
    logits = {name: classifier.logits(data.vectors) for name, (_, classifier) in classifiers.items()}
    found = {name: measure(scores, data.labels) for name, scores in logits.items()}
    ranking = sorted(found, key=lambda name: -found[name]["accuracy"])
    rows = [Ranked(name, found[name]["accuracy"], found[name]["interval"], classifiers[name][0]) for name in ranking]
    plots = [context.folder / f"mnist-{name}.png" for name in ("strategies", "confusion")]
    plot_ranking(plots[0], rows, ("numerals", "words", "both"))
    plot_confusion(plots[1], confusion(data.labels, logits[BOTH].argmax(axis=1)), NUMERALS)
    best, worst, published = ranking[0], ranking[-1], published_accuracy(context.name, data.data.name)
    comparison = "" if published is None else f" open_clip publishes {percent(published)} for OpenAI's sentence."
    blocks = [
        *data.note_blocks,
        report.paragraph(
            f"{len(data.labels):,} images of {data.title} and {len(found)} ways to name a digit. Highest accuracy: "
            f"{percent(found[best]['accuracy'])} ({best}); lowest: {percent(found[worst]['accuracy'])} ({worst}). "
            f"Chance is 10 %. Where intervals overlap, the order may be chance.{comparison}"
        ),
        report.figure(plots[0], "Ways to name a digit, ranked by accuracy, with 95 % intervals (Wilson)."),
        report.figure(plots[1], f"Confusion matrix with {BOTH}, a choice made before seeing the results."),
    ]
    metrics = {
        "data": data.data.name,
        "note": data.note,
        "strategies": found,
        "ranking": ranking,
        "published": published,
    }
    label = f"zero-shot accuracy on {data.title}, numerals and words together"
    return Outcome("MNIST: how to name a digit", (label, percent(found[BOTH]["accuracy"])), metrics, tuple(blocks))


def create_classifiers(context: Context) -> dict[str, tuple[str, Classifier]]:
    """Return {name: (kind, classifier)}; the last is the mean of the two before it."""
    made = {
        name: (kind, context.pipeline.classifier(names, templates))
        for name, (kind, names, templates) in STRATEGIES.items()
    }
    numerals, words = (classifier.matrix for _, classifier in list(made.values())[-2:])
    pipeline = context.pipeline
    both = [Classifier(matrix, NUMERALS, pipeline.scale, pipeline.bias) for matrix in (numerals, words)]
    return {**made, BOTH: ("both", average(both))}


def measure(logits: np.ndarray, labels: np.ndarray) -> dict:
    counts = confusion(labels, logits.argmax(axis=1))
    return {
        "accuracy": top_k_accuracy(logits, labels),
        "interval": wilson_interval(int(np.trace(counts)), len(labels)),
        "mean_per_class_recall": mean_per_class_recall(counts),
        "images": len(labels),
    }
