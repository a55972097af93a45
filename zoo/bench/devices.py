"""Devices and memory, as each backend tells of them."""

import sys
from pathlib import Path


def on_cuda(backend: str) -> bool:
    """Whether a backend computes on a CUDA device."""
    if backend == "torch":
        import torch

        return torch.cuda.is_available()
    if backend == "tensorflow":
        import tensorflow as tf

        return bool(tf.config.list_physical_devices("GPU"))
    import jax

    return jax.default_backend() == "gpu"


def wait_for_cuda() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def keras_device() -> str:
    """Name of the device that Keras' backend computes on."""
    import keras

    backend = keras.backend.backend()
    if not on_cuda(backend):
        return "cpu"
    if backend == "torch":
        return torch_device()
    if backend == "tensorflow":
        import tensorflow as tf

        details = tf.config.experimental.get_device_details(tf.config.list_physical_devices("GPU")[0])
        return details.get("device_name", "cuda")
    import jax

    return jax.devices()[0].device_kind


def torch_device() -> str:
    """Name of the device that torch computes on."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def peak_device_bytes(backend: str) -> int | None:
    """Most memory of an accelerator that a backend has held in this process; None on a CPU."""
    if not on_cuda(backend):
        return None
    if backend == "torch":
        import torch

        return torch.cuda.max_memory_allocated()
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.config.experimental.get_memory_info("GPU:0")["peak"]
    import jax

    return jax.local_devices()[0].memory_stats()["peak_bytes_in_use"]


def resident_bytes(peak: bool = False, process: int | None = None) -> int | None:
    """Memory that a process holds, or its most so far; None where the system does not tell.

    Linux is asked for this program's own peak: `getrusage` there counts what the parent held when it was started.

    Args:
        peak: its most so far.
        process: its number; this one unless given.
    """
    if sys.platform == "linux":
        key = "VmHWM:" if peak else "VmRSS:"
        lines = Path(f"/proc/{process or 'self'}/status").read_text().splitlines()
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key)), None)
    if sys.platform == "darwin" and process is None:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return None
