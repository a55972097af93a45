"""What is known of a name, of published weights or of a saved model, before any weight is touched."""

import dataclasses
from dataclasses import dataclass

from zoo.data.preprocess import IMAGENET_MEAN, IMAGENET_STD, PreprocessSpec
from zoo.models.names import find, find_tagged
from zoo.models.recipes import Recipe, named, published
from zoo.weights import native
from zoo.weights.native import Description
from zoo.weights.published import Weights, restriction, tags
from zoo.weights.schema import CLIP, RESNET

SOURCES = {
    "convnext": "arXiv:2201.03545",
    "convnextv2": "arXiv:2301.00808",
    RESNET: "arXiv:1512.03385",
    CLIP: "arXiv:2103.00020",
}
PAIR_SOURCES = {"MobileCLIP2-": "arXiv:2508.20691", "MobileCLIP-": "arXiv:2311.17049"}  # start of a pair's name → paper
PUBLISHED = {  # licences of the weights that others publish; none of them comes with this package
    "convnext": "MIT (facebookresearch), Apache-2.0 (timm)",
    "convnextv2": "CC-BY-NC-4.0, not for commercial use",
    RESNET: "BSD-3-Clause (torchvision), Apache-2.0 (timm), by tag",
    CLIP: "MIT (OpenAI, LAION) and others, by tag",
}
CROP_PCT = 0.875  # timm's for classifiers at 224


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a name, or of a saved model, before any weight is touched.

    Args:
        name: as `list_models` prints it, with the weights' tag where one was given; of a saved model, the model's own.
        family: "convnext", "convnextv2", "resnet" or "clip".
        parameters: trainable; of a name without weights, at 1000 classes.
        flops: of one image, in a pair of one image and one caption; two for each multiply–add. None where the input
            has no fixed size.
        input: (H, W, C) of an image.
        preprocess: how a picture becomes that input; None when nobody said.
        licence: of the weights; of a name without weights, the code's and that of the weights others publish.
        score: published top-1 accuracy on ImageNet-1k in percent, zero-shot for a pair; None where there is none.
        source: the paper.
        weights: the row of the table of published weights, or None.
    """

    name: str
    family: str
    parameters: int
    flops: int | None
    input: tuple[int | None, int | None, int]
    preprocess: PreprocessSpec | None
    licence: str | None
    score: float | None
    source: str | None
    weights: Weights | None = None


def model_info(name: str) -> ModelInfo:
    """The `ModelInfo` of a name, with or without a weights tag, from the tables.

    Raises:
        ValueError: an unknown name, or weights that there are not; the nearest are named.
    """
    entry = find(name)
    if entry.tag:
        return info_of(published(entry, find_tagged(entry)))
    recipe = named(entry)
    spec = PreprocessSpec(input_shape(recipe.description)[0])
    if entry.family != CLIP:
        spec = dataclasses.replace(spec, mean=IMAGENET_MEAN, std=IMAGENET_STD, crop_pct=CROP_PCT, rgb_first=True)
    elif tags(entry.name):
        spec = next(iter(tags(entry.name).values())).preprocess
    licence = f"code Apache-2.0; published weights {PUBLISHED[entry.family]}"
    description = dataclasses.replace(recipe.description, preprocess=spec, licence=licence)
    return info_of(dataclasses.replace(recipe, description=description))


def info_of(recipe: Recipe) -> ModelInfo:
    """Of a recipe, by the tables' arithmetic."""
    row, parameters = recipe.row, native.count_weights(recipe.description)
    return described(recipe.description, row.full_name if row else recipe.origin, parameters, row)


def described(description: Description, name: str, parameters: int, row: Weights | None = None) -> ModelInfo:
    """The `ModelInfo` of a described model with that many parameters."""
    shape = input_shape(description)
    return ModelInfo(
        name,
        description.family,
        parameters,
        _flops(description, shape),
        shape,
        description.preprocess,
        description.licence,
        row and row.score,
        paper(description),
        row,
    )


def paper(description: Description) -> str:
    """arXiv's number of the paper that the architecture is from."""
    variant = description.arguments["variant"]
    of_its_own = (source for start, source in PAIR_SOURCES.items() if str(variant).startswith(start))
    return next(of_its_own, SOURCES[description.family])


def input_shape(description: Description) -> tuple[int | None, int | None, int]:
    """(H, W, C)."""
    arguments = description.arguments
    return (*[arguments["image_size"]] * 2, 3) if description.family == CLIP else tuple(arguments["input_shape"])


def _flops(description, shape):
    import clip
    import convnext

    height, width, channels = shape
    if height is None or height != width:
        return None
    arguments = description.arguments
    row = native.row_of(description.family, arguments["variant"])
    if description.family == CLIP:
        return clip.flops(row, height)
    return convnext.flops(
        row,
        image_size=height,
        stem_stride=arguments.get("stem_stride", 4),
        num_classes=arguments["num_classes"] if arguments["include_top"] else None,
        in_channels=channels,
    )


def to_text(info: ModelInfo) -> str:
    """A line a fact."""
    facts = {
        "name": info.name,
        "parameters": f"{info.parameters:,}",
        "FLOPs": info.flops and f"{info.flops / 1e9:.2f} G, of {info.flops / 2e9:.2f} G multiply–adds",
        "input": " × ".join(map(str, info.input)),
        "preprocessing": info.preprocess and _preprocess_text(info.preprocess),
        "licence": info.licence,
        "score": info.score and f"{info.score} % top-1 on ImageNet-1k{'' if info.family != 'clip' else ', zero-shot'}",
        "paper": info.source,
        **(_weights_facts(info.weights) if info.weights else {}),
    }
    return "\n".join(f"{name:<14}{value}" for name, value in facts.items() if value is not None)


def _preprocess_text(spec):
    """How a picture becomes the input, in one line."""
    crop = f", crop {spec.crop_pct:g}" if spec.crop_pct != 1 else ""
    return f"{spec.interpolation}, {spec.resize_mode}{crop}, mean {spec.mean}, std {spec.std}"


def _weights_facts(row):
    """{fact: text} of a row of the table of published weights."""
    remark = restriction(row.licence)
    return {
        "licence": f"{row.licence} ({remark})" if remark else row.licence,
        "repository": f"https://huggingface.co/{row.repository}{f' at {row.revision}' if row.revision else ''}",
        "file": " or ".join(row.files),
        "SHA-256": row.sha256 or "unpinned: written down at the first download, and verified from then on",
        "activation": row.activation,
        "classes": _classes_text(row),
        "tested at": row.test and f"{row.test.size[0]} pixels, crop {row.test.crop_pct:g}",
    }


def _classes_text(row):
    if row.classes is None:
        return None
    what = "none: an image embedding" if row.embedding else "none: a trunk"
    return what if row.embedding or not row.classes else f"{row.classes:,}"
