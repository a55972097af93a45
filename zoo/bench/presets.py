"""Benchmarks by name, as data; and the figures of earlier reports that some of them reproduce.

A preset is a tuple of sweeps. A sweep holds `zoo bench` options; its cases are all their combinations. `across` names
the fields in which cases that take turns may differ; sweeps with the same `group` take turns together. `ours=False`
keeps only the peers' cases. An option given by the user replaces the preset's.
"""

from typing import Any, NamedTuple

from zoo.bench.cases import Case
from zoo.utils.env import BACKENDS

ACROSS = ("library", "backend", "dtype", "mode", "runtime")  # the default

SCALED = "convnextv2_atto"  # model of the first two sweeps of `scaling`
CONVNEXT_SIZES = tuple(
    f"convnext_{size}" for size in ("atto", "femto", "pico", "nano", "tiny", "small", "base", "large")
)

LIMITS: dict[str, tuple[float | None, float | None]] = {
    "scaling": (60.0, 6.0),
    "optimizations": (60.0, None),
}  # seconds and GB allowed per case by default

ALL = tuple(BACKENDS)
BACKBONE = {"runtime": ("keras", "onnx"), "group": "backbones"}
TRAINING = {"batch_size": (64,), "backend": ALL, "train": (True,)}

PRESETS: dict[str, tuple[dict[str, Any], ...]] = {
    # These reproduce tables of earlier reports; see REPORTED.
    "towers": ({"names": ("ViT-B-32", "convnext_v2_tiny"), "batch_size": (1, 32), "across": ("name", "library")},),
    "runtimes": (
        {
            "names": ("convnext_v2_tiny",),
            "part": ("image",),
            "batch_size": (1,),
            "dtype": ("float32", "float16"),
            "runtime": ("keras", "onnx"),
            "across": ("library", "dtype", "mode", "runtime"),
        },
    ),
    "batching": (
        {
            "names": ("ViT-B-32",),
            "part": ("image",),
            "batch_size": (1, 4, 8, 16, 32, 64),
            "across": ("library", "batch_size"),
        },
    ),
    "variants": (
        {
            "names": ("ViT-B/32", "RN50", "RN101", "ViT-B/16", "ViT-L/14", "ViT-L/14@336px"),
            "part": ("image",),
            "batch_size": (16,),
            "across": ("library", "name", "image_size"),
        },
    ),
    "precision": (
        {
            "names": ("ViT-L-14",),
            "part": ("image",),
            "batch_size": (1, 8, 32, 64),
            "dtype": ("float32", "float16"),
            "across": ("library", "dtype"),
        },
    ),
    "combined": (
        {
            "names": ("convnext_v2_tiny",),
            "part": ("zero-shot",),
            "batch_size": (32,),
            "dtype": ("float32", "int8"),
            "runtime": ("keras", "onnx"),
            "peer": ("open_clip",),
        },
    ),
    "cache": ({"names": ("ViT-B-32",), "part": ("cached-texts", "texts"), "batch_size": (100,), "across": ("part",)},),
    "search": ({"names": ("ViT-B-32",), "part": ("cached-search", "search"), "batch_size": (1,), "across": ("part",)},),
    # The project's speed targets; see bars.py.
    "bars": (
        {**BACKBONE, "names": ("convnext_tiny",), "backend": ALL, "peer": ("keras_applications", "zeromodels")},
        {**BACKBONE, "names": ("convnextv2_tiny",), "backend": ALL, "peer": ("zeromodels",)},
        {
            "names": ("convnext_tiny", "convnextv2_tiny"),
            "mode": ("eager", "compiled"),
            "peer": ("timm",),
            "group": "backbones",
            "ours": False,
        },
        {
            "names": ("ViT-B-32",),
            "part": ("image", "text"),
            "backend": ALL,
            "runtime": ("keras", "folded"),
            "peer": ("keras_hub", "open_clip"),
        },
        {
            "names": ("convnext_v2_tiny",),
            "part": ("pictures",),
            "batch_size": (64,),
            "backend": ALL,
            "dtype": ("float32", "int8"),
            "runtime": ("keras", "onnx"),
            "peer": ("open_clip",),
        },
        {**TRAINING, "names": ("convnextv2_atto",), "image_size": (64,), "peer": ("timm",)},
        {**TRAINING, "names": ("clip/convnext_v2_atto",), "image_size": (32,), "peer": ("open_clip",)},
        {
            "names": ("convnextv2_atto",),
            "batch_size": (32,),
            "backend": ALL,
            "mode": (None, "predict", "predictor"),
            "peer": ("none",),
        },
        {
            "names": ("ViT-B-32",),
            "part": ("captions", "mixed-captions"),
            "batch_size": (20_000,),
            "peer": ("open_clip",),
        },
    ),
    # How time and memory grow with batch size, image size and model size.
    "scaling": (
        {"names": (SCALED,), "backend": ALL, "batch_size": (1, 2, 4, 8, 16, 32, 64), "across": ("batch_size",)},
        {"names": (SCALED,), "backend": ALL, "image_size": (96, 160, 224, 288, 384), "across": ("image_size",)},
        {"names": CONVNEXT_SIZES, "backend": ALL, "batch_size": (2,), "peer": ("none",), "across": ("name",)},
    ),
}  # fmt: skip

