"""The ConvNeXt builders: shapes, stem, options, training, policies, saving. Parity with timm is in test_parity.py."""

import keras
import numpy as np
import pytest
from helpers import gradients, predict, randomize
from keras import ops

import zoo
from convnext import (
    ResNetVariant,
    Variant,
    create_convnext_v1,
    create_convnext_v2,
    create_resnet,
    feature_maps,
    resolve_stem_stride,
    resolve_strides,
)
from convnext.variants import V1

pytestmark = pytest.mark.backend

SMALL = Variant(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32))
TINY = Variant(depths=(1, 1), dims=(8, 16))  # compiles faster
TINY_RESNET = ResNetVariant(depths=(1, 1), dims=(8, 16), stem_dim=8)
BUILDERS = {"v1": create_convnext_v1, "v2": create_convnext_v2}
both = pytest.mark.parametrize("create", BUILDERS.values(), ids=BUILDERS)
once_v1 = pytest.param(create_convnext_v1, marks=pytest.mark.once, id="v1")  # V2 has what differs between backends
v2_on_each = pytest.mark.parametrize("create", [once_v1, pytest.param(create_convnext_v2, id="v2")])


def images(rng, *shape):
    return rng.standard_normal(shape).astype("float32")


@pytest.mark.once
@both
@pytest.mark.parametrize(
    "options, shape",
    [
        ({}, (None, 10)),
        ({"include_top": False}, (None, 4, 4, 32)),
        ({"include_top": False, "pooling": "avg"}, (None, 32)),
        ({"include_top": False, "pooling": "max"}, (None, 32)),
        ({"stem_stride": 4}, (None, 10)),
    ],
    ids=str,
)
def test_output_shapes(create, options, shape, rng):
    model = create(SMALL, 10, (64, 64, 3), **options)
    assert model.output_shape == shape
    assert predict(model, images(rng, 2, 64, 64, 3)).shape == (2, *shape[1:])


@pytest.mark.once
@pytest.mark.parametrize(
    "size, stride",
    [((224, 224), 4), ((128, 128), 4), ((127, 224), 2), ((96, 96), 2), ((64, 64), 2), ((48, 48), 1), ((32, 32), 1)]
    + [((16, 16), 1), ((8, 8), 1), ((None, None), 4), ((None, 32), 4), ((224, 32), 1)],
)
def test_auto_stem_leaves_a_last_map_of_four(size, stride):
    assert resolve_stem_stride(V1["tiny"], (*size, 3)) == stride


@pytest.mark.once
@pytest.mark.parametrize("stride, side", [(4, 2), (2, 4), (1, 8)])
def test_stem_stride_sets_the_last_map(stride, side, rng):
    model = create_convnext_v2(SMALL, 10, (64, 64, 3), stem_stride=stride, include_top=False)
    assert predict(model, images(rng, 1, 64, 64, 3)).shape == (1, side, side, 32)


@pytest.mark.once
def test_weights_fit_at_any_stem_stride(rng):
    weights = create_convnext_v2(SMALL, 10, (64, 64, 3), stem_stride=4).get_weights()
    for stride in (2, 1):
        create_convnext_v2(SMALL, 10, (64, 64, 3), stem_stride=stride).set_weights(weights)


@pytest.mark.once
@pytest.mark.parametrize("stride, smallest", [(4, 32), (2, 16), (1, 8)])
def test_too_small_images_are_refused(stride, smallest):
    shape = (smallest, smallest, 3)
    strides = {"stem_stride": stride, "downsample_strides": 2}
    create_convnext_v1(SMALL, 10, shape, **strides)
    with pytest.raises(ValueError, match=rf"empty feature map at stem_stride={stride}.*{smallest}×{smallest}"):
        create_convnext_v1(SMALL, 10, (smallest - stride, smallest, 3), **strides)


@pytest.mark.once
def test_error_suggests_a_stride_that_fits():
    with pytest.raises(ValueError, match="Use stem_stride=2 or images of at least 32×32"):
        create_convnext_v1("tiny", 10, (16, 16, 3), stem_stride=4)
    with pytest.raises(ValueError, match=r"stem_stride=1 and .*\. Images of at least 8×8"):
        create_convnext_v1("tiny", 10, (7, 7, 3), downsample_strides=2)


