"""The published image–text pairs: one row a pair, named as open_clip names them, and what a row implies.

Rows are read without Keras. Sources: OpenAI's CLIP (arXiv:2103.00020, tables 19 and 20), open_clip's ConvNeXt and ViT
configurations; `convnext_v2_*` are this project's own pairs.
"""

from dataclasses import dataclass

from convnext import TABLES, closest
from convnext import flops as convnext_flops
from convnext import parameters as convnext_parameters

VOCABULARY_SIZE = 49408
CONTEXT_LENGTH = 77


@dataclass(frozen=True)
class Text:
    """A causal text transformer: W channels, attention heads, blocks."""

    width: int
    heads: int
    layers: int
    context_length: int = CONTEXT_LENGTH
    vocabulary_size: int = VOCABULARY_SIZE


@dataclass(frozen=True)
class ViT:
    """A vision transformer: W channels, blocks, side of a patch in pixels."""

    width: int
    layers: int
    patch_size: int
    head_width: int = 64
    mlp_ratio: float = 4.0


@dataclass(frozen=True)
class ConvNeXt:
    """A ConvNeXt trunk, pooled and normalised, and its projection: "linear", or "mlp" with 2·embed_dim hidden units."""

    family: str
    variant: str
    projection: str = "linear"


@dataclass(frozen=True)
class Pair:
    """One row: two towers into one space of embed_dim channels. `activation` is that of the transformers."""

    embed_dim: int
    image_size: int
    image: ViT | ConvNeXt
    text: Text
    activation: str = "gelu"


def _v1(variant, projection="linear"):
    return ConvNeXt("convnext", variant, projection)


def _v2(variant):
    return ConvNeXt("convnextv2", variant)


# name                      embed size  image tower              text W, heads, layers
VARIANTS = {
    "ViT-B-32":             Pair(512,  224, ViT(768, 12, 32),      Text(512, 8, 12), "quick_gelu"),
    "ViT-B-16":             Pair(512,  224, ViT(768, 12, 16),      Text(512, 8, 12), "quick_gelu"),
    "ViT-L-14":             Pair(768,  224, ViT(1024, 24, 14),     Text(768, 12, 12), "quick_gelu"),
    "ViT-L-14-336":         Pair(768,  336, ViT(1024, 24, 14),     Text(768, 12, 12), "quick_gelu"),
    "convnext_tiny":        Pair(1024, 224, _v1("tiny"),           Text(512, 8, 12)),
    "convnext_small":       Pair(512,  224, _v1("small"),          Text(512, 8, 12)),
    "convnext_base":        Pair(512,  224, _v1("base"),           Text(512, 8, 12)),
    "convnext_base_w":      Pair(640,  256, _v1("base"),           Text(640, 10, 12)),
    "convnext_base_w_320":  Pair(640,  320, _v1("base"),           Text(640, 10, 12)),
    "convnext_large":       Pair(768,  224, _v1("large"),          Text(768, 12, 12)),
    "convnext_large_d":     Pair(768,  256, _v1("large", "mlp"),   Text(768, 12, 16)),
    "convnext_large_d_320": Pair(768,  320, _v1("large", "mlp"),   Text(768, 12, 16)),
    "convnext_xlarge":      Pair(1024, 256, _v1("xlarge"),         Text(1024, 16, 20)),
    "convnext_xxlarge":     Pair(1024, 256, _v1("xxlarge"),        Text(1024, 16, 24)),
    "convnext_xxlarge_320": Pair(1024, 320, _v1("xxlarge"),        Text(1024, 16, 24)),
    "convnext_v2_atto":     Pair(256,  224, _v2("atto"),           Text(256, 4, 4)),
    "convnext_v2_femto":    Pair(256,  224, _v2("femto"),          Text(256, 4, 4)),
    "convnext_v2_pico":     Pair(256,  224, _v2("pico"),           Text(256, 4, 4)),
    "convnext_v2_nano":     Pair(256,  224, _v2("nano"),           Text(256, 4, 4)),
    "convnext_v2_tiny":     Pair(512,  224, _v2("tiny"),           Text(512, 8, 12)),
    "convnext_v2_base":     Pair(512,  224, _v2("base"),           Text(512, 8, 12)),
    "convnext_v2_large":    Pair(768,  224, _v2("large"),          Text(768, 12, 12)),
    "convnext_v2_huge":     Pair(1024, 256, _v2("huge"),           Text(1024, 16, 24)),
}  # fmt: skip

