"""Experiment 9: prompts ranked by accuracy: simple, detailed and contextual ones, and ensembles."""

from pathlib import Path

import numpy as np

from clip import TEMPLATES
from zoo.evaluation.metrics import calibration, first_places, rank_correlation, wilson_interval
from zoo.experiments.context import Context, EmbeddedData, Outcome, halves
from zoo.experiments.plots import Ranked, plot_ranking
from zoo.inference.classifier import Classifier
from zoo.utils import report
from zoo.utils.report import percent

SINGLE = {
    "simple": ("{}", "a {}.", "a photo of a {}.", "a picture of the {}."),
    "detailed": (
        "a clear, well-lit photo of a single {}.",
        "a high resolution close-up photo of a {}.",
        "a small, blurry, low resolution photo of a {}.",
        "a photo of a large {} in the middle of the picture.",
    ),
    "contextual": (
        "a photo of a {} in its usual surroundings.",
        "someone took this photo of a {} on holiday.",
        "a {} seen outdoors on a sunny day.",
        "an album of photos, this one of a {}.",
    ),
}
SINGLE_OF_DIGITS = {
    "simple": ("{}", "the {}", "a photo of a {}.", "a picture of the number {}."),
    "detailed": (
        "a handwritten digit {} in black ink on white paper.",
        "a small black and white picture of the number {}.",
        "a blurry, low resolution scan of the handwritten number {}.",
        "a large {} in the middle of the picture, written with a pen.",
    ),
    "contextual": (
        "somebody wrote a {} on a form.",
        "the postcode on this letter begins with a {}.",
        "a {} in a child's exercise book.",
        "the house number is {}.",
    ),
}


def run(context: Context) -> Outcome:
    data = context.main
    classifiers = create_classifiers(context, data)
    logits = [classifier.logits(data.vectors) for _, classifier in classifiers.values()]
    correct = np.stack([scores.argmax(axis=1) == data.labels for scores in logits])  # (T, N)
    shares = first_places(correct, resamples=100 if context.smoke else 1000, seed=context.seed)
    activation = context.pipeline.activation
    rows = [
        measure(prompt, kind, calibration(scores, data.labels, activation=activation), hits, share)
        for (prompt, (kind, _)), scores, hits, share in zip(classifiers.items(), logits, correct, shares, strict=True)
    ]
    ranking = sorted(rows, key=lambda row: (-row["accuracy"], row["loss"], row["prompt"]))
    kinds = {kind: _mean_accuracy(rows, kind) for kind in dict.fromkeys(row["kind"] for row in rows)}
    metrics = {
        "data": data.data.name,
        "images": len(data.labels),
        "ranking": ranking,
        "kinds": kinds,
        "agreement_of_halves": agreement_of_halves(logits, data.labels, activation, context.seed),
    }
    path = context.folder / "prompts-ranking.png"
    lines = [Ranked(row["prompt"], row["accuracy"], row["interval"], row["kind"]) for row in ranking]
    plot_ranking(path, lines, (*SINGLE, "ensemble"))
    headline = (f"mean accuracy of ensembles; simple prompts: {percent(kinds['simple'])}", percent(kinds["ensemble"]))
    return Outcome("Prompts, ranked", headline, metrics, describe(metrics, data, path))


def create_classifiers(context: Context, data: EmbeddedData) -> dict[str, tuple[str, Classifier]]:
    """Return {prompt: (kind, classifier)}: each template alone; ensembles of each kind, of all, of the data's own."""
    single = SINGLE_OF_DIGITS if data.is_digits else SINGLE
    alone = {template: (kind, (template,)) for kind, templates in single.items() for template in templates}
    ensembles: dict[str, tuple[str, ...]] = {
        f"all {len(templates)} {kind} ones": templates for kind, templates in single.items()
    }
    ensembles[f"all {len(alone)} of these"] = tuple(alone)
    if len(data.data.templates) > 1:
        ensembles[f"the data set's own {len(data.data.templates)}"] = data.data.templates
    if not data.is_digits:
        ensembles["OpenAI's 7 for ImageNet"] = TEMPLATES["imagenet7"]
    prompts = alone | {name: ("ensemble", tuple(templates)) for name, templates in ensembles.items()}
    return {
        name: (kind, context.pipeline.classifier(data.names, templates)) for name, (kind, templates) in prompts.items()
    }


def measure(prompt: str, kind: str, calibrated: dict, hits: np.ndarray, share: float) -> dict:
    return {
        "prompt": prompt,
        "kind": kind,
        "accuracy": float(hits.mean()),
        "interval": wilson_interval(int(hits.sum()), len(hits)),
        "best_in_resamples": float(share),
        "confidence": calibrated["confidence"],
        "loss": calibrated["loss"],
    }


def _mean_accuracy(rows: list[dict], kind: str) -> float:
    """Return the mean accuracy of the prompts of a kind."""
    return float(np.mean([row["accuracy"] for row in rows if row["kind"] == kind]))


def agreement_of_halves(logits: list[np.ndarray], labels: np.ndarray, activation: str, seed: int) -> float | None:
    """Return Spearman's correlation of the prompts' losses on two halves of the images.

    None if all losses tie, or for a single image.
    """
    if len(labels) < 2:
        return None
    one, other = (
        np.array([calibration(x[half], labels[half], activation=activation)["loss"] for x in logits])
        for half in halves(labels, seed)
    )
    correlation = rank_correlation(one, other)
    return None if np.isnan(correlation) else correlation


def describe(metrics: dict, data: EmbeddedData, path: Path) -> tuple[str, ...]:
    ranking, agreement = metrics["ranking"], metrics["agreement_of_halves"]
    best, worst = ranking[0], ranking[-1]
    means = ", ".join(f"{kind} {percent(share)}" for kind, share in metrics["kinds"].items())
    halves_agree = (
        ""
        if agreement is None
        else f" Ranked by loss on two halves of the images, their rank correlation is {agreement:.2f} (Spearman)."
    )
    rows = [
        [row["prompt"], row["kind"], percent(row["accuracy"]), percent(row["best_in_resamples"]), f"{row['loss']:.3f}"]
        for row in ranking
    ]
    return (
        report.paragraph(
            f"{len(ranking)} prompts on {metrics['images']:,} images of {data.title}. The accuracy ranges from "
            f"{percent(worst['accuracy'])} (“{worst['prompt']}”) to {percent(best['accuracy'])} (“{best['prompt']}”). "
            f"Mean of each kind: {means}.{halves_agree}"
        ),
        report.figure(
            path,
            "Prompts by accuracy, then by loss, with 95 % intervals (Wilson). Where intervals overlap, the order may "
            "be chance.",
        ),
        report.table(["prompt", "kind", "accuracy", "best in resamples", "loss"], rows),
    )
