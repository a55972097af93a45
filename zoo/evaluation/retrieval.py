"""Retrieval between pictures and captions, both ways, measured as LAION's CLIP_benchmark does.

An image with several captions counts as one image: text → image each caption has one right image; image → text any of
its captions is right. Ranks and ties: `zoo.evaluation.metrics`.
"""

import functools
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from clip import tokenize
from zoo.data import BadSample, Dataset, open_dataset, open_record
from zoo.evaluation.metrics import retrieval_ranks, summarize_ranks
from zoo.evaluation.results import embed_readable, none_left, told, write_result
from zoo.inference.encoder import Encoder, load_encoder
from zoo.utils.report import SheetRow, percent, plot_sheet

SHOWN_QUERIES, SHOWN_RESULTS = 6, 6


@dataclass(frozen=True)
class RetrievalResult:
    """Ranks of the right ones, summarised.

    Args:
        model, data: names.
        images, texts: counts.
        cut: how many of the texts have more tokens than the pair reads.
        text_to_image, image_to_text: {"recall_at_1", "recall_at_5", "recall_at_10", "median_rank", "mean_rank",
            "queries"}.
        bad: {record: why it was left out}.
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
    """Images and captions, encoded.

    Args:
        images: float32 (M, D); `places` int (M,) are their records.
        texts: float32 (N, D) of `captions`, N strings; `owners` int (N,) say which image each belongs to.
        cut: how many captions were read to the longest length alone.
    """

    images: np.ndarray
    places: np.ndarray
    texts: np.ndarray
    captions: list[str]
    owners: np.ndarray
    cut: int


def encode_pairs(encoder: Encoder, records: Dataset, *, progress: bool = False) -> tuple[Pairs, dict]:
    """(`Pairs`, {record: why it was left out}): each image once, however many captions name it."""
    rows_of: dict[str, list[int]] = {}
    for row, name in enumerate(records.names):
        rows_of.setdefault(name, []).append(row)
    firsts = np.array([rows[0] for rows in rows_of.values()])
    images, kept, reasons = embed_readable(encoder, records.subset(firsts), progress=progress)
    bad = {records.names[firsts[i]]: reason for i, reason in reasons.items()}
    captions, owners = [], []
    for image, place in enumerate(kept):
        for row in rows_of[records.names[firsts[place]]]:
            try:
                captions.append(records.record(row).caption)
                owners.append(image)
            except BadSample as error:
                bad[f"{records.names[row]} (row {row})"] = str(error)
    if not captions:
        raise none_left("captions can be used", bad)
    encoder, cut = truncating(encoder, captions)
    return Pairs(images, firsts[kept], encoder.embed_texts(captions), captions, np.array(owners), cut), bad


def truncating(encoder: Encoder, captions: list[str]) -> tuple[Encoder, int]:
    """(the encoder, reading of a longer caption its first tokens and the end id, as CLIP_benchmark does; how many such
    captions there are). A tokenizer of the user's own is left to do as it does."""
    if encoder.tokenizer is not tokenize:
        return encoder, 0
    length = tokenize("").shape[1]
    beyond = tokenize(captions, length + 1, truncate=True)[:, length]
    return replace(encoder, tokenizer=functools.partial(tokenize, truncate=True)), int(np.count_nonzero(beyond))


def evaluate_retrieval(
    encoder: Encoder, records: Dataset, *, name: str = "pairs", progress: bool = False
) -> tuple[RetrievalResult, Pairs]:
    """Ranks every caption's image and every image's captions."""
    pairs, bad = encode_pairs(encoder, records, progress=progress)
    places = np.arange(len(pairs.images))
    captioned = np.isin(places, pairs.owners)  # an image all of whose captions are bad asks for nothing
    to_image = retrieval_ranks(pairs.texts, pairs.images, pairs.owners, places)
    to_text = retrieval_ranks(pairs.images[captioned], pairs.texts, places[captioned], pairs.owners)
    result = RetrievalResult(
        model=encoder.name,
        data=name,
        images=len(pairs.images),
        texts=len(pairs.texts),
        cut=pairs.cut,
        text_to_image=summarize_ranks(to_image),
        image_to_text=summarize_ranks(to_text),
        bad=bad,
    )
    return result, pairs


def run(
    model: str,
    *,
    data: str,
    image_key: str = "filepath",
    caption_key: str = "caption",
    batch_size: int = 64,
    output: str | None = None,
) -> RetrievalResult:
    """The command `zoo eval retrieval`; with `output` it leaves retrieval.json and retrieval.png in a folder."""
    records = open_dataset(data, needs="captions", image_key=image_key, caption_key=caption_key)
    encoder = load_encoder(model, batch_size=batch_size)
    result, pairs = evaluate_retrieval(encoder, records, name=str(data), progress=True)
    if output is not None:
        folder = Path(output)
        write_result(folder, "retrieval", result)
        draw_searches(folder / "retrieval.png", records, pairs)
    return result


def draw_searches(path: Path, records: Dataset, pairs: Pairs) -> None:
    """A few captions, evenly spread, each with the images that match it best; its own is framed in green."""
    chosen = np.unique(np.linspace(0, len(pairs.captions) - 1, SHOWN_QUERIES).astype(int))
    rows = []
    for query in chosen:
        cosines = pairs.images @ pairs.texts[query]
        best = np.argsort(-cosines, kind="stable")[:SHOWN_RESULTS]
        pictures = [np.asarray(open_record(records.record(int(pairs.places[i]))).convert("RGB")) for i in best]
        notes = [f"{cosines[i]:.2f}" for i in best]
        rows.append(SheetRow(f"“{pairs.captions[query]}”", pictures, notes, best == pairs.owners[query]))
    plot_sheet(path, rows)


def to_text(result: RetrievalResult) -> str:
    """Markdown: one line a direction."""
    lines = [
        f"{result.model} on {result.data}: {result.images} images, {result.texts} captions",
        "",
        "| | R@1 | R@5 | R@10 | median rank | mean rank |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, found in (("text → image", result.text_to_image), ("image → text", result.image_to_text)):
        shares = " | ".join(percent(found[f"recall_at_{k}"]) for k in (1, 5, 10))
        lines.append(f"| {name} | {shares} | {found['median_rank']:g} | {found['mean_rank']:.1f} |")
    if result.cut:
        have = "caption has" if result.cut == 1 else "captions have"
        lines.append(f"\ncut: {result.cut} {have} more tokens than the pair reads")
    if result.bad:
        lines.append(f"\nleft out: {told(result.bad)}")
    return "\n".join(lines)
