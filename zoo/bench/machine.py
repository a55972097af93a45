"""What a report says before its figures: the command that made it, and on what."""

import importlib.metadata
import os
import platform
import shlex
import sys
from pathlib import Path

from zoo.bench.cases import PEERS

LIBRARIES = ("keras", "jax", "tensorflow", "torch", "onnxruntime", *(peer.package for peer in PEERS.values()))


def command_of(names, options, **others) -> str:
    """The command line of a run."""
    words = ["zoo", "bench", *names]
    for key, value in {**options, **others}.items():
        if value is None or value is False:
            continue
        words.append(f"--{key.replace('_', '-')}")
        if value is not True:
            words.append(",".join(map(str, value)) if isinstance(value, tuple) else str(value))
    return shlex.join(words)


def describe_machine(threads: int) -> dict[str, str]:
    """{what: value}: processor, cores, memory, how busy it is, system, versions."""
    there = [name for name in dict.fromkeys(LIBRARIES) if _version(name)]
    facts = {
        "processor": _processor(),
        "threads": f"{threads} of {os.cpu_count()} cores",
        "memory": _memory(),
        "load at the start": f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "versions": ", ".join(f"{name} {_version(name)}" for name in there),
    }
    return {key: value for key, value in facts.items() if value}


def _version(package):
    alternatives = {"tensorflow": ("tensorflow", "tensorflow-cpu"), "onnxruntime": ("onnxruntime", "onnxruntime-gpu")}
    for name in alternatives.get(package, (package,)):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


VECTORS = {"avx512f": "AVX-512", "avx2": "AVX2", "asimd": "NEON"}  # Linux' names of what kernels are chosen by


def _processor():
    """The processor's name and its widest vectors."""
    if sys.platform != "linux":
        return platform.processor() or platform.machine()
    return describe_processor(Path("/proc/cpuinfo").read_text(encoding="utf-8"))


def describe_processor(cpuinfo: str) -> str:
    """Likewise, of the text of Linux' /proc/cpuinfo."""
    entries = (line.partition(":") for line in cpuinfo.splitlines())
    facts = {key.strip(): value.strip() for key, _, value in entries}
    flags = (facts.get("flags") or facts.get("Features") or "").split()
    widest = [label for flag, label in VECTORS.items() if flag in flags][:1]
    return ", ".join([facts.get("model name") or platform.machine(), *widest])


def _memory():
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB"
