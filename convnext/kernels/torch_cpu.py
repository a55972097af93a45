"""Faster implementations for torch: matrix products by MKL or oneDNN, convolutions on views, attention in fewer
operations.

torch multiplies float32 matrices by MKL, which reaches half the peak of an AMD processor with AVX-512; oneDNN, which
torch uses for convolutions, reaches nearly all of it: (392, 768) → (392, 3072) takes 7 ms instead of 17 on two cores.
Without AVX-512 MKL is faster (10.5 ms against 19), except for few rows, and oneDNN's GELU is slow. On an Intel
processor with AVX-512 MKL is twice as fast (13.6 ms against 29 on one core). Measured by
KERAS_BACKEND=torch python tests/bench_layers.py.
"""

from __future__ import annotations

import functools
import math
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from keras import ops

from convnext.kernels import reference
from convnext.kernels.reference import Geometry, grn
from convnext.kernels.shared import (
    attend_heads_first,
    computes_in_float32_on_cpu,
    is_gelu,
    keeps_size,
)

__all__ = ["affine", "attention", "conv2d", "depthwise_conv2d", "grn"]

MIN_ROWS = 8  # below, the call overhead of oneDNN dominates
MAX_ROWS_AVX2 = 32  # up to here oneDNN is faster without AVX-512 too
SHORT = 128  # tokens up to which `attend_by_products` is faster than torch's operator on a CPU
CONV2D_ORDER = (3, 2, 0, 1)  # permutation of (k, k, C, filters) to torch's (filters, C, k, k)
DEPTHWISE_ORDER = (2, 3, 0, 1)  # and of (k, k, C, 1) to (C, 1, k, k)


def affine(x: Any, kernel: Any, bias: Any, activation: Callable[[Any], Any] | None) -> Any:
    """One operator for product and bias, on every device; in float32 on a CPU by `product`."""
    ends_in_gelu = is_gelu(activation)
    bias = None if bias is None else ops.convert_to_tensor(bias)
    outputs = product(x.reshape(-1, x.shape[-1]), ops.convert_to_tensor(kernel), bias, gelu=ends_in_gelu)
    if activation is not None and not ends_in_gelu:
        outputs = activation(outputs)
    return outputs.reshape(*x.shape[:-1], outputs.shape[-1])


def conv2d(x: Any, kernel: Any, bias: Any, geometry: Geometry) -> Any:
    """In float32 on a CPU, where patches do not overlap: one matrix product, up to twice as fast as torch's operator.
    With even padding: torch's operator on a view. Keras' own copies its input, and torch.func.vmap cannot map it."""
    if is_product_of_patches(x, kernel, geometry):
        filters, (rows, sides) = kernel.shape[-1], _patches_as_rows(x, kernel.shape[:2], geometry.strides)
        bias = None if bias is None else ops.convert_to_tensor(bias)
        outputs = product(rows, ops.convert_to_tensor(kernel).reshape(-1, filters), bias)
        return outputs.reshape(-1, *sides, filters)
    if takes_a_view(kernel, geometry):
        return _convolve_view(x, kernel, bias, CONV2D_ORDER, geometry)
    return reference.conv2d(x, kernel, bias, geometry)


def depthwise_conv2d(x: Any, kernel: Any, bias: Any, geometry: Geometry) -> Any:
    """With stride 1 and same padding: torch's operator on a view. Keras' own copies its input twice, and
    torch.func.vmap cannot map it."""
    if kernel.shape[3] == 1 and keeps_size(kernel, geometry):
        return _convolve_view(x, kernel, bias, DEPTHWISE_ORDER, geometry)
    return reference.depthwise_conv2d(x, kernel, bias, geometry)


def attention(qkv: Any, causal: bool) -> Any:
    """In float32 on a CPU, up to SHORT tokens: two products. They have derivatives of every order; torch's operator has
    only first ones, in reverse mode. So under torch.func and in forward mode products are taken for any length, and
    where gradients are differentiated again, the gradients are those of products."""
    import torch

    is_short = computes_in_float32_on_cpu(qkv) and qkv.shape[1] <= SHORT
    if is_short or (_is_eager_cpu(qkv) and _is_transformed(qkv)):
        return attend_by_products(qkv, causal)
    outputs = reference.attention(qkv, causal)
    if qkv.requires_grad and torch.is_grad_enabled() and _is_eager() and not _is_transformed(qkv):
        return _gradients_by_products().apply(qkv, outputs, causal)
    return outputs


