"""transformers' `config.json` of ConvNeXt, ConvNeXt-V2, ResNet and CLIP, and `preprocessor_config.json` → `Recipe`.

transformers gives ConvNeXt's last norm an epsilon of its own, 1e-12 unless said; ours is the papers' 1e-6.
"""

from zoo.models.names import name_of
from zoo.models.recipes import Recipe, default_arguments, own_pair
from zoo.weights.native import Description
from zoo.weights.schema import CLIP, RESNET
from zoo.weights.sources.values import check_fixed, integer, integers, read_json, refusal, section, spec, variant_of

RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
SQUASHED_FROM = 384  # pixels: from there on the processor of ConvNeXt resizes both sides and crops nothing
ACTIVATIONS = ("gelu", "quick_gelu")
EXPANSION = {"basic": 1, "bottleneck": 4}  # of a ResNet block's channels


def read(values, filename, preprocessor=None):
    """The `Recipe` of a transformers configuration.

    Args:
        preprocessor: path of `preprocessor_config.json`, or None.

    Raises:
        ValueError: it describes another model than ours; the field is named.
    """
    readers = {"convnext": _convnext, "convnextv2": _convnext, RESNET: _resnet}
    kind = values["model_type"]
    preprocess = preprocessor and _preprocess(preprocessor)
    if kind == CLIP:
        return own_pair(_pair(values, filename), {}, preprocess, filename)
    if kind not in readers:
        raise refusal(filename, "model_type", kind, ", ".join((*readers, CLIP)))
    variant, extra = readers[kind](values, filename)
    size = list(preprocess.size) if preprocess else [None, None]
    channels = integer(values, "num_channels", 3, filename)
    arguments = default_arguments(kind, variant, name_of(kind, variant, kind))
    arguments |= {"input_shape": [*size, channels], **extra}
    return Recipe(Description(kind, arguments, preprocess), filename, from_weights=True)


def _convnext(values, filename):
    import convnext

    epsilon = values.get("layer_norm_eps", 1e-12)
    if epsilon not in (1e-12, 1e-6):
        raise refusal(filename, "layer_norm_eps", epsilon, "1e-6 (1e-12 is taken for it)")
    row = convnext.Variant(
        integers(values, "depths", (3, 3, 9, 3), filename),
        integers(values, "hidden_sizes", (96, 192, 384, 768), filename),
        activation=values.get("hidden_act", "gelu"),
        patch_size=integer(values, "patch_size", 4, filename),
    )
    scale = values.get("layer_scale_init_value", 1e-6) if values["model_type"] == "convnext" else None
    scale = scale if scale and scale > 0 else None
    return variant_of(values["model_type"], row), {"layer_scale_init_value": scale, "stem_stride": row.patch_size}


def _resnet(values, filename):
    import convnext

    fixed = {"downsample_in_first_stage": False, "downsample_in_bottleneck": False}
    check_fixed({key: values[key] for key in fixed if key in values}, fixed, (), filename)
    block = values.get("layer_type", "bottleneck")
    if block not in EXPANSION:
        raise refusal(filename, "layer_type", block, " or ".join(EXPANSION))
    sizes = integers(values, "hidden_sizes", (256, 512, 1024, 2048), filename)
    row = convnext.ResNetVariant(
        integers(values, "depths", (3, 4, 6, 3), filename),
        tuple(size // EXPANSION[block] for size in sizes),
        activation=values.get("hidden_act", "relu"),
        block=block,
        stem_dim=integer(values, "embedding_size", 64, filename),
    )
    return variant_of(RESNET, row), {}


def _pair(values, filename):
    import clip

    vision, text = (
        {**section(values, key, filename), **(values.get(f"{key}_dict") or {})}
        for key in ("vision_config", "text_config")
    )
    for config in (vision, text):
        if config.get("layer_norm_eps", 1e-5) != 1e-5:
            raise refusal(filename, "layer_norm_eps", config["layer_norm_eps"], "1e-5")
    width = integer(vision, "hidden_size", 768, filename)
    tower = clip.ViT(
        width,
        integer(vision, "num_hidden_layers", 12, filename),
        integer(vision, "patch_size", 32, filename),
        width // integer(vision, "num_attention_heads", 12, filename),
        _mlp_ratio(width, integer(vision, "intermediate_size", 3072, filename)),
    )
    return clip.Pair(
        integer(values, "projection_dim", 512, filename),
        integer(vision, "image_size", 224, filename),
        tower,
        _text(text, filename),
        _activation(vision, text, filename),
    )


def _mlp_ratio(width, hidden):
    """That of a row with this width where it gives as many hidden units: the rows' ratios are rounded decimals."""
    import clip

    rows = [row.image for row in clip.VARIANTS.values() if isinstance(row.image, clip.ViT) and row.image.width == width]
    ratios = [*(row.mlp_ratio for row in rows), hidden / width, (hidden + 0.5) / width]
    return next(ratio for ratio in ratios if int(width * ratio) == hidden)


def _text(text, filename):
    import clip

    width = integer(text, "hidden_size", 512, filename)
    if integer(text, "intermediate_size", 2048, filename) != 4 * width:
        raise refusal(filename, "text_config.intermediate_size", text["intermediate_size"], f"{4 * width}, 4 × width")
    return clip.Text(
        width,
        integer(text, "num_attention_heads", 8, filename),
        integer(text, "num_hidden_layers", 12, filename),
        integer(text, "max_position_embeddings", 77, filename),
        integer(text, "vocab_size", 49408, filename),
    )


def _activation(vision, text, filename):
    """Of both towers; transformers could have two, our pairs have one."""
    names = [config.get("hidden_act", "quick_gelu") for config in (vision, text)]
    if names[0] != names[1] or names[0] not in ACTIVATIONS:
        raise refusal(filename, "hidden_act of the towers", names, f"one of {', '.join(ACTIVATIONS)} for both")
    return names[0]


def _preprocess(path):
    """A `PreprocessSpec`, or None where the file leaves something to transformers' defaults."""
    values, filename = read_json(path), path.name
    if any(values.get(key) is None for key in ("size", "resample", "image_mean", "image_std")):
        return None
    size, crop = _side(values["size"], filename), values.get("crop_size")
    fields = {
        "mean": values["image_mean"],
        "std": values["image_std"],
        "interpolation": RESAMPLING.get(values["resample"]),
        "rgb_first": True,
    }
    if values.get("crop_pct") is not None:
        is_small = size < SQUASHED_FROM
        fields |= {"crop_pct": values["crop_pct"]} if is_small else {"resize_mode": "squash"}
    target = _side(crop, filename) if crop and values.get("do_center_crop") else size
    if target != size:
        fields["crop_pct"] = target / size
    return spec({"image_size": target, **fields}, filename)


def _side(size, filename):
    """Pixels of {"shortest_edge": n}, {"height": n, "width": n} or n."""
    if isinstance(size, dict):
        sides = set(size.values())
        size = sides.pop() if len(sides) == 1 else size
    return integer({"size": size}, "size", None, filename)
