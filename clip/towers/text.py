"""CLIP's text transformer, and MobileCLIP's two changes to it: attention without a causal mask, convolutional blocks.

Papers: arXiv:2103.00020, section 2.4; arXiv:2311.17049, section 4.2.
"""

from dataclasses import dataclass

import convnext
from clip.towers.lazy import branches, keras, layers, parts
from clip.towers.mobileclip import LAYER_SCALE, conv_mlp
from clip.towers.registry import DEPTH, FLAG, SIZE, Tower, in_scope_of_name, register_tower
from clip.towers.vit import block_multiply_adds, block_parameters

VOCABULARY_SIZE = 49408
CONTEXT_LENGTH = 77


@dataclass(frozen=True)
class Text:
    """Config of a text transformer.

    Args:
        width: W, channels.
        heads: attention heads; divides W.
        layers: blocks.
        context_length: L, tokens.
        vocabulary_size: number of token ids.
        causal: a token attends to itself and the tokens before it; False for all tokens, padding included.
        mixer_kernel: kernel width of one convolutional block before and one after the others; None for no such blocks.
    """

    width: int
    heads: int
    layers: int
    context_length: int = CONTEXT_LENGTH
    vocabulary_size: int = VOCABULARY_SIZE
    causal: bool = True
    mixer_kernel: int | None = None


@in_scope_of_name
def create_text_tower(
    text: Text, embed_dim: int, *, activation: str = "gelu", name: str = "text_encoder"
) -> "keras.Model":
    """Build a `keras.Model` from token ids to the embedding at the end-of-text token, not normalised.

    Args:
        text: the config.
        embed_dim: D.
        activation: "gelu" (exact) or "quick_gelu".

    Returns:
        A model from int32 (B, L) to (B, D). With causal attention L may be anything up to the context length, and
        tokens after the first end-of-text id do not change the result. Without it the padding is attended to: L is the
        context length and the padding 0, as in training.
    """
    tokens = keras.Input((None if text.causal else text.context_length,), dtype="int32", name="tokens")
    size, initializer = (text.vocabulary_size, text.width), convnext.Normal(0.02)
    x = parts.TokenEmbedding(*size, embeddings_initializer=initializer, name="token_embedding")(tokens)  # (B, L, W)
    x = parts.PositionalEmbedding(text.context_length, name="positional_embedding")(x)
    blocks = [_attention_block] * text.layers
    if text.mixer_kernel:
        blocks = [mixer_block, *blocks, mixer_block]
    for index, block in enumerate(blocks):
        x = block(x, text, activation, f"transformer_resblocks_{index}")
    x = parts.SelectToken(parts.EOT_ID, name="pool")(x, tokens)  # (B, W); the norm is per token, so it can follow
    x = convnext.LayerNormalization(epsilon=parts.LAYER_NORM_EPSILON, name="ln_final")(x)
    initializer = convnext.Normal(text.width**-0.5)
    x = layers.Dense(embed_dim, use_bias=False, kernel_initializer=initializer, name="text_projection")(x)
    return convnext.Functional(tokens, x, name=name)


def _attention_block(x, text, activation, name):
    return parts.transformer_block(
        x,
        num_heads=text.heads,
        hidden=4 * text.width,
        activation=activation,
        causal=text.causal,
        depth=text.layers,
        name=name,
    )


def mixer_block(x, text, activation, name):
    """(B, L, W) → same: FastViT's block along one axis, mixing k neighbours; its mixer has no 1×1 branch."""
    kernel = (1, text.mixer_kernel)
    x = layers.Reshape((1, -1, text.width), name=f"{name}_line")(x)  # (B, 1, L, W)
    x = branches.RepMixer(kernel, scale_branch=False, init_value=LAYER_SCALE, name=f"{name}_token_mixer")(x)
    y = conv_mlp(x, 4 * text.width, kernel, f"{name}_mlp", activation)
    y = convnext.LayerScale(LAYER_SCALE, name=f"{name}_layer_scale")(y)
    x = layers.Add(name=f"{name}_out")([x, y])
    return layers.Reshape((-1, text.width), name=f"{name}_sequence")(x)


def parameters(text: Text, embed_dim: int) -> int:
    """Trainable parameters: embeddings, blocks, final norm, projection."""
    width = text.width
    embeddings = (text.vocabulary_size + text.context_length) * width
    mixers = 2 * (2 * text.mixer_kernel * width + 8 * width**2 + 15 * width) if text.mixer_kernel else 0
    blocks = text.layers * block_parameters(width, 4 * width)
    return embeddings + blocks + mixers + 2 * width + width * embed_dim


def flops(text: Text, embed_dim: int) -> int:
    """Floating-point operations of one caption of full length, two per multiply–add."""
    length, width = text.context_length, text.width
    mixers = 2 * length * (2 * text.mixer_kernel * width + 8 * width**2) if text.mixer_kernel else 0
    return 2 * (text.layers * block_multiply_adds(width, 4 * width, length) + mixers + width * embed_dim)


register_tower(
    Tower(
        kind="text",
        side="text",
        config=Text,
        build=create_text_tower,
        parameters=parameters,
        flops=flops,
        schema={
            "width": SIZE,
            "heads": SIZE,
            "layers": DEPTH,
            "context_length": SIZE,
            "vocabulary_size": SIZE,
            "causal": FLAG,
            "mixer_kernel": SIZE.or_null(),
        },
    )
)
