"""AdamW with an update that TensorFlow makes in one pass over memory."""

import functools

import keras

from convnext.layers import PACKAGE

# The class of what `keras.optimizers.AdamW()` makes: on torch one that updates all variables together.
_KerasAdamW = type(keras.optimizers.AdamW.__new__(keras.optimizers.AdamW))


@keras.saving.register_keras_serializable(PACKAGE)
class AdamW(_KerasAdamW):
    """`keras.optimizers.AdamW`, which on TensorFlow updates a variable by one operation.

    Keras takes a dozen, each a pass over arrays of the variable's size, and twice as long (KERAS_BACKEND=tensorflow
    python tests/bench_layers.py). JAX, torch, `amsgrad` and `tf.distribute` are left to Keras. Results differ by
    rounding alone, but for gradients in rows (`tf.IndexedSlices`, as Keras' Embedding has them): rows that come twice
    are summed, as on the other backends; Keras' own squares each by itself.

    Papers: "Decoupled Weight Decay Regularization", arXiv:1711.05101; "Adam", arXiv:1412.6980, end of section 2.
    """

    def update_step(self, gradient, variable, learning_rate):
        if keras.backend.backend() == "tensorflow" and not self.amsgrad:
            import tensorflow as tf

            if not tf.distribute.has_strategy():
                return self._update_at_once(gradient, variable, learning_rate)
        return super().update_step(gradient, variable, learning_rate)

    def _update_at_once(self, gradient, variable, learning_rate):
        import tensorflow as tf

        number = functools.partial(tf.cast, dtype=variable.dtype)
        index = self._get_variable_index(variable)
        step = number(self.iterations) + 1
        return tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=number(self.beta_1) ** step,
            beta2_power=number(self.beta_2) ** step,
            lr=number(learning_rate),
            beta1=number(self.beta_1),
            beta2=number(self.beta_2),
            epsilon=number(self.epsilon),
            grad=number(tf.convert_to_tensor(gradient)),
        )
