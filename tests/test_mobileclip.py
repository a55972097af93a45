"""MobileCLIP's towers: branches and the convolution they fold into, gradients, files, sizes. Parity is elsewhere."""

import dataclasses

import keras
import numpy as np
import pytest
from helpers import gradients, predict, randomize
from keras import ops

import clip
import zoo
from clip.towers.branches import MobileOneConv2D, RepConditionalPosEnc, RepLargeKernelConv2D, RepMixer
from zoo.weights import FORMATS, export_tensors
from zoo.weights.layouts import ZERO, depthwise

pytestmark = pytest.mark.backend

ALL_SEE_ALL = clip.Text(16, 2, 2, vocabulary_size=49408, causal=False)
NARROW = clip.MCi((1, 1, 1, 1), (8, 16, 32, 64))
WIDE = clip.MCi((1, 1, 1, 1, 1), (8, 8, 16, 32, 64), 4, 2, 0, "layer", stem_scale=False)
PAIRS = {
    "mct": clip.Pair(24, 70, NARROW, dataclasses.replace(ALL_SEE_ALL, mixer_kernel=5)),
    "wide": clip.Pair(24, 65, WIDE, ALL_SEE_ALL),
    "stem": clip.Pair(24, 32, clip.ViT(16, 2, 16, 8, stem_dim=8, stem_padding=1, projection_bias=True), ALL_SEE_ALL),
    "bias": clip.Pair(24, 32, clip.ViT(16, 2, 16, 8, projection_bias=True), ALL_SEE_ALL),
}

BRANCHES = {
    "dense": lambda **form: MobileOneConv2D(3, filters=6, **form),
    "dense to others": lambda **form: MobileOneConv2D(3, 2, filters=4, **form),
    "pointwise": lambda **form: MobileOneConv2D(1, filters=6, scale_branch=False, **form),
    "depthwise": lambda **form: MobileOneConv2D(3, **form),
    "depthwise doubled": lambda **form: MobileOneConv2D(3, depth_multiplier=2, **form),
    "depthwise with strides": lambda **form: MobileOneConv2D(3, 2, **form),
    "large kernel": lambda **form: RepLargeKernelConv2D(7, 2, depth_multiplier=2, **form),
    "mixer": lambda **form: RepMixer(3, init_value=0.5, **form),
    "mixer along one axis": lambda **form: RepMixer((1, 5), scale_branch=False, init_value=0.5, **form),
    "positions": lambda **form: RepConditionalPosEnc(7, **form),
}


def array(x):
    return ops.convert_to_numpy(x)


def error(ours, theirs):
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


def built(create, rng, **form):
    layer = create(**form)
    layer.build((None, None, None, 6))
    return randomize(layer, rng)


@pytest.fixture(scope="module")
def pairs():
    """One pair per row, with random weights that all matter."""
    rng = np.random.default_rng(3)
    return {name: randomize(clip.create_clip(row), rng, scale=0.1) for name, row in PAIRS.items()}


def draw(pair, rng, count=3):
    side = pair.image_encoder.input_shape[1]
    images = rng.standard_normal((count, side, side, 3)).astype("float32")
    return {"images": images, "tokens": clip.tokenize(["a", "a photo of two dogs", "three"][:count])}


# Branches


@pytest.mark.parametrize("name", BRANCHES)
@pytest.mark.parametrize("side", [pytest.param(8, marks=pytest.mark.once), 9])
def test_branches_fold_into_one_convolution(name, side, rng):
    branches, single = (built(BRANCHES[name], rng, reparameterized=form) for form in (False, True))
    kernel, bias = branches.folded()
    assert kernel.dtype == bias.dtype == np.float64
    single.reparam_conv.kernel.assign(kernel)
    single.reparam_conv.bias.assign(bias)
    x = rng.standard_normal((2, side, side + 2, 6)).astype("float32")
    several, one = array(branches(x, training=False)), array(single(x))
    assert several.shape == branches.compute_output_shape((2, side, side + 2, 6)) == one.shape
    assert error(one, several) < 2e-6
    for again, value in zip(single.folded(), (kernel, bias), strict=True):
        np.testing.assert_allclose(again, value, rtol=1e-6)


@pytest.mark.once
@pytest.mark.parametrize("name", BRANCHES)
def test_every_branch_matters(name, rng):
    layer = built(BRANCHES[name], rng)
    kernel, bias = layer.folded()
    for weight in layer.weights:
        before = weight.numpy() if hasattr(weight, "numpy") else array(weight)
        weight.assign(array(weight) + 0.5)
        changed = [np.abs(now - was).max() for now, was in zip(layer.folded(), (kernel, bias), strict=True)]
        assert max(changed) > 1e-3, weight.path
        weight.assign(before)


@pytest.mark.once
@pytest.mark.parametrize("name", BRANCHES)
def test_branches_serialise_their_config(name):
    for form in (False, True):
        config = BRANCHES[name](name="it", reparameterized=form).get_config()
        layer = type(BRANCHES[name]()).from_config(config)
        assert layer.get_config() == config and layer.reparameterized == form


def test_padding_matches_torch():
    layer = MobileOneConv2D(3, 2, reparameterized=True)
    layer.build((None, None, None, 1))
    layer.reparam_conv.kernel.assign(np.float32([[1, 0, 0], [0, 0, 0], [0, 0, 0]])[:, :, None, None])
    x = np.arange(16, dtype="float32").reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(array(layer(x))[0, :, :, 0], [[0, 0], [0, 5]])  # up and left of 0, 2, 8 and 10


