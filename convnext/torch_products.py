"""Products of matrices on torch, by whichever of its two libraries is faster on the processor at hand.

torch multiplies float32 matrices on a CPU by MKL, which uses half of what an AMD processor with AVX-512 can do; oneDNN,
on which torch runs its convolutions, uses nearly all: (392, 768) → (392, 3072) takes 17 ms and 7 on two cores. Without
AVX-512 it is MKL that uses nearly all, 10.5 ms and 19, but of few rows, and oneDNN's GELU is slow there. Both as
KERAS_BACKEND=torch python tests/bench_layers.py shows.
"""

import functools
import sys

FEWEST_ROWS = 8  # below, what a call of oneDNN costs shows
FEW_ROWS = 32  # up to so many oneDNN is faster without AVX-512 too


def affine(x, kernel, bias=None, gelu=False):
    """x · kernel + bias, and the exact GELU of it on demand: torch tensors (M, K), (K, N), (N,) or None → (M, N).

    It has gradients of every order. Where none is wanted, oneDNN computes the GELU while the product is in the cache.
    """
    import torch

    if not _suits_onednn(x, kernel):
        outputs = torch.matmul(x, kernel) if bias is None else torch.addmm(bias, x, kernel)
    elif torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, kernel, bias)):
        outputs = _differentiable().apply(x, kernel, bias)
    elif gelu and fuses_gelu():
        return _onednn_product(x, kernel, bias, gelu)
    else:
        outputs = _onednn_product(x, kernel, bias)
    return torch.nn.functional.gelu(outputs) if gelu else outputs


def _suits_onednn(x, kernel):
    import torch

    is_plain = x.dtype == kernel.dtype == torch.float32
    return is_plain and runs_at_once(x) and x.shape[0] in onednn_rows()


def runs_at_once(x):
    """Whether what is done to a torch tensor runs on a CPU there and then, and is not traced into a graph."""
    import torch

    return x.device.type == "cpu" and not torch.compiler.is_compiling() and not torch.jit.is_tracing()


@functools.cache
def onednn_rows() -> range:
    """The numbers of rows of which oneDNN's product is the faster one; none where it was not measured."""
    import torch

    is_there = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    most = {"AVX512": sys.maxsize, "AVX2": FEW_ROWS + 1}.get(torch.backends.cpu.get_cpu_capability(), 0)
    return range(FEWEST_ROWS, most if is_there else 0)


def fuses_gelu() -> bool:
    """Whether oneDNN computes the GELU faster than torch does after it."""
    import torch

    return torch.backends.cpu.get_cpu_capability() == "AVX512"


def _onednn_product(x, kernel, bias, gelu=False):
    import torch

    x, weight = as_matrix(x), as_matrix(kernel.t())
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu" if gelu else "none", [], "none")


def as_matrix(x):
    """x in rows or columns, copied where it has other strides.

    With those of a sum's gradient, (0, 0), oneDNN takes a thousand times as long.
    """
    strides = x.stride()
    return x if 1 in strides and 0 not in strides else x.contiguous()


@functools.cache
def _differentiable():
    """The autograd function of (x, kernel, bias), whose gradients are such products again."""
    import torch

    class Affine(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, kernel, bias):
            ctx.save_for_backward(x, kernel)
            return _onednn_product(x, kernel, bias)

        @staticmethod
        def backward(ctx, gradient):
            x, kernel = ctx.saved_tensors
            wants_x, wants_kernel, wants_bias = ctx.needs_input_grad
            return (
                affine(gradient, kernel.t()) if wants_x else None,
                kernel_gradient(x, gradient) if wants_kernel else None,
                gradient.sum(0) if wants_bias else None,
            )

    return Affine


def kernel_gradient(x, gradient):
    """xᵀ · gradient, (M, K), (M, N) → (K, N): the narrower one first, else oneDNN is up to three times slower."""
    if x.shape[1] <= gradient.shape[1]:
        return affine(x.t(), gradient)
    return affine(gradient.t(), x).t()
