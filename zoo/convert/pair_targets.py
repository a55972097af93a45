"""Pairs for open_clip and transformers: their configurations, spelt out from our rows."""

from zoo.convert import open_clip, timm, transformers
from zoo.convert.engine import match_slots
from zoo.preprocess import PreprocessSpec


def pair_target(model, description, library, preprocess):
    """(format, name of the weight file, {name of a configuration: its content}) of a pair.

    Raises:
        ValueError: the library has no such tower.
    """
    import clip

    pair, arguments = clip.VARIANTS[description.arguments["variant"]], description.arguments
    if library == "transformers":
        return transformers.PAIR, "model.safetensors", {"config.json": _transformers_config(pair, arguments)}
    config = {
        "model_cfg": _model_cfg(model, pair, arguments),
        "preprocess_cfg": _preprocess_cfg(preprocess or PreprocessSpec(image_size=arguments["image_size"])),
    }
    return _open_clip_format(model, pair), "open_clip_model.safetensors", {"open_clip_config.json": config}


def _open_clip_format(model, pair):
    """The first of open_clip's layouts of whole pairs that has a place for every variable."""
    has_conv_mlp = getattr(pair.image, "variant", None) in timm.CONV_MLP
    wholes = [known for known in open_clip.FORMATS if {"image", "text"} <= known.parts.keys()]
    fitting = [known for known in wholes if known.name.endswith("conv_mlp") == has_conv_mlp]
    return next((known for known in fitting if not match_slots(model, known)[1]), fitting[0])


def _model_cfg(model, pair, arguments):
    bias = arguments["init_logit_bias"]
    return {
        "embed_dim": pair.embed_dim,
        "quick_gelu": arguments["activation"] == "quick_gelu",
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
        return {
            "timm_model_name": f"{image.family}_{image.variant}",
            "timm_model_pretrained": False,
            "timm_pool": "",
            "timm_proj": image.projection,
            "timm_drop": 0.0,
            "timm_drop_path": 0.0,
        }
    if isinstance(image, clip.ResNet):
        return {"layers": list(image.layers), "width": image.width, "patch_size": None}
    if not isinstance(image, clip.ViT):
        raise ValueError(f"There is no way yet to tell open_clip of a {type(image).__name__} image tower.")
    _check_plain(image, clip.ViT(image.width, image.layers, image.patch_size), "open_clip", FREE_IN_VIT)
    return {field: getattr(image, field) for field in ("width", "layers", *FREE_IN_VIT)}


FREE_IN_VIT = ("patch_size", "head_width", "mlp_ratio")
FREE_IN_TEXT = ("context_length", "vocabulary_size")


def _text_cfg(text):
    import clip

    _check_plain(text, clip.Text(text.width, text.heads, text.layers), "open_clip", (*FREE_IN_TEXT, "causal"))
    return {
        "context_length": text.context_length,
        "vocab_size": text.vocabulary_size,
        "width": text.width,
        "heads": text.heads,
        "layers": text.layers,
        **({} if getattr(text, "causal", True) else {"no_causal_mask": True}),
    }


def _check_plain(tower, plain, library, free):
    """ValueError unless a row's tower is the plain one, but for the fields that the library's configuration has."""
    for field, usual in vars(plain).items():
        value = getattr(tower, field)
        if value != usual and field not in free:
            raise ValueError(f"{library} has no {type(tower).__name__} with {field} {value}; it has {usual}.")


def _preprocess_cfg(spec):
    return {
        "mean": list(spec.mean),
        "std": list(spec.std),
        "interpolation": spec.interpolation,
        "resize_mode": spec.resize_mode,
    }


def _transformers_config(pair, arguments):
    import clip

    image, text, activation = pair.image, pair.text, arguments["activation"]
    if not isinstance(image, clip.ViT):
        raise ValueError(f"transformers has no pair with a {type(image).__name__} for images; write it for open_clip.")
    _check_plain(image, clip.ViT(image.width, image.layers, image.patch_size), "transformers", FREE_IN_VIT)
    _check_plain(text, clip.Text(text.width, text.heads, text.layers), "transformers", FREE_IN_TEXT)
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
            "bos_token_id": text.vocabulary_size - 2,
            "eos_token_id": text.vocabulary_size - 1,  # the largest id, where the text is read
            "projection_dim": pair.embed_dim,
        },
    }
