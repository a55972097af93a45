"""Products of matrices on torch, by whichever of its two libraries is faster on the processor at hand.

torch multiplies float32 matrices on a CPU by MKL, which uses half of what an AMD processor with AVX-512 can do; oneDNN,
on which torch runs its convolutions, uses nearly all. (400, 768) → (400, 3072) on one core: 23 ms and 10 ms.
"""

import functools

FEWEST_ROWS = 8  # below, what a call of oneDNN costs shows


def affine(x, kernel, bias=None):
    """x · kernel + bias: torch tensors (M, K), (K, N), (N,) or None → (M, N), with gradients of every order."""
    import torch

    if not _suits_onednn(x, kernel):
        return torch.matmul(x, kernel) if bias is None else torch.addmm(bias, x, kernel)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, kernel, bias)):
        return _differentiable().apply(x, kernel, bias)
    return _onednn_product(x, kernel, bias)


def _suits_onednn(x, kernel):
    import torch

    is_plain = x.device.type == "cpu" and x.dtype == kernel.dtype == torch.float32 and x.shape[0] >= FEWEST_ROWS
    return is_plain and _has_onednn() and not torch.compiler.is_compiling()


@functools.cache
def _has_onednn():
    """Whether this torch has the operator, on a processor it was measured on."""
    import torch

    is_x86 = torch.backends.cpu.get_cpu_capability().startswith("AVX")
    return is_x86 and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _onednn_product(x, kernel, bias=None):
    import torch

    return torch.ops.mkldnn._linear_pointwise(x, kernel.t(), bias, "none", [], "")


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
