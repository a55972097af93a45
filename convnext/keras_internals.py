"""The only file that reads private parts of Keras, or of torch beneath it. Any package may import it.

Each use is checked first. Where an attribute is missing, or a function whose behaviour is relied on is not the one
read when this was written, public functions of Keras give the same result, only slower or with more memory.
tests/test_keras_internals.py forces every one of these fallbacks.
"""

import functools
import hashlib
import inspect
import operator
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import keras
from keras import ops, tree

UNKNOWN = "unknown"


# The sources of Keras that a shortcut relies on, as read in 3.15.1 and in a nightly version of 3.16. When one of them
# changes, the shortcut is not taken until someone has read the change and added its digest.
KNOWN_SOURCES = {
    "Layer.__call__": {"4fb7e42e4ffd9b1a", "fa98a1c020504b11"},
    "Operation.__call__": {"54fc9fcb8839877d", "7d0ccf9202710cfd"},
    "Operation._dispatch_call": {"5f708f73dfcd2811"},  # from 3.16
    "TorchLayer.forward": {"07be0aba754f34d3"},
    "Adam.update_step": {"05a229bf362b7227", "34f9ce0c16eb8888"},
}


@functools.cache
def is_known(function: Callable) -> bool:
    """Return whether the source of a function of Keras is one of KNOWN_SOURCES; False if it cannot be read."""
    function = inspect.unwrap(function)
    return _source_digest(function) in KNOWN_SOURCES.get(getattr(function, "__qualname__", ""), ())


def _source_digest(function: Callable) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of a function's source; "" if there is none."""
    try:
        return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:16]
    except (OSError, TypeError):
        return ""


# The graph of a functional model.


class Call:
    """One call of an operation in a functional model.

    Attributes:
        operation: the `keras.layers.Layer` or other `keras.Operation` that is called.
        args, kwargs: its arguments, with `keras.KerasTensor` where a tensor goes.
        inputs, outputs: these tensors, and the results, flat.
    """

    def __init__(self, operation, args, kwargs, outputs):
        self.operation, self.args, self.kwargs = operation, args, kwargs
        self.outputs = tuple(tree.flatten(outputs))
        self.inputs = tuple(x for x in tree.flatten((args, kwargs)) if isinstance(x, keras.KerasTensor))
        self._is_plain = not kwargs and len(args) == len(self.inputs) == 1 and args[0] is self.inputs[0]

    def fill_in(self, values: Mapping[int, Any]) -> tuple[tuple, dict]:
        """Return (args, kwargs) with the values, by the tensors' `id`, in place of the tensors."""
        if self._is_plain:
            return (values[id(self.args[0])],), {}
        return tree.map_structure(
            lambda x: values[id(x)] if isinstance(x, keras.KerasTensor) else x, (self.args, self.kwargs)
        )


class Graph(NamedTuple):
    """The calls of a functional model, in order, and how they are connected.

    Attributes:
        calls: each `Call` stands behind those whose results it reads.
        inputs, outputs: tensors of the model, flat.
        sources: {id of a tensor: the operation that returns it}; of an input, the `keras.layers.InputLayer`.
    """

    calls: tuple[Call, ...]
    inputs: tuple
    outputs: tuple
    sources: dict[int, Any]

    def source(self, tensor):
        """Return the operation whose result a tensor of the graph is."""
        return self.sources[id(tensor)]


def is_functional(model) -> bool:
    """Return whether an object is a functional `keras.Model`, whose graph can be read."""
    return isinstance(model, keras.Model) and isinstance(model, keras.Function)


def graph_of(model: keras.Model) -> Graph:
    """Return the graph of a functional model: as Keras keeps it, or if that cannot be read, of a copy."""
    return read_graph(model) or copied_graph(model)


def read_graph(model: keras.Model) -> Graph | None:
    """Return the graph that Keras keeps in a functional model; None if Keras keeps it differently."""
    try:
        by_depth = sorted(model._nodes_by_depth.items(), reverse=True)
        nodes = [node for _, level in by_depth for node in level if node.operation and not node.is_input]
        calls = tuple(Call(node.operation, node.arguments.args, node.arguments.kwargs, node.outputs) for node in nodes)
    except (AttributeError, TypeError, ValueError):
        return None
    graph = _connected(model, calls, model.inputs, model.outputs)
    return graph if _is_complete(graph) else None


