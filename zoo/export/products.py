"""Matrix products in ONNX: optionally in int8, and wide ones in parts that fit the cache.

A product works on form FLAT, (B·H·W, I) → (B·H·W, O).
"""

import dataclasses

import numpy as np

from zoo.export.graph import FLAT, FLOAT16, FLOAT32, INT8, INT32, INT64, LAST, UINT8

_NARROW = 512  # input channels; from here on `_times_widening` does not pay
PART = 640_000  # bytes of one image's result; larger widening products are split


def product(graph, x, kernel, bias, name="kernel"):
    """Return x · kernel + bias over the last axis, (…, I) → (…, O); with precision int8, maps and sequences in int8."""
    count = 1 if x.parts else _count_parts(graph, x, kernel)
    x = graph.split(x, count) if count > 1 else x
    x = each(x, lambda part: graph.to(part, FLAT))
    has_rows = any(side != 1 for side in x.shape[1:-1])  # several rows per image
    widens = kernel.shape[0] < min(kernel.shape[1], _NARROW)
    if graph.precision == INT8 and has_rows:
        times = _times_int8(graph, kernel, bias, name)
    elif graph.precision == FLOAT32 and has_rows and bias is not None and widens:
        times = _times_widening(graph, kernel, bias, name)
    else:
        times = _times(graph, kernel, bias, name)

    def multiply(part):
        return dataclasses.replace(times(part), shape=(*part.shape[:-1], kernel.shape[1]))

    return each(x, multiply)


def each(x, function):
    """Apply `function` to a value, or to each of its parts."""
    if not x.parts:
        return function(x)
    parts = tuple(function(part) for part in x.parts)
    return dataclasses.replace(x, shape=(*x.shape[:-1], parts[0].channels), dtype=parts[0].dtype, parts=parts)


def _count_parts(graph, x, kernel):
    """Return into how many parts a map is split before a product that widens it.

    The results of a part then stay in the cache until the product that narrows them again; without it, at batch 8,
    ConvNeXt-Tiny's first stage writes and reads 38 MB four times. A part has at least as many positions as the kernel
    has rows, since each part reads the whole kernel.
    """
    rows, width = kernel.shape
    if graph.precision == FLOAT16 or len(x.shape) != 4 or None in x.shape[1:3] or width <= rows:
        return 1
    height, positions = x.shape[1], x.shape[1] * x.shape[2]
    counts = [n for n in range(1, height + 1) if height % n == 0 and positions >= n * rows] or [1]
    return next((n for n in counts if positions * width * 4 <= n * PART), counts[-1])


def _times(graph, kernel, bias, name):
    """Return a function of (N, I) that multiplies with a kernel and adds a bias."""
    bias_name = [] if bias is None else [graph.weight(bias, name.replace("kernel", "bias"))]
    weights = [graph.weight(kernel, name), *bias_name]
    return lambda x: graph.op("Gemm", [graph.cast(x, graph.compute), *weights])


def _times_widening(graph, kernel, bias, name):
    """Return a function of (N, I) with the bias as an extra row of the kernel and a one at the end of each row of x.

    ONNX Runtime's Gemm first fills its result with the bias, an extra pass over a large array. At ConvNeXt-Tiny's
    first stage Gemm and Gelu take 22 ms, in this form 17 ms. For wide inputs the pass matters less: at 768 → 3072 this
    form takes 1.28 times as long for 50 rows and the same for 400.
    """
    ends, one = graph.constant([0, 0, 0, 1], INT64), graph.constant(1, FLOAT32)
    weight = graph.weight(np.vstack([kernel, bias]), f"{name}_and_bias")
    return lambda x: graph.op("MatMul", [graph.op("Pad", [x, ends, one], name="append_one"), weight])


def _times_int8(graph, kernel, bias, name):
    """Return a function of (N, I) with int8 weights, one scale per output, and dynamic scale and offset of the input.

    Weights are unsigned with zero at 128: on CPUs with AVX2 or AVX-512 but no VNNI, ONNX Runtime adds two products of
    an unsigned and a signed byte in 16 bits, which saturate. ONNX Runtime fuses these six nodes into one.
    """
    scale = np.maximum(np.abs(kernel).max(axis=0), np.finfo(np.float32).tiny) / 127
    quantized = graph.weight((np.rint(kernel / scale) + 128).astype(UINT8), f"{name}_int8")
    zero = graph.constant(128, UINT8)
    scale = graph.weight(scale, f"{name}_scale")
    shift = None if bias is None else graph.weight(bias, name.replace("kernel", "bias"))

    def times(x):
        x_int8, x_scale, x_zero = graph.op("DynamicQuantizeLinear", [graph.cast(x, FLOAT32)], outputs=3)
        y = graph.op("MatMulInteger", [dataclasses.replace(x_int8, dtype=UINT8), quantized, x_zero, zero])
        y = graph.cast(dataclasses.replace(y, dtype=INT32), FLOAT32)
        y = graph.op("Mul", [y, graph.op("Mul", [x_scale, scale], name="scale")])
        return y if shift is None else graph.op("Add", [y, shift])

    return times


def tiles(graph, x, size):
    """Gather each window's values in a row: (B, H, W, C) → (B·H/h·W/w, h·w·C)."""
    batch, height, width, channels = x.shape
    shape = (batch, height // size[0], width // size[1], size[0] * size[1] * channels)
    rows = graph.reshape(graph.to(x, LAST), [-1, size[0], shape[2], size[1] * channels], name="rows")
    y = graph.op("Transpose", [rows], perm=(0, 2, 1, 3), name="tiles")
    y = graph.op("Reshape", [y, graph.constant([-1, shape[-1]], INT64)], name="flatten")
    return dataclasses.replace(y, shape=shape, form=FLAT, like=None)
