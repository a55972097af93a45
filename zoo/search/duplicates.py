"""Find near-duplicates in an index: `zoo index duplicates`."""

from pathlib import Path

from zoo.embeddings import Index
from zoo.search.build import facts_of
from zoo.search.sheet import check_sheet_path, draw_groups

MOST_DRAWN = 100  # groups on a sheet


def index_duplicates(index: str, *, threshold: float = 0.95, sheet: str | None = None) -> list[list[dict]]:
    """Return groups of near-duplicates, the largest first, each a list of {"id", "score"}: `zoo index duplicates`.

    Args:
        threshold, score: see `Index.duplicates`.
        sheet: a .png or .html file to write with the first MOST_DRAWN groups.
    """
    if sheet is not None:
        check_sheet_path(Path(sheet))
    opened = Index.open(index)
    groups = opened.duplicates(threshold)
    if sheet is not None:
        draw_groups(Path(sheet), groups[:MOST_DRAWN], facts_of(opened))
    return [[{"id": identity, "score": score} for identity, score in group] for group in groups]


def to_text(groups: list[list[dict]]) -> str:
    """Format groups: a line for each image, an empty line between groups, and the counts."""
    blocks = ["\n".join(f"{one['score']:.4f}  {one['id']}" for one in group) for group in groups]
    return "\n\n".join([*blocks, f"{sum(map(len, groups))} images in {len(groups)} groups"])
