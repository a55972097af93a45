"""The class of models that the builders return: Keras' functional model with lower peak memory."""

import functools

import keras
from keras import ops, tree

from convnext.layers import PACKAGE
from convnext.torch_calls import call_layer


def build_optimizer(model: keras.Model) -> None:
    """Create the variables of a compiled model's optimizer if they do not exist yet; TensorFlow only.

    Done before the training step is traced, TensorFlow traces it once. Keras creates them inside the step, which is
    then traced a second time.
    """
    optimizer = getattr(model, "optimizer", None)
    if keras.backend.backend() == "tensorflow" and optimizer is not None and not optimizer.built:
        with model.distribute_strategy.scope():
            optimizer.build(model.trainable_variables)


@keras.saving.register_keras_serializable(PACKAGE)
class Functional(keras.Model):
    """A functional `keras.Model` that frees each intermediate result after the last layer that reads it.

    Keras keeps all of them until the call ends. Where layers run one by one (torch; the others when eager) that costs
    memory and, because fresh memory is slow, time: in torch, ConvNeXt-Tiny on 8 images of 224 pixels takes 332 MB
    beyond the libraries, against 1,163 MB for the model of keras.applications (docs/benchmarks/bars). On torch it also
    calls layers through `call_layer`. Results, summary, weights and saved files are those of a `keras.Model`.
    """

    def make_train_function(self, force=False):
        build_optimizer(self)
        return super().make_train_function(force)

    def call(self, inputs, training=None, mask=None, **context):
        has_one_dtype = self.compute_dtype == self.variable_dtype
        if keras.backend.backend() != "torch" or not has_one_dtype or mask is not None or context:
            return super().call(inputs, training=training, mask=mask, **context)

        operation_fn = functools.partial(self._direct_call, training=training)
        outputs = self._run_through_graph(self._standardize_inputs(inputs), operation_fn)
        return outputs[0] if isinstance(outputs, list | tuple) and len(outputs) == 1 else outputs

    def _direct_call(self, layer, training):
        """Return the function that calls a layer: `call_layer` if the dtype is the model's; passes `training` on."""
        takes_training = training is not None and "training" in getattr(layer, "_call_context_args", ())
        options = {"training": training} if takes_training else {}
        has_same_dtype = getattr(layer, "compute_dtype", None) == self.compute_dtype
        call = functools.partial(call_layer, layer) if has_same_dtype else layer
        return lambda *args, **own: call(*args, **{**own, **options})

    def _run_through_graph(self, inputs, operation_fn=lambda operation: operation, call_fn=None):
        if call_fn is not None:  # only shapes are computed
            return super()._run_through_graph(inputs, operation_fn, call_fn)
        values = {id(tensor): value for tensor, value in zip(self.inputs, tree.flatten(inputs), strict=True)}
        for node, released in self._schedule:
            args, kwargs = node.arguments.fill_in(values)
            outputs = operation_fn(self._get_operation_for_node(node))(*args, **kwargs)
            outputs = [outputs] if len(node.outputs) == 1 and ops.is_tensor(outputs) else tree.flatten(outputs)
            values |= {id(tensor): value for tensor, value in zip(node.outputs, outputs, strict=True)}
            del args, kwargs, outputs
            for tensor in released:
                del values[tensor]
        return tree.pack_sequence_as(self._outputs_struct, [values[id(tensor)] for tensor in self.outputs])

    @functools.cached_property
    def _schedule(self):
        """Each node in graph order, with the ids of the tensors that no later node reads."""
        by_depth = sorted(self._nodes_by_depth.items(), reverse=True)
        nodes = [node for _, level in by_depth for node in level if node.operation and not node.is_input]
        needed, released = {id(tensor) for tensor in self.outputs}, []
        for node in reversed(nodes):
            own = {id(tensor) for tensor in (*node.input_tensors, *node.outputs)}
            released.append(own - needed)
            needed |= own
        return tuple(zip(nodes, reversed(released), strict=True))
