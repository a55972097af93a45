"""From a functional Keras model to an ONNX model: each call in order, by the rule of its layer.

The bytes depend only on weights and configuration; TensorFlow, JAX and PyTorch give the same file.
"""

import dataclasses
from collections.abc import Mapping

import keras
import numpy as np

from convnext.keras_internals import graph_of
from zoo.export.graph import FIRST, FLOAT32, LAST, OPSETS, PRECISIONS, UINT8, Graph, Value
from zoo.export.rules import rule_of
from zoo.export.rules_clip import l2_normalize, pair_logits
from zoo.models.folding import check_functional, fold_with_affine

_PRODUCER = "convnext-clip-zoo"
_IR_VERSION = {17: 8, 20: 9}
_SMALL = 1024  # bytes; smaller weights stay in the model even if the others go to a file of their own
_CLASSIFIERS = ("head_fc", "zero_shot_head")  # names of the heads in `convnext` and `clip`
_SIDE_NAMES = {4: ("batch", "height", "width"), 2: ("batch", "length")}
_PAIR_SIDES = {"tokens": ("texts", "length"), "text_embeddings": ("texts",), "logits": ("batch", "texts")}


def emit(
    model: keras.Model,
    *,
    precision: str = FLOAT32,
    opset: int = 20,
    fold: bool = True,
    preprocess=None,
    layout: str = "NHWC",
    normalize: bool = False,
    logits: bool = False,
):
    """Return a model as an ONNX graph.

    Args:
        model: a functional model whose layers have rules.
        precision: of matrix products: "float32", "float16", or "int8" with dynamic scales for products over maps and
            sequences.
        opset: 20, or 17 for older runtimes.
        fold: write `zoo.fold(model)`.
        preprocess: `PreprocessSpec`; the file then takes uint8 pixels and scales them with its mean and std. The
            scaling goes into the stem's weights if that is exact, i.e. if the stem does not pad.
        layout: layout of the image input, "NHWC" as in Keras or "NCHW".
        normalize: L2-normalise the embeddings of a tower.
        logits: add a third output to a pair, exp(logit_scale) · cosine (+ bias), (B, B).

    Returns:
        `Graph`, to be converted by `to_proto`.

    Raises:
        ValueError: an unknown option, a layer without a rule, or an option that does not fit the model's outputs.
    """
    _check_options(model, precision, opset, layout, normalize, logits)
    has_images = any(len(tensor.shape) == 4 for tensor in model.inputs)
    affine = _pixel_affine(preprocess) if preprocess and has_images else None
    absorbed = False
    if fold:
        model, absorbed = fold_with_affine(model, affine)
    graph = Graph(opset, precision)
    graph.name = model.name
    inputs = [_input(graph, model, tensor, layout, preprocess) for tensor in model.inputs]
    values = [_prepare(graph, value, None if absorbed else affine) for value in inputs]
    results = _run(graph, model, values)
    graph.inputs = {value.name: _declared(value, layout) for value in inputs}
    graph.outputs = _finish(graph, model, results, normalize=normalize, logits=logits)
    return graph


def _check_options(model, precision, opset, layout, normalize, logits):
    """Raise ValueError for options that are unknown or do not fit the model."""
    _check_layers(model)
    is_pair = hasattr(model, "image_encoder")
    for name, value, allowed in (
        ("precision", precision, PRECISIONS),
        ("opset", opset, OPSETS),
        ("layout", layout, ("NHWC", "NCHW")),
    ):
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}.")
    if normalize and (is_pair or len(model.outputs) != 1 or len(model.outputs[0].shape) != 2):
        raise ValueError(
            f"normalize=True needs a tower with one output (B, D), got {model.name!r}. A CLIP model's embeddings are "
            "already normalised."
        )
    if normalize and _ends_in_classifier(model):
        raise ValueError(f"normalize=True needs a model that outputs embeddings; {model.name!r} ends in a classifier.")
    if logits and not is_pair:
        raise ValueError(f"logits=True needs a CLIP model; {model.name!r} is not one.")


def _ends_in_classifier(model):
    """Return whether a model's only output is class scores, by the head's name or a softmax or sigmoid at the end."""
    graph = graph_of(model)
    last = graph.source(graph.outputs[0])
    if isinstance(last, keras.Model):
        return _ends_in_classifier(last)
    activation = getattr(last, "activation", None)
    is_probability = activation in (keras.activations.softmax, keras.activations.sigmoid)
    return last.name in _CLASSIFIERS or is_probability or isinstance(last, keras.layers.Softmax)


def _check_layers(model):
    """Raise ValueError for layers without a rule, before folding replaces them."""
    check_functional(model)
    for call in graph_of(model).calls:
        check = _check_layers if isinstance(call.operation, keras.Model) else rule_of
        check(call.operation)


def _pixel_affine(spec):
    """Return (factor, shift), float64 (3,) each: a normalised pixel is factor · (0…255) + shift."""
    mean, std = (np.asarray(np.float32(values), np.float64) for values in (spec.mean, spec.std))
    return 1 / (255 * std), -mean / std


def _input(graph, model, tensor, layout, preprocess):
    """Return the `Value` of a model input."""
    is_image = len(tensor.shape) == 4
    dtype = UINT8 if is_image and preprocess else keras.backend.standardize_dtype(tensor.dtype)
    dtype = FLOAT32 if dtype in ("float16", "bfloat16", "float64") else dtype
    name = input_name(model, tensor)
    form = FIRST if is_image and layout == "NCHW" else LAST
    return Value(graph._unique(name), tuple(tensor.shape), form, dtype)


