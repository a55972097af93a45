"""The class of models that the builders return: Keras' functional model with lower peak memory."""

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import keras
from keras import ops, tree

from convnext.keras_internals import (
    Call,
    Graph,
    call_layer,
    read_graph,
    swapped_values,
    take_over_rematerialization,
)
from convnext.kernels.reference import with_a_row
from convnext.layers import PACKAGE

CHANGED_BY_CALL = ("seed_generator_state", "moving_mean", "moving_variance")


def build_optimizer(model: keras.Model) -> None:
    """Create the variables of a compiled model's optimizer if they do not exist yet; TensorFlow only.

    Done before the training step is traced, TensorFlow traces it once. Keras creates them inside the step, which is
    then traced a second time.
    """
    optimizer = getattr(model, "optimizer", None)
    if keras.backend.backend() == "tensorflow" and optimizer is not None and not optimizer.built:
        with model.distribute_strategy.scope():
            optimizer.build(model.trainable_variables)


def changed_by_call(variables: Iterable) -> list:
    """Return those of the variables that a call in training changes: random states and moving statistics."""
    return [variable for variable in variables if variable.name in CHANGED_BY_CALL]


def checkpoint_activations(model: keras.Model, enabled: bool = True) -> None:
    """Trade time for memory in training: keep only what goes from block to block, and compute each block again.

    A block is a residual block. Losses and gradients are those of usual training: Dropout draws the same in both
    computations, and BatchNorm counts a batch once. `keras.RematScope("full")` around a builder does the same. It is a
    setting of this process and is not saved.

    Args:
        model: a model of this library, or one that contains it as a layer: a backbone, a pair, an `FCMAE`.

    Raises:
        ValueError: the model has no part made by this library's builders.
    """
    parts = [part for part in (model, *model.layers) if isinstance(part, Functional)]
    if not parts:
        raise ValueError(f"Model {model.name!r} has no backbone or tower whose blocks could be computed again.")
    for part in parts:
        part.checkpoint_activations = enabled


def follow_remat_scope(model: keras.Model) -> None:
    """Checkpoint the activations of a new model that was created in `keras.RematScope("full")`."""
    if take_over_rematerialization(model):
        for part in (model, *model.layers):
            if isinstance(part, Functional):
                part.checkpoint_activations = True


def recomputed(function: Callable[..., tuple], variables: Sequence = ()) -> Callable[..., tuple]:
    """Return `function`, float tensors → tuple of tensors, whose backward pass computes it again.

    Args:
        variables: what the function changes (`changed_by_call`). The second computation starts from the values that the
            first had, and leaves the values as they are.
    """
    function = _outside_remat_scope(function)
    if keras.backend.backend() == "jax":
        return _recomputed_by_jax(function, variables)
    before: list | None = None

    def compute(*tensors):
        nonlocal before
        if before is None:
            before = [ops.copy(variable) for variable in variables]
            return function(*tensors)
        now = [ops.copy(variable) for variable in variables]
        _assign(variables, before)
        try:
            return function(*tensors)
        finally:  # torch leaves by an exception once it has all that it needs
            _assign(variables, now)

    return keras.remat(compute)


def _outside_remat_scope(function):
    """Return `function` called as outside `keras.RematScope`.

    In the scope Keras also recomputes the operations that layers create at each call; one with keyword arguments, such
    as ZeroPadding2D's, then raises in a graph of TensorFlow.
    """

    def call(*args, **kwargs):
        with keras.RematScope(mode=None):
            return function(*args, **kwargs)

    return call


def _recomputed_by_jax(function, variables):
    def compute(*tensors):
        outputs = function(*tensors)
        return outputs, [variable.value for variable in variables]

    def call(*tensors):
        outputs, values = keras.remat(compute)(*tensors)
        _assign(variables, values)  # in place of values that exist inside the computation alone
        return outputs

    return call


def _assign(variables, values):
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


