"""What a search found, as pictures: a PNG, or a page that needs no other file."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from zoo.utils.report import SheetRow, plot_sheet, write_page

COLUMNS = 10
THUMBNAIL = 240  # pixels of the longer side, on a page
PAGES = (".html", ".htm")

Found = tuple[np.ndarray, str, str]  # a picture uint8 (H, W, 3), its score, its id


def check_sheet_path(path: Path) -> None:
    """ValueError or FileNotFoundError for a place where no sheet can be written, before the work that leads to it."""
    if path.suffix.lower() not in (".png", *PAGES):
        raise ValueError(f"{path} cannot be a sheet; its name must end in .png, {' or '.join(PAGES)}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"No folder {str(path.parent)!r} to write {path.name} into.")


def write_sheet(path: str | Path, text: str, found: Sequence[Found]) -> None:
    """Draws pictures with their scores, best first, under what was searched for.

    Args:
        path: .html for a page with the ids too, else a PNG.
        found: at least one.
    """
    if Path(path).suffix.lower() in PAGES:
        tiles = "".join(_tile(*one) for one in found)
        write_page(path, text, f'<div class="tiles">{tiles}</div>', lead=f"{len(found)} images, the best first")
        return
    lines = [found[first : first + COLUMNS] for first in range(0, len(found), COLUMNS)]
    rows = [
        SheetRow("" if i else f"“{text}”", [picture for picture, _, _ in line], [score for _, score, _ in line])
        for i, line in enumerate(lines)
    ]
    plot_sheet(path, rows)


def _tile(picture: np.ndarray, score: str, name: str) -> str:
    thumbnail = Image.fromarray(picture)
    thumbnail.thumbnail((THUMBNAIL, THUMBNAIL))
    content = io.BytesIO()
    thumbnail.save(content, "PNG")
    source = "data:image/png;base64," + base64.b64encode(content.getvalue()).decode("ascii")
    label = html.escape(name)
    return f'<div class="tile"><img src="{source}" alt="{label}" width="100%"><b>{score}</b><span>{label}</span></div>'
