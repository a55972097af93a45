"""The published image–text pairs: one row a pair, named as open_clip names them, and what a row implies.

Rows are read without Keras. Sources: OpenAI's CLIP (arXiv:2103.00020, tables 19 and 20), open_clip's ConvNeXt and ViT
configurations; `convnext_v2_*` are this project's own pairs.
"""

from dataclasses import asdict, dataclass

from clip import mci
from clip.mci import MCi
from convnext import TABLES, closest
from convnext import flops as convnext_flops
from convnext import parameters as convnext_parameters

VOCABULARY_SIZE = 49408
CONTEXT_LENGTH = 77


@dataclass(frozen=True)
class Text:
    """A text transformer: W channels, attention heads, blocks.

    Args:
        causal: a token sees itself and those before it; otherwise all, padding too.
        mixer_kernel: width of a convolutional block's kernel before and after the others; None for no such blocks.
    """

    width: int
    heads: int
    layers: int
    context_length: int = CONTEXT_LENGTH
    vocabulary_size: int = VOCABULARY_SIZE
    causal: bool = True
    mixer_kernel: int | None = None


@dataclass(frozen=True)
class ViT:
    """A vision transformer: W channels, blocks, side of a patch in pixels.

    Args:
        epsilon: added to the variance in every LayerNorm.
        stem_dim: channels of a stem of three convolutions in place of one; then patches are of 16 pixels, the class
            token has no position, and no norm stands before the blocks.
        stem_padding: zeros around the image, read by that stem's first convolution.
        projection_bias: whether the projection to the embedding has a bias.
    """

    width: int
    layers: int
    patch_size: int
    head_width: int = 64
    mlp_ratio: float = 4.0
    epsilon: float = 1e-5
    stem_dim: int | None = None
    stem_padding: int = 0
    projection_bias: bool = False

    def __post_init__(self):
        if self.width % self.head_width:
            raise ValueError(f"A ViT's width must be a multiple of its head_width. Got {self}.")


@dataclass(frozen=True)
class ResNet:
    """OpenAI's ResNet: blocks of each of the four stages, W channels after the stem, 32 W after the last stage."""

    layers: tuple[int, ...]
    width: int

    def __post_init__(self):
        if len(self.layers) != 4 or min(self.layers) < 1 or self.width < 2 or self.width % 2:
            raise ValueError(f"A ResNet row needs four positive layers and an even width. Got {self}.")

    @property
    def features(self):
        """Channels that the attention pool reads."""
        return 32 * self.width

    @property
    def heads(self):
        """Of the attention pool, each 64 wide."""
        return self.features // 64


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
    image: ViT | ResNet | ConvNeXt | MCi
    text: Text
    activation: str = "gelu"

    def to_dict(self) -> dict:
        """The row in what JSON can hold; `image` says its kind. `from_dict` reads it."""
        kind = next(kind for kind, row in IMAGE_TOWERS.items() if isinstance(self.image, row))
        fields = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self.image).items()}
        return {**asdict(self), "image": {"kind": kind, **fields}}

    @classmethod
    def from_dict(cls, spelled: dict) -> "Pair":
        """The row that `to_dict` spelled.

        Raises:
            ValueError, TypeError: there is no such row.
        """
        fields = {key: tuple(value) if isinstance(value, list) else value for key, value in spelled["image"].items()}
        image = IMAGE_TOWERS[fields.pop("kind")](**fields)
        return cls(**{**spelled, "image": image, "text": Text(**spelled["text"])})


IMAGE_TOWERS = {"vit": ViT, "resnet": ResNet, "convnext": ConvNeXt, "mci": MCi}


def _v1(variant, projection="linear"):
    return ConvNeXt("convnext", variant, projection)


def _v2(variant):
    return ConvNeXt("convnextv2", variant)


MCI0 = MCi((2, 6, 10, 2), (64, 128, 256, 512))
MCI1 = MCi((4, 12, 20, 4), (64, 128, 256, 512))
MCI2 = MCi((4, 12, 24, 4), (80, 160, 320, 640))
WIDE_MCI = {"mlp_ratio": 4, "attention_stages": 2, "squeeze_excite": 0, "norm": "layer", "stem_scale": False}
MCI3 = MCi((2, 12, 24, 4, 2), (96, 192, 384, 768, 1536), **WIDE_MCI)
MCI4 = MCi((2, 12, 24, 4, 4), (128, 256, 512, 1024, 2048), **WIDE_MCI)
STEM_VIT = ViT(768, 12, 16, epsilon=1e-6, stem_dim=192, projection_bias=True)  # as open_clip has it; Apple's own code
# for MobileCLIP-B has epsilon=1e-5 and stem_padding=1, which a `Pair` of one's own can say
CAUSAL, ALL_SEE_ALL = Text(512, 8, 12), Text(512, 8, 12, causal=False)
WIDE_TEXT = Text(768, 12, 12, causal=False)

