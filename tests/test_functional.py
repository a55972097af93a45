"""The builders' models release results early and otherwise behave as Keras' functional models."""

import functools
import weakref

import keras
import numpy as np
import pytest
from golden import make_golden as golden
from helpers import predict
from keras import layers, ops

from clip import ConvNeXt, Pair, Text, create_clip, tokenize
from convnext import Functional, Variant, create_convnext_v2, create_fcmae, create_resnet, feature_maps, keras_internals

pytestmark = pytest.mark.backend

SMALL = Variant(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32))


def classifier():
    model = create_convnext_v2(SMALL, num_classes=3, input_shape=(32, 32, 3))
    model.compile("adamw", "sparse_categorical_crossentropy")
    return model, (np.zeros((2, 32, 32, 3), "float32"), np.zeros(2, "int32"))


def pair():
    text = Text(width=16, heads=2, layers=1)
    model = create_clip(Pair(8, 32, ConvNeXt("convnextv2", "atto"), text), image_size=32)
    model.compile("adamw")
    return model, ({"images": np.zeros((2, 32, 32, 3), "float32"), "tokens": tokenize(["a", "b"], 8)},)


def masked():
    model = create_fcmae(SMALL, input_shape=(64, 64, 3), decoder_dim=8)
    model.compile("adamw")
    return model, (np.zeros((2, 64, 64, 3), "float32"),)


@pytest.mark.only("tensorflow")
@pytest.mark.parametrize(
    "create", [classifier, *(pytest.param(create, marks=pytest.mark.slow) for create in (pair, masked))]
)
def test_a_training_step_is_traced_once_and_again_after_another_compile(create, monkeypatch):
    model, batch = create()
    traced, step = [], model.train_step
    monkeypatch.setattr(model, "train_step", lambda data: traced.append(data) or step(data))
    for _ in range(2):
        model.train_on_batch(*batch)
    assert len(traced) == 1
    model.compile(**({"loss": "sparse_categorical_crossentropy"} if create is classifier else {}), optimizer="sgd")
    model.train_on_batch(*batch)
    assert len(traced) == 2


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="compiles each shape")
@pytest.mark.parametrize("name", ["convnextv2", "resnet"])
def test_an_empty_batch(name):
    model = golden.MODELS[name]()
    for rows in (2, 1, 0):  # TensorFlow traces its function for an open batch size at the second
        images = np.zeros((rows, *model.input_shape[1:]), "float32")
        assert model.predict_on_batch(images).shape == model(images).shape == (rows, model.output_shape[1])


class AddOne(layers.Layer):
    """x + 1; records how many results of such layers are in memory at each call."""

    results = []  # weak references
    in_memory = []

    def call(self, inputs):
        self.in_memory.append(sum(result() is not None for result in self.results))
        outputs = inputs + 1.0
        self.results.append(weakref.ref(outputs))
        return outputs


def chain(kind):
    """Eight layers in a row. The model returns results 1 and 7, and layer 6 reads result 3 too."""
    x = images = keras.Input((4,))
    results = []
    for index in range(8):
        x = AddOne(name=f"add_{index}")(x + results[3] if index == 6 else x)
        results.append(x)
    return kind(images, [results[1], results[7]])


@pytest.mark.parametrize(
    "kind, in_memory", [(keras.Model, [0, 1, 2, 3, 4, 5, 6, 7]), (Functional, [0, 1, 1, 2, 2, 3, 1, 2])]
)
@pytest.mark.only("torch")  # elsewhere models run compiled
def test_results_are_released_after_their_last_reader(kind, in_memory):
    model = chain(kind)
    AddOne.results, AddOne.in_memory = [], []
    second, last = model(np.zeros((2, 4), "float32"))
    assert AddOne.in_memory == in_memory
    assert (ops.convert_to_numpy(second) == 2).all()
    assert (ops.convert_to_numpy(last) == 12).all()