@pytest.mark.once
def test_an_even_kernel_is_refused():
    with pytest.raises(ValueError, match="must be odd.*got 4"):
        MobileOneConv2D(4)


def test_statistics_change_only_in_training(rng):
    layer = built(BRANCHES["depthwise"], rng)
    x = rng.standard_normal((2, 8, 8, 6)).astype("float32")
    before = array(layer.identity.moving_mean)
    layer(x, training=False)
    np.testing.assert_array_equal(array(layer.identity.moving_mean), before)
    layer(x, training=True)
    np.testing.assert_allclose(array(layer.identity.moving_mean), 0.9 * before + 0.1 * x.mean((0, 1, 2)), atol=1e-6)


# Towers


@pytest.mark.once
@pytest.mark.parametrize("name", PAIRS)
def test_towers_give_embeddings_with_the_rows_parameters(pairs, name, rng):
    pair = pairs[name]
    batch = draw(pair, rng)
    assert sum(np.prod(v.shape, dtype=int) for v in pair.trainable_variables) == clip.parameters(PAIRS[name])
    outputs = predict(pair, batch)
    assert {value.shape for value in outputs.values()} == {(3, 24)}
    for value, again in zip(outputs.values(), predict(pair, batch).values(), strict=True):
        np.testing.assert_array_equal(value, again)


@pytest.mark.once
@pytest.mark.parametrize("name", PAIRS)
def test_every_parameter_has_a_finite_gradient(pairs, name, rng):
    pair = pairs[name]
    batch = {key: ops.convert_to_tensor(value) for key, value in draw(pair, rng).items()}
    variables = [v for v in pair.trainable_variables if "logit_scale" not in v.path]

    def loss():
        images = pair.image_encoder(batch["images"], training=False)
        return ops.sum(ops.square(images)) + ops.sum(ops.square(pair.text_encoder(batch["tokens"], training=False)))

    for variable, gradient in zip(variables, gradients(loss, variables), strict=True):
        assert np.isfinite(gradient).all(), variable.path
        assert np.abs(gradient).max() > 0, variable.path


@pytest.mark.wide
def test_padding_matters_without_a_causal_mask(pairs, rng):
    tokens = draw(pairs["bias"], rng)["tokens"]
    noisy = tokens.copy()
    noisy[:, -1] = 7
    for name in ("bias", "mct"):
        text = pairs[name].text_encoder
        assert error(predict(text, noisy), predict(text, tokens)) > 1e-4


@pytest.mark.once
def test_other_lengths_and_sizes_are_refused(pairs, rng):
    pair, batch = pairs["mct"], draw(pairs["mct"], rng)
    with pytest.raises(ValueError, match="77"):
        pair.encode_text(batch["tokens"][:, :40])
    with pytest.raises(ValueError, match="70"):
        pair.encode_image(batch["images"][:, :64, :64])


@pytest.mark.once
def test_options_of_other_towers_are_refused():
    with pytest.raises(ValueError, match="this one is a MCi; got 2"):
        clip.create_clip(PAIRS["mct"], stem_stride=2)
    odd = dataclasses.replace(PAIRS["stem"], image=clip.ViT(16, 1, 8, 8, stem_dim=8))
    with pytest.raises(ValueError, match="stem_dim has patch_size 16, got 8"):
        clip.create_clip(odd)


@pytest.mark.once
@pytest.mark.parametrize("name", PAIRS)
def test_keras_file_round_trip(pairs, name, rng, tmp_path):
    pair, batch = pairs[name], draw(pairs[name], rng)
    before = predict(pair, batch)
    pair.save(tmp_path / "pair.keras")
    zoo.save(pair, tmp_path / "pair.safetensors")
    for path in ("pair.keras", "pair.safetensors"):
        after = predict(zoo.load(tmp_path / path).model, batch)
        for key, value in before.items():
            np.testing.assert_array_equal(after[key], value)


@pytest.mark.once
def test_a_training_step(rng):
    pair = clip.create_clip(PAIRS["mct"])
    batch = draw(pair, rng)
    pair.compile(keras.optimizers.Adam(1e-2))
    losses = [pair.train_on_batch(batch, return_dict=True)["loss"] for _ in range(8)]
    assert losses[-1] < losses[0]


# Layouts


@pytest.mark.once
def test_a_doubled_depthwise_kernel_keeps_torchs_order():
    theirs = np.arange(4 * 9, dtype=np.float32).reshape(4, 1, 3, 3)  # outputs 0 and 1 read channel 0, 2 and 3 channel 1
    layout = depthwise(2)
    ours = layout.to_ours([theirs])
    assert ours.shape == (3, 3, 2, 2)
    for output in range(4):
        np.testing.assert_array_equal(ours[:, :, output // 2, output % 2], theirs[output, 0])
    np.testing.assert_array_equal(layout.to_theirs(ours)[0], theirs)


@pytest.mark.once
def test_apples_layout_has_no_place_for_a_bias(pairs):
    apple = next(source for source in FORMATS if source.name == "Apple's MobileCLIP with an MCi")
    assert np.abs(array(pairs["mct"].image_encoder.get_layer("head_proj").bias)).max() > 0
    with pytest.raises(ValueError, match="has no bias for this layer"):
        export_tensors(pairs["mct"], apple)
    assert ZERO.to_theirs(np.zeros(3)) == [] and ZERO.to_ours([]) == 0