def _prepare(graph, value, affine):
    """Return an input as the first layer takes it: pixels as floats, scaled by `affine` if it is not None."""
    if value.dtype != UINT8:
        return value
    graph.scope = value.name
    value = graph.cast(graph.to(value, FIRST), FLOAT32)  # the transpose moves bytes, a quarter of the floats
    if affine is None:
        return value
    factor, shift = (numbers.reshape(3, 1, 1) for numbers in affine)
    factor, shift = graph.weight(factor, "pixel_factor", FLOAT32), graph.weight(shift, "pixel_shift", FLOAT32)
    return graph.op("Add", [graph.op("Mul", [value, factor]), shift], name="pixels")


def _run(graph, model, values, path=""):
    """Emit a functional model; return the values of its outputs in their structure."""
    calls, inputs, outputs, _ = graph_of(model)
    known = {id(tensor): value for tensor, value in zip(inputs, values, strict=True)}
    for call in calls:
        layer = call.operation
        args, kwargs = call.fill_in(known)
        scope = f"{path}{layer.name}"
        if isinstance(layer, keras.Model):
            results = _run(graph, layer, _in_order(layer, args), f"{scope}/")
        else:
            graph.scope = scope
            flat = {key: keras.tree.flatten(value) for key, value in kwargs.items()}
            kwargs = {key: kwargs[key] for key, parts in flat.items() if any(isinstance(p, Value) for p in parts)}
            results = rule_of(layer)(graph, layer, *args, **kwargs)
        known |= {id(t): v for t, v in zip(call.outputs, keras.tree.flatten(results), strict=True)}
    return keras.tree.pack_sequence_as(model.output, [known[id(tensor)] for tensor in outputs])


def _in_order(model, args):
    """Return the argument values of a nested model in the order of its inputs."""
    (inputs,) = args
    if isinstance(inputs, Mapping):
        return [inputs[input_name(model, tensor)] for tensor in model.inputs]
    return keras.tree.flatten(inputs)


def _finish(graph, model, results, *, normalize, logits):
    """Return {name: `Value`} of the file's outputs, float32, with normalisation or logits added if requested."""
    graph.scope = "outputs"
    if normalize:
        results = l2_normalize(graph, results)
    if logits:
        graph.scope = model.logit_scale.name
        embeddings = (results["image_embeddings"], results["text_embeddings"])
        results = {**results, "logits": pair_logits(graph, model.logit_scale, *embeddings)}
    named = {}
    for name, value in named_outputs(results).items():
        graph.scope = name
        value = graph.cast(graph.to(graph.settled(value), LAST), FLOAT32)
        final = graph.op("Identity", [value], name="out")
        kind, inputs, _, label, attributes = graph.nodes[-1]
        graph.nodes[-1] = (kind, inputs, [name], label, attributes)
        named[name] = dataclasses.replace(final, name=name)
    return named


def input_name(model, tensor):
    """Return the name of a model's input, that of the layer which stands for it."""
    entries = (layer for layer in model.layers if isinstance(layer, keras.layers.InputLayer))
    return next(layer.name for layer in entries if layer.output is tensor)


def named_outputs(results):
    """Return {name: result} with the file's output names: "output", "output_0", or the keys of a dict."""
    prefix = [] if isinstance(results, Mapping) else ["output"]
    flat = keras.tree.flatten_with_path(results)
    return {"_".join([*prefix, *map(str, path)]): result for path, result in flat}


def _declared(value, layout):
    """Return an input with the shape that the file declares."""
    if len(value.shape) == 4 and layout == "NCHW":
        batch, height, width, channels = value.shape
        return dataclasses.replace(value, shape=(batch, channels, height, width))
    return value


def to_proto(graph, store=None):
    """Return the `onnx.ModelProto` of a graph. Weights are moved out of the graph, so that memory holds them once.

    Args:
        store: None to keep the weights in the model; or a function that writes an array to another file and returns
            its place there, {"location", "offset", "length"}.
    """
    from onnx import helper

    nodes = [
        helper.make_node(kind, names, results, name=label, **attributes)
        for kind, names, results, label, attributes in graph.nodes
    ]
    named_sides = _PAIR_SIDES if "text_embeddings" in graph.outputs else {}  # texts and images may differ in number
    declared = [
        [_value_info(value, name, named_sides.get(name)) for name, value in values.items()]
        for values in (graph.inputs, graph.outputs)
    ]
    opset = [helper.make_operatorsetid("", graph.opset)]
    options = {"opset_imports": opset, "ir_version": _IR_VERSION[graph.opset], "producer_name": _PRODUCER}
    model = helper.make_model(helper.make_graph(nodes, graph.name, *declared), **options)
    used = {name for node in nodes for name in node.input}
    for name in list(graph.weights):
        array = graph.weights.pop(name)
        if name in used:
            _fill(model.graph.initializer.add(), name, array, store)
    return model


def _value_info(value, name, sides):
    """Return the declaration of an input or output; dimensions that are not fixed get names."""
    from onnx import helper

    names = sides or _SIDE_NAMES.get(len(value.shape), ("batch",))
    if value.form == FIRST:
        names = ("batch", None, "height", "width")
    shape = [names[axis] if side is None and axis < len(names) else side for axis, side in enumerate(value.shape)]
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(value.dtype)), shape)


def _fill(tensor, name, array, store):
    """Write an array into a TensorProto, little-endian."""
    from onnx import TensorProto, helper

    array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    tensor.name, tensor.data_type = name, helper.np_dtype_to_tensor_dtype(array.dtype)
    tensor.dims.extend(array.shape)
    if store is None or array.nbytes < _SMALL:
        tensor.raw_data = array.tobytes()
        return
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in store(array).items():
        tensor.external_data.add(key=key, value=str(value))
