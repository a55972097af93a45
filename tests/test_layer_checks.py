"""Keras' own test of a layer, on every layer of ours: configuration, building, symbolic and eager calls, training."""

import inspect

import keras
import numpy as np
import pytest
from helpers import gradients, second_derivative
from keras import ops
from keras.src.testing import TestCase

from clip import layers as of_clip
from clip.towers import branches
from clip.zero_shot import ZeroShotHead
from convnext import GRN, BatchNormalization, Conv2D, Dense, DepthwiseConv2D, LayerNormalization, LayerScale
from convnext.fcmae import MaskToken

pytestmark = pytest.mark.backend

BACKEND = keras.backend.backend()

IMAGES, TOKENS = (2, 5, 4, 6), (2, 5, 8)
BATCH_NORM = 2  # weights of a norm that are trained, and as many that are not
# layer, arguments, input, output, number of weights that are trained; Keras cannot train a layer of several inputs
CHECKS = [
    (GRN, {}, IMAGES, IMAGES, 2),
    (LayerScale, {"init_value": 0.5}, IMAGES, IMAGES, 1),
    (LayerNormalization, {"epsilon": 1e-6}, IMAGES, IMAGES, 2),
    (BatchNormalization, {"momentum": 0.9}, IMAGES, IMAGES, 2),
    (Dense, {"units": 3, "activation": "gelu"}, IMAGES, (2, 5, 4, 3), 2),
    (Conv2D, {"filters": 3, "kernel_size": 2, "strides": 2}, IMAGES, (2, 2, 2, 3), 2),
    (DepthwiseConv2D, {"kernel_size": 7, "padding": "same"}, IMAGES, IMAGES, 2),
    (MaskToken, {}, [IMAGES, IMAGES[:3]], IMAGES, 1),
    (of_clip.SelfAttention, {"num_heads": 2, "causal": True}, TOKENS, TOKENS, 4),
    (of_clip.PositionalEmbedding, {"length": 7}, TOKENS, TOKENS, 1),
    (of_clip.ClassEmbedding, {}, IMAGES, (2, 21, 6), 1),
    (of_clip.AttentionPool, {"num_heads": 2, "output_dim": 3}, IMAGES, (2, 3), 9),
    (of_clip.SelectToken, {}, TOKENS, (2, 8), 0),
    (of_clip.TokenEmbedding, {"input_dim": 7, "output_dim": 4}, (2, 5), (2, 5, 4), 1),
    (of_clip.SelectToken, {"token_id": 2}, {"inputs_shape": TOKENS, "tokens_shape": (2, 5)}, (2, 8), 0),
    (
        of_clip.LogitScale,
        {"init_value": 2.0, "init_bias": -10.0},
        {"image_features_shape": (2, 3), "text_features_shape": (2, 3)},
        ((2, 3), (2, 3)),
        2,
    ),
    (ZeroShotHead, {"class_names": ["a", "b", "c"]}, (2, 4), (2, 3), 0),
    (branches.MobileOneConv2D, {"kernel_size": 3, "filters": 6}, IMAGES, IMAGES, 2 + 3 * BATCH_NORM),
    (branches.MobileOneConv2D, {"kernel_size": 3, "strides": 2, "reparameterized": True}, IMAGES, (2, 3, 2, 6), 2),
    (branches.RepLargeKernelConv2D, {"kernel_size": 7, "small_kernel": 3}, IMAGES, IMAGES, 2 + 2 * BATCH_NORM),
    (branches.RepMixer, {}, IMAGES, IMAGES, 3 + 4 * BATCH_NORM),
    (branches.RepConditionalPosEnc, {"kernel_size": 7}, IMAGES, IMAGES, 2),
]
INTEGERS = {of_clip.TokenEmbedding: "int32", of_clip.SelectToken: {"inputs_shape": "float32", "tokens_shape": "int32"}}
WIDE = (of_clip.AttentionPool, branches.MobileOneConv2D, branches.RepLargeKernelConv2D, branches.RepMixer)


def case_of(layer, arguments, shape, output, trained):
    words = [layer.__name__, *(f"{key}={value}" for key, value in arguments.items())]
    marks = [pytest.mark.slow] if layer in WIDE else []
    return pytest.param(layer, arguments, shape, output, trained, id=" ".join(words), marks=marks)


@pytest.mark.wide
@pytest.mark.parametrize("layer, arguments, shape, output, trained", [case_of(*check) for check in CHECKS])
def test_keras_own_check(layer, arguments, shape, output, trained):
    several = not isinstance(shape, tuple)
    dtype = INTEGERS.get(layer)
    TestCase().run_layer_test(
        layer,
        arguments,
        input_shape=shape,
        input_dtype=dtype if isinstance(shape, dict) or isinstance(dtype, str) else None,
        expected_output_shape=output,
        expected_num_trainable_weights=trained,
        run_training_check=not several and trained > 0,
    )


NORMS = (LayerNormalization, BatchNormalization)  # TensorFlow's moments hold the mean in the variance constant
TWICE = [
    pytest.param(*check[:3], marks=[pytest.mark.wide] if BACKEND == "jax" and check[0] not in NORMS else [])
    for check in CHECKS
    if isinstance(check[2], tuple) and check[0] not in INTEGERS
]


@pytest.mark.parametrize("layer, arguments, shape", TWICE)
def test_second_derivatives_are_those_of_the_first(layer, arguments, shape, rng):
    x, direction = (ops.convert_to_tensor(rng.standard_normal(shape).astype("float32")) for _ in range(2))
    layer = layer(**arguments)
    layer.build(shape)
    for weight in layer.weights:
        weight.assign(rng.standard_normal(weight.shape).astype("float32"))
    options = {"training": True} if "training" in inspect.signature(layer.call).parameters else {}

    def cube(step):
        return ops.sum(layer(x + step * direction, **options) ** 3)

    steps = [keras.Variable(np.float32(step)) for step in (-1e-2, 1e-2)]
    slopes = [gradients(lambda step=step: cube(step.value), [step])[0] for step in steps]
    assert second_derivative(cube) == pytest.approx((slopes[1] - slopes[0]) / 2e-2, rel=2e-2)


@pytest.mark.once
def test_every_layer_is_checked():
    ours = {
        cls
        for name, cls in keras.saving.get_custom_objects().items()
        if name.startswith("convnext_clip_zoo>") and isinstance(cls, type) and issubclass(cls, keras.layers.Layer)
    }
    layers = {cls for cls in ours if not issubclass(cls, keras.Model)}
    assert layers == {check[0] for check in CHECKS}
