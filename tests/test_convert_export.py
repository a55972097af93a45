"""Checkpoints for other libraries: each loads them strictly, has no key over or short, and answers the same."""

import json

import numpy as np
import pytest
from helpers import declare_torchvision_operators, predict, randomize
from oracle_case import draw_images
from safetensors.numpy import load_file

import clip
import convnext
import zoo
from zoo.bench.parity import error

pytestmark = [pytest.mark.backend, pytest.mark.once]

TOLERANCE = 2e-5
SIZE = (32, 64)
ROW = convnext.Variant((1, 1, 1, 1), (8, 16, 24, 32))
RESNET = convnext.ResNetVariant((1, 2, 1, 1), (8, 16, 24, 32), stem_dim=64)
TINY_RESNET = convnext.ResNetVariant((1, 2), (8, 16), stem_dim=8)
OWN = {"depths": ROW.depths, "dims": ROW.dims}
BASIC = convnext.ResNetVariant((1, 1, 1, 1), block="basic")
TEXT = clip.Text(32, 2, 2, context_length=12)


def v1(row=ROW, **options):
    return convnext.create_convnext_v1(
        row, 5, (*SIZE, 3), **{"classifier_activation": None, "stem_stride": 4, **options}
    )


def v2(row=ROW, **options):
    return convnext.create_convnext_v2(
        row, 5, (*SIZE, 3), **{"classifier_activation": None, "stem_stride": 4, **options}
    )


def resnet(row=RESNET, **options):
    return convnext.create_resnet(row, 5, (*SIZE, 3), classifier_activation=None, **options)


# What loads the file in its library, strictly


def into(model, path):
    """A torch model of another library with the file in it; its keys are exactly the file's."""
    import torch

    tensors = load_file(path)
    model.load_state_dict({key: torch.from_numpy(value) for key, value in tensors.items()}, strict=True)
    assert set(model.state_dict()) == set(tensors)
    return model.eval()


def timm_model(name, **options):
    def load(path):
        import timm

        return into(timm.create_model(name, **options), path)

    return load


def timm_without_layer_scale(path):
    from timm.models.convnext import ConvNeXt

    return into(ConvNeXt(num_classes=5, ls_init_value=None, **OWN), path)


def timm_resnet(path):
    from timm.models.resnet import Bottleneck, ResNet

    return into(ResNet(Bottleneck, RESNET.depths, num_classes=5, channels=RESNET.dims), path)


def torchvision_convnext(path):
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    stages = zip(ROW.dims, (*ROW.dims[1:], None), ROW.depths, strict=True)
    return into(ConvNeXt([CNBlockConfig(*stage) for stage in stages], num_classes=5), path)


def torchvision_resnet(path):
    from torchvision.models.resnet import BasicBlock, ResNet

    return into(ResNet(BasicBlock, list(BASIC.depths), num_classes=5), path)


def transformers_classifier(path):
    from transformers import AutoModelForImageClassification

    return from_pretrained(AutoModelForImageClassification, path)


def transformers_trunk(path):
    from transformers import AutoModel

    return from_pretrained(AutoModel, path)


def from_pretrained(kind, path):
    model, report = kind.from_pretrained(path.parent, output_loading_info=True)
    assert {key: value for key, value in report.items() if value} == {}
    assert set(model.state_dict()) == set(load_file(path))
    return model.eval()


EXPORTS = {
    "timm V1": ("timm", v1, timm_model("convnext_tiny", num_classes=5, **OWN)),
    "timm V1 without LayerScale": ("timm", lambda: v1(layer_scale_init_value=None), timm_without_layer_scale),
    "timm V2": ("timm", v2, timm_model("convnextv2_tiny", num_classes=5, **OWN)),
    "timm V2 with conv_mlp": ("timm", lambda: v2("atto"), timm_model("convnextv2_atto", num_classes=5)),
    "timm trunk": (
        "timm",
        lambda: v1(include_top=False, pooling="avg"),
        timm_model("convnext_tiny", num_classes=0, **OWN),
    ),
    "timm ResNet": ("timm", resnet, timm_resnet),
    "torchvision V1": ("torchvision", v1, torchvision_convnext),
    "torchvision ResNet": ("torchvision", lambda: resnet(BASIC), torchvision_resnet),
    "transformers V1": ("transformers", v1, transformers_classifier),
    "transformers V1 without LayerScale": (
        "transformers",
        lambda: v1(layer_scale_init_value=None),
        transformers_classifier,
    ),
    "transformers V2": ("transformers", v2, transformers_classifier),
    "transformers ResNet": ("transformers", lambda: resnet(TINY_RESNET), transformers_classifier),
    "transformers trunk": ("transformers", lambda: v2(include_top=False, pooling="avg"), transformers_trunk),
}


