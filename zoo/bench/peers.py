"""The same architectures from other libraries, with random weights.

Only this module imports those libraries, inside its functions, and only a benchmark's worker imports this module.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import clip
import convnext
from zoo.bench.cases import KERAS_APPLICATIONS, Case
from zoo.bench.uses import CLASS_NAMES, PEER_BATCH, PROMPT
from zoo.models.names import find
from zoo.weights.sources.transformers import clip_config

CLASSES = 1000


@dataclass
class TorchPeer:
    """A model in torch.

    Args:
        module: `torch.nn.Module`.
        forward: {"images": (B, 3, H, H), "tokens": (B, 77)} → the outputs of the case's part.
        loss: the same inputs, for a classifier with "labels" (B,), → a scalar; None if the part is not trained.
    """

    module: Any
    forward: Callable
    loss: Callable | None = None


def create_torch(case: Case) -> TorchPeer:
    """Return the torch peer of a case.

    Raises:
        ImportError: the library is not installed. ValueError: it has no such model.
    """
    return {"timm": _timm, "open_clip": _open_clip, "transformers": _transformers}[case.library](case)


def create_keras(case: Case):
    """Return the Keras peer of a case: a `keras.Model` with logits, or a tower with embeddings.

    Raises:
        ImportError: the library is not installed. ValueError: it has no such model.
    """
    create = {"keras_applications": _keras_applications, "keras_hub": _keras_hub, "zeromodels": _zeromodels}
    return create[case.library](case)


def _drop_unused(module, part, **unused):
    """Drop the submodules that a part does not use, so that parameters and memory are the part's.

    `unused` holds {submodule: the tower, "image" or "text", that does not use it}.
    """
    for name, tower in unused.items():
        if tower == {"zero-shot": "image"}.get(part, part):
            setattr(module, name, None)


def _unsupported(case):
    return ValueError(f"This benchmark has no {case.name}, part {case.part!r}, from {case.library}.")


# In torch.


def _timm(case):
    import timm
    import torch

    if case.part != "classifier" or not timm.is_model(case.name):
        raise _unsupported(case)
    module = timm.create_model(case.name, pretrained=False)
    return TorchPeer(
        module,
        lambda x: module(x["images"]),
        lambda x: torch.nn.functional.cross_entropy(module(x["images"]), x["labels"].long()),
    )


def _open_clip(case):
    import torch
    from open_clip import ClipLoss

    entry = find(case.name)
    if entry.family != "clip":
        raise _unsupported(case)
    module = _open_clip_pair(entry, case.image_size)
    criterion = ClipLoss()

    def zero_shot(x):
        images = module.encode_image(x["images"], normalize=True)
        return torch.softmax(module.logit_scale.exp() * images @ classes.to(images), dim=-1)

    forward = {
        "image": lambda x: module.encode_image(x["images"]),
        "text": lambda x: module.encode_text(x["tokens"]),
        "pair": lambda x: module(x["images"], x["tokens"]),
        "zero-shot": zero_shot,
    }
    classes = torch.nn.functional.normalize(torch.randn(clip.VARIANTS[entry.label].embed_dim, 100), dim=0)
    _drop_unused(module, case.part, visual="text", transformer="image", token_embedding="image", text="image")
    return TorchPeer(module, forward[case.part], lambda x: criterion(*module(x["images"], x["tokens"])[:3]))


def create_tokenizer() -> Callable:
    """Return open_clip's tokenizer: captions → ids (B, 77)."""
    from open_clip import tokenize

    return tokenize


def create_pictures(case: Case, paths: Sequence[str]) -> tuple[TorchPeer, Callable]:
    """Return open_clip's zero-shot classification of image files, as its evaluation does it.

    It has as many loader processes as threads.

    Returns:
        (the pair as a `TorchPeer` whose forward takes only images, the call to time).
    """
    import torch
    from open_clip import image_transform, tokenize
    from PIL import Image

    entry = find(case.name)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    module = _open_clip_pair(entry, case.image_size).eval().to(device)
    transform = image_transform(case.image_size, is_train=False)

    class ImageFiles(torch.utils.data.Dataset):
        def __len__(self):
            return len(paths)

        def __getitem__(self, index):
            return transform(Image.open(paths[index]))

    options = {"num_workers": case.threads, "persistent_workers": True, "pin_memory": device == "cuda"}
    loader = torch.utils.data.DataLoader(ImageFiles(), PEER_BATCH, **options)

    def call():
        with torch.inference_mode():
            texts = tokenize([PROMPT.format(name) for name in CLASS_NAMES]).to(device)
            classes = module.encode_text(texts, normalize=True).T
            scale = module.logit_scale.exp()
            batches = (images.to(device, non_blocking=True) for images in loader)
            found = [scale * module.encode_image(images, normalize=True) @ classes for images in batches]
            return torch.cat(found).softmax(-1).cpu()

    return TorchPeer(module, lambda x: module.encode_image(x["images"])), call


