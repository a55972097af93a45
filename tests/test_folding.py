"""Folding: the same function with fewer layers, on every architecture, exact to rounding."""

import keras
import numpy as np
import pytest
from export_cases import build
from helpers import predict, randomize

import clip
import zoo
from clip.layers import EOT_ID, SelectToken, transformer_block
from clip.towers.text import create_text_tower
from convnext import (
    LayerScale,
    ResNetVariant,
    Variant,
    create_convnext_v1,
    create_convnext_v2,
    create_resnet,
    feature_maps,
)
from zoo.models.folding import FOLDS, fold, fold_with_affine

pytestmark = pytest.mark.backend

NARROW = Variant(depths=(1, 2), dims=(8, 16))
TEXT = clip.Text(width=16, heads=2, layers=2, context_length=10, vocabulary_size=EOT_ID + 1)
SIZE = (32, 32, 3)
TOLERANCE = 1e-5


def classes(model):
    return [type(layer).__name__ for layer in model.layers]


def error(ours, theirs):
    return np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs))


def images(rng, shape=SIZE):
    return rng.standard_normal((2, *shape), np.float32)


def check_same(model, folded, x, tolerance=TOLERANCE):
    for ours, theirs in zip(keras.tree.flatten(predict(folded, x)), keras.tree.flatten(predict(model, x)), strict=True):
        assert ours.shape == theirs.shape
        assert error(ours, theirs) <= tolerance


def convnext(create, **options):
    return create(NARROW, 5, SIZE, classifier_activation=None, **options)


@pytest.mark.parametrize(
    "create", [pytest.param(create_convnext_v1, marks=pytest.mark.wide), create_convnext_v2], ids=["v1", "v2"]
)
def test_convnext(create, rng):
    model = randomize(convnext(create, drop_path_rate=0.1, dropout_rate=0.1), rng)
    folded = zoo.fold(model)
    check_same(model, folded, images(rng))
    assert not {"LayerScale", "Dropout"} & set(classes(folded))
    assert {"LayerNormalization", "Dense"} <= set(classes(folded))
    assert (folded.name, folded.input_shape, folded.output_shape) == (model.name, model.input_shape, model.output_shape)
    norm = folded.get_layer("stages_1_blocks_0_norm")
    assert not norm.scale and not norm.center
    assert folded.get_layer("stem_norm").scale  # the depthwise convolution after it pads
    assert not folded.get_layer("stages_1_downsample_norm").scale


@pytest.mark.once
def test_offset_of_grn_moves_on(rng):
    folded = fold(randomize(convnext(create_convnext_v2), rng))
    grn = folded.get_layer("stages_0_blocks_0_grn")
    assert not np.any(keras.ops.convert_to_numpy(grn.beta)) and np.any(keras.ops.convert_to_numpy(grn.gamma))


@pytest.mark.once
@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_resnet(block, rng):
    row = ResNetVariant(depths=(1, 1), dims=(8, 16), block=block, stem_dim=8)
    model = randomize(create_resnet(row, 5, SIZE, classifier_activation=None), rng)
    folded = fold(model)
    check_same(model, folded, images(rng))
    assert "BatchNormalization" in classes(model) and "BatchNormalization" not in classes(folded)


@pytest.mark.once
def test_trunk_and_feature_maps(rng):
    model = randomize(convnext(create_convnext_v1, include_top=False, pooling="avg"), rng)
    folded = fold(model)
    check_same(model, folded, images(rng))
    assert folded.get_layer("head_norm").scale  # its result is the model's
    maps = feature_maps(model)
    check_same(maps, fold(maps), images(rng))


