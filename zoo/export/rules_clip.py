"""ONNX rules of `clip`'s layers: embeddings, attention, the ends of the towers and of the pair."""

import dataclasses
import math

import numpy as np

from zoo.export.graph import FLAT, FLOAT32, INT32, INT64, LAST
from zoo.export.products import product
from zoo.export.rules import ACTIVATIONS, _register, activate, reduce, softmax
from zoo.models.folding import to_numpy

_SMALLEST_NORM = 1e-12  # as in clip.layers.l2_normalize, which clips the square at 1e-24


@_register("quick_gelu", rules=ACTIVATIONS)
def quick_gelu(graph, x):
    """x · sigmoid(1.702 x)."""
    gate = graph.op("Sigmoid", [graph.op("Mul", [x, graph.constant(1.702, x.dtype)])])
    return graph.op("Mul", [x, gate])


@_register("Embedding", "TokenEmbedding")
def embedding(graph, layer, tokens):
    y = graph.op("Gather", [graph.weight(to_numpy(layer.embeddings), "embeddings"), tokens], like=tokens, axis=0)
    return dataclasses.replace(y, shape=(*tokens.shape, layer.output_dim), dtype=graph.compute)


@_register("PositionalEmbedding")
def positional_embedding(graph, layer, x):
    x = graph.cast(graph.to(x, LAST), graph.compute)
    table, length = to_numpy(layer.positional_embedding), x.shape[1]
    vectors = graph.weight(table[:length], "positional_embedding")
    if length is None:
        zero = graph.constant([0], INT64)
        vectors = graph.op("Slice", [vectors, zero, graph.sides(x), zero], like=x)
    y = graph.op("Add", [x, vectors])
    return dataclasses.replace(y, like=y.name)  # the layers after it have the same batch and length


@_register("ClassEmbedding")
def class_embedding(graph, layer, x):
    """(B, H, W, C) or (B, L, C) → (B, L + 1, C), the class embedding first."""
    x = graph.cast(graph.to(x, LAST), graph.compute)
    length, channels = math.prod(x.shape[1:-1]), x.channels
    patches = graph.reshape(x, [-1, length, channels], name="patches")
    first = graph.weight(to_numpy(layer.class_embedding).reshape(1, 1, -1), "class_embedding")
    batch = graph.op("Shape", [x], start=0, end=1, name="batch")
    shape = graph.op("Concat", [batch, graph.constant([1, channels], INT64)], axis=0, name="shape")
    first = graph.op("Expand", [first, shape], like=x)
    y = graph.op("Concat", [first, patches], axis=1)
    return dataclasses.replace(y, shape=(x.shape[0], length + 1, channels), form=LAST, like=None)