@pytest.mark.parametrize("name", EXPORTS)
def test_a_classifier_answers_the_same_there(tmp_path, rng, name):
    import torch

    declare_torchvision_operators()
    library, create, load = EXPORTS[name]
    model = randomize(create(), rng, scale=0.1)
    report = zoo.export_weights(model, tmp_path / "there", format=library)
    theirs = load(tmp_path / "there" / "model.safetensors")
    assert report.tensors == len(theirs.state_dict())
    images = draw_images(2, SIZE, 3)
    with torch.no_grad():
        output = theirs(torch.from_numpy(images).permute(0, 3, 1, 2))
    output = (
        next((output[key] for key in ("logits", "pooler_output") if key in output), None)
        if isinstance(output, dict)
        else output
    )
    assert error(predict(model, images), output.numpy()) <= TOLERANCE


TIMM_FOLDERS = {
    "a row of the table": lambda: v2("atto"),
    "a row of one's own": lambda: v1(layer_scale_init_value=None),
    "a trunk for other channels": lambda: convnext.create_convnext_v2(
        ROW, input_shape=(*SIZE, 4), include_top=False, pooling="avg", stem_stride=4
    ),
    "a ResNet of one's own": resnet,
}


@pytest.mark.parametrize("name", TIMM_FOLDERS)
def test_timm_makes_the_model_that_a_folder_describes(tmp_path, rng, name):
    """`config.json` alone says which model it is and how its images are prepared."""
    import torch

    declare_torchvision_operators()
    import timm

    model, folder = randomize(TIMM_FOLDERS[name](), rng, scale=0.1), tmp_path / "there"
    spec = zoo.data.preprocess.PreprocessSpec(SIZE, (0.5,) * 3, (0.25,) * 3, "bilinear", "squash", crop_pct=0.9)
    zoo.export_weights(model, folder, format="timm", preprocess=spec)
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert set(theirs.state_dict()) == set(load_file(folder / "model.safetensors"))
    channels = model.input_shape[-1]
    images = rng.standard_normal((2, *SIZE, channels), np.float32)
    with torch.no_grad():
        output = theirs(torch.from_numpy(images).permute(0, 3, 1, 2))
    assert error(predict(model, images), output.numpy()) <= TOLERANCE
    said = timm.data.resolve_model_data_config(theirs)
    assert list(said["input_size"]) == [channels, *SIZE]
    assert (list(said["mean"]), list(said["std"])) == ([0.5] * 3, [0.25] * 3)
    assert (said["interpolation"], said["crop_pct"], said["crop_mode"]) == ("bilinear", 0.9, "squash")


