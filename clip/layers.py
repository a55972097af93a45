"""The layers of CLIP's towers and of the pair: transformer block, QuickGELU, embeddings, L2 norm, logit scale."""

import math

import keras
from keras import layers, ops

from convnext import ACTIVATIONS, Dense, LayerNormalization, Normal, call_layer, kernels

PACKAGE = "convnext_clip_zoo"
LAYER_NORM_EPSILON = 1e-5
EOT_ID = 49407
MAX_LOGIT_SCALE = math.log(100.0)


@keras.saving.register_keras_serializable(PACKAGE)
def quick_gelu(x):
    """x · sigmoid(1.702 x), the approximation OpenAI's own weights were trained with."""
    return x * ops.sigmoid(1.702 * x)


def resolve_activation(name):
    """Return what Keras layers take for a transformer's activation; ValueError for a name that is not one."""
    allowed = [known for known, activation in ACTIVATIONS.items() if activation.transformer]
    if name not in allowed:
        raise ValueError(f"activation must be one of {', '.join(map(repr, allowed))}, got {name!r}.")
    return quick_gelu if name == "quick_gelu" else name  # Keras' "gelu" is the exact one


def l2_normalize(x):
    """Return x / ‖x‖₂ over the last axis, at least in float32: (…, D) → (…, D)."""
    x = ops.cast(x, "float32") if keras.backend.standardize_dtype(x.dtype) != "float64" else x
    squares = ops.sum(ops.square(x), axis=-1, keepdims=True)
    return x / ops.sqrt(ops.maximum(squares, 1e-24))


@keras.saving.register_keras_serializable(PACKAGE)
class SelfAttention(layers.Layer):
    """Multi-head self-attention with one fused projection to queries, keys and values, as in the checkpoints.

    Args:
        num_heads: must divide the width W.
        causal: a token attends to itself and the tokens before it.
        in_stddev, out_stddev: standard deviations of the kernels' initialisers.
        in_bias: whether queries, keys and values have a bias.

    Input and output (B, L, W). Sublayers: in_proj (W → 3W, q | k | v) and out_proj (W → W).
    """

    def __init__(self, num_heads, causal=False, in_stddev=0.02, out_stddev=0.02, in_bias=True, **kwargs):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.causal = causal
        self.in_stddev = in_stddev
        self.out_stddev = out_stddev
        self.in_bias = in_bias

    def build(self, input_shape):
        width = input_shape[-1]
        if width % self.num_heads:
            raise ValueError(f"The width must be a multiple of num_heads, got width {width}, {self.num_heads} heads.")
        project, initializer = {"dtype": self.dtype_policy}, Normal(self.in_stddev)
        self.in_proj = Dense(
            3 * width, use_bias=self.in_bias, kernel_initializer=initializer, name="in_proj", **project
        )
        self.out_proj = Dense(width, kernel_initializer=Normal(self.out_stddev), name="out_proj", **project)
        self.in_proj.build(input_shape)
        self.out_proj.build(input_shape)

    def call(self, inputs):
        length, width = ops.shape(inputs)[1], inputs.shape[-1]
        qkv = ops.reshape(call_layer(self.in_proj, inputs), (-1, length, 3, self.num_heads, width // self.num_heads))
        attended = kernels.attention(qkv, self.causal)
        return call_layer(self.out_proj, ops.reshape(attended, (-1, length, width)))

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        own = {key: getattr(self, key) for key in ("num_heads", "causal", "in_stddev", "out_stddev", "in_bias")}
        return {**super().get_config(), **own}


def transformer_block(x, *, num_heads, hidden, activation, causal, depth, name, epsilon=LAYER_NORM_EPSILON):
    """(B, L, W) → same: pre-norm attention, then the MLP (arXiv:2103.00020, section 2.4).

    `depth`, the number of blocks, sets the initial scale of the residual branches.
    """
    width = x.shape[-1]
    in_stddev, out_stddev = width**-0.5, width**-0.5 * (2 * depth) ** -0.5
    y = LayerNormalization(epsilon=epsilon, name=f"{name}_ln_1")(x)
    y = SelfAttention(num_heads, causal, in_stddev, out_stddev, name=f"{name}_attn")(y)
    x = layers.Add(name=f"{name}_add_1")([x, y])
    y = LayerNormalization(epsilon=epsilon, name=f"{name}_ln_2")(x)
    initializer, activation = Normal((2 * width) ** -0.5), resolve_activation(activation)
    y = Dense(hidden, activation, kernel_initializer=initializer, name=f"{name}_mlp_c_fc")(y)
    y = Dense(width, kernel_initializer=Normal(out_stddev), name=f"{name}_mlp_c_proj")(y)
    return layers.Add(name=f"{name}_add_2")([x, y])


@keras.saving.register_keras_serializable(PACKAGE)
class TokenEmbedding(layers.Embedding):
    """`keras.layers.Embedding` with a dense gradient on every backend: int32 (B, L) → (B, L, W).

    TensorFlow returns the gradient of a look-up as rows, repeated for a repeated token, and Keras' optimizers square
    the rows before they are summed. Through the reshape they are summed first.
    """

    def call(self, inputs):
        table = ops.reshape(self.embeddings, (self.input_dim, self.output_dim))
        return ops.cast(ops.take(table, inputs, axis=0), self.compute_dtype)


@keras.saving.register_keras_serializable(PACKAGE)
class PositionalEmbedding(layers.Layer):
    """Adds a learned vector for each position: (B, L, W) → same, for any L up to `length`.

    Args:
        length: number of positions.
        stddev: standard deviation of the initialiser.
    """

    def __init__(self, length, stddev=0.01, **kwargs):
        super().__init__(**kwargs)
        self.length = length
        self.stddev = stddev

    def build(self, input_shape):
        self.positional_embedding = self.add_weight(
            shape=(self.length, input_shape[-1]), initializer=Normal(self.stddev), name="positional_embedding"
        )

    def call(self, inputs):
        length = ops.shape(inputs)[1]
        if isinstance(length, int) and length > self.length:
            raise ValueError(f"The sequence has {length} tokens; the positional embedding has {self.length} positions.")
        if isinstance(length, int) or keras.backend.backend() != "jax":
            return inputs + self.positional_embedding[:length]
        return inputs + ops.take(self.positional_embedding, ops.arange(length), axis=0)  # JAX exports an open length

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "length": self.length, "stddev": self.stddev}


@keras.saving.register_keras_serializable(PACKAGE)
class ClassEmbedding(layers.Layer):
    """Puts a learned vector before a sequence or a flattened map: (B, H, W, C) → (B, H·W + 1, C)."""

    def build(self, input_shape):
        width = input_shape[-1]
        self.class_embedding = self.add_weight(shape=(width,), initializer=Normal(width**-0.5), name="class_embedding")

    def call(self, inputs):
        length, channels = math.prod(inputs.shape[1:-1]), inputs.shape[-1]
        patches = ops.reshape(inputs, (-1, length, channels))
        first = ops.broadcast_to(self.class_embedding, (ops.shape(inputs)[0], 1, channels))
        return ops.concatenate([ops.cast(first, patches.dtype), patches], axis=1)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], math.prod(input_shape[1:-1]) + 1, input_shape[-1])


