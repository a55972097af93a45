"""The class of models that the builders return: Keras' functional model with lower peak memory."""

import functools

import keras
from keras import ops, tree

from convnext.keras_internals import call_layer, read_graph
from convnext.layers import PACKAGE


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
    """A functional `keras.Model` that on torch frees each intermediate result after the last layer that reads it.

    Keras keeps all of them until the call ends. On torch, where layers run one by one, that costs memory and, because
    fresh memory is slow, time: ConvNeXt-Tiny on 8 images of 224 pixels takes 332 MB beyond the libraries, against
    1,163 MB for the model of keras.applications (docs/benchmarks/bars). There it also calls layers through
    `call_layer`. Results, summary, weights and saved files are those of a `keras.Model`.
    """

    def make_train_function(self, force=False):
        build_optimizer(self)
        return super().make_train_function(force)

    def call(self, inputs, training=None, mask=None, **context):
        if keras.backend.backend() == "torch" and mask is None and not context and self._plan is not None:
            tensors = self._flat_tensors(inputs)
            if tensors is not None:
                return self._run(tensors, training)
        return super().call(inputs, training=training, mask=mask, **context)

    def _flat_tensors(self, inputs):
        """Return the inputs as tensors of the model's dtypes; None unless they have its structure and ranks."""
        if len(self.inputs) == 1 and not isinstance(self.input, dict) and not tree.is_nested(inputs):
            inputs = [inputs]
        else:
            try:
                tree.assert_same_structure(*map(tree.lists_to_tuples, (inputs, self.input)))
            except (TypeError, ValueError):
                return None
        flat = tree.flatten(inputs)
        if any(x is None for x in flat):
            return None
        pairs = list(zip(flat, self.inputs, strict=True))
        tensors = [ops.convert_to_tensor(x, dtype=own.dtype, sparse=own.sparse) for x, own in pairs]
        return (
            tensors if all(len(x.shape) == len(own.shape) for x, (_, own) in zip(tensors, pairs, strict=True)) else None
        )

    def _run(self, tensors, training):
        """Return the outputs in their structure, computed call by call."""
        has_one_dtype = self.compute_dtype == self.variable_dtype
        graph, releases = self._plan
        values = {id(tensor): value for tensor, value in zip(graph.inputs, tensors, strict=True)}
        for call, released in zip(graph.calls, releases, strict=True):
            args, kwargs = call.fill_in(values)
            layer = call.operation
            if training is not None and isinstance(layer, keras.layers.Layer):
                kwargs = {**kwargs, "training": training}
            if has_one_dtype and getattr(layer, "compute_dtype", None) == self.compute_dtype:
                outputs = call_layer(layer, *args, **kwargs)
            else:
                outputs = layer(*args, **kwargs)
            outputs = [outputs] if len(call.outputs) == 1 and ops.is_tensor(outputs) else tree.flatten(outputs)
            values |= {id(tensor): value for tensor, value in zip(call.outputs, outputs, strict=True)}
            del args, kwargs, outputs
            for tensor in released:
                del values[tensor]
        outputs = tree.pack_sequence_as(self.output, [values[id(tensor)] for tensor in graph.outputs])
        return outputs[0] if isinstance(outputs, list | tuple) and len(outputs) == 1 else outputs

    @functools.cached_property
    def _plan(self):
        """The model's graph, and for each call the ids of the tensors that no later one reads; None if not readable."""
        graph = read_graph(self)
        if graph is None:
            return None
        needed, released = {id(tensor) for tensor in graph.outputs}, []
        for call in reversed(graph.calls):
            own = {id(tensor) for tensor in (*call.inputs, *call.outputs)}
            released.append(own - needed)
            needed |= own
        return graph, tuple(reversed(released))
