"""The optimizer: what decays, and what happens around an update. Steps are Keras' own, so each backend runs its own."""

import keras
import numpy as np
import pytest

from clip import VARIANTS, Pair, Text, create_clip
from clip.layers import TokenEmbedding
from clip.variants import ConvNeXt, ViT
from convnext import Variant
from zoo.training.optimizer import GROWTH_STEPS, NO_WEIGHT_DECAY, SkipNonFinite, create_optimizer

pytestmark = pytest.mark.backend

TEXT = Text(width=16, heads=2, layers=1)
PAIRS = {
    "convnextv2": Pair(8, 32, ConvNeXt("convnextv2", Variant((1, 1), (8, 16))), TEXT),
    "vit": Pair(8, 32, ViT(16, 1, 16, head_width=8), TEXT),
}


def network(build=True, **options):
    """y = w x + b on one number, compiled with a guard around plain gradient descent."""
    inputs = keras.Input((1,))
    model = keras.Model(inputs, keras.layers.Dense(1, kernel_initializer="ones", name="dense")(inputs))
    model.compile(SkipNonFinite(keras.optimizers.SGD(0.1), **options), loss="mse", auto_scale_loss=False)
    if build:
        model.optimizer.build(model.trainable_variables)
    return model


def step(model, x):
    model.train_on_batch(np.array([[x]], np.float32), np.zeros((1, 1), np.float32))


def values(model):
    return [keras.ops.convert_to_numpy(v).copy() for v in model.trainable_variables]


def number(variable):
    return float(keras.ops.convert_to_numpy(variable))


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.wide
def test_gains_offsets_embeddings_and_temperature_do_not_decay(kind):
    model = create_clip(PAIRS[kind], init_logit_bias=-10.0)
    for variable in model.trainable_variables:
        decays = not any(name in variable.name for name in NO_WEIGHT_DECAY)
        assert decays == (variable.name in ("kernel", "projection")), variable.path
        if len(variable.shape) < 2:
            assert not decays, variable.path
    assert VARIANTS  # the rows of the table are made of the same towers


def test_finite_updates_are_unchanged():
    guarded = network()
    inputs = keras.Input((1,))
    plain = keras.Model(inputs, keras.layers.Dense(1, kernel_initializer="ones")(inputs))
    plain.compile(keras.optimizers.SGD(0.1), loss="mse")
    for x in (1.0, 2.0, -0.5):
        step(guarded, x)
        step(plain, x)
    assert all(np.array_equal(*pair) for pair in zip(values(guarded), values(plain), strict=True))
    assert number(guarded.optimizer.iterations) == 3
    assert number(guarded.optimizer.skipped) == 0


@pytest.mark.parametrize(
    ("embedding", "optimizer"), [(keras.layers.Embedding, SkipNonFinite), (TokenEmbedding, lambda plain: plain)]
)
def test_the_gradient_of_a_repeated_token_is_one_sum(embedding, optimizer):
    """Its norm and its square too: an embedding learns as the product with one-hot rows that it is."""
    tokens = np.array([[1, 1, 1, 2], [1, 2, 3, 3]], np.int32)
    targets = np.array([[1.0, -1.0], [0.5, 2.0]], np.float32)
    learned = []
    for layer, inputs in (
        (embedding(4, 2, embeddings_initializer="ones"), tokens),
        (keras.layers.Dense(2, use_bias=False, kernel_initializer="ones"), np.eye(4)[tokens]),
    ):
        x = keras.Input(inputs.shape[1:], dtype=inputs.dtype.name)
        model = keras.Model(x, keras.layers.GlobalAveragePooling1D()(layer(x)))
        model.compile(optimizer(keras.optimizers.Adam(0.1, global_clipnorm=1e-3)), loss="mse", auto_scale_loss=False)
        for _ in range(3):
            model.train_on_batch(inputs, targets)
        learned += values(model)
    np.testing.assert_allclose(*learned, rtol=1e-5)


@pytest.mark.wide
def test_the_loss_scale_is_the_same_before_the_optimizer_is_built():
    models = [network(build=build, initial_scale=8.0) for build in (True, False)]
    for model in models:
        step(model, 1.0)
        step(model, 2.0)
    for early, late in zip(*map(values, models), strict=True):
        np.testing.assert_array_equal(early, late)


