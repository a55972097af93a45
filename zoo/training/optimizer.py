"""AdamW with warm-up and cosine decay, and `SkipNonFinite`, which adds loss scaling, an EMA and layer-wise rates."""

import contextlib

import keras
from keras import ops

from convnext import AdamW
from zoo.training import processes

PACKAGE = "convnext_clip_zoo"  # as in clip and convnext; it never changes

NO_WEIGHT_DECAY = ["bias", "gamma", "beta", "embedding", "logit_scale"]
GROWTH_STEPS = 2000


def create_optimizer(
    learning_rate: float,
    steps: int,
    *,
    warmup_steps: int = 0,
    weight_decay: float = 0.05,
    clip_norm: float | None = None,
    excluded: list | None = None,
) -> keras.optimizers.Optimizer:
    """Return AdamW with linear warm-up and cosine decay to zero; no decay of gains, biases, embeddings, logit_scale.

    Args:
        learning_rate: peak learning rate, at the end of the warm-up.
        steps: steps of the whole run.
        warmup_steps: steps of warm-up from zero.
        weight_decay: weight decay of all other weights, multiplied by the learning rate.
        clip_norm: maximum global gradient norm; None for no limit.
        excluded: further variables without weight decay.
    """
    if not 0 <= warmup_steps <= steps:
        raise ValueError(f"warmup_steps={warmup_steps}; it must be between 0 and the {steps} steps of the run")
    if warmup_steps:
        schedule = keras.optimizers.schedules.CosineDecay(
            0.0, max(1, steps - warmup_steps), warmup_target=learning_rate, warmup_steps=warmup_steps
        )
    else:
        schedule = keras.optimizers.schedules.CosineDecay(learning_rate, max(1, steps))
    optimizer = AdamW(schedule, weight_decay=weight_decay, global_clipnorm=clip_norm)
    optimizer.exclude_from_weight_decay(var_list=excluded, var_names=NO_WEIGHT_DECAY)
    return optimizer


