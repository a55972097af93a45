"""A function of torch tensors as a graph of torch's kernels, for inputs of one shape.

What Keras' layers spend between the kernels falls away, and oneDNN finds the weights in the order in which it
multiplies by them: of a few rows most of the time is the way through the weights, which is half as long so.
"""

from collections.abc import Callable

FEW_ROWS = 128  # of more, the way through the weights is a small part, and they are not held twice


class PackedWeight:
    """A matrix in oneDNN's order, made anew when torch has noted a change of the matrix.

    Args:
        weight: float32 (K, N), a torch tensor.
    """

    def __init__(self, weight):
        self.weight, self.version, self.packed = weight, None, None

    def current(self):
        """What `mkldnn::_linear_pointwise` takes for the weight."""
        import torch

        if self.version != self.weight._version:
            self.version = self.weight._version
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach().t())
        return self.packed


def kernels_of(function: Callable, x, packed: dict[int, PackedWeight]) -> Callable:
    """`function` for tensors of x's shape; it follows its weights when they are written to in place.

    Args:
        function: tensor → tensor, without branches that depend on values.
        packed: {id of a weight: the weight, packed}, which graphs of one function share; added to.

    Raises:
        Exception: whatever torch raises where the function cannot be written down.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    graph = make_fx(function)(x)
    weights = [packed.setdefault(id(weight), PackedWeight(weight)) for weight in take_weights(graph)]
    for weight in weights:
        weight.current()  # raises for what was made in inference mode, of which torch notes no changes
    return lambda x: graph(x, *(weight.current() for weight in weights))


def take_weights(graph) -> list:
    """The weights of a graph's products by oneDNN of few rows, in the order of the inputs that come after x."""
    import torch

    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return []
    product, transpose = torch.ops.mkldnn._linear_pointwise.default, torch.ops.aten.t.default
    last = next(node for node in graph.graph.nodes if node.op == "placeholder")
    weights = []
    for node in [node for node in graph.graph.nodes if node.target is product]:
        rows, kernel = node.args[:2]
        is_weight = kernel.target is transpose and kernel.args[0].op == "get_attr"
        if is_weight and rows.meta["val"].shape[0] <= FEW_ROWS:
            weights.append(getattr(graph, kernel.args[0].target))
            with graph.graph.inserting_after(last):
                last = graph.graph.placeholder(f"packed_{len(weights)}")
            node.replace_input_with(kernel, last)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return weights
