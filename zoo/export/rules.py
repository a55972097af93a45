"""How layers and activations are written to ONNX: a registry, and the rules of Keras' and `convnext`'s layers.

A rule gets the graph, the layer and the values that the layer is called with, and returns the resulting value.
Norms, softmax and GRN are computed in float32 at every precision; matrix products follow `Graph.precision`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from zoo.export.graph import FIRST, FLAT, FLOAT32, INT8, INT64, LAST, Graph, Value
from zoo.export.products import each, product, tiles
from zoo.models.folding import BRANCHES, batch_norm_affine, to_numpy

Rule = Callable[..., Any]
RULES: dict[type | str, Rule] = {}  # layer class, or its name in our packages or Keras → rule
ACTIVATIONS: dict[Callable | str, Rule] = {}  # activation function, or its name in our packages or Keras → rule
_OWN_PACKAGES = ("keras", "convnext", "clip")


def register_emission(target: Callable) -> Callable[[Rule], Rule]:
    """Register how a layer class or an activation function is written to ONNX; a decorator.

    The rule of a layer is called with (graph, layer, *values, **arguments), like the layer's `call` with tensors; the
    rule of an activation with (graph, value). Rules add nodes with `graph.op(type, inputs, **attributes)` and weights
    with `graph.weight(array, name)`, request a layout with `graph.to(value, "last" | "first" | "flat")`, and return
    the resulting `Value`. If its shape differs from the first input's, set it: `dataclasses.replace(value, shape=…)`.

    Args:
        target: the class of the layer, or the activation function.

    Raises:
        TypeError: `target` is neither a class nor a function.
    """
    if not callable(target):
        raise TypeError(f"register_emission needs the class of a layer or an activation function, got {target!r}.")
    return _register(target, rules=RULES if isinstance(target, type) else ACTIVATIONS)


def _register(*keys, rules=RULES):
    def remember(rule):
        rules.update(dict.fromkeys(keys, rule))
        return rule

    return remember


def _find(target, rules):
    """Return the rule of a class or function, or None. Names count only for classes and functions of these packages."""
    own = getattr(target, "__module__", "").partition(".")[0] in _OWN_PACKAGES
    return rules.get(target) or (rules.get(target.__name__) if own else None)


def rule_of(layer: keras.Layer) -> Rule:
    """Return the rule of a layer.

    Raises:
        ValueError: its class has none; the message says how to register one.
    """
    cls = type(layer)
    rule = _find(cls, RULES)
    if rule is None:
        raise ValueError(
            f"Layer {layer.name!r} is a {cls.__module__}.{cls.__name__}, which has no ONNX rule. Register one with "
            f"@zoo.export.register_emission({cls.__name__}), or export the model with zoo export --via keras."
        )
    return rule


@_register("Dropout", "SpatialDropout2D", "GaussianNoise", "ActivityRegularization", "Identity")
def identity(graph: Graph, layer, x: Value) -> Value:  # noqa: ARG001
    return x


@_register("Conv2D", "DepthwiseConv2D")
def convolution(graph, layer, x):
    bias = to_numpy(layer.bias) if layer.use_bias else None
    if graph.precision == INT8 and _is_tiling(layer, x):
        kernel = to_numpy(layer.kernel).reshape(-1, layer.filters)
        return activate(graph, product(graph, tiles(graph, x, layer.kernel_size), kernel, bias), layer.activation)
    pads = _pads(layer, x)
    y = convolve(graph, x, to_numpy(layer.kernel), bias, strides=layer.strides, pads=pads, **_kind(layer))
    return activate(graph, y, layer.activation)


def _is_tiling(layer, x):
    """Return whether the windows tile a feature map, so that the convolution is one matrix product."""
    kind = {"depthwise": False, "dilations": (1, 1), "groups": 1}
    fits = _kind(layer) == kind and layer.padding == "valid" and (1, 1) != layer.kernel_size == layer.strides
    covers = all(side and side % size == 0 for side, size in zip(x.shape[1:3], layer.kernel_size, strict=True))
    return fits and covers and x.channels > 3


def _kind(layer):
    is_depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
    return {"depthwise": is_depthwise, "dilations": layer.dilation_rate, "groups": getattr(layer, "groups", 1)}


def _pads(layer, x):
    """Return (above, left, below, right) of Keras' padding; with strides, "same" depends on the input's size."""
    if layer.padding == "valid":
        return (0, 0, 0, 0)
    sizes = layer.kernel_size if hasattr(layer, "kernel_size") else layer.pool_size
    dilations = getattr(layer, "dilation_rate", (1, 1))
    totals = []
    for size, stride, dilation, side in zip(sizes, layer.strides, dilations, x.shape[1:3], strict=True):
        reach = (size - 1) * dilation
        if stride > 1 and side is None:
            raise ValueError(
                f"Layer {layer.name!r} has padding='same' with stride {stride} on images of any size, which ONNX "
                "cannot express. Build the model for a fixed input_shape."
            )
        totals.append(reach if stride == 1 else max((-(-side // stride) - 1) * stride + reach + 1 - side, 0))
    begin = [total // 2 for total in totals]
    return (*begin, *(total - first for total, first in zip(totals, begin, strict=True)))


def convolve(graph, x, kernel, bias, *, strides, pads, depthwise, dilations=(1, 1), groups=1):
    """Add a Conv with a Keras kernel, (h, w, in, out) or depthwise (h, w, C, M); pending padding of x is merged."""
    x, pads = _take_zeros(x, pads)
    x = graph.to(x, FIRST)
    size = kernel.shape[:2]
    if depthwise:
        groups = kernel.shape[2]
        kernel = kernel.transpose(2, 3, 0, 1).reshape(-1, 1, *size)
    else:
        kernel = kernel.transpose(3, 2, 0, 1)
    weights = [graph.weight(kernel, "kernel"), *([] if bias is None else [graph.weight(bias, "bias")])]
    y = graph.op(
        "Conv",
        [graph.cast(x, graph.compute), *weights],
        kernel_shape=size,
        strides=_pair(strides),
        pads=pads,
        dilations=None if set(dilations) == {1} else dilations,
        group=None if groups == 1 else groups,
    )
    shape = _window_shape(x.shape, size, strides, pads, dilations, kernel.shape[0])
    return dataclasses.replace(y, shape=shape, like=None)


def _take_zeros(x, pads):
    """Return (x without its pending padding, `pads` with that padding added)."""
    if not x.pads:
        return x, pads
    above, left, below, right = x.pads
    batch, height, width, channels = x.shape
    bare = (batch, height and height - above - below, width and width - left - right, channels)
    return dataclasses.replace(x, shape=bare, pads=None), tuple(a + b for a, b in zip(pads, x.pads, strict=True))


def _pair(sides):
    return (sides, sides) if isinstance(sides, int) else tuple(sides)


def _window_shape(shape, size, strides, pads, dilations, channels):
    """Return the Keras shape after a convolution or pooling."""
    sides = []
    for axis in (0, 1):
        side, reach = shape[1 + axis], (size[axis] - 1) * dilations[axis]
        total = pads[axis] + pads[axis + 2]
        sides.append(None if side is None else (side + total - reach - 1) // _pair(strides)[axis] + 1)
    return (shape[0], *sides, channels)


@_register(*BRANCHES)
def branches(graph, layer, x):
    """Write branches that add up to one convolution as that convolution."""
    kernel, bias = layer.folded()
    pads = layer.padding * 2
    return convolve(graph, x, kernel, bias, strides=layer.strides, pads=pads, depthwise=layer.filters is None)


@_register("Dense")
def dense(graph, layer, x):
    bias = to_numpy(layer.bias) if layer.use_bias else None
    return activate(graph, product(graph, x, to_numpy(layer.kernel), bias), layer.activation)


@_register("LayerNormalization")
def layer_norm(graph, layer, x):
    axes = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)
    if [axis % len(x.shape) for axis in axes] != [len(x.shape) - 1] or getattr(layer, "rms_scaling", False):
        raise ValueError(f"Layer {layer.name!r} must normalise the last axis and centre, got axis={layer.axis!r}.")
    x = graph.to(x, LAST if x.form == FIRST else x.form)
    wide = graph.cast(x, FLOAT32)
    scale = (
        graph.weight(to_numpy(layer.gamma), "gamma", FLOAT32)
        if layer.scale
        else graph.constant(np.ones(x.channels), FLOAT32)
    )
    shift = [graph.weight(to_numpy(layer.beta), "beta", FLOAT32)] if layer.center else []
    y = graph.op("LayerNormalization", [wide, scale, *shift], axis=-1, epsilon=float(layer.epsilon))
    return graph.cast(y, x.dtype)


@_register("BatchNormalization")
def batch_norm(graph, layer, x):
    """Write what folding did not merge: factor · x + shift."""
    x = graph.cast(graph.settled(x), graph.compute)
    factor, shift = (spread(vector, x) for vector in batch_norm_affine(layer))
    factor, shift = graph.weight(factor, "factor"), graph.weight(shift, "shift")
    return graph.op("Add", [graph.op("Mul", [x, factor]), shift])


def spread(vector, x):
    """Reshape (C,) to broadcast over x: (C, 1, 1) in form FIRST."""
    return vector[:, None, None] if x.form == FIRST else vector


@_register("LayerScale")
def layer_scale(graph, layer, x):
    x = graph.cast(graph.settled(x), graph.compute)
    return graph.op("Mul", [x, graph.weight(spread(to_numpy(layer.gamma), x), "gamma")])


@_register("GRN")
def grn(graph, layer, x):
    """x · (1 + gamma · share) + beta, share = ‖x‖ / (mean ‖x‖ + epsilon), norms over each map (arXiv:2301.00808)."""
    dtype, x = x.dtype, each(x, lambda part: graph.cast(graph.to(part, LAST), FLOAT32))
    # ReduceL2 takes twice as long in ONNX Runtime as the sum of squares.
    squares = (graph.op("Mul", [part, part], name="squares") for part in x.parts or (x,))
    sums = [reduce(graph, "ReduceSum", square, (1, 2)) for square in squares]
    norm = graph.op("Sqrt", [functools.reduce(lambda one, other: graph.op("Add", [one, other], name="sum"), sums)])
    mean = reduce(graph, "ReduceMean", norm, (-1,))
    mean = graph.op("Add", [mean, graph.constant(layer.epsilon, FLOAT32)])
    share = graph.op("Div", [norm, mean])
    share = graph.op("Mul", [share, graph.weight(to_numpy(layer.gamma), "gamma", FLOAT32)])
    factor = graph.op("Add", [share, graph.constant(1, FLOAT32)])
    beta = to_numpy(layer.beta)
    beta = graph.weight(beta, "beta", FLOAT32) if beta.any() else None

    def scaled(part):
        y = graph.op("Mul", [part, factor])
        return graph.cast(y if beta is None else graph.op("Add", [y, beta]), dtype)

    return each(x, scaled)


def reduce(graph, kind, x, axes, keepdims=1):
    """Add a Reduce… node. Its axes are an input from opset 18 on (ReduceSum: 13), before that an attribute."""
    if graph.opset >= 18 or kind == "ReduceSum":
        return graph.op(kind, [x, graph.constant(axes, INT64)], keepdims=keepdims)
    return graph.op(kind, [x], axes=axes, keepdims=keepdims)


@_register("Activation", "ReLU", "Softmax")
def activation(graph, layer, x):
    if isinstance(layer, keras.layers.Softmax):
        return softmax(graph, x)
    if not isinstance(layer, keras.layers.ReLU):
        return activate(graph, x, layer.activation)
    if layer.max_value is not None or layer.negative_slope or layer.threshold:
        options = "max_value, negative_slope or threshold"
        raise ValueError(f"Layer {layer.name!r} is a ReLU with {options}, which has no ONNX rule.")
    return activate(graph, x, keras.activations.relu)


def activate(graph, x, function):
    """Apply the rule of an activation function.

    Raises:
        ValueError: it has none; the message lists those that have.
    """
    rule = _find(function, ACTIVATIONS)
    if rule is None:
        known = sorted(key if isinstance(key, str) else key.__name__ for key in ACTIVATIONS)
        name = getattr(function, "__name__", function)
        raise ValueError(
            f"Layer {graph.scope!r} has the activation {name!r}, which has no ONNX rule. Allowed: {', '.join(known)}; "
            f"others need @zoo.export.register_emission({name})."
        )
    return each(x, lambda part: rule(graph, part))


def _one_node(kind: str, **attributes) -> Rule:
    """Return the rule of an activation that is one ONNX operator."""
    return lambda graph, x: graph.op(kind, [graph.settled(x)], **attributes)


ACTIVATIONS |= {
    keras.activations.linear: lambda _, x: x,
    keras.activations.relu: _one_node("Relu"),
    keras.activations.sigmoid: _one_node("Sigmoid"),
    keras.activations.tanh: _one_node("Tanh"),
    keras.activations.elu: _one_node("Elu"),
    keras.activations.selu: _one_node("Selu"),
    keras.activations.leaky_relu: _one_node("LeakyRelu", alpha=0.2),
}


@register_emission(keras.activations.silu)
def silu(graph, x):
    return graph.op("Mul", [x, graph.op("Sigmoid", [graph.settled(x)])])


@register_emission(keras.activations.relu6)
def relu6(graph, x):
    return graph.op("Clip", [graph.settled(x), graph.constant(0, x.dtype), graph.constant(6, x.dtype)])


@register_emission(keras.activations.mish)
def mish(graph, x):
    return graph.op("Mul", [x, graph.op("Tanh", [graph.op("Softplus", [graph.settled(x)])])])


@register_emission(keras.activations.gelu)
def gelu(graph, x):
    """Write the exact x Φ(x); below opset 20, which has no Gelu, as the formula that ONNX Runtime fuses."""
    x = graph.settled(x)
    if graph.opset >= 20:
        return graph.op("Gelu", [x], approximate="none")
    erf = graph.op("Erf", [graph.op("Div", [x, graph.constant(2**0.5, x.dtype)])])
    y = graph.op("Mul", [x, graph.op("Add", [erf, graph.constant(1, x.dtype)])])
    return graph.op("Mul", [y, graph.constant(0.5, x.dtype)])


@register_emission(keras.activations.softmax)
def softmax(graph, x):
    x = graph.to(x, LAST if x.form == FIRST else x.form)
    return graph.cast(graph.op("Softmax", [graph.cast(x, FLOAT32)], axis=-1), x.dtype)


@_register("Add", "Multiply")
def combine(graph, layer, values):
    """Add or multiply values of one rank in the form that moves least data; sides of 1 broadcast as in Keras."""
    kind = "Add" if isinstance(layer, keras.layers.Add) else "Mul"
    values = [graph.settled(value) for value in values]
    forms = {value.form for value in values}
    if len({value.shape[1:] for value in values}) > 1:  # small values follow the largest; FLAT does not broadcast
        largest = max(values, key=lambda value: sum(side != 1 for side in value.shape))
        form = FIRST if largest.form == FIRST else LAST
    else:
        form = forms.pop() if len(forms) == 1 else FLAT if FIRST not in forms else LAST
        form = FLAT if form == LAST and FLAT in forms else form
    first, *others = [graph.cast(graph.to(value, form), graph.compute) for value in values]
    for other in others:
        shape = tuple(None if None in pair else max(pair) for pair in zip(first.shape, other.shape, strict=True))
        first = dataclasses.replace(graph.op(kind, [first, other]), shape=shape, like=first.like or other.like)
    return first


@_register("ZeroPadding2D")
def _zero_padding(graph, layer, x):
    """Record the padding; a convolution that follows does it itself."""
    (above, below), (left, right) = layer.padding
    x = graph.to(x, FIRST)
    batch, height, width, channels = x.shape
    sides = (side and side + more for side, more in ((height, above + below), (width, left + right)))
    return dataclasses.replace(x, shape=(batch, *sides, channels), pads=(above, left, below, right))


@_register("MaxPooling2D", "AveragePooling2D")
def pooling(graph, layer, x):
    is_max = isinstance(layer, keras.layers.MaxPooling2D)
    pads = _pads(layer, x)
    if is_max and graph.maker(x) == "Relu":  # for values ≥ 0, padding with zeros and with −∞ give the same maximum
        x, pads = _take_zeros(x, pads)
    x = graph.to(x, FIRST)
    window = {"kernel_shape": layer.pool_size, "strides": layer.strides, "pads": pads}
    y = graph.op("MaxPool" if is_max else "AveragePool", [x], **window)
    shape = _window_shape(x.shape, layer.pool_size, layer.strides, pads, (1, 1), x.channels)
    return dataclasses.replace(y, shape=shape, like=None)


@_register("GlobalAveragePooling2D", "GlobalMaxPooling2D")
def _global_pooling(graph, layer, x):
    kind = "Max" if isinstance(layer, keras.layers.GlobalMaxPooling2D) else "Average"
    x = graph.settled(x)
    wide = graph.cast(x, FLOAT32)
    if x.form == FIRST:
        y = graph.op(f"Global{kind}Pool", [wide])
        y = y if layer.keepdims else graph.op("Flatten", [y], axis=1)
    else:
        kind = {"Max": "ReduceMax", "Average": "ReduceMean"}[kind]
        y = reduce(graph, kind, graph.to(wide, LAST), (1, 2), int(layer.keepdims))
    form = x.form if layer.keepdims else LAST
    shape = (x.shape[0], *(1, 1) * bool(layer.keepdims), x.channels)
    return graph.cast(dataclasses.replace(y, shape=shape, form=form, like=None), x.dtype)


@_register("Flatten", "Reshape")
def reshape(graph, layer, x):
    y = graph.reshape(graph.to(x, LAST), [0, *getattr(layer, "target_shape", (-1,))])
    return dataclasses.replace(y, shape=tuple(layer.output.shape))


@_register("Rescaling")
def _rescaling(graph, layer, x):
    scale, offset = np.asarray(layer.scale, np.float64), np.asarray(layer.offset, np.float64)
    x = graph.to(x, LAST)
    y = graph.op("Mul", [x, graph.weight(scale, "scale", x.dtype)])
    return graph.op("Add", [y, graph.weight(offset, "offset", x.dtype)])
