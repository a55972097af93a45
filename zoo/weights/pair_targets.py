"""Pairs for open_clip and transformers: their configurations, spelt out from our rows."""

import dataclasses

from zoo.data.preprocess import PreprocessSpec
from zoo.weights.engine import match_slots
from zoo.weights.native import row_of
from zoo.weights.schema import CLIP
from zoo.weights.sources import mobileclip, open_clip, timm, transformers


def pair_target(model, description, library):
    """(format, name of the weight file, {name of a configuration: its content}) of a pair.

    Raises:
        ValueError: the library has no such tower.
    """
    arguments = description.arguments
    pair = row_of(CLIP, arguments["variant"])
    if library == "transformers":
        return transformers.PAIR, "model.safetensors", {"config.json": transformers_config(pair, arguments)}
    config = {
        "model_cfg": _model_cfg(model, pair, arguments),
        "preprocess_cfg": _preprocess_cfg(description.preprocess or PreprocessSpec(image_size=arguments["image_size"])),
    }
    return _open_clip_format(model, pair), "open_clip_model.safetensors", {"open_clip_config.json": config}


def _open_clip_format(model, pair):
    """The first of open_clip's layouts of whole pairs that has a place for every variable."""
    has_conv_mlp = getattr(pair.image, "variant", None) in timm.CONV_MLP
    formats = (*open_clip.FORMATS, *mobileclip.FORMATS)
    wholes = [known for known in formats if known.name.startswith("open_clip with")]
    fitting = [known for known in wholes if known.name.endswith("conv_mlp") == has_conv_mlp]
    return next((known for known in fitting if not match_slots(model, known)[1]), fitting[0])


END_OF_TEXT = 49407  # where the text is read: the largest id

# Rows whose image towers open_clip takes from timm, and what they are called there. Their text towers are modules too.
TIMM_TOWERS = {
    "MobileCLIP2-S0": "fastvit_mci0",
    "MobileCLIP-S1": "fastvit_mci1",
    "MobileCLIP-S2": "fastvit_mci2",
    "MobileCLIP2-S3": "fastvit_mci3",
    "MobileCLIP2-S4": "fastvit_mci4",
    "MobileCLIP-B": "vit_base_mci_224",
    "MobileCLIP2-L-14": "vit_large_patch14_clip_224",
}


def _timm_tower(image):
    """timm's name of a tower of MobileCLIP's, else None."""
    import clip

    return next((name for label, name in TIMM_TOWERS.items() if clip.VARIANTS[label].image == image), None)


def _model_cfg(model, pair, arguments):
    bias = arguments["init_logit_bias"]
    return {
        "embed_dim": pair.embed_dim,
        "quick_gelu": arguments["activation"] == "quick_gelu",
        "custom_text": _timm_tower(pair.image) is not None,
        "vision_cfg": {"image_size": arguments["image_size"], **_vision_cfg(model, pair.image)},
        "text_cfg": _text_cfg(pair.text),
        **({} if bias is None else {"init_logit_bias": bias}),
    }


def _vision_cfg(model, image):
    import clip

    if isinstance(image, clip.ConvNeXt):
        stem = model.image_encoder.get_layer("stem_conv")
        if stem.strides != stem.kernel_size:
            raise ValueError(
                f"open_clip's ConvNeXt has a stem of stride {stem.kernel_size[0]}, and this model's has "
                f"{stem.strides[0]}: its outputs would not be the same there."
            )
        return _timm_cfg(f"{image.family}_{image.variant}", "", image.projection)
    if isinstance(image, clip.ResNet):
        return {"layers": list(image.layers), "width": image.width, "patch_size": None}
    if name := _timm_tower(image):
        return _timm_cfg(name, "avg" if name.startswith("fastvit") else "token", None)
    if not isinstance(image, clip.ViT):
        raise ValueError(f"open_clip has no {type(image).__name__} of this size for images: {image}.")
    _check_plain(image, "open_clip", FREE_IN_VIT)
    return {field: getattr(image, field) for field in ("width", "layers", "patch_size", *FREE_IN_VIT)}


def _timm_cfg(name, pool, projection):
    return {
        "timm_model_name": name,
        "timm_model_pretrained": False,
        "timm_pool": pool,
        "timm_proj": projection,
        "timm_drop": 0.0,
        "timm_drop_path": 0.0,
    }


FREE_IN_VIT = ("head_width", "mlp_ratio")
FREE_IN_TEXT = ("context_length", "vocabulary_size")


def _text_cfg(text):
    _check_plain(text, "open_clip", (*FREE_IN_TEXT, "causal"))
    return {
        "context_length": text.context_length,
        "vocab_size": text.vocabulary_size,
        "width": text.width,
        "heads": text.heads,
        "layers": text.layers,
        **({} if text.causal else {"no_causal_mask": True}),
    }


def _check_plain(tower, library, free):
    """ValueError unless a row's options are the usual ones, but for those that the library's configuration has."""
    for field in dataclasses.fields(tower):
        value, usual = getattr(tower, field.name), field.default
        if usual is not dataclasses.MISSING and value != usual and field.name not in free:
            raise ValueError(f"{library} has no {type(tower).__name__} with {field.name} {value}; it has {usual}.")


def _preprocess_cfg(spec):
    return {
        "mean": list(spec.mean),
        "std": list(spec.std),
        "interpolation": spec.interpolation,
        "resize_mode": spec.resize_mode,
    }


def transformers_config(pair, arguments):
    """config.json of transformers' CLIP for a `Pair`; "image_size" and "activation" are among the arguments."""
    import clip

    image, text, activation = pair.image, pair.text, arguments["activation"]
    if not isinstance(image, clip.ViT):
        raise ValueError(f"transformers has no pair with a {type(image).__name__} for images; write it for open_clip.")
    _check_plain(image, "transformers", FREE_IN_VIT)
    _check_plain(text, "transformers", FREE_IN_TEXT)
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": pair.embed_dim,
        "vision_config": {
            "hidden_size": image.width,
            "intermediate_size": int(image.width * image.mlp_ratio),
            "num_hidden_layers": image.layers,
            "num_attention_heads": image.width // image.head_width,
            "patch_size": image.patch_size,
            "image_size": arguments["image_size"],
            "hidden_act": activation,
            "projection_dim": pair.embed_dim,
        },
        "text_config": {
            "hidden_size": text.width,
            "intermediate_size": 4 * text.width,
            "num_hidden_layers": text.layers,
            "num_attention_heads": text.heads,
            "max_position_embeddings": text.context_length,
            "vocab_size": text.vocabulary_size,
            "hidden_act": activation,
            "bos_token_id": END_OF_TEXT - 1,
            "eos_token_id": END_OF_TEXT,
            "projection_dim": pair.embed_dim,
        },
    }
