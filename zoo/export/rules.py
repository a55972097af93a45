"""What each layer of the image models becomes in ONNX: a table from classes to functions.

A rule gets the graph, the layer and the values that the layer is called with, and returns the value that it makes.
Norms, softmax and GRN are computed in float32 at every precision; products follow `Graph.precision`.
"""

import dataclasses
import functools

import keras
import numpy as np

from zoo.export.graph import FIRST, FLAT, FLOAT32, INT8, INT64, LAST, Graph, Value
from zoo.export.products import each, product, tiles
from zoo.models.folding import BRANCHES, batch_norm_affine, to_numpy

RULES: dict = {}  # class, or the name of a class of Keras or of ours → rule
OWN_PACKAGES = ("keras", "convnext", "clip")


def register_emission(cls):
    """Says how a layer is written to ONNX; a decorator of the function that does it.

    Args:
        cls: class of the layer.

    The function gets (graph, layer, *values, **arguments), as the layer's `call` gets tensors. It adds nodes with
    `graph.op(type, inputs, **attributes)` and weights with `graph.weight(array, name)`, asks for the layout that it
    needs with `graph.to(value, "last" | "first" | "flat")`, and returns the `Value` that it made. Where that has
    another shape than the first input, `dataclasses.replace(value, shape=…)` says so.

    Raises:
        TypeError: `cls` is no class.
    """
    if not isinstance(cls, type):
        raise TypeError(f"register_emission needs the class of a layer, got {cls!r}.")
    return _register(cls)


def _register(*keys):
    def remember(rule):
        RULES.update(dict.fromkeys(keys, rule))
        return rule

    return remember


