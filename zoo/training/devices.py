"""Several JAX devices, through `keras.distribution`: they divide each batch, and with a model axis each Dense kernel.

XLA sees the whole arrays, so loss, gradient and statistics are those of the whole batch, and a contrastive batch keeps
all of its negatives.
"""

import contextlib

import keras
import numpy as np
from keras import distribution

from zoo.training import processes

BATCH, MODEL = "batch", "model"


class _DividedKernels(distribution.ModelParallel):
    """Divides the kernels (C, units) of Dense layers by their units among the devices of the mesh's axis MODEL, where
    they can be divided equally, and with them the optimizer's moments."""

    def get_variable_layout(self, variable):
        divides = variable.name == "kernel" and len(variable.shape) == 2
        if divides and variable.shape[1] % self.device_mesh.shape[1] == 0:
            return distribution.TensorLayout((None, MODEL), self.device_mesh)
        return super().get_variable_layout(variable)


@contextlib.contextmanager
def parallel(devices: int | None, batch_size: int, model_axis: int | None = None):
    """Models created in the block train on several devices.

    Args:
        devices: number of JAX devices, from the start of JAX's list. None or 1 takes `model_axis` devices or, without
            a model axis, one device on any backend. Several processes use all devices of all processes.
        batch_size: over all devices.
        model_axis: number of devices that share one copy of the weights, a divisor of `devices`; None or 1 if each
            has all weights.

    Raises:
        ValueError: another backend, too few devices, or devices not a multiple of `model_axis`, or batch_size not of
            `devices` / `model_axis`.
    """
    backend, axis = keras.backend.backend(), model_axis or 1
    count = axis if devices in (None, 1) else devices
    if processes.count() > 1 and backend == "jax":
        with distribution.DataParallel(devices=distribution.list_devices(), auto_shard_dataset=False).scope():
            yield
        return
    if count == 1:
        yield
        return
    given = f"devices={devices}" if axis == 1 else f"model_axis={axis}"
    if backend != "jax":
        raise ValueError(f"{given} needs JAX, and the backend is {backend}; run with --backend jax")
    there = distribution.list_devices()
    if not 1 <= count <= len(there):
        raise ValueError(
            f"{given}, and JAX sees {len(there)}: {', '.join(there)}. For virtual ones on a CPU set "
            "XLA_FLAGS=--xla_force_host_platform_device_count=N before it starts"
        )
    if count % axis:
        raise ValueError(f"devices={count} must be a multiple of model_axis={axis}")
    if batch_size % (count // axis):
        parts = f"devices={count}" if axis == 1 else f"devices / model_axis = {count // axis}"
        raise ValueError(f"batch_size={batch_size} must be a multiple of {parts}")
    with _distribution(np.array(there[:count]), axis).scope():
        yield


def _distribution(devices: np.ndarray, axis: int) -> distribution.DataParallel | distribution.ModelParallel:
    if axis == 1:
        return distribution.DataParallel(devices=list(devices), auto_shard_dataset=False)
    mesh = distribution.DeviceMesh((len(devices) // axis, axis), (BATCH, MODEL), devices)
    options = {"batch_dim_name": BATCH, "auto_shard_dataset": False}
    return _DividedKernels(layout_map=distribution.LayoutMap(mesh), **options)


@contextlib.contextmanager
def without_distribution():
    """In the block, batches are not divided among devices, so they may have any size, as in validation."""
    before = distribution.distribution()
    distribution.set_distribution(None)
    try:
        yield
    finally:
        distribution.set_distribution(before)
