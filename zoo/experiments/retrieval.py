"""Experiment 5: text-to-image and image-to-text retrieval."""

from typing import Any

import numpy as np

from clip import CLASS_NAMES, prompts_for
from zoo.evaluation.metrics import precision_at_k, retrieval_curves, retrieval_ranks, summarize_ranks
from zoo.experiments.context import Context, EmbeddedData, Outcome
from zoo.experiments.plots import search_row
from zoo.utils import report
from zoo.utils.report import Panel, SheetRow, percent, plot_panels, plot_sheet

CUTS, SHEET_ROWS = (1, 5, 10), 10
DEMO_PRECISION = 0.97  # precision at 10 on the held-out digits that the demo's pair is expected to reach

Prompts = tuple[list[list[str]], np.ndarray]  # T lists of K prompts, and their embeddings float32 (T, K, D)


def run(context: Context) -> Outcome:
    data = context.main
    prompts = {kind: _embed_prompts(context, data, names) for kind, names in spellings(data).items()}
    by_spelling = {kind: text_to_image(data, vectors) for kind, (_, vectors) in prompts.items()}
    everything = np.concatenate([vectors for _, vectors in prompts.values()])
    metrics: dict = {
        "data": data.data.name,
        "images": len(data.labels),
        "texts": everything.shape[0] * everything.shape[1],
        "text_to_image": text_to_image(data, everything),
        "text_to_image_by_spelling": by_spelling,
        "image_to_text": image_to_text(data, everything),
    }
    plots = [context.folder / f"retrieval-{name}.png" for name in ("sheet", "precision")]
    plot_sheet(plots[0], sheet(data, prompts, rows=2 if context.smoke else SHEET_ROWS))
    plot_panels(plots[1], panels(data, prompts))
    texts, images, cut = metrics["text_to_image"], metrics["image_to_text"], cuts(data)[-1]
    blocks = (
        report.paragraph(
            f"{metrics['texts']} prompts rank {metrics['images']:,} images of {data.title}. The best match is correct "
            f"for {percent(texts['recall_at_1'])} of the prompts, and {percent(texts[f'precision_at_{cut}'])} of the "
            f"first {cut} images are correct. In the other direction, the best prompt is correct for "
            f"{percent(images['recall_at_1'])} of the images."
        ),
        report.figure(plots[0], "The best matches of one prompt per class, with their cosines. Green: correct."),
        report.figure(
            plots[1],
            "Precision and recall of the first k images. A perfect model has a precision of 100 % up to the number of "
            "images in a class (dotted: the largest class).",
        ),
        report.table(["prompts with", "recall at 1", *(f"precision at {k}" for k in cuts(data))], _table_rows(metrics)),
    )
    expected = f" (expected of the demo: {percent(DEMO_PRECISION)})" if (data.data.name, cut) == ("digits", 10) else ""
    headline = (f"of the first {cut} images for a prompt are correct{expected}", percent(texts[f"precision_at_{cut}"]))
    return Outcome("Text-to-image and image-to-text retrieval", headline, metrics, blocks)


def spellings(data: EmbeddedData) -> dict[str, tuple[str, ...]]:
    """Return {kind: K names}: digits as words and as numerals."""
    if data.is_digits:
        return {"words": CLASS_NAMES["digits"], "numerals": CLASS_NAMES["mnist"]}
    return {"names": data.names}


def _embed_prompts(context: Context, data: EmbeddedData, names: tuple[str, ...]) -> Prompts:
    texts = [list(row) for row in zip(*prompts_for(names, data.data.templates), strict=True)]
    vectors = context.pipeline.embed_texts([text for row in texts for text in row])
    return texts, vectors.reshape(len(texts), len(names), -1)


def cuts(data: EmbeddedData) -> list[int]:
    """Return those of CUTS that are at most the size of the smallest class."""
    least = np.bincount(data.labels)[np.unique(data.labels)].min()
    return [k for k in CUTS if k <= least] or [1]


def _with_images(data: EmbeddedData, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (prompts float32 (Q, D), their classes int (Q,)) from (T, K, D), without classes that have no image."""
    classes = np.unique(data.labels)
    return vectors[:, classes].reshape(-1, vectors.shape[-1]), np.tile(classes, len(vectors))


def text_to_image(data: EmbeddedData, vectors: np.ndarray) -> dict:
    """Return the recall of the best correct image, and the precision of the first k."""
    texts, classes = _with_images(data, vectors)
    scores, correct = texts @ data.vectors.T, classes[:, None] == data.labels
    ranks = retrieval_ranks(texts, data.vectors, classes, data.labels)
    return {**summarize_ranks(ranks), **{f"precision_at_{k}": precision_at_k(scores, correct, k) for k in cuts(data)}}


def image_to_text(data: EmbeddedData, vectors: np.ndarray) -> dict:
    """Return the recall of the best correct prompt."""
    texts, classes = _with_images(data, vectors)
    return summarize_ranks(retrieval_ranks(data.vectors, texts, data.labels, classes))


def sheet(data: EmbeddedData, prompts: dict[str, Prompts], rows: int) -> list[SheetRow]:
    """Return one row per class: a prompt, alternating spellings and templates, and its best matches."""
    kinds, made = list(prompts), []
    for place, label in enumerate(np.unique(data.labels)[:rows]):
        texts, vectors = prompts[kinds[place % len(kinds)]]
        template = place % len(texts)
        cosines = data.vectors @ vectors[template, label]
        made.append(search_row(texts[template][label], cosines, data.labels == label, data.thumbnail))
    return made


def panels(data: EmbeddedData, prompts: dict[str, Prompts]) -> list[Panel]:
    """Return precision and recall at k, up to 1.5 times the size of the largest class."""
    largest = int(np.bincount(data.labels).max())
    most = min(len(data.labels), int(1.5 * largest))
    curves = {}
    for kind, (_, vectors) in prompts.items():
        texts, classes = _with_images(data, vectors)
        curves[kind] = retrieval_curves(texts @ data.vectors.T, classes[:, None] == data.labels)
    axis: dict[str, Any] = {
        "x": np.arange(1, most + 1),
        "marks": {"largest class": largest},
        "xlabel": "k",
        "percent": True,
    }
    return [
        Panel(title, curves={kind: both[which][:most] for kind, both in curves.items()}, **axis)
        for which, title in enumerate(("Precision at k", "Recall at k"))
    ]


def _table_rows(metrics: dict) -> list[list[str]]:
    kinds = {**metrics["text_to_image_by_spelling"], "all": metrics["text_to_image"]}
    return [
        [
            kind,
            percent(row["recall_at_1"]),
            *(percent(value) for name, value in row.items() if name.startswith("precision")),
        ]
        for kind, row in kinds.items()
    ]
