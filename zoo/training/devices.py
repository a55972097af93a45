"""Several devices: on JAX a batch is divided among them, and loss, gradient and statistics stay those of the batch.

`keras.distribution` lets XLA see whole arrays that lie in parts, so that a contrastive batch has all of its negatives.
"""

import contextlib

import keras
from keras import distribution


@contextlib.contextmanager
def data_parallel(devices: int | None, batch_size: int):
    """Models made in the block train on so many devices, each with its part of a batch and all of the weights.

    Args:
        devices: of JAX, the first that it lists; None or 1 for one, on any backend.
        batch_size: of all devices together.

    Raises:
        ValueError: another backend, fewer devices than asked for, or a batch that cannot be divided among them.
    """
    if devices in (None, 1):
        yield
        return
    backend = keras.backend.backend()
    if backend != "jax":
        raise ValueError(f"devices={devices}: several devices are JAX's, and this is {backend}; run with --backend jax")
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
def undivided():
    """In the block each device computes all of what it is given: batches of any size, as validation has them."""
    before = distribution.distribution()
    distribution.set_distribution(None)
    try:
        yield
    finally:
        distribution.set_distribution(before)