@_register("AttentionPool")
def _attention_pool(graph, layer, x):
    """(B, H, W, C) → (B, D): attention with the map's mean as query."""
    x = graph.cast(graph.to(x, LAST), graph.compute)
    channels, length = x.channels, math.prod(x.shape[1:-1])
    x = graph.reshape(x, [-1, length, channels], name="positions")
    mean = graph.cast(reduce(graph, "ReduceMean", graph.cast(x, FLOAT32), (1,)), graph.compute)
    x = graph.op("Concat", [mean, x], axis=1)
    x = graph.op("Add", [x, graph.weight(to_numpy(layer.positional_embedding), "positional_embedding")])
    x = dataclasses.replace(x, shape=(x.shape[0], length + 1, channels))
    scale = (channels // layer.num_heads) ** -0.5
    first = graph.op("Slice", [x, *(graph.constant([n], INT64) for n in (0, 1, 1))], name="first")
    query = _one_head_set(graph, layer, dataclasses.replace(first, shape=(x.shape[0], 1, channels)), "q_proj", scale)
    key, value = (_one_head_set(graph, layer, x, name) for name in ("k_proj", "v_proj"))
    scores = graph.op("MatMul", [query, graph.op("Transpose", [key], perm=(0, 1, 3, 2), name="k_t")], name="scores")
    y = graph.op("MatMul", [softmax(graph, scores), value], name="weighted")  # (B, heads, 1, d)
    y = dataclasses.replace(graph.reshape(y, [-1, channels], name="join_heads"), shape=(x.shape[0], channels))
    return product(graph, y, to_numpy(layer.c_proj.kernel), to_numpy(layer.c_proj.bias), "c_proj/kernel")


def _one_head_set(graph, layer, x, name, scale=1.0):
    """Return (B, heads, L, d) of one of the pool's projections."""
    projection = getattr(layer, name)
    kernel, bias = to_numpy(projection.kernel) * scale, to_numpy(projection.bias) * scale
    y = graph.to(product(graph, x, kernel, bias, f"{name}/kernel"), LAST)
    y = graph.reshape(y, [-1, x.shape[1], layer.num_heads, x.channels // layer.num_heads], name=f"{name}/heads")
    return graph.op("Transpose", [y], perm=(0, 2, 1, 3), name=f"{name}/heads_first")


@_register("SelfAttention")
def _self_attention(graph, layer, x):
    """softmax(q kᵀ / √d) v per head; 1 / √d goes into q's weights."""
    width = x.channels
    scale = np.repeat([(width // layer.num_heads) ** -0.5, 1.0, 1.0], width)
    bias = to_numpy(layer.in_proj.bias) * scale if layer.in_proj.use_bias else None
    joined = product(graph, x, to_numpy(layer.in_proj.kernel) * scale, bias, "in_proj/kernel")
    query, key, value = _heads(graph, joined, layer.num_heads)
    scores = graph.op("MatMul", [query, key], name="scores")
    if layer.causal:
        scores = graph.op("Add", [scores, _causal_mask(graph, joined)], name="masked")
    y = graph.op("MatMul", [softmax(graph, scores), value], name="weighted")
    y = graph.op("Transpose", [y], perm=(0, 2, 1, 3), name="join_heads")
    y = graph.reshape(y, [-1, width], name="flatten_heads")
    y = dataclasses.replace(y, shape=x.shape, form=FLAT, like=joined.like)
    return product(graph, y, to_numpy(layer.out_proj.kernel), to_numpy(layer.out_proj.bias), "out_proj/kernel")


def _heads(graph, joined, heads):
    """Split the rows (B·L, 3W) of q, k and v: q (B, heads, L, d), k (B, heads, d, L), v (B, heads, L, d)."""
    depth = joined.channels // 3 // heads
    y = graph.op("Reshape", [joined, graph.full_shape(joined, 3, heads, depth)], name="split_heads")
    y = graph.op("Transpose", [dataclasses.replace(y, form=LAST)], perm=(2, 0, 3, 1, 4), name="heads_first")
    query, key, value = (
        graph.op("Gather", [y, graph.constant(index, INT64)], axis=0, name=name) for index, name in enumerate("qkv")
    )
    return query, graph.op("Transpose", [key], perm=(0, 1, 3, 2), name="k_transposed"), value


def _causal_mask(graph, x):
    """Return (L, L): 0 for a token and those before it, −∞ for later ones; one mask for all layers."""
    length = x.shape[1]
    lowest = {FLOAT32: -np.inf}.get(graph.compute, -65504.0)

    def make():
        sides = graph.constant([length], INT64) if length else graph.sides(x)
        square = graph.op("Concat", [sides, sides], like=x, axis=0, name="square")
        full = graph.op("Expand", [graph.constant(lowest, graph.compute), square], like=x, name="forbidden")
        return graph.op("Trilu", [full, graph.constant(1, INT64)], upper=1, name="causal_mask")

    return graph.once(("causal", length, None if length else x.like), make)


@_register("SelectToken")
def _select_token(graph, layer, x, tokens=None):
    """(B, L, W) → (B, W): the first position, or the first that has the id."""
    x = graph.to(x, LAST)
    if layer.token_id is None:
        y = graph.op("Gather", [x, graph.constant(0, INT64)], axis=1)
    else:
        here = graph.op("Equal", [tokens, graph.constant(layer.token_id, tokens.dtype)])
        here = graph.cast(dataclasses.replace(here, dtype="bool"), INT32)
        position = graph.op("ArgMax", [here], axis=1, keepdims=1)
        y = graph.op("GatherND", [x, position], batch_dims=1)
    return dataclasses.replace(y, shape=(x.shape[0], x.channels), form=LAST, like=None)


def l2_normalize(graph, x):
    """x / ‖x‖₂ over the last axis, in float32."""
    x = graph.cast(x, FLOAT32)
    norm = reduce(graph, "ReduceL2", x, (-1,))
    return graph.op("Div", [x, graph.op("Max", [norm, graph.constant(_SMALLEST_NORM, FLOAT32)])], name="normalized")


@_register("LogitScale")
def logit_scale(graph, layer, image_features, text_features):  # noqa: ARG001
    return l2_normalize(graph, image_features), l2_normalize(graph, text_features)


def pair_logits(graph, layer, image_embeddings, text_embeddings):
    """(N, D), (M, D) → (N, M): exp(logit_scale) · cosine (+ bias)."""
    factor = np.exp(to_numpy(layer.logit_scale))
    scaled = graph.op("Mul", [image_embeddings, graph.weight(factor, "factor", FLOAT32)])
    columns = graph.op("Transpose", [text_embeddings], perm=(1, 0))
    logits = graph.op("MatMul", [scaled, columns], name="logits")
    if layer.logit_bias is not None:
        logits = graph.op("Add", [logits, graph.weight(to_numpy(layer.logit_bias), "logit_bias", FLOAT32)])
    return dataclasses.replace(logits, shape=(None, None))


@_register("ZeroShotHead")
def zero_shot_head(graph, layer, features):
    """exp(logit_scale) · cosine with each class (+ logit_bias); the factor goes into the matrix."""
    matrix = to_numpy(layer.class_matrix) * np.exp(to_numpy(layer.logit_scale))
    y = graph.op("MatMul", [l2_normalize(graph, features), graph.weight(matrix, "class_matrix", FLOAT32)])
    if layer.logit_bias is not None:
        y = graph.op("Add", [y, graph.weight(to_numpy(layer.logit_bias), "logit_bias", FLOAT32)])
    return activate(graph, dataclasses.replace(y, shape=(features.shape[0], matrix.shape[1])), layer.activation)
