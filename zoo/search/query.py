"""Search an index of images by texts and images: `zoo search`."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zoo.embeddings import Index, TextCache, default_cache_path
from zoo.search.build import facts_of, open_pipeline
from zoo.search.lance_store import PROBES, LanceStore, is_lance
from zoo.search.sheet import check_sheet_path, draw_sheet


@dataclass(frozen=True)
class Match:
    """One result of a search.

    Args:
        rank: 1 for the best.
        id: id of the image in the index.
        score: cosine.
        metadata: metadata of the image in the index.
    """

    rank: int
    id: str
    score: float
    metadata: dict


def search_images(
    index: str,
    query: str | None = None,
    *,
    model: str | None = None,
    image: str | None = None,
    k: int = 5,
    where: Sequence[str] | None = None,
    approximate: bool = False,
    expansion: int | None = None,
    min_score: float | None = None,
    false_rate: float | None = None,
    sheet: str | None = None,
    cache: str | None = None,
) -> list[Match]:
    """Return the images that best match a query, best first: `zoo search`.

    Args:
        index: its folder, or a .lance data set of `zoo index export`.
        query: an expression of texts and image files, such as "red car - truck + 2:night"; see
            `zoo.embeddings.expression`.
        model: the pair that built the index; by default the one that the index records.
        image: an image file, in place of the query.
        k: number of results.
        where: "KEY=VALUE" conditions on the metadata, all of which must hold.
        approximate: search the graph of `zoo index accelerate --kind hnsw`.
        expansion: the same, with this expansion; see `Index.search`. For a .lance data set, the partitions to read.
        min_score: leave out images with a lower cosine.
        false_rate: leave out images below `Index.score_limit` of this rate, after `zoo index calibrate`.
        sheet: a .png or .html file to write with the images found. Images that no longer exist cause a warning.
        cache: file of the text cache; by default the user's.
    """
    if (query is None) == (image is None):
        raise ValueError("give either a query or --image FILE")
    if sheet is not None:
        check_sheet_path(Path(sheet))
    fits = _filter(where)
    if is_lance(index):
        refused = {"--where": where, "--approximate": approximate, "--false-rate": false_rate is not None}
        if any(refused.values()):
            names = ", ".join(name for name, given in refused.items() if given)
            raise ValueError(f"{names}: not for a .lance data set; use the index that it was exported from")
    opened = LanceStore(index) if is_lance(index) else Index.open(index)
    asked = Path(image) if image else query
    with contextlib.closing(TextCache(cache or default_cache_path())) as texts:
        pipeline = open_pipeline(opened, model, cache=texts)
        if isinstance(opened, LanceStore):
            found = opened.search(pipeline.embed_query(asked), k, probes=expansion or PROBES)
            found = [row for row in found if min_score is None or row[1] >= min_score]
        else:
            options: dict = {"approximate": expansion or approximate, "min_score": min_score, "false_rate": false_rate}
            ids, scores = pipeline.search(opened, asked, k, where=fits, **options)
            entries = opened.entries(ids)
            found = [(name, float(score), entries[name][1]) for name, score in zip(ids, scores, strict=True)]
    if sheet is not None:
        matches = [(name, score) for name, score, _ in found]
        draw_sheet(Path(sheet), query or Path(image or "").name, matches, facts_of(opened))
    return [Match(rank, *row) for rank, row in enumerate(found, 1)]


def _filter(where: Sequence[str] | None) -> dict[str, set]:
    """Return what the metadata must have for every "KEY=VALUE": the text, or what Python writes so."""
    fits: dict[str, set] = {}
    for text in where or ():
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise ValueError(f"--where {text} is not KEY=VALUE")
        same = _written_as(value)
        fits[key] = fits[key] & same if key in fits else same
    return fits


def _written_as(value: str) -> set[object]:
    """Return the values of metadata that Python writes as a text."""
    same: set[object] = {value}
    same.update(one for one in (True, False) if str(one) == value)
    same.update([None] if value in ("", "None") else [])
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            number: object = kind(value)
            same.update([number] if str(number) == value else [])
    return same


def to_text(matches: list[Match]) -> str:
    """Format matches, one per line: rank, cosine, id."""
    if not matches:
        return "nothing matches"
    return "\n".join(f"{match.rank:>3}  {match.score:.4f}  {match.id}" for match in matches)