def _open_clip_pair(entry, image_size):
    """Return open_clip's model of that name, or for a pair it does not list, one built of its classes."""
    import open_clip
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    row = clip.VARIANTS[entry.label]
    if entry.label in open_clip.list_models():
        quick = {"force_quick_gelu": True} if row.activation == "quick_gelu" else {}
        size = {} if image_size == row.image_size else {"force_image_size": image_size}
        return open_clip.create_model(entry.label, **quick, **size)
    vision = CLIPVisionCfg(
        timm_model_name=f"{row.image.family}_{row.image.variant}",
        timm_pool="",
        timm_proj=row.image.projection,
        image_size=image_size,
    )
    text = CLIPTextCfg(width=row.text.width, heads=row.text.heads, layers=row.text.layers)
    return CLIP(row.embed_dim, vision, text)


def _transformers(case):
    import transformers

    entry = find(case.name)
    if entry.family == "clip":
        return _transformers_pair(case, clip.VARIANTS[entry.label])
    row = convnext.TABLES[entry.family][entry.label]
    sizes = {"depths": list(row.depths), "num_labels": CLASSES}
    if isinstance(row, convnext.ResNetVariant):
        wider = 4 if row.block == "bottleneck" else 1
        sizes |= {"hidden_sizes": [wider * dim for dim in row.dims], "embedding_size": row.stem_dim}
        config = transformers.ResNetConfig(**sizes, layer_type=row.block)
        module = transformers.ResNetForImageClassification(config)
    else:
        prefix = {"convnext": "ConvNext", "convnextv2": "ConvNextV2"}[entry.family]
        config = getattr(transformers, f"{prefix}Config")(**sizes, hidden_sizes=list(row.dims))
        module = getattr(transformers, f"{prefix}ForImageClassification")(config)
    return TorchPeer(
        module, lambda x: module(x["images"]).logits, lambda x: module(x["images"], labels=x["labels"].long()).loss
    )


def _is_openai_vit(row):
    """Return whether a pair is a ViT as in OpenAI's CLIP, the only kind of transformers and keras-hub."""
    return clip.tower_of(row.image).kind == "vit" and not row.image.stem_dim and row.text.causal


def _transformers_pair(case, row):
    import transformers

    if not _is_openai_vit(row) or case.part == "zero-shot":
        raise _unsupported(case)
    config = clip_config(row, case.image_size, row.activation)
    module = transformers.CLIPModel(transformers.CLIPConfig(**config))
    forward = {
        "image": lambda x: module.get_image_features(pixel_values=x["images"]),
        "text": lambda x: module.get_text_features(input_ids=x["tokens"]),
        "pair": lambda x: module(input_ids=x["tokens"], pixel_values=x["images"]),
    }

    _drop_unused(module, case.part, vision_model="text", visual_projection="text")
    _drop_unused(module, case.part, text_model="image", text_projection="image")

    def loss(x):
        return module(input_ids=x["tokens"], pixel_values=x["images"], return_loss=True).loss

    return TorchPeer(module, forward[case.part], loss)


# In Keras.


def _keras_applications(case):
    import keras

    if case.name not in KERAS_APPLICATIONS:
        raise _unsupported(case)
    own_pixels = {"include_preprocessing": False} if case.name.startswith("convnext") else {}
    builder = getattr(keras.applications, KERAS_APPLICATIONS[case.name])
    size = (case.image_size, case.image_size, 3)
    return builder(weights=None, input_shape=size, classifier_activation=None, **own_pixels)


def _keras_hub(case):
    import keras
    from keras_hub.models import CLIPBackbone, CLIPTextEncoder, CLIPVisionEncoder

    entry = find(case.name)
    row = clip.VARIANTS.get(entry.label) if entry.family == "clip" else None
    if row is None or not _is_openai_vit(row) or case.part not in ("image", "text"):
        raise _unsupported(case)
    image, text, size = row.image, row.text, case.image_size
    vision_encoder = CLIPVisionEncoder(
        patch_size=image.patch_size,
        hidden_dim=image.width,
        num_layers=image.layers,
        num_heads=image.width // image.head_width,
        intermediate_dim=int(image.width * image.mlp_ratio),
        intermediate_activation=row.activation,
        image_shape=(size, size, 3),
    )
    text_encoder = CLIPTextEncoder(
        vocabulary_size=text.vocabulary_size,
        embedding_dim=text.width,
        hidden_dim=text.width,
        num_layers=text.layers,
        num_heads=text.heads,
        intermediate_dim=4 * text.width,
        intermediate_activation=row.activation,
        max_sequence_length=text.context_length,
    )
    backbone = CLIPBackbone(vision_encoder, text_encoder, row.embed_dim)
    if case.part == "image":
        images = keras.Input((size, size, 3))
        return keras.Model(images, backbone.get_vision_embeddings(images))
    tokens = keras.Input((text.context_length,), dtype="int32")
    return keras.Model(tokens, backbone.get_text_embeddings(tokens))


def _zeromodels(case):
    from zeromodels.models.convnext import ConvNeXtImageClassify
    from zeromodels.models.convnextv2 import ConvNeXtV2ImageClassify

    entry = find(case.name)
    builders = {"convnext": ConvNeXtImageClassify, "convnextv2": ConvNeXtV2ImageClassify}
    if entry.family not in builders:
        raise _unsupported(case)
    row = convnext.TABLES[entry.family][entry.label]
    return builders[entry.family](depths=row.depths, projection_dim=row.dims, image_size=case.image_size)
