"""Configurations of other libraries become a `ModelConfig`, or are refused with the field that differs."""

import json
from pathlib import Path

import pytest
from helpers import declare_torchvision_operators

import clip
import convnext
from zoo.data.preprocess import IMAGENET_MEAN, IMAGENET_STD, OPENAI_MEAN, PreprocessSpec
from zoo.weights.config import row_of
from zoo.weights.published import all_weights
from zoo.weights.sources import find_config, read_config

TIMM_ROWS = [row for group in all_weights().values() for row in group.values() if row.classes is not None]


@pytest.fixture(scope="module")
def open_clip():
    pytest.importorskip("torch")
    declare_torchvision_operators()
    return pytest.importorskip("open_clip")


@pytest.fixture
def read(tmp_path):
    """A function: name and content of a configuration → the `ModelConfig` read from a file."""

    def read_back(name, values, preprocessor=None):
        for file, content in {name: values, "preprocessor_config.json": preprocessor}.items():
            if content is not None:
                (tmp_path / file).write_text(json.dumps(content), encoding="utf-8")
        return read_config(tmp_path / name)

    return read_back


# open_clip's


def row_read(found):
    return row_of("clip", found.arguments["variant"])


def towers(pair):
    return pair.embed_dim, pair.image, pair.text


@pytest.mark.parametrize("name", [name for name in clip.VARIANTS if "_v2_" not in name and name != "MobileCLIP-S0"])
def test_open_clips_own_configurations_are_our_rows(open_clip, read, name):
    config = open_clip.get_model_config(name)
    found = read("open_clip_config.json", {"model_cfg": config})
    assert towers(row_read(found)) == towers(clip.VARIANTS[name])
    assert found.arguments["image_size"] == config["vision_cfg"]["image_size"]
    assert found.arguments["activation"] == "gelu"
    quick = read("open_clip_config.json", {"model_cfg": {**config, "quick_gelu": True}})
    assert quick.arguments["activation"] == "quick_gelu"
    assert found.preprocess == PreprocessSpec(config["vision_cfg"]["image_size"])
    assert isinstance(found.arguments["variant"], str)


OTHERS = ("EVA", "SigLIP", "CLIPA", "ViTamin", "PE-", "coca", "roberta", "nllb", "mt5", "swin", "vit_", "worldwide")


def test_other_architectures_of_open_clip_are_refused_by_field(open_clip, read):
    refused = [name for name in open_clip.list_models() if any(part in name for part in OTHERS)]
    assert len(refused) > 60
    for name in refused:
        with pytest.raises(ValueError, match=r"open_clip_config\.json: (model|vision|text)_cfg\.\w+ is .*Allowed: "):
            read("open_clip_config.json", {"model_cfg": open_clip.get_model_config(name)})


def test_the_configuration_that_open_clip_saves(open_clip, read):
    values = {
        "model_cfg": open_clip.get_model_config("convnext_base_w"),
        "preprocess_cfg": {
            **{"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear", "resize_mode": "squash"},
            **{"mode": "RGB", "size": [256, 256], "fill_color": 0},
        },
    }
    found = read("open_clip_config.json", values)
    assert found.arguments["variant"] == "convnext_base_w"
    expected = PreprocessSpec(256, (0.5,) * 3, (0.5,) * 3, "bilinear", "squash")
    assert found.preprocess == expected


SMALL = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
}


def test_an_architecture_of_our_towers_that_no_row_has(read):
    found = read("open_clip_config.json", {"model_cfg": {**SMALL, "init_logit_bias": -10.0}})
    row = row_read(found)
    assert row == clip.Pair(32, 64, clip.ViT(64, 2, 16), clip.Text(64, 1, 2))
    assert found.arguments["init_logit_bias"] == -10.0


def test_a_row_at_another_size_stays_that_row(read, open_clip):
    config = open_clip.get_model_config("ViT-B-32")
    config["vision_cfg"]["image_size"] = [256, 256]
    found = read("open_clip_config.json", {"model_cfg": config})
    assert found.arguments["variant"] == "ViT-B-32-256"
    config["vision_cfg"]["image_size"] = 288
    found = read("open_clip_config.json", {"model_cfg": config})
    assert (found.arguments["variant"], found.arguments["image_size"]) == ("ViT-B-32", 288)


