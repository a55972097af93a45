"""Benchmarks by name, as data.

A preset is a tuple of sweeps; a sweep says which options make up its cases, as `zoo bench` would be given them, and
`across` which fields may differ between cases that take turns with each other. An option that the user gives
replaces the preset's.
"""

ACROSS = ("library", "backend", "dtype", "mode", "runtime")  # where no preset says otherwise

CONVNEXT_SIZES = tuple(
    f"convnext_{size}" for size in ("atto", "femto", "pico", "nano", "tiny", "small", "base", "large")
)

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
        {
            "names": ("convnext_tiny", "convnextv2_tiny"),
            "peer": ("keras_applications", "zeromodels", "timm"),
        },
        {"names": ("ViT-B-32",), "part": ("image", "text"), "peer": ("keras_hub", "open_clip")},
        {
            "names": ("convnextv2_atto",),
            "batch_size": (64,),
            "image_size": (64,),
            "train": (True,),
            "peer": ("timm",),
        },
    ),
    "scaling": (
        {"names": ("convnextv2_tiny",), "batch_size": (1, 2, 4, 8, 16, 32, 64), "across": ("batch_size",)},
        {"names": ("convnextv2_tiny",), "image_size": (96, 160, 224, 288, 384), "across": ("image_size",)},
        {"names": CONVNEXT_SIZES, "peer": ("none",), "across": ("name",)},
    ),
}  # fmt: skip