class Block(NamedTuple):
    """Consecutive calls of a graph that are computed again together.

    Attributes:
        steps: calls, each with the ids of the tensors that no later call reads.
        inputs, outputs: ids of the tensors that it reads from before, and that are read after it.
        is_recomputed: False for the calls after the last residual block.
    """

    steps: tuple[tuple[Call, set[int]], ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    is_recomputed: bool


def _split_into_blocks(graph: Graph, releases: Sequence[set[int]]) -> list[Block]:
    """Split a graph where one tensor goes on, beside the model's own inputs and outputs.

    Layers before a residual block belong to it.
    """
    kept = {id(tensor) for tensor in (*graph.inputs, *graph.outputs)}
    cuts, live = [], set[int]()
    for place, (call, released) in enumerate(zip(graph.calls, releases, strict=True)):
        live = (live | {id(tensor) for tensor in call.outputs}) - released - kept
        if len(live) <= 1:
            cuts.append(place + 1)
    ends = [end for begin, end in zip([0, *cuts], cuts, strict=False) if end - begin > 1]
    rest = [] if ends[-1:] == [len(graph.calls)] else [len(graph.calls)]
    return [_block(graph, releases, begin, end, end in ends) for begin, end in itertools.pairwise([0, *ends, *rest])]


def _block(graph, releases, begin, end, is_recomputed):
    calls = graph.calls[begin:end]
    made = {id(tensor): None for call in calls for tensor in call.outputs}
    read = {id(tensor): None for call in calls for tensor in call.inputs}
    later = {id(tensor) for call in graph.calls[end:] for tensor in call.inputs} | {id(t) for t in graph.outputs}
    inputs = tuple(tensor for tensor in read if tensor not in made)
    outputs = tuple(tensor for tensor in made if tensor in later)
    return Block(tuple(zip(calls, releases[begin:end], strict=True)), inputs, outputs, is_recomputed)


@keras.saving.register_keras_serializable(PACKAGE)
class Functional(keras.Model):
    """A functional `keras.Model` that on torch frees each intermediate result after the last layer that reads it.

    Keras keeps all of them until the call ends. On torch, where layers run one by one, that costs memory and, because
    fresh memory is slow, time: ConvNeXt-Tiny on 8 images of 224 pixels takes 332 MB beyond the libraries, against
    1,163 MB for the model of keras.applications (docs/benchmarks/bars). There it also calls layers through
    `call_layer`, and takes the parameters that `torch.func.functional_call` hands to it. Results, summary, weights and
    saved files are those of a `keras.Model`.

    Attributes:
        checkpoint_activations: whether blocks are computed again in the backward pass, see `checkpoint_activations`.
    """

    checkpoint_activations = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        follow_remat_scope(self)

    def make_train_function(self, force=False):
        build_optimizer(self)
        return super().make_train_function(force)

    def call(self, inputs, training=None, mask=None, **context):
        swapped = swapped_values(self)
        scope = keras.StatelessScope(state_mapping=swapped) if swapped else contextlib.nullcontext()
        call = _outside_remat_scope(self._call) if self.checkpoint_activations else self._call
        with scope:
            return call(inputs, training, mask, context)

    def _call(self, inputs, training, mask, context):
        flat = tree.flatten(inputs)
        if keras.backend.backend() == "tensorflow" and not training and all(map(ops.is_tensor, flat)):
            rows = ops.shape(flat[0])[0]
            if not isinstance(rows, int) or rows == 0:
                # several operations of TensorFlow, and of Keras on it, fail on an empty batch or give it a wrong shape
                inputs = tree.map_structure(with_a_row, inputs)
                outputs = self._call_graph(inputs, training, mask, context)
                return tree.map_structure(lambda y: y[:rows], outputs)
        return self._call_graph(inputs, training, mask, context)

    def _call_graph(self, inputs, training, mask, context):
        in_blocks = self.checkpoint_activations and training is True
        is_own_way = in_blocks or keras.backend.backend() == "torch"
        if is_own_way and mask is None and not context and self._plan is not None:
            tensors = self._flat_tensors(inputs)
            if tensors is not None:
                return self._run(tensors, training, in_blocks)
        return super().call(inputs, training=training, mask=mask, **context)

    def _flat_tensors(self, inputs):
        """Return the inputs as tensors of the model's dtypes; None unless they have its structure and ranks."""
        if len(self.inputs) == 1 and not isinstance(self.input, dict) and not tree.is_nested(inputs):
            inputs = [inputs]
        else:
            try:
                tree.assert_same_structure(*map(tree.lists_to_tuples, (inputs, self.input)))
            except (TypeError, ValueError):
                return None
        flat = tree.flatten(inputs)
        if any(x is None for x in flat):
            return None
        pairs = zip(flat, self.inputs, strict=True)
        tensors = [ops.convert_to_tensor(x, dtype=own.dtype, sparse=own.sparse) for x, own in pairs]
        has_ranks = all(len(x.shape) == len(own.shape) for x, own in zip(tensors, self.inputs, strict=True))
        return tensors if has_ranks else None

    def _run(self, tensors, training, in_blocks):
        """Return the outputs in their structure, computed call by call."""
        graph, releases = self._plan
        values = {id(tensor): value for tensor, value in zip(graph.inputs, tensors, strict=True)}
        if in_blocks:
            for block in self._blocks:
                self._run_block(block, values, training)
        else:
            self._run_calls(zip(graph.calls, releases, strict=True), values, training)
        outputs = tree.pack_sequence_as(self.output, [values[id(tensor)] for tensor in graph.outputs])
        return outputs[0] if isinstance(outputs, list | tuple) and len(outputs) == 1 else outputs

    def _run_block(self, block, values, training):
        """Add a block's outputs to the values."""
        given = {tensor: values[tensor] for tensor in block.inputs}
        floats = [tensor for tensor, x in given.items() if "float" in keras.backend.standardize_dtype(x.dtype)]

        def compute(*tensors):
            inside = {**given, **dict(zip(floats, tensors, strict=True))}
            self._run_calls(block.steps, inside, training)
            return tuple(inside[tensor] for tensor in block.outputs)

        if block.is_recomputed:
            layers = [call.operation for call, _ in block.steps if isinstance(call.operation, keras.layers.Layer)]
            compute = recomputed(compute, changed_by_call(v for x in layers for v in x.non_trainable_variables))
        values |= zip(block.outputs, compute(*(given[tensor] for tensor in floats)), strict=True)

    def _run_calls(self, steps, values, training):
        """Make calls in order; each adds its outputs to the values and removes what no later call reads."""
        has_one_dtype = self.compute_dtype == self.variable_dtype
        for call, released in steps:
            args, kwargs = call.fill_in(values)
            layer = call.operation
            if training is not None and isinstance(layer, keras.layers.Layer):
                kwargs = {**kwargs, "training": training}
            if has_one_dtype and getattr(layer, "compute_dtype", None) == self.compute_dtype:
                outputs = call_layer(layer, *args, **kwargs)
            else:
                outputs = layer(*args, **kwargs)
            outputs = [outputs] if len(call.outputs) == 1 and ops.is_tensor(outputs) else tree.flatten(outputs)
            values |= {id(tensor): value for tensor, value in zip(call.outputs, outputs, strict=True)}
            del args, kwargs, outputs
            for tensor in released:
                values.pop(tensor, None)

    @functools.cached_property
    def _blocks(self) -> list[Block]:
        assert self._plan is not None
        return _split_into_blocks(*self._plan)

    @functools.cached_property
    def _plan(self):
        """The model's graph, and for each call the ids of the tensors that no later one reads; None if not readable."""
        graph = read_graph(self)
        if graph is None:
            return None
        needed, released = {id(tensor) for tensor in graph.outputs}, []
        for call in reversed(graph.calls):
            own = {id(tensor) for tensor in (*call.inputs, *call.outputs)}
            released.append(own - needed)
            needed |= own
        return graph, tuple(reversed(released))
