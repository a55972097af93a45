"""AdamW whose update is a single pass over memory on TensorFlow."""

import functools

import keras

from convnext.keras_internals import adam_moments
from convnext.layers import PACKAGE

# The class that `keras.optimizers.AdamW()` returns; on torch it updates all variables together.
_KerasAdamW = type(keras.optimizers.AdamW.__new__(keras.optimizers.AdamW))


@keras.saving.register_keras_serializable(PACKAGE)
class AdamW(_KerasAdamW):  # type: ignore[misc, valid-type]  # a class that Keras chooses at run time
    """`keras.optimizers.AdamW` that updates each variable with one fused operation on TensorFlow.

    Keras uses a dozen operations, each a pass over the variable, and takes twice as long (KERAS_BACKEND=tensorflow
    python tests/bench_layers.py). JAX, torch, `amsgrad` and `tf.distribute` use Keras' update. Results agree up to
    rounding, except for sparse gradients (`tf.IndexedSlices`, from Keras' Embedding): repeated rows are summed before
    they are squared, as on the other backends, where Keras on TensorFlow squares each one.

    Papers: "Decoupled Weight Decay Regularization", arXiv:1711.05101; "Adam", arXiv:1412.6980, end of section 2.
    """

    def update_step(self, gradient, variable, learning_rate):
        if keras.backend.backend() == "tensorflow" and not self.amsgrad:
            import tensorflow as tf

            moments = None if tf.distribute.has_strategy() else adam_moments(self, variable)
            if moments is not None:
                return self._update_fused(gradient, variable, moments, learning_rate)
        return super().update_step(gradient, variable, learning_rate)

    def _update_fused(self, gradient, variable, moments, learning_rate):
        import tensorflow as tf

        cast = functools.partial(tf.cast, dtype=variable.dtype)
        first, second = moments
        step = cast(self.iterations) + 1
        return tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=first.value.handle,
            v=second.value.handle,
            beta1_power=cast(self.beta_1) ** step,
            beta2_power=cast(self.beta_2) ** step,
            lr=cast(learning_rate),
            beta1=cast(self.beta_1),
            beta2=cast(self.beta_2),
            epsilon=cast(self.epsilon),
            grad=cast(tf.convert_to_tensor(gradient)),
        )
