"""A contact sheet of the images a search found: a PNG, or an HTML page without further files."""

import base64
import html
import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from zoo.data import Dataset, open_record
from zoo.data.preprocess import to_display
from zoo.search.embed import open_images, recorded_root
from zoo.utils.report import SheetRow, plot_sheet, section, write_page
from zoo.utils.text import quoted, shown

_COLUMNS = 10
THUMBNAIL = 240  # pixels of the longer side, on a page
_PAGES = (".html", ".htm")

Found = tuple[np.ndarray, str, str]  # an image uint8 (H, W, 3), its score, its id


def check_sheet_path(path: Path) -> None:
    """Raise ValueError or FileNotFoundError if no sheet can be written at a path."""
    if path.suffix.lower() not in (".png", *_PAGES):
        raise ValueError(f"{shown(path)} cannot be a sheet; its name must end in .png, {' or '.join(_PAGES)}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"No folder {quoted(str(path.parent))} to write {shown(path.name)} into.")


def draw_sheet(path: Path, text: str, matches: Sequence[tuple[str, float]], facts: Mapping[str, Any]) -> None:
    """Write a sheet of matches, reading the images from their sources.

    Args:
        text: title.
        matches: (id, score), best first.
        facts: of the index, with its sources.

    Raises:
        ValueError: no match, or none whose image can be read. Single unreadable images cause a warning.
    """
    if not matches:
        raise ValueError("the search found nothing, so there is no sheet to draw")
    (found,) = _read_groups([matches], facts)
    _write(path, text, f"{len(found)} images, best first", [(f"“{text}”", found)])


def draw_groups(path: Path, groups: Sequence[Sequence[tuple[str, float]]], facts: Mapping[str, Any]) -> None:
    """Write a sheet of groups of images with the cosines of near-duplicates, as `draw_sheet` does.

    Args:
        groups: of (id, cosine).
    """
    if not groups:
        raise ValueError("there are no near-duplicates, so there is no sheet to draw")
    found = _read_groups(groups, facts)
    _write(path, "Near-duplicates", f"{len(found)} groups", [(f"{len(group)} images", group) for group in found])


def _write(path: Path, title: str, lead: str, groups: Sequence[tuple[str, Sequence[Found]]]) -> None:
    """Write groups of images under their headings; a PNG shows _COLUMNS images of each, or all of a single one."""
    if path.suffix.lower() in _PAGES:
        blocks = []
        for heading, group in groups:
            tiles = f'<div class="tiles">{"".join(_tile(*one) for one in group)}</div>'
            blocks.append(section(heading, tiles) if len(groups) > 1 else tiles)
        write_page(path, title, *blocks, lead=lead)
        return
    rows = []
    for heading, group in groups:
        for first in range(0, _COLUMNS if len(groups) > 1 else len(group), _COLUMNS):
            line = group[first : first + _COLUMNS]
            images, scores = [image for image, _, _ in line], [score for _, score, _ in line]
            rows.append(SheetRow("" if first else heading, images, scores))
    plot_sheet(path, rows)


def _read_groups(groups: Sequence[Sequence[tuple[str, float]]], facts: Mapping[str, Any]) -> list[list[Found]]:
    """Return the groups with their images; those that cannot be read are left out with a warning."""
    records, found, reasons = records_by_id(facts), [], []
    for group in groups:
        read = []
        for identity, score in group:
            try:
                read.append((_read(identity, records), f"{score:.3f}", identity))
            except (OSError, ValueError) as error:
                reasons.append(f"{shown(identity)} is not drawn: {shown(error)}")
                warnings.warn(reasons[-1], stacklevel=3)
        if read:
            found.append(read)
    if not found:
        where = ", ".join(facts.get("sources", {}).values()) or "any source of the index"
        raise ValueError(f"none of the images found can be read from {where}; {reasons[0]}")
    return found


def records_by_id(facts: Mapping[str, Any]) -> dict[str, tuple[Dataset, int]]:
    """Return {id: (records, index)} of all images that the sources of an index still have; `facts` are the index's."""
    found: dict[str, tuple[Dataset, int]] = {}
    for prefix, place in facts.get("sources", {}).items():
        try:
            records = open_images(place, recorded_root(facts, place))
        except (OSError, ValueError):  # reported for each match that is missing
            continue
        found |= {prefix + name: (records, i) for i, name in enumerate(records.names)}
    return found


def _read(identity: str, records: Mapping[str, tuple[Dataset, int]]) -> np.ndarray:
    if identity not in records:
        raise ValueError("no source of the index has it any more")
    dataset, i = records[identity]
    return to_display(open_record(dataset.record(i)))


def _tile(image: np.ndarray, score: str, name: str) -> str:
    thumbnail = Image.fromarray(image)
    thumbnail.thumbnail((THUMBNAIL, THUMBNAIL))
    content = io.BytesIO()
    thumbnail.save(content, "PNG")
    source = "data:image/png;base64," + base64.b64encode(content.getvalue()).decode("ascii")
    label = html.escape(name)
    return f'<div class="tile"><img src="{source}" alt="{label}" width="100%"><b>{score}</b><span>{label}</span></div>'