def changed(section, **fields):
    return {**SMALL, section: {**SMALL[section], **fields}}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (None, "model_cfg is None"),
        ({**SMALL, "embed_dim": "32"}, "model_cfg.embed_dim is '32'"),
        ({**SMALL, "embed_dim": 1 << 40}, "model_cfg.embed_dim is"),
        ({**SMALL, "multimodal_cfg": {"width": 1}}, "model_cfg.multimodal_cfg is"),
        ({**SMALL, "vision_cfg": 3}, "vision_cfg is 3"),
        (changed("vision_cfg", attentional_pool=True), "vision_cfg.attentional_pool is True. .*Allowed: False"),
        (changed("vision_cfg", no_ln_pre=True), "vision_cfg.no_ln_pre"),
        (changed("vision_cfg", pos_embed_type="sin_cos_2d"), "vision_cfg.pos_embed_type"),
        (changed("vision_cfg", image_size=[64, 32]), "vision_cfg.image_size"),
        (changed("vision_cfg", layers=-1), "vision_cfg.layers is -1"),
        (changed("vision_cfg", layers=[1, 2]), "vision_cfg makes no image tower"),
        (changed("vision_cfg", width=100), "vision_cfg makes no image tower"),
        (changed("vision_cfg", mlp_ratio="4"), "mlp_ratio"),
        (changed("vision_cfg", timm_model_name="vit_tiny_patch16_224"), "vision_cfg.timm_model_name"),
        (changed("vision_cfg", timm_model_name="convnext_tiny", timm_pool="avg"), "vision_cfg.timm_pool"),
        (changed("vision_cfg", timm_model_name="convnext_tiny", timm_proj="none"), "vision_cfg.timm_proj"),
        (changed("text_cfg", hf_model_name="roberta-base"), "text_cfg.hf_model_name"),
        (changed("text_cfg", hf_tokenizer_name="xlm"), "text_cfg.hf_tokenizer_name"),
        (changed("text_cfg", pool_type="last"), "text_cfg.pool_type is 'last'"),
        (changed("text_cfg", new_in_2030=7), "text_cfg.new_in_2030 is 7. .*Allowed: no such field"),
    ],
)
def test_what_our_towers_do_not_have_is_refused_by_field(read, model, message):
    with pytest.raises(ValueError, match=rf"open_clip_config\.json: .*{message}"):
        read("open_clip_config.json", {"model_cfg": model})


@pytest.mark.parametrize("preprocess", [{"mean": [0.5]}, {"interpolation": "area"}, {"resize_mode": 3}, {"gamma": 2}])
def test_preprocessing_that_makes_no_sense_is_refused(read, preprocess):
    with pytest.raises(ValueError, match=r"open_clip_config\.json: preprocess_cfg"):
        read("open_clip_config.json", {"model_cfg": SMALL, "preprocess_cfg": preprocess})


# timm's


@pytest.mark.parametrize("row", TIMM_ROWS, ids=lambda row: row.full_name)
def test_timms_configurations_say_what_the_table_says(open_clip, read, row):
    from timm.models import _registry

    said = _registry._model_pretrained_cfgs[row.full_name].to_dict(remove_source=True, remove_null=True)
    values = {"architecture": row.name, "num_classes": row.classes, "num_features": 7, "pretrained_cfg": said}
    for found in (read("config.json", values), read("config.json", {**said, "architecture": row.name})):
        assert row.name.startswith(found.family)
        assert found.arguments["variant"] == row.name.removeprefix(found.family).lstrip("_")
        assert found.preprocess == row.preprocess
        assert (found.licence or "not stated") == row.licence
        assert found.arguments["input_shape"] == [*row.preprocess.size, 3]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"architecture": "vit_base_patch16_224"}, "architecture is 'vit_base_patch16_224'. Allowed: a classifier"),
        ({"architecture": "clip/ViT-B-32"}, "architecture is 'clip/ViT-B-32'"),
        ({"architecture": "resnet50", "model_args": {"stem_width": 32}}, "model_args.stem_width is 32"),
        ({"architecture": "resnet50", "model_args": {"channels": [8, 0]}}, "channels is 0"),
        ({"architecture": "convnext_tiny", "model_args": {"act_layer": "prelu"}}, "activation is 'prelu'"),
        ({"architecture": "convnext_tiny", "model_args": {"ls_init_value": "x"}}, "layer_scale_init_value is 'x'"),
        ({"architecture": "convnext_tiny", "model_args": [1]}, r"model_args is \[1\]"),
        ({"architecture": "resnet50", "crop_mode": "border"}, "crop_mode is 'border'"),
        ({"architecture": "resnet50", "input_size": [1, 28, 28]}, "input_size is"),
        ({"architecture": "resnet50", "pretrained_cfg": []}, "pretrained_cfg is"),
        ({"architecture": "resnet50", "crop_pct": 7}, "crop_pct=7"),
        ({"hello": 1}, "the list of keys is"),
        ([], "its content is"),
    ],
)
def test_other_configurations_are_refused(read, values, message):
    with pytest.raises(ValueError, match=message):
        read("config.json", values)