class Noting(layers.Layer):
    """x + 1; records how it is called."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.called = []

    def __call__(self, *args, **kwargs):
        self.called.append("whole")
        return super().__call__(*args, **kwargs)

    def call(self, inputs, training=None):
        self.called.append(training)
        return inputs + 1.0


@pytest.fixture
def by_keras(monkeypatch):
    """Classes of the layers that ran through Keras' `__call__`, in order."""
    keras_internals._masks_are_attributes()  # calls a layer when it is first asked
    called, call = [], layers.Layer.__call__

    @functools.wraps(call)  # so that Keras' own source is found
    def noting(self, *args, **kwargs):
        called.append(type(self).__name__)
        return call(self, *args, **kwargs)

    monkeypatch.setattr(layers.Layer, "__call__", noting)
    return called


def straight(layer, shape=(4,)):
    entry = keras.Input(shape)
    return Functional(entry, layer(entry))


@pytest.mark.only("torch")
def test_layers_of_a_model_are_called_directly(by_keras, rng):
    model = create_convnext_v2(SMALL, 3, (32, 32, 3), drop_path_rate=0.1)
    images = rng.standard_normal((2, 32, 32, 3)).astype("float32")
    for training in (False, True):
        by_keras.clear()
        model(images, training=training)
        assert by_keras == ["Functional"]
    tower = create_clip(Pair(8, 32, ConvNeXt("convnextv2", "atto"), Text(16, 2, 1)), image_size=32).text_encoder
    by_keras.clear()
    tower(tokenize(["a", "b"]))
    assert by_keras == ["Functional"]


@pytest.mark.only("torch")
def test_layers_with_special_features_are_called_by_keras(by_keras, rng):
    x = rng.standard_normal((2, 4)).astype("float32")

    def expect(layer, *names):
        model = layer if isinstance(layer, keras.Model) else straight(layer)
        by_keras.clear()
        model(x)
        assert by_keras == ["Functional", *names]

    expect(layers.Dense(3))
    expect(layers.Dense(3, activity_regularizer="l2"), "Dense")
    expect(layers.Dense(3, dtype="mixed_bfloat16"), "Dense")
    expect(layers.Dense(3, dtype="float64"), "Dense")
    expect(layers.Masking(), "Masking")
    entry = keras.Input((4,))
    expect(Functional(entry, layers.Dense(3)(layers.Masking()(entry[:, None]))), "Masking", "Dense")
    with keras.RematScope("full"):  # the model computes its blocks again by itself: test_checkpoint_activations
        expect(layers.Dense(3))
    with keras.RematScope("list_of_layers", layer_names=["dense"]):
        expect(layers.Dense(3), "Dense")
    quantized = straight(layers.Dense(3))
    quantized.quantize("int8")
    expect(quantized, "Dense")


