"""Faster implementations for TensorFlow: Dense as one product of two matrices, attention with the heads as first axis.

TensorFlow's graph optimizer fuses the product with the bias and with the GELU as written here. Measured by
python tests/bench_kernels.py. Other operations have no faster implementation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from convnext.kernels import reference
from convnext.kernels.reference import conv2d, depthwise_conv2d, grn
from convnext.kernels.shared import (
    as_maps,
    as_rows,
    attend_heads_first,
    computes_in_float32_on_cpu,
    gelu_by_erf,
    is_gelu,
)

__all__ = ["affine", "attention", "conv2d", "depthwise_conv2d", "grn"]


def affine(x: Any, kernel: Any, bias: Any, activation: Callable[[Any], Any] | None) -> Any:
    """One product of two matrices for any rank of x. In float32 on a CPU: GELU by erf."""
    rows = as_rows(x)
    if is_gelu(activation) and computes_in_float32_on_cpu(x):
        outputs = gelu_by_erf(reference.affine(rows, kernel, bias))
    else:
        outputs = reference.affine(rows, kernel, bias, activation)
    return as_maps(outputs, x)


def attention(qkv: Any, causal: bool) -> Any:
    """In float32 on a CPU: with the heads as first axis. Keras' operator cannot be exported to LiteRT."""
    return attend_heads_first(qkv, causal) if computes_in_float32_on_cpu(qkv) else reference.attention(qkv, causal)