@pytest.mark.once
@pytest.mark.parametrize(
    "side, strides, last_map",
    [(32, (2, 2, 2), 4), (31, (2, 2, 2), 3), (16, (2, 2, 2), 2), (15, (2, 2, 1), 3), (8, (2, 2, 1), 2)]
    + [(7, (2, 1, 1), 3), (4, (2, 1, 1), 2), (3, (1, 1, 1), 3), (2, (1, 1, 1), 2), (1, (1, 1, 1), 1)],
)
def test_auto_downsampling_leaves_a_last_map_of_two(side, strides, last_map):
    assert resolve_strides(V1["tiny"], (side, side, 3)) == (1, strides)
    assert resolve_strides(V1["tiny"], (side, 224, 3)) == (1, strides)
    model = create_convnext_v2(SMALL, 10, (side, side, 3), include_top=False)
    assert model.output_shape == (None, last_map, last_map, 32)


@pytest.mark.once
@pytest.mark.parametrize("given", [{"stem_stride": 2}, {"stem_stride": 4}, {"downsample_strides": (2, 2, 2)}])
def test_given_strides_are_kept(given):
    stem, strides = resolve_strides(V1["tiny"], (32, 32, 3), **given)
    assert (stem, strides) == (given.get("stem_stride", 1), (2, 2, 2))


def test_weights_fit_at_any_downsample_strides(rng):
    model = create_convnext_v2(SMALL, 10, (64, 64, 3))
    small = create_convnext_v2(SMALL, 10, (4, 4, 3), downsample_strides=(1, 2, 1))
    small.set_weights(model.get_weights())
    assert small.get_layer("stages_2_downsample_conv").strides == (2, 2)
    assert np.isfinite(predict(small, images(rng, 2, 4, 4, 3))).all()


@pytest.mark.wide
@v2_on_each
def test_unknown_sizes(create, rng):
    model = create(TINY, 10, (None, None, 3))
    fixed = create(TINY, 10, (64, 96, 3), stem_stride=4)
    fixed.set_weights(model.get_weights())
    x = images(rng, 2, 64, 96, 3)
    np.testing.assert_allclose(predict(model, x), predict(fixed, x), atol=1e-6)
    assert model.predict(images(rng, 1, 33, 70, 3), verbose=0).shape == (1, 10)


@pytest.mark.once
@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"variant": "tinny"}, "'tinny'.*Did you mean 'tiny'"),
        ({"num_classes": 0}, "num_classes.*0"),
        ({"num_classes": 2.5}, "num_classes.*2.5"),
        ({"pooling": "mean"}, "pooling.*'mean'"),
        ({"pooling": "max"}, "include_top=False"),
        ({"stem_stride": 3}, r"stem_stride.*\[4, 2, 1\].*3"),
        ({"downsample_strides": 3}, r"downsample_strides must be 'auto', 1, 2, or 3 numbers.*3"),
        ({"downsample_strides": (2, 2)}, r"downsample_strides.*\(2, 2\)"),
        ({"downsample_strides": "none"}, "downsample_strides.*'none'"),
        ({"drop_path_rate": 1.0}, "drop_path_rate.*1.0"),
        ({"dropout_rate": -0.1}, "dropout_rate.*-0.1"),
        ({"input_shape": (224, 224)}, "input_shape.*channels last"),
        ({"input_shape": (3, 0, 3)}, "input_shape"),
        ({"classifier_activation": "sofmax"}, "sofmax"),
    ],
    ids=str,
)
def test_invalid_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        create_convnext_v1(**{"variant": SMALL, "num_classes": 10, "input_shape": (32, 32, 3), **arguments})


@pytest.mark.once
def test_unknown_argument_is_a_type_error():
    with pytest.raises(TypeError, match="drop_rate"):
        create_convnext_v1(SMALL, 10, drop_rate=0.1)


@pytest.mark.once
def test_names():
    with keras.StatelessScope(initialize_variables=False):
        assert create_convnext_v1().name == "convnext_tiny"
        assert create_convnext_v2("atto").name == "convnextv2_atto"
        assert create_convnext_v2("atto", name="mine").name == "mine"
    model = create_convnext_v1(SMALL, 10, (64, 64, 3))
    names = [layer.name for layer in model.layers]
    assert names[:9] == ["images", "stem_conv", "stem_norm"] + [
        f"stages_0_blocks_0_{part}" for part in ("dwconv", "norm", "pwconv1", "pwconv2", "gamma", "out")
    ]
    assert names[9:11] == ["stages_1_downsample_norm", "stages_1_downsample_conv"]
    assert names[-3:] == ["head_pool", "head_norm", "head_fc"]


