"""open_clip and OpenAI's CLIP: whole pairs, towers alone, and `open_clip_config.json`.

The text tower is at the top level, or under `text.` in custom-text models. The image tower is under `visual.`: a ViT or
OpenAI's ResNet, or under `visual.trunk.` a tower of timm's.
"""

import dataclasses
from typing import Any

import clip
import convnext
from zoo.data.preprocess import PreprocessSpec
from zoo.utils.text import shown
from zoo.weights.config import ModelConfig
from zoo.weights.engine import Format, joined, under
from zoo.weights.layouts import LOGIT_BIAS, LOGIT_SCALE, MATRIX
from zoo.weights.published import OPEN_CLIP_FILES
from zoo.weights.schema import CLIP, field_error
from zoo.weights.sources.source import Find, Source, Target, check_fixed, integer, integers, read_spec, section
from zoo.weights.sources.timm import CONV_MLP, NUM_BATCHES, RESNET_TRUNK, TOWERS, convnext_trunk

# Tensor names.

_BLOCKS = joined(
    *(f"transformer.resblocks.{{i}}.{name}" for name in ("ln_1", "attn", "ln_2", "mlp.c_fc", "mlp.c_proj"))
)
_TEXT = (
    *joined("token_embedding", "positional_embedding", "ln_final"),
    *_BLOCKS,
    ("text_projection", "text_projection", MATRIX),
)
_VIT = (
    *joined("conv1", "class_embedding", "positional_embedding", "ln_pre", "ln_post"),
    *_BLOCKS,
    ("proj", "proj", MATRIX),
)
_RESNET = (*RESNET_TRUNK, *joined("attnpool"))
_PROJECTION = joined("head.proj", "head.mlp.fc1", "head.mlp.fc2")
PAIR = (
    ("logit_scale", "logit_scale", LOGIT_SCALE),
    ("logit_bias", "logit_scale", LOGIT_BIAS),
)
_ARCHIVE = "a setting that OpenAI's archives store beside the weights"
_MASK = "the causal mask, which is computed"
_IGNORED = (
    NUM_BATCHES,
    *((key, _ARCHIVE) for key in ("input_resolution", "context_length", "vocab_size")),
    *((key, _MASK) for key in ("attn_mask", "text.attn_mask")),
)


def _convnext(fc1_rank):
    """(signature, rules) of a ConvNeXt image tower."""
    rules = (*under("trunk.", convnext_trunk(conv_mlp=fc1_rank == 4)), *_PROJECTION)
    return {"trunk.stem.0.weight": 4, "trunk.stages.0.blocks.0.mlp.fc1.weight": fc1_rank}, rules


def _formats(tower, signature, rules, trunk=""):
    """A whole pair in both layouts, and the image tower alone, which is the state dict of `model.visual`.

    With `trunk`, "trunk.", the image tower is timm's: its pairs have the text tower as a module of its own.
    """
    alone, image = {f"{trunk}{key}": rank for key, rank in signature.items()}, under(trunk, rules)
    in_pair = {f"visual.{key}": rank for key, rank in alone.items()}
    parts = {"image": under("visual.", image), "text": _TEXT, "pair": PAIR}
    custom = {**parts, "text": under("text.", _TEXT)}
    if not trunk:
        yield Format(f"{_CUSTOM_TEXT} with {tower}", {**in_pair, "text.token_embedding.weight": 2}, custom, _IGNORED)
    yield Format(f"open_clip with {tower}", in_pair, custom if trunk else parts, _IGNORED)
    yield Format(f"open_clip's image tower, {tower}", alone, {"image": image}, (NUM_BATCHES,))


def _text_format(name, prefix):
    keys = {f"{prefix}token_embedding.weight": 2, f"{prefix}ln_final.weight": 1}
    return Format(name, keys, {"text": under(prefix, _TEXT), "pair": PAIR}, _IGNORED)


