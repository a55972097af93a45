"""Faster implementations for JAX on a CPU: depthwise convolution as multiply–adds, attention with the heads as first
axis.

XLA's own depthwise convolution takes 10 to 40 times as long on a CPU. Gradients of a product over (B, H, W, C) take up
to twice as long as over the (B·H·W, C) view, and Keras' exact GELU by erfc longer than by erf. Measured by
KERAS_BACKEND=jax python tests/bench_layers.py. GRN and other convolutions have no faster implementation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from convnext.kernels import reference
from convnext.kernels.reference import Geometry, conv2d, grn
from convnext.kernels.shared import (
    as_maps,
    as_rows,
    attend_heads_first,
    gelu_by_erf,
    has_only_cpus,
    is_float32,
    is_gelu,
    keeps_size,
)

__all__ = ["affine", "attention", "conv2d", "depthwise_conv2d", "grn"]

RUN = 14  # columns summed in one expression of the kernel's gradient; more compile longer without a gain


def affine(x: Any, kernel: Any, bias: Any, activation: Callable[[Any], Any] | None) -> Any:
    """One product of two matrices for any rank of x; in float32 GELU by erf. On every device.

    An open size is that of an export, which TensorFlow has to read, and JAX writes erf in a way that it cannot.
    """
    rows = as_rows(x)
    is_exported = not all(isinstance(size, int) for size in x.shape)
    if is_float32(x) and is_gelu(activation) and not is_exported:
        outputs = gelu_by_erf(reference.affine(rows, kernel, bias))
    else:
        outputs = reference.affine(rows, kernel, bias, activation)
    return as_maps(outputs, x)


def attention(qkv: Any, causal: bool) -> Any:
    """On a CPU, with the heads as first axis: in float32, and in float16, which JAX's own operator does not support."""
    dtype = keras.backend.standardize_dtype(qkv.dtype)
    is_faster = dtype in ("float32", "float16") and has_only_cpus()
    return attend_heads_first(qkv, causal) if is_faster else reference.attention(qkv, causal)


def depthwise_conv2d(x: Any, kernel: Any, bias: Any, geometry: Geometry) -> Any:
    """On a CPU, of stride 1 with same padding on maps of known sides: shifted multiply–adds, which XLA fuses into one
    loop."""
    has_known_sides = all(isinstance(size, int) for size in x.shape[1:3])
    if not (has_known_sides and kernel.shape[3] == 1 and keeps_size(kernel, geometry) and has_only_cpus()):
        return reference.depthwise_conv2d(x, kernel, bias, geometry)
    taps = ops.cast(kernel, x.dtype)[..., 0]
    taps = taps[effective_taps(taps.shape, x.shape)]
    outputs = shifted_depthwise()(x, taps)
    return outputs if bias is None else outputs + ops.cast(bias, x.dtype)


def effective_taps(kernel_shape: Sequence[int], map_shape: Sequence[int]) -> tuple[slice, slice]:
    """Return the slices of rows and columns of an odd kernel that reach beyond padding on a map (B, H, W, C).

    On a 2 × 2 map they are the middle three of seven, and the map is padded to 4 × 4 instead of 8 × 8.
    """
    (kh, kw), (height, width) = kernel_shape[:2], map_shape[1:3]
    return _taps_of_side(kh, height), _taps_of_side(kw, width)


