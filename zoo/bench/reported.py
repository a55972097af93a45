"""Figures of the reports that this project started from, told beside ours: each preset here makes one of their tables.

They are of the same models in PyTorch on a GPU. Nothing here was measured by us.
"""

from typing import NamedTuple

from zoo.bench.cases import Case

SOMEWHERE = "PyTorch on an NVIDIA GPU that the report does not name"
LAPTOP = "PyTorch on an NVIDIA GeForce RTX 4060 Laptop GPU"


class Table(NamedTuple):
    """A table of a report.

    Args:
        hardware: and software that its figures are of.
        fields: of a case that tell its lines apart.
        figures: {values of these fields: what the line says}.
        note: what else it says, or "".
    """

    hardware: str
    fields: tuple[str, ...]
    figures: dict[tuple, str]
    note: str = ""


def _rates(rates):
    """{key: images a second} as lines."""
    return {(key,): f"{rate:,} a second" for key, rate in rates.items()}


REPORTED = {
    "towers": Table(
        SOMEWHERE,
        ("name", "batch_size"),
        {
            ("clip/ViT-B-32", 1): "16.35 ms, 592 MB",
            ("clip/ViT-B-32", 32): "180.75 ms, 665 MB",
            ("clip/convnext_v2_tiny", 1): "21.96 ms, 383 MB",
            ("clip/convnext_v2_tiny", 32): "239.73 ms, 935 MB",
        },
        "151.28 M and 91.69 M parameters",
    ),
    "runtimes": Table(
        SOMEWHERE,
        ("runtime", "dtype"),
        {
            ("keras", "float32"): "20.22 ms",
            ("keras", "float16"): "28.28 ms",
            ("onnx", "float32"): "15.84 ms",
        },
    ),
    "batching": Table(
        LAPTOP,
        ("batch_size",),
        _rates({1: 148, 4: 465, 8: 994, 16: 1234, 32: 1304, 64: 1608}),
    ),
    "variants": Table(
        LAPTOP,
        ("name",),
        _rates(
            {"clip/ViT-B-32": 1265, "clip/RN50": 902, "clip/RN101": 622, "clip/ViT-B-16": 432, "clip/ViT-L-14": 106}
        ),
    ),
    "precision": Table(
        LAPTOP,
        ("dtype", "batch_size"),
        {
            ("float16", 1): "1.01×, differs by 2.8e-5",
            ("float16", 8): "1.03×",
            ("float16", 32): "1.00×",
            ("float16", 64): "1.00×",
        },
        "× : how many times as fast as float32",
    ),
    "combined": Table(LAPTOP, ("library",), {("zoo",): "below 100 ms an image"}),
    "cache": Table(LAPTOP, ("part",), {("texts",): "204 ms", ("cached-texts",): "6 ms, 35×"}),
    "search": Table(LAPTOP, ("part",), {("search",): "25 ms"}),
}


def told(table: Table, case: Case) -> str:
    """What the report's line of a case says; "–" where it has none."""
    return table.figures.get(tuple(getattr(case, field) for field in table.fields), "–")
