"""The compiled predictor equals `model.predict` for any number of rows, on each backend."""

import keras
import numpy as np
import pytest

from convnext import Variant, create_convnext_v2
from zoo import create_predictor

pytestmark = pytest.mark.backend

ROW = Variant(depths=(1, 1), dims=(8, 16))


@pytest.fixture
def model():
    return create_convnext_v2(ROW, 5, (16, 16, 3))


@pytest.fixture
def images(rng):
    return rng.standard_normal((10, 16, 16, 3)).astype("float32")


@pytest.fixture
def uncompiled(monkeypatch):
    """Skip torch's compiler, which takes as long as all other tests here; `test_torch_compile` runs it."""
    if keras.backend.backend() == "torch":
        import torch

        monkeypatch.setattr(torch, "compile", lambda function: function)


def test_predictor_equals_predict_for_any_number_of_rows(model, images, uncompiled):
    predictor = create_predictor(model, batch_size=4)
    expected = model.predict(images, verbose=0)
    for count in (10, 4, 1):
        found = predictor(images[:count])
        assert (found.shape, found.dtype) == ((count, 5), np.float32)
        np.testing.assert_allclose(found, expected[:count], atol=1e-6)


def test_predictor_follows_the_weights(model, images, uncompiled):
    predictor = create_predictor(model, batch_size=4)
    before = predictor(images)
    model.set_weights([weight + 0.1 for weight in model.get_weights()])
    after = predictor(images)
    assert abs(after - before).max() > 1e-3
    np.testing.assert_allclose(after, model.predict(images, verbose=0), atol=1e-6)


def test_another_number_of_rows_is_not_traced_again(images, uncompiled):
    traced = []

    class Recorder(keras.layers.Layer):
        def call(self, inputs):
            traced.append(inputs.shape)
            return 2 * inputs

    entry = keras.Input((16, 16, 3))
    predictor = create_predictor(keras.Model(entry, Recorder()(entry)), batch_size=4)
    predictor(images)
    before = len(traced)
    for count in (1, 7, 4, 10):
        np.testing.assert_array_equal(predictor(images[:count]), 2 * images[:count])
    assert len(traced) == before > 0


def test_invalid_arguments_are_refused(model, images):
    with pytest.raises(ValueError, match="batch_size must be positive, got 0"):
        create_predictor(model, 0)
    with pytest.raises(ValueError, match=r"the array has shape \(0, 16, 16, 3\); at least one row"):
        create_predictor(model)(images[:0])
    two = keras.Model(model.inputs, [model.outputs[0]] * 2, name="two")
    with pytest.raises(ValueError, match="'two' has 1 inputs and 2 outputs"):
        create_predictor(two)


@pytest.mark.only("torch")
def test_torch_runs_uncompiled_without_a_compiler(model, images, monkeypatch):
    import torch

    def no_compiler(_):
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(torch, "compile", no_compiler)
    predictor = create_predictor(model, batch_size=4)
    with pytest.warns(UserWarning, match="runs uncompiled. RuntimeError: No working"):
        found = predictor(images)
    np.testing.assert_allclose(found, model.predict(images, verbose=0), atol=1e-6)
    assert len(predictor(images)) == 10  # without another attempt


@pytest.mark.slow
@pytest.mark.only("torch")
def test_torch_compile(model, images, recwarn):
    predictor = create_predictor(model, batch_size=4)
    np.testing.assert_allclose(predictor(images), model.predict(images, verbose=0), atol=1e-5)
    assert not [warning for warning in recwarn if "uncompiled" in str(warning.message)]
