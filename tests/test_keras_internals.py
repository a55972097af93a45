"""Private parts of Keras are used in `convnext/keras_internals.py` alone, and the results do not depend on them."""

import ast
import tomllib
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers import predict
from keras import layers, ops

from clip import ConvNeXt, Pair, Text, create_clip, tokenize
from convnext import AdamW, Functional, Variant, create_convnext_v1, keras_internals
from convnext.keras_internals import call_layer, copied_graph, is_functional, is_known, read_graph
from zoo import fold

pytestmark = pytest.mark.backend

ROOT = Path(__file__).resolve().parent.parent
SMALL = Variant(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32))


# Where private parts are used.


def private_names():
    """Return the private names of Keras' classes, and of small objects of them."""
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    model.compile("adam", "mse", metrics=["mae"])
    tensor, optimizer = model.inputs[0], keras.optimizers.Adam()
    optimizer.build(model.trainable_variables)
    node = tensor._keras_history.operation._inbound_nodes[0]
    functional = keras.Model(model.inputs, model.outputs)
    things = [model, functional, model.layers[0], layers.Conv2D(1, 1), layers.Embedding(2, 2), tensor, optimizer, node]
    things += [keras.metrics.Mean(), keras.losses.MeanSquaredError(), keras.initializers.Zeros(), keras.Function]
    things += [
        model.weights[0],
        keras.callbacks.Callback(),
        keras.random.SeedGenerator(0),
        keras.dtype_policies.get("float32"),
    ]
    kinds = {kind for thing in things for kind in (thing if isinstance(thing, type) else type(thing)).__mro__}
    spaces = [*(vars(kind) for kind in kinds if kind.__module__.startswith("keras.")), *map(vars, things[:-1])]
    names = {name for space in spaces for name in space} | {"_keras_mask"}
    return {name for name in names if name.startswith("_") and not name.endswith("__")}


def private_uses(tree, private):
    """Yield (line, what) of each import of keras.src, and each private name that is read, set, defined or named.

    A class that has no base may use such a name for what is its own.
    """
    own = {}  # node inside a class without a base → the names that the class sets or defines
    for kind in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and not node.bases):
        names = {node.name for node in kind.body if isinstance(node, ast.FunctionDef)}
        names |= {node.attr for node in ast.walk(kind) if is_own(node) and isinstance(node.ctx, ast.Store)}
        own |= {node: names for node in ast.walk(kind)}
    for node in ast.walk(tree):
        used = []
        if isinstance(node, ast.Import | ast.ImportFrom):
            named = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            used = [name for name in named if name.startswith("keras.src")]
        elif isinstance(node, ast.Attribute):
            is_private = node.attr in private and not (is_own(node) and node.attr in own.get(node, ()))
            used = [node.attr] if is_private or ast.unparse(node) == "keras.src" else []
        elif isinstance(node, ast.ClassDef) and node.bases:
            methods = [child.name for child in node.body if isinstance(child, ast.FunctionDef)]
            used = [name for name in methods if name in private]
        elif isinstance(node, ast.Call):
            texts = [part.value for part in node.args if isinstance(part, ast.Constant) and isinstance(part.value, str)]
            by_name = ast.unparse(node.func) in ("getattr", "hasattr", "setattr", "delattr", "operator.attrgetter")
            used = [text for text in texts if text.startswith("keras.src") or (by_name and text in private)]
        yield from ((node.lineno, name) for name in used)


def is_own(node):
    """Return whether a syntax node is an attribute of `self`."""
    return isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self"


@pytest.mark.once
def test_private_parts_are_used_in_one_file():
    private, found = private_names(), []
    for package in ("convnext", "clip", "zoo"):
        for path in sorted((ROOT / package).rglob("*.py")):
            uses = list(private_uses(ast.parse(path.read_text(encoding="utf-8")), private))
            if path.name == "keras_internals.py":
                assert {"_nodes_by_depth", "_remat_mode", "_keras_mask", "_momentums"} <= {name for _, name in uses}
            else:
                found += [f"{path.relative_to(ROOT)}:{line} {name}" for line, name in uses]
    assert not found, "\n".join(found)


@pytest.mark.once
@pytest.mark.parametrize(
    "source",
    [
        "from keras.src import backend",
        "import keras.src.layers",
        "keras.src.layers.Layer",
        "importlib.import_module('keras.src.ops')",
        "model._nodes_by_depth",
        "tensor._keras_history.operation",
        "model._loss_tracker.reset_state()",
        "getattr(layer, '_remat_mode', None)",
        "class A(keras.Model):\n    def _run_through_graph(self): ...",
    ],
)
def test_a_private_use_is_found(source):
    assert list(private_uses(ast.parse(source), private_names()))


@pytest.mark.once
def test_keras_has_a_lowest_release_and_no_highest():
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert [entry for entry in dependencies if entry.startswith("keras")] == ["keras>=3.15.1"]


# Known sources.