def attend_by_products(qkv: Any, causal: bool) -> Any:
    """Attention where one operation computes, scales and masks the scores: 1.2 times as fast on a CPU for 50 and 77
    tokens, gradients included; slower for 197, where torch's operator avoids storing the scores
    (tests/bench_layers.py)."""
    import torch

    length, depth = qkv.shape[1], qkv.shape[-1]
    query, key, value = (part.reshape(-1, length, depth) for part in qkv.permute(2, 0, 3, 1, 4).unbind(0))
    mask = query.new_full((length, length), -math.inf).triu(1) if causal else query.new_zeros(())
    scores = torch.baddbmm(mask, query, key.transpose(1, 2), beta=int(causal), alpha=depth**-0.5)
    attended = torch.bmm(scores.softmax(-1), value)
    return attended.reshape(-1, qkv.shape[3], length, depth).transpose(1, 2)


@functools.cache
def _gradients_by_products() -> Any:
    """Return the autograd function of (qkv, its attention, causal) that returns the attention.

    Its gradient is that of the operator which computed the attention. Where gradients are recorded, to be
    differentiated again (`create_graph=True`), it is that of products with the heads as first axis.
    """
    import torch

    class Attention(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, qkv: Any, attended: Any, causal: bool) -> Any:
            ctx.save_for_backward(qkv)
            ctx.causal = causal
            return attended.view_as(attended)

        @staticmethod
        def backward(ctx: Any, gradient: Any) -> Any:
            if not torch.is_grad_enabled():
                return None, gradient, None
            (qkv,) = ctx.saved_tensors
            attended = attend_heads_first(qkv, ctx.causal)
            return *torch.autograd.grad(attended, qkv, gradient, create_graph=True), None, None

    return Attention


def has_separate_patches(kernel: Any, geometry: Geometry) -> bool:
    """Whether a convolution reads each position at most once: its stride is its size, or it is 1 × 1."""
    size = tuple(kernel.shape[:2])
    is_split = geometry.padding == "valid" and size == tuple(geometry.strides)
    return geometry.is_plain and (size == (1, 1) or is_split)


def is_product_of_patches(x: Any, kernel: Any, geometry: Geometry) -> bool:
    """Whether a convolution is one matrix product: of separate patches, in one group, in float32 on a CPU."""
    is_whole = x.shape[-1] == kernel.shape[2]
    return is_whole and has_separate_patches(kernel, geometry) and computes_in_float32_on_cpu(x)


def _patches_as_rows(x: Any, kernel_size: Sequence[int], strides: Sequence[int]) -> tuple[Any, tuple[int, int]]:
    """(B, H, W, C) → (B·h·w, k·k·C) patches of a kernel whose stride is its size, or of 1 × 1; also return (h, w).

    Rows and columns past the last whole patch are dropped.
    """
    if tuple(kernel_size) == (1, 1) and tuple(strides) != (1, 1):
        x = x[:, :: strides[0], :: strides[1]]
    (kh, kw), (height, width, channels) = kernel_size, x.shape[1:]
    h, w = height // kh, width // kw
    if tuple(kernel_size) != (1, 1):
        x = x[:, : h * kh, : w * kw].reshape(-1, h, kh, w, kw, channels).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, kh * kw * channels), (h, w)


def takes_a_view(kernel: Any, geometry: Geometry) -> bool:
    """Whether a convolution pads both sides by the same, and so can be computed on a channels_first view."""
    pads_nothing = geometry.padding == "valid" or tuple(kernel.shape[:2]) == (1, 1)
    return (pads_nothing and geometry.is_plain) or keeps_size(kernel, geometry)