def copied_graph(model: keras.Model) -> Graph:
    """Return the graph of a copy of a functional model, whose operations are those of the model.

    `keras.models.clone_model` calls each operation of the copy in the graph's order. The operations that it calls here
    only compute shapes, and the model's own remain as they are.
    """
    calls: list[Call] = []

    def record(stand_in, *args, **kwargs):
        outputs = stand_in(*args, **kwargs)
        calls.append(Call(stand_in.operation, args, kwargs, outputs))
        return outputs

    plain = keras.Model(model.input, model.output, name=model.name)  # without the class and optimizer of the model
    copy = keras.models.clone_model(plain, clone_function=_StandIn, call_function=record)
    return _connected(model, tuple(calls), copy.inputs, copy.outputs)


class _StandIn(keras.Operation):
    """Takes the place of an operation in a copied graph."""

    def __init__(self, operation):
        super().__init__(name=operation.name)
        self.operation = operation

    def call(self, *args, **kwargs):
        return self.operation(*args, **kwargs)

    def compute_output_spec(self, *args, **kwargs):
        return self.operation.compute_output_spec(*args, **kwargs)


def _connected(model, calls, inputs, outputs) -> Graph:
    entries = [layer for layer in model.layers if isinstance(layer, keras.layers.InputLayer)]
    of_entry = {id(layer.output): layer for layer in entries}
    sources = {id(x): of_entry[id(own)] for x, own in zip(inputs, model.inputs, strict=True) if id(own) in of_entry}
    sources |= {id(tensor): call.operation for call in calls for tensor in call.outputs}
    return Graph(calls, tuple(inputs), tuple(outputs), sources)


def _is_complete(graph) -> bool:
    """Return whether each tensor of a graph is an input or the result of an earlier call, and all have a source."""
    known = {id(tensor) for tensor in graph.inputs}
    for call in graph.calls:
        if not known.issuperset(map(id, call.inputs)):
            return False
        known.update(map(id, call.outputs))
    return known.issuperset(map(id, graph.outputs)) and known == graph.sources.keys()


def clones_as_itself(kind: type) -> type:
    """Decorate a functional model whose constructor also takes (inputs, outputs, *, name), for clones.

    `keras.models.clone_model` returns an object of the model's class if the class's constructor has the arguments of
    `keras.Model(inputs, outputs, name=None, **kwargs)`, else a `keras.Model`. It reads the signature given here;
    readers of the class see the constructor's own. If Keras decides otherwise, clones are plain models.
    """
    constructor: Any = vars(kind)["__init__"]
    own = inspect.signature(constructor)
    kind.__signature__ = own.replace(parameters=list(own.parameters.values())[1:])  # type: ignore[attr-defined]

    def functional(self, inputs, outputs, name=None, **kwargs):
        """Only its signature is used."""

    constructor.__signature__ = inspect.signature(functional)
    return kind


# Rematerialisation.


def take_over_rematerialization(model: keras.Model) -> bool:
    """Return whether a model was created in `keras.RematScope("full")`; its layers are then called as outside it.

    Keras would compute each layer again by itself, which keeps what goes from layer to layer; Dropout would draw
    another mask. Other modes of the scope, and all if Keras keeps the mode elsewhere, remain as they are.
    """
    if getattr(getattr(model, "_remat_mode", None), "mode", None) != "full":
        return False
    for layer in _with_sublayers(model):
        layer._remat_mode = None
    return True


# Paths of variables.


def put_in_scope(model: keras.Model, name: str) -> None:
    """Let the path of each variable of a built model start with a name, as if it had been built in that name scope.

    If Keras keeps paths elsewhere, they remain as they are. Nothing in the model goes by them; on torch a state dict
    then lacks the variables of another part of the same path.
    """
    for variable in model.variables:
        if getattr(variable, "_path", None) == variable.path:
            variable._path = f"{name}/{variable.path}"
    for layer in _with_sublayers(model):
        if hasattr(layer, "_torch_params") and hasattr(layer, "_track_variables"):
            layer._track_variables()


def _with_sublayers(layer) -> Iterator:
    yield layer
    for below in getattr(layer, "_layers", ()):
        yield from _with_sublayers(below)


# Calls of layers on torch.

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")  # of torch.nn.Module


def call_layer(layer, *inputs, **options):
    """Return `layer(*inputs, **options)`, on torch by `layer.call` directly if the result is the same.

    `Layer.__call__` binds arguments, flattens structures, opens scopes, looks for masks and wraps each call. On torch,
    where layers run one by one, that takes about 0.2 ms per layer, more than most kernels take for a single image:
    KERAS_BACKEND=torch python tests/bench_layers.py times a model of 119 layers both ways.

    The result is the same for a built layer of one dtype without activity regularizer, hooks, rematerialisation or
    quantised weights, on tensors of that dtype without masks, if no distribution is set and `Layer.__call__` is one of
    KNOWN_SOURCES. The caller ensures that no autocast to another dtype is active.

    Args:
        layer: `keras.layers.Layer` or another operation of a functional model.
        inputs: tensors, or lists of them.
        options: `training`; any other option uses Keras' `__call__`.
    """
    is_direct = _runs_on_torch() and options.keys() <= {"training"} and _is_plain(layer)
    if not is_direct or not all(_accepts(layer, x) for x in inputs):
        return layer(*inputs, **options)
    return layer.call(*inputs, **(options if _takes_training(layer.__class__) else {}))