@pytest.mark.only("torch")
def test_functional_call_takes_the_parameters_of_the_caller(rng):
    import torch

    model = create_convnext_v2(Variant(depths=(1, 1), dims=(4, 8)), 3, (32, 32, 3))
    x = torch.tensor(rng.standard_normal((3, 32, 32, 3)).astype("float32"))
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    before = model(x)
    doubled = {name: 2 * value for name, value in parameters.items()}
    found = torch.func.functional_call(model, doubled, (x,))
    torch.testing.assert_close(model(x), before)
    for variable in model.variables:
        variable.assign(2 * variable.value)
    torch.testing.assert_close(found, model(x))

    def loss(weights, one):
        return torch.func.functional_call(model, weights, (one[None],))[..., 0].sum()

    apart = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(doubled, x)
    whole = torch.autograd.grad(model(x)[..., 0].sum(), list(model.parameters()))
    for (name, _), gradient in zip(model.named_parameters(), whole, strict=True):
        torch.testing.assert_close(apart[name].sum(0), gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.only("torch")
@pytest.mark.once
def test_without_keras_private_parameters_nothing_is_swapped(monkeypatch, rng):
    model = create_convnext_v2(Variant(depths=(1,), dims=(4,)), 3, (16, 16, 3))
    expected = model(ops.ones((1, 16, 16, 3)))
    monkeypatch.delattr(model, "_torch_params")
    assert keras_internals.swapped_values(model) == []
    np.testing.assert_array_equal(model(ops.ones((1, 16, 16, 3))).detach(), expected.detach())


@pytest.mark.only("torch")
def test_hooks_of_torch_see_the_layers(rng):
    import torch

    model = straight(layers.Dense(3))
    seen = []
    model.layers[1].register_forward_hook(lambda *given: seen.append(given[-1]))
    outputs = model(rng.standard_normal((2, 4)).astype("float32"))
    assert seen and seen[0] is outputs
    model = straight(layers.Dense(2))
    everywhere = torch.nn.modules.module.register_module_forward_hook(lambda *given: seen.append(given[0]))
    model(np.zeros((1, 4), "float32"))
    everywhere.remove()
    assert [type(module).__name__ for module in seen[1:]] == ["Dense", "Functional"]


@pytest.mark.only("torch")
def test_without_the_private_attributes_layers_are_called_by_keras(by_keras, rng):
    import torch

    model, x = straight(layers.Dense(3)), rng.standard_normal((2, 4)).astype("float32")
    for change in (
        lambda patch: patch.setattr(keras_internals, "HOOKS", ("_hooks_by_another_name",)),
        lambda patch: patch.delattr(torch.nn.modules.module, "_has_any_global_hook"),
    ):
        by_keras.clear()
        with pytest.MonkeyPatch.context() as patch:
            change(patch)
            model(x)
        assert by_keras == ["Functional", "Dense"]


@pytest.mark.only("torch")
def test_an_overridden_call_is_used(rng):
    layer = Noting()
    model = straight(layer)
    for training in (None, True, False):
        layer.called.clear()
        model(rng.standard_normal((2, 4)).astype("float32"), training=training)
        assert layer.called == ["whole", training]


@pytest.mark.only("torch")
@pytest.mark.parametrize("create", [classifier, pair, masked])
def test_direct_calls_change_nothing(create, monkeypatch):
    """Compare the losses of two training steps and the weights with calls by Keras."""

    def run():
        keras.utils.set_random_seed(0)
        model, batch = create()
        losses = [float(np.ravel(model.train_on_batch(*batch))[0]) for _ in range(2)]
        return [*losses, *(np.asarray(weight) for weight in model.get_weights())]

    ours = run()
    monkeypatch.setattr(keras_internals, "_is_plain", lambda _: False)
    for own, theirs in zip(ours, run(), strict=True):
        np.testing.assert_array_equal(own, theirs)


@pytest.mark.once
def test_keras_treats_it_as_a_functional_model(rng, tmp_path):
    model = create_convnext_v2(SMALL, 10, (32, 32, 3))
    assert isinstance(model, Functional)
    model.save(tmp_path / "model.keras")
    images = rng.standard_normal((2, 32, 32, 3)).astype("float32")
    expected = predict(keras.Model(model.input, model.output), images)
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    for same in (model, keras.models.load_model(tmp_path / "model.keras"), copy):
        assert isinstance(same, Functional)
        np.testing.assert_array_equal(predict(same, images), expected)


@pytest.mark.once
def test_towers_inside_other_models_stay_functional(rng):
    trunk = feature_maps(create_resnet(18, input_shape=(32, 32, 3)))
    assert isinstance(trunk, Functional)
    around = keras.Model(trunk.input, [ops.mean(features, axis=(1, 2)) for features in trunk(trunk.input)])
    assert [output.shape for output in around(rng.standard_normal((2, 32, 32, 3)))] == [
        (2, width) for width in (64, 128, 256, 512)
    ]
