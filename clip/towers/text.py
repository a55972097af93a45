"""CLIP's text transformer, and MobileCLIP's two departures from it: all tokens see all, and convolutional blocks.

Papers: arXiv:2103.00020, section 2.4; arXiv:2311.17049, section 4.2.
"""

import keras
from keras import layers

from clip.layers import EOT_ID, LAYER_NORM_EPSILON, PositionalEmbedding, TakeToken, TokenEmbedding, transformer_block
from clip.towers.branches import RepMixer
from clip.towers.mobileclip import LAYER_SCALE, conv_mlp
from clip.variants import Text
from convnext import Functional, LayerScale, Normal


def create_text_tower(
    text: Text, embed_dim: int, *, activation: str = "gelu", name: str = "text_encoder"
) -> keras.Model:
    """A `keras.Model` from token ids to the unnormalised embedding at the end-of-text token.

    Args:
        text: `clip.variants.Text`: width W, heads, layers, context length, vocabulary size, and what it sees.
        embed_dim: D.
        activation: "gelu" (exact) or "quick_gelu".

    Returns:
        A model from int32 (B, L) to (B, D). Where the attention is causal, L may be anything up to the context length,
        and what follows the first end-of-text id does not change the result. Where it is not, the padding is seen
        too: L is the context length and the padding 0, as in training.
    """
    tokens = keras.Input((None if text.causal else text.context_length,), dtype="int32", name="tokens")
    size, initializer = (text.vocabulary_size, text.width), Normal(0.02)
    x = TokenEmbedding(*size, embeddings_initializer=initializer, name="token_embedding")(tokens)  # (B, L, W)
    x = PositionalEmbedding(text.context_length, name="positional_embedding")(x)
    blocks = [attention_block] * text.layers
    if text.mixer_kernel:
        blocks = [mixer_block, *blocks, mixer_block]
    for index, block in enumerate(blocks):
        x = block(x, text, activation, f"transformer_resblocks_{index}")
    x = TakeToken(EOT_ID, name="pool")(x, tokens)  # (B, W); the norm acts on each token alone, so it can come after
    x = layers.LayerNormalization(epsilon=LAYER_NORM_EPSILON, name="ln_final")(x)
    initializer = Normal(text.width**-0.5)
    x = layers.Dense(embed_dim, use_bias=False, kernel_initializer=initializer, name="text_projection")(x)
    return Functional(tokens, x, name=name)


def attention_block(x, text, activation, name):
    return transformer_block(
        x,
        num_heads=text.heads,
        hidden=4 * text.width,
        activation=activation,
        causal=text.causal,
        depth=text.layers,
        name=name,
    )


def mixer_block(x, text, activation, name):
    """(B, L, W) → same: FastViT's block along one axis. It mixes k neighbours, and its mixer has no 1×1 branch."""
    kernel = (1, text.mixer_kernel)
    x = layers.Reshape((1, -1, text.width), name=f"{name}_line")(x)  # (B, 1, L, W)
    x = RepMixer(kernel, scale_branch=False, init_value=LAYER_SCALE, name=f"{name}_token_mixer")(x)
    y = conv_mlp(x, 4 * text.width, kernel, f"{name}_mlp", activation)
    y = LayerScale(LAYER_SCALE, name=f"{name}_layer_scale")(y)
    x = layers.Add(name=f"{name}_out")([x, y])
    return layers.Reshape((-1, text.width), name=f"{name}_sequence")(x)