# transformers'


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


@pytest.mark.parametrize(
    ("kind", "label", "name"),
    [("ConvNext", "tiny", "convnext_tiny"), ("ConvNextV2", "tiny", "convnextv2_tiny"), ("ResNet", "50", "resnet50")],
)
def test_transformers_classifiers(transformers, read, kind, label, name):
    config = getattr(transformers, f"{kind}Config")(num_labels=5)
    found = read("config.json", config.to_dict())
    assert (found.family, found.arguments["variant"]) == (kind.lower(), label)
    assert found.arguments["name"] == name
    assert found.preprocess is None


def test_transformers_rows_of_ones_own(transformers, read):
    config = transformers.ConvNextConfig(depths=[1, 2], hidden_sizes=[8, 16], num_stages=2, patch_size=2)
    found = read("config.json", config.to_dict())
    assert row_of("convnext", found.arguments["variant"]) == convnext.Variant((1, 2), (8, 16), patch_size=2)
    assert found.arguments["name"] == "convnext"
    config = transformers.ResNetConfig(
        depths=[1, 2], hidden_sizes=[8, 16], num_stages=2, layer_type="basic", embedding_size=4
    )
    row = convnext.ResNetVariant((1, 2), (8, 16), block="basic", stem_dim=4)
    assert row_of("resnet", read("config.json", config.to_dict()).arguments["variant"]) == row


def test_transformers_clip(transformers, read):
    found = read("config.json", transformers.CLIPConfig().to_dict())
    assert (found.arguments["variant"], found.arguments["activation"]) == ("ViT-B-32", "quick_gelu")
    minimal = {"model_type": "clip", "text_config": {}, "vision_config": {}, "text_config_dict": None}
    assert read("config.json", minimal).arguments == found.arguments
    large = {"vision_config": {"image_size": 336, "hidden_size": 1024, "num_hidden_layers": 24, "patch_size": 14}}
    large["vision_config"] |= {"intermediate_size": 4096, "num_attention_heads": 16}
    large |= {"text_config": {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}}
    found = read("config.json", {**minimal, **large, "projection_dim": 768})
    assert (found.arguments["variant"], found.arguments["image_size"]) == ("ViT-L-14-336", 336)


