"""create_model: arguments reach their builders, and weights from a file bring what they say of themselves."""

import numpy as np
import pytest
from test_save_load import MODELS, fill, values

import convnext
import zoo
from zoo.weights import export_tensors, write_safetensors
from zoo.weights.engine import fitting_format
from zoo.weights.sources import timm

pytestmark = pytest.mark.backend


@pytest.mark.once
def test_names_reach_their_builders():
    assert zoo.create_model("convnextv2_atto", input_shape=(32, 32, 3), num_classes=3).output_shape == (None, 3)
    assert zoo.create_model("resnet18", input_shape=(32, 32, 3), include_top=False).output_shape == (None, 1, 1, 512)
    pair = zoo.create_model("clip/convnext_v2_atto", image_size=32)
    assert pair.image_encoder.input_shape == (None, 32, 32, 3)


@pytest.mark.once
@pytest.mark.parametrize(
    ("name", "arguments", "nearest"),
    [
        ("convnextv2_atto", {"drop_path": 0.1}, "'drop_path_rate'"),
        ("resnet18", {"stem_stride": 2}, "nearest is"),
        ("clip/ViT-B-32", {"img_size": 64}, "'image_size'"),
        ("clip/ViT-B-32", {"image_tower": None}, "'image_size'"),
        ("clip/ViT-B-32", {"num_classes": 3}, "is an argument of classifiers"),
    ],
)
def test_arguments_a_builder_does_not_have(name, arguments, nearest):
    with pytest.raises(TypeError, match=nearest):
        zoo.create_model(name, **arguments)


@pytest.mark.once
@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ("fcmae_ft_in2k", ValueError, "no weights 'fcmae_ft_in2k' for convnextv2_atto"),
        ("nowhere.safetensors", FileNotFoundError, "nowhere"),
        ("folder/nowhere", FileNotFoundError, "nowhere"),
    ],
)
def test_weights_that_are_not_there(weights, error, message):
    with pytest.raises(error, match=message):
        zoo.create_model("convnextv2_atto", weights=weights)


@pytest.mark.once
def test_a_tag_twice_is_refused():
    with pytest.raises(ValueError, match="Give one of them"):
        zoo.create_model("convnextv2_atto.x", weights="y")


@pytest.mark.once
def test_weights_from_a_file_bring_their_classes_and_stem(tmp_path):
    source = fill(convnext.create_convnext_v2("atto", 7, (32, 32, 3)))
    zoo.save(source, tmp_path / "own.safetensors")
    write_safetensors(tmp_path / "timm.safetensors", export_tensors(source, timm.FORMATS[0]), {})
    own = zoo.create_model("convnextv2_atto", weights=tmp_path / "own.safetensors", input_shape=(32, 32, 3))
    foreign = zoo.create_model("convnextv2_atto", weights=str(tmp_path / "timm.safetensors"))
    for model, stride in ((own, 1), (foreign, 4)):
        assert model.output_shape == (None, 7)
        assert model.get_layer("stem_conv").strides == (stride, stride)
        for first, second in zip(values(model), values(source), strict=True):
            np.testing.assert_array_equal(first, second)


@pytest.mark.once
def test_another_number_of_classes_makes_a_new_head_and_says_so(tmp_path):
    source = fill(convnext.create_convnext_v2("atto", 7, (32, 32, 3)))
    zoo.save(source, tmp_path / "m.safetensors")
    with pytest.warns(UserWarning, match="head_fc is newly initialized: the file has 7 classes, and 3 are requested"):
        model = zoo.create_model("convnextv2_atto", weights=tmp_path / "m.safetensors", num_classes=3)
    for first, second in zip(values(model)[:-2], values(source)[:-2], strict=True):
        np.testing.assert_array_equal(first, second)
    assert values(model)[-1].max() == 0


@pytest.mark.once
def test_weights_for_a_trunk(tmp_path):
    source = fill(convnext.create_convnext_v2("atto", 7, (32, 32, 3)))
    zoo.save(source, tmp_path / "m.safetensors")
    model = zoo.create_model("convnextv2_atto", weights=tmp_path / "m.safetensors", include_top=False)
    for first, second in zip(values(model), values(source), strict=False):
        np.testing.assert_array_equal(first, second)


@pytest.mark.once
def test_weights_of_another_size_are_refused(tmp_path):
    zoo.save(convnext.create_convnext_v2("atto", 7, (32, 32, 3)), tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match=r"stem_conv\.kernel: shape"):
        zoo.create_model("convnextv2_tiny", weights=tmp_path / "m.safetensors", num_classes=7)


@pytest.mark.once
def test_a_pairs_file_brings_its_size_activation_and_bias(tmp_path):
    source = fill(MODELS["pair with bias"]())
    zoo.save(source, tmp_path / "m.safetensors")
    model = zoo.create_model("clip/convnext_v2_atto", weights=tmp_path / "m.safetensors")
    for first, second in zip(values(model), values(source), strict=True):
        np.testing.assert_array_equal(first, second)
    assert model.image_encoder.input_shape == (None, 32, 32, 3)


@pytest.mark.once
def test_a_file_of_ours_brings_its_image_size(tmp_path):
    path = tmp_path / "small.safetensors"
    zoo.save(zoo.create_model("convnext_atto", input_shape=(32, 32, 3), num_classes=5), path)
    again = zoo.create_model("convnext_atto", weights=path)
    assert again.input_shape == (None, 32, 32, 3)
    assert again.get_layer("stem_conv").strides == (1, 1)
    assert zoo.create_model("convnext_atto", weights=path, input_shape=(64, 64, 3)).input_shape == (None, 64, 64, 3)


@pytest.mark.once
@pytest.mark.parametrize("name", ["convnext_atto", "convnextv2_atto", "resnet18"])
@pytest.mark.parametrize("pooling", ["avg", None])
def test_a_file_without_a_classifier_makes_a_model_without_one(tmp_path, name, pooling):
    """timm's files of num_classes=0 and, without the last norm, of features_only."""
    source = fill(zoo.create_model(name, include_top=False, pooling=pooling, input_shape=(32, 32, 3)))
    library = fitting_format(source, timm.FORMATS)
    path = tmp_path / "headless.safetensors"
    write_safetensors(path, export_tensors(source, library), {})
    with pytest.warns(UserWarning, match="no classifier, so the model has none"):
        model = zoo.create_model(name, weights=path, input_shape=(32, 32, 3))
    assert model.output_shape[-1] == source.output_shape[-1]
    for first, second in zip(values(model), values(source), strict=True):
        np.testing.assert_array_equal(first, second)
    with pytest.warns(UserWarning, match="head_fc is newly initialized"):
        assert zoo.create_model(name, weights=path, num_classes=3, input_shape=(32, 32, 3)).output_shape == (None, 3)
