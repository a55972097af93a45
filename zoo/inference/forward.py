"""Compiled forward passes of Keras models: `compile_forward`, and `create_predictor` for arrays of any length.

Both run without the loop of `model.predict`, which costs 10 to 60 ms a call for callbacks, an iterator and, on
TensorFlow, a copy of the inputs into a data set. Both read the model's weights at every call, so they follow a model
that is trained further.
"""

import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from zoo.inference.torch_graph import PackedWeight, compile_graph, graph_of, packed_graph
from zoo.utils.arrays import pad_rows

Forward = Callable[[np.ndarray], np.ndarray]

MAX_SHAPES = 16  # specialised shapes of one row, and as many of several rows
CALLS_ONE_ROW, CALLS_MANY_ROWS = 2, 8  # a shape is specialised at this call
MAX_ROWS = 64  # larger batches are not specialised


def create_predictor(model, batch_size: int = 32) -> Forward:
    """Return a compiled function with the results of `model.predict`.

    Every batch has `batch_size` rows, the last one padded, so that the backend compiles once. On torch, the forward
    pass is traced and compiled with `torch.compile`; if that fails, for instance without a C++ compiler, a warning says
    so and the model runs uncompiled.

    Args:
        model: `keras.Model` with one input and one output.
        batch_size: rows per batch.

    Returns:
        A function from an array (N, …), N ≥ 1, to float32 (N, …).

    Raises:
        ValueError: batch_size below 1, or several inputs or outputs.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be positive, got {batch_size}.")
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ValueError(
            f"{model.name!r} has {len(model.inputs)} inputs and {len(model.outputs)} outputs; a predictor needs a "
            "model with one of each."
        )
    run = compile_forward(model, batch_size)

    def predict(values):
        values = np.asarray(values, model.inputs[0].dtype)
        if not len(values):
            raise ValueError(f"the array has shape {values.shape}; at least one row is needed")
        batches = (values[i : i + batch_size] for i in range(0, len(values), batch_size))
        return np.concatenate([run(pad_rows(batch, batch_size))[: len(batch)] for batch in batches])

    return predict


def compile_forward(model, batch_size: int | None = None) -> Forward:
    """Return a Keras model's inference as a compiled function from an array to float32.

    Args:
        model: `keras.Model` with one input and one output.
        batch_size: rows of every batch; compiled for them at the first call, on torch with `torch.compile` if that is
            possible. None for batches of any size: JAX compiles each shape, the others a shape that is repeated. On
            other backends of Keras each batch is one `predict_on_batch`.
    """
    import keras

    compiler = {"jax": _jax, "tensorflow": _tensorflow, "torch": _torch}.get(keras.backend.backend(), _others)
    return compiler(model, batch_size)


def onnx_forward(model, precision: str, providers: list[str] | str | None = None) -> Forward:
    """Return a Keras model as a function that runs in ONNX Runtime, exported through a temporary file.

    Args:
        model: `keras.Model` with one input and one output, as `export_onnx` takes it.
        precision, providers: as in `export_onnx` and `OnnxModel`.
    """
    from zoo.export import OnnxModel, export_onnx

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(model, path, precision=precision, verify=False)
        loaded = OnnxModel(path, providers=providers, seconds=None)
    return lambda rows: loaded.predict(rows, batch_size=len(rows))


def jit_forward(model) -> Callable:
    """Return (values of the trainable variables, of the others, inputs) → outputs in float32, compiled by JAX."""
    import jax

    @jax.jit
    def forward(trainable, rest, x):
        outputs = model.stateless_call(trainable, rest, x, training=False)[0]
        return jax.tree.map(lambda y: y.astype("float32"), outputs)

    return forward


def trace_forward(model, **options) -> Callable:
    """Return inputs → outputs in float32 as a `tf.function` with these options."""
    import tensorflow as tf

    def forward(x):
        return tf.nest.map_structure(lambda y: tf.cast(y, tf.float32), model(x, training=False))

    return tf.function(forward, **options)


def _jax(model, _) -> Forward:
    forward = jit_forward(model)

    def run(x):
        trainable = [variable.value for variable in model.trainable_variables]
        rest = [variable.value for variable in model.non_trainable_variables]
        return np.asarray(forward(trainable, rest, x))

    return run


def _tensorflow(model, batch_size) -> Forward:
    """A model without convolutions runs single rows through XLA from the second call on: two threads lose more than
    half of a sentence's time between TensorFlow's own kernels (24 → 10 ms with the text tower of convnext_v2_tiny:
    tests/bench_search.py). XLA's convolutions are slower than TensorFlow's."""
    import tensorflow as tf

    entry = model.inputs[0]
    if batch_size is not None:
        spec = tf.TensorSpec((batch_size, *entry.shape[1:]), entry.dtype)
        on_gpu = bool(tf.config.list_physical_devices("GPU"))
        run = trace_forward(model, input_signature=[spec], jit_compile=on_gpu)
        return lambda x: run(tf.convert_to_tensor(x, entry.dtype)).numpy()

    def specialise(x):
        function = trace_forward(model, jit_compile=True)
        try:
            function(x)
        except Exception:  # a custom layer may use an operation without an XLA kernel
            return any_batch
        return function

    any_batch = trace_forward(model, input_signature=[tf.TensorSpec(entry.shape, entry.dtype)])
    convolves = any(len(variable.shape) == 4 for variable in model.weights)
    run = any_batch if convolves else by_shape(any_batch, specialise)
    return lambda x: run(tf.convert_to_tensor(x, entry.dtype)).numpy()


def _torch(model, batch_size) -> Forward:
    """A repeated shape runs as a graph of torch kernels: Keras' layers add as much time between the kernels as a
    sentence, or 64 images of 32 pixels, takes in them (tests/bench_search.py)."""

    def forward(x):
        return model(x, training=False).float()

    if batch_size is not None:
        return _without_gradients(_compiled_at_first_call(forward))
    packed: dict[int, PackedWeight] = {}

    def specialise(x):
        try:
            return packed_graph(forward, x, packed)
        except Exception:  # a custom layer may not be traceable
            return forward

    return _without_gradients(by_shape(forward, specialise, max_rows=MAX_ROWS))


def _others(model, _) -> Forward:
    return lambda x: np.asarray(model.predict_on_batch(x), np.float32)


def _compiled_at_first_call(forward: Callable) -> Callable:
    """Return a torch function that is compiled when it is first called, if that is possible."""
    made: Callable | None = None

    def run(x):
        nonlocal made
        if made is None:
            made = forward
            try:
                made = graph_of(forward, x)
                made = compile_graph(made, x)
            except Exception as error:  # of the compiler, or of tracing a custom layer
                reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
                warnings.warn(f"torch.compile failed, so the model runs uncompiled. {reason}", stacklevel=5)
        return made(x)

    return run


def _without_gradients(run: Callable) -> Forward:
    """Return a function of torch tensors as one of arrays."""
    import torch
    from keras import ops

    def call(x):
        with torch.no_grad():
            return run(ops.convert_to_tensor(x)).cpu().numpy()

    return call


def by_shape(function: Callable, specialise: Callable, *, max_rows: int = 1) -> Callable:
    """Return `function` with a specialised form for shapes that are repeated.

    One row is specialised at its second call, up to `max_rows` rows at the eighth, so that a shape that comes once
    costs nothing.

    Args:
        function: takes a batch of any shape.
        specialise: a batch → a function of batches of its shape.
        max_rows: larger batches always run `function`.
    """
    calls: Counter[tuple] = Counter()  # by shape
    made: dict[tuple, Callable] = {}

    def choose(x):
        shape = tuple(x.shape)
        if shape in made:
            return made[shape]
        one_row = len(x) == 1
        if len(x) > max_rows or sum((other[0] == 1) == one_row for other in made) >= MAX_SHAPES:
            return function
        calls[shape] += 1
        if calls[shape] < (CALLS_ONE_ROW if one_row else CALLS_MANY_ROWS):
            return function
        made[shape] = specialise(x)
        return made[shape]

    return lambda x: choose(x)(x)