def test_transformers_preprocessors(transformers, read, tmp_path):
    config = transformers.ConvNextConfig().to_dict()
    said = {"image_mean": list(IMAGENET_MEAN), "image_std": list(IMAGENET_STD), "resample": 3, "crop_pct": 0.875}
    found = read("config.json", config, {**said, "size": {"shortest_edge": 224}})
    assert found.preprocess == PreprocessSpec(224, IMAGENET_MEAN, IMAGENET_STD, crop_pct=0.875, rgb_first=True)
    found = read("config.json", config, {**said, "size": 384})
    assert found.preprocess == PreprocessSpec(384, IMAGENET_MEAN, IMAGENET_STD, resize_mode="squash", rgb_first=True)
    assert found.arguments["input_shape"] == [384, 384, 3]
    pair = {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": True}
    pair |= {"image_mean": list(OPENAI_MEAN), "image_std": [0.3, 0.3, 0.3], "resample": 3}
    found = read("config.json", transformers.CLIPConfig().to_dict(), pair)
    assert found.preprocess == PreprocessSpec(224, OPENAI_MEAN, (0.3, 0.3, 0.3), rgb_first=True)
    processor = {"image_processor": {**pair, "image_std": [0.4, 0.4, 0.4]}, "processor_class": "CLIPProcessor"}
    (tmp_path / "processor_config.json").write_text(json.dumps(processor))  # transformers 5: it comes first
    found = read("config.json", transformers.CLIPConfig().to_dict(), pair)
    assert found.preprocess == PreprocessSpec(224, OPENAI_MEAN, (0.4, 0.4, 0.4), rgb_first=True)
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": "CLIPImageProcessor"}))
    with pytest.raises(ValueError, match="processor_config.json: image_processor is 'CLIPImageProcessor'"):
        read("config.json", transformers.CLIPConfig().to_dict(), pair)
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_seq_length": 7}))  # of transformers 4
    assert read("config.json", transformers.CLIPConfig().to_dict(), pair).preprocess.std == (0.3, 0.3, 0.3)
    del pair["image_std"]
    assert read("config.json", transformers.CLIPConfig().to_dict(), pair).preprocess is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "bert"}, "model_type is 'bert'"),
        ({"model_type": "convnext", "layer_norm_eps": 1e-5}, "layer_norm_eps"),
        ({"model_type": "convnext", "depths": [3, -1]}, "depths is -1"),
        ({"model_type": "convnext", "hidden_act": "eval"}, "activation is 'eval'"),
        ({"model_type": "convnext", "depths": [3, 3]}, "as many dims as depths"),
        ({"model_type": "resnet", "layer_type": "x"}, "layer_type is 'x'"),
        ({"model_type": "resnet", "downsample_in_bottleneck": True}, "downsample_in_bottleneck is True"),
        ({"model_type": "clip"}, "vision_config is None"),
        (
            {"model_type": "clip", "vision_config": {"hidden_act": "gelu"}, "text_config": {}},
            "hidden_act of the towers is",
        ),
        (
            {"model_type": "clip", "vision_config": {"num_attention_heads": 1 << 20}, "text_config": {}},
            "config.json: vision_config.num_attention_heads is 1048576. Allowed: a divisor of hidden_size, 768",
        ),
        (
            {"model_type": "clip", "vision_config": {}, "text_config": {"num_attention_heads": 3}},
            "text_config.num_attention_heads is 3",
        ),
        (
            {"model_type": "clip", "vision_config": {}, "text_config": {"hidden_size": 64}},  # and the default, 2048
            "text_config.intermediate_size is 2048. Allowed: 256",
        ),
        ({"model_type": "resnet", "depths": [1, 2], "hidden_sizes": [3, 5]}, "config.json describes no model"),
        (
            {"model_type": "clip", "vision_config": {}, "text_config": {"intermediate_size": 7}},
            "intermediate_size is 7",
        ),
    ],
)
def test_other_transformers_are_refused(read, values, message):
    with pytest.raises(ValueError, match=message):
        read("config.json", values)


# files


def test_a_damaged_configuration_is_refused_by_name(tmp_path):
    path = tmp_path / "config.json"
    for content, message in ((b"{", "not JSON"), (b"\xff\xfe", "not JSON"), (b"[" * 100_000, "nested more than 64")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"config\.json is {message}"):
            read_config(path)
    path.write_bytes(b" " * (5 << 20))
    with pytest.raises(ValueError, match="at most 4194304 are allowed"):
        read_config(path)


def test_open_clips_layout_comes_first_and_needs_its_weights(tmp_path):
    def get(name):
        path = Path(tmp_path, name)
        return path if path.is_file() else None

    with pytest.raises(FileNotFoundError, match=r"here has no weights.*open_clip_config\.json beside"):
        find_config("here", get)
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": SMALL}))
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet50"}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    found, path = find_config("here", get)
    assert (found.origin, path.name) == ("config.json", "model.safetensors")
    (tmp_path / "open_clip_pytorch_model.bin").write_bytes(b"")
    assert find_config("here", get)[1].name == "open_clip_pytorch_model.bin"
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"")
    found, path = find_config("here", get)
    assert (found.origin, path.name) == ("open_clip_config.json", "open_clip_model.safetensors")


def test_hidden_units_that_are_no_round_multiple_of_the_width(transformers, read):
    vision = {"hidden_size": 1408, "intermediate_size": 6144, "num_hidden_layers": 40, "num_attention_heads": 16}
    text = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    config = transformers.CLIPConfig(vision_config={**vision, "patch_size": 14}, text_config=text, projection_dim=1024)
    assert read("config.json", config.to_dict()).arguments["variant"] == "ViT-g-14"
    for hidden in range(1000, 1100):
        config = {"vision_config": {"hidden_size": 192, "intermediate_size": hidden, "num_attention_heads": 3}}
        row = row_read(read("config.json", {"model_type": "clip", "text_config": {}, **config}))
        assert int(row.image.width * row.image.mlp_ratio) == hidden
