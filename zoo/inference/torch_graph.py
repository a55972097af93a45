"""Torch functions traced to a graph of kernels, for inputs of one shape.

Tracing removes the time that Keras' layers spend between kernels. `packed_graph` also keeps the weights in oneDNN's
layout: with few rows, reading the weights takes most of the time, and that layout halves it. `compile_graph` compiles
a traced graph with `torch.compile`.
"""

import functools
from collections.abc import Callable

_MAX_PACKED_ROWS = 128  # with more rows, reading the weights is a small part, and a second copy does not pay


class PackedWeight:
    """A weight matrix in oneDNN's layout, packed again when torch records a change.

    Args:
        weight: float32 (K, N), a torch tensor.
    """

    def __init__(self, weight):
        self.weight, self.version, self.packed = weight, None, None

    def current(self):
        """Return the packed weight, an argument of `mkldnn::_linear_pointwise`."""
        import torch

        if self.version != self.weight._version:
            self.version = self.weight._version
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach().t())
        return self.packed


def packed_graph(function: Callable, x, packed: dict[int, PackedWeight]) -> Callable:
    """Return `function` as a graph for tensors of x's shape, which follows in-place changes of its weights.

    Args:
        function: tensor → tensor, without branches that depend on values.
        packed: {id of a weight: packed weight}, shared by the graphs of one function; new weights are added.

    Raises:
        Exception: any exception of torch, where the function cannot be traced.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    graph = make_fx(function)(x)
    weights = [packed.setdefault(id(weight), PackedWeight(weight)) for weight in _extract_weights(graph)]
    for weight in weights:
        weight.current()  # raises for tensors made in inference mode, whose changes torch does not record
    return lambda x: graph(x, *(weight.current() for weight in weights))


def _extract_weights(graph) -> list:
    """Turn the weights of oneDNN's products into inputs of the graph, after x; return them in that order."""
    import torch

    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return []
    product, transpose = torch.ops.mkldnn._linear_pointwise.default, torch.ops.aten.t.default
    last = next(node for node in graph.graph.nodes if node.op == "placeholder")
    weights = []
    for node in [node for node in graph.graph.nodes if node.target is product]:
        rows, kernel = node.args[:2]
        is_weight = kernel.target is transpose and kernel.args[0].op == "get_attr"
        if is_weight and rows.meta["val"].shape[0] <= _MAX_PACKED_ROWS:
            weights.append(getattr(graph, kernel.args[0].target))
            with graph.graph.inserting_after(last):
                last = graph.graph.placeholder(f"packed_{len(weights)}")
            node.replace_input_with(kernel, last)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return weights


def graph_of(function: Callable, x):
    """Return the graph of a torch function without gradients, traced for inputs of x's shape.

    `torch.compile` alone breaks a Keras model into pieces with Python between them, and leaves most of them
    uncompiled. `compile_graph` compiles the list of torch operators of one traced call.

    Args:
        function: function of tensors in a structure like x's.

    Raises:
        Exception: any exception of tracing.
    """
    import torch
    from torch.fx.experimental.proxy_tensor import make_fx

    with torch.no_grad():
        graph = make_fx(function)(x)
    _keep_onednn(graph)
    return graph


def compile_graph(graph, x) -> Callable:
    """Return a traced graph compiled by `torch.compile`, after one call with x."""
    import torch

    with torch.no_grad():
        function = torch.compile(graph)
        function(x)
    return function


def _keep_onednn(graph) -> None:
    """Replace oneDNN's product, which torch's compiler takes with constant weights only, by `_onednn_product`."""
    import torch

    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        for node in graph.graph.find_nodes(op="call_function", target=torch.ops.mkldnn._linear_pointwise.default):
            node.target, node.args = _onednn_product(), node.args[:4]
        graph.recompile()


@functools.cache
def _onednn_product():
    """Return oneDNN's matrix product as an operator that torch's compiler does not replace. The MKL product it would
    use instead is half as fast on some processors (see `convnext.kernels.torch_cpu`)."""
    import torch

    def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], "none")

    operator = torch.library.custom_op("convnext_clip_zoo::onednn_product", product, mutates_args=())
    operator.register_fake(lambda x, weight, *_: x.new_empty(*x.shape[:-1], weight.shape[0]))
    return torch.ops.convnext_clip_zoo.onednn_product.default
