"""Benchmark the layers' kernels; the docstrings of convnext/ quote these figures.

    KERAS_BACKEND=jax python tests/bench_layers.py [--rounds 7]        # or torch, tensorflow

Each row compares two implementations of the same result in alternating rounds, at the four stages of ConvNeXt-Tiny for
a batch of 8 images of 224 pixels; the ratio is other / ours, the median over rounds. The last rows compare the towers
of ViT-B-32 with their matrix products alone: the difference is the most that a faster implementation of the rest could
save.
"""

import argparse
import functools
import statistics

import keras
import numpy as np
from keras import ops

import clip
from convnext import AdamW, Conv2D, Dense, DepthwiseConv2D, create_convnext_v1
from convnext.kernels import jax_cpu, reference, torch_cpu
from zoo.bench.cases import DEFAULT_MODE, Case
from zoo.bench.jobs import create_job, keras_forward
from zoo.bench.timing import ratios, take_turn, take_turns, warm_up
from zoo.utils.env import available_cores, keep_freed_memory

BATCH = 8
STAGES = ((56, 96), (28, 192), (14, 384), (7, 768))  # side of the map, channels


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="rounds per side (default %(default)s)")
    options = parser.parse_args()
    keep_freed_memory()
    backend = keras.backend.backend()
    columns = (backend, "map", "ours ms", "other ms", "speed-up", "range")
    print(f"| {' | '.join(columns)} |", f"|---|---|{'--:|' * 4}", sep="\n", flush=True)
    for side, channels in STAGES:
        for what, ours, other in PAIRS[backend](side, channels):
            compare(f"{what} | {BATCH}×{side}×{side}×{channels}", ours, other, options.rounds)
    if backend == "torch":
        compare("a model of 119 layers: its calls, Keras' | 1×32×32×3", *whole_model(), options.rounds)
    if backend == "tensorflow":
        compare("AdamW's update: in one operation, Keras' | 24×512×2048", *updates(24, 512, 2048), options.rounds)
    for what, size, stride, side, channels, filters in CONVOLUTIONS if backend == "torch" else ():
        for label, ours, other in convolutions(size, stride, side, channels, filters):
            compare(f"{what}{label} | {BATCH}×{side}×{side}×{channels}", ours, other, options.rounds)
    for length, heads, depth, causal in ATTENTION if backend == "torch" else ():
        for label, ours, other in attention(length, heads, depth, causal):
            label = f"attention{', causal' * causal}{label}: ours, Keras' | {BATCH}×{length}×{heads}×{depth}"
            compare(label, ours, other, options.rounds)
    for part in ("image", "text"):
        rows, width, tower, products = tower_and_products(part)
        compare(f"{part} tower, its products | {rows}×{width}", tower, products, options.rounds)


ATTENTION = ((50, 12, 64, False), (77, 8, 64, True), (197, 12, 64, False))  # tokens, heads, depth, causal
CONVOLUTIONS = (  # what, kernel, stride, side of the map, channels, filters
    ("stem", 4, 4, 224, 3, 96),
    *((f"downsampling {i}", 2, 2, side, channels, 2 * channels) for i, (side, channels) in enumerate(STAGES[:3], 1)),
    ("patches of ViT-B-32", 32, 32, 224, 3, 768),
    ("ResNet-50, 1×1", 1, 1, 56, 256, 64),
    ("ResNet-50, 1×1", 1, 1, 14, 1024, 256),
    ("ResNet-50, 3×3", 3, 1, 14, 256, 256),
)


def convolutions(size, stride, side, channels, filters):
    """Yield (label, ours, Keras'): forward, and the gradients of input and weights."""
    import torch

    x = maps(BATCH, side, side, channels)
    options = {"strides": stride, "padding": "same" if stride == 1 else "valid"}
    layers = [built(cls(filters, size, **options), x) for cls in (Conv2D, keras.layers.Conv2D)]
    yield ": ours, Keras'", *(_without(torch, layer, x) for layer in layers)
    yield ", its gradients: ours, Keras'", *(_trained(torch, layer, x) for layer in layers)


