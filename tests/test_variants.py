"""The tables against the published numbers; nothing is built, Keras is not loaded."""

import pytest

import clip
import convnext
from clip.towers.resnet import last_map
from clip.variants import image_flops, image_parameters, text_flops, text_parameters
from convnext import TABLES, ResNetVariant, Variant, flops, parameters

PUBLISHED = {  # 1000 classes: as timm counts them; with ten classes where given
    "convnext": {
        "atto": 3_695_520, "femto": 5_217_784, "pico": 9_045_672, "nano": 15_593_560, "tiny": 28_589_128,
        "small": 50_223_688, "base": 88_591_464, "large": 197_767_336, "xlarge": 350_196_968, "xxlarge": 846_471_016,
    },
    "convnextv2": {
        "atto": 3_708_400, "femto": 5_233_240, "pico": 9_066_280, "nano": 15_623_800, "tiny": 28_635_496,
        "small": 50_318_440, "base": 88_717_800, "large": 197_956_840, "huge": 660_289_640,
    },
    "resnet": {"18": 11_689_512, "34": 21_797_672, "50": 25_557_032, "101": 44_549_160, "152": 60_192_808},
}  # fmt: skip
TEN_CLASSES = {"atto": 3_390_610, "tiny": 27_874_186, "base": 87_703_050, "huge": 657_500_810}
TRUNKS = {
    "convnext": {"atto": 3_374_520, "tiny": 27_820_128, "xxlarge": 843_398_016},
    "convnextv2": {"atto": 3_387_400, "tiny": 27_866_496, "huge": 657_472_640},
}
MULTIPLY_ADDS = {  # billions, papers' tables (ResNet: torchvision's)
    "convnext": {"tiny": 4.5, "small": 8.7, "base": 15.4, "large": 34.4, "xlarge": 60.9},
    "convnextv2": {"atto": 0.55, "femto": 0.78, "pico": 1.37, "nano": 2.45, "tiny": 4.47, "base": 15.4, "huge": 115},
    "resnet": {"18": 1.81, "34": 3.66, "50": 4.09, "101": 7.80, "152": 11.51},
}
PAIRS = {  # total parameters and GFLOPs of image and caption, open_clip's model profile
    "RN50": (102_007_137, 18.18), "RN101": (119_688_033, 25.50), "RN50x4": (178_300_601, 51.82),
    "RN50x16": (290_979_217, 162.69), "RN50x64": (623_258_305, 552.65), "ViT-H-14": (986_109_441, 381.68),
    "ViT-g-14": (1_366_678_273, 581.15), "ViT-bigG-14": (2_539_567_105, 1065.36),
    "ViT-B-32": (151_277_313, 14.78), "ViT-B-16": (149_620_737, 41.09), "ViT-L-14": (427_616_513, 175.33),
    "ViT-L-14-336": (427_944_193, 395.22), "convnext_tiny": (92_296_801, 14.87), "convnext_small": (113_276_001, 23.33),
    "convnext_base": (151_518_849, 36.67), "convnext_base_w": (179_385_345, 49.38),
    "convnext_base_w_320": (179_385_345, 71.94), "convnext_large": (321_060_289, 82.02),
    "convnext_large_d": (351_772_609, 107.50), "convnext_large_d_320": (351_772_609, 157.98),
    "convnext_xlarge": (653_892_865, 198.38), "convnext_xxlarge": (1_200_576_385, 443.03),
    "convnext_xxlarge_320": (1_200_576_385, 665.74), "convnext_v2_tiny": (91_687_809, None),
}  # fmt: skip
PROFILE = {  # the same in millions, where only those are published; test_open_clip_rows.py counts each model exactly
    "ViT-S-32-alt": (43.22, 3.56), "ViT-S-32": (63.09, 5.66), "ViT-S-16-alt": (42.40, 10.47),
    "ViT-S-16": (62.26, 12.58), "ViT-M-32-alt": (80.07, 7.37), "ViT-M-32": (103.12, 9.95),
    "ViT-M-16": (102.02, 21.94), "ViT-B-32-256": (151.29, 17.46), "ViT-B-32-plus-256": (210.30, 24.83),
    "ViT-B-16-plus": (208.35, 56.75), "ViT-B-16-plus-240": (208.38, 64.03), "ViT-L-16": (427.74, 136.41),
    "ViT-L-16-320": (427.95, 271.93), "ViT-L-14-280": (427.76, 271.79), "ViT-H-16": (986.26, 301.72),
    "ViT-e-14": (4581.09, 2091.45),
}  # fmt: skip


@pytest.mark.parametrize("family", TABLES)
def test_counts_match_the_published_ones(family):
    counted = {name: parameters(row, v2=family == "convnextv2") for name, row in TABLES[family].items()}
    assert counted == PUBLISHED[family]


@pytest.mark.parametrize("name", TEN_CLASSES)
def test_counts_with_ten_classes(name):
    assert parameters(TABLES["convnextv2"][name], v2=True, num_classes=10) == TEN_CLASSES[name]


