"""Five operations, each computed by the fastest implementation for the backend and device: affine, conv2d,
depthwise_conv2d, attention and grn.

`reference.py` says what each computes. `jax_cpu.py`, `tensorflow_cpu.py` and `torch_cpu.py` hold faster
implementations with the measurements that justify them; where one does not apply to a call (by dtype, device, shape
or transform), the reference runs. On Keras' other backends only the reference runs.

`CONVNEXT_KERNELS=reference` in the environment, or `with use_reference():`, turns all faster implementations off;
`use_reference("attention")` turns off those of one operation.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import keras

from convnext.kernels import reference
from convnext.kernels.reference import CHANNELS_LAST, PLAIN, Geometry, at_least_float32
from convnext.kernels.shared import computes_in_float32_on_cpu

SWITCH = "CONVNEXT_KERNELS"
OPERATIONS = ("affine", "conv2d", "depthwise_conv2d", "attention", "grn")


def _forms_of(backend: str) -> ModuleType:
    """Return the module of a backend's faster implementations, or the reference."""
    if backend not in ("jax", "tensorflow", "torch"):
        return reference
    return importlib.import_module(f"convnext.kernels.{backend}_cpu")


def _starts_with_reference() -> bool:
    value = os.environ.get(SWITCH, "")
    if value not in ("", "reference"):
        raise ValueError(f"{SWITCH} must be 'reference' or unset, got {value!r}.")
    return value == "reference"


_faster = _forms_of(keras.backend.backend())
_off = frozenset(OPERATIONS if _starts_with_reference() else ())


@contextlib.contextmanager
def use_reference(*operations: str) -> Iterator[None]:
    """Turn off the faster implementations of the named operations, or of all, in the whole process, inside a block.

    A function compiled before (by `jax.jit`, `tf.function` or `torch.compile`, and so by `predict` and `fit`) keeps the
    implementations with which it was compiled.
    """
    global _off
    if unknown := set(operations) - set(OPERATIONS):
        raise ValueError(f"use_reference takes {', '.join(map(repr, OPERATIONS))}, got {sorted(unknown)[0]!r}.")
    before, _off = _off, _off | set(operations or OPERATIONS)
    try:
        yield
    finally:
        _off = before


def _form(operation: str) -> Callable[..., Any]:
    return getattr(reference if operation in _off else _faster, operation)


def in_use() -> dict[str, str]:
    """Return {operation: module of the implementation that is tried first}; "reference" where no faster one is used."""
    file = _faster.__name__.rpartition(".")[2]
    return {name: "reference" if _form(name) is getattr(reference, name) else file for name in OPERATIONS}


def affine(x: Any, kernel: Any, bias: Any = None, activation: Callable[[Any], Any] | None = None) -> Any:
    """Return φ(x W + b), see `reference.affine`: (…, C) → (…, units)."""
    return _form("affine")(x, kernel, bias, activation)


def conv2d(x: Any, kernel: Any, bias: Any = None, geometry: Geometry = PLAIN) -> Any:
    """Return a convolution, see `reference.conv2d`: (B, H, W, C) → (B, h, w, filters)."""
    return _form("conv2d")(x, kernel, bias, geometry)


def depthwise_conv2d(x: Any, kernel: Any, bias: Any = None, geometry: Geometry = PLAIN) -> Any:
    """Return a depthwise convolution, see `reference.depthwise_conv2d`: (B, H, W, C) → (B, h, w, C·m)."""
    return _form("depthwise_conv2d")(x, kernel, bias, geometry)


def attention(qkv: Any, causal: bool = False) -> Any:
    """Return multi-head self-attention, see `reference.attention`: (B, L, 3, heads, d) → (B, L, heads, d)."""
    return _form("attention")(qkv, causal)


def grn(x: Any, gamma: Any, beta: Any, epsilon: float = 1e-6) -> Any:
    """Return global response normalization, see `reference.grn`: (B, H, W, C) → same."""
    return _form("grn")(x, gamma, beta, epsilon)