def compare(label, ours, other, rounds):
    """Print a row of the table."""
    calls = {"ours": ours, "other": other}
    for call in calls.values():
        warm_up(call)
    runs = take_turns({name: functools.partial(take_turn, call) for name, call in calls.items()}, rounds, rest=0.05)
    found = sorted(ratios(runs["other"], runs["ours"]))
    ms = [1e3 * statistics.median(seconds for turn in turns for seconds in turn) for turns in runs.values()]
    spread = f"{found[0]:.2f} to {found[-1]:.2f}"
    print(f"| {label} | {ms[0]:.2f} | {ms[1]:.2f} | **{statistics.median(found):.2f}** | {spread} |", flush=True)


def maps(*shape):
    return ops.convert_to_tensor(np.random.default_rng(0).standard_normal(shape, np.float32))


def attention(length, heads, depth, causal):
    """Yield (label, ours, other): forward, and the gradient of queries, keys and values."""
    import torch

    x = maps(BATCH, length, 3, heads, depth)
    forms = (torch_cpu.attend_by_products, reference.attention)
    layers = [built(Attention(attend, causal), x) for attend in forms]
    yield "", *(_without(torch, layer, x) for layer in layers)
    yield ", its gradients", *(_trained(torch, layer, x) for layer in layers)


class Attention(keras.layers.Layer):
    def __init__(self, attend, causal):
        super().__init__()
        self.attend, self.causal = attend, causal

    def call(self, heads):
        return ops.reshape(self.attend(heads, self.causal), (*heads.shape[:2], -1))


def whole_model():
    """Return (ours, Keras') of ConvNeXt-Tiny on a tiny input, where the calls of the layers dominate."""
    import torch

    model = create_convnext_v1("tiny", input_shape=(32, 32, 3), stem_stride=4)
    x = maps(1, 32, 32, 3)
    return [_without(torch, same, x) for same in (model, keras.Model(model.input, model.output))]