@pytest.mark.once
def test_v2_has_grn_instead_of_layer_scale():
    v1, v2 = (create(SMALL, 10, (64, 64, 3)) for create in BUILDERS.values())
    parts = [[layer.name.rpartition("_")[2] for layer in model.layers] for model in (v1, v2)]
    assert [p for p in parts[0] if p != "gamma"] == [p for p in parts[1] if p != "grn"]
    assert parts[0].count("gamma") == parts[1].count("grn") == sum(SMALL.depths)


@pytest.mark.once
@pytest.mark.parametrize(
    "create, arguments",
    [
        (create_convnext_v1, {"layer_scale_init_value": 0.5}),
        (create_convnext_v1, {"layer_scale_init_value": None}),
        (create_convnext_v2, {"layer_scale_init_value": 0.5}),
        (create_convnext_v2, {"classifier_activation": None}),
        (create_convnext_v2, {"variant": Variant(SMALL.depths, SMALL.dims, activation="relu")}),
        (create_convnext_v2, {"variant": Variant(SMALL.depths, SMALL.dims, epsilon=0.1)}),
    ],
)
def test_each_option_changes_the_output(create, arguments, rng):
    x, outputs = images(rng, 2, 32, 32, 3), []
    for options in ({}, arguments):
        keras.utils.set_random_seed(3)
        outputs.append(
            predict(create(**{"variant": SMALL, "num_classes": 10, "input_shape": (32, 32, 3), **options}), x)
        )
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-5


@pytest.mark.once
def test_patch_size_is_the_stem_kernel():
    model = create_convnext_v1(Variant((1, 1), (8, 16), patch_size=2), 10, (32, 32, 3))
    assert model.get_layer("stem_conv").kernel.shape == (2, 2, 3, 8)
    assert model.get_layer("stem_conv").strides == (2, 2)


@pytest.mark.once
def test_softmax_by_default():
    scores = predict(create_convnext_v2(SMALL, 10, (32, 32, 3)), np.zeros((2, 32, 32, 3), "float32"))
    np.testing.assert_allclose(scores.sum(axis=-1), 1, rtol=1e-5)


@pytest.mark.wide
@v2_on_each
def test_two_inference_calls_agree_and_two_training_calls_do_not(create, rng):
    model = randomize(create(TINY, 10, (32, 32, 3), drop_path_rate=0.5, dropout_rate=0.5), rng)
    x = images(rng, 4, 32, 32, 3)
    np.testing.assert_array_equal(predict(model, x), predict(model, x))
    first, second = (ops.convert_to_numpy(model(x, training=True)) for _ in range(2))
    assert np.abs(first - second).max() > 1e-3


@pytest.mark.once
def test_stochastic_depth_rises_linearly_to_the_rate():
    model = create_convnext_v1(SMALL, 10, (32, 32, 3), drop_path_rate=0.4)
    rates = {layer.name: layer.rate for layer in model.layers if layer.name.endswith("drop_path")}
    assert list(rates) == [
        f"stages_{stage}_blocks_{block}_drop_path" for stage, block in ((1, 0), (2, 0), (2, 1), (3, 0))
    ]
    np.testing.assert_allclose(list(rates.values()), [0.1, 0.2, 0.3, 0.4])
    assert not [layer for layer in create_convnext_v1(SMALL, 10, (32, 32, 3)).layers if "drop" in layer.name]


@pytest.mark.wide
@pytest.mark.parametrize(
    "create",
    [once_v1, create_convnext_v2, pytest.param(create_resnet, marks=pytest.mark.wide)],
    ids=["v1", "v2", "resnet"],
)
@pytest.mark.parametrize("black", [False, True], ids=["noise", "black"])
def test_every_parameter_gets_a_finite_gradient(create, black, rng):
    model = create(TINY_RESNET if create is create_resnet else TINY, 10, (32, 32, 3), classifier_activation=None)
    randomize(model, rng)
    x = np.zeros((2, 32, 32, 3), "float32") if black else images(rng, 2, 32, 32, 3)
    target = ops.convert_to_tensor(images(rng, 2, 10))
    variables = model.trainable_variables
    grads = gradients(lambda: ops.mean((model(x, training=False) - target) ** 2), variables)
    for variable, grad in zip(variables, grads, strict=True):
        assert np.isfinite(grad).all(), variable.path
        if not black:
            assert np.abs(grad).max() > 0, variable.path


@pytest.mark.wide
@v2_on_each
def test_all_zero_activations_train(create, rng):
    model = create(TINY, 10, (32, 32, 3))  # biases are zero, so GRN reads only zero channels
    grads = gradients(lambda: ops.mean(model(np.zeros((1, 32, 32, 3), "float32")) ** 2), model.trainable_variables)
    assert all(np.isfinite(grad).all() for grad in grads)


