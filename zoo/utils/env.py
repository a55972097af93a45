"""The environment before anything is imported: which backend Keras takes, and who owns our import names."""

import contextlib
import ctypes
import importlib
import importlib.util
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BACKENDS = {"jax": "jax", "tensorflow": "tensorflow", "torch": "torch"}  # Keras' name: the module that must be there
OWN_NAMES = ("convnext", "clip", "zoo")
FOREIGN_FILES = ("clip.py", "simple_tokenizer.py")  # in OpenAI's package `clip`, which pip installs over ours
REPAIR = "pip uninstall -y clip openai-clip convnext-clip-zoo && pip install convnext-clip-zoo"


def available_cores():
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def installed_backends():
    """Keras' names of the backends that can be imported, in the order they are preferred."""
    return [name for name, module in BACKENDS.items() if importlib.util.find_spec(module)]


def choose_backend(name=None, trains=False):
    """Sets KERAS_BACKEND for this process and imports Keras with it.

    TensorFlow takes to oneDNN by itself on some of the processors with AVX-512 alone. Elsewhere forward passes are
    faster by it too (ConvNeXt-Tiny 1.20 times, ViT-B-32's towers 1.11 and 1.35 on an AMD processor with AVX2), and
    training is slower (0.87): so it is turned on where nothing trains and TF_ENABLE_ONEDNN_OPTS says nothing else.

    Args:
        name: "jax", "tensorflow" or "torch"; None for the environment's choice, else the first one installed.
        trains: whether this process will train.

    Returns:
        The backend's name.

    Raises:
        ValueError: no such backend, it is not installed, or Keras already runs on another.
    """
    installed = installed_backends()
    name = name or os.environ.get("KERAS_BACKEND") or next(iter(installed), None)
    if name is None:
        raise ValueError(
            "No backend is installed. Add one: pip install 'convnext-clip-zoo[jax]' (or tensorflow, torch)."
        )
    if name not in BACKENDS:
        raise ValueError(f"Unknown backend {name!r}. Allowed: {', '.join(BACKENDS)}.")
    if name not in installed:
        there = ", ".join(installed) or "none"
        raise ValueError(
            f"Backend {name!r} is not installed (there: {there}). Add it: pip install 'convnext-clip-zoo[{name}]'."
        )
    os.environ["KERAS_BACKEND"] = name
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if not trains:
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    with quiet_stderr():
        import keras
    if keras.backend.backend() != name:
        raise ValueError(
            f"Keras already runs on {keras.backend.backend()!r} in this process; {name!r} needs a new one."
        )
    return name


def require_packages(what: str, packages: Sequence[str], *, extras: str) -> None:
    """Raise ImportError, with the command that installs them, when packages are missing.

    Args:
        what: what needs them, e.g. "The demo".
        packages: import names.
        extras: this distribution's extras that install them.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"{what} needs {' and '.join(missing)}. Install with: pip install 'convnext-clip-zoo[{extras}]'"
        )


def describe_runtime() -> dict[str, Any]:
    """Return {"backend", "versions", "cores", "machine"} of this process. Imports Keras."""
    import keras

    backend = keras.backend.backend()
    modules = {name: importlib.import_module(name) for name in ("keras", backend, "numpy")}
    return {
        "backend": backend,
        "versions": {"python": platform.python_version()} | {name: m.__version__ for name, m in modules.items()},
        "cores": available_cores(),
        "machine": platform.machine(),
    }


M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # of glibc's malloc.h


def keep_freed_memory() -> bool:
    """Has the C library keep the memory that this process frees, for what it asks for next; whether it will.

    glibc hands each large block back to the system, which has to map and clear all its pages anew when the next batch
    asks for as much. Only glibc can be told so; elsewhere nothing changes. Threads have to share one arena,
    since in those of their own large blocks are always handed back: call it before a library starts some. The process
    then holds its greatest need until it ends, and more where a small block comes to lie in what a large one left:
    that of ConvNeXt-Tiny's training step on JAX comes to 6.6 GB (docs/benchmarks/depthwise-jax). glibc cuts a block
    that has to be aligned out of a longer one, gives the ends to small blocks, and then finds it too short.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    settings = ((M_ARENA_MAX, 1), (M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1))
    return mallopt is not None and all([mallopt(*setting) for setting in settings])


@contextlib.contextmanager
def quiet_stderr():
    """Holds back what native libraries print while they load; shows it when loading fails."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held, contextlib.ExitStack() as restore:
        saved = os.dup(2)
        restore.callback(os.close, saved)
        restore.callback(os.dup2, saved, 2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(saved, held.read())
            raise


def foreign_owners():
    """[(name, where it was found), …] of our import names that belong to another package, wholly or in part."""
    root = Path(__file__).resolve().parents[2]
    found = []
    for name in OWN_NAMES:
        spec = importlib.util.find_spec(name)
        origin = Path(spec.origin).resolve() if spec and spec.origin else None
        if origin is None or origin.parent != root / name:
            found.append((name, str(origin)))
        else:
            found += [(name, str(origin.parent / file)) for file in FOREIGN_FILES if (origin.parent / file).exists()]
    return found


def check_names():
    """ImportError when another package owns one of our import names; it says how to repair that."""
    for name, where in foreign_owners():
        raise ImportError(f"The import name {name!r} belongs to another package ({where}). Repair it: {REPAIR}")
