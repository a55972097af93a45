"""Benchmarks by name, as data.

A preset is a tuple of sweeps; a sweep says which options make up its cases, as `zoo bench` would be given them, and
`across` which fields may differ between cases that take turns with each other, those of sweeps of one `group` too.
With `ours` False its cases are the peers'. An option that the user gives replaces the preset's.
"""

from zoo.utils.env import BACKENDS

ACROSS = ("library", "backend", "dtype", "mode", "runtime")  # where no preset says otherwise

SCALED = "convnextv2_atto"  # the model of the first two sweeps of `scaling`
CONVNEXT_SIZES = tuple(
    f"convnext_{size}" for size in ("atto", "femto", "pico", "nano", "tiny", "small", "base", "large")
)

LIMITS = {"scaling": (60.0, 6.0)}  # seconds and gigabytes that a case may take, where the user gives none

ALL = tuple(BACKENDS)
BACKBONE = {"runtime": ("keras", "onnx"), "group": "backbones"}
TRAINING = {"batch_size": (64,), "backend": ALL, "train": (True,)}

PRESETS = {
    # The tables of the reports that this project started from.
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
            "names": ("ViT-B-32", "RN50", "RN101", "ViT-B-16", "ViT-L-14"),
            "part": ("image",),
            "batch_size": (16,),
            "across": ("library", "name"),
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
    # What the project holds itself to.
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
    # How time and memory grow, with the batch and the pixels of a small model, and with the model.
    "scaling": (
        {"names": (SCALED,), "backend": ALL, "batch_size": (1, 2, 4, 8, 16, 32, 64), "across": ("batch_size",)},
        {"names": (SCALED,), "backend": ALL, "image_size": (96, 160, 224, 288, 384), "across": ("image_size",)},
        {"names": CONVNEXT_SIZES, "backend": ALL, "batch_size": (2,), "peer": ("none",), "across": ("name",)},
    ),
}  # fmt: skip
