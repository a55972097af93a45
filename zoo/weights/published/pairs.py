"""The image–text pairs that open_clip's table of pretrained weights lists, on the rows of `clip.VARIANTS`.

Facts from open_clip's table (MIT) and the repositories' model cards. Scores: zero-shot on ImageNet-1k, of
open_clip's docs/openclip_results.csv, and of Apple's (apple/ml-mobileclip) for MobileCLIP.
"""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import clip
from zoo.data.preprocess import PreprocessSpec
from zoo.weights.published import OPEN_CLIP_FILES, Weights

_OPENAI = PreprocessSpec()
_HALF = PreprocessSpec(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
_BILINEAR = PreprocessSpec(interpolation="bilinear")
_PIXELS = PreprocessSpec(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), interpolation="bilinear")
_SQUASHED = PreprocessSpec(resize_mode="squash")


class _Group(NamedTuple):
    """Weights that differ only in the repository.

    Fields:
        licence: licence of the weights.
        owner: prefix of each repository.
        rows: (`architecture.tag`, score or None, repository).
        activation: activation of the transformers.
        preprocess: at the architecture's image size.
        files: looked for in the repository.
    """

    licence: str
    owner: str
    rows: list[tuple[str, float | None, str]]
    activation: str = "gelu"
    preprocess: PreprocessSpec = _OPENAI
    files: tuple[str, ...] = OPEN_CLIP_FILES