@pytest.mark.once
def test_known_sources(monkeypatch):
    assert is_known(layers.Layer.__call__), "read the change of Layer.__call__, then add its digest to KNOWN_SOURCES"
    assert is_known(keras.Operation.__call__), "as above"
    assert is_known(keras.optimizers.Adam.update_step), "as above"
    assert not is_known(layers.Layer.build)  # not in the table
    assert not is_known(len)  # no source
    assert not is_known(None)


def other(function):
    """Return a function that does the same, of another source."""

    def changed(*args, **kwargs):
        return function(*args, **kwargs)

    return changed


# The graph of a functional model.


def pair():
    text = Text(width=16, heads=2, layers=1)
    return create_clip(Pair(8, 32, ConvNeXt("convnextv2", "atto"), text), image_size=32)


def branched():
    """Two inputs, a shared layer, an operation with keywords, a list as argument, constants, nested outputs."""
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    shared = layers.Dense(4, name="shared")
    x = layers.Concatenate()([shared(a), shared(b)])
    x = ops.clip(x, x_min=-1.0, x_max=1.0) + np.ones(8, "float32")
    y = ops.where(ops.greater(x, 0.0), x1=x, x2=2 * x)
    return Functional({"a": a, "b": b}, {"sum": ops.sum(y, axis=-1), "all": [y, a]}, name="branched")


def lines(graph):
    """Return a graph as text, tensors by the place where they come from."""
    names = {id(tensor): f"input {i} of {graph.source(tensor).name}" for i, tensor in enumerate(graph.inputs)}
    text = []
    for call in graph.calls:
        arguments = keras.tree.map_structure(lambda x: names.get(id(x), str(x)), (call.args, call.kwargs))
        text.append(f"{call.operation.name} {arguments}")
        names.update({id(tensor): f"{i} of call {len(text)}" for i, tensor in enumerate(call.outputs)})
        assert all(graph.source(tensor) is call.operation for tensor in call.outputs)
    return [*text, str([names[id(tensor)] for tensor in graph.outputs])]


CREATE = {
    "classifier": lambda: create_convnext_v1(SMALL, num_classes=3, input_shape=(32, 32, 3), drop_path_rate=0.1),
    "pair": pair,
    "branched": branched,
}


@pytest.mark.parametrize("create", CREATE.values(), ids=CREATE)
def test_the_copied_graph_is_the_one_that_keras_keeps(create):
    model = create()
    model.compile("adam", **({} if hasattr(model, "image_encoder") else {"loss": "mse"}))
    read = read_graph(model)
    before = [len(operation._inbound_nodes) for operation in model.operations]
    copied = copied_graph(model)
    assert lines(copied) == lines(read)
    assert [call.operation for call in copied.calls] == [call.operation for call in read.calls]
    assert [copied.source(x) for x in copied.inputs] == [read.source(x) for x in read.inputs]
    assert [len(operation._inbound_nodes) for operation in model.operations] == before


@pytest.fixture(params=["attribute missing", "another container", "arguments of another kind"])
def without_graph(request, monkeypatch):
    """Make the graphs that Keras keeps unreadable to this package, while Keras itself reads on."""
    read = keras_internals.read_graph

    class Renamed:
        """A model as a Keras would show it that keeps its graph differently."""

        def __init__(self, model):
            self.model = model

        def __getattr__(self, name):
            found = getattr(self.model, name)
            if name != "_nodes_by_depth":
                return found
            if request.param == "attribute missing":
                raise AttributeError(name)
            if request.param == "another container":
                return [node for level in found.values() for node in level]
            return {depth: [Node(node) for node in level] for depth, level in found.items()}

    class Node:
        def __init__(self, node):
            self.operation, self.is_input, self.outputs = node.operation, node.is_input, node.outputs
            self.arguments = (node.arguments.args, node.arguments.kwargs)

    def blind(model):
        assert read(Renamed(model)) is None
        return None

    monkeypatch.setattr(keras_internals, "read_graph", blind)
    monkeypatch.setattr("convnext.functional.read_graph", blind)