@pytest.mark.wide
@pytest.mark.parametrize(
    "image",
    [clip.ViT(width=16, layers=2, patch_size=8, head_width=8), clip.ConvNeXt("convnextv2", NARROW)],
    ids=["vit", "convnext"],
)
def test_pair(image, rng):
    model = randomize(clip.create_clip(clip.Pair(12, 32, image, TEXT)), rng, 0.1)
    model.logit_scale.logit_scale.assign(1.5)
    folded = fold(model)
    assert isinstance(folded, clip.CLIP)
    tokens = rng.integers(1, 50, (2, 10)).astype("int32")
    tokens[[0, 1], [4, 7]] = EOT_ID
    check_same(model, folded, {"images": images(rng), "tokens": tokens})
    assert float(folded.logit_scale.logit_scale) == 1.5
    assert not folded.text_encoder.get_layer("ln_final").scale
    assert not folded.text_encoder.get_layer("transformer_resblocks_0_ln_1").scale
    for tower in (folded.image_encoder, folded.text_encoder)[isinstance(image, clip.ConvNeXt) :]:
        shapes = [tower.get_layer(f"transformer_resblocks_{i}_mlp_c_fc").input.shape for i in (0, 1)]
        assert [len(shape) for shape in shapes] == [3, 2]  # the last MLP sees the one token that is wanted


@pytest.mark.once
def test_each_of_two_tokens_is_taken_early(rng):
    tokens = keras.Input((6, 16))

    def side(name):
        shape = {"num_heads": 2, "hidden": 32, "activation": "gelu", "causal": False, "depth": 1}
        return SelectToken(name=f"{name}_pool")(transformer_block(tokens, name=name, **shape))

    model = keras.Model(tokens, [side("left"), side("right")])
    folded = fold(randomize(model, rng, 0.1))
    check_same(model, folded, images(rng, (6, 16)))
    assert [len(folded.get_layer(f"{name}_mlp_c_fc").input.shape) for name in ("left", "right")] == [2, 2]


@pytest.mark.once
def test_tokens_that_are_read_are_all_kept(rng):
    """Of a model that hands out a block's tokens too, that block sees them all."""
    tower = create_text_tower(TEXT, 12)
    model = keras.Model(tower.input, [tower.get_layer("transformer_resblocks_1_add_2").output, tower.output])
    tokens = rng.integers(1, 50, (2, 10)).astype("int32")
    check_same(model, fold(randomize(model, rng, 0.1)), tokens)


@pytest.mark.once
@pytest.mark.parametrize("case", ["mobile pair", "wide mobile pair", "resnet pair"])
def test_branches_and_norms_of_towers(case, rng):
    model = build(case)
    folded = fold(model)
    side = model.image_encoder.input_shape[1]
    x = {"images": images(rng, (side, side, 3)), "tokens": rng.integers(1, 49, (2, 10)).astype("int32")}
    check_same(model, folded, x)
    layers = folded.image_encoder.layers + folded.text_encoder.layers
    assert all(layer.reparameterized for layer in layers if hasattr(layer, "folded"))
    assert "BatchNormalization" not in {type(layer).__name__ for layer in layers}
    assert "LayerScale" not in {type(layer).__name__ for layer in layers}


@pytest.mark.once
def test_zero_shot_classifier(rng):
    pair = clip.create_clip(clip.Pair(12, 32, clip.ConvNeXt("convnext", NARROW), clip.Text(16, 2, 1)))
    model = clip.zero_shot_classifier(randomize(pair, rng, 0.1), ["cat", "dog"])
    folded = fold(model)
    check_same(model, folded, images(rng))
    assert folded.get_layer("zero_shot_head").class_names == ["cat", "dog"]


@pytest.mark.once
def test_the_original_stays_as_it_was(rng):
    model = randomize(convnext(create_convnext_v1), rng)
    x = images(rng)
    before = [weight.copy() for weight in model.get_weights()], predict(model, x)
    folded = fold(model)
    for weight in folded.weights:
        weight.assign(weight * 0)
    np.testing.assert_array_equal(predict(model, x), before[1])
    for now, then in zip(model.get_weights(), before[0], strict=True):
        np.testing.assert_array_equal(now, then)


