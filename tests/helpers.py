"""Helpers of several test files: gradients and outputs on any backend, random weights, importable oracles."""

import functools

import numpy as np


def gradients(loss_of, variables):
    """Return [d loss / d variable, …] as NumPy arrays, computed by the current backend.

    Args:
        loss_of: function without arguments that returns a scalar.
        variables: Keras variables.
    """
    import keras

    grads = {"jax": _jax, "tensorflow": _tensorflow, "torch": _torch}[keras.backend.backend()](loss_of, variables)
    return [keras.ops.convert_to_numpy(grad) for grad in grads]


def _jax(loss_of, variables):
    import jax
    import keras

    def stateless(values):
        with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
            return loss_of()

    return jax.jit(jax.grad(stateless))([variable.value for variable in variables])


def _tensorflow(loss_of, variables):
    import tensorflow as tf

    values = [variable.value for variable in variables]
    with tf.GradientTape() as tape:
        tape.watch(values)
        loss = loss_of()
    return [tf.convert_to_tensor(grad) for grad in tape.gradient(loss, values)]


def _torch(loss_of, variables):
    import torch

    return torch.autograd.grad(loss_of(), [variable.value for variable in variables])


def second_derivative(function):
    """Return d²/dt² function(t) at 0 of a function from a scalar tensor to one, computed by the current backend."""
    import keras

    zero = keras.Variable(np.float32(0)).value
    if keras.backend.backend() == "jax":
        import jax

        def stateless(value):
            with keras.StatelessScope():
                return function(value)

        return float(jax.jit(jax.grad(jax.grad(stateless)))(zero))
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as outer, tf.GradientTape() as inner:
            value = function(zero)
            slope = inner.gradient(value, zero)
        return float(outer.gradient(slope, zero))
    import torch

    (slope,) = torch.autograd.grad(function(zero), zero, create_graph=True)
    return float(torch.autograd.grad(slope, zero)[0])


def predict(model, x):
    """Return a model's inference output as NumPy; on JAX compiled as a whole, which is faster than op by op."""
    import keras

    if keras.backend.backend() == "jax":
        return model.predict(x, verbose=0)
    return keras.tree.map_structure(keras.ops.convert_to_numpy, model(x, training=False))


def randomize(model, rng, scale=0.3):
    """Add noise to every weight, so that gains and offsets initialised to 0, 1 or 1e-6 matter."""
    import keras

    for weight in model.weights:
        if "seed" in weight.name:
            continue
        noise = scale * rng.standard_normal(weight.shape).astype("float32")
        value = keras.ops.convert_to_numpy(keras.ops.cast(weight, "float32"))
        weight.assign(np.abs(value + noise) + 0.1 if "variance" in weight.name else value + noise)
    return model


def draw_weights(model, seed=0):
    """Draw every weight so that each matters and activations stay near 1 at any depth."""
    import keras

    rng = np.random.default_rng(seed)
    batch_norms = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
    halved = {layer.gamma.path for layer in batch_norms}  # their outputs are added to other branches
    for weight in model.weights:
        if "seed" in weight.name or "logit" in weight.name:
            continue
        noise, shape = rng.standard_normal(weight.shape, np.float32), weight.shape
        if "variance" in weight.name:
            value = 0.5 + np.abs(noise)
        elif weight.name == "gamma":
            value = (0.5 if "scale" in weight.path or weight.path in halved else 1.0) + 0.2 * noise
        elif len(shape) > 1 and "embedding" not in weight.name:
            fan_in = np.prod(shape[:2]) if "depthwise" in weight.path or shape[-1] == 1 else np.prod(shape[:-1])
            value = noise * fan_in**-0.5
        else:
            value = 0.2 * noise
        weight.assign(value)
    return model


@functools.cache
def declare_torchvision_operators():
    """Make torchvision importable for timm and open_clip where its compiled operators are missing."""
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library  # the declarations live as long as this object; the cache keeps it
