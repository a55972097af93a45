"""Class names and prompt templates for zero-shot classification, and how prompts become a class matrix.

Sources:
    CIFAR-10, CIFAR-100 and MNIST names and templates: openai/CLIP `data/prompts.md`
        (MIT, Copyright (c) 2021 OpenAI).
    ImageNet's 80 templates and the subset of 7: openai/CLIP `notebooks/Prompt_Engineering_for_ImageNet.ipynb`
        (MIT), in the order of open_clip's `zero_shot_metadata.py` (MIT).
    Fashion-MNIST names: zalandoresearch/fashion-mnist (MIT, Copyright (c) 2017 Zalando SE).
    The digits templates are this project's.
Names are in the order of the data sets' labels. ImageNet's 1,000 class names are not included: pass them, in label
order, as a list to `zero_shot_classifier`, or in a file with one name per line to `zoo eval zero-shot --class-names`.
"""

import numbers
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np

if TYPE_CHECKING:
    from clip.model import CLIP

EmbedTexts = Callable[[list[str]], np.ndarray]
Tokenize = Callable[[list[str]], np.ndarray]

SIMPLE_TEMPLATES = ("a photo of a {}.",)

TEMPLATES = {
    "simple": SIMPLE_TEMPLATES,
    "digits": (
        "a photo of the digit {}.",
        "a photo of the number {}.",
        "a handwritten digit {}.",
        "a small black and white picture of the number {}.",
    ),
    "cifar": (
        "a photo of a {}.",
        "a blurry photo of a {}.",
        "a black and white photo of a {}.",
        "a low contrast photo of a {}.",
        "a high contrast photo of a {}.",
        "a bad photo of a {}.",
        "a good photo of a {}.",
        "a photo of a small {}.",
        "a photo of a big {}.",
        "a photo of the {}.",
        "a blurry photo of the {}.",
        "a black and white photo of the {}.",
        "a low contrast photo of the {}.",
        "a high contrast photo of the {}.",
        "a bad photo of the {}.",
        "a good photo of the {}.",
        "a photo of the small {}.",
        "a photo of the big {}.",
    ),
    "mnist": ('a photo of the number: "{}".',),
    "imagenet": (
        "a bad photo of a {}.",
        "a photo of many {}.",
        "a sculpture of a {}.",
        "a photo of the hard to see {}.",
        "a low resolution photo of the {}.",
        "a rendering of a {}.",
        "graffiti of a {}.",
        "a bad photo of the {}.",
        "a cropped photo of the {}.",
        "a tattoo of a {}.",
        "the embroidered {}.",
        "a photo of a hard to see {}.",
        "a bright photo of a {}.",
        "a photo of a clean {}.",
        "a photo of a dirty {}.",
        "a dark photo of the {}.",
        "a drawing of a {}.",
        "a photo of my {}.",
        "the plastic {}.",
        "a photo of the cool {}.",
        "a close-up photo of a {}.",
        "a black and white photo of the {}.",
        "a painting of the {}.",
        "a painting of a {}.",
        "a pixelated photo of the {}.",
        "a sculpture of the {}.",
        "a bright photo of the {}.",
        "a cropped photo of a {}.",
        "a plastic {}.",
        "a photo of the dirty {}.",
        "a jpeg corrupted photo of a {}.",
        "a blurry photo of the {}.",
        "a photo of the {}.",
        "a good photo of the {}.",
        "a rendering of the {}.",
        "a {} in a video game.",
        "a photo of one {}.",
        "a doodle of a {}.",
        "a close-up photo of the {}.",
        "a photo of a {}.",
        "the origami {}.",
        "the {} in a video game.",
        "a sketch of a {}.",
        "a doodle of the {}.",
        "a origami {}.",
        "a low resolution photo of a {}.",
        "the toy {}.",
        "a rendition of the {}.",
        "a photo of the clean {}.",
        "a photo of a large {}.",
        "a rendition of a {}.",
        "a photo of a nice {}.",
        "a photo of a weird {}.",
        "a blurry photo of a {}.",
        "a cartoon {}.",
        "art of a {}.",
        "a sketch of the {}.",
        "a embroidered {}.",
        "a pixelated photo of a {}.",
        "itap of the {}.",
        "a jpeg corrupted photo of the {}.",
        "a good photo of a {}.",
        "a plushie {}.",
        "a photo of the nice {}.",
        "a photo of the small {}.",
        "a photo of the weird {}.",
        "the cartoon {}.",
        "art of the {}.",
        "a drawing of the {}.",
        "a photo of the large {}.",
        "a black and white photo of a {}.",
        "the plushie {}.",
        "a dark photo of a {}.",
        "itap of a {}.",
        "graffiti of the {}.",
        "a toy {}.",
        "itap of my {}.",
        "a photo of a cool {}.",
        "a photo of a small {}.",
        "a tattoo of the {}.",
    ),
    "imagenet7": (
        "itap of a {}.",
        "a bad photo of the {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
    ),
}

CLASS_NAMES = {
    "digits": ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    "mnist": ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9"),
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    "cifar100": (
        "apple", "aquarium fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl",
        "boy", "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair",
        "chimpanzee", "clock", "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin",
        "elephant", "flatfish", "forest", "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp",
        "lawn mower", "leopard", "lion", "lizard", "lobster", "man", "maple tree", "motorcycle", "mountain",
        "mouse", "mushroom", "oak tree", "orange", "orchid", "otter", "palm tree", "pear", "pickup truck",
        "pine tree", "plain", "plate", "poppy", "porcupine", "possum", "rabbit", "raccoon", "ray", "road",
        "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk", "skyscraper", "snail", "snake", "spider",
        "squirrel", "streetcar", "sunflower", "sweet pepper", "table", "tank", "telephone", "television",
        "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale", "willow tree", "wolf",
        "woman", "worm",
    ),
    "fashion_mnist": (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag",
        "Ankle boot",
    ),
}  # fmt: skip


