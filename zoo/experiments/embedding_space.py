"""Experiment 6: the space that pictures and texts share: classes, concepts, and the gap between both kinds."""

import math
from collections.abc import Callable

import numpy as np

from clip import CLASS_NAMES, prompts_for
from zoo.evaluation.classifier import create_classifier
from zoo.evaluation.metrics import class_similarity, modality_gap, principal_components, rank_correlation, separation
from zoo.experiments.plots import Cloud, Histogram, Matrix, plot_clouds, plot_histograms, plot_matrices
from zoo.experiments.setting import Outcome, Setting, Subject
from zoo.utils import report
from zoo.utils.report import percent

MOST_COMPARED = 1500  # pictures, evenly chosen, in the distribution of pairs


def run(setting: Setting) -> Outcome:
    subject = setting.main
    texts, text_labels = class_texts(setting, subject)
    concepts, vectors = concepts_of(setting, subject)
    between_pictures = class_similarity(subject.vectors, subject.labels, len(subject.names))
    between_concepts = vectors @ vectors.T
    metrics = {
        "data": subject.data.name,
        "images": len(subject.labels),
        "texts": len(texts),
        "image_image": separation(subject.vectors, subject.labels),
        "text_text": separation(texts, text_labels),
        "image_text": image_text(subject, texts, text_labels),
        "modality_gap": modality_gap(subject.vectors, texts),
        "concept_relations": relations(between_pictures, between_concepts[: len(subject.names), : len(subject.names)]),
        "class_similarity": between_pictures.tolist(),
        "concepts": concepts,
        "concept_similarity": between_concepts.tolist(),
    }
    paths = {name: setting.folder / f"embedding_space-{name}.png" for name in ("clouds", "cosines", "matrices")}
    clouds, metrics["variance"] = projections(subject, texts, text_labels)
    plot_clouds(paths["clouds"], clouds)
    plot_histograms(paths["cosines"], [pictures_histogram(subject), texts_histogram(subject, texts, text_labels)])
    plot_matrices(
        paths["matrices"],
        [
            Matrix("Pictures: mean cosine between classes", between_pictures, subject.names, subject.names),
            Matrix("Texts: cosine between concepts", between_concepts, concepts, concepts),
        ],
    )
    apart = metrics["image_image"]
    label = f"mean cosine of two pictures of one class; of two classes {written(apart['between'], '{:.2f}'.format)}"
    headline = (label, written(apart["within"], "{:.2f}".format))
    return Outcome("One space for pictures and texts", headline, metrics, told(metrics, subject, paths))


def class_texts(setting: Setting, subject: Subject) -> tuple[np.ndarray, np.ndarray]:
    """(float32 (K · T, D), int (K · T,)): every class in every template, and the class of each."""
    prompts = prompts_for(subject.names, subject.data.templates)
    vectors = setting.pipeline.embed_texts([text for row in prompts for text in row])
    return vectors, np.repeat(np.arange(len(prompts)), len(prompts[0]))


def concepts_of(setting: Setting, subject: Subject) -> tuple[list[str], np.ndarray]:
    """(names, float32 (C, D)): each class as the mean of its prompts; digits in words, then in numerals."""
    kinds = [subject.names, CLASS_NAMES["mnist"]] if subject.is_digits else [subject.names]
    classes = [create_classifier(setting.pipeline, names, subject.data.templates) for names in kinds]
    return [name for names in kinds for name in names], np.concatenate([c.matrix.T for c in classes])


def image_text(subject: Subject, texts: np.ndarray, text_labels: np.ndarray) -> dict[str, float]:
    """Mean cosines between pictures and the texts of their own class, and of others."""
    cosines, own = subject.vectors @ texts.T, subject.labels[:, None] == text_labels
    pairs = {"own_class": cosines[own], "other_classes": cosines[~own]}
    return {kind: float(values.mean()) if len(values) else math.nan for kind, values in pairs.items()}


def relations(pictures: np.ndarray, concepts: np.ndarray) -> float | None:
    """Whether classes that look alike are called alike: rank correlation over pairs of classes of both similarities."""
    upper = np.triu_indices(len(pictures), 1)
    one, other = pictures[upper], concepts[upper]
    known = np.isfinite(one)
    return rank_correlation(one[known], other[known]) if known.sum() > 2 else None


def projections(subject: Subject, texts: np.ndarray, text_labels: np.ndarray) -> tuple[list[Cloud], dict]:
    """Two pictures of the space in two dimensions: of the pictures alone, and of pictures and texts together."""
    clouds, variance = [], {}
    for title, of in (("Pictures", subject.vectors), ("Pictures and texts", np.concatenate([subject.vectors, texts]))):
        mean, axes, shares = principal_components(of)
        variance[title.lower().replace(" ", "_")] = shares.tolist()
        stars = None if title == "Pictures" else (texts - mean) @ axes.T
        points = (subject.vectors - mean) @ axes.T
        names = short_names(subject)
        clouds.append(
            Cloud(title, points, subject.labels, names, shares, stars, None if stars is None else text_labels)
        )
    return clouds, variance


def short_names(subject: Subject) -> tuple[str, ...]:
    return CLASS_NAMES["mnist"] if subject.is_digits else subject.names


def pictures_histogram(subject: Subject) -> Histogram:
    chosen = np.unique(np.linspace(0, len(subject.labels) - 1, MOST_COMPARED).astype(int))
    vectors, labels = subject.vectors[chosen], subject.labels[chosen]
    cosines, same = vectors @ vectors.T, np.equal.outer(labels, labels)
    upper = np.triu(np.ones_like(same), 1)
    values = {"of one class": cosines[same & upper], "of two classes": cosines[~same & upper]}
    return Histogram("Two pictures", values)


def texts_histogram(subject: Subject, texts: np.ndarray, text_labels: np.ndarray) -> Histogram:
    cosines, own = subject.vectors @ texts.T, subject.labels[:, None] == text_labels
    return Histogram("A picture and a text", {"of its class": cosines[own], "of another class": cosines[~own]})


def written(value: float, write: Callable[[float], str] = "{:.3f}".format) -> str:
    """A figure; a dash for one that too few pictures leave without a value."""
    return "–" if math.isnan(value) else write(value)


def told(metrics: dict, subject: Subject, paths: dict) -> tuple[str, ...]:
    apart, across, related = metrics["image_image"], metrics["image_text"], metrics["concept_relations"]
    agree = (
        ""
        if related is None
        else (f" The order of pairs of classes agrees between both to a rank correlation of {related:.2f}.")
    )
    both = " At the right words and numerals; the line beside the diagonal is a word with its numeral."
    return (
        report.paragraph(
            f"Two pictures of one class have a mean cosine of {written(apart['within'])}, of two classes "
            f"{written(apart['between'])}; {written(apart['nearest_same'], percent)} of the pictures have one of their "
            f"own class as the nearest. A picture and a text of its class: {written(across['own_class'])}; of another: "
            f"{written(across['other_classes'])}. The middle of all pictures and the middle of all texts lie "
            f"{metrics['modality_gap']:.3f} apart: the modality gap, 0 for kinds that share one region, 2 at most."
        ),
        report.figure(
            paths["clouds"],
            "The two directions in which embeddings differ most. Dots are pictures, stars are texts.",
        ),
        report.figure(
            paths["cosines"],
            "Distributions of cosines. The less they overlap, the better the pair tells classes apart.",
        ),
        report.figure(
            paths["matrices"],
            f"Left, how alike the pictures of two classes are; right, how alike their texts.{agree}"
            f"{both if subject.is_digits else ''}",
        ),
    )