QUICK_GELU_SUFFIX = "-quickgelu"


def canonical_name(name: str) -> tuple[str, str | None]:
    """The table's spelling of a pair's name and the activation the spelling asks for, or None.

    "ViT-L/14@336px" → ("ViT-L-14-336", None); "ViT-B-32-quickgelu" → ("ViT-B-32", "quick_gelu").

    Raises:
        ValueError: no pair has this name; the nearest one is offered.
    """
    spelled = str(name).replace("/", "-").replace("@336px", "-336")
    activation = "quick_gelu" if spelled.endswith(QUICK_GELU_SUFFIX) else None
    spelled = spelled.removesuffix(QUICK_GELU_SUFFIX)
    if spelled not in VARIANTS:
        raise ValueError(f"Unknown CLIP variant {name!r}.{closest(spelled, VARIANTS)}")
    return spelled, activation


def parameters(pair: Pair) -> int:
    """Trainable parameters of a row's pair, the logit scale included."""
    return image_parameters(pair) + text_parameters(pair.text, pair.embed_dim) + 1


def text_parameters(text, embed_dim):
    """Trainable parameters of a text tower: embeddings, blocks, final norm, projection."""
    width = text.width
    embeddings = (text.vocabulary_size + text.context_length) * width
    return embeddings + text.layers * _block_parameters(width, 4 * width) + 2 * width + width * embed_dim


def image_parameters(pair, image_size=None):
    """Trainable parameters of a row's image tower, projection included."""
    image, embed_dim = pair.image, pair.embed_dim
    if isinstance(image, ConvNeXt):
        row = TABLES[image.family][image.variant]
        trunk = convnext_parameters(row, v2=image.family == "convnextv2", num_classes=None)
        return trunk + sum(i * o + bias * o for i, o, bias in _projection(image, row, embed_dim))
    width, hidden = image.width, int(image.width * image.mlp_ratio)
    tokens = ((image_size or pair.image_size) // image.patch_size) ** 2 + 1
    embeddings = 3 * image.patch_size**2 * width + width + tokens * width
    return embeddings + image.layers * _block_parameters(width, hidden) + 4 * width + width * embed_dim


def _projection(image, row, embed_dim):
    """[(in, out, has bias), …] of the Dense layers from the trunk's features to the embedding."""
    features, hidden = row.dims[-1], 2 * embed_dim
    if image.projection == "mlp":
        return [(features, hidden, True), (hidden, embed_dim, False)]
    return [(features, embed_dim, False)]


def _block_parameters(width, hidden):
    return 4 * width**2 + 4 * width + 2 * width * hidden + hidden + width + 4 * width


def flops(pair: Pair, image_size: int | None = None) -> int:
    """Floating-point operations to encode one image and one caption of full length, two for each multiply–add."""
    return image_flops(pair, image_size) + text_flops(pair.text, pair.embed_dim)


def text_flops(text, embed_dim):
    length = text.context_length
    return 2 * (_transformer_multiply_adds(text.width, 4 * text.width, text.layers, length) + text.width * embed_dim)


def image_flops(pair, image_size=None):
    image, side = pair.image, image_size or pair.image_size
    if isinstance(image, ConvNeXt):
        row = TABLES[image.family][image.variant]
        head = sum(i * o for i, o, _ in _projection(image, row, pair.embed_dim))
        return convnext_flops(row, image_size=side, num_classes=None) + 2 * head
    patches = (side // image.patch_size) ** 2
    hidden = int(image.width * image.mlp_ratio)
    trunk = _transformer_multiply_adds(image.width, hidden, image.layers, patches + 1)
    return 2 * (patches * 3 * image.patch_size**2 * image.width + trunk + image.width * pair.embed_dim)


def _transformer_multiply_adds(width, hidden, layers, length):
    return layers * length * (4 * width**2 + 2 * width * hidden + 2 * length * width)
