"""The head of a report: its command and the machine; and what backends report about devices and memory."""

import importlib.metadata
import os
import platform
import shlex
import sys
from pathlib import Path

from zoo.bench.cases import PEERS

LIBRARIES = ("keras", "jax", "tensorflow", "torch", "onnxruntime", *(peer.package for peer in PEERS.values()))


def command_of(names, options, **others) -> str:
    """Return the command line of a run."""
    words = ["zoo", "bench", *names]
    for key, value in {**options, **others}.items():
        if value is None or value is False:
            continue
        words.append(f"--{key.replace('_', '-')}")
        if value is not True:
            words.append(",".join(map(str, value)) if isinstance(value, tuple) else str(value))
    return shlex.join(words)


def describe_machine(threads: int) -> dict[str, str]:
    """Return {label: value}: processor, cores, memory, load, system, library versions."""
    versions = {name: version_of(name) for name in LIBRARIES}
    facts = {
        "processor": _processor(),
        "threads": f"{threads} of {os.cpu_count()} cores",
        "memory": _memory(),
        "load at the start": f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
    }
    return {key: value for key, value in facts.items() if value}


def version_of(package: str) -> str | None:
    """Return the version of a package that may be installed under another name; None if it is not installed."""
    alternatives = {"tensorflow": ("tensorflow", "tensorflow-cpu"), "onnxruntime": ("onnxruntime", "onnxruntime-gpu")}
    for name in alternatives.get(package, (package,)):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


VECTORS = {
    "avx512f": "AVX-512",
    "avx2": "AVX2",
    "asimd": "NEON",
}  # CPU flags by which libraries choose kernels, widest first


def _processor():
    """Return the processor's name and its widest vector extension."""
    if sys.platform != "linux":
        return platform.processor() or platform.machine()
    return describe_processor(Path("/proc/cpuinfo").read_text(encoding="utf-8"))


def describe_processor(cpuinfo: str) -> str:
    """Return the same, from the text of Linux' /proc/cpuinfo."""
    entries = (line.partition(":") for line in cpuinfo.splitlines())
    facts = {key.strip(): value.strip() for key, _, value in entries}
    flags = (facts.get("flags") or facts.get("Features") or "").split()
    widest = [label for flag, label in VECTORS.items() if flag in flags][:1]
    return ", ".join([facts.get("model name") or platform.machine(), *widest])


def _memory():
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB"


# Devices and memory, as each backend reports them.


def on_cuda(backend: str) -> bool:
    """Return whether a backend computes on a CUDA device."""
    if backend == "torch":
        import torch

        return torch.cuda.is_available()
    if backend == "tensorflow":
        import tensorflow as tf

        return bool(tf.config.list_physical_devices("GPU"))
    import jax

    return jax.default_backend() == "gpu"


def wait_for_cuda() -> None:
    """Block until torch's CUDA work is done, if there is a CUDA device."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def keras_device() -> str:
    """Return the name of the device that Keras' backend computes on."""
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
    """Return the name of the device that torch computes on."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def peak_device_bytes(backend: str) -> int | None:
    """Return the peak accelerator memory that a backend has held in this process; None on a CPU."""
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
    """Return the resident memory of a process; None where the system does not report it.

    On Linux the peak is read from /proc: `getrusage` would include what the parent held at the start.

    Args:
        peak: the peak so far instead of the present value.
        process: process id; this process if None.
    """
    if sys.platform == "linux":
        key = "VmHWM:" if peak else "VmRSS:"
        lines = Path(f"/proc/{process or 'self'}/status").read_text().splitlines()
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key)), None)
    if sys.platform == "darwin" and process is None:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return None
