"""The table of published weights says what open_clip's and timm's own tables say, leaves nothing out, adds nothing."""

import dataclasses
import re
from collections import Counter

import pytest
from helpers import declare_torchvision_operators

import clip
from zoo import list_models
from zoo.data.preprocess import PreprocessSpec
from zoo.weights.locate import fetch_published
from zoo.weights.published import RESTRICTED, all_weights, classifiers, find_weights, pairs, tags

ROWS = [row for group in all_weights().values() for row in group.values()]
CLASSIFIERS = [row for row in ROWS if row.classes is not None]
PAIRS = [row for row in ROWS if row.classes is None]
FREE = {"MIT", "Apache-2.0", "BSD-3-Clause"}

# open_clip's table sends these two tags to one repository; timm's table has another for the second.
OWN_REPOSITORY = {("ViT-B-16-plus-240", "laion400m_e32"): "timm/vit_base_patch16_plus_clip_240.laion400m_e32"}
NOT_IN_OPEN_CLIP = ["clip/MobileCLIP-S0.datacompdr"]  # its text tower is in Apple's own code alone


@pytest.fixture(scope="module")
def open_clip():
    pytest.importorskip("torch")
    declare_torchvision_operators()
    return pytest.importorskip("open_clip")


@pytest.fixture(scope="module")
def timm_configs(open_clip):
    """{name.tag: timm's `PretrainedCfg`}, aliases without a tag left out."""
    from timm.models import _registry

    return {name: config for name, config in _registry._model_pretrained_cfgs.items() if "." in name}


def test_every_row_is_there_once_and_of_an_architecture_that_exists():
    assert [name for name, count in Counter(row.full_name for row in ROWS).items() if count > 1] == []
    assert sorted(set(all_weights()) - set(list_models())) == []


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.full_name)
def test_every_row_is_whole(row):
    assert row.licence in FREE | set(RESTRICTED)
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", row.repository)
    assert row.files and all(file.endswith((".safetensors", ".bin", ".pt")) for file in row.files)
    assert row.revision is None or re.fullmatch("[0-9a-f]{40}", row.revision)
    assert row.sha256 is None or re.fullmatch("[0-9a-f]{64}", row.sha256)
    assert row.score is None or 1 < row.score < 100
    assert (row.activation in ("gelu", "quick_gelu")) == (row.classes is None)
    assert row.test is None or dataclasses.replace(row.test, image_size=1, crop_pct=1.0) == dataclasses.replace(
        row.preprocess, image_size=1, crop_pct=1.0
    )


def test_every_digest_belongs_to_a_row():
    names = {row.full_name.removeprefix("clip/") for row in ROWS}
    assert sorted({*classifiers.DIGESTS, *pairs.DIGESTS} - names) == []
    digests = [row.sha256 for row in ROWS if row.sha256]
    assert len(digests) == len(set(digests)) == len({**classifiers.DIGESTS, **pairs.DIGESTS}) >= 20


@pytest.mark.parametrize("name", ["convnext_atto.d2_in1k", "clip/convnext_base_w.laion2b_s13b_b82k"])
def test_a_pinned_digest_is_verified(hub_cache, name):
    row = find_weights(*name.split(".", 1))
    hub_cache.put(row.repository, row.files[0], b"other weights")
    with pytest.raises(ValueError, match=f"the table of published weights says {row.sha256}"):
        fetch_published(row)


def test_pairs_are_those_of_open_clip(open_clip):
    theirs = {
        f"clip/{name}.{tag}"
        for name, group in open_clip.pretrained._PRETRAINED.items()
        for tag in group
        if name in clip.VARIANTS
    }
    assert theirs == {row.full_name for row in PAIRS} - set(NOT_IN_OPEN_CLIP)


IN_OPEN_CLIP = [row for row in PAIRS if row.full_name not in NOT_IN_OPEN_CLIP]


@pytest.mark.parametrize("row", IN_OPEN_CLIP, ids=lambda row: row.full_name)
def test_a_pairs_row_says_what_open_clip_says(open_clip, row):
    label = row.name.removeprefix("clip/")
    config = open_clip.pretrained.get_pretrained_cfg(label, row.tag)
    repository = OWN_REPOSITORY.get((label, row.tag), config["hf_hub"].rstrip("/"))
    size = open_clip.get_model_config(label)["vision_cfg"]["image_size"]
    assert row.repository == repository
    assert row.activation == ("quick_gelu" if config.get("quick_gelu") else "gelu")
    assert row.preprocess == PreprocessSpec(
        size, config["mean"], config["std"], config["interpolation"], config["resize_mode"]
    )


def test_classifiers_are_those_of_timm(timm_configs):
    names = set(list_models())
    theirs = {name for name, config in timm_configs.items() if config.hf_hub_id and name.partition(".")[0] in names}
    assert theirs == {row.full_name for row in CLASSIFIERS}


@pytest.mark.parametrize("row", CLASSIFIERS, ids=lambda row: row.full_name)
def test_a_classifiers_row_says_what_timm_says(timm_configs, row):
    config = timm_configs[row.full_name]
    assert row.repository == config.hf_hub_id
    assert row.classes == config.num_classes
    assert row.licence.lower() in (config.license or "not stated")
    assert row.preprocess == expected_spec(config, config.input_size, config.crop_pct)
    if config.test_input_size is None:
        assert row.test is None
    else:
        assert row.test == expected_spec(config, config.test_input_size, config.test_crop_pct)


def expected_spec(config, input_size, crop_pct):
    modes = {"center": "shortest", "squash": "squash", "border": "longest"}
    channels, height, width = input_size
    assert channels == 3 and height == width
    return PreprocessSpec(
        height, config.mean, config.std, config.interpolation, modes[config.crop_mode], crop_pct, rgb_first=True
    )


def test_licences_of_towers_that_timm_has_too(timm_configs):
    """timm has the image towers of many pairs, in the same repositories. It relabels what is MIT as Apache-2.0."""
    theirs = {config.hf_hub_id: config.license for config in timm_configs.values() if config.hf_hub_id}
    checked = 0
    for row in PAIRS:
        licence = theirs.get(row.repository)
        if licence is not None:
            free = licence in ("mit", "apache-2.0")
            assert row.licence == "MIT" if free else row.licence.lower() == licence, row.full_name
            checked += 1
    assert checked >= 10


@pytest.mark.parametrize(
    ("name", "tag", "activation"),
    [
        ("clip/ViT-B-32", "laion400m_e32", "quick_gelu"),
        ("clip/ViT-B-16", "laion400m_e32", "gelu"),
        ("clip/ViT-L-14", "dfn2b", "quick_gelu"),
        ("clip/ViT-L-14", "dfn2b_s39b", "gelu"),
    ],
)
def test_activations_that_are_easily_confused(name, tag, activation):
    assert find_weights(name, tag).activation == activation


def test_spellings_of_a_tag():
    assert find_weights("clip/ViT-B-32", "LAION2B-s34B-b79K") is find_weights("clip/ViT-B-32", "laion2b_s34b_b79k")
    assert find_weights("clip/ViT-B-32", "laion3b") is None
    assert find_weights("nowhere", "openai") is None
    assert tags("nowhere") == {}


def test_heads_that_differ():
    assert find_weights("convnext_base", "fb_in22k").classes == 21841
    assert find_weights("convnext_nano", "in12k").classes == 11821
    assert find_weights("convnext_base", "clip_laion2b").embedding
    assert not find_weights("convnextv2_tiny", "fcmae").head_norm
    assert find_weights("convnext_tiny", "dinov3_lvd1689m").head_norm
