"""Names, their information and their near misses: read off tables, without a backend."""

import dataclasses
import json
import sys

import pytest

import clip
import convnext
from zoo import list_models, model_info
from zoo.registry import find

CLASSIFIERS = len(convnext.TABLES["convnext"]) + len(convnext.TABLES["convnextv2"]) + len(convnext.TABLES["resnet"])


def test_every_row_of_every_table_has_a_name():
    names = list_models()
    assert len(names) == len(set(names)) == CLASSIFIERS + len(clip.VARIANTS)
    for name in (
        "convnext_base",
        "convnextv2_tiny",
        "convnext_xxlarge",
        "resnet50",
        "clip/ViT-B-32",
        "clip/convnext_base",
    ):
        assert name in names


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("resnet*", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]),
        ("clip/vit-l-14*", ["clip/ViT-L-14", "clip/ViT-L-14-280", "clip/ViT-L-14-336"]),
        ("rn50x?", ["clip/RN50x4"]),
        ("ViT-B-32", ["clip/ViT-B-32"]),
        ("*v2_tiny", ["convnextv2_tiny", "clip/convnext_v2_tiny"]),
        ("convnext_base", ["convnext_base", "clip/convnext_base"]),
        ("nothing*", []),
    ],
)
def test_patterns(pattern, expected):
    assert list_models(pattern) == expected


@pytest.mark.parametrize(
    ("name", "parameters", "size"),
    [
        ("convnext_tiny", 28_589_128, 224),
        ("convnextv2_atto", 3_708_400, 224),
        ("resnet50", 25_557_032, 224),
        ("clip/convnext_v2_tiny", 91_687_809, 224),
        ("clip/ViT-B-32", 151_277_313, 224),
        ("clip/convnext_large_d_320", 351_772_609, 320),
    ],
)
def test_information(name, parameters, size):
    info = model_info(name)
    assert (info.name, info.parameters, info.input) == (name, parameters, (size, size, 3))
    assert info.preprocess.size == (size, size)
    assert info.flops > 2 * parameters / 50
    json.dumps(dataclasses.asdict(info))


def test_classifiers_and_pairs_have_the_pixel_statistics_of_their_families():
    assert model_info("convnext_base").preprocess.mean == (0.485, 0.456, 0.406)
    assert model_info("convnext_base").preprocess.crop_pct == 0.875
    assert model_info("clip/convnext_base").preprocess.mean == (0.48145466, 0.4578275, 0.40821073)
    assert model_info("clip/convnext_base").preprocess.crop_pct == 1.0


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("convnext_v2_tiny", "clip/convnext_v2_tiny"),
        ("ViT-B-32", "clip/ViT-B-32"),
        ("ViT-B/32", "clip/ViT-B-32"),
        ("clip/ViT-L/14@336px", "clip/ViT-L-14-336"),
        ("clip/ViT-B-32-quickgelu", "clip/ViT-B-32"),
        ("convnext_base_w", "clip/convnext_base_w"),
        ("convnext_base", "convnext_base"),
    ],
)
def test_spellings(spelling, name):
    assert model_info(spelling).name == name


def test_a_tag_is_kept_apart():
    assert find("convnextv2_tiny.fcmae_ft_in1k")[::4] == ("convnextv2_tiny", "fcmae_ft_in1k")
    assert find("clip/ViT-B-32.openai").tag == "openai"
    assert find("resnet50").tag is None


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("convnext_v2_small", "'convnextv2_small'"),
        ("convnextv2_xxlarge", "'convnext_xxlarge'"),
        ("clip/convnextv2_tiny", "'clip/convnext_v2_tiny'"),
        ("convnextv2_base_w", "'clip/convnext_base_w'"),
        ("convnextv2_tinny", "'convnextv2_tiny'"),
        ("Resnet-50", "'resnet50'"),
        ("vit_b_32", "'clip/ViT-B-32'"),
    ],
)
def test_near_misses(wrong, nearest):
    with pytest.raises(ValueError, match=f"Unknown model '{wrong}'.*{nearest}"):
        model_info(wrong)


@pytest.mark.parametrize("wrong", ["", "zzz", "clip/", "."])
def test_nothing_near_is_said_plainly(wrong):
    with pytest.raises(ValueError, match="Unknown model.*zoo list"):
        model_info(wrong)


def test_weights_are_refused_by_name_where_there_is_no_table():
    with pytest.raises(ValueError, match="'fcmae_ft_in1k' for convnextv2_tiny"):
        model_info("convnextv2_tiny.fcmae_ft_in1k")
    with pytest.raises(ValueError, match="openai"):
        list_models(weights="openai")


def test_no_backend_was_needed():
    assert "keras" not in sys.modules