def fill(template: str, name: str) -> str:
    """Return the prompt of one class: `template` with `name` in place of its one `{}`."""
    if _placeholders(template) != [("", "", None)]:
        raise ValueError(f"template {template!r} must contain exactly one {{}}, for the class name, and no other field")
    return template.format(name)


def prompts_for(class_names: Sequence[str], templates: Sequence[str] = SIMPLE_TEMPLATES) -> list[list[str]]:
    """Return K lists of T prompts, in the order of `class_names` (K) and `templates` (T)."""
    names, templates = check_classes(class_names, templates)
    return [[fill(template, name) for template in templates] for name in names]


def check_classes(
    class_names: Sequence[str] | Mapping[str, Sequence[str]], templates: Sequence[str] = SIMPLE_TEMPLATES
) -> tuple[tuple[str, ...] | dict[str, tuple[str, ...]], tuple[str, ...]]:
    """Return the classes and templates of a zero-shot classifier as tuples, the classes with prompts as a dict.

    Args:
        class_names: K names, which fill each template; or {name: its prompts}, which ignores the templates.
        templates: strings with one "{}" each.

    Raises:
        ValueError: a single string where several belong, which would be read letter by letter; a set of names, whose
            order is chance; nothing; or items that are not strings (a name may be a number).
    """
    if isinstance(class_names, Mapping):
        if not class_names:
            raise ValueError("class_names is empty; pass at least one")
        prompts = {name: _strings(f"class_names[{name!r}]", own) for name, own in class_names.items()}
        _strings("class_names", prompts, numbers.Number)
        return prompts, ()
    if isinstance(class_names, set | frozenset):
        raise ValueError(f"class_names is a set, {_cut(class_names)}, and has no order; pass a list or a tuple")
    return _strings("class_names", class_names, numbers.Number), _strings("templates", templates)


def _strings(argument: str, value: Any, *others: type) -> tuple:
    """Return an iterable of strings as a tuple; `others` are types that its items may have too."""
    if isinstance(value, str):
        raise ValueError(
            f"{argument} is the string {_cut(value)}; pass a sequence of strings, such as ({_cut(value)},)"
        )
    if isinstance(value, bytes | bytearray) or not isinstance(value, Iterable):
        raise ValueError(f"{argument} is {_cut(value)}, a {type(value).__name__}; pass a sequence of strings")
    items = tuple(value)
    if not items:
        raise ValueError(f"{argument} is empty; pass at least one")
    for place, item in enumerate(items):
        if not isinstance(item, (str, *others)):
            raise ValueError(f"{argument}[{place}] is {_cut(item)}, a {type(item).__name__}; it must be a string")
    return items


def _cut(value: Any) -> str:
    """Return the repr of a value, at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def class_matrix(
    embed_texts: "EmbedTexts | CLIP",
    class_names: Sequence[str] | Mapping[str, Sequence[str]],
    templates: Sequence[str] = SIMPLE_TEMPLATES,
    *,
    tokenizer: Tokenize | None = None,
    batch_size: int = 256,
) -> np.ndarray:
    """Return the zero-shot class matrix: one unit column per class, float32 (D, K).

    Each prompt's embedding is normalised; a class is the normalised mean of its prompts. Each distinct prompt is
    embedded once.

    Args:
        embed_texts: function from a list of N strings to embeddings (N, D), normalised or not; or a `clip.CLIP`, whose
            text tower then embeds.
        class_names: K names, which fill each template; or {name: its prompts}, which ignores the templates.
        templates: strings with one "{}" each.
        tokenizer: from a list of strings to int32 (N, L), or a tokenizer of KerasHub; only with a `clip.CLIP`, default
            `clip.tokenize`.
        batch_size: prompts per batch of a `clip.CLIP`.

    Raises:
        ValueError: no class, no template, a class without prompts, a template without exactly one "{}", a string where
            several belong, or a set of names.

    Reference: arXiv:2103.00020, section 3.1.4.
    """
    names, templates = check_classes(class_names, templates)
    prompts = list(names.values()) if isinstance(names, dict) else prompts_for(names, templates)  # K of T
    if hasattr(embed_texts, "text_encoder"):
        embed_texts = _tower_embedder(cast("CLIP", embed_texts), tokenizer, batch_size)
    distinct = list(dict.fromkeys(prompt for row in prompts for prompt in row))
    embeddings = normalize(np.asarray(embed_texts(distinct), np.float32))
    embedding_of = dict(zip(distinct, embeddings, strict=True))
    means = [np.mean([embedding_of[prompt] for prompt in row], axis=0) for row in prompts]
    return np.ascontiguousarray(normalize(np.stack(means)).T)


def _tower_embedder(model: "CLIP", tokenizer: Tokenize | None, batch_size: int) -> EmbedTexts:
    """Return the function that embeds texts with a pair's text tower."""
    from clip.tokenizer import as_tokenize

    to_tokens = as_tokenize(tokenizer, model.text_encoder.input_shape[1])
    return lambda texts: model.text_encoder.predict(to_tokens(texts), batch_size=batch_size, verbose=0)


def normalize(x: np.ndarray) -> np.ndarray:
    """Return x / ‖x‖₂ over the last axis; rows of zeros stay zero."""
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def _placeholders(template: str) -> list[tuple[str, str, str | None]] | None:
    """Return (field, format spec, conversion) of each placeholder; None if `str.format` cannot parse the template."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError:  # a brace without its partner
        return None
    return [(field, spec or "", conversion) for _, field, spec, conversion in parts if field is not None]