OPTIMIZATIONS = ("cache", "precision", "batching", "variants", "combined", "search")  # in the order of the document
PRESETS["optimizations"] = tuple(sweep for preset in OPTIMIZATIONS for sweep in PRESETS[preset])

# Figures of earlier reports, printed beside ours: the same models in PyTorch on a GPU. None was measured here.

UNNAMED_GPU = "PyTorch on an NVIDIA GPU that the report does not name"
LAPTOP = "PyTorch on an NVIDIA GeForce RTX 4060 Laptop GPU"


class Table(NamedTuple):
    """A table of an earlier report.

    Args:
        hardware: hardware and software of its figures.
        fields: case fields that identify a row.
        figures: {values of these fields: text of the row}.
        note: remark on the table, or "".
    """

    hardware: str
    fields: tuple[str, ...]
    figures: dict[tuple, str]
    note: str = ""


def _rates(rates):
    """Return {(key,): text} from {key: images per second}."""
    return {(key,): f"{rate:,} a second" for key, rate in rates.items()}


REPORTED = {
    "towers": Table(
        UNNAMED_GPU,
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
        UNNAMED_GPU,
        ("runtime", "dtype"),
        {("keras", "float32"): "20.22 ms", ("keras", "float16"): "28.28 ms", ("onnx", "float32"): "15.84 ms"},
    ),
    "batching": Table(LAPTOP, ("batch_size",), _rates({1: 148, 4: 465, 8: 994, 16: 1234, 32: 1304, 64: 1608})),
    "variants": Table(
        LAPTOP,
        ("name",),
        _rates({"clip/ViT-B-32": 1265, "clip/RN50": 902, "clip/RN101": 622, "clip/ViT-B-16": 432, "clip/ViT-L-14": 106})
        | {("clip/ViT-L-14-336",): "80 a second, estimated there"},
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


REPORTED["optimizations"] = Table(LAPTOP, (), {})  # the rows of its six presets


def reported_figure(preset: str, case: Case) -> str:
    """Return what the report that a preset reproduces says about a case; "–" if nothing."""
    parts = [name for name in OPTIMIZATIONS if _is_of(name, case)] if preset == "optimizations" else [preset]
    tables = [REPORTED[name] for name in parts]
    found = [table.figures.get(tuple(getattr(case, field) for field in table.fields)) for table in tables]
    return "; ".join(filter(None, found)) or "–"


def _is_of(preset: str, case: Case) -> bool:
    """Whether a case is one of a preset's."""
    from zoo.models.names import find

    return any(
        case.name in [find(name).name for name in sweep["names"]]
        and all(getattr(case, field) in sweep[field] for field in ("part", "batch_size") if field in sweep)
        for sweep in PRESETS[preset]
    )
