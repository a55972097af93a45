"""Names, their information and their near misses: read off tables, without a backend."""

import dataclasses
import json

import pytest

import clip
import convnext
from zoo import list_models, model_info
from zoo.models.names import find, find_tagged, list_or_raise
from zoo.weights.published import all_weights

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


@pytest.mark.parametrize(
    ("pattern", "weights", "expected"),
    [
        ("resnet50", "tv*", ["resnet50.tv_in1k", "resnet50.tv2_in1k"]),
        ("convnext_base", "*b51k", ["clip/convnext_base.laion400m_s13b_b51k"]),
        ("*", "openai", [name for name in list_models(weights="openai") if name.startswith("clip/")]),
        ("convnext_v2_*", "*", []),
        ("resnet50", "nothing", []),
    ],
)
def test_published_weights_are_listed_by_name_and_tag(pattern, weights, expected):
    assert list_models(pattern, weights) == expected


def test_all_published_weights_are_listed_in_the_order_of_the_models():
    listing = list_models(weights="*")
    assert len(listing) == len(set(listing)) == sum(map(len, all_weights().values())) > 200
    names = [name.partition(".")[0] for name in listing]
    assert list(dict.fromkeys(names)) == [name for name in list_models() if name in all_weights()]
    assert len(list_models(weights="openai")) == 9


def test_nothing_found_is_said_on_the_command_line():
    assert list_or_raise("resnet18") == ["resnet18"]
    with pytest.raises(ValueError, match=r"No model matches 'convnextv3_\*'. Did you mean 'convnext"):
        list_or_raise("convnextv3_*")
    with pytest.raises(ValueError, match="No model matches 'resnet50' with published weights 'fcmae'"):
        list_or_raise("resnet50", "fcmae")


@pytest.mark.parametrize(
    ("name", "family", "parameters", "size"),
    [
        ("convnextv2_tiny.fcmae_ft_in1k", "convnextv2", 28_635_496, 224),
        ("convnextv2_tiny.fcmae", "convnextv2", 27_864_960, 224),
        ("convnext_tiny.fb_in22k", "convnext", 27_820_128 + 769 * 21841, 224),
        ("convnext_tiny.fb_in22k_ft_in1k_384", "convnext", 28_589_128, 384),
        ("convnext_tiny.dinov3_lvd1689m", "convnext", 27_820_128, 224),
        ("resnet50.a3_in1k", "resnet", 25_557_032, 160),
        ("convnext_large_d_320.laion2b_s29b_b131k_ft_soup", "clip", 351_772_609, 320),
    ],
)
def test_information_on_published_weights(name, family, parameters, size):
    info = model_info(name)
    assert (info.family, info.parameters, info.input) == (family, parameters, (size, size, 3))
    assert info.name.removeprefix("clip/") == name
    assert info.preprocess.size == (size, size)
    assert info.licence == info.weights.licence
    json.dumps(dataclasses.asdict(info))


def test_every_published_weight_has_information():
    for name in list_models(weights="*"):
        info = model_info(name)
        assert info.name == name and info.parameters > 10**6 and info.score == info.weights.score


def test_a_tag_that_only_the_pair_has_makes_the_name_the_pairs():
    assert find("convnext_base.laion400m_s13b_b51k").name == "clip/convnext_base"
    assert find("convnext_base.fb_in1k").name == "convnext_base"
    assert find("convnext_base.nothing").name == "convnext_base"
    for name in list_models():
        shared = set(all_weights().get(name, ())) & set(all_weights().get(f"clip/{name}", ()))
        assert not shared, "such a tag would be the classifier's alone"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("convnextv2_tiny.fcmae_ft", "no weights 'fcmae_ft' for convnextv2_tiny. There are 'fcmae', 'fcmae_ft_in1k'"),
        ("ViT-L-14-336.laion", "There are 'openai'"),
        ("convnextv2_small.fcmae", "None are published"),
        ("resnet50.zzz", "and others: `zoo list resnet50 --weights`"),
    ],
)
def test_tags_that_there_are_not(name, message):
    with pytest.raises(ValueError, match=message):
        model_info(name)
    with pytest.raises(ValueError, match=message):
        find_tagged(find(name))