@pytest.mark.parametrize("family", TRUNKS)
def test_counts_without_a_head(family):
    for name, count in TRUNKS[family].items():
        assert parameters(TABLES[family][name], v2=family == "convnextv2", num_classes=None) == count


@pytest.mark.parametrize("family", MULTIPLY_ADDS)
def test_flops_are_twice_the_papers_multiply_adds(family):
    for name, billions in MULTIPLY_ADDS[family].items():
        assert flops(TABLES[family][name]) / 2e9 == pytest.approx(billions, rel=0.01)


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_match_the_published_counts(name):
    count, gflops = PAIRS[name]
    assert clip.parameters(clip.VARIANTS[name]) == count
    assert gflops is None or profiled_flops(clip.VARIANTS[name]) / 1e9 == pytest.approx(gflops, abs=0.006)


@pytest.mark.parametrize("name", PROFILE)
def test_pairs_match_the_profile(name):
    millions, gflops = PROFILE[name]
    assert clip.parameters(clip.VARIANTS[name]) / 1e6 == pytest.approx(millions, abs=0.006)
    assert clip.flops(clip.VARIANTS[name]) / 1e9 == pytest.approx(gflops, abs=0.006)


def profiled_flops(pair):
    """A row's flops as the profile counts: PyTorch's attention pool computes every position and uses one."""
    if not isinstance(pair.image, clip.ResNet):
        return clip.flops(pair)
    unread, features = last_map(pair.image_size) ** 2, pair.image.features
    projections = unread * features * (features + pair.embed_dim)
    return clip.flops(pair) + 2 * (projections + 2 * unread * (unread + 1) * features)


def test_every_pair_has_a_published_count_or_is_our_own():
    others = {name for name in clip.VARIANTS if name not in PAIRS | PROFILE and not name.startswith("MobileCLIP")}
    ours = {f"convnext_v2_{size}" for size in ("atto", "femto", "pico", "nano", "base", "large", "huge")}
    assert others == ours | {"ViT-H-14-378"}


def test_an_image_tower_of_another_size_has_more_positions():
    larger, usual = clip.VARIANTS["ViT-H-14-378"], clip.VARIANTS["ViT-H-14"]
    assert clip.parameters(larger) - clip.parameters(usual) == (27**2 - 16**2) * 1280
    assert image_parameters(usual, 378) == image_parameters(larger)
    assert image_parameters(clip.VARIANTS["RN50"], 256) == image_parameters(clip.VARIANTS["RN50"]) + (64 - 49) * 2048


def test_count_of_convnext_v2_tiny():
    pair = clip.VARIANTS["convnext_v2_tiny"]
    assert image_parameters(pair) == 28_259_712
    assert text_parameters(pair.text, pair.embed_dim) == 91_687_809 - 28_259_712 - 1


def test_towers_flops_add_up_to_the_pairs():
    pair = clip.VARIANTS["ViT-B-32"]
    assert image_flops(pair) / 1e9 == pytest.approx(8.82, abs=0.005)
    assert text_flops(pair.text, pair.embed_dim) / 1e9 == pytest.approx(5.96, abs=0.005)
    assert image_flops(pair, 448) > 3.9 * image_flops(pair)


def test_v2_text_towers_follow_v1():
    for size in ("base", "large"):
        assert clip.VARIANTS[f"convnext_v2_{size}"].text == clip.VARIANTS[f"convnext_{size}"].text


@pytest.mark.parametrize(
    "spelling, canonical",
    [
        ("ViT-B/32", ("ViT-B-32", None)),
        ("ViT-L/14@336px", ("ViT-L-14-336", None)),
        ("ViT-B-32-quickgelu", ("ViT-B-32", "quick_gelu")),
        ("RN50x4-quickgelu", ("RN50x4", "quick_gelu")),
        ("ViT-H-14-378-quickgelu", ("ViT-H-14-378", "quick_gelu")),
        ("ViT-bigG-14", ("ViT-bigG-14", None)),
        ("convnext_base_w", ("convnext_base_w", None)),
    ],
)
def test_spellings_of_pair_names(spelling, canonical):
    assert clip.canonical_name(spelling) == canonical


def test_unknown_pair_suggests_the_nearest():
    with pytest.raises(ValueError, match="'convnext_v2_tyny'.*Did you mean 'convnext_v2_tiny'"):
        clip.canonical_name("convnext_v2_tyny")


@pytest.mark.parametrize("row", [((1, 2), (8,)), ((), ()), ((0, 1), (8, 8))])
def test_invalid_rows_are_refused(row):
    with pytest.raises(ValueError, match="depths"):
        Variant(*row)


def test_unknown_resnet_block_is_refused():
    with pytest.raises(ValueError, match="'botleneck'.*basic, bottleneck"):
        ResNetVariant((1,), (8,), block="botleneck")


def test_public_names_resolve_without_keras_where_they_are_tables():
    for package in (convnext, clip):
        assert set(package.__all__) <= set(dir(package))
        with pytest.raises(AttributeError, match="nonsense"):
            package.nonsense  # noqa: B018
