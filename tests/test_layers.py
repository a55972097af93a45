"""GRN, LayerScale, the depthwise convolution, Dense, the initialiser and drop path, each against its formula."""

import functools

import keras
import numpy as np
import pytest
from helpers import gradients
from keras import ops

from convnext import GRN, Conv2D, Dense, DepthwiseConv2D, LayerScale, Normal, drop_path
from convnext.kernels import torch_cpu
from convnext.kernels.jax_cpu import effective_taps
from convnext.kernels.reference import safe_sqrt
from convnext.kernels.torch_cpu import as_matrix, product

pytestmark = pytest.mark.backend
wide = pytest.mark.wide  # tests/test_kernels.py compares each form with the reference on every backend

HALF = ("float16", "bfloat16")


def grn_formula(x, gamma, beta, epsilon=1e-6):
    response = np.sqrt((x.astype(np.float64) ** 2).sum(axis=(1, 2), keepdims=True))
    return gamma * (x * response / (response.mean(axis=-1, keepdims=True) + epsilon)) + beta + x


def built(layer, x, rng):
    layer.build(x.shape)
    for weight in layer.weights:
        weight.assign(rng.standard_normal(weight.shape).astype("float32"))
    return layer


def test_grn_matches_the_papers_formula(rng):
    x = rng.standard_normal((2, 5, 3, 8)).astype("float32")
    layer = built(GRN(), x, rng)
    expected = grn_formula(x, *(ops.convert_to_numpy(weight) for weight in (layer.gamma, layer.beta)))
    np.testing.assert_allclose(ops.convert_to_numpy(layer(x)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.once
def test_grn_starts_as_the_identity(rng):
    x = rng.standard_normal((2, 4, 4, 8)).astype("float32")
    np.testing.assert_array_equal(ops.convert_to_numpy(GRN()(x)), x)


def test_grn_epsilon_matters(rng):
    x = rng.standard_normal((1, 4, 4, 8)).astype("float32")
    small, large = built(GRN(), x, rng), GRN(epsilon=10.0)
    large.build(x.shape)
    large.set_weights(small.get_weights())
    assert np.abs(ops.convert_to_numpy(small(x) - large(x))).max() > 0.1


def test_grn_gradient_is_finite_at_a_zero_channel_and_right_elsewhere(rng):
    x = rng.standard_normal((1, 4, 4, 3)).astype("float32")
    x[..., 1] = 0.0
    layer = built(GRN(), x, rng)
    variable = keras.Variable(x)
    (gradient,) = gradients(lambda: ops.sum(layer(variable.value) ** 2), [variable])
    assert np.isfinite(gradient).all()
    weights = [ops.convert_to_numpy(weight).astype(np.float64) for weight in (layer.gamma, layer.beta)]
    step = np.zeros(x.shape)
    step[0, 1, 2, 0] = 1e-4
    above, below = ((grn_formula(x + sign * step, *weights) ** 2).sum() for sign in (1, -1))
    assert gradient[0, 1, 2, 0] == pytest.approx((above - below) / 2e-4, rel=1e-3)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("policy", ["mixed_{}", pytest.param("{}", marks=wide)])
def test_grn_computes_in_float32_under_half_policies(rng, policy, dtype):
    policy = policy.format(dtype)
    x = (100 * rng.standard_normal((1, 56, 56, 4))).astype(
        "float32"
    )  # Σ x² over the map is 300 times float16's largest
    layer = GRN(dtype=policy)
    layer.build(x.shape)
    layer.gamma.assign(np.ones(4))
    result = layer(ops.cast(x, dtype))
    assert keras.backend.standardize_dtype(result.dtype) == dtype
    expected = grn_formula(ops.convert_to_numpy(ops.cast(ops.cast(x, dtype), "float32")), 1.0, 0.0)
    resolution = {"float16": 2**-10, "bfloat16": 2**-7}[dtype]
    np.testing.assert_allclose(ops.convert_to_numpy(ops.cast(result, "float32")), expected, rtol=resolution)


def test_safe_sqrt_forward_is_sqrt(rng):
    x = np.abs(rng.standard_normal(1000)).astype("float32")
    np.testing.assert_array_equal(ops.convert_to_numpy(safe_sqrt(x)), ops.convert_to_numpy(ops.sqrt(x)))
    assert ops.convert_to_numpy(safe_sqrt(np.zeros(1, "float32"))) == 0


def test_layer_scale(rng):
    x = rng.standard_normal((2, 3, 3, 4)).astype("float32")
    np.testing.assert_allclose(ops.convert_to_numpy(LayerScale(0.25)(x)), x / 4)
    assert LayerScale.from_config(LayerScale(0.25).get_config()).init_value == 0.25


@pytest.mark.parametrize(
    "shape",
    [(2, 9, 6, 5), (1, 56, 56, 8), *(pytest.param(s, marks=wide) for s in ((1, 1, 1, 3), (3, 2, 2, 4), (2, 5, 17, 3)))],
)
def test_depthwise_matches_keras_with_gradients(rng, shape):
    x = keras.Variable(rng.standard_normal(shape).astype("float32"))
    layers = [
        cls(7, padding="same", data_format="channels_last") for cls in (DepthwiseConv2D, keras.layers.DepthwiseConv2D)
    ]
    built(layers[0], x, rng)
    layers[1].build(shape)
    layers[1].set_weights(layers[0].get_weights())
    ours, theirs = (ops.convert_to_numpy(layer(x.value)) for layer in layers)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())
    target = ops.convert_to_tensor(rng.standard_normal(shape).astype("float32"))
    for own, reference in zip(
        *(
            gradients(lambda call=layer: ops.sum(target * call(x.value)), [x, *layer.trainable_variables])
            for layer in layers
        ),
        strict=True,
    ):
        np.testing.assert_allclose(own, reference, rtol=1e-4, atol=1e-4 * np.abs(reference).max())


@pytest.mark.once
def test_taps_that_read_only_padding_are_skipped():
    assert effective_taps((7, 7, 4), (1, 2, 9, 4)) == (slice(2, 5), slice(0, 7))
    assert effective_taps((7, 5, 4), (1, 1, 2, 4)) == (slice(3, 4), slice(1, 4))
    assert effective_taps((3, 3, 4), (1, 7, 7, 4)) == (slice(0, 3), slice(0, 3))


@pytest.mark.only("jax")  # its gradient is ours
def test_depthwise_has_second_gradients(rng):
    import jax

    layers = [cls(7, padding="same", use_bias=False) for cls in (DepthwiseConv2D, keras.layers.DepthwiseConv2D)]
    x, kernel = rng.standard_normal((2, 9, 8, 4)), rng.standard_normal((7, 7, 4, 1))
    for layer in layers:
        layer.build(x.shape)

    def penalty(layer, x, kernel):
        def loss(x, kernel):
            return ops.sum(layer.stateless_call([kernel], [], x)[0] ** 3)

        return sum(ops.sum(gradient**2) for gradient in jax.grad(loss, (0, 1))(x, kernel))

    ours, theirs = (
        jax.jit(jax.grad(functools.partial(penalty, layer), (0, 1)))(np.float32(x), np.float32(kernel))
        for layer in layers
    )
    for own, reference in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(own, reference, rtol=1e-4, atol=1e-4 * np.abs(reference).max())


@pytest.mark.parametrize(
    "options",
    [
        {"strides": 2},
        {"dilation_rate": 2},
        *(
            pytest.param(options, marks=wide)
            for options in ({"depth_multiplier": 2}, {"padding": "valid"}, {"activation": "relu"}, {"use_bias": False})
        ),
    ],
    ids=str,
)
def test_depthwise_options_match_keras(rng, options):
    x = rng.standard_normal((2, 12, 12, 4)).astype("float32")
    options = {"padding": "same", "data_format": "channels_last", **options}
    ours, theirs = DepthwiseConv2D(3, **options), keras.layers.DepthwiseConv2D(3, **options)
    built(ours, x, rng)
    theirs.build(x.shape)
    theirs.set_weights(ours.get_weights())
    expected = ops.convert_to_numpy(theirs(x))
    np.testing.assert_allclose(ops.convert_to_numpy(ours(x)), expected, rtol=1e-4, atol=1e-4)


CONVOLUTIONS = {  # kernel size, options
    "patches": (2, {"strides": 2}),  # 9 × 8: the last row is not a whole patch
    "patches, no bias": (4, {"strides": 4, "use_bias": False}),
    "oblong patches": ((2, 4), {"strides": (2, 4)}),
    "1x1": (1, {}),
    "1x1, same": (1, {"padding": "same"}),
    "1x1, strides": (1, {"strides": 2, "padding": "same"}),
    "1x1, groups": (1, {"groups": 2}),
    "same": (3, {"padding": "same"}),
    "valid": (3, {}),
    "strides": (3, {"strides": 2}),
    "groups": (3, {"groups": 2, "padding": "same"}),
    "same, even": (4, {"padding": "same"}),
    "same, strides": (3, {"padding": "same", "strides": 2}),
    "dilated": (3, {"dilation_rate": 2}),
    "activation": (2, {"strides": 2, "activation": "relu"}),
}


EVERYWHERE = ("patches", "1x1, groups", "same, strides", "activation")


@pytest.mark.parametrize(
    "form", [pytest.param(form, marks=() if form in EVERYWHERE else wide) for form in CONVOLUTIONS]
)
def test_convolutions_and_gradients_match_keras(rng, form):
    size, options = CONVOLUTIONS[form]
    x = keras.Variable(rng.standard_normal((2, 9, 8, 4)).astype("float32"))
    layers = [cls(6, size, data_format="channels_last", **options) for cls in (Conv2D, keras.layers.Conv2D)]
    built(layers[0], x, rng)
    layers[1].build(x.shape)
    layers[1].set_weights(layers[0].get_weights())
    ours, theirs = (ops.convert_to_numpy(layer(x.value)) for layer in layers)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    target = ops.convert_to_tensor(rng.standard_normal(theirs.shape).astype("float32"))
    found, expected = (
        gradients(lambda call=layer: ops.sum(target * call(x.value)), [x, *layer.trainable_variables])
        for layer in layers
    )
    for own, reference in zip(found, expected, strict=True):
        np.testing.assert_allclose(own, reference, rtol=1e-4, atol=1e-4)


def test_convolutions_take_any_batch_and_any_sides(rng):
    for size, strides in ((2, 2), (1, 1), (1, 2), (3, 1)):
        entry = keras.Input((None, None, 3))
        model = keras.Model(entry, Conv2D(5, size, strides=strides)(entry))
        for batch, height, width in ((1, 8, 6), (3, 7, 9)):
            x = rng.standard_normal((batch, height, width, 3)).astype("float32")
            expected = keras.layers.Conv2D.call(model.layers[1], ops.convert_to_tensor(x))
            found = model.predict(x, verbose=0)
            np.testing.assert_allclose(found, ops.convert_to_numpy(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", pytest.param("bfloat16", marks=wide)])
def test_depthwise_half_precision(rng, policy):
    x = rng.standard_normal((2, 8, 8, 4)).astype("float32")
    full = built(DepthwiseConv2D(7, padding="same"), x, rng)
    half = DepthwiseConv2D(7, padding="same", dtype=policy)
    half.build(x.shape)
    half.set_weights([ops.cast(weight, half.variable_dtype) for weight in full.weights])
    result, expected = ops.cast(half(x), "float32"), ops.convert_to_numpy(full(x))
    np.testing.assert_allclose(ops.convert_to_numpy(result), expected, atol=0.02 * np.abs(expected).max())


@pytest.mark.parametrize("activation", [pytest.param("tanh", marks=wide), "gelu"])
@pytest.mark.parametrize("shape", [pytest.param((3, 4), marks=wide), (2, 5, 4), pytest.param((2, 3, 5, 4), marks=wide)])
def test_dense_matches_keras(rng, shape, activation):
    x = 3.0 * rng.standard_normal(shape).astype("float32")
    ours, theirs = Dense(6, activation=activation), keras.layers.Dense(6, activation=activation)
    built(ours, x, rng)
    theirs.build(shape)
    theirs.set_weights(ours.get_weights())
    np.testing.assert_allclose(ops.convert_to_numpy(ours(x)), ops.convert_to_numpy(theirs(x)), rtol=1e-4, atol=1e-5)


@pytest.mark.only("tensorflow")
@pytest.mark.parametrize("activation", [None, "tanh", "gelu"])
@pytest.mark.parametrize("units", [3, 6])  # narrower than the input, wider
def test_dense_first_and_second_gradients_match_keras_in_training(rng, units, activation):
    import tensorflow as tf

    x = tf.constant(2.0 * rng.standard_normal((2, 5, 4)).astype("float32"))
    weight = rng.standard_normal((2, 5, units)).astype("float32")
    layers = [kind(units, activation=activation) for kind in (Dense, keras.layers.Dense)]
    built(layers[0], x, rng)
    layers[1].build(x.shape)
    layers[1].set_weights(layers[0].get_weights())

    def derivatives(layer):
        variables = [x, *(variable.value for variable in layer.trainable_variables)]
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                outputs = layer(x, training=True)
                total = tf.reduce_sum(weight * outputs)
            first = inner.gradient(total, variables)
            squares = tf.add_n([tf.reduce_sum(tf.square(gradient)) for gradient in first])
        return [outputs, *first, *outer.gradient(squares, variables[:2])]

    for ours, theirs in zip(*map(derivatives, layers), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.fixture(params=["AVX512", "AVX2", "DEFAULT"])
def processor(request, monkeypatch):
    """A processor that torch claims to run on: it decides the library, not the results."""
    import torch

    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: request.param)
    monkeypatch.setattr(torch_cpu, "is_intel", lambda: False)
    torch_cpu.onednn_rows.cache_clear()
    yield request.param
    torch_cpu.onednn_rows.cache_clear()


@pytest.mark.only("torch")
def test_the_processor_decides_the_library_of_a_product(processor):
    few, many = 8 in torch_cpu.onednn_rows(), 33 in torch_cpu.onednn_rows()
    assert (few, many) == {"AVX512": (True, True), "AVX2": (True, False), "DEFAULT": (False, False)}[processor]
    assert 7 not in torch_cpu.onednn_rows()


@pytest.mark.only("torch")
def test_intels_processors_use_mkl(processor, monkeypatch):  # noqa: ARG001 (the fixture clears the cache)
    monkeypatch.setattr(torch_cpu, "is_intel", lambda: True)
    torch_cpu.onednn_rows.cache_clear()
    assert len(torch_cpu.onednn_rows()) == 0


@pytest.mark.only("torch")
@pytest.mark.parametrize("rows", [3, 12])  # too few for oneDNN, enough
def test_products_with_gelu_with_and_without_gradients(rows, processor):
    import torch

    torch.manual_seed(0)
    x, kernel, bias = torch.randn(rows, 5), torch.randn(5, 7), torch.randn(7)
    expected = torch.nn.functional.gelu(torch.addmm(bias, x, kernel))
    for is_trained in (False, True):
        outputs = product(x, kernel.requires_grad_(is_trained), bias, gelu=True)
        assert outputs.requires_grad is is_trained
        torch.testing.assert_close(outputs.detach(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.only("torch")
@pytest.mark.parametrize("sizes", [(12, 5, 7), (12, 7, 5), (3, 5, 7)])  # wider, narrower, too few rows for oneDNN
def test_products_first_and_second_gradients_match_torch(sizes, processor):
    import torch

    rows, width, units = sizes
    torch.manual_seed(0)
    arguments = [torch.randn(shape, requires_grad=True) for shape in ((rows, width), (width, units), (units,))]
    weight = torch.randn(rows, units)

    def derivatives(multiply):
        outputs = multiply(*arguments)
        first = torch.autograd.grad((outputs * weight).sum(), arguments, create_graph=True)
        second = torch.autograd.grad(sum((gradient**2).sum() for gradient in first), arguments[:2])
        return [outputs, *first, *second]

    expected = derivatives(lambda x, kernel, bias: torch.addmm(bias, x, kernel))
    torch.testing.assert_close(derivatives(product), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.only("torch")
def test_products_of_expanded_and_sliced_matrices():
    import torch

    kernel = torch.randn(5, 7)
    for x in (torch.ones(()).expand(12, 5), torch.randn(24, 10)[::2, ::2], torch.randn(5, 12).t()):
        strides = as_matrix(x).stride()
        assert 1 in strides and 0 not in strides
        torch.testing.assert_close(product(x, kernel), x @ kernel)
    assert as_matrix(kernel) is kernel


@pytest.mark.once
def test_dense_keeps_unknown_sizes():
    inputs = keras.Input((None, None, 4))
    assert Dense(6)(inputs).shape == (None, None, None, 6)


def test_normal_is_seeded_and_scaled():
    keras.utils.set_random_seed(1)
    first = ops.convert_to_numpy(Normal(0.02)((1000, 100)))
    again = ops.convert_to_numpy(Normal(0.02)((1000, 100)))
    keras.utils.set_random_seed(1)
    same = ops.convert_to_numpy(Normal(0.02)((1000, 100)))
    np.testing.assert_array_equal(first, same)
    assert np.abs(first - again).max() > 0.01
    assert first.std() == pytest.approx(0.02, rel=0.01)
    np.testing.assert_array_equal(*(ops.convert_to_numpy(Normal(1.0, seed=7)((4,))) for _ in range(2)))


def test_normal_is_the_same_on_every_backend():
    expected = np.random.default_rng(7).standard_normal((5,), np.float32) * np.float32(0.02)
    np.testing.assert_array_equal(ops.convert_to_numpy(Normal(0.02, seed=7)((5,))), expected)


def test_drop_path_drops_whole_samples_and_scales_the_rest():
    layer = drop_path(0.25, "path")
    result = ops.convert_to_numpy(layer(np.ones((400, 2, 2, 3), "float32"), training=True)).reshape(400, -1)
    assert (result.min(axis=1) == result.max(axis=1)).all()
    np.testing.assert_allclose(np.unique(result), [0.0, 1 / 0.75], rtol=1e-6)
    assert (result[:, 0] == 0).mean() == pytest.approx(0.25, abs=0.08)
    np.testing.assert_array_equal(ops.convert_to_numpy(layer(np.ones((4, 2, 2, 3), "float32"), training=False)), 1)
