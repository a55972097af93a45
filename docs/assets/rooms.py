"""Draw docs/assets/rooms.svg: the folders of the three packages in rows. A row imports from those below.

python docs/assets/rooms.py
"""

from html import escape
from pathlib import Path

FLOORS = [  # highest first; (folder, what it does) each
    ("zoo", [("cli", "commands → functions")]),
    ("zoo", [("serve", "HTTP service and its page")]),
    ("zoo", [("bench", "against peers; parity"), ("experiments", "nine, one report"), ("demo", "the digits")]),
    (
        "zoo",
        [("evaluation", "metrics, zero-shot"), ("training", "loop, checkpoints"), ("search", "index, query, sheet")],
    ),
    ("zoo", [("inference", "forward functions, Encoder, ClipPipeline")]),
    ("zoo", [("export", "ONNX"), ("embeddings", "vector index, text cache on disk")]),
    ("zoo", [("models", "names, info; create, load, save, fold")]),
    ("zoo", [("data", "path → records → batches"), ("weights", "files ↔ models; sources/: one file per library")]),
    ("zoo", [("utils", "backend choice, atomic files, reports")]),
    ("clip", [("towers", "one file each"), ("model", "CLIP"), ("losses", ""), ("tokenizer", ""), ("zero_shot", "")]),
    ("convnext", [("layers", "and kernels"), ("model", "V1, V2"), ("resnet", ""), ("fcmae", "pretraining")]),
]
COLORS = {"zoo": "#e3ecfa", "clip": "#e6f4e6", "convnext": "#fdf0dc"}
WIDTH, HEIGHT, LEFT, GAP = 860, 46, 92, 6


def box(x, y, width, color, name, text):
    middle = x + width / 2
    note = f'<text x="{middle}" y="{y + 35}" class="note">{escape(text)}</text>' if text else ""
    title = f'<text x="{middle}" y="{y + (20 if text else 28)}" class="name">{escape(name)}</text>'
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="{HEIGHT}" rx="4" fill="{color}" stroke="#8894a8"/>{title}{note}'
    )


def main():
    parts, y, previous = [], GAP, None
    for package, rooms in FLOORS:
        y += 8 if previous not in (None, package) else 0
        if package != previous:
            parts.append(f'<text x="{LEFT - 12}" y="{y + 28}" class="package">{package}</text>')
        width = (WIDTH - LEFT - GAP * len(rooms)) / len(rooms)
        for i, (name, text) in enumerate(rooms):
            parts.append(box(round(LEFT + i * (width + GAP), 1), y, round(width, 1), COLORS[package], name, text))
        y, previous = y + HEIGHT + GAP, package
    style = (
        "text{font-family:sans-serif;text-anchor:middle;fill:#1c2733}.name{font-size:14px;font-weight:bold}"
        ".note{font-size:11.5px;fill:#48566a}.package{font-size:14px;text-anchor:end;font-weight:bold}"
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" role="img" aria-label="The folders">'
    ground = f'<rect width="{WIDTH}" height="{y}" fill="#ffffff"/>'
    drawing = "\n".join([head, f"<style>{style}</style>", ground, *parts, "</svg>\n"])
    Path(__file__).with_suffix(".svg").write_text(drawing, encoding="utf-8")


if __name__ == "__main__":
    main()
