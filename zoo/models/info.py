"""Facts about a name, published weights or a saved model, without reading any weights."""

import dataclasses
from dataclasses import dataclass

import clip
import convnext
from zoo.data.preprocess import IMAGENET_MEAN, IMAGENET_STD, PreprocessSpec
from zoo.models.names import config_of, find
from zoo.weights.config import ModelConfig
from zoo.weights.published import Weights, restriction
from zoo.weights.schema import CLIP, RESNET

_PAPERS = {
    "convnext": "arXiv:2201.03545",
    "convnextv2": "arXiv:2301.00808",
    RESNET: "arXiv:1512.03385",
    CLIP: "arXiv:2103.00020",
}
_PAIR_PAPERS = {"MobileCLIP2-": "arXiv:2508.20691", "MobileCLIP-": "arXiv:2311.17049"}  # by the start of a pair's name
_PUBLISHED_LICENCES = {  # of the weights that others publish; none of them comes with this package
    "convnext": "MIT (facebookresearch), Apache-2.0 (timm)",
    "convnextv2": "CC-BY-NC-4.0, not for commercial use",
    RESNET: "BSD-3-Clause (torchvision), Apache-2.0 (timm), by tag",
    CLIP: "MIT (OpenAI, LAION) and others, by tag",
}
_CROP_PCT = 0.875  # timm's for classifiers at 224


@dataclass(frozen=True)
class ModelInfo:
    """Facts about a model.

    Args:
        name: as `list_models` prints it, with the weights' tag if one was given; for a saved model, the model's own.
        family: "convnext", "convnextv2", "resnet" or "clip".
        parameters: number of trainable parameters; for a name without weights, with 1000 classes.
        flops: FLOPs of one image, for a CLIP model of one image and one text; two for each multiply–add. None if the
            input has no fixed size.
        input: (H, W, C) of an image.
        preprocess: how images are prepared; None if unknown.
        licence: licence of the weights; for a name without weights, that of the code and of the weights others publish.
        score: published top-1 accuracy on ImageNet-1k in percent, zero-shot for a pair; None if there is none.
        source: the paper.
        weights: row of the table of published weights, or None.
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
    """Return the `ModelInfo` of a name, with or without a weights tag, from the tables.

    Raises:
        ValueError: an unknown name, or unknown weights; the message suggests the nearest.
    """
    entry = find(name)
    config = config_of(entry)
    if config.published:
        return info_of(config)
    height, width, _ = config.input_shape
    assert height is not None and height == width
    spec = config.preprocess or PreprocessSpec(height)
    if entry.family != CLIP:
        spec = dataclasses.replace(spec, mean=IMAGENET_MEAN, std=IMAGENET_STD, crop_pct=_CROP_PCT, rgb_first=True)
    licence = f"code Apache-2.0; published weights {_PUBLISHED_LICENCES[entry.family]}"
    return info_of(dataclasses.replace(config, preprocess=spec, licence=licence))


def info_of(config: ModelConfig, name: str | None = None, parameters: int | None = None) -> ModelInfo:
    """Return the `ModelInfo` of a config.

    Args:
        config: a config, whatever it was made from.
        name: unless given, the config's origin.
        parameters: unless given, computed from the config.
    """
    row = config.published
    return ModelInfo(
        name or config.origin,
        config.family,
        config.count_weights() if parameters is None else parameters,
        _flops(config),
        config.input_shape,
        config.preprocess,
        config.licence,
        row.score if row else None,
        _paper(config),
        row,
    )


def _paper(config):
    """arXiv number of the architecture's paper."""
    variant = str(config.arguments["variant"])
    return next((paper for start, paper in _PAIR_PAPERS.items() if variant.startswith(start)), _PAPERS[config.family])


def _flops(config):
    height, width, channels = config.input_shape
    if height is None or height != width:
        return None
    if config.family == CLIP:
        return clip.flops(config.row, height)
    arguments = config.arguments
    return convnext.flops(
        config.row,
        image_size=height,
        stem_stride=arguments.get("stem_stride", 4),
        downsample_strides=arguments.get("downsample_strides", 2),
        num_classes=arguments["num_classes"] if arguments["include_top"] else None,
        in_channels=channels,
    )


def to_text(info: ModelInfo) -> str:
    """One fact a line."""
    facts = {
        "name": info.name,
        "parameters": f"{info.parameters:,}",
        "FLOPs": info.flops and f"{info.flops / 1e9:.2f} G, of {info.flops / 2e9:.2f} G multiply–adds",
        "input": " × ".join(map(str, info.input)),
        "preprocessing": info.preprocess and _preprocess_text(info.preprocess),
        "licence": info.licence,
        "score": info.score and f"{info.score} % top-1 on ImageNet-1k{'' if info.family != CLIP else ', zero-shot'}",
        "paper": info.source,
        **(_weights_facts(info.weights) if info.weights else {}),
    }
    return "\n".join(f"{name:<14}{value}" for name, value in facts.items() if value is not None)


def _preprocess_text(spec):
    crop = f", crop {spec.crop_pct:g}" if spec.crop_pct != 1 else ""
    return f"{spec.interpolation}, {spec.resize_mode}{crop}, mean {spec.mean}, std {spec.std}"


def _weights_facts(row):
    """{fact: text} of a row of the table of published weights."""
    remark = restriction(row.licence)
    return {
        "licence": f"{row.licence} ({remark})" if remark else row.licence,
        "repository": f"https://huggingface.co/{row.repository}{f' at {row.revision}' if row.revision else ''}",
        "file": " or ".join(row.files),
        "SHA-256": row.sha256 or "not pinned: recorded at the first download, and verified from then on",
        "activation": row.activation,
        "classes": _classes_text(row),
        "tested at": row.test and f"{row.test.size[0]} pixels, crop {row.test.crop_pct:g}",
    }


def _classes_text(row):
    if row.classes is None:
        return None
    what = "none: an image embedding" if row.embedding else "none: a trunk"
    return what if row.embedding or not row.classes else f"{row.classes:,}"
