"""Experiment 5: sentences search pictures, and pictures sentences."""

import numpy as np

from clip import CLASS_NAMES, prompts_for
from zoo.evaluation.metrics import precision_at_k, retrieval_curves, retrieval_ranks, summarize_ranks
from zoo.experiments.setting import Outcome, Setting, Subject
from zoo.utils import report
from zoo.utils.report import Panel, SheetRow, percent, plot_panels, plot_sheet

CUTS, SHOWN, SHEET_ROWS = (1, 5, 10), 8, 10
BAR = 0.97  # of the first ten held-out digits that a sentence finds, with the demo's pair


def run(setting: Setting) -> Outcome:
    subject = setting.main
    sentences = {kind: sentences_of(setting, subject, names) for kind, names in spellings(subject).items()}
    found = {kind: searched(subject, vectors) for kind, (_, vectors) in sentences.items()}
    everything = np.concatenate([vectors for _, vectors in sentences.values()])
    metrics = {
        "data": subject.data.name,
        "images": len(subject.labels),
        "texts": everything.shape[0] * everything.shape[1],
        "text_to_image": searched(subject, everything),
        "text_to_image_by_spelling": found,
        "image_to_text": ranked_texts(subject, everything),
    }
    paths = [setting.folder / f"retrieval-{name}.png" for name in ("sheet", "precision")]
    plot_sheet(paths[0], sheet(subject, sentences, rows=2 if setting.smoke else SHEET_ROWS))
    plot_panels(paths[1], panels(subject, sentences))
    whole, images = metrics["text_to_image"], metrics["image_to_text"]
    cut = max(int(name.rpartition("_")[2]) for name in whole if name.startswith("precision"))
    blocks = (
        report.paragraph(
            f"{metrics['texts']} sentences search {metrics['images']:,} pictures of {subject.title}. "
            f"{percent(whole['recall_at_1'])} of the sentences find a right picture first, and of the first {cut} "
            f"pictures {percent(whole[f'precision_at_{cut}'])} are right. The other way round, "
            f"{percent(images['recall_at_1'])} of the pictures find a right sentence first."
        ),
        report.figure(paths[0], "The best matches of a sentence a class, with their cosines. Green is right."),
        report.figure(
            paths[1],
            "Precision and recall of the first k pictures. A perfect pair stays at the top of the left panel until a "
            "class has no more pictures (dotted).",
        ),
        report.table(
            ["sentences with", "recall at 1", *(f"precision at {k}" for k in cuts(subject))], table_rows(metrics)
        ),
    )
    bar = f" (the demo's bar: {percent(BAR)})" if (subject.data.name, cut) == ("digits", 10) else ""
    label = f"of the first {cut} pictures that a sentence finds are right{bar}"
    headline = (label, percent(whole[f"precision_at_{cut}"]))
    return Outcome("Pictures found by sentences", headline, metrics, blocks)


def spellings(subject: Subject) -> dict[str, tuple[str, ...]]:
    """{kind: K names}: digits are asked for in words and in numerals."""
    if subject.is_digits:
        return {"words": CLASS_NAMES["digits"], "numerals": CLASS_NAMES["mnist"]}
    return {"names": subject.names}


def sentences_of(setting: Setting, subject: Subject, names: tuple[str, ...]) -> tuple[list[list[str]], np.ndarray]:
    """(T lists of K sentences, float32 (T, K, D)), for T templates."""
    texts = [list(row) for row in zip(*prompts_for(names, subject.data.templates), strict=True)]
    vectors = setting.pipeline.embed_texts([text for row in texts for text in row])
    return texts, vectors.reshape(len(texts), len(names), -1)


def cuts(subject: Subject) -> list[int]:
    """Those of CUTS that no class is too small for."""
    least = np.bincount(subject.labels)[np.unique(subject.labels)].min()
    return [k for k in CUTS if k <= least] or [1]


def there(subject: Subject, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(sentences float32 (Q, D), their classes int (Q,)) of (T, K, D), without classes that have no picture."""
    classes = np.unique(subject.labels)
    return vectors[:, classes].reshape(-1, vectors.shape[-1]), np.tile(classes, len(vectors))


def searched(subject: Subject, vectors: np.ndarray) -> dict:
    """Text to image: ranks of the best right picture, and the precision of the first k."""
    texts, classes = there(subject, vectors)
    scores, right = texts @ subject.vectors.T, classes[:, None] == subject.labels
    ranks = retrieval_ranks(texts, subject.vectors, classes, subject.labels)
    return {**summarize_ranks(ranks), **{f"precision_at_{k}": precision_at_k(scores, right, k) for k in cuts(subject)}}


def ranked_texts(subject: Subject, vectors: np.ndarray) -> dict:
    """Image to text: ranks of the best right sentence."""
    texts, classes = there(subject, vectors)
    return summarize_ranks(retrieval_ranks(subject.vectors, texts, subject.labels, classes))


def sheet(subject: Subject, sentences: dict, rows: int) -> list[SheetRow]:
    """A row a class: one of its sentences, kinds of name and templates in turn, and the pictures that match it best."""
    kinds, made = list(sentences), []
    for place, label in enumerate(np.unique(subject.labels)[:rows]):
        texts, vectors = sentences[kinds[place % len(kinds)]]
        template = place % len(texts)
        cosines = subject.vectors @ vectors[template, label]
        best = np.argsort(-cosines, kind="stable")[:SHOWN]
        pictures, notes = [subject.picture(int(i)) for i in best], [f"{cosine:.2f}" for cosine in cosines[best]]
        made.append(SheetRow(f"“{texts[template][label]}”", pictures, notes, subject.labels[best] == label))
    return made


def panels(subject: Subject, sentences: dict) -> list[Panel]:
    """Precision and recall at k, to half as many again as the largest class has pictures."""
    largest = int(np.bincount(subject.labels).max())
    most = min(len(subject.labels), int(1.5 * largest))
    curves = {}
    for kind, (_, vectors) in sentences.items():
        texts, classes = there(subject, vectors)
        curves[kind] = retrieval_curves(texts @ subject.vectors.T, classes[:, None] == subject.labels)
    axis = {"x": np.arange(1, most + 1), "marks": {"the largest class": largest}, "xlabel": "k", "percent": True}
    return [
        Panel(title, curves={kind: both[which][:most] for kind, both in curves.items()}, **axis)
        for which, title in enumerate(("Precision at k", "Recall at k"))
    ]


def table_rows(metrics: dict) -> list[list[str]]:
    kinds = {**metrics["text_to_image_by_spelling"], "all together": metrics["text_to_image"]}
    return [
        [
            kind,
            percent(row["recall_at_1"]),
            *(percent(value) for name, value in row.items() if name.startswith("precision")),
        ]
        for kind, row in kinds.items()
    ]