_CUSTOM_TEXT = "open_clip's custom-text layout"
FORMATS = (
    *_formats("a ViT", {"conv1.weight": 4, "class_embedding": 1}, _VIT),
    *_formats("a ResNet", {"conv1.weight": 4, "attnpool.q_proj.weight": 2}, _RESNET),
    *_formats("a ConvNeXt", *_convnext(fc1_rank=2)),
    *_formats("a ConvNeXt with conv_mlp", *_convnext(fc1_rank=4)),
    *(known for tower in TOWERS for known in _formats(*tower, "trunk.")),
    _text_format("open_clip's text tower", ""),
    _text_format(f"the text tower of {_CUSTOM_TEXT}", "text."),
)

# timm's names of MobileCLIP's image towers → a row of `clip.VARIANTS` that has the tower
_TIMM_TOWERS = {
    "fastvit_mci0": "MobileCLIP2-S0",
    "fastvit_mci1": "MobileCLIP-S1",
    "fastvit_mci2": "MobileCLIP-S2",
    "fastvit_mci3": "MobileCLIP2-S3",
    "fastvit_mci4": "MobileCLIP2-S4",
    "vit_base_mci_224": "MobileCLIP-B",
    "vit_large_patch14_clip_224": "MobileCLIP2-L-14",
}


def _timm_pool(name: str) -> str:
    """`timm_pool` of a tower of _TIMM_TOWERS."""
    return "avg" if name.startswith("fastvit") else "token"


# Configuration read: {"model_cfg", "preprocess_cfg"}.

_PREPROCESS = {"fill_color": "fill", **{key: key for key in ("mean", "std", "interpolation", "resize_mode")}}

# Field → open_clip's default; of a ViT the names are the same here.
_VIT_FIELDS = {"width": 768, "layers": 12, "patch_size": 16, "head_width": 64}
_TEXT_FIELDS = {  # open_clip's field → (ours, open_clip's default)
    "context_length": ("context_length", 77),
    "vocab_size": ("vocabulary_size", 49408),
    "width": ("width", 512),
    "heads": ("heads", 8),
    "layers": ("layers", 12),
}

