"""Models of images under 16 pixels, whose last downsampling layers have stride 1: saved, loaded, exported, trained."""

import re
from pathlib import Path

import numpy as np
import pytest
from helpers import predict

import convnext
import zoo
from convnext import Variant, create_convnext_v1, create_convnext_v2
from zoo.training.classify import create_classifier
from zoo.training.config import parse_config
from zoo.weights.describe import describe

pytestmark = [pytest.mark.backend, pytest.mark.once]
ROW = Variant((1, 1, 1, 1), (8, 8, 16, 16))


HOW_TO = Path(__file__).parent.parent / "docs" / "how-to" / "small-images.md"
LINE = re.compile(r"(?:from )?(\d+)(?: to (\d+))? +(\d) +(\d, \d, \d) +(?:from )?(\d+)(?: to (\d+))? +([\d.]+|–)")


def strides(model):
    names = [f"stages_{stage}_downsample_conv" for stage in (1, 2, 3)]
    return tuple(model.get_layer(name).strides[0] for name in names)


def test_saved_and_loaded(tmp_path, rng):
    model = create_convnext_v2(ROW, 3, (8, 8, 3))
    zoo.save(model, tmp_path / "small.safetensors")
    loaded = zoo.load(tmp_path / "small.safetensors").model
    assert strides(loaded) == strides(model) == (2, 2, 1)
    x = rng.standard_normal((2, 8, 8, 3)).astype(np.float32)
    np.testing.assert_array_equal(predict(loaded, x), predict(model, x))


def test_earlier_files_keep_strides_of_two(tmp_path):
    config = describe(create_convnext_v2(ROW, 3, (8, 8, 3), downsample_strides=2))
    assert "downsample_strides" not in config.arguments  # as in files of earlier versions
    assert strides(config.build()) == (2, 2, 2)


def test_weights_of_large_images_load(tmp_path):
    zoo.save(zoo.create_model("convnextv2_atto", num_classes=3), tmp_path / "large.safetensors")
    small = zoo.create_model("convnextv2_atto", num_classes=3, input_shape=(8, 8, 3))
    assert not zoo.load_weights(small, tmp_path / "large.safetensors").missing
    assert strides(small) == (2, 2, 1)


def test_exported_and_refused_elsewhere(tmp_path):
    assert zoo.export_onnx(create_convnext_v1(ROW, 3, (8, 8, 3)), tmp_path / "small.onnx").error < 1e-4
    model = create_convnext_v1(ROW, 3, (64, 64, 3), stem_stride=4, downsample_strides=(2, 2, 1))
    with pytest.raises(ValueError, match="overlapping downsampling False"):
        zoo.export_weights(model, tmp_path / "timm", format="timm")


def test_the_tables_of_strides_agree_with_the_code():
    page = HOW_TO.read_text("utf-8").replace("|", " ")
    in_docstring, on_page = (LINE.findall(text) for text in (create_convnext_v1.__doc__, page))
    assert in_docstring == on_page and len(on_page) == 7
    for first, last, stem, downsampling, least, most, _ in on_page:
        for side, map_side in ((first, least), (last or first, most or least)):
            shape = (int(side), int(side) + 9, 3)
            assert convnext.resolve_strides(ROW, shape) == (int(stem), tuple(map(int, downsampling.split(","))))
            assert create_convnext_v1(ROW, 3, shape, include_top=False).output_shape[1] == int(map_side)


def test_flops_follow_the_strides():
    work = [convnext.flops(ROW, image_size=8, stem_stride=1, downsample_strides=s) for s in (2, (2, 2, 2), (2, 2, 1))]
    assert work[0] == work[1] < work[2]


@pytest.mark.parametrize(
    "size, given, line",
    [
        (32, {}, "32 × 32: stem stride 1, downsampling strides 2, 2, 2, last map 4 × 4, about 16 times"),
        (8, {}, "8 × 8: stem stride 1, downsampling strides 2, 2, 1, last map 2 × 2"),
        (32, {"stem_stride": 2}, ""),
        (128, {}, ""),
    ],
)
def test_training_says_which_strides_it_chose(size, given, line, capsys):
    values = {"model_type": "convnext", "depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16], "train_data": "unused"}
    create_classifier(parse_config({**values, "image_size": size, **given}), 3)
    printed = capsys.readouterr().err
    assert line in printed and bool(line) == ("stem stride" in printed)