@keras.saving.register_keras_serializable(PACKAGE, name="Guarded")  # the name in archives of earlier versions
class SkipNonFinite(keras.optimizers.Optimizer):
    """An optimizer that skips an update if a gradient is not finite. The same code runs on every backend.

    Variables: `skipped`, the number of skipped updates; `in_a_row`, those since the last update.

    Args:
        inner: the optimizer that makes the updates; its iterations do not count skipped ones.
        initial_scale: loss scale for float16: halved at each skipped update, doubled after GROWTH_STEPS updates without
            one. An update skipped while the scale is above 1 does not count in `in_a_row`, because the scale may be the
            cause. None for no scaling.
        ema: EMA decay of the weights, below 1; at most (1 + t) / (10 + t) after t updates. None for no EMA.
        factors: learning rate of each variable, weight decay included, as a fraction of the optimizer's, in the order
            of `build`. None for 1 everywhere.
    """

    def __init__(self, inner, *, initial_scale=None, ema=None, factors=None, name="guarded"):
        if ema is not None and not 0 <= ema < 1:
            raise ValueError(f"ema={ema!r}; it must be at least 0 and less than 1")
        super().__init__(learning_rate=0.0, name=name)
        self.inner = keras.optimizers.get(inner)
        self.initial_scale, self.ema, self.factors = initial_scale, ema, factors

    @property
    def trained(self):
        """The variables that the optimizer was built for."""
        return self._get_trained()

    def build(self, variables):
        if self.factors is not None and len(self.factors) != len(variables):
            raise ValueError(f"{len(self.factors)} factors for {len(variables)} variables; one each is needed")
        trained = tuple(variables)
        self._get_trained = lambda: trained  # Keras would count a tuple of variables among the optimizer's own
        self.inner.build(variables)
        self.skipped = self.add_variable((), dtype="int32", name="skipped")
        self.in_a_row = self.add_variable((), dtype="int32", name="in_a_row")
        if self.initial_scale is not None:
            initial = keras.initializers.Constant(self.initial_scale)
            self.scale = self.add_variable((), initializer=initial, dtype="float32", name="scale")
            self.good_steps = self.add_variable((), dtype="int32", name="good_steps")
        if self.ema is not None:
            self.averages = self.add_optimizer_variables(variables, "average")
            for average, variable in zip(self.averages, variables, strict=True):
                average.assign(_copy(variable))
        super().build(variables)

    @property
    def variables(self):
        return [*super().variables, *self.inner.variables]

    @property
    def iterations(self):
        return self.inner.iterations

    @property
    def learning_rate(self):
        return self.inner.learning_rate

    @learning_rate.setter
    def learning_rate(self, value):
        self.inner.learning_rate = value

    def scale_loss(self, loss):
        if self.initial_scale is None:
            return loss
        return loss * ops.cast(self.scale if self.built else self.initial_scale, loss.dtype)

    def apply(self, grads, trainable_variables=None):
        if not self.built:
            self.build(list(trainable_variables))
        grads = [_whole(grad) for grad in grads]
        processes.average(grads)
        variables = list(self.trained if trainable_variables is None else trainable_variables)
        ops.cond(_all_finite(grads), lambda: self._accept(grads, variables), self._refuse)

    def stateless_apply(self, optimizer_variables, grads, trainable_variables):
        def run(update):
            before = [*zip(self.variables, optimizer_variables, strict=True)]
            before += zip(self.trained, trainable_variables, strict=True)
            with keras.StatelessScope(state_mapping=before) as scope:
                update()
            return tuple([scope.get_current_value(v) for v in kind] for kind in (self.trained, self.variables))

        accept = lambda: run(lambda: self._accept(grads, list(self.trained)))  # noqa: E731
        return ops.cond(_all_finite(grads), accept, lambda: run(self._refuse))

    def finalize_variable_values(self, var_list):
        """Do nothing: training continues from the weights, and `averaged` gives access to the EMA."""

    def _accept(self, grads, variables):
        if self.initial_scale is not None:
            grads = [None if grad is None else grad / ops.cast(self.scale, grad.dtype) for grad in grads]
            self.good_steps.assign_add(1)
            grow = ops.equal(self.good_steps % GROWTH_STEPS, 0)
            self.scale.assign(self.scale * ops.where(grow, 2.0, 1.0))
        if self.factors is None:
            self.inner.apply(grads, variables)
        else:
            self._apply_in_part(grads, variables)
        self.in_a_row.assign(0)
        if self.ema is not None:
            self._average()

    def _apply_in_part(self, grads, variables):
        """Apply the inner update and scale each variable's change, which scales its learning rate for any optimizer."""
        part = [pair for pair in zip(variables, self.factors, strict=True) if pair[1] != 1.0]
        before = [ops.copy(variable) for variable, _ in part]
        self.inner.apply(grads, variables)
        for start, (variable, factor) in zip(before, part, strict=True):
            variable.assign(start + factor * (ops.convert_to_tensor(variable) - start))

    def _average(self):
        step = ops.cast(self.iterations, "float32")
        kept = ops.minimum(self.ema, (1.0 + step) / (10.0 + step))
        for average, variable in zip(self.averages, self.trained, strict=True):
            share = ops.cast(1.0 - kept, average.dtype)
            average.assign(average + share * (ops.convert_to_tensor(variable) - average))

    def _refuse(self):
        self.skipped.assign_add(1)
        if self.initial_scale is None:
            self.in_a_row.assign_add(1)
        else:
            self.in_a_row.assign(self.in_a_row + ops.cast(self.scale <= 1.0, "int32"))
            self.scale.assign(ops.maximum(0.5 * self.scale, 1.0))
            self.good_steps.assign(0)

    @contextlib.contextmanager
    def averaged(self):
        """Replace the weights by their EMA during the block; without an EMA, do nothing."""
        if self.ema is None:
            yield
            return
        weights = [_copy(variable) for variable in self.trained]
        try:
            for variable, average in zip(self.trained, self.averages, strict=True):
                variable.assign(_copy(average))
            yield
        finally:
            for variable, weight in zip(self.trained, weights, strict=True):
                variable.assign(weight)

    def get_config(self):
        inner = keras.saving.serialize_keras_object(self.inner)
        options = {"initial_scale": self.initial_scale, "ema": self.ema, "factors": self.factors}
        return {"inner": inner, **options, "name": self.name}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        inner = keras.saving.deserialize_keras_object(config["inner"], custom_objects=custom_objects)
        return cls(**{**config, "inner": inner})


Guarded = SkipNonFinite  # archives of earlier versions name this class


def _whole(grad):
    """Return a gradient as one array.

    TensorFlow returns the gradient of Keras' Embedding as one row per token, repeated tokens included. Keras squares
    these rows for the norm and Adam's second moment, which is not the square of the gradient.
    `clip.layers.TokenEmbedding` has a dense gradient; a custom tower may not.
    """
    if keras.backend.backend() != "tensorflow" or grad is None:
        return grad
    import tensorflow as tf

    return tf.convert_to_tensor(grad)


def _copy(variable):
    """Return a copy of the value. JAX donates the buffers of variables, so two must not share one."""
    return ops.convert_to_numpy(variable).copy()


def _all_finite(grads):
    """Return whether all gradients are finite, bool ()."""
    return ops.all(ops.stack([ops.all(ops.isfinite(grad)) for grad in grads if grad is not None]))