@keras.saving.register_keras_serializable(PACKAGE)
class AttentionPool(layers.Layer):
    """Pools a map by multi-head attention with the map's mean as the only query: (B, H, W, C) → (B, D).

    Args:
        num_heads: must divide C.
        output_dim: D.

    Weights: positional_embedding (H·W + 1, C), that of the mean first. Sublayers: q_proj, k_proj, v_proj (C → C) and
    c_proj (C → D), each with a bias.

    Reference: arXiv:2103.00020, section 2.4.
    """

    def __init__(self, num_heads, output_dim, **kwargs):
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.output_dim = output_dim

    def build(self, input_shape):
        _, height, width, channels = input_shape
        if channels % self.num_heads:
            raise ValueError(f"The channels must be a multiple of num_heads, got {channels}, {self.num_heads} heads.")
        self.positional_embedding = self.add_weight(
            shape=(height * width + 1, channels), initializer=Normal(channels**-0.5), name="positional_embedding"
        )
        for name in ("q_proj", "k_proj", "v_proj", "c_proj"):
            units = self.output_dim if name == "c_proj" else channels
            layer = Dense(units, kernel_initializer=Normal(channels**-0.5), name=name, dtype=self.dtype_policy)
            layer.build((None, channels))
            setattr(self, name, layer)

    def call(self, inputs):
        _, height, width, channels = inputs.shape
        x = ops.reshape(inputs, (-1, height * width, channels))
        x = ops.concatenate([ops.mean(x, axis=1, keepdims=True), x], axis=1) + self.positional_embedding
        query, key, value = self.q_proj(x[:, :1]), self.k_proj(x), self.v_proj(x)  # (B, 1, C), (B, L, C) twice
        query, key, value = (self._split_heads(y) for y in (query, key, value))
        # by products: torch's own attention has no second derivatives, JAX's does not compute in float16 on a CPU
        scores = ops.matmul(query * query.shape[-1] ** -0.5, ops.swapaxes(key, 2, 3))  # (B, heads, 1, L)
        shares = ops.softmax(ops.cast(scores, kernels.at_least_float32(self.compute_dtype)))
        x = ops.matmul(ops.cast(shares, self.compute_dtype), value)  # (B, heads, 1, C / heads)
        return self.c_proj(ops.reshape(x, (-1, channels)))

    def _split_heads(self, x):
        x = ops.reshape(x, (-1, x.shape[1], self.num_heads, x.shape[2] // self.num_heads))
        return ops.transpose(x, (0, 2, 1, 3))  # (B, heads, L, C / heads)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.output_dim)

    def get_config(self):
        return {**super().get_config(), "num_heads": self.num_heads, "output_dim": self.output_dim}


@keras.saving.register_keras_serializable(PACKAGE, name="TakeToken")  # the name in saved archives
class SelectToken(layers.Layer):
    """The vector at one position: the first one, or the first whose id is `token_id`.

    Input (B, L, W), and the ids int32 (B, L) if there is a `token_id`; output (B, W). A row without the id gives its
    first position.
    """

    def __init__(self, token_id=None, **kwargs):
        super().__init__(**kwargs)
        self.token_id = token_id

    def build(self, inputs_shape, tokens_shape=None):  # noqa: ARG002 (Keras passes a shape per call argument)
        super().build(inputs_shape)

    def call(self, inputs, tokens=None):
        if self.token_id is None:
            return inputs[:, 0]
        position = ops.argmax(ops.cast(ops.equal(tokens, self.token_id), "int32"), axis=-1)
        return ops.squeeze(ops.take_along_axis(inputs, position[:, None, None], axis=1), axis=1)

    def compute_output_shape(self, inputs_shape, tokens_shape=None):  # noqa: ARG002 (Keras passes a shape per call argument)
        return (inputs_shape[0], inputs_shape[-1])

    def get_config(self):
        return {**super().get_config(), "token_id": self.token_id}


@keras.saving.register_keras_serializable(PACKAGE)
class LogitScaleConstraint(keras.constraints.Constraint):
    """Keeps the logit scale in [0, ln 100] after each update, as OpenAI and open_clip do."""

    def __call__(self, value):
        return ops.clip(value, 0.0, MAX_LOGIT_SCALE)


@keras.saving.register_keras_serializable(PACKAGE)
class LogitScale(layers.Layer):
    """The output layer of a pair: L2-normalises both embeddings and holds the temperature.

    Args:
        init_value: initial logit_scale, the logarithm of the factor on cosines, in [0, ln 100].
        init_bias: initial logit_bias, added to the logits (SigLIP: −10); None for no bias.
        architecture: of the pair that it belongs to; `keras.models.clone_model` copies a pair layer by layer.

    Inputs: image and text features, (B, D) each. Outputs: the same, normalised, float32. The weights are float32 under
    every policy.

    Reference: arXiv:2103.00020, section 2.5; arXiv:2303.15343, algorithm 1.
    """

    def __init__(self, init_value, init_bias=None, architecture=None, **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32"})
        self.init_value = init_value
        self.init_bias = init_bias
        self.architecture = architecture

    def build(self, image_features_shape=None, text_features_shape=None):  # noqa: ARG002 (the names that Keras passes)
        scalar = {"shape": (), "dtype": "float32", "autocast": False}
        self.logit_scale = self.add_weight(
            initializer=keras.initializers.Constant(self.init_value),
            constraint=LogitScaleConstraint(),
            name="logit_scale",
            **scalar,
        )
        self.logit_bias = None
        if self.init_bias is not None:
            constant = keras.initializers.Constant(self.init_bias)
            self.logit_bias = self.add_weight(initializer=constant, name="logit_bias", **scalar)

    def call(self, image_features, text_features):
        return l2_normalize(image_features), l2_normalize(text_features)

    def compute_output_shape(self, image_features_shape, text_features_shape):
        return image_features_shape, text_features_shape

    def logits(self, image_embeddings, text_embeddings):
        """Return exp(logit_scale) · cosine (+ bias): (N, D), (M, D) normalised → (N, M) float32."""
        cosine = ops.matmul(image_embeddings, ops.transpose(text_embeddings))
        logits = ops.exp(self.logit_scale) * cosine
        return logits if self.logit_bias is None else logits + self.logit_bias

    def get_config(self):
        config = {**super().get_config(), "init_value": self.init_value, "init_bias": self.init_bias}
        return config if self.architecture is None else {**config, "architecture": self.architecture}
