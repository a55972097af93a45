"""CLIP's causal text transformer. Paper: arXiv:2103.00020, section 2.4."""

import keras
from keras import layers

from clip.layers import EOT_ID, LAYER_NORM_EPSILON, PositionalEmbedding, TakeToken, transformer_block
from clip.variants import Text
from convnext import Normal


def create_text_tower(
    text: Text, embed_dim: int, *, activation: str = "gelu", name: str = "text_encoder"
) -> keras.Model:
    """A `keras.Model` from token ids to the unnormalised embedding at the end-of-text token.

    Args:
        text: `clip.variants.Text`: width W, heads, layers, context length, vocabulary size.
        embed_dim: D.
        activation: "gelu" (exact) or "quick_gelu".

    Returns:
        A model from int32 (B, L), L up to the context length, to (B, D). The attention is causal: what follows the
        first end-of-text id does not change the result.
    """
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    x = layers.Embedding(text.vocabulary_size, text.width, embeddings_initializer=Normal(0.02), name="token_embedding")(
        tokens
    )  # (B, L, W)
    x = PositionalEmbedding(text.context_length, name="positional_embedding")(x)
    for index in range(text.layers):
        x = transformer_block(
            x,
            num_heads=text.heads,
            hidden=4 * text.width,
            activation=activation,
            causal=True,
            depth=text.layers,
            name=f"transformer_resblocks_{index}",
        )
    x = TakeToken(EOT_ID, name="pool")(x, tokens)  # (B, W); the norm acts on each token alone, so it can come after
    x = layers.LayerNormalization(epsilon=LAYER_NORM_EPSILON, name="ln_final")(x)
    initializer = Normal(text.width**-0.5)
    x = layers.Dense(embed_dim, use_bias=False, kernel_initializer=initializer, name="text_projection")(x)
    return keras.Model(tokens, x, name=name)