@pytest.mark.once
def test_saves_whole(rng, tmp_path):
    folded = fold(randomize(convnext(create_convnext_v2), rng))
    folded.save(tmp_path / "folded.keras")
    x = images(rng)
    np.testing.assert_array_equal(predict(keras.saving.load_model(tmp_path / "folded.keras"), x), predict(folded, x))


@pytest.mark.once
def test_folding_twice_changes_no_more(rng):
    once = fold(randomize(convnext(create_convnext_v1), rng))
    twice = fold(once)
    assert classes(once) == classes(twice)
    check_same(once, twice, images(rng), 1e-6)


@pytest.mark.once
@pytest.mark.parametrize("stem_stride", [4, 2])
def test_pixels_fold_into_a_stem_that_does_not_pad(stem_stride, rng):
    model = randomize(convnext(create_convnext_v1, stem_stride=stem_stride), rng)
    factor, shift = np.array([0.5, 2.0, 1.5]), np.array([1.0, -1.0, 0.25])
    folded, absorbed = fold_with_affine(model, (factor, shift))
    assert absorbed == (stem_stride == 4)
    x = images(rng)
    expected = predict(model, (x * factor + shift).astype("float32"))
    given = x if absorbed else (x * factor + shift).astype("float32")
    assert error(predict(folded, given), expected) <= TOLERANCE


@pytest.mark.once
def test_what_must_not_be_folded(rng):
    """A product read twice, one with an activation, a layer called twice, a norm that another layer reads too."""
    images_in = keras.Input((4, 4, 3), name="images")
    shared = keras.layers.Dense(3, name="shared")
    scale = LayerScale(0.5, name="scale")
    x = shared(images_in)
    read_twice = LayerScale(2.0, name="read_twice")(x) + x
    active = LayerScale(2.0, name="after_relu")(keras.layers.Dense(3, activation="relu", name="active")(read_twice))
    called_twice = scale(shared(scale(shared(active))))
    norm = keras.layers.LayerNormalization(name="norm")(called_twice)
    y = keras.layers.Dense(3, name="reader")(norm) + norm
    model = randomize(keras.Model(images_in, y), rng)
    folded = fold(model)
    check_same(model, folded, images(rng, (4, 4, 3)))
    assert {"read_twice", "after_relu", "scale"} <= {layer.name for layer in folded.layers}
    assert folded.get_layer("norm").scale


@pytest.mark.once
def test_depthwise_and_dense_products(rng):
    """BatchNorm after a depthwise convolution of several filters a channel, and after a Dense without bias."""
    images_in = keras.Input((6, 6, 4), name="images")
    x = keras.layers.DepthwiseConv2D(3, depth_multiplier=2, use_bias=False, name="depthwise")(images_in)
    x = keras.layers.BatchNormalization(name="bn_1")(x)
    x = keras.layers.LayerNormalization(name="norm")(x)
    x = keras.layers.DepthwiseConv2D(2, depth_multiplier=3, name="valid")(x)
    x = keras.layers.Dense(5, use_bias=False, name="dense")(x)
    model = randomize(keras.Model(images_in, keras.layers.BatchNormalization(scale=False, name="bn_2")(x)), rng)
    folded = fold(model)
    check_same(model, folded, images(rng, (6, 6, 4)))
    assert classes(folded)[1:] == ["DepthwiseConv2D", "LayerNormalization", "DepthwiseConv2D", "Dense"]


@pytest.mark.once
def test_only_functional_models():
    with pytest.raises(ValueError, match="not a functional"):
        fold(keras.Sequential)
    with pytest.raises(ValueError, match="not a functional"):
        fold(keras.layers.Dense(2))


@pytest.mark.once
def test_rules_are_for_layers_that_there_are():
    known = {name for module in (keras.layers, clip, __import__("convnext")) for name in dir(module)}
    from clip.towers import branches

    assert set(FOLDS) <= known | set(dir(branches)) | {SelectToken.__name__}
