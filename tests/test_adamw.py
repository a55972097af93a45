"""`convnext.AdamW` updates as Keras' AdamW does; on TensorFlow with one operation per variable."""

import keras
import numpy as np
import pytest
from keras import layers
from keras.ops import convert_to_numpy

from convnext import AdamW

pytestmark = pytest.mark.backend

BATCHES = 6
COMPILES = keras.backend.backend() != "torch"


def train(optimizer, **compilation):
    """Return a small model after a few steps on fixed batches."""
    keras.utils.set_random_seed(1)
    model = keras.Sequential([layers.Input((4,)), layers.Dense(7), layers.Dense(2)])
    model.compile(optimizer, "mse", **compilation)
    rng = np.random.default_rng(2)
    x, y = (rng.standard_normal((8 * BATCHES, width)) for width in (4, 2))
    model.fit(x, y, 8, shuffle=False, verbose=0)
    return model


def assert_same_training(model, other):
    """Compare weights, moments, averages and step count up to rounding."""
    assert int(convert_to_numpy(model.optimizer.iterations)) == int(convert_to_numpy(other.optimizer.iterations)) > 0
    for variable, expected in zip(variables(model), variables(other), strict=True):
        np.testing.assert_allclose(
            convert_to_numpy(variable), convert_to_numpy(expected), rtol=1e-4, atol=1e-6, err_msg=variable.path
        )


def variables(model):
    return [*model.variables, *model.optimizer.variables]


def update(optimizer, gradient):
    """Return a variable after three updates by TensorFlow, and the operation types of the graph."""
    import tensorflow as tf

    variable = keras.Variable(np.ones((3, 2), "float32"))
    optimizer.build([variable])
    function = tf.function(lambda: optimizer.apply([gradient], [variable]))
    for _ in range(3):
        function()
    operations = function.get_concrete_function().graph.get_operations()
    return convert_to_numpy(variable), {operation.type for operation in operations}


on_tensorflow = pytest.mark.only("tensorflow")  # elsewhere the update is Keras' own


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"weight_decay": 0.3, "beta_1": 0.8, "beta_2": 0.95, "epsilon": 1e-3}, marks=on_tensorflow),
        pytest.param({"global_clipnorm": 0.05}, marks=on_tensorflow),
        pytest.param({"use_ema": True, "ema_momentum": 0.9, "ema_overwrite_frequency": 2}, marks=on_tensorflow),
        pytest.param({"gradient_accumulation_steps": 2}, marks=on_tensorflow),
        pytest.param(
            {"learning_rate": keras.optimizers.schedules.CosineDecay(0.0, 5, warmup_target=0.1, warmup_steps=2)},
            marks=on_tensorflow,
        ),
        pytest.param({"amsgrad": True}, marks=on_tensorflow),
    ],
    ids=lambda options: ",".join(options) or "default",
)
def test_updates_match_keras(options):
    options = {"learning_rate": 0.03, **options}
    models = [train(kind(**options)) for kind in (AdamW, keras.optimizers.AdamW)]
    assert_same_training(*models)


@on_tensorflow
@pytest.mark.parametrize("compilation", [{"jit_compile": COMPILES}, {"run_eagerly": True}], ids=["jit", "eager"])
def test_updates_match_keras_eager_and_compiled(compilation):
    models = [train(kind(0.03), **compilation) for kind in (AdamW, keras.optimizers.AdamW)]
    assert_same_training(*models)


@on_tensorflow
def test_excluded_variables_do_not_decay():
    models = []
    for kind in (AdamW, keras.optimizers.AdamW):
        optimizer = kind(0.03, weight_decay=0.5)
        optimizer.exclude_from_weight_decay(var_names=["bias"])
        models.append(train(optimizer))
    assert_same_training(*models)


@on_tensorflow
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "bfloat16"])
def test_updates_below_float32(policy):
    keras.config.set_dtype_policy(policy)
    optimizer = AdamW(0.03)
    model = train(keras.optimizers.LossScaleOptimizer(optimizer, 8.0) if policy == "mixed_float16" else optimizer)
    assert int(convert_to_numpy(optimizer.iterations)) == BATCHES
    assert all(
        np.isfinite(convert_to_numpy(keras.ops.cast(variable, "float32"))).all() for variable in variables(model)
    )


@on_tensorflow
def test_training_resumes_from_a_saved_model(tmp_path):
    model = train(AdamW(0.03))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert type(again.optimizer) is AdamW
    assert_same_training(again, model)
    x, y = np.ones((8, 4)), np.zeros((8, 2))
    for each in (model, again):
        each.train_on_batch(x, y)
    assert_same_training(again, model)


def test_it_is_a_keras_adamw():
    assert isinstance(AdamW(), type(keras.optimizers.AdamW()))  # on torch a subclass, which is faster


@pytest.mark.only("tensorflow")
def test_an_update_is_one_operation_except_with_amsgrad(rng):
    gradient = rng.standard_normal((3, 2)).astype("float32")
    for options, kind in (({}, AdamW), ({"amsgrad": True}, AdamW), ({}, keras.optimizers.AdamW)):
        _, operations = update(kind(**options), gradient)
        assert ("ResourceApplyAdam" in operations) == (kind is AdamW and not options)


@pytest.mark.only("tensorflow")
def test_repeated_rows_of_a_sparse_gradient_are_summed(rng):
    import tensorflow as tf

    values = rng.standard_normal((3, 2)).astype("float32")
    rows = tf.IndexedSlices(tf.constant(values), tf.constant([2, 0, 2]), tf.constant([3, 2]))
    whole = np.stack([values[1], np.zeros(2, "float32"), values[0] + values[2]])
    np.testing.assert_array_equal(update(AdamW(0.03), rows)[0], update(AdamW(0.03), whole)[0])
    np.testing.assert_allclose(update(keras.optimizers.AdamW(0.03), whole)[0], update(AdamW(0.03), whole)[0], rtol=1e-6)


@pytest.mark.only("tensorflow")
def test_updates_match_keras_under_a_strategy():
    import tensorflow as tf

    models = []
    for kind in (AdamW, keras.optimizers.AdamW):
        with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
            models.append(train(kind(0.03)))
    assert_same_training(*models)