# name                      embed size  image tower              text W, heads, layers
VARIANTS = {
    "RN50":                 Pair(1024, 224, ResNet((3, 4, 6, 3), 64),     Text(512, 8, 12), "quick_gelu"),
    "RN101":                Pair(512,  224, ResNet((3, 4, 23, 3), 64),    Text(512, 8, 12), "quick_gelu"),
    "RN50x4":               Pair(640,  288, ResNet((4, 6, 10, 6), 80),    Text(640, 10, 12), "quick_gelu"),
    "RN50x16":              Pair(768,  384, ResNet((6, 8, 18, 8), 96),    Text(768, 12, 12), "quick_gelu"),
    "RN50x64":              Pair(1024, 448, ResNet((3, 15, 36, 10), 128), Text(1024, 16, 12), "quick_gelu"),
    "ViT-S-32-alt":         Pair(256,  224, ViT(384, 12, 32),      Text(256, 4, 10)),
    "ViT-S-32":             Pair(384,  224, ViT(384, 12, 32),      Text(384, 6, 12)),
    "ViT-S-16-alt":         Pair(256,  224, ViT(384, 12, 16),      Text(256, 4, 10)),
    "ViT-S-16":             Pair(384,  224, ViT(384, 12, 16),      Text(384, 6, 12)),
    "ViT-M-32-alt":         Pair(384,  224, ViT(512, 12, 32),      Text(384, 6, 12)),
    "ViT-M-32":             Pair(512,  224, ViT(512, 12, 32),      Text(512, 8, 12)),
    "ViT-M-16":             Pair(512,  224, ViT(512, 12, 16),      Text(512, 8, 12)),
    "ViT-B-32":             Pair(512,  224, ViT(768, 12, 32),      Text(512, 8, 12), "quick_gelu"),
    "ViT-B-32-256":         Pair(512,  256, ViT(768, 12, 32),      Text(512, 8, 12)),
    "ViT-B-32-plus-256":    Pair(640,  256, ViT(896, 12, 32),      Text(640, 10, 12)),
    "ViT-B-16":             Pair(512,  224, ViT(768, 12, 16),      Text(512, 8, 12), "quick_gelu"),
    "ViT-B-16-plus":        Pair(640,  224, ViT(896, 12, 16),      Text(640, 10, 12)),
    "ViT-B-16-plus-240":    Pair(640,  240, ViT(896, 12, 16),      Text(640, 10, 12)),
    "ViT-L-16":             Pair(768,  224, ViT(1024, 24, 16),     Text(768, 12, 12)),
    "ViT-L-16-320":         Pair(768,  320, ViT(1024, 24, 16),     Text(768, 12, 12)),
    "ViT-L-14":             Pair(768,  224, ViT(1024, 24, 14),     Text(768, 12, 12), "quick_gelu"),
    "ViT-L-14-280":         Pair(768,  280, ViT(1024, 24, 14),     Text(768, 12, 12)),
    "ViT-L-14-336":         Pair(768,  336, ViT(1024, 24, 14),     Text(768, 12, 12), "quick_gelu"),
    "ViT-H-16":             Pair(1024, 224, ViT(1280, 32, 16, 80), Text(1024, 16, 24)),
    "ViT-H-14":             Pair(1024, 224, ViT(1280, 32, 14, 80), Text(1024, 16, 24)),
    "ViT-H-14-378":         Pair(1024, 378, ViT(1280, 32, 14, 80), Text(1024, 16, 24)),
    "ViT-g-14":             Pair(1024, 224, ViT(1408, 40, 14, 88, 4.3637),  Text(1024, 16, 24)),
    "ViT-bigG-14":          Pair(1280, 224, ViT(1664, 48, 14, 104, 4.9231), Text(1280, 20, 32)),
    "ViT-e-14":             Pair(1280, 224, ViT(1792, 56, 14, 112, 8.5715), Text(1280, 20, 36)),
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
    "MobileCLIP-S0":        Pair(512,  256, MCI0,                  Text(512, 8, 4, causal=False, mixer_kernel=11)),
    "MobileCLIP-S1":        Pair(512,  256, MCI1,                  ALL_SEE_ALL),
    "MobileCLIP-S2":        Pair(512,  256, MCI2,                  ALL_SEE_ALL),
    "MobileCLIP-B":         Pair(512,  224, STEM_VIT,              CAUSAL),
    "MobileCLIP2-S0":       Pair(512,  256, MCI0,                  ALL_SEE_ALL),
    "MobileCLIP2-S2":       Pair(512,  256, MCI2,                  ALL_SEE_ALL),
    "MobileCLIP2-B":        Pair(512,  224, STEM_VIT,              CAUSAL),
    "MobileCLIP2-S3":       Pair(768,  256, MCI3,                  WIDE_TEXT),
    "MobileCLIP2-S4":       Pair(768,  256, MCI4,                  WIDE_TEXT),
    "MobileCLIP2-L-14":     Pair(768,  224, ViT(1024, 24, 14, projection_bias=True), WIDE_TEXT),
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
    mixers = 2 * (2 * text.mixer_kernel * width + 8 * width**2 + 15 * width) if text.mixer_kernel else 0
    return embeddings + text.layers * _block_parameters(width, 4 * width) + mixers + 2 * width + width * embed_dim


def image_parameters(pair, image_size=None):
    """Trainable parameters of a row's image tower, projection included."""
    image, embed_dim = pair.image, pair.embed_dim
    if isinstance(image, ConvNeXt):
        row = TABLES[image.family][image.variant]
        trunk = convnext_parameters(row, v2=image.family == "convnextv2", num_classes=None)
        return trunk + sum(i * o + bias * o for i, o, bias in _projection(image, row, embed_dim))
    if isinstance(image, ResNet):
        return _resnet_parameters(image, embed_dim, image_size or pair.image_size)
    if isinstance(image, MCi):
        return mci.parameters(image, embed_dim)
    width, hidden = image.width, int(image.width * image.mlp_ratio)
    patches = _patches(image, image_size or pair.image_size)
    if image.stem_dim:  # two norms, the last convolution's bias, the class token; one norm after the blocks
        embeddings = sum(_stem_kernels(image)) + 4 * image.stem_dim + width + (patches + 1) * width + 2 * width
    else:
        embeddings = 3 * image.patch_size**2 * width + width + (patches + 1) * width + 4 * width
    projection = width * embed_dim + image.projection_bias * embed_dim
    return embeddings + image.layers * _block_parameters(width, hidden) + projection


def _patches(vit, side):
    return ((side + 2 * vit.stem_padding) // vit.patch_size) ** 2


def _stem_kernels(vit):
    """Weights of the three kernels of a ViT's convolutional stem, 4×4, 2×2 and 2×2."""
    return 48 * vit.stem_dim, 4 * vit.stem_dim**2, 4 * vit.stem_dim * vit.width


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


def text_flops(text: Text, embed_dim: int) -> int:
    """Floating-point operations to encode one caption of full length."""
    length, width = text.context_length, text.width
    mixers = 2 * length * (2 * text.mixer_kernel * width + 8 * width**2) if text.mixer_kernel else 0
    return 2 * (_transformer_multiply_adds(width, 4 * width, text.layers, length) + mixers + width * embed_dim)


def image_flops(pair: Pair, image_size: int | None = None) -> int:
    """Floating-point operations to encode one image of the row's size, or another."""
    image, side = pair.image, image_size or pair.image_size
    if isinstance(image, ConvNeXt):
        row = TABLES[image.family][image.variant]
        head = sum(i * o for i, o, _ in _projection(image, row, pair.embed_dim))
        return convnext_flops(row, image_size=side, num_classes=None) + 2 * head
    if isinstance(image, ResNet):
        return 2 * _resnet_multiply_adds(image, pair.embed_dim, side)
    if isinstance(image, MCi):
        return mci.flops(image, pair.embed_dim, side)
    patches = _patches(image, side)
    hidden = int(image.width * image.mlp_ratio)
    trunk = _transformer_multiply_adds(image.width, hidden, image.layers, patches + 1)
    stem = patches * 3 * image.patch_size**2 * image.width
    if image.stem_dim:
        first = (side + 2 * image.stem_padding) // 4
        maps = first**2, (first // 2) ** 2, (first // 4) ** 2
        stem = sum(positions * kernel for positions, kernel in zip(maps, _stem_kernels(image), strict=True))
    return 2 * (stem + trunk + image.width * pair.embed_dim)


def _transformer_multiply_adds(width, hidden, layers, length):
    return layers * length * (4 * width**2 + 2 * width * hidden + 2 * length * width)


def _resnet_parameters(resnet, embed_dim, image_size):
    """Two for each channel of a BatchNorm; the pool has five tensors: positions, and four projections with biases."""
    convolutions = sum(size**2 * i * o + 2 * o for size, i, o, _ in _resnet_convolutions(resnet, image_size))
    features, positions = resnet.features, resnet_map(image_size) ** 2 + 1
    return convolutions + positions * features + 3 * (features + 1) * features + (features + 1) * embed_dim


def _resnet_multiply_adds(resnet, embed_dim, image_size):
    """The pool has one query: keys and values of all positions, one product each with them, two projections."""
    convolutions = sum(side**2 * size**2 * i * o for size, i, o, side in _resnet_convolutions(resnet, image_size))
    features, positions = resnet.features, resnet_map(image_size) ** 2 + 1
    pool = (2 * positions + 1) * features**2 + 2 * positions * features + features * embed_dim
    return convolutions + pool


def resnet_map(image_size):
    """Side of the last map: one strided convolution, padded, and four pools of 2 follow each other."""
    return -(-image_size // 2) // 16


def _resnet_convolutions(resnet, image_size):
    """(kernel size, in, out, side of the map it makes) of every convolution in order; a pool halves the map."""
    width, side = resnet.width, -(-image_size // 2)
    yield from ((3, 3, width // 2, side), (3, width // 2, width // 2, side), (3, width // 2, width, side))
    side, before = side // 2, width
    for stage, depth in enumerate(resnet.layers):
        dim = width * 2**stage
        for block in range(depth):
            full, side = side, side // 2 if stage and not block else side
            yield from ((1, before, dim, full), (3, dim, dim, full), (1, dim, 4 * dim, side))
            if not block:
                yield 1, before, 4 * dim, side
            before = 4 * dim
