"""Experiment 6: the shared embedding space: classes, concepts, and the gap between images and texts."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from clip import CLASS_NAMES, prompts_for
from zoo.evaluation.metrics import class_similarity, modality_gap, principal_components, rank_correlation, separation
from zoo.experiments.context import Context, EmbeddedData, Outcome
from zoo.experiments.plots import Histogram, Matrix, Scatter, plot_histograms, plot_matrices, plot_scatters
from zoo.utils import report
from zoo.utils.report import percent

MAX_COMPARED = 1500  # images, evenly spaced, in the histogram of pairs


def run(context: Context) -> Outcome:
    data = context.main
    texts, text_labels = _class_texts(context, data)
    concepts, concept_vectors = _class_concepts(context, data)
    class_cosines = class_similarity(data.vectors, data.labels, len(data.names))
    concept_cosines = concept_vectors @ concept_vectors.T
    scatters, variance = project(data, texts, text_labels)
    metrics = {
        "data": data.data.name,
        "images": len(data.labels),
        "texts": len(texts),
        "image_image": separation(data.vectors, data.labels),
        "text_text": separation(texts, text_labels),
        "image_text": _image_text_cosines(data, texts, text_labels),
        "modality_gap": modality_gap(data.vectors, texts),
        "concept_relations": _compare_relations(class_cosines, concept_cosines[: len(data.names), : len(data.names)]),
        "class_similarity": class_cosines.tolist(),
        "concepts": concepts,
        "concept_similarity": concept_cosines.tolist(),
        "variance": variance,
    }
    plots = {name: context.folder / f"embedding_space-{name}.png" for name in ("clouds", "cosines", "matrices")}
    plot_scatters(plots["clouds"], scatters)
    plot_histograms(plots["cosines"], [_image_histogram(data), _image_text_histogram(data, texts, text_labels)])
    plot_matrices(
        plots["matrices"],
        [
            Matrix("Images: mean cosine between classes", class_cosines, data.names),
            Matrix("Texts: cosine between classes", concept_cosines, concepts),
        ],
    )
    within, between = (_or_dash(metrics["image_image"][key], "{:.2f}".format) for key in ("within", "between"))
    headline = (f"mean cosine of two images of the same class; {between} for different classes", within)
    return Outcome("The embedding space", headline, metrics, describe(metrics, data, plots))


def _class_texts(context: Context, data: EmbeddedData) -> tuple[np.ndarray, np.ndarray]:
    """Return (float32 (K · T, D), int (K · T,)): the embedding and the class of every class name in every template."""
    prompts = prompts_for(data.names, data.data.templates)
    vectors = context.pipeline.embed_texts([text for row in prompts for text in row])
    return vectors, np.repeat(np.arange(len(prompts)), len(prompts[0]))


def _class_concepts(context: Context, data: EmbeddedData) -> tuple[list[str], np.ndarray]:
    """Return (names, float32 (C, D)): each class as the mean of its prompts; digits as words, then as numerals."""
    spellings = [data.names, CLASS_NAMES["mnist"]] if data.is_digits else [data.names]
    matrices = [context.pipeline.classifier(names, data.data.templates).matrix for names in spellings]
    return [name for names in spellings for name in names], np.concatenate(matrices, axis=1).T


def _image_text_cosines(data: EmbeddedData, texts: np.ndarray, text_labels: np.ndarray) -> dict[str, float]:
    """Return the mean cosines between images and the texts of their own class, and of the other classes."""
    cosines, own = data.vectors @ texts.T, data.labels[:, None] == text_labels
    pairs = {"own_class": cosines[own], "other_classes": cosines[~own]}
    return {kind: float(values.mean()) if len(values) else math.nan for kind, values in pairs.items()}


def _compare_relations(images: np.ndarray, texts: np.ndarray) -> float | None:
    """Return the rank correlation, over pairs of classes, of the images' and the texts' similarities (K, K)."""
    upper = np.triu_indices(len(images), 1)
    one, other = images[upper], texts[upper]
    known = np.isfinite(one)
    return rank_correlation(one[known], other[known]) if known.sum() > 2 else None


def project(data: EmbeddedData, texts: np.ndarray, text_labels: np.ndarray) -> tuple[list[Scatter], dict]:
    """Project the embeddings to two dimensions: images alone, and images with texts; return (plots, variances)."""
    names = CLASS_NAMES["mnist"] if data.is_digits else data.names
    mean, axes, shares = principal_components(data.vectors)
    alone = Scatter("Images", (data.vectors - mean) @ axes.T, data.labels, names, shares)
    mean, axes, both_shares = principal_components(np.concatenate([data.vectors, texts]))
    points, stars = (data.vectors - mean) @ axes.T, (texts - mean) @ axes.T
    both = Scatter("Images and texts", points, data.labels, names, both_shares, stars, text_labels)
    return [alone, both], {"pictures": shares.tolist(), "pictures_and_texts": both_shares.tolist()}


def _image_histogram(data: EmbeddedData) -> Histogram:
    chosen = np.unique(np.linspace(0, len(data.labels) - 1, MAX_COMPARED).astype(int))
    vectors, labels = data.vectors[chosen], data.labels[chosen]
    cosines, same = vectors @ vectors.T, np.equal.outer(labels, labels)
    upper = np.triu(np.ones_like(same), 1)
    return Histogram("Two images", {"same class": cosines[same & upper], "different": cosines[~same & upper]})


def _image_text_histogram(data: EmbeddedData, texts: np.ndarray, text_labels: np.ndarray) -> Histogram:
    cosines, own = data.vectors @ texts.T, data.labels[:, None] == text_labels
    return Histogram("An image and a text", {"same class": cosines[own], "different": cosines[~own]})


def _or_dash(value: float, write: Callable[[float], str] = "{:.3f}".format) -> str:
    """Format a number; a dash for NaN, where there are too few images."""
    return "–" if math.isnan(value) else write(value)


def describe(metrics: dict, data: EmbeddedData, plots: dict[str, Path]) -> tuple[str, ...]:
    images, texts, relations = metrics["image_image"], metrics["image_text"], metrics["concept_relations"]
    agreement = (
        "" if relations is None else f" The rank correlation of both, over pairs of classes, is {relations:.2f}."
    )
    spellings = " The right matrix has words and numerals; the second diagonal is each word with its numeral."
    return (
        report.paragraph(
            f"The mean cosine of two images is {_or_dash(images['within'])} within a class and "
            f"{_or_dash(images['between'])} between classes; for {_or_dash(images['nearest_same'], percent)} of the "
            "images the nearest other image has the same class. The mean cosine of an image and a text is "
            f"{_or_dash(texts['own_class'])} for its own class and {_or_dash(texts['other_classes'])} for the others. "
            "The modality gap, the distance between the mean image and the mean text, is "
            f"{metrics['modality_gap']:.3f} (0 to 2)."
        ),
        report.figure(plots["clouds"], "The first two principal components. Dots are images, stars are texts."),
        report.figure(
            plots["cosines"], "Distributions of cosines. The less they overlap, the better the classes are separated."
        ),
        report.figure(
            plots["matrices"],
            "Left: mean cosine between the images of two classes. Right: cosine between the texts of two classes."
            f"{agreement}{spellings if data.is_digits else ''}",
        ),
    )