@v2_on_each
def test_fit_learns(create, rng):
    model = create(TINY, 2, (16, 16, 3), drop_path_rate=0.1, dropout_rate=0.1, layer_scale_init_value=0.1)
    x = images(rng, 32, 16, 16, 3)
    labels = (np.arange(32) % 2).astype("int32")
    x[labels == 1] += 0.5
    model.compile(keras.optimizers.AdamW(3e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
    history = model.fit(x, labels, batch_size=16, epochs=8, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert history["accuracy"][-1] > 0.9


@v2_on_each
@pytest.mark.parametrize(
    "policy",
    [
        "mixed_float16",
        pytest.param("mixed_bfloat16", marks=pytest.mark.once),
        pytest.param("bfloat16", marks=pytest.mark.wide),
    ],
)
def test_half_precision_policies_stay_near_float32(create, policy, rng):
    full = randomize(create(TINY, 10, (32, 32, 3), classifier_activation=None), rng, scale=0.1)
    keras.config.set_dtype_policy(policy)
    half = create(TINY, 10, (32, 32, 3), classifier_activation=None)
    half.set_weights(full.get_weights())
    assert keras.backend.standardize_dtype(half.output.dtype) == "float32"
    x = images(rng, 2, 32, 32, 3)
    expected = predict(full, x)
    assert np.abs(predict(half, x) - expected).max() < 0.05 * np.abs(expected).max()
    assert np.isfinite(predict(half, 100 * x)).all()


@pytest.mark.once
def test_mixed_precision_training_step_is_finite(rng):
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = create_convnext_v2(TINY, 3, (32, 32, 3))
    model.compile("adamw", "sparse_categorical_crossentropy")
    assert np.isfinite(model.fit(images(rng, 4, 32, 32, 3), np.array([0, 1, 2, 0]), verbose=0).history["loss"][0])


@pytest.mark.wide
@v2_on_each
def test_keras_file_round_trip_in_safe_mode(create, rng, tmp_path):
    model = randomize(create(TINY, 10, (32, 32, 3), drop_path_rate=0.1), rng)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    x = images(rng, 2, 32, 32, 3)
    np.testing.assert_array_equal(predict(again, x), predict(model, x))
    assert type(again.get_layer("stages_0_blocks_0_dwconv")).__module__.startswith("convnext")


@pytest.mark.once
@both
def test_weights_file_round_trip(create, rng, tmp_path):
    model, other = randomize(create(SMALL, 10, (32, 32, 3)), rng), create(SMALL, 10, (32, 32, 3))
    model.save_weights(tmp_path / "model.weights.h5")
    other.load_weights(tmp_path / "model.weights.h5")
    x = images(rng, 2, 32, 32, 3)
    np.testing.assert_array_equal(predict(other, x), predict(model, x))


@pytest.mark.once
def test_summary_lists_stages_and_blocks():
    lines = []
    create_convnext_v2(SMALL, 10, (32, 32, 3)).summary(print_fn=lines.append, line_length=120)
    text = "\n".join(map(str, lines))
    for name in ("stem_conv", "stages_2_blocks_1_grn", "stages_3_downsample_conv", "head_fc"):
        assert name in text


@pytest.mark.once
@both
def test_inner_layers_can_be_model_outputs(create, rng):
    model = create(SMALL, 10, (32, 32, 3))
    inner = keras.Model(model.input, model.get_layer("stages_1_blocks_0_pwconv1").output)
    assert predict(inner, images(rng, 1, 32, 32, 3)).shape == (1, 16, 16, 64)


@pytest.mark.once
@pytest.mark.parametrize("create", [*BUILDERS.values(), create_resnet], ids=[*BUILDERS, "resnet"])
def test_feature_maps_are_the_stage_outputs(create, rng):
    resnet = create is create_resnet
    model = create("18" if resnet else SMALL, 10, (64, 64, 3), **({} if resnet else {"stem_stride": 4}))
    maps = feature_maps(model)
    dims = (64, 128, 256, 512) if resnet else SMALL.dims
    assert [m.shape for m in maps.output] == [
        (None, 64 // s, 64 // s, c) for s, c in zip((4, 8, 16, 32), dims, strict=True)
    ]
    headless = create(
        "18" if resnet else SMALL, 10, (64, 64, 3), include_top=False, **({} if resnet else {"stem_stride": 4})
    )
    headless.set_weights(model.get_weights()[: len(headless.weights)])
    x = images(rng, 1, 64, 64, 3)
    np.testing.assert_allclose(predict(headless, x), predict(maps, x)[-1], atol=1e-5)


@pytest.mark.once
def test_a_row_of_another_family_is_refused():
    row = ResNetVariant((1, 1), (8, 16))
    for create, family in ((create_convnext_v1, "convnext"), (create_convnext_v2, "convnextv2")):
        with pytest.raises(ValueError, match=f"ResNetVariant, which create_resnet takes; {family} needs a Variant or"):
            create(row)
    with pytest.raises(ValueError, match="Variant, which create_convnext_v1 takes; resnet needs a ResNetVariant or"):
        create_resnet(SMALL)


@pytest.mark.once
def test_feature_maps_of_another_model_are_refused():
    inputs = keras.Input((4,))
    with pytest.raises(ValueError, match="'plain'.*no ConvNeXt or ResNet blocks"):
        feature_maps(keras.Model(inputs, keras.layers.Dense(1)(inputs), name="plain"))


@pytest.mark.wide
def test_channels_first_setting_changes_nothing(rng):
    x = images(rng, 1, 32, 32, 3)
    model = create_convnext_v2(TINY, 10, (32, 32, 3))
    keras.config.set_image_data_format("channels_first")
    try:
        other = create_convnext_v2(TINY, 10, (32, 32, 3))
        create_resnet(TINY_RESNET, 10, (64, 64, 3))
    finally:
        keras.config.set_image_data_format("channels_last")
    other.set_weights(model.get_weights())
    np.testing.assert_array_equal(predict(other, x), predict(model, x))


@pytest.mark.once
@pytest.mark.parametrize("channels", [1, 4])
def test_other_channel_counts(channels, rng):
    model = create_convnext_v2(SMALL, 10, (32, 32, channels))
    assert predict(model, images(rng, 2, 32, 32, channels)).shape == (2, 10)


class TestResNet:
    @pytest.mark.once
    @pytest.mark.parametrize("variant, dim", [("18", 512), (34, 512), ("50", 2048)])
    @pytest.mark.parametrize("options", [{}, {"include_top": False}, {"include_top": False, "pooling": "avg"}], ids=str)
    def test_output_shapes(self, variant, dim, options):
        with keras.StatelessScope(initialize_variables=False):
            model = create_resnet(variant, 10, (64, 96, 3), **options)
        expected = (None, 10) if not options else (None, dim) if "pooling" in options else (None, 2, 3, dim)
        assert model.output_shape == expected
        assert model.name == f"resnet{variant}"

    @pytest.mark.once
    def test_stride_sits_in_the_3x3(self):
        with keras.StatelessScope(initialize_variables=False):
            model = create_resnet("50")
        assert model.get_layer("layer2_0_conv1").strides == (1, 1)
        assert model.get_layer("layer2_0_conv2").strides == (2, 2)

    @pytest.mark.once
    def test_unknown_variant(self):
        with pytest.raises(ValueError, match="resnet variant '51'.*'50'"):
            create_resnet(51)

    @pytest.mark.once
    def test_round_trip(self, rng, tmp_path):
        model = randomize(create_resnet("18", 10, (64, 64, 3)), rng, scale=0.02)
        model.save(tmp_path / "resnet.keras")
        again = keras.saving.load_model(tmp_path / "resnet.keras", safe_mode=True)
        x = images(rng, 2, 64, 64, 3)
        np.testing.assert_array_equal(predict(again, x), predict(model, x))


@pytest.mark.once
@pytest.mark.parametrize("create", [create_convnext_v1, create_convnext_v2, create_resnet])
def test_one_class_and_softmax_are_refused_with_the_remedy(create, tmp_path):
    row = TINY_RESNET if create is create_resnet else TINY
    with pytest.raises(ValueError, match="probability 1 for every image. Use .*'sigmoid', or num_classes=2"):
        create(row, 1, (32, 32, 3))
    for activation in ("sigmoid", None):
        assert create(row, 1, (32, 32, 3), classifier_activation=activation).output_shape == (None, 1)
    assert create(row, 1, (32, 32, 3), include_top=False).output_shape[-1] > 1
    earlier = create(row, 1, (32, 32, 3), classifier_activation=keras.activations.softmax)
    zoo.save(earlier, tmp_path / "m.safetensors")  # as such files were written
    assert zoo.load(tmp_path / "m.safetensors").model.get_layer("head_fc").get_config()["activation"] == "softmax"