# Fields with only one allowed value (FIXED_…), and fields that are read below or matter for training alone (FREE_…).
_FIXED_BLOCK = {
    "block_type": "default",
    **dict.fromkeys(("ls_init_value", "act_kwargs", "norm_kwargs"), None),
    **dict.fromkeys(("scale_heads", "scale_attn_inner", "scale_attn", "scale_fc", "scaled_cosine_attn"), False),
    **dict.fromkeys(("final_ln_after_pool", "qk_norm"), False),
}
_RATIO = clip.Field.number(0, 1024)
_FIXED_VISION = {
    **_FIXED_BLOCK,
    "attentional_pool": False,
    "no_ln_pre": False,
    "pos_embed_type": "learnable",
    "pool_type": "tok",
    "timm_proj_bias": False,
}
_FREE_VISION = {
    *(*_VIT_FIELDS, "mlp_ratio", "image_size", "timm_model_name", "timm_pool", "timm_proj"),
    *("timm_model_pretrained", "timm_drop", "timm_drop_path", "patch_dropout"),
    *("attn_pooler_queries", "attn_pooler_heads", "output_tokens"),
}
_FIXED_TEXT = {
    **_FIXED_BLOCK,
    "mlp_ratio": 4.0,
    "embed_cls": False,
    "pad_id": 0,
    "pool_type": "argmax",
    "proj_type": "linear",
    "proj_bias": False,
}
_FREE_TEXT = {
    *(*_TEXT_FIELDS, "no_causal_mask", "output_tokens", "eos_id"),
    *("hf_model_pretrained", "hf_proj_type", "hf_pooler_type"),
}
_FREE_MODEL = {
    *("embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "init_logit_scale", "init_logit_bias"),
    *("custom_text", "cast_dtype", "output_dict", "nonscalar_logit_scale"),
}


def _read_config(values: dict, filename: str, _: Find) -> ModelConfig:
    """The `ModelConfig` of an open_clip configuration.

    Raises:
        ValueError: it describes a pair that this package does not make; the message names the field.
    """
    model = section(values, "model_cfg", filename)
    check_fixed(model, {}, _FREE_MODEL, filename, "model_cfg.")
    pair = _read_pair(model, filename)
    preprocess = _read_preprocess(values, pair.image_size, filename)
    return ModelConfig.from_pair(pair, preprocess, filename, init_logit_bias=model.get("init_logit_bias"))


def _read_pair(model, filename):
    vision, text = section(model, "vision_cfg", filename), section(model, "text_cfg", filename)
    check_fixed(vision, _FIXED_VISION, _FREE_VISION, filename, "vision_cfg.")
    check_fixed(text, _FIXED_TEXT, _FREE_TEXT, filename, "text_cfg.")
    return clip.Pair(
        integer(model, "embed_dim", None, filename, "model_cfg."),
        _read_image_size(vision, filename),
        _read_image(vision, filename),
        _read_text(text, filename),
        "quick_gelu" if model.get("quick_gelu") else "gelu",
    )


def _read_image_size(vision, filename):
    size = vision.get("image_size", 224)
    if isinstance(size, list) and len(size) == 2 and size[0] == size[1]:
        size = size[0]
    return integer({"image_size": size}, "image_size", None, filename, "vision_cfg.")


def _read_image(vision, filename):
    if vision.get("timm_model_name"):
        return _read_timm_tower(vision, filename)
    width, ratio = integer(vision, "width", 768, filename, "vision_cfg."), vision.get("mlp_ratio", 4.0)
    if not _RATIO.allows(ratio):
        raise field_error(filename, "vision_cfg.mlp_ratio", ratio, _RATIO.allowed)
    try:
        if isinstance(vision.get("layers"), list):
            return clip.ResNet(integers(vision, "layers", (), filename), width)
        own: dict[str, Any] = {
            key: integer(vision, key, default, filename, "vision_cfg.") for key, default in _VIT_FIELDS.items()
        }
        return clip.ViT(**own, mlp_ratio=ratio)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{shown(filename)}: vision_cfg makes no image tower: {shown(error)}") from error


def _read_timm_tower(vision, filename):
    name, pool, projection = (vision.get(f"timm_{key}") for key in ("model_name", "pool", "proj"))
    if isinstance(name, str) and name in _TIMM_TOWERS:
        fixed = {"timm_pool": _timm_pool(name)}
        check_fixed({"timm_pool": pool, "timm_proj": projection}, fixed, (), filename, "vision_cfg.")
        return clip.VARIANTS[_TIMM_TOWERS[name]].image
    family, _, variant = str(name).partition("_")
    if family not in ("convnext", "convnextv2") or variant not in convnext.TABLES[family]:
        known = "convnext_*, convnextv2_*, " + ", ".join(_TIMM_TOWERS)
        raise field_error(filename, "vision_cfg.timm_model_name", name, known)
    if pool:
        raise field_error(filename, "vision_cfg.timm_pool", pool, "'' for a ConvNeXt")
    if projection not in ("linear", "mlp"):
        raise field_error(filename, "vision_cfg.timm_proj", projection, "'linear' or 'mlp' for a ConvNeXt")
    return clip.ConvNeXt(family, variant, projection)


def _read_text(text, filename):
    own = {
        ours: integer(text, theirs, default, filename, "text_cfg.") for theirs, (ours, default) in _TEXT_FIELDS.items()
    }
    return clip.Text(**own, causal=not text.get("no_causal_mask", False))


def _read_preprocess(values, image_size, filename):
    given = section(values, "preprocess_cfg", filename) if values.get("preprocess_cfg") else {}
    check_fixed(given, {"mode": "RGB"}, {*_PREPROCESS, "size"}, filename, "preprocess_cfg.")
    fields = {_PREPROCESS[key]: value for key, value in given.items() if key in _PREPROCESS and value is not None}
    return read_spec({"image_size": image_size, **fields}, f"{filename}: preprocess_cfg")


# Configuration written.

FREE_IN_VIT = ("head_width", "mlp_ratio")
FREE_IN_TEXT = ("context_length", "vocabulary_size")


def _target(config: ModelConfig) -> Target:
    """A pair for open_clip.

    Raises:
        ValueError: open_clip has no such tower.
    """
    arguments, pair = config.arguments, config.row
    spec = config.preprocess or PreprocessSpec(image_size=arguments["image_size"])
    written = {"model_cfg": _written_model(pair, arguments), "preprocess_cfg": _written_preprocess(spec)}
    has_conv_mlp = getattr(pair.image, "variant", None) in CONV_MLP
    wholes = (known for known in FORMATS if known.name.startswith("open_clip with"))
    formats = tuple(known for known in wholes if known.name.endswith("conv_mlp") == has_conv_mlp)
    return Target(formats, OPEN_CLIP_FILES[0], {"open_clip_config.json": written})


def _timm_name(image):
    """timm's name of MobileCLIP's image towers, else None."""
    return next((name for name, label in _TIMM_TOWERS.items() if clip.VARIANTS[label].image == image), None)


def _written_model(pair, arguments):
    bias = arguments["init_logit_bias"]
    return {
        "embed_dim": pair.embed_dim,
        "quick_gelu": arguments["activation"] == "quick_gelu",
        "custom_text": _timm_name(pair.image) is not None,
        "vision_cfg": {"image_size": arguments["image_size"], **_written_vision(pair.image, arguments)},
        "text_cfg": _written_text(pair.text),
        **({} if bias is None else {"init_logit_bias": bias}),
    }


def _written_vision(image, arguments):
    kind = clip.tower_of(image).kind
    if kind == "convnext":
        _check_stem(convnext.TABLES[image.family][image.variant], arguments)
        return _timm_cfg(f"{image.family}_{image.variant}", "", image.projection)
    if kind == "resnet":
        return {"layers": list(image.layers), "width": image.width, "patch_size": None}
    if name := _timm_name(image):
        return _timm_cfg(name, _timm_pool(name), None)
    check_plain(image, "vit", "open_clip", FREE_IN_VIT)
    return {field: getattr(image, field) for field in (*_VIT_FIELDS, "mlp_ratio")}


def _check_stem(row, arguments):
    """ValueError for a ConvNeXt whose stem is not of open_clip's stride."""
    size, own = arguments["image_size"], arguments["stem_stride"] or "auto"
    stride = convnext.resolve_stem_stride(row, (size, size, 3), own)
    if stride != row.patch_size:
        raise ValueError(
            f"open_clip's ConvNeXt has a stem of stride {row.patch_size}, and this model's has {stride}: its outputs "
            "would differ there."
        )


def _timm_cfg(name, pool, projection):
    return {
        "timm_model_name": name,
        "timm_model_pretrained": False,
        "timm_pool": pool,
        "timm_proj": projection,
        "timm_drop": 0.0,
        "timm_drop_path": 0.0,
    }


def _written_text(text):
    check_plain(text, "text", "open_clip", (*FREE_IN_TEXT, "causal"))
    return {
        **{theirs: getattr(text, ours) for theirs, (ours, _) in _TEXT_FIELDS.items()},
        **({} if text.causal else {"no_causal_mask": True}),
    }


def check_plain(tower: Any, kind: str, library: str, free: tuple[str, ...]) -> None:
    """ValueError for a tower of another kind, or with other options than a library's configuration can express.

    Args:
        tower: config of a tower, e.g. `clip.ViT`.
        kind: kind of the tower in the library.
        library: for the message.
        free: fields that may have any value; the others must have their defaults.
    """
    if clip.tower_of(tower).kind != kind:
        raise ValueError(f"{library} has no tower {type(tower).__name__}: {tower}.")
    for field in dataclasses.fields(tower):
        value, usual = getattr(tower, field.name), field.default
        if usual is not dataclasses.MISSING and value != usual and field.name not in free:
            raise ValueError(f"{library} has no {type(tower).__name__} with {field.name} {value}; it has {usual}.")


def _written_preprocess(spec):
    return {
        "mean": list(spec.mean),
        "std": list(spec.std),
        "interpolation": spec.interpolation,
        "resize_mode": spec.resize_mode,
    }


SOURCE = Source(
    "open_clip",
    FORMATS,
    "open_clip_config.json",
    OPEN_CLIP_FILES,
    recognises=lambda _: True,
    read=_read_config,
    fixed={CLIP: {}},
    target=_target,
)