_GROUPS = (
    _Group("MIT", "timm/", activation="quick_gelu", rows=[
        ("RN50.openai", 59.82, "resnet50_clip.openai"),
        ("RN50.yfcc15m", 32.75, "resnet50_clip.yfcc15m"),
        ("RN50.cc12m", 36.47, "resnet50_clip.cc12m"),
        ("RN101.openai", 62.28, "resnet101_clip.openai"),
        ("RN101.yfcc15m", 34.87, "resnet101_clip.yfcc15m"),
        ("RN50x4.openai", 66.27, "resnet50x4_clip.openai"),
        ("RN50x16.openai", 70.72, "resnet50x16_clip.openai"),
        ("RN50x64.openai", 73.91, "resnet50x64_clip.openai"),
        ("ViT-B-32.openai", 63.32, "vit_base_patch32_clip_224.openai"),
        ("ViT-B-16.openai", 68.34, "vit_base_patch16_clip_224.openai"),
        ("ViT-L-14.openai", 75.54, "vit_large_patch14_clip_224.openai"),
        ("ViT-L-14-336.openai", 76.56, "vit_large_patch14_clip_336.openai"),
        ("ViT-B-32.laion400m_e31", 62.94, "vit_base_patch32_clip_224.laion400m_e31"),
        ("ViT-B-32.laion400m_e32", 62.93, "vit_base_patch32_clip_224.laion400m_e32"),
    ]),
    _Group("CC-BY-NC-4.0", "timm/", activation="quick_gelu", rows=[
        ("ViT-B-32.metaclip_400m", 65.58, "vit_base_patch32_clip_224.metaclip_400m"),
        ("ViT-B-32.metaclip_fullcc", 67.66, "vit_base_patch32_clip_224.metaclip_2pt5b"),
        ("ViT-B-16.metaclip_400m", 70.80, "vit_base_patch16_clip_224.metaclip_400m"),
        ("ViT-B-16.metaclip_fullcc", 72.12, "vit_base_patch16_clip_224.metaclip_2pt5b"),
        ("ViT-L-14.metaclip_400m", 76.20, "vit_large_patch14_clip_224.metaclip_400m"),
        ("ViT-L-14.metaclip_fullcc", 79.17, "vit_large_patch14_clip_224.metaclip_2pt5b"),
        ("ViT-H-14.metaclip_fullcc", 80.51, "vit_huge_patch14_clip_224.metaclip_2pt5b"),
        ("ViT-bigG-14.metaclip_fullcc", None, "vit_gigantic_patch14_clip_224.metaclip_2pt5b"),
    ]),
    _Group("CC-BY-NC-4.0", "timm/", [
        ("ViT-H-14.metaclip_altogether", None, "vit_huge_patch14_clip_224.metaclip_altogether"),
    ]),
    _Group("Apple-ASCL", "apple/", activation="quick_gelu", rows=[
        ("ViT-B-16.dfn2b", 76.24, "DFN2B-CLIP-ViT-B-16"),
        ("ViT-L-14.dfn2b", 81.41, "DFN2B-CLIP-ViT-L-14"),
    ]),
    _Group("Apple-ASCL", "apple/", [("ViT-L-14.dfn2b_s39b", None, "DFN2B-CLIP-ViT-L-14-39B")]),
    _Group("Apple-ASCL", "apple/", activation="quick_gelu", preprocess=_SQUASHED, rows=[
        ("ViT-H-14.dfn5b", 83.44, "DFN5B-CLIP-ViT-H-14"),
        ("ViT-H-14-378.dfn5b", 84.37, "DFN5B-CLIP-ViT-H-14-378"),
    ]),
    _Group("MIT", "timm/", [
        ("ViT-B-32.laion2b_e16", 65.65, "vit_base_patch32_clip_224.laion2b_e16"),
        ("ViT-B-16.laion400m_e31", 66.98, "vit_base_patch16_clip_224.laion400m_e31"),
        ("ViT-B-16.laion400m_e32", 67.05, "vit_base_patch16_clip_224.laion400m_e32"),
        ("ViT-B-16-plus-240.laion400m_e31", 69.04, "vit_base_patch16_plus_clip_240.laion400m_e31"),
        ("ViT-B-16-plus-240.laion400m_e32", 69.19, "vit_base_patch16_plus_clip_240.laion400m_e32"),
        ("ViT-L-14.laion400m_e31", 72.71, "vit_large_patch14_clip_224.laion400m_e31"),
        ("ViT-L-14.laion400m_e32", 72.77, "vit_large_patch14_clip_224.laion400m_e32"),
    ]),
    _Group("MIT", "laion/CLIP-", [
        ("ViT-B-32.laion2b_s34b_b79k", 66.56, "ViT-B-32-laion2B-s34B-b79K"),
        ("ViT-B-32.datacomp_xl_s13b_b90k", 69.17, "ViT-B-32-DataComp.XL-s13B-b90K"),
        ("ViT-B-32.datacomp_m_s128m_b4k", 29.72, "ViT-B-32-DataComp.M-s128M-b4K"),
        ("ViT-B-32.commonpool_m_clip_s128m_b4k", 27.25, "ViT-B-32-CommonPool.M.clip-s128M-b4K"),
        ("ViT-B-32.commonpool_m_laion_s128m_b4k", 23.04, "ViT-B-32-CommonPool.M.laion-s128M-b4K"),
        ("ViT-B-32.commonpool_m_image_s128m_b4k", 26.78, "ViT-B-32-CommonPool.M.image-s128M-b4K"),
        ("ViT-B-32.commonpool_m_text_s128m_b4k", 25.48, "ViT-B-32-CommonPool.M.text-s128M-b4K"),
        ("ViT-B-32.commonpool_m_basic_s128m_b4k", 22.55, "ViT-B-32-CommonPool.M.basic-s128M-b4K"),
        ("ViT-B-32.commonpool_m_s128m_b4k", 17.55, "ViT-B-32-CommonPool.M-s128M-b4K"),
        ("ViT-B-32.datacomp_s_s13m_b4k", 3.92, "ViT-B-32-DataComp.S-s13M-b4K"),
        ("ViT-B-32.commonpool_s_clip_s13m_b4k", 5.05, "ViT-B-32-CommonPool.S.clip-s13M-b4K"),
        ("ViT-B-32.commonpool_s_laion_s13m_b4k", 3.05, "ViT-B-32-CommonPool.S.laion-s13M-b4K"),
        ("ViT-B-32.commonpool_s_image_s13m_b4k", 3.92, "ViT-B-32-CommonPool.S.image-s13M-b4K"),
        ("ViT-B-32.commonpool_s_text_s13m_b4k", 4.60, "ViT-B-32-CommonPool.S.text-s13M-b4K"),
        ("ViT-B-32.commonpool_s_basic_s13m_b4k", 3.77, "ViT-B-32-CommonPool.S.basic-s13M-b4K"),
        ("ViT-B-32.commonpool_s_s13m_b4k", 2.70, "ViT-B-32-CommonPool.S-s13M-b4K"),
        ("ViT-B-32-256.datacomp_s34b_b86k", 72.81, "ViT-B-32-256x256-DataComp-s34B-b86K"),
        ("ViT-B-16.laion2b_s34b_b88k", 70.23, "ViT-B-16-laion2B-s34B-b88K"),
        ("ViT-B-16.datacomp_xl_s13b_b90k", 73.49, "ViT-B-16-DataComp.XL-s13B-b90K"),
        ("ViT-B-16.datacomp_l_s1b_b8k", 63.10, "ViT-B-16-DataComp.L-s1B-b8K"),
        ("ViT-B-16.commonpool_l_clip_s1b_b8k", 57.77, "ViT-B-16-CommonPool.L.clip-s1B-b8K"),
        ("ViT-B-16.commonpool_l_laion_s1b_b8k", 55.26, "ViT-B-16-CommonPool.L.laion-s1B-b8K"),
        ("ViT-B-16.commonpool_l_image_s1b_b8k", 57.19, "ViT-B-16-CommonPool.L.image-s1B-b8K"),
        ("ViT-B-16.commonpool_l_text_s1b_b8k", 56.05, "ViT-B-16-CommonPool.L.text-s1B-b8K"),
        ("ViT-B-16.commonpool_l_basic_s1b_b8k", 51.55, "ViT-B-16-CommonPool.L.basic-s1B-b8K"),
        ("ViT-B-16.commonpool_l_s1b_b8k", 45.93, "ViT-B-16-CommonPool.L-s1B-b8K"),
        ("ViT-L-14.datacomp_xl_s13b_b90k", 79.21, "ViT-L-14-DataComp.XL-s13B-b90K"),
        ("ViT-L-14.commonpool_xl_clip_s13b_b90k", 76.37, "ViT-L-14-CommonPool.XL.clip-s13B-b90K"),
        ("ViT-L-14.commonpool_xl_laion_s13b_b90k", 75.45, "ViT-L-14-CommonPool.XL.laion-s13B-b90K"),
        ("ViT-L-14.commonpool_xl_s13b_b90k", 72.29, "ViT-L-14-CommonPool.XL-s13B-b90K"),
        ("ViT-H-14.laion2b_s32b_b79k", 77.96, "ViT-H-14-laion2B-s32B-b79K"),
        ("ViT-g-14.laion2b_s12b_b42k", 76.63, "ViT-g-14-laion2B-s12B-b42K"),
        ("ViT-g-14.laion2b_s34b_b88k", 78.47, "ViT-g-14-laion2B-s34B-b88K"),
        ("ViT-bigG-14.laion2b_s39b_b160k", 80.09, "ViT-bigG-14-laion2B-39B-b160k"),
        ("convnext_base.laion400m_s13b_b51k", 66.27, "convnext_base-laion400M-s13B-b51K"),
        ("convnext_base_w.laion2b_s13b_b82k", 70.78, "convnext_base_w-laion2B-s13B-b82K"),
        ("convnext_base_w.laion2b_s13b_b82k_augreg", 71.47, "convnext_base_w-laion2B-s13B-b82K-augreg"),
        ("convnext_base_w.laion_aesthetic_s13b_b82k", 70.99, "convnext_base_w-laion_aesthetic-s13B-b82K"),
        ("convnext_base_w_320.laion_aesthetic_s13b_b82k", 71.67, "convnext_base_w_320-laion_aesthetic-s13B-b82K"),
        ("convnext_base_w_320.laion_aesthetic_s13b_b82k_augreg", 71.28, "convnext_base_w_320-laion_aesthetic-s13B-b82K-augreg"),  # noqa: E501
        ("convnext_large_d.laion2b_s26b_b102k_augreg", 75.91, "convnext_large_d.laion2B-s26B-b102K-augreg"),
        ("convnext_large_d_320.laion2b_s29b_b131k_ft", 76.60, "convnext_large_d_320.laion2B-s29B-b131K-ft"),
        ("convnext_large_d_320.laion2b_s29b_b131k_ft_soup", 76.85, "convnext_large_d_320.laion2B-s29B-b131K-ft-soup"),
        ("convnext_xxlarge.laion2b_s34b_b82k_augreg", 79.07, "convnext_xxlarge-laion2B-s34B-b82K-augreg"),
        ("convnext_xxlarge.laion2b_s34b_b82k_augreg_rewind", 79.31, "convnext_xxlarge-laion2B-s34B-b82K-augreg-rewind"),
        ("convnext_xxlarge.laion2b_s34b_b82k_augreg_soup", 79.47, "convnext_xxlarge-laion2B-s34B-b82K-augreg-soup"),
    ]),
    _Group("Apple-AMLR", "apple/", preprocess=_PIXELS, files=("mobileclip_s0.pt",), rows=[
        ("MobileCLIP-S0.datacompdr", 67.79, "MobileCLIP-S0"),  # in Apple's own naming; open_clip has no such tower
    ]),
    _Group("Apple-AMLR", "apple/", preprocess=_PIXELS, rows=[
        ("MobileCLIP-S1.datacompdr", 72.62, "MobileCLIP-S1-OpenCLIP"),
        ("MobileCLIP-S2.datacompdr", 74.44, "MobileCLIP-S2-OpenCLIP"),
        ("MobileCLIP-B.datacompdr", 76.82, "MobileCLIP-B-OpenCLIP"),
        ("MobileCLIP-B.datacompdr_lt", 77.22, "MobileCLIP-B-LT-OpenCLIP"),
    ]),
    _Group("Apple-AMLR", "timm/", preprocess=_PIXELS, rows=[
        ("MobileCLIP2-S0.dfndr2b", 71.53, "MobileCLIP2-S0-OpenCLIP"),
        ("MobileCLIP2-S2.dfndr2b", 77.24, "MobileCLIP2-S2-OpenCLIP"),
        ("MobileCLIP2-B.dfndr2b", 79.41, "MobileCLIP2-B-OpenCLIP"),
    ]),
    _Group("Apple-AMLR", "timm/", preprocess=_BILINEAR, rows=[
        ("MobileCLIP2-S3.dfndr2b", 80.68, "MobileCLIP2-S3-OpenCLIP"),
        ("MobileCLIP2-S4.dfndr2b", 81.85, "MobileCLIP2-S4-OpenCLIP"),
    ]),
    _Group("Apple-AMLR", "timm/", [("MobileCLIP2-L-14.dfndr2b", 81.90, "MobileCLIP2-L-14-OpenCLIP")]),
    _Group("MIT", "laion/CLIP-", preprocess=_HALF, rows=[
        ("ViT-L-14.laion2b_s32b_b82k", 75.25, "ViT-L-14-laion2B-s32B-b82K"),
    ]),
)  # fmt: skip

