"""An ONNX graph under construction: values that know their layout, and uniquely named nodes and weights.

A `Value` of rank 3 or 4 has one of three forms and is converted only when a layer needs another: LAST, as in Keras,
(B, H, W, C) or (B, L, C); FIRST, (B, C, H, W), for convolutions; FLAT, (B·H·W, C), for matrix products. Between LAST
and FLAT no data moves; to and from FIRST is a transpose.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np

LAST, FIRST, FLAT = "last", "first", "flat"
FLOAT32, FLOAT16, INT32, INT64, INT8, UINT8 = "float32", "float16", "int32", "int64", "int8", "uint8"
PRECISIONS = (FLOAT32, FLOAT16, INT8)
OPSETS = (17, 20)
_TO_FIRST, _TO_LAST = (0, 3, 1, 2), (0, 2, 3, 1)


@dataclass(frozen=True)
class Value:
    """A tensor of the graph.

    Args:
        name: name in the file.
        shape: shape as in Keras, channels last, None for dynamic dimensions.
        form: LAST, FIRST or FLAT.
        dtype: NumPy's name of the dtype.
        like: name of a tensor in form LAST with the same shape except the channels; None for the value itself.
        pads: zeros not yet added around it, (above, left, below, right).
        parts: values to be concatenated along the height; the value itself then has no name.
    """

    name: str
    shape: tuple
    form: str = LAST
    dtype: str = FLOAT32
    like: str | None = None
    pads: tuple | None = None
    parts: tuple = ()

    @property
    def channels(self):
        return self.shape[-1]


class Graph:
    """Nodes and weights. Names depend only on the layers' names and the order of the calls.

    Args:
        opset: 17 or 20.
        precision: precision of matrix products, "float32", "float16" or "int8".

    Attributes:
        scope: path of the present layer, the prefix of new names.
        nodes: list of (type, inputs, outputs, name, attributes).
        weights: name → array.
        inputs, outputs: name → `Value`, as the file declares them.
        name: name of the model.
    """

    def __init__(self, opset=20, precision=FLOAT32):
        self.opset = opset
        self.precision = precision
        self.compute = FLOAT16 if precision == FLOAT16 else FLOAT32
        self.scope = ""
        self.nodes: list = []
        self.weights: dict = {}
        self.inputs: dict = {}
        self.outputs: dict = {}
        self.name = ""
        self._made: dict = {}  # the results of `once`
        self._taken: set = set()

    def op(self, kind, inputs, *, like=None, outputs=1, name=None, **attributes):
        """Add a node.

        Args:
            kind: ONNX operator.
            inputs: `Value`s, names of tensors, or None for an omitted input.
            like: `Value` whose shape, form and dtype the results get; default the first `Value` of the inputs.
            outputs: number of results.
            name: last part of the node's name; default the operator.
            attributes: attributes of the node; None means omitted.

        Returns:
            A `Value`, or a list of them if `outputs` is above 1.
        """
        template = like or next(value for value in inputs if isinstance(value, Value))
        names = [(value.name if isinstance(value, Value) else value) or "" for value in inputs]
        label = self._unique(f"{self.scope}/{name or kind}")
        results = [label if outputs == 1 else f"{label}:{index}" for index in range(outputs)]
        attributes = {key: value for key, value in attributes.items() if value is not None}
        self.nodes.append((kind, names, results, label, attributes))
        values = [dataclasses.replace(template, name=result, pads=None, parts=()) for result in results]
        return values[0] if outputs == 1 else values

    def _unique(self, label):
        """Return `label`, with a number appended if it is taken."""
        candidate, number = label, 1
        while candidate in self._taken:
            number += 1
            candidate = f"{label}_{number}"
        self._taken.add(candidate)
        return candidate

    def weight(self, array, name, dtype=None):
        """Add a weight of the present layer; return its name. Floats get the dtype of matrix products by default."""
        array = np.asarray(array)
        array = array.astype(dtype or (self.compute if array.dtype.kind == "f" else array.dtype))
        label = self._unique(f"{self.scope}/{name}")
        self.weights[label] = np.ascontiguousarray(array)
        return label

    def constant(self, array, dtype):
        """Add an array shared by all nodes that need it, at most eight numbers or one repeated; return its name."""
        array = np.asarray(array, dtype)
        numbers = array.ravel().tolist()
        if len(numbers) > 8 and len(set(numbers)) > 1:
            raise ValueError(f"A constant has at most eight different numbers, got shape {array.shape}; use weight().")
        content = "_".join(map(str, numbers if len(numbers) <= 8 else numbers[:1]))
        label = f"const/{array.dtype}[{','.join(map(str, array.shape))}]{content}"
        self.weights.setdefault(label, array)
        return label

    @property
    def nbytes(self):
        """Bytes of all weights."""
        return sum(array.nbytes for array in self.weights.values())

    def maker(self, value):
        """Return the operator that made a value; None for an input."""
        return next((kind for kind, _, results, *_ in self.nodes if value.name in results), None)

    def once(self, key, make):
        """Return `make()`, called once per key."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def cast(self, value, dtype):
        """Return `value` in a dtype; each conversion is emitted once."""
        if value.dtype == dtype:
            return value
        value = self.settled(value)

        def convert():
            import onnx

            code = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
            return dataclasses.replace(self.op("Cast", [value], to=int(code)), dtype=dtype)

        return self.once((value.name, dtype), convert)

    def to(self, value, form):
        """Return `value` in a form; each conversion is emitted once."""
        value = self.settled(value)
        if value.form == form or len(value.shape) < 3:
            return value
        if FIRST in (value.form, form) and FLAT in (value.form, form):
            return self.to(self.to(value, LAST), form)
        return self.once((value.name, form), lambda: self._convert(value, form))

    def _convert(self, value, form):
        if form == FLAT:
            flat = self.op("Reshape", [value, self.constant([-1, value.channels], INT64)], name="flatten")
            return dataclasses.replace(flat, form=FLAT, like=value.like or value.name)
        if value.form == FLAT:
            whole = self.op("Reshape", [value, self.full_shape(value)], name="unflatten")
            return dataclasses.replace(whole, form=LAST)
        order = _TO_FIRST if form == FIRST else _TO_LAST
        return dataclasses.replace(self.op("Transpose", [value], perm=order), form=form)

    def settled(self, value):
        """Return `value` in one piece and with its padding."""
        if value.parts:
            parts = [self.to(part, LAST) for part in value.parts]
            key = ("joined", *(part.name for part in value.parts))
            whole = self.once(key, lambda: self.op("Concat", parts, axis=1, name="joined"))
            return dataclasses.replace(whole, shape=value.shape, like=None)
        if not value.pads:
            return value
        above, left, below, right = value.pads
        ends = self.constant([0, 0, above, left, 0, 0, below, right], INT64)
        return self.op("Pad", [value, ends], name="pad")

    def split(self, value, count):
        """Split a (B, H, W, C) `value` into `count` parts of equal height, joined when a layer needs the whole."""
        batch, height, *others = value.shape
        options = {"num_outputs": count} if self.opset >= 18 else {}
        parts = self.op("Split", [self.to(value, LAST)], outputs=count, axis=1, **options)
        shape = (batch, height // count, *others)
        parts = tuple(dataclasses.replace(part, shape=shape, like=None) for part in parts)
        return dataclasses.replace(value, name="", form=LAST, like=None, parts=parts)

    def reshape(self, value, shape, name="Reshape"):
        """Reshape `value`, −1 for one inferred and 0 for an unchanged dimension; the result has form LAST."""
        result = self.op("Reshape", [value, self.constant(shape, INT64)], name=name)
        sides = tuple(side if side > 0 else None for side in shape)
        return dataclasses.replace(result, shape=sides, form=LAST, like=None)

    def full_shape(self, value, *inner):
        """Return the name of the shape tensor [−1, …, C] of a FLAT value, with `inner` in place of C."""
        inner = inner or (value.channels,)
        middle = value.shape[1:-1]
        if None not in middle:
            return self.constant([-1, *middle, *inner], INT64)

        def join():
            parts = [self.constant([-1], INT64), self.sides(value), self.constant(inner, INT64)]
            return self.op("Concat", parts, like=value, axis=0, name="shape").name

        return self.once(("shape", value.like, inner), join)

    def sides(self, value):
        """Return the name of the shape tensor of a value without batch and channels."""
        source, end = value.like or value.name, len(value.shape) - 1
        return self.once(
            ("sides", source), lambda: self.op("Shape", [source], like=value, start=1, end=end, name="sides").name
        )
