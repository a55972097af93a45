"""The builders' models let go of what nothing reads any more, and are otherwise Keras' functional models."""

import weakref

import keras
import numpy as np
import pytest
from helpers import predict
from keras import layers, ops

from clip import ConvNeXt, Pair, Text, create_clip, tokenize
from convnext import Functional, Variant, create_convnext_v2, create_fcmae, create_resnet, feature_maps

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
@pytest.mark.parametrize("create", [classifier, pair, masked])
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


class AddOne(layers.Layer):
    """x + 1, with a note of how many results of such layers are in memory when it is called."""

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
def test_results_are_let_go_after_their_last_reader(kind, in_memory):
    model = chain(kind)
    AddOne.results, AddOne.in_memory = [], []
    second, last = model(np.zeros((2, 4), "float32"))
    assert AddOne.in_memory == in_memory
    assert (ops.convert_to_numpy(second) == 2).all()
    assert (ops.convert_to_numpy(last) == 12).all()


@pytest.mark.once
def test_it_is_a_functional_model_to_keras(rng, tmp_path):
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