def _convolve_view(x: Any, kernel: Any, bias: Any, order: Sequence[int], geometry: Geometry) -> Any:
    """Return a plain convolution by torch's operator on a channels_first view, without copies.

    Args:
        order: permutation of the kernel's axes to torch's (filters, C / groups, k, k).
    """
    import torch

    weight = ops.convert_to_tensor(kernel).to(x.dtype).permute(order)
    bias = None if bias is None else ops.convert_to_tensor(bias).to(x.dtype)
    pads = tuple(k // 2 for k in kernel.shape[:2]) if geometry.padding == "same" else (0, 0)
    view = x.permute(0, 3, 1, 2)  # memory stays channels_last
    outputs = torch.nn.functional.conv2d(
        view, weight, bias, geometry.strides, pads, groups=x.shape[-1] // weight.shape[1]
    )
    return outputs.permute(0, 2, 3, 1)


def product(x: Any, kernel: Any, bias: Any = None, gelu: bool = False) -> Any:
    """Return x · kernel + bias, or its exact GELU: torch tensors (M, K), (K, N), (N,) or None → (M, N).

    It has gradients of every order. Without gradients, oneDNN computes the GELU while the product is in the cache.
    """
    import torch

    if not _uses_onednn(x, kernel, bias):
        outputs = torch.matmul(x, kernel) if bias is None else torch.addmm(bias, x, kernel)
    elif torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, kernel, bias)):
        outputs = _differentiable().apply(x, kernel, bias)
    elif gelu and fuses_gelu():
        return _onednn_product(x, kernel, bias, gelu)
    else:
        outputs = _onednn_product(x, kernel, bias)
    return torch.nn.functional.gelu(outputs) if gelu else outputs


def _uses_onednn(x: Any, kernel: Any, bias: Any) -> bool:
    import torch

    is_float32 = x.dtype == kernel.dtype == torch.float32
    is_large = is_float32 and _is_eager_cpu(x) and x.shape[0] in onednn_rows()
    return is_large and not _is_transformed(x, kernel, bias)


def _is_eager_cpu(x: Any) -> bool:
    """Whether operations on a torch tensor run eagerly on a CPU."""
    return x.device.type == "cpu" and _is_eager()


def _is_eager() -> bool:
    """Whether operations run as they are called, and are not traced into a graph."""
    import torch

    return not torch.compiler.is_compiling() and not torch.jit.is_tracing()


def _is_transformed(*tensors: Any) -> bool:
    """Whether torch.func acts, or forward-mode differentiation on one of the tensors: oneDNN's product, which has no
    rules for them, would lose the derivative."""
    import torch

    if getattr(torch._C, "_are_functorch_transforms_active", lambda: True)():  # no public function tells
        return True
    unpack = torch.autograd.forward_ad.unpack_dual
    return any(tensor is not None and unpack(tensor).tangent is not None for tensor in tensors)


@functools.cache
def onednn_rows() -> range:
    """Return the range of row counts for which oneDNN is faster; empty on Intel's processors and unmeasured ones."""
    import torch

    if is_intel():
        return range(0)

    is_available = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    end = {"AVX512": sys.maxsize, "AVX2": MAX_ROWS_AVX2 + 1}.get(torch.backends.cpu.get_cpu_capability(), 0)
    return range(MIN_ROWS, end if is_available else 0)


def is_intel() -> bool:
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:  # not Linux
        return "Intel" in platform.processor()


def fuses_gelu() -> bool:
    """Whether a product with GELU fused by oneDNN is faster than torch's GELU after it."""
    import torch

    return torch.backends.cpu.get_cpu_capability() == "AVX512"


def _onednn_product(x: Any, kernel: Any, bias: Any, gelu: bool = False) -> Any:
    import torch

    x, weight = as_matrix(x), as_matrix(kernel.t())
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu" if gelu else "none", [], "none")


def as_matrix(x: Any) -> Any:
    """Return x with row-major or column-major strides, copied if it has others.

    With strides (0, 0), as the gradient of a sum has, oneDNN takes a thousand times as long.
    """
    strides = x.stride()
    return x if 1 in strides and 0 not in strides else x.contiguous()


@functools.cache
def _differentiable() -> Any:
    """Return the autograd function of (x, kernel, bias), whose gradients are computed by `product` again."""
    import torch

    class Affine(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any, kernel: Any, bias: Any) -> Any:
            ctx.save_for_backward(x, kernel)
            return _onednn_product(x, kernel, bias)

        @staticmethod
        def backward(ctx: Any, gradient: Any) -> Any:
            x, kernel = ctx.saved_tensors
            needs_x, needs_kernel, needs_bias = ctx.needs_input_grad
            return (
                product(gradient, kernel.t()) if needs_x else None,
                kernel_gradient(x, gradient) if needs_kernel else None,
                gradient.sum(0) if needs_bias else None,
            )

    return Affine


def kernel_gradient(x: Any, gradient: Any) -> Any:
    """Return xᵀ · gradient, (M, K), (M, N) → (K, N); with the narrower factor second oneDNN is up to 3× slower."""
    if x.shape[1] <= gradient.shape[1]:
        return product(x.t(), gradient)
    return product(gradient.t(), x).t()
