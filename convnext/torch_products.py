"""Matrix products on torch's CPU, by MKL or oneDNN, whichever is faster on the processor.

torch multiplies float32 matrices by MKL, which reaches half the peak of an AMD processor with AVX-512; oneDNN, which
torch uses for convolutions, reaches nearly all of it: (392, 768) → (392, 3072) takes 7 ms instead of 17 on two cores.
Without AVX-512 MKL is faster (10.5 ms against 19), except for few rows, and oneDNN's GELU is slow. Measured by
KERAS_BACKEND=torch python tests/bench_layers.py.
"""

import functools
import sys

MIN_ROWS = 8  # below, the call overhead of oneDNN dominates
MAX_ROWS_AVX2 = 32  # up to here oneDNN is faster without AVX-512 too


def affine(x, kernel, bias=None, gelu=False):
    """Return x · kernel + bias, or its exact GELU: torch tensors (M, K), (K, N), (N,) or None → (M, N).

    It has gradients of every order. Without gradients, oneDNN computes the GELU while the product is in the cache.
    """
    import torch

    if not _uses_onednn(x, kernel):
        outputs = torch.matmul(x, kernel) if bias is None else torch.addmm(bias, x, kernel)
    elif torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, kernel, bias)):
        outputs = _differentiable().apply(x, kernel, bias)
    elif gelu and fuses_gelu():
        return _onednn_product(x, kernel, bias, gelu)
    else:
        outputs = _onednn_product(x, kernel, bias)
    return torch.nn.functional.gelu(outputs) if gelu else outputs


def _uses_onednn(x, kernel):
    import torch

    is_float32 = x.dtype == kernel.dtype == torch.float32
    return is_float32 and is_eager_cpu(x) and x.shape[0] in onednn_rows()


def is_eager_cpu(x):
    """Whether operations on a torch tensor run eagerly on a CPU, and are not traced into a graph."""
    import torch

    return x.device.type == "cpu" and not torch.compiler.is_compiling() and not torch.jit.is_tracing()


@functools.cache
def onednn_rows() -> range:
    """Return the range of row counts for which oneDNN is faster; empty on processors that were not measured."""
    import torch

    is_available = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    end = {"AVX512": sys.maxsize, "AVX2": MAX_ROWS_AVX2 + 1}.get(torch.backends.cpu.get_cpu_capability(), 0)
    return range(MIN_ROWS, end if is_available else 0)


def fuses_gelu() -> bool:
    """Whether a product with GELU fused by oneDNN is faster than torch's GELU after it."""
    import torch

    return torch.backends.cpu.get_cpu_capability() == "AVX512"


def _onednn_product(x, kernel, bias, gelu=False):
    import torch

    x, weight = as_matrix(x), as_matrix(kernel.t())
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu" if gelu else "none", [], "none")


def as_matrix(x):
    """Return x with row-major or column-major strides, copied if it has others.

    With strides (0, 0), as the gradient of a sum has, oneDNN takes a thousand times as long.
    """
    strides = x.stride()
    return x if 1 in strides and 0 not in strides else x.contiguous()


@functools.cache
def _differentiable():
    """Return the autograd function of (x, kernel, bias), whose gradients are computed by `affine` again."""
    import torch

    class Affine(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, kernel, bias):
            ctx.save_for_backward(x, kernel)
            return _onednn_product(x, kernel, bias)

        @staticmethod
        def backward(ctx, gradient):
            x, kernel = ctx.saved_tensors
            needs_x, needs_kernel, needs_bias = ctx.needs_input_grad
            return (
                affine(gradient, kernel.t()) if needs_x else None,
                kernel_gradient(x, gradient) if needs_kernel else None,
                gradient.sum(0) if needs_bias else None,
            )

    return Affine


def kernel_gradient(x, gradient):
    """Return xᵀ · gradient, (M, K), (M, N) → (K, N); with the narrower factor second oneDNN is up to 3× slower."""
    if x.shape[1] <= gradient.shape[1]:
        return affine(x.t(), gradient)
    return affine(gradient.t(), x).t()