def _runs_on_torch():
    """Whether the backend is torch, not compiling, without global module hooks or a distribution of Keras."""
    if keras.backend.backend() != "torch":
        return False
    import torch

    has_global_hook = getattr(torch.nn.modules.module, "_has_any_global_hook", lambda: True)
    return not torch.compiler.is_compiling() and not has_global_hook() and keras.distribution.distribution() is None


@functools.cache
def _takes_training(kind):
    return "training" in inspect.signature(kind.call).parameters


def _is_plain(layer):
    is_usual = isinstance(layer, keras.layers.Layer) and type(layer).__call__ is keras.layers.Layer.__call__
    return (
        is_usual
        and layer.built
        and layer.compute_dtype == layer.variable_dtype
        and layer.activity_regularizer is None
        and getattr(layer, "_remat_mode", UNKNOWN) is None
        and getattr(layer, "quantization_mode", None) is None
        and getattr(layer, "_calibration_capture", None) is None  # from Keras 3.16
        and not any(getattr(layer, name, UNKNOWN) for name in HOOKS)
        and getattr(layer, "_call_context_args", {UNKNOWN}) <= {"training"}
        and _makes_no_mask(layer)
        and _calls_as_known(keras.layers.Layer, keras.Operation)
    )


def _calls_as_known(layer, operation):
    """Whether `Layer.__call__` and what it calls on torch have known sources, and masks are where `_accepts` looks."""
    used = [layer.__call__, operation.__call__, getattr(layer, "forward", None)]
    used += [operation._dispatch_call] if hasattr(operation, "_dispatch_call") else []
    return all(map(is_known, used)) and _masks_are_attributes()


@functools.cache
def _masks_are_attributes():
    masked = keras.layers.Masking(name="masking_probe")(ops.zeros((1, 1, 1)))
    return hasattr(masked, "_keras_mask")


def _makes_no_mask(layer):
    from_none = (keras.layers.Layer.compute_mask, keras.layers.Add.compute_mask)  # both return None without a mask
    return type(layer).compute_mask in from_none or not getattr(layer, "mask_zero", True)


def _accepts(layer, x):
    import torch

    if isinstance(x, list):
        return all(_accepts(layer, part) for part in x)
    if not isinstance(x, torch.Tensor) or hasattr(x, "_keras_mask"):
        return False
    return not x.is_floating_point() or keras.backend.standardize_dtype(x.dtype) == layer.compute_dtype


def swapped_values(layer) -> list[tuple]:
    """Return [(variable, tensor)] where `torch.func.functional_call` has put another tensor in a parameter's place.

    Keras' variables do not read torch's parameters. Empty on other backends, while torch compiles, and in a Keras that
    keeps the parameters elsewhere: there `functional_call` is Keras' own matter.
    """
    if keras.backend.backend() != "torch":
        return []
    import torch

    parameters = getattr(getattr(layer, "_torch_params", None), "_parameters", None)
    if parameters is None or torch.compiler.is_compiling():
        return []
    present = list(parameters.values())
    before = _own_parameters.get(layer, ())
    if len(before) == len(present) and all(map(operator.is_, before, present)):
        return []
    variables = [variable for variable in layer.variables if hasattr(variable, "_value")]
    own = {id(variable._value) for variable in variables}
    pairs = [(variable, parameters.get(variable.path)) for variable in variables]
    swapped = [(variable, tensor) for variable, tensor in pairs if tensor is not None and id(tensor) not in own]
    if not swapped:
        _own_parameters[layer] = present
    return swapped


_own_parameters: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # of each model, when last compared


# Optimizers.


def adam_moments(optimizer: keras.optimizers.Optimizer, variable) -> tuple | None:
    """Return the (first, second) moments that a built Adam keeps of a variable, `keras.Variable` each.

    None if they cannot be found, or if Keras' update is not the known one, so that a form of it must not be used.
    """
    try:
        index = optimizer._get_variable_index(variable)
        moments = optimizer._momentums[index], optimizer._velocities[index]
    except (AttributeError, TypeError, KeyError, IndexError):
        return None
    return moments if is_known(keras.optimizers.Adam.update_step) else None
