"""The published image–text pairs: one row per pair, named as in open_clip.

Rows are read without Keras. Sources: OpenAI's CLIP (arXiv:2103.00020, tables 19 and 20), open_clip's ConvNeXt and ViT
configurations, MobileCLIP (arXiv:2311.17049) and MobileCLIP2 (arXiv:2508.20691); `convnext_v2_*` are this project's
own pairs.
"""

from dataclasses import asdict, dataclass
from typing import Any

from clip.towers import ConvNeXt, MCi, ResNet, Text, ViT, find_tower, tower_of
from convnext import closest


@dataclass(frozen=True)
class Pair:
    """One CLIP model: an image tower and a text tower with one embedding space.

    Args:
        embed_dim: D, size of an embedding.
        image_size: side of the square images in pixels.
        image: config of the image tower: `ViT`, `ResNet`, `ConvNeXt`, `MCi`, or of a registered tower of your own.
        text: config of the text tower: `Text`, or of a registered tower of your own.
        activation: activation of the transformers, "gelu" (exact) or "quick_gelu".
    """

    embed_dim: int
    image_size: int
    image: Any
    text: Any
    activation: str = "gelu"

    def to_dict(self) -> dict:
        """Return the row as JSON values, with the kind of the image tower and of a text tower other than `Text`."""
        image, text = tower_of(self.image), tower_of(self.text)
        kind = {} if text.kind == TEXT_KIND else {"kind": text.kind}
        return {
            **asdict(self),
            "image": {"kind": image.kind, **image.to_dict(self.image)},
            "text": {**kind, **text.to_dict(self.text)},
        }

    @classmethod
    def from_dict(cls, fields: dict) -> "Pair":
        """Return the row that `to_dict` wrote.

        Raises:
            ValueError, TypeError: the fields do not describe a CLIP model.
        """
        image, text = dict(fields["image"]), dict(fields["text"])
        image_tower = find_tower("image", image.pop("kind"))
        text_tower = find_tower("text", text.pop("kind", TEXT_KIND))
        return cls(**{**fields, "image": image_tower.from_dict(image), "text": text_tower.from_dict(text)})


TEXT_KIND = "text"  # not written to files


def _v1(variant, projection="linear"):
    return ConvNeXt("convnext", variant, projection)


def _v2(variant):
    return ConvNeXt("convnextv2", variant)


MCI0 = MCi((2, 6, 10, 2), (64, 128, 256, 512))
MCI1 = MCi((4, 12, 20, 4), (64, 128, 256, 512))
MCI2 = MCi((4, 12, 24, 4), (80, 160, 320, 640))
WIDE_MCI: dict[str, Any] = {
    **{"mlp_ratio": 4, "attention_stages": 2, "squeeze_excite": 0},
    **{"norm": "layer", "stem_scale": False},
}
MCI3 = MCi((2, 12, 24, 4, 2), (96, 192, 384, 768, 1536), **WIDE_MCI)
MCI4 = MCi((2, 12, 24, 4, 4), (128, 256, 512, 1024, 2048), **WIDE_MCI)
# As in open_clip. Apple's own code for MobileCLIP-B has epsilon=1e-5 and stem_padding=1.
STEM_VIT = ViT(768, 12, 16, epsilon=1e-6, stem_dim=192, projection_bias=True)
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
    """Return the table's spelling of a pair's name, and the activation that a "-quickgelu" suffix asks for or None.

    "ViT-L/14@336px" → ("ViT-L-14-336", None); "ViT-B-32-quickgelu" → ("ViT-B-32", "quick_gelu").

    Raises:
        ValueError: an unknown name; the nearest one is suggested.
    """
    spelled = str(name).replace("/", "-").replace("@336px", "-336")
    activation = "quick_gelu" if spelled.endswith(QUICK_GELU_SUFFIX) else None
    spelled = spelled.removesuffix(QUICK_GELU_SUFFIX)
    if spelled not in VARIANTS:
        raise ValueError(f"Unknown CLIP variant {name!r}.{closest(spelled, VARIANTS)}")
    return spelled, activation


def parameters(pair: Pair) -> int:
    """Trainable parameters of a pair, the logit scale included."""
    return image_parameters(pair) + text_parameters(pair.text, pair.embed_dim) + 1


def image_parameters(pair: Pair, image_size: int | None = None) -> int:
    """Trainable parameters of the image tower, projection included; image_size is the row's unless given."""
    return tower_of(pair.image).parameters(pair.image, pair.embed_dim, image_size or pair.image_size)


def text_parameters(text: Any, embed_dim: int) -> int:
    """Trainable parameters of a text tower, projection included."""
    return tower_of(text).parameters(text, embed_dim)


def flops(pair: Pair, image_size: int | None = None) -> int:
    """Floating-point operations to encode one image and one caption of full length, two per multiply–add."""
    return image_flops(pair, image_size) + text_flops(pair.text, pair.embed_dim)


def image_flops(pair: Pair, image_size: int | None = None) -> int:
    """Floating-point operations to encode one image; image_size is the row's unless given."""
    return tower_of(pair.image).flops(pair.image, pair.embed_dim, image_size or pair.image_size)


def text_flops(text: Any, embed_dim: int) -> int:
    """Floating-point operations to encode one caption of full length."""
    return tower_of(text).flops(text, embed_dim)
