"""Accumulation that keeps the contrastive batch: two passes over chunks of it, with all embeddings in between.

The first pass embeds every chunk without a tape; the loss of the whole batch then gives the gradient of each embedding;
the second pass embeds each chunk again and carries its part of that gradient on to the weights. The sum is the gradient
of the whole batch, with the activations of one chunk in memory. What the first pass moved on is put back before the
second: so Dropout draws the same in both, and BatchNorm, whose statistics are those of a chunk, counts each chunk once.

This is the one train step written per backend, for each differentiates in its own way.
Reference: arXiv:2101.06983, section 3; open_clip's `--accum-freq`.
"""

import functools

import keras
from keras import ops

from zoo.training.randomness import random_state, set_random_state

EMBEDDINGS = ("image_embeddings", "text_embeddings")
MOVED_ON = ("seed_generator_state", "moving_mean", "moving_variance")  # by a call of the model


def accumulate(model: keras.Model, chunks: int) -> None:
    """Lets a pair's `fit` take each batch in so many chunks.

    Args:
        model: `clip.CLIP`, before its first step.
        chunks: that the batch size is a multiple of.
    """
    step = {"jax": _jax_step, "tensorflow": _tensorflow_step, "torch": _torch_step}[keras.backend.backend()]
    model.train_step = functools.partial(step, model, chunks)


def _pairs(data):
    """The batch in what `fit` hands to a train step."""
    return keras.utils.unpack_x_y_sample_weight(data)[0]


def _split(batch, chunks):
    """{"images": (B, …), …} → chunks of B / chunks rows."""
    parts = {name: ops.split(batch[name], chunks) for name in ("images", "tokens")}
    return [{name: parts[name][i] for name in parts} for i in range(chunks)]


def _join(parts):
    """Embeddings of the chunks → those of the batch."""
    return {name: ops.concatenate([part[name] for part in parts]) for name in EMBEDDINGS}


def _inner(embeddings, gradients):
    """A scalar whose gradient carries `gradients` on from the embeddings."""
    return sum(ops.sum(embeddings[name] * gradients[name]) for name in EMBEDDINGS)


def _moved_on(model):
    return [v for v in model.non_trainable_variables if v.name in MOVED_ON]


def _torch_step(model, chunks, data):
    import torch

    batch = _pairs(data)
    parts, moved, states = _split(batch, chunks), _moved_on(model), []
    embedded = []
    with torch.no_grad():
        for part in parts:
            states.append(([variable.value.clone() for variable in moved], random_state()))
            embedded.append(model(part, training=True))
    whole = {name: value.detach().requires_grad_() for name, value in _join(embedded).items()}
    model.zero_grad()
    loss = model.compute_loss(x=batch, y=None, y_pred=whole)
    model._loss_tracker.update_state(loss, sample_weight=len(batch["images"]))
    model.optimizer.scale_loss(loss).backward()
    gradients = [{name: value.grad.chunk(chunks)[i] for name, value in whole.items()} for i in range(chunks)]
    for part, gradient, (values, outside) in zip(parts, gradients, states, strict=True):
        for variable, value in zip(moved, values, strict=True):
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
    parts, moved, states = _split(batch, chunks), _moved_on(model), []
    embedded = []
    for part in parts:
        states.append([tf.identity(variable.value) for variable in moved])
        embedded.append(model(part, training=True))
    whole = {name: tf.stop_gradient(value) for name, value in _join(embedded).items()}
    variables = model.trainable_weights
    values = [variable.value for variable in variables]
    with tf.GradientTape() as tape:
        tape.watch(whole)
        loss = model.compute_loss(x=batch, y=None, y_pred=whole)
        model._loss_tracker.update_state(loss, sample_weight=tf.shape(batch["images"])[0])
        scaled = model.optimizer.scale_loss(loss)
    total, wanted = tape.gradient(scaled, (values, whole))
    for i, (part, state) in enumerate(zip(parts, states, strict=True)):
        for variable, value in zip(moved, state, strict=True):
            variable.assign(value)
        gradient = {name: tf.split(wanted[name], chunks)[i] for name in wanted}
        with tf.GradientTape() as tape:
            inner = _inner(model(part, training=True), gradient)
        total = [_add(*pair) for pair in zip(total, tape.gradient(inner, values), strict=True)]
    model.optimizer.apply(total, variables)
    return model.compute_metrics(batch, None, whole)


def _add(one, other):
    """A sum in which None is nothing, and the rows of an embedding that TensorFlow gives alone are filled up."""
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
    logs, metrics = model._update_metrics_variables(metrics, loss, batch, None, whole, None)
    return logs, (trainable, non_trainable, optimizer, metrics)
