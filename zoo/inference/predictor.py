"""`model.predict` without Keras' own loop: a compiled function of arrays, batch after batch.

Between two batches Keras' loop runs callbacks, an iterator and, on TensorFlow, a copy of the images into a data set,
which small models feel. Here nothing but the forward pass is between an array and its outputs.
"""

import functools
import warnings
from collections.abc import Callable

import numpy as np


def create_predictor(model, batch_size: int = 32) -> Callable[[np.ndarray], np.ndarray]:
    """A function that gives what `model.predict` gives, compiled by the backend.

    Every batch has one size, the last one filled up, so that nothing is compiled twice. The weights are the model's
    own: it follows a model that is trained further. On torch the forward pass is written down as one graph, which
    `torch.compile` makes kernels of; where that fails, for want of a C++ compiler for instance, a warning says so and
    the graph runs as it is, or, where there is none, the model.

    Args:
        model: `keras.Model` of one input and one output.
        batch_size: rows that are computed at a time.

    Returns:
        A function from an array (N, …) to float32 (N, …), N ≥ 1.

    Raises:
        ValueError: a batch size below 1, or several inputs or outputs.
    """
    import keras

    if batch_size < 1:
        raise ValueError(f"batch_size must be positive, got {batch_size}.")
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ValueError(
            f"{model.name!r} has {len(model.inputs)} inputs and {len(model.outputs)} outputs; a predictor has one each."
        )
    make = {"jax": _jax, "tensorflow": _tensorflow, "torch": _torch}[keras.backend.backend()]
    run = make(model, batch_size)

    def predict(values):
        values = np.asarray(values, model.inputs[0].dtype)
        if not len(values):
            raise ValueError(f"There is nothing to predict: the array has shape {values.shape}.")
        return np.concatenate([run_filled(values[i : i + batch_size]) for i in range(0, len(values), batch_size)])

    def run_filled(batch):
        missing = batch_size - len(batch)
        whole = np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)]) if missing else batch
        return run(whole)[: len(batch)]

    return predict


def _jax(model, _):
    import jax

    @jax.jit
    def forward(trainable, rest, x):
        return model.stateless_call(trainable, rest, x, training=False)[0].astype("float32")

    def run(x):
        trainable = [variable.value for variable in model.trainable_variables]
        rest = [variable.value for variable in model.non_trainable_variables]
        return np.asarray(forward(trainable, rest, x))

    return run


def _tensorflow(model, batch_size):
    import tensorflow as tf

    entry = model.inputs[0]
    spec = tf.TensorSpec((batch_size, *entry.shape[1:]), entry.dtype)

    @tf.function(input_signature=[spec], jit_compile=bool(tf.config.list_physical_devices("GPU")))
    def forward(x):
        return tf.cast(model(x, training=False), tf.float32)

    return lambda x: forward(tf.convert_to_tensor(x)).numpy()


def _torch(model, _):
    import torch
    from keras import ops

    forward = None

    def run(x):
        nonlocal forward
        with torch.no_grad():
            x = ops.convert_to_tensor(x)
            if forward is None:
                forward = _compiled_or_not(lambda x: model(x, training=False).float(), x)
            return forward(x).cpu().numpy()

    return run


def _compiled_or_not(function, x):
    try:
        function = _graph_of(function, x)
        return _compile(function, x)
    except Exception as error:  # whatever the compiler, or a layer of the user's own, does not like
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        warnings.warn(f"torch.compile failed, so this runs uncompiled. {reason}", stacklevel=5)
        return function


def compile_torch(function: Callable, x) -> Callable:
    """A torch function without gradients, compiled as one graph for inputs of x's shape.

    `torch.compile` alone sees a Keras model in pieces, between which Python runs, and gives most of them up: what is
    compiled here is the list of torch operators that a call makes.

    Args:
        function: of tensors in a structure like x's.
        x: an input, with which it is tried out.

    Raises:
        Exception: of any kind, whatever the compiler does not like.
    """
    return _compile(_graph_of(function, x), x)


def _graph_of(function, x):
    import torch
    from torch.fx.experimental.proxy_tensor import make_fx

    with torch.no_grad():
        graph = make_fx(function)(x)
    _keep_onednn(graph)
    return graph


def _compile(graph, x):
    import torch

    with torch.no_grad():
        compiled = torch.compile(graph)
        compiled(x)
    return compiled


def _keep_onednn(graph):
    """Puts `_onednn_product` for the operator that it runs, of which torch's compiler takes constant weights alone."""
    import torch

    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        for node in graph.graph.find_nodes(op="call_function", target=torch.ops.mkldnn._linear_pointwise.default):
            node.target, node.args = _onednn_product(), node.args[:4]
        graph.recompile()


@functools.cache
def _onednn_product():
    """oneDNN's product of two matrices as an operator that torch's compiler leaves as it is. MKL's, which it would take
    in its place, is half as fast on some processors (see `convnext.torch_products`)."""
    import torch

    def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], "none")

    operator = torch.library.custom_op("convnext_clip_zoo::onednn_product", product, mutates_args=())
    operator.register_fake(lambda x, weight, *_: x.new_empty(*x.shape[:-1], weight.shape[0]))
    return torch.ops.convnext_clip_zoo.onednn_product.default
