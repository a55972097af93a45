"""The five ways to begin that the project promised: they stay true word for word, on every backend."""

import keras
import numpy as np
import pytest

from convnext_v1 import create_convnext_v1
from convnext_v2 import create_convnext_v2

pytestmark = pytest.mark.backend


@pytest.fixture
def unallocated():
    """Models made in this scope have shapes and counts but no memory: enough for a look at a large one."""
    with keras.StatelessScope(initialize_variables=False):
        yield


def test_standard_model_for_imagenet(unallocated, capsys):
    model = create_convnext_v1(variant="base", num_classes=1000)

    model.summary()

    assert model.input_shape == (None, 224, 224, 3)
    assert model.output_shape == (None, 1000)
    assert "88,591,464" in capsys.readouterr().out


def test_custom_data_of_32_by_32(capsys):
    cifar_model = create_convnext_v2(variant="tiny", num_classes=10, input_shape=(32, 32, 3))

    cifar_model.summary()

    assert cifar_model.output_shape == (None, 10)
    assert cifar_model.get_layer("stages_3_blocks_2_out").output.shape == (None, 4, 4, 768)
    assert "27,874,186" in capsys.readouterr().out


def test_micro_variant(capsys):
    pico_model = create_convnext_v2(variant="pico", num_classes=100, input_shape=(96, 96, 3))

    print(f"Pico model params: {pico_model.count_params():,}")

    assert capsys.readouterr().out == "Pico model params: 8,604,580\n"


def test_feature_extractor(unallocated, capsys):
    feature_extractor = create_convnext_v1(variant="large", include_top=False, input_shape=(256, 256, 3))

    feature_extractor.summary()

    assert feature_extractor.output_shape == (None, 8, 8, 1536)
    assert "196,227,264" in capsys.readouterr().out


def dummy_data():
    """Images (16, 48, 48, 3) and one-hot labels (16, 10), in the tensors of the backend that runs."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.random.normal((16, 48, 48, 3)), tf.one_hot(tf.zeros(16, dtype=tf.int32), depth=10)
    if keras.backend.backend() == "jax":
        import jax

        images = jax.random.normal(jax.random.key(0), (16, 48, 48, 3))
        return images, jax.nn.one_hot(jax.numpy.zeros(16, dtype="int32"), 10)
    import torch

    return torch.randn(16, 48, 48, 3), torch.nn.functional.one_hot(torch.zeros(16, dtype=torch.int64), 10).float()


@pytest.mark.once
def test_compile_and_fit():
    model = create_convnext_v2(variant="atto", num_classes=10, input_shape=(48, 48, 3))
    model.compile(optimizer="adamw", loss="categorical_crossentropy", metrics=["accuracy"])
    dummy_images, dummy_labels = dummy_data()

    history = model.fit(dummy_images, dummy_labels, epochs=3, verbose=0).history

    assert len(history["loss"]) == 3
    assert np.all(np.isfinite(history["loss"]))
    assert history["loss"][-1] < history["loss"][0]