@pytest.mark.parametrize("bad", [np.nan, pytest.param(np.inf, marks=pytest.mark.wide)])
def test_a_non_finite_update_is_skipped_and_counted(bad):
    model = network()
    step(model, 1.0)
    before = values(model)
    state = [keras.ops.convert_to_numpy(v).copy() for v in model.optimizer.inner.variables]
    for count in (1, 2):
        step(model, bad)
        assert number(model.optimizer.skipped) == number(model.optimizer.in_a_row) == count
    assert all(np.array_equal(*pair) for pair in zip(values(model), before, strict=True))
    after = [keras.ops.convert_to_numpy(v) for v in model.optimizer.inner.variables]
    assert all(np.array_equal(*pair) for pair in zip(after, state, strict=True))
    step(model, 1.0)
    assert number(model.optimizer.skipped) == 2 and number(model.optimizer.in_a_row) == 0
    assert not np.array_equal(values(model)[0], before[0])


def test_the_loss_scale_cancels_and_is_halved(monkeypatch):
    plain, scaled = network(), network(initial_scale=8.0)
    for x in (1.0, 2.0):
        step(plain, x)
        step(scaled, x)
    assert all(np.array_equal(*pair) for pair in zip(values(plain), values(scaled), strict=True))
    guard = scaled.optimizer
    for scale, in_a_row in ((4, 0), (2, 0), (1, 0), (1, 1), (1, 2)):
        step(scaled, np.nan)
        assert (number(guard.scale), number(guard.in_a_row)) == (scale, in_a_row)
    guard.good_steps.assign(GROWTH_STEPS - 1)
    step(scaled, 1.0)
    assert number(guard.scale) == 2


def test_the_ema_follows_the_weights():
    model = network(ema=0.9)
    expected = values(model)
    for t, x in enumerate((1.0, 2.0, -1.0), 1):
        step(model, x)
        kept = min(0.9, (1 + t) / (10 + t))
        expected = [kept * e + (1 - kept) * v for e, v in zip(expected, values(model), strict=True)]
    weights = values(model)
    with model.optimizer.averaged():
        for got, want in zip(values(model), expected, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-6)
    assert all(np.array_equal(*pair) for pair in zip(values(model), weights, strict=True))
    step(model, np.nan)
    with model.optimizer.averaged():
        np.testing.assert_allclose(values(model)[0], expected[0], rtol=1e-6)


@pytest.mark.wide
def test_the_schedule_warms_up_and_ends_at_zero():
    optimizer = create_optimizer(1.0, 10, warmup_steps=4)
    rates = [number(optimizer.learning_rate if not s else optimizer._learning_rate(s)) for s in range(11)]
    np.testing.assert_allclose(rates[:5], [0, 0.25, 0.5, 0.75, 1])
    assert rates[10] == pytest.approx(0, abs=1e-7) and rates == sorted(rates[:5]) + sorted(rates[5:], reverse=True)
    assert number(create_optimizer(1.0, 10).learning_rate) == 1
    with pytest.raises(ValueError, match="warmup_steps=11; it must be between 0 and the 10 steps"):
        create_optimizer(1.0, 10, warmup_steps=11)


def test_a_factor_scales_the_learning_rate():
    """Adam divides gradients by their own size, so that only updates can be scaled; decay is scaled with them."""

    def trained(rate, **options):
        inputs = keras.Input((1,))
        model = keras.Model(inputs, keras.layers.Dense(1, kernel_initializer="ones", name="dense")(inputs))
        optimizer = keras.optimizers.AdamW(rate, weight_decay=0.5)
        model.compile(SkipNonFinite(optimizer, **options), loss="mse", auto_scale_loss=False)
        model.optimizer.build(model.trainable_variables)
        step(model, 1.0)  # one step, after which the weights of both differ and so would the gradients
        return values(model)

    (kernel, bias), (slow_kernel, _) = trained(0.1), trained(0.025)
    mixed = trained(0.1, factors=[0.25, 1.0])
    np.testing.assert_allclose(mixed[0], slow_kernel, rtol=1e-6)
    assert np.array_equal(mixed[1], bias) and abs(mixed[0] - kernel) > 0.1 * abs(slow_kernel - 1)
    with pytest.raises(ValueError, match="3 factors for 2 variables"):
        trained(0.1, factors=[1.0, 1.0, 1.0])


@pytest.mark.wide
def test_the_optimizer_is_rebuilt_from_its_config():
    guard = SkipNonFinite(keras.optimizers.SGD(0.1), initial_scale=2.0, ema=0.5, factors=[1.0, 0.5])
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(guard))
    assert isinstance(again.inner, keras.optimizers.SGD)
    assert again.get_config() == guard.get_config()
    with pytest.raises(ValueError, match="ema=1"):
        SkipNonFinite("sgd", ema=1.0)
