"""Data parallelism on JAX: devices share each batch; loss, gradient and statistics are those of the whole batch.

XLA sees the whole arrays (`keras.distribution`), so a contrastive batch keeps all of its negatives.
"""

import contextlib

import keras
from keras import distribution

from zoo.training import processes


@contextlib.contextmanager
def data_parallel(devices: int | None, batch_size: int):
    """Models created in the block train on several devices, each with all weights and a part of each batch.

    Args:
        devices: number of JAX devices, the first that JAX lists; None or 1 for one device on any backend. With several
            processes, all devices of all processes.
        batch_size: over all devices.

    Raises:
        ValueError: another backend, too few devices, or a batch size that they do not divide.
    """
    if processes.count() > 1:
        with distribution.DataParallel(devices=distribution.list_devices(), auto_shard_dataset=False).scope():
            yield
        return
    if devices in (None, 1):
        yield
        return
    backend = keras.backend.backend()
    if backend != "jax":
        raise ValueError(f"devices={devices} needs JAX, and the backend is {backend}; run with --backend jax")
    there = distribution.list_devices()
    if not 1 <= devices <= len(there):
        raise ValueError(
            f"devices={devices}, and JAX sees {len(there)}: {', '.join(there)}. For virtual ones on a CPU set "
            "XLA_FLAGS=--xla_force_host_platform_device_count=N before it starts"
        )
    if batch_size % devices:
        raise ValueError(f"batch_size={batch_size} must be a multiple of devices={devices}")
    with distribution.DataParallel(devices=there[:devices], auto_shard_dataset=False).scope():
        yield


@contextlib.contextmanager
def without_distribution():
    """In the block, batches are not divided among devices, so they may have any size, as in validation."""
    before = distribution.distribution()
    distribution.set_distribution(None)
    try:
        yield
    finally:
        distribution.set_distribution(before)