@pytest.mark.once
def test_without_the_graph_models_compute_and_fold_alike(without_graph, monkeypatch, rng):
    images = rng.standard_normal((2, 32, 32, 3)).astype("float32")
    tokens = tokenize(["a", "bc"], 8)
    for create, inputs in (
        (CREATE["classifier"], images),
        (pair, {"images": images, "tokens": tokens}),
        (branched, {"a": images[:, 0, 0, :1].repeat(4, 1), "b": images[:, 1, 1, :1].repeat(4, 1)}),
    ):
        keras.utils.set_random_seed(1)
        model = create()
        assert is_functional(model)
        results = [predict(net, inputs) for net in (model, fold(model))]
        with monkeypatch.context() as patch:
            patch.setattr(keras_internals, "read_graph", read_graph)
            patch.setattr("convnext.functional.read_graph", read_graph)
            again = keras.models.clone_model(model) if not hasattr(model, "image_encoder") else create()
            again.set_weights(model.get_weights())
            expected = [predict(net, inputs) for net in (again, fold(again))]
        for ours, theirs in zip(keras.tree.flatten(results), keras.tree.flatten(expected), strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.once
def test_without_the_graph_onnx_files_are_the_same(without_graph, monkeypatch):
    pytest.importorskip("onnx")
    from zoo.export.emit import emit, to_proto

    model = pair()
    ours = to_proto(emit(model)).SerializeToString(deterministic=True)
    monkeypatch.setattr(keras_internals, "read_graph", read_graph)
    assert to_proto(emit(model)).SerializeToString(deterministic=True) == ours


@pytest.mark.once
def test_what_has_no_graph():
    class Own(keras.Model):
        def call(self, inputs):
            return inputs

    assert not is_functional(Own())
    assert not is_functional(layers.Dense(1))
    assert not is_functional(keras.Sequential([layers.Dense(1)]))


@pytest.mark.only("torch")
@pytest.mark.parametrize(
    "inputs", [lambda a, b: [a, b], lambda a, b: {"a": a, "b": b}, lambda a, b: {"a": a[:, 0, :], "b": b}]
)
def test_inputs_of_other_structures_go_by_keras(inputs, rng):
    model = branched()
    a, b = rng.standard_normal((2, 3, 4)).astype("float32")
    given = inputs(a[:, None], b)
    outputs = []
    for kind in (model, keras.Model(model.input, model.output)):
        try:
            outputs.append([np.asarray(ops.convert_to_numpy(y)) for y in keras.tree.flatten(kind(given))])
        except ValueError as error:
            outputs.append(str(error).partition(".")[0].replace(kind.name, ""))
    np.testing.assert_equal(outputs[0], outputs[1])


# Calls of layers on torch.


@pytest.mark.only("torch")
def test_direct_calls_give_way_where_keras_has_changed(rng):
    import torch

    layer, x = layers.Dense(3), torch.from_numpy(rng.standard_normal((2, 4)).astype("float32"))
    expected, called = layer(x), []

    def is_direct():
        called.clear()
        with pytest.MonkeyPatch.context() as patch:
            whole = layers.Layer._maybe_build  # only `Layer.__call__` calls it
            patch.setattr(layers.Layer, "_maybe_build", lambda self, *spec: called.append(self) or whole(self, *spec))
            assert torch.equal(call_layer(layer, x), expected)
        return not called

    assert is_direct()
    for owner, name, value in (
        (layers.Layer, "__call__", other(layers.Layer.__call__)),
        (keras.Operation, "__call__", other(keras.Operation.__call__)),
        (layers.Layer, "forward", other(layers.Layer.forward)),
        (keras_internals, "KNOWN_SOURCES", {}),
        (keras_internals, "HOOKS", ("_hooks_by_another_name",)),
        (keras_internals, "_masks_are_attributes", lambda: False),
        (torch.nn.modules.module, "_has_any_global_hook", None),
    ):
        with pytest.MonkeyPatch.context() as patch:
            if value is None:
                patch.delattr(owner, name)
            else:
                patch.setattr(owner, name, value)
            is_known.cache_clear()
            assert not is_direct(), name
        is_known.cache_clear()
    for name in ("_remat_mode", "_call_context_args"):
        kept = layer.__dict__.pop(name)
        assert not keras_internals._is_plain(layer), name
        layer.__dict__[name] = kept
    object.__setattr__(layer, "_calibration_capture", called.append)  # as Keras 3.16 sets it
    assert not keras_internals._is_plain(layer)
    object.__delattr__(layer, "_calibration_capture")
    assert is_direct()


# Optimizers.


@pytest.mark.only("tensorflow")
@pytest.mark.parametrize("lost", ["_momentums", "_get_variable_index", "update_step"])
def test_where_adam_has_changed_the_update_is_kerass(lost, monkeypatch, rng):
    values = rng.standard_normal((2, 3, 2)).astype("float32")
    fused = []
    update = AdamW._update_fused
    monkeypatch.setattr(AdamW, "_update_fused", lambda self, *args: fused.append(args) or update(self, *args))

    def train(kind):
        variable = keras.Variable(values[0])
        optimizer = kind(0.1)
        optimizer.build([variable])
        for _ in range(3):
            optimizer.apply([ops.convert_to_tensor(values[1])], [variable])
        return ops.convert_to_numpy(variable)

    expected = train(keras.optimizers.AdamW)
    np.testing.assert_allclose(train(AdamW), expected, rtol=1e-5)
    assert len(fused) == 3
    if lost == "update_step":
        monkeypatch.setattr(keras.optimizers.Adam, lost, other(keras.optimizers.Adam.update_step))
    else:

        class Blind:
            """An optimizer whose attribute has another name."""

            def __init__(self, optimizer):
                self.optimizer = optimizer

            def __getattr__(self, name):
                if name == lost:
                    raise AttributeError(name)
                return getattr(self.optimizer, name)

        find = keras_internals.adam_moments
        monkeypatch.setattr("convnext.adamw.adam_moments", lambda optimizer, variable: find(Blind(optimizer), variable))
    np.testing.assert_array_equal(train(AdamW), expected)
    assert len(fused) == 3
