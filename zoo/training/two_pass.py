"""Gradient accumulation with the contrastive loss of the whole batch, in two passes over chunks (GradCache).

The first pass embeds every chunk without gradients; the loss of the whole batch gives the gradient of each embedding;
the second pass embeds each chunk again and backpropagates its part of that gradient. The sum is the gradient of the
whole batch, with the activations of one chunk in memory. State that the first pass changed is restored before the
second: Dropout draws the same in both, and BatchNorm, whose statistics are per chunk, counts each chunk once.

This train step is written per backend, because each differentiates differently.
Reference: arXiv:2101.06983, section 3; open_clip's `--accum-freq`.
"""

import functools
from collections.abc import Callable

import keras
from keras import ops

from convnext import changed_by_call
from zoo.training.randomness import random_state, set_random_state

EMBEDDINGS = ("image_embeddings", "text_embeddings")


def accumulate_gradients(model: keras.Model, chunks: int) -> None:
    """Make a pair's `fit` process each batch in chunks.

    Args:
        model: `clip.CLIP`, before its first step.
        chunks: a divisor of the batch size.
    """
    steps: dict[str, Callable] = {"jax": _jax_step, "tensorflow": _tensorflow_step, "torch": _torch_step}
    model.train_step = functools.partial(steps[keras.backend.backend()], model, chunks)


def _pairs(data):
    """Return the batch from the data of a train step."""
    return keras.utils.unpack_x_y_sample_weight(data)[0]


def _split(batch, chunks):
    """Split {"images": (B, …), …} into chunks of B / chunks rows."""
    parts = {name: ops.split(batch[name], chunks) for name in ("images", "tokens")}
    return [{name: parts[name][i] for name in parts} for i in range(chunks)]


def _join(parts):
    """Join the embeddings of the chunks."""
    return {name: ops.concatenate([part[name] for part in parts]) for name in EMBEDDINGS}


def _inner(embeddings, gradients):
    """Return a scalar whose gradient with respect to the embeddings is `gradients`."""
    return sum(ops.sum(embeddings[name] * gradients[name]) for name in EMBEDDINGS)


def _loss_tracker(model: keras.Model) -> keras.metrics.Metric:
    """Return the metric in which a compiled model averages its loss, the first one named "loss" of `metrics`."""
    return next(metric for metric in model.metrics if metric.name == "loss")


def _torch_step(model, chunks, data):
    import torch

    batch = _pairs(data)
    parts, changing, states = _split(batch, chunks), changed_by_call(model.non_trainable_variables), []
    embedded = []
    with torch.no_grad():
        for part in parts:
            states.append(([variable.value.clone() for variable in changing], random_state()))
            embedded.append(model(part, training=True))
    whole = {name: value.detach().requires_grad_() for name, value in _join(embedded).items()}
    model.zero_grad()
    loss = model.compute_loss(x=batch, y=None, y_pred=whole)
    _loss_tracker(model).update_state(loss, sample_weight=len(batch["images"]))
    model.optimizer.scale_loss(loss).backward()
    gradients = [{name: value.grad.chunk(chunks)[i] for name, value in whole.items()} for i in range(chunks)]
    for part, gradient, (values, outside) in zip(parts, gradients, states, strict=True):
        for variable, value in zip(changing, values, strict=True):
            variable.assign(value)
        set_random_state(outside)
        _inner(model(part, training=True), gradient).backward()
    variables = model.trainable_weights
    with torch.no_grad():
        model.optimizer.apply([v.value.grad for v in variables], variables)
    return model.compute_metrics(batch, None, whole)


def _tensorflow_step(model, chunks, data):
    import tensorflow as tf

    batch = _pairs(data)
    parts, changing, states = _split(batch, chunks), changed_by_call(model.non_trainable_variables), []
    embedded = []
    for part in parts:
        states.append([tf.identity(variable.value) for variable in changing])
        embedded.append(model(part, training=True))
    whole = {name: tf.stop_gradient(value) for name, value in _join(embedded).items()}
    variables = model.trainable_weights
    values = [variable.value for variable in variables]
    with tf.GradientTape() as tape:
        tape.watch(whole)
        loss = model.compute_loss(x=batch, y=None, y_pred=whole)
        _loss_tracker(model).update_state(loss, sample_weight=tf.shape(batch["images"])[0])
        scaled = model.optimizer.scale_loss(loss)
    total, wanted = tape.gradient(scaled, (values, whole))
    for i, (part, state) in enumerate(zip(parts, states, strict=True)):
        for variable, value in zip(changing, state, strict=True):
            variable.assign(value)
        gradient = {name: tf.split(wanted[name], chunks)[i] for name in wanted}
        with tf.GradientTape() as tape:
            inner = _inner(model(part, training=True), gradient)
        total = [_add(*pair) for pair in zip(total, tape.gradient(inner, values), strict=True)]
    model.optimizer.apply(total, variables)
    return model.compute_metrics(batch, None, whole)


def _add(one, other):
    """Return the sum as one array; None is zero, and TensorFlow's sparse gradients of embeddings become dense."""
    import tensorflow as tf

    given = [tf.convert_to_tensor(gradient) for gradient in (one, other) if gradient is not None]
    return tf.add_n(given) if given else None


def _jax_step(model, chunks, state, data):
    import jax

    batch = _pairs(data)
    trainable, non_trainable, optimizer, metrics = state
    parts, states, embedded = _split(batch, chunks), [], []
    for part in parts:
        states.append(non_trainable)
        output, non_trainable = model.stateless_call(trainable, non_trainable, part, training=True)
        embedded.append(output)

    def loss_of(trainable, whole):
        loss, (_, _, updated) = model.stateless_compute_loss(
            trainable, non_trainable, metrics, x=batch, y=None, y_pred=whole, training=True
        )
        with keras.StatelessScope(state_mapping=list(zip(model.optimizer.variables, optimizer, strict=True))):
            return model.optimizer.scale_loss(loss), (loss, updated)

    whole = jax.lax.stop_gradient(_join(embedded))
    grad_of = jax.value_and_grad(loss_of, argnums=(0, 1), has_aux=True)
    (_, (loss, metrics)), (total, wanted) = grad_of(trainable, whole)
    for i, (part, before) in enumerate(zip(parts, states, strict=True)):
        gradient = {name: jax.numpy.split(wanted[name], chunks)[i] for name in wanted}

        def inner(trainable, part=part, before=before, gradient=gradient):
            return _inner(model.stateless_call(trainable, before, part, training=True)[0], gradient)

        total = jax.tree.map(jax.numpy.add, total, jax.grad(inner)(trainable))
    trainable, optimizer = model.optimizer.stateless_apply(optimizer, total, trainable)
    with keras.StatelessScope(state_mapping=list(zip(model.metrics_variables, metrics, strict=True))) as scope:
        _loss_tracker(model).update_state(loss, sample_weight=len(batch["images"]))
        logs = model.compute_metrics(batch, None, whole)
    metrics = [scope.get_current_value(variable) for variable in model.metrics_variables]
    return logs, (trainable, non_trainable, optimizer, metrics)
