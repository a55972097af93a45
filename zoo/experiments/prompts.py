"""Experiment 9: prompts ranked by accuracy: simple, detailed, in a context, and means of several."""

from pathlib import Path

import numpy as np

from clip import TEMPLATES
from zoo.evaluation.classifier import Classifier
from zoo.evaluation.metrics import calibration, first_places, rank_correlation, wilson_interval
from zoo.experiments.plots import Ranked, plot_ranking
from zoo.experiments.setting import Outcome, Setting, Subject, halves
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


def run(setting: Setting) -> Outcome:
    subject = setting.main
    made = strategies(setting, subject)
    logits = [classifier.logits(subject.vectors) for _, classifier in made.values()]
    right = np.stack([scores.argmax(axis=1) == subject.labels for scores in logits])  # (T, N)
    shares = first_places(right, resamples=100 if setting.smoke else 1000, seed=setting.seed)
    rows = [
        measured(prompt, kind, scores, subject.labels, share)
        for (prompt, (kind, _)), scores, share in zip(made.items(), logits, shares, strict=True)
    ]
    ranking = sorted(rows, key=lambda row: (-row["accuracy"], row["loss"], row["prompt"]))
    metrics = {
        "data": subject.data.name,
        "images": len(subject.labels),
        "ranking": ranking,
        "kinds": {kind: kind_mean(rows, kind) for kind in dict.fromkeys(row["kind"] for row in rows)},
        "agreement_of_halves": agreement(logits, subject.labels, setting.seed),
    }
    path = setting.folder / "prompts-ranking.png"
    lines = [Ranked(row["prompt"], row["accuracy"], row["interval"], row["kind"]) for row in ranking]
    plot_ranking(path, lines, (*SINGLE, "ensemble"))
    ensembles = metrics["kinds"]["ensemble"]
    headline = (f"mean of the ensembles; simple prompts {percent(metrics['kinds']['simple'])}", percent(ensembles))
    return Outcome("Prompts, ranked", headline, metrics, told(metrics, subject, path))


def strategies(setting: Setting, subject: Subject) -> dict[str, tuple[str, Classifier]]:
    """{prompt: (kind, class matrix)}: each template alone, the mean of each kind, of all, and of the data's own set."""
    single = SINGLE_OF_DIGITS if subject.is_digits else SINGLE
    alone = {template: (kind, (template,)) for kind, templates in single.items() for template in templates}
    sets = {f"all {len(templates)} {kind} ones": templates for kind, templates in single.items()}
    sets[f"all {len(alone)} of these"] = tuple(alone)
    if len(subject.data.templates) > 1:
        sets[f"the data set's own {len(subject.data.templates)}"] = subject.data.templates
    if not subject.is_digits:
        sets["OpenAI's 7 for ImageNet"] = TEMPLATES["imagenet7"]
    wanted = alone | {name: ("ensemble", tuple(templates)) for name, templates in sets.items()}
    return {
        name: (kind, setting.pipeline.classifier(subject.names, templates))
        for name, (kind, templates) in wanted.items()
    }


def measured(prompt: str, kind: str, logits: np.ndarray, labels: np.ndarray, share: float) -> dict:
    right = int((logits.argmax(axis=1) == labels).sum())
    seen = calibration(logits, labels)
    return {
        "prompt": prompt,
        "kind": kind,
        "accuracy": right / len(labels),
        "interval": wilson_interval(right, len(labels)),
        "best_in_resamples": float(share),
        "confidence": seen["confidence"],
        "loss": seen["loss"],
    }


def kind_mean(rows: list[dict], kind: str) -> float:
    """The mean accuracy of the prompts of a kind."""
    return float(np.mean([row["accuracy"] for row in rows if row["kind"] == kind]))


def agreement(logits: list[np.ndarray], labels: np.ndarray, seed: int) -> float | None:
    """Whether prompts rank alike, by loss, on two halves of the pictures: Spearman's correlation.

    None where all tie, and for one picture.
    """
    if len(labels) < 2:
        return None
    one, other = ([calibration(x[half], labels[half])["loss"] for x in logits] for half in halves(labels, seed))
    correlation = rank_correlation(one, other)
    return None if np.isnan(correlation) else correlation


def told(metrics: dict, subject: Subject, path: Path) -> tuple[str, ...]:
    ranking, kinds, same = metrics["ranking"], metrics["kinds"], metrics["agreement_of_halves"]
    best, worst = ranking[0], ranking[-1]
    means = ", ".join(f"{kind} {percent(share)}" for kind, share in kinds.items())
    halves_agree = (
        "" if same is None else f" Ranked by loss on two halves of the pictures, they agree to {same:.2f} (Spearman)."
    )
    rows = [
        [row["prompt"], row["kind"], percent(row["accuracy"]), percent(row["best_in_resamples"]), f"{row['loss']:.3f}"]
        for row in ranking
    ]
    return (
        report.paragraph(
            f"{len(ranking)} prompts on the {metrics['images']:,} pictures of {subject.title}. Accuracy runs from "
            f"{percent(worst['accuracy'])} (“{worst['prompt']}”) to {percent(best['accuracy'])} (“{best['prompt']}”). "
            f"Means of the kinds: {means}.{halves_agree}"
        ),
        report.figure(
            path,
            "Prompts by accuracy, equal ones by loss. Lines are 95 % intervals (Wilson): where they overlap, the order "
            "may be chance.",
        ),
        report.table(["prompt", "kind", "accuracy", "best of all in resamples", "loss"], rows),
    )