@pytest.mark.parametrize("name", TIMM_FOLDERS)
def test_a_configuration_written_for_timm_is_read_back(tmp_path, rng, name):
    model = randomize(TIMM_FOLDERS[name](), rng)
    spec = zoo.data.preprocess.PreprocessSpec(SIZE, (0.5,) * 3, (0.25,) * 3, "bilinear", crop_pct=0.9, rgb_first=True)
    zoo.export_weights(model, tmp_path / "there", format="timm", preprocess=spec)
    again = zoo.load(tmp_path / "there")
    assert again.info.preprocess == spec
    assert (again.model.input_shape, again.model.output_shape) == (model.input_shape, model.output_shape)
    for one, other in zip(model.get_weights(), again.model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("create", [v1, v2], ids=["V1", "V2"])
def test_facebooks_layout_is_what_timm_undoes(tmp_path, rng, create):
    """timm's own filter for the authors' checkpoints turns the file into timm's keys and values."""
    import torch

    declare_torchvision_operators()
    import timm
    from timm.models.convnext import checkpoint_filter_fn

    model = randomize(create(), rng, scale=0.1)
    zoo.export_weights(model, tmp_path / "fb.safetensors", format="facebook")
    zoo.export_weights(model, tmp_path / "timm.safetensors", format="timm")
    theirs = timm.create_model("convnext_tiny" if create is v1 else "convnextv2_tiny", num_classes=5, **OWN)
    tensors = {key: torch.from_numpy(value) for key, value in load_file(tmp_path / "fb.safetensors").items()}
    filtered = checkpoint_filter_fn({"model": tensors}, theirs)
    expected = load_file(tmp_path / "timm.safetensors")
    assert filtered.keys() == expected.keys()
    for key, value in filtered.items():
        np.testing.assert_array_equal(value.numpy(), expected[key], err_msg=key)
    theirs.load_state_dict(filtered, strict=True)


# Pairs


def pair(image, text=TEXT, size=64, **options):
    return clip.create_clip(clip.Pair(16, size, image, text), **options)


VIT = clip.ViT(32, 2, 16, head_width=16)
PAIRS = {
    "ViT": lambda: pair(VIT),
    "ViT with QuickGELU": lambda: pair(VIT, activation="quick_gelu"),
    "ViT with a bias": lambda: pair(VIT, init_logit_bias=-10.0),
    "ResNet": lambda: pair(clip.ResNet((1, 1, 2, 1), 16)),
    "ConvNeXt": lambda: pair(clip.ConvNeXt("convnextv2", "atto"), stem_stride=4),
    "MobileCLIP": lambda: pair(clip.VARIANTS["MobileCLIP2-S0"].image, clip.Text(32, 2, 2, 12, causal=False)),
}


def tokens():
    """int32 (3, 12): captions of several lengths, padded with 0."""
    rows = np.zeros((3, 12), np.int32)
    for row, length in enumerate((3, 7, 12)):
        rows[row, :length] = [49406, *range(5 + row, 3 + row + length), 49407]
    return rows


@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_answers_the_same_in_open_clip(tmp_path, rng, name):
    import torch

    declare_torchvision_operators()
    import open_clip

    model = randomize(PAIRS[name](), rng, scale=0.05)
    zoo.export_weights(model, tmp_path / "pair", format="open_clip")
    theirs = open_clip.create_model(f"local-dir:{tmp_path / 'pair'}").eval()
    assert set(theirs.state_dict()) == set(load_file(tmp_path / "pair" / "open_clip_model.safetensors"))
    images = draw_images(3, (64, 64), 3)
    with torch.no_grad():
        image = theirs.encode_image(torch.from_numpy(images).permute(0, 3, 1, 2), normalize=True)
        text = theirs.encode_text(torch.from_numpy(tokens()).long(), normalize=True)
    ours = model.predict({"images": images, "tokens": tokens()}, verbose=0)
    assert error(ours["image_embeddings"], image.numpy()) <= TOLERANCE
    assert error(ours["text_embeddings"], text.numpy()) <= TOLERANCE
    assert float(theirs.logit_scale) == pytest.approx(float(model.logit_scale.logit_scale.value), rel=1e-6)
    if model.init_logit_bias is not None:
        assert float(theirs.logit_bias) == pytest.approx(float(model.logit_scale.logit_bias.value), rel=1e-6)


@pytest.mark.parametrize("name", ["ViT", "ViT with QuickGELU"])
def test_a_pair_answers_the_same_in_transformers(tmp_path, rng, name):
    import torch
    from transformers import CLIPModel

    model = randomize(PAIRS[name](), rng, scale=0.05)
    zoo.export_weights(model, tmp_path / "pair", format="transformers")
    theirs = from_pretrained(CLIPModel, tmp_path / "pair" / "model.safetensors")
    images = draw_images(3, (64, 64), 3)
    with torch.no_grad():
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
        output = theirs(pixel_values=pixels, input_ids=torch.from_numpy(tokens()).long())
    ours = model.predict({"images": images, "tokens": tokens()}, verbose=0)
    assert error(ours["image_embeddings"], output.image_embeds.numpy()) <= TOLERANCE
    assert error(ours["text_embeddings"], output.text_embeds.numpy()) <= TOLERANCE


def test_open_clips_configuration_says_how_images_are_prepared(tmp_path):
    spec = zoo.data.preprocess.PreprocessSpec(64, (0.5,) * 3, (0.25,) * 3, "bilinear", "squash")
    zoo.export_weights(pair(VIT), tmp_path / "a.safetensors", format="open_clip", preprocess=spec)
    config = json.loads((tmp_path / "open_clip_config.json").read_text())
    assert config["preprocess_cfg"] == {
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
        "interpolation": "bilinear",
        "resize_mode": "squash",
    }
    zoo.export_weights(pair(VIT), tmp_path / "a.safetensors", format="open_clip")
    config = json.loads((tmp_path / "open_clip_config.json").read_text())
    assert config["preprocess_cfg"]["mean"] == list(zoo.data.preprocess.OPENAI_MEAN)


# What goes nowhere


@pytest.mark.parametrize(
    ("create", "library", "message"),
    [
        (v1, "onnx", "Unknown format 'onnx'. Allowed: open_clip, transformers, timm, torchvision, facebook"),
        (v1, "open_clip", "open_clip has no ConvNeXt. Formats for this model: transformers, timm, torchvision"),
        (v2, "torchvision", "torchvision has no ConvNeXt-V2. Formats for this model: transformers, timm, facebook"),
        (lambda: pair(VIT), "timm", "timm has no image–text pair. Formats for this model: open_clip, transformers"),
        (lambda: v1(stem_stride=2), "timm", "overlapping stem False, and this model has True"),
        (lambda: v1(convnext.Variant((1, 1), (8, 16))), "timm", "stages 4, and this model has 2"),
        (
            lambda: v1(convnext.Variant((1,) * 4, (8,) * 4, activation="leaky_relu")),
            "timm",
            "timm has no activation 'leaky_relu'",
        ),
        (lambda: v1(include_top=False), "timm", "head norm True, and this model has False"),
        (lambda: v1(include_top=False, pooling="avg"), "torchvision", "classifier True, and this model has False"),
        (lambda: v1(layer_scale_init_value=None), "torchvision", "LayerScale True, and this model has False"),
        (lambda: v2(layer_scale_init_value=1e-6), "transformers", "LayerScale False, and this model has True"),
        (
            lambda: v1(convnext.Variant((1, 1), (8, 16), epsilon=1e-5)),
            "transformers",
            "transformers's ConvNeXt has epsilon 1e-06, and this model has 1e-05",
        ),
        (lambda: v1(convnext.Variant((1, 1), (8, 16))), "facebook", "stages 4, and this model has 2"),
        (resnet, "torchvision", "widths (64, 128, 256, 512), and this model has (8, 16, 24, 32)"),
        (lambda: resnet(TINY_RESNET), "timm", "stages 4, and this model has 2"),
        (lambda: pair(VIT, init_logit_bias=-10.0), "transformers", "has no place for"),
        (lambda: pair(clip.ResNet((1, 1, 1, 1), 16)), "transformers", "no CLIP model with a ResNet for images"),
        (lambda: pair(clip.ConvNeXt("convnextv2", "atto"), stem_stride=2), "open_clip", "a stem of stride 4"),
        (
            lambda: pair(VIT, clip.Text(32, 2, 2, 12, causal=False)),
            "transformers",
            "transformers has no Text with causal False",
        ),
    ],
)  # fmt: skip
def test_what_a_library_cannot_be_is_refused_and_nothing_is_written(tmp_path, create, library, message):
    with pytest.raises(ValueError) as caught:
        zoo.export_weights(create(), tmp_path / "there", format=library)
    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_model_of_ones_own_and_another_suffix_are_refused(tmp_path):
    import keras

    own = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(3, 1)])
    with pytest.raises(ValueError, match="was not made by"):
        zoo.export_weights(own, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"a folder or a \.safetensors file, got 'a\.pth'"):
        zoo.export_weights(v1(), tmp_path / "a.pth")
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_what_a_saved_file_holds(tmp_path, rng, capsys):
    from zoo.cli import main

    model = randomize(v1(), rng)
    zoo.save(model, tmp_path / "ours.safetensors")
    out = tmp_path / "theirs.safetensors"
    assert main(["export-weights", str(tmp_path / "ours.safetensors"), str(out), "--format", "timm"]) == 0
    assert "tensors in the format of timm ConvNeXt" in capsys.readouterr().out
    again = v1()
    zoo.load_weights(again, out)
    for one, other in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert main(["export-weights", str(tmp_path / "ours.safetensors"), str(out), "--format", "open_clip"]) == 2
