"""open_clip's `open_clip_config.json`: {"model_cfg", "preprocess_cfg"} → `Recipe`."""

from zoo.models.recipes import own_pair
from zoo.weights.sources.values import check_fixed, integer, refusal, section, spec

PREPROCESS = {
    "mean": "mean",
    "std": "std",
    "interpolation": "interpolation",
    "resize_mode": "resize_mode",
    "fill_color": "fill",
}

# What a configuration may say only this one way, and what it may say as it likes: that is read below or is of training.
FIXED_BLOCK = {
    "ls_init_value": None,
    "final_ln_after_pool": False,
    "act_kwargs": None,
    "norm_kwargs": None,
    "block_type": "default",
    "qk_norm": False,
    "scaled_cosine_attn": False,
    "scale_heads": False,
    "scale_attn_inner": False,
    "scale_attn": False,
    "scale_fc": False,
}
FIXED_VISION = {
    **FIXED_BLOCK,
    "attentional_pool": False,
    "no_ln_pre": False,
    "pos_embed_type": "learnable",
    "pool_type": "tok",
    "timm_proj_bias": False,
}
FREE_VISION = {
    *("layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size"),
    *("timm_model_name", "timm_pool", "timm_proj"),
    *("timm_model_pretrained", "timm_drop", "timm_drop_path", "patch_dropout"),
    *("attn_pooler_queries", "attn_pooler_heads", "output_tokens"),
}
FIXED_TEXT = {
    **FIXED_BLOCK,
    "mlp_ratio": 4.0,
    "embed_cls": False,
    "pad_id": 0,
    "pool_type": "argmax",
    "proj_type": "linear",
    "proj_bias": False,
}
FREE_TEXT = {
    *("width", "heads", "layers", "context_length", "vocab_size", "no_causal_mask", "output_tokens", "eos_id"),
    *("hf_model_pretrained", "hf_proj_type", "hf_pooler_type"),
}
FREE_MODEL = {
    *("embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "init_logit_scale", "init_logit_bias"),
    *("custom_text", "cast_dtype", "output_dict"),
}

# timm's towers that are rows of ours: name → (row that has it, timm_pool)
TIMM_TOWERS = {
    "fastvit_mci0": ("MobileCLIP2-S0", "avg"),
    "fastvit_mci1": ("MobileCLIP-S1", "avg"),
    "fastvit_mci2": ("MobileCLIP-S2", "avg"),
    "fastvit_mci3": ("MobileCLIP2-S3", "avg"),
    "fastvit_mci4": ("MobileCLIP2-S4", "avg"),
    "vit_base_mci_224": ("MobileCLIP-B", "token"),
    "vit_large_patch14_clip_224": ("MobileCLIP2-L-14", "token"),
}


def read(values, filename):
    """The `Recipe` of an open_clip configuration.

    Raises:
        ValueError: it describes another model than our towers make; the field is named.
    """
    model = section(values, "model_cfg", filename)
    check_fixed(model, {"nonscalar_logit_scale": False}, FREE_MODEL, filename, "model_cfg.")
    pair = _pair(model, filename)
    extra = {}
    if model.get("init_logit_bias") is not None:
        extra["init_logit_bias"] = model["init_logit_bias"]
    return own_pair(pair, extra, _preprocess(values, pair.image_size, filename), filename)


def _pair(model, filename):
    import clip

    vision, text = section(model, "vision_cfg", filename), section(model, "text_cfg", filename)
    check_fixed(vision, FIXED_VISION, FREE_VISION, filename, "vision_cfg.")
    check_fixed(text, FIXED_TEXT, FREE_TEXT, filename, "text_cfg.")
    return clip.Pair(
        integer(model, "embed_dim", None, filename, "model_cfg."),
        _image_size(vision, filename),
        _image_tower(vision, filename),
        _text_tower(text, filename),
        "quick_gelu" if model.get("quick_gelu") else "gelu",
    )


def _image_size(vision, filename):
    size = vision.get("image_size", 224)
    if isinstance(size, list) and len(size) == 2 and size[0] == size[1]:
        size = size[0]
    return integer({"image_size": size}, "image_size", None, filename, "vision_cfg.")


def _image_tower(vision, filename):
    import clip

    if vision.get("timm_model_name"):
        return _timm_tower(vision, filename)
    width, layers = integer(vision, "width", 768, filename, "vision_cfg."), vision.get("layers", 12)
    try:
        if isinstance(layers, list):
            return clip.ResNet(tuple(layers), width)
        return clip.ViT(
            width,
            integer(vision, "layers", 12, filename, "vision_cfg."),
            integer(vision, "patch_size", 16, filename, "vision_cfg."),
            integer(vision, "head_width", 64, filename, "vision_cfg."),
            vision.get("mlp_ratio", 4.0),
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"{filename}: vision_cfg makes no image tower: {error}") from error


def _timm_tower(vision, filename):
    import clip
    import convnext

    name, pool, projection = (vision.get(f"timm_{key}") for key in ("model_name", "pool", "proj"))
    if name in TIMM_TOWERS:
        row, its_pool = TIMM_TOWERS[name]
        check_fixed({"timm_pool": pool, "timm_proj": projection}, {"timm_pool": its_pool}, (), filename, "vision_cfg.")
        return clip.VARIANTS[row].image
    family, _, variant = str(name).partition("_")
    if family not in ("convnext", "convnextv2") or variant not in convnext.TABLES[family]:
        known = "convnext_*, convnextv2_*, " + ", ".join(TIMM_TOWERS)
        raise refusal(filename, "vision_cfg.timm_model_name", name, known)
    if pool:
        raise refusal(filename, "vision_cfg.timm_pool", pool, "'' for a ConvNeXt")
    if projection not in ("linear", "mlp"):
        raise refusal(filename, "vision_cfg.timm_proj", projection, "'linear' or 'mlp' for a ConvNeXt")
    return clip.ConvNeXt(family, variant, projection)


def _text_tower(text, filename):
    import clip

    width, heads, layers, length, vocabulary = (
        integer(text, key, default, filename, "text_cfg.")
        for key, default in {"width": 512, "heads": 8, "layers": 12, "context_length": 77, "vocab_size": 49408}.items()
    )
    return clip.Text(width, heads, layers, length, vocabulary, causal=not text.get("no_causal_mask", False))


def _preprocess(values, image_size, filename):
    said = section(values, "preprocess_cfg", filename) if values.get("preprocess_cfg") else {}
    check_fixed(said, {"mode": "RGB"}, {*PREPROCESS, "size"}, filename, "preprocess_cfg.")
    fields = {PREPROCESS[key]: value for key, value in said.items() if key in PREPROCESS and value is not None}
    return spec({"image_size": image_size, **fields}, f"{filename}: preprocess_cfg")