# SHA-256 of open_clip_model.safetensors, from the file's page, https://huggingface.co/REPOSITORY/blob/main/…, and the
# commit that added the file. The digests in OpenAI's own URLs are of its .pt archives, which no row downloads.
DIGESTS = {
    "ViT-B-32.laion400m_e32": "25802f2bca7543373c773621aa896b4f0e3d0de95bf3f222e66e06afab6d6c67",  # 8604507
    "convnext_base_w.laion2b_s13b_b82k": "a7528aa0381ddcd2cf5791eb5efd8b695d109b57fbcf9f53fb464ab3950d86b0",  # 1bda9a8
    "MobileCLIP-S1.datacompdr": "4c44cc904a37444bed045b0498c9917711e5c9076aff3988f3946326238b959e",  # d147e67
}


def rows() -> Iterator[Weights]:
    """Every `Weights` of _GROUPS, in order."""
    for group in _GROUPS:
        for full_name, score, repository in group.rows:
            label, _, tag = full_name.partition(".")
            size = clip.VARIANTS[label].image_size
            yield Weights(
                f"clip/{label}",
                tag,
                repository=group.owner + repository,
                files=group.files,
                licence=group.licence,
                preprocess=dataclasses.replace(group.preprocess, image_size=size),
                activation=group.activation,
                score=score,
                sha256=DIGESTS.get(full_name),
            )
