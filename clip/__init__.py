"""CLIP models for Keras 3: towers, contrastive losses, tokenizer and zero-shot head.

A CLIP model is also called a pair: an image tower and a text tower with one embedding space.

Names are imported at first use, so that the table of pairs can be read without Keras.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clip.losses import clip_loss, distillation_loss, siglip_loss
    from clip.model import CLIP, create_clip
    from clip.openai import available_models, load, register_opener
    from clip.prompts import CLASS_NAMES, TEMPLATES, check_classes, class_matrix, prompts_for
    from clip.tokenizer import Tokenizer, as_tokenize, tokenize
    from clip.towers import (
        ConvNeXt,
        Field,
        MCi,
        ResNet,
        Text,
        Tower,
        ViT,
        find_tower,
        in_scope_of_name,
        layer_weights,
        list_towers,
        register_tower,
        tower_of,
    )
    from clip.towers.convnext import create_convnext_tower
    from clip.towers.mobileclip import create_mobileclip_tower
    from clip.towers.resnet import create_resnet_tower
    from clip.towers.text import create_text_tower
    from clip.towers.vit import create_vit_tower
    from clip.variants import (
        VARIANTS,
        Pair,
        canonical_name,
        flops,
        image_flops,
        parameters,
        text_flops,
    )
    from clip.zero_shot import zero_shot_classifier

_MODULES = {
    "clip.layers": ("SelfAttention",),
    "clip.losses": ("clip_loss", "distillation_loss", "siglip_loss"),
    "clip.model": ("CLIP", "create_clip"),
    "clip.openai": ("available_models", "load", "register_opener"),
    "clip.prompts": ("CLASS_NAMES", "TEMPLATES", "check_classes", "class_matrix", "prompts_for"),
    "clip.tokenizer": ("Tokenizer", "as_tokenize", "tokenize"),
    "clip.towers": (
        *("ConvNeXt", "Field", "MCi", "ResNet", "Text", "Tower", "ViT"),
        *("find_tower", "in_scope_of_name", "layer_weights", "list_towers", "register_tower", "tower_of"),
    ),
    "clip.towers.convnext": ("create_convnext_tower",),
    "clip.towers.mobileclip": ("create_mobileclip_tower",),
    "clip.towers.resnet": ("create_resnet_tower",),
    "clip.towers.text": ("create_text_tower",),
    "clip.towers.vit": ("create_vit_tower",),
    "clip.variants": (
        *("VARIANTS", "Pair", "canonical_name"),
        *("flops", "image_flops", "parameters", "text_flops"),
    ),
    "clip.zero_shot": ("zero_shot_classifier",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_MODULE_OF)  # noqa: PLE0605


def _called_here(name):
    import convnext

    return "" if name.startswith("_") else convnext.called_here(name)


def __getattr__(name):
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}.{_called_here(name)}".removesuffix("."))
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__():
    return sorted({*globals(), *__all__})


importlib.import_module("convnext")  # registers the classes of saved models with Keras