def rule_of(layer):
    """The rule of a layer's class.

    Raises:
        ValueError: there is none; it names the layer and says what to register.
    """
    cls = type(layer)
    own = cls.__module__.partition(".")[0] in OWN_PACKAGES
    rule = RULES.get(cls) or (RULES.get(cls.__name__) if own else None)
    if rule is None:
        raise ValueError(
            f"Layer {layer.name!r} is a {cls.__module__}.{cls.__name__}, which has no rule for ONNX. Give it one with "
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
    """Whether the windows lie side by side and cover a map of features: a product of what is under each window."""
    kind = {"depthwise": False, "dilations": (1, 1), "groups": 1}
    fits = _kind(layer) == kind and layer.padding == "valid" and (1, 1) != layer.kernel_size == layer.strides
    covers = all(side and side % size == 0 for side, size in zip(x.shape[1:3], layer.kernel_size, strict=True))
    return fits and covers and x.channels > 3


def _kind(layer):
    is_depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
    return {"depthwise": is_depthwise, "dilations": layer.dilation_rate, "groups": getattr(layer, "groups", 1)}


def _pads(layer, x):
    """(above, left, below, right) of Keras' "same", which depends on the input where there are strides."""
    if layer.padding == "valid":
        return (0, 0, 0, 0)
    sizes = layer.kernel_size if hasattr(layer, "kernel_size") else layer.pool_size
    dilations = getattr(layer, "dilation_rate", (1, 1))
    totals = []
    for size, stride, dilation, side in zip(sizes, layer.strides, dilations, x.shape[1:3], strict=True):
        reach = (size - 1) * dilation
        if stride > 1 and side is None:
            raise ValueError(
                f"Layer {layer.name!r} pads an image of open size at stride {stride}, which ONNX cannot say. Build the "
                "model for a fixed input_shape."
            )
        totals.append(reach if stride == 1 else max((-(-side // stride) - 1) * stride + reach + 1 - side, 0))
    begin = [total // 2 for total in totals]
    return (*begin, *(total - first for total, first in zip(totals, begin, strict=True)))


def convolve(graph, x, kernel, bias, *, strides, pads, depthwise, dilations=(1, 1), groups=1):
    """Conv of a kernel as Keras has it, (h, w, in, out) or (h, w, C, M) depthwise; zeros waiting around x join in."""
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
    """(x without the zeros that wait around it, `pads` with them)."""
    if not x.pads:
        return x, pads
    above, left, below, right = x.pads
    batch, height, width, channels = x.shape
    bare = (batch, height and height - above - below, width and width - left - right, channels)
    return dataclasses.replace(x, shape=bare, pads=None), tuple(a + b for a, b in zip(pads, x.pads, strict=True))


def _pair(sides):
    return (sides, sides) if isinstance(sides, int) else tuple(sides)


def _window_shape(shape, size, strides, pads, dilations, channels):
    """Shape after a window slid over it."""
    sides = []
    for axis in (0, 1):
        side, reach = shape[1 + axis], (size[axis] - 1) * dilations[axis]
        total = pads[axis] + pads[axis + 2]
        sides.append(None if side is None else (side + total - reach - 1) // _pair(strides)[axis] + 1)
    return (shape[0], *sides, channels)


@_register(*BRANCHES)
def branches(graph, layer, x):
    """Branches that add up to one convolution are written as that one."""
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
        raise ValueError(f"Layer {layer.name!r} must normalise the last axis, it has axis={layer.axis!r}.")
    x = graph.to(x, LAST if x.form == FIRST else x.form)
    wide = graph.cast(x, FLOAT32)
    scale = graph.weight(to_numpy(layer.gamma), "gamma", FLOAT32) if layer.scale else graph.ones(x.channels)
    shift = [graph.weight(to_numpy(layer.beta), "beta", FLOAT32)] if layer.center else []
    y = graph.op("LayerNormalization", [wide, scale, *shift], axis=-1, epsilon=float(layer.epsilon))
    return graph.cast(y, x.dtype)


@_register("BatchNormalization")
def batch_norm(graph, layer, x):
    """What folding left: factor · x + shift."""
    x = graph.cast(graph.settled(x), graph.compute)
    factor, shift = (spread(vector, x) for vector in batch_norm_affine(layer))
    factor, shift = graph.weight(factor, "factor"), graph.weight(shift, "shift")
    return graph.op("Add", [graph.op("Mul", [x, factor]), shift])


def spread(vector, x):
    """(C,) so that it meets the channels of x: (C, 1, 1) in form FIRST."""
    return vector[:, None, None] if x.form == FIRST else vector


@_register("LayerScale")
def layer_scale(graph, layer, x):
    x = graph.cast(graph.settled(x), graph.compute)
    return graph.op("Mul", [x, graph.weight(spread(to_numpy(layer.gamma), x), "gamma")])


@_register("GRN")
def grn(graph, layer, x):
    """x · (1 + gamma · share) + beta, share = ‖x‖ / (mean ‖x‖ + epsilon), norms over each map (arXiv:2301.00808)."""
    dtype, x = x.dtype, each(x, lambda part: graph.cast(graph.to(part, LAST), FLOAT32))
    # ReduceL2 takes twice as long in ONNX Runtime as the sum of the squares.
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
    """A Reduce… node; its axes are an input from opset 18 on, ReduceSum's from 13 on, and an attribute before."""
    if graph.opset >= 18 or kind == "ReduceSum":
        return graph.op(kind, [x, graph.constant(axes, INT64)], keepdims=keepdims)
    return graph.op(kind, [x], axes=axes, keepdims=keepdims)


@_register("Activation", "ReLU", "Softmax")
def activation(graph, layer, x):
    if isinstance(layer, keras.layers.ReLU):
        return activate(graph, x, _plain_relu(layer))
    if isinstance(layer, keras.layers.Softmax):
        return softmax(graph, x)
    return activate(graph, x, layer.activation)


def _plain_relu(layer):
    if layer.max_value is not None or layer.negative_slope or layer.threshold:
        raise ValueError(f"Layer {layer.name!r} is no plain ReLU, which is all that has a rule for ONNX.")
    return keras.activations.relu


def activate(graph, x, function):
    """An activation of Keras or of ours, by its name."""
    name = activation_name(function)
    if name not in ACTIVATIONS:
        raise ValueError(
            f"Layer {graph.scope!r} has the activation {name!r}, which has no rule for ONNX. "
            f"Allowed: {', '.join(sorted(ACTIVATIONS))}."
        )
    return each(x, lambda part: ACTIVATIONS[name](graph, part))


def activation_name(function):
    """ "gelu", "quick_gelu": as it is serialised, without a package."""
    name = keras.activations.serialize(function)
    name = name["config"] if isinstance(name, dict) else name
    return str(name).rpartition(">")[2]


def gelu(graph, x):
    """x Φ(x), exact; below opset 20, which has a node for it, by its formula, which ONNX Runtime recognises."""
    x = graph.settled(x)
    if graph.opset >= 20:
        return graph.op("Gelu", [x], approximate="none")
    erf = graph.op("Erf", [graph.op("Div", [x, graph.constant(2**0.5, x.dtype)])])
    y = graph.op("Mul", [x, graph.op("Add", [erf, graph.constant(1, x.dtype)])])
    return graph.op("Mul", [y, graph.constant(0.5, x.dtype)])


def quick_gelu(graph, x):
    gate = graph.op("Sigmoid", [graph.op("Mul", [x, graph.constant(1.702, x.dtype)])])
    return graph.op("Mul", [x, gate])


def softmax(graph, x):
    x = graph.to(x, LAST if x.form == FIRST else x.form)
    return graph.cast(graph.op("Softmax", [graph.cast(x, FLOAT32)], axis=-1), x.dtype)


def _node(kind):
    return lambda graph, x: graph.op(kind, [graph.settled(x)])


def _silu(graph, x):
    return graph.op("Mul", [x, graph.op("Sigmoid", [graph.settled(x)])])


ACTIVATIONS = {
    "linear": lambda graph, x: x,  # noqa: ARG005
    "relu": _node("Relu"),
    "sigmoid": _node("Sigmoid"),
    "tanh": _node("Tanh"),
    "silu": _silu,
    "gelu": gelu,
    "quick_gelu": quick_gelu,
    "softmax": softmax,
}


@_register("Add")
def add(graph, layer, values):  # noqa: ARG001
    return elementwise(graph, "Add", values)


@_register("Multiply")
def multiply(graph, layer, values):  # noqa: ARG001
    return elementwise(graph, "Mul", values)


def elementwise(graph, kind, values):
    """Values of one rank, joined in the form that moves least; sides of 1 are repeated as Keras does."""
    values = [graph.settled(value) for value in values]
    forms = {value.form for value in values}
    if len({value.shape[1:] for value in values}) > 1:  # the small ones follow the large; one side of 1 has no rows
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
def zero_padding(graph, layer, x):
    """Left to whoever reads it: a convolution pads by itself."""
    (above, below), (left, right) = layer.padding
    x = graph.to(x, FIRST)
    batch, height, width, channels = x.shape
    sides = (side and side + more for side, more in ((height, above + below), (width, left + right)))
    return dataclasses.replace(x, shape=(batch, *sides, channels), pads=(above, left, below, right))


@_register("MaxPooling2D", "AveragePooling2D")
def pooling(graph, layer, x):
    is_max = isinstance(layer, keras.layers.MaxPooling2D)
    pads = _pads(layer, x)
    if is_max and graph.maker(x) == "Relu":  # what is never negative has the same maximum with zeros as with −∞ around
        x, pads = _take_zeros(x, pads)
    x = graph.to(x, FIRST)
    window = {"kernel_shape": layer.pool_size, "strides": layer.strides, "pads": pads}
    y = graph.op("MaxPool" if is_max else "AveragePool", [x], **window)
    shape = _window_shape(x.shape, layer.pool_size, layer.strides, pads, (1, 1), x.channels)
    return dataclasses.replace(y, shape=shape, like=None)


@_register("GlobalAveragePooling2D", "GlobalMaxPooling2D")
def global_pooling(graph, layer, x):
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


@_register("Flatten")
def flatten(graph, layer, x):
    y = graph.reshape(graph.to(x, LAST), [0, -1])
    return dataclasses.replace(y, shape=tuple(layer.output.shape))


@_register("Reshape")
def reshape(graph, layer, x):
    y = graph.reshape(graph.to(x, LAST), [0, *layer.target_shape])
    return dataclasses.replace(y, shape=tuple(layer.output.shape))


@_register("Rescaling")
def rescaling(graph, layer, x):
    scale, offset = np.asarray(layer.scale, np.float64), np.asarray(layer.offset, np.float64)
    x = graph.to(x, LAST)
    y = graph.op("Mul", [x, graph.weight(scale, "scale", x.dtype)])
    return graph.op("Add", [y, graph.weight(offset, "offset", x.dtype)])
