"""Retrieval between images and captions, in both directions, measured as in LAION's CLIP_benchmark.

An image with several captions counts as one image. From text to image, each caption has one correct image; from image
to text, any of the image's captions is correct. Ranks and ties: `zoo.evaluation.metrics`.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from clip import tokenize
from zoo.data import BadSample, Dataset, open_dataset, open_record
from zoo.data.preprocess import to_display
from zoo.evaluation.metrics import retrieval_ranks, summarize_ranks
from zoo.evaluation.results import embed_readable, format_left_out, nothing_left, write_result
from zoo.inference.encoder import Encoder
from zoo.inference.stored import open_encoder
from zoo.utils.report import SheetRow, percent, plot_sheet
from zoo.utils.text import shown

_MAX_QUERIES, _MAX_RESULTS = 6, 6  # on the sheet
# Captions: each is compared with every image, and each image with every caption. The largest test set in common use,
# COCO's, has 25,000.
MAX_ROWS = 250_000


@dataclass(frozen=True)
class RetrievalResult:
    """Retrieval metrics in both directions.

    Args:
        model, data: names.
        images, texts: counts.
        cut: number of captions truncated to the context length.
        text_to_image, image_to_text: {"recall_at_1", "recall_at_5", "recall_at_10", "median_rank", "mean_rank",
            "queries"}.
        bad: {record: reason} of the records left out.
    """

    model: str
    data: str
    images: int
    texts: int
    cut: int
    text_to_image: dict
    image_to_text: dict
    bad: dict


@dataclass(frozen=True)
class Pairs:
    """Embeddings of images and captions.

    Args:
        images: float32 (M, D).
        places: int (M,), the record of each image.
        texts: float32 (N, D).
        captions: N strings.
        owners: int (N,), the image of each caption.
        cut: number of captions truncated to the context length.
    """

    images: np.ndarray
    places: np.ndarray
    texts: np.ndarray
    captions: list[str]
    owners: np.ndarray
    cut: int


def read_pairs(path: str | Path, *, image_key: str = "filepath", caption_key: str = "caption") -> Dataset:
    """Earlier name of `open_dataset(path, needs="captions", …)`."""
    return open_dataset(path, needs="captions", image_key=image_key, caption_key=caption_key)


def encode_pairs(encoder: Encoder, records: Dataset, *, progress: bool = False) -> tuple[Pairs, dict]:
    """Return (`Pairs`, {record: reason} of the records left out). An image with several captions is embedded once."""
    rows_of = records.rows_by_name()
    firsts = np.array([rows[0] for rows in rows_of.values()])
    images, kept, reasons = embed_readable(encoder, records.subset(firsts), progress=progress)
    bad = {records.names[firsts[i]]: reason for i, reason in reasons.items()}
    captions: list[str] = []
    owners: list[int] = []
    for image, place in enumerate(kept):
        for row in rows_of[records.names[firsts[place]]]:
            try:
                captions.append(str(records.record(row).caption))
                owners.append(image)
            except BadSample as error:
                bad[f"{records.names[row]} (row {row})"] = str(error)
    if not captions:
        raise nothing_left("captions can be used", bad)
    encoder, cut = _truncating(encoder, captions)
    return Pairs(images, firsts[kept], encoder.embed_texts(captions), captions, np.array(owners), cut), bad


def _truncating(encoder: Encoder, captions: list[str]) -> tuple[Encoder, int]:
    """Return (an encoder that truncates long captions as CLIP_benchmark does, number of such captions).

    A truncated caption keeps its first tokens and the end token. A custom tokenizer is left unchanged.
    """
    if encoder.tokenizer is not tokenize:
        return encoder, 0
    length = tokenize("").shape[1]
    next_tokens = tokenize(captions, length + 1, truncate=True)[:, length]
    return replace(encoder, tokenizer=functools.partial(tokenize, truncate=True)), int(np.count_nonzero(next_tokens))


def evaluate_retrieval(
    encoder: Encoder, records: Dataset, *, name: str = "pairs", progress: bool = False, max_rows: int = MAX_ROWS
) -> tuple[RetrievalResult, Pairs]:
    """Return the metrics of retrieval among captioned records, and their embeddings; ValueError for too many."""
    if len(records) > max_rows:
        raise ValueError(
            f"{shown(name)} has {len(records):,} captions; at most {max_rows:,} are compared, because the work "
            "grows with their square. Evaluate a part of them, or raise max_rows (--max-rows)."
        )
    pairs, bad = encode_pairs(encoder, records, progress=progress)
    result = RetrievalResult(
        model=encoder.name,
        data=name,
        images=len(pairs.images),
        texts=len(pairs.texts),
        cut=pairs.cut,
        **retrieval_metrics(pairs.images, pairs.texts, pairs.owners),
        bad=bad,
    )
    return result, pairs


def retrieval_metrics(images: np.ndarray, texts: np.ndarray, owners: np.ndarray) -> dict[str, dict]:
    """Return {"text_to_image", "image_to_text"}, each as `summarize_ranks` returns it.

    Args:
        images: float32 (M, D), normalised; each image once.
        texts: float32 (N, D), normalised.
        owners: int (N,), the image of each caption. All captions of an image are correct for it; an image without
            captions is a candidate, but no query.
    """
    places = np.arange(len(images))
    captioned = np.isin(places, owners)
    return {
        "text_to_image": summarize_ranks(retrieval_ranks(texts, images, owners, places)),
        "image_to_text": summarize_ranks(retrieval_ranks(images[captioned], texts, places[captioned], owners)),
    }


def run(
    model: str,
    *,
    data: str,
    image_key: str = "filepath",
    caption_key: str = "caption",
    data_root: str | None = None,
    batch_size: int = 64,
    embeddings: Sequence[str] = (),
    max_rows: int = MAX_ROWS,
    output: str | None = None,
) -> RetrievalResult:
    """Evaluate retrieval: `zoo eval retrieval`.

    Args:
        model: name or path of a pair.
        data: a CSV or TSV file, a folder with a .txt beside each image, or tar shards.
        image_key, caption_key, data_root: columns of a table, and the base folder of its paths.
        batch_size: images per batch.
        embeddings: folders of `zoo embed` with the images' embeddings, which are then not computed.
        max_rows: more records are refused.
        output: folder for retrieval.json and retrieval.png.
    """
    columns: dict[str, Any] = {"image_key": image_key, "caption_key": caption_key, "data_root": data_root}
    records = open_dataset(data, needs="captions", **columns)
    encoder = open_encoder(model, embeddings, batch_size=batch_size)
    result, pairs = evaluate_retrieval(encoder, records, name=str(data), progress=True, max_rows=max_rows)
    if output is not None:
        folder = Path(output)
        write_result(folder, "retrieval", result)
        _draw_searches(folder / "retrieval.png", records, pairs)
    return result


def _draw_searches(path: Path, records: Dataset, pairs: Pairs) -> None:
    """Draw a few captions, each with its best matches; the correct image has a green frame."""
    chosen = np.unique(np.linspace(0, len(pairs.captions) - 1, _MAX_QUERIES).astype(int))
    rows = []
    for query in chosen:
        cosines = pairs.images @ pairs.texts[query]
        best = np.argsort(-cosines, kind="stable")[:_MAX_RESULTS]
        found = [to_display(open_record(records.record(int(pairs.places[i])))) for i in best]
        notes = [f"{cosines[i]:.2f}" for i in best]
        rows.append(SheetRow(f"“{pairs.captions[query]}”", found, notes, best == pairs.owners[query]))
    plot_sheet(path, rows)


def to_text(result: RetrievalResult) -> str:
    """Format a result as a Markdown table with a row per direction."""
    lines = [
        f"{result.model} on {result.data}: {result.images} images, {result.texts} captions",
        "",
        "| | R@1 | R@5 | R@10 | median rank | mean rank |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, metrics in (("text → image", result.text_to_image), ("image → text", result.image_to_text)):
        shares = " | ".join(percent(metrics[f"recall_at_{k}"]) for k in (1, 5, 10))
        lines.append(f"| {name} | {shares} | {metrics['median_rank']:g} | {metrics['mean_rank']:.1f} |")
    if result.cut:
        captions = "caption exceeds" if result.cut == 1 else "captions exceed"
        lines.append(f"\ntruncated: {result.cut} {captions} the context length")
    if result.bad:
        lines.append(f"\nleft out: {format_left_out(result.bad)}")
    return "\n".join(lines)