def tower_and_products(part):
    """Return (rows, width, the tower's call, its products' call) of one of ViT-B-32's towers."""
    row, backend = clip.VARIANTS["ViT-B-32"], keras.backend.backend()
    case = Case("clip/ViT-B-32", part=part, backend=backend, mode=DEFAULT_MODE[backend], threads=available_cores())
    side = row.image if part == "image" else row.text
    tokens = (case.image_size // row.image.patch_size) ** 2 + 1 if part == "image" else row.text.context_length
    narrow, wide = keras.Input((side.width,)), keras.Input((4 * side.width,))
    of_block = (narrow, 3 * side.width), (narrow, side.width), (narrow, 4 * side.width), (wide, side.width)
    outputs = [Dense(units, use_bias=False)(x) for _ in range(side.layers) for x, units in of_block]
    rows = [maps(BATCH * tokens, width) for width in (side.width, 4 * side.width)]
    products = keras_forward(keras.Model([narrow, wide], outputs), case, rows)
    return BATCH * tokens, side.width, create_job(case).call, products


def built(layer, x):
    layer.build(x.shape)
    return layer


def jax_pairs(side, channels):
    """Yield (label, ours, other): functions without arguments that return when the result is computed."""
    import jax
    from jax import lax
    from jax import numpy as jnp

    x, kernel = maps(BATCH, side, side, channels), maps(7, 7, channels)
    gradient, wide = maps(BATCH, side, side, channels), maps(BATCH, side, side, 4 * channels)
    weights = maps(channels, 4 * channels)
    shifted = jax_cpu.shifted_depthwise()

    def operator(x, kernel):
        dimensions = ("NHWC", "HWIO", "NHWC")
        grouped = {"dimension_numbers": dimensions, "feature_group_count": channels}
        return lax.conv_general_dilated(x, kernel[:, :, None], (1, 1), "SAME", **grouped)

    def slices(x, kernel):
        padded = jnp.pad(x, ((0, 0), (3, 3), (3, 3), (0, 0)))
        taps = ((i, j) for i in range(7) for j in range(7))
        return sum(padded[:, i : i + side, j : j + side] * kernel[i, j] for i, j in taps)

    def flat(x, weights):
        return (x.reshape(-1, x.shape[-1]) @ weights).reshape(*x.shape[:-1], -1)

    def forward(function):
        return _ended(jax, jax.jit(function), x, kernel)

    def backward(function, *arguments, gradient):
        compiled = jax.jit(lambda gradient, *values: jax.vjp(function, *values)[1](gradient))
        return _ended(jax, compiled, gradient, *arguments)

    theirs = functools.partial(backward, gradient=gradient)
    yield "depthwise: shifts, operator", forward(shifted), forward(operator)
    yield "its gradients: written out, of the operator", theirs(shifted, x, kernel), theirs(operator, x, kernel)
    yield "its gradients: written out, of the slices", theirs(shifted, x, kernel), theirs(slices, x, kernel)
    dense = functools.partial(backward, gradient=wide)
    yield "Dense's gradients: flat, of a map", dense(flat, x, weights), dense(jnp.matmul, x, weights)


def _ended(jax, function, *arguments):
    return lambda: jax.block_until_ready(function(*arguments))


def torch_pairs(side, channels):
    """Yield (label, ours, other), as above."""
    import torch

    x = maps(BATCH, side, side, channels)
    rows, weights, bias = x.reshape(-1, channels), maps(channels, 4 * channels), maps(4 * channels)
    products = [
        functools.partial(multiply, rows, weights, bias) for multiply in (torch_cpu._onednn_product, _mkl_product)
    ]
    yield f"product to {4 * channels}: oneDNN, MKL", *(_without(torch, product) for product in products)
    for units in (4 * channels, channels // 2):
        ours, theirs = (built(layer(units), x) for layer in (Dense, keras.layers.Dense))
        name = f"Dense to {units}"
        yield f"{name}: ours, Keras'", _without(torch, ours, x), _without(torch, theirs, x)
        yield f"{name}, training: ours, Keras'", _trained(torch, ours, x), _trained(torch, theirs, x)
    ours, theirs = (built(layer(7, padding="same"), x) for layer in (DepthwiseConv2D, keras.layers.DepthwiseConv2D))
    yield "depthwise: a view, Keras'", _without(torch, ours, x), _without(torch, theirs, x)


def _mkl_product(x, kernel, bias):
    import torch

    return torch.addmm(bias, x, kernel)


def _without(torch, layer, *inputs):
    def call():
        with torch.no_grad():
            layer(*inputs)

    return call


def _trained(torch, layer, x):
    x = x.detach().requires_grad_()
    gradient = torch.randn_like(layer(x))
    return lambda: torch.autograd.grad(layer(x), [x, *(weight.value for weight in layer.trainable_weights)], gradient)


def tensorflow_pairs(side, channels):
    """Yield (label, ours, other), as above."""
    import tensorflow as tf

    x = maps(BATCH, side, side, channels)
    ours, theirs = (built(layer(4 * channels), x) for layer in (Dense, keras.layers.Dense))
    graphs = [tf.function(layer) for layer in (ours, theirs)]
    yield "Dense: flat, of a map", *((lambda graph=graph: graph(x).numpy()) for graph in graphs)
    rows = maps(BATCH * side * side, channels)
    widens = [built(layer(4 * channels, "gelu"), rows) for layer in (Dense, keras.layers.Dense)]
    yield "Dense with GELU: erf, erfc", *(_without_gradients(tf, layer, rows) for layer in widens)


def updates(number, *shape):
    """Return (ours, Keras') of the update of `number` weights of a shape, with decay."""
    import tensorflow as tf

    def update(optimizer):
        variables = [keras.Variable(np.ones(shape, np.float32)) for _ in range(number)]
        optimizer.build(variables)
        gradients = [maps(*shape)] * number
        return tf.function(lambda: optimizer.apply(gradients, variables))

    return update(AdamW()), update(keras.optimizers.AdamW())


def _without_gradients(tf, layer, x):
    graph = tf.function(lambda x: layer(x)[0, 0])  # copies one value of the result only
    return lambda: graph(x).numpy()


PAIRS = {"jax": jax_pairs, "torch": torch_pairs, "tensorflow": tensorflow_pairs}

if __name__ == "__main__":
    main()
