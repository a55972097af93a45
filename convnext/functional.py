"""The class of the models that the builders return: Keras' functional model, with less kept in memory while it runs."""

import functools

import keras
from keras import ops, tree

from convnext.layers import PACKAGE
from convnext.torch_calls import call_layer


def build_optimizer(model: keras.Model) -> None:
    """Makes the variables of a compiled model's optimizer, where they are not there yet.

    A `make_train_function` that does so first has TensorFlow trace the training step once. Keras makes them inside the
    step, which is then traced anew.
    """
    optimizer = getattr(model, "optimizer", None)
    if keras.backend.backend() == "tensorflow" and optimizer is not None and not optimizer.built:
        with model.distribute_strategy.scope():
            optimizer.build(model.trainable_variables)


@keras.saving.register_keras_serializable(PACKAGE)
class Functional(keras.Model):
    """A functional `keras.Model` that lets go of each intermediate result after the last layer that reads it.

    Keras holds all of them until the call ends, which where layers run one by one (torch; the others when eager) costs
    memory and, since memory not yet touched is slow, time: beyond the libraries ConvNeXt-Tiny on 8 images of 224 pixels
    takes 332 MB in torch, and 1,163 as keras.applications makes it (docs/benchmarks/bars). On torch it calls layers by
    `call_layer`, too. Results, summary, weights and saved files are those of a `keras.Model`.
    """

    def make_train_function(self, force=False):
        build_optimizer(self)
        return super().make_train_function(force)

    def call(self, inputs, training=None, mask=None, **context):
        is_of_one_dtype = self.compute_dtype == self.variable_dtype
        if keras.backend.backend() != "torch" or not is_of_one_dtype or mask is not None or context:
            return super().call(inputs, training=training, mask=mask, **context)

        operation_fn = functools.partial(self._direct_call, training=training)
        outputs = self._run_through_graph(self._standardize_inputs(inputs), operation_fn)
        return outputs[0] if isinstance(outputs, list | tuple) and len(outputs) == 1 else outputs

    def _direct_call(self, layer, training):
        """What runs a layer: `call_layer` where it has the model's dtype; `training` goes to those that know of it."""
        knows = training is not None and "training" in getattr(layer, "_call_context_args", ())
        options = {"training": training} if knows else {}
        is_of_same_dtype = getattr(layer, "compute_dtype", None) == self.compute_dtype
        call = functools.partial(call_layer, layer) if is_of_same_dtype else layer
        return lambda *args, **own: call(*args, **{**own, **options})

    def _run_through_graph(self, inputs, operation_fn=lambda operation: operation, call_fn=None):
        if call_fn is not None:  # shapes alone
            return super()._run_through_graph(inputs, operation_fn, call_fn)
        values = {id(tensor): value for tensor, value in zip(self.inputs, tree.flatten(inputs), strict=True)}
        for node, spent in self._schedule:
            args, kwargs = node.arguments.fill_in(values)
            outputs = operation_fn(self._get_operation_for_node(node))(*args, **kwargs)
            outputs = [outputs] if len(node.outputs) == 1 and ops.is_tensor(outputs) else tree.flatten(outputs)
            values |= {id(tensor): value for tensor, value in zip(node.outputs, outputs, strict=True)}
            del args, kwargs, outputs
            for tensor in spent:
                del values[tensor]
        return tree.pack_sequence_as(self._outputs_struct, [values[id(tensor)] for tensor in self.outputs])

    @functools.cached_property
    def _schedule(self):
        """Each node in the order of the graph, with the ids of the tensors that nothing after it reads."""
        by_depth = sorted(self._nodes_by_depth.items(), reverse=True)
        nodes = [node for _, level in by_depth for node in level if node.operation and not node.is_input]
        needed, spent = {id(tensor) for tensor in self.outputs}, []
        for node in reversed(nodes):
            own = {id(tensor) for tensor in (*node.input_tensors, *node.outputs)}
            spent.append(own - needed)
            needed |= own
        return tuple(zip(nodes, reversed(spent), strict=True))