def _taps_of_side(k: int, size: int) -> slice:
    return slice(max(0, k // 2 - size + 1), min(k, k // 2 + size))


@functools.cache
def shifted_depthwise() -> Callable[[Any, Any], Any]:
    """Return (x (B, H, W, C), kernel (k, k, C)) → (B, H, W, C), stride 1, same padding, compiled once per shape.

    Both it and the kernel's gradient are linear in each argument, and the derivative of either is one of the two. So
    both are primitives of JAX: derivatives of every order, forward and reverse, come from these four rules.
    """
    import jax
    from jax import numpy as jnp
    from jax.extend.core import Primitive
    from jax.interpreters import ad, batching, mlir

    depthwise, kernel_gradient = Primitive("convnext_depthwise"), Primitive("convnext_depthwise_kernel_gradient")

    def flip(kernel: Any) -> Any:
        return kernel[::-1, ::-1]

    def gradient(x: Any, outputs: Any, size: Sequence[int]) -> Any:
        return kernel_gradient.bind(x, outputs, size=tuple(size))

    depthwise.def_abstract_eval(lambda x, _: x.update(weak_type=False))
    kernel_gradient.def_abstract_eval(lambda x, _, size: x.update(shape=(*size, x.shape[-1]), weak_type=False))
    ad.defbilinear(
        depthwise,
        lambda outputs, _, kernel: depthwise.bind(outputs, flip(kernel)),
        lambda outputs, x, kernel: gradient(x, outputs, kernel.aval.shape[:2]),
    )
    ad.defbilinear(
        kernel_gradient,
        lambda kernel, _, outputs, size: depthwise.bind(outputs, flip(kernel)),  # noqa: ARG005 (JAX names it)
        lambda kernel, x, _, size: depthwise.bind(x, kernel),  # noqa: ARG005
    )

    def batch(primitive: Any, arguments: Sequence[Any], axes: Sequence[int | None], **options: Any) -> tuple[Any, int]:
        """The axis of `jax.vmap` joins the channels, which are computed apart."""
        size = next(x.shape[axis] for x, axis in zip(arguments, axes, strict=True) if axis is not None)
        joined = []
        for x, axis in zip(arguments, axes, strict=True):
            first = jnp.broadcast_to(x, (size, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
            last = jnp.moveaxis(first, 0, -2)
            joined.append(last.reshape(*last.shape[:-2], -1))
        outputs = primitive.bind(*joined, **options)
        return outputs.reshape(*outputs.shape[:-1], size, -1), outputs.ndim - 1

    for primitive, function in ((depthwise, _unfused_taps), (kernel_gradient, _kernel_gradient)):
        primitive.def_impl(jax.jit(function, static_argnames=("size",) if primitive is kernel_gradient else ()))
        mlir.register_lowering(primitive, mlir.lower_fun(function, multiple_results=False))
        batching.primitive_batchers[primitive] = functools.partial(batch, primitive)
    return jax.jit(depthwise.bind)


def _unfused_taps(x: Any, kernel: Any) -> Any:
    # If XLA fused the taps into the reductions of the next norm, they would run unvectorised, 9 times slower. It does
    # not fuse out of a loop of unknown length. This one runs once, or twice if the kernel holds NaN, which changes
    # nothing.
    from jax import lax
    from jax import numpy as jnp

    turns = jnp.where(jnp.isnan(kernel[0, 0, 0]), 2, 1)
    return lax.fori_loop(0, turns, lambda *_: _taps(x, kernel), jnp.zeros_like(x))


def _taps(x: Any, kernel: Any) -> Any:
    from jax import numpy as jnp

    (kh, kw), (height, width) = kernel.shape[:2], x.shape[1:3]
    padded = _pad(x, kh, kw)
    total = jnp.zeros((), jnp.promote_types(x.dtype, jnp.float32))  # half precisions accumulate in float32
    for i in range(kh):
        for j in range(kw):
            shifted = padded[:, i : i + height, j : j + width]
            total = total + shifted.astype(total.dtype) * kernel[i, j].astype(total.dtype)
    return total.astype(x.dtype)


def _pad(x: Any, kh: int, kw: int) -> Any:
    from jax import numpy as jnp

    return jnp.pad(x, ((0, 0), (kh // 2, kh // 2), (kw // 2, kw // 2), (0, 0)))


def _kernel_gradient(x: Any, gradient: Any, size: Sequence[int]) -> Any:
    """Return Σ_bhw x[b, h + i, w + j, c] · gradient[b, h, w, c], (k, k, C).

    XLA's own gradient, through 49 overlapping slices, is 10 to 30 times slower. The sum over positions is done in two
    fast steps instead of one slow reduction: runs of columns in one expression, which XLA vectorises over the channels,
    then a product with ones.
    """
    from jax import lax
    from jax import numpy as jnp

    (kh, kw), (height, width, channels) = size, x.shape[1:]
    runs = -(-width // RUN)
    run = -(-width // runs)  # 16 columns are two runs of 8; runs of 14 would pad them to 28
    missing = ((0, 0), (0, 0), (0, runs * run - width), (0, 0))
    padded, gradient = jnp.pad(_pad(x, kh, kw), missing), jnp.pad(gradient, missing)
    wide = jnp.promote_types(x.dtype, jnp.float32)

    def every(values: Any, start: int) -> Any:  # columns start, start + run, …: (B, H, runs, C)
        return lax.slice_in_dim(values, start, start + (runs - 1) * run + 1, run, axis=2).astype(wide)

    def row(i: Any) -> Any:
        rows = lax.dynamic_slice_in_dim(padded, i, height, axis=1)
        sums = [sum(every(rows, j + k) * every(gradient, k) for k in range(run)) for j in range(kw)]
        stacked = jnp.stack(sums, axis=3).reshape(-1, kw * channels)
        return (jnp.ones(stacked.shape[0], wide) @ stacked).reshape(kw, channels)

    return lax.map(row, jnp.arange(kh)).astype(x.dtype)
