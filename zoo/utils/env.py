"""The environment before anything is imported: Keras' backend, memory, and who owns our import names."""

import contextlib
import ctypes
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import platform
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

BACKENDS = {"jax": "jax", "tensorflow": "tensorflow", "torch": "torch"}  # Keras' name → the module it needs
OWN_NAMES = ("convnext", "clip", "zoo")
FOREIGN_FILES = ("clip.py", "simple_tokenizer.py")  # of OpenAI's package `clip`, which pip installs over ours
REPAIR = "pip uninstall -y clip openai-clip convnext-clip-zoo && pip install convnext-clip-zoo"


def available_cores() -> int:
    """Return the number of cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def share_of_cores(number: int, processes: int) -> Iterator[dict[str, str]]:
    """Let processes started in the block run only on their share of the cores.

    Nothing is restricted where there are fewer cores than processes, or where the system cannot restrict.

    Args:
        number: of the process that is started, from 0.
        processes: that share the cores.

    Yields:
        Environment variables with the number of threads, for libraries that do not count the allowed cores.
    """
    variables = thread_limits(max(1, available_cores() // processes))
    if not hasattr(os, "sched_setaffinity") or available_cores() < processes:
        yield variables
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(cores)[number % processes :: processes])  # of this thread; the process inherits it
    try:
        yield variables
    finally:
        os.sched_setaffinity(0, cores)


def thread_limits(threads: int) -> dict[str, str]:
    """Return environment variables that limit the threads of numerical libraries in a process that is started."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NPROC", "TF_NUM_INTRAOP_THREADS")
    return dict.fromkeys(names, str(threads))


def installed_backends() -> list[str]:
    """Return Keras' names of the backends that are installed, in order of preference."""
    return [name for name, module in BACKENDS.items() if importlib.util.find_spec(module)]


def choose_backend(name: str | None = None, trains: bool = False) -> str:
    """Set KERAS_BACKEND for this process and import Keras.

    Enables oneDNN for TensorFlow unless the process trains or TF_ENABLE_ONEDNN_OPTS is set: TensorFlow enables it by
    itself only on some processors with AVX-512. On an AMD processor with AVX2 it makes forward passes faster
    (ConvNeXt-Tiny 1.20×, the towers of ViT-B-32 1.11× and 1.35×) and training slower (0.87×).

    Args:
        name: "jax", "tensorflow" or "torch"; None takes KERAS_BACKEND, else the first one that is installed.
        trains: whether this process will train.

    Returns:
        The backend's name.

    Raises:
        ValueError: the backend is unknown or not installed, or Keras already runs on another one.
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
        raise ValueError(
            f"Backend {name!r} is not installed (installed: {', '.join(installed) or 'none'}). "
            f"Add it: pip install 'convnext-clip-zoo[{name}]'."
        )
    os.environ["KERAS_BACKEND"] = name
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if not trains:
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    if _QUIET_TENSORFLOW not in sys.meta_path:
        sys.meta_path.insert(0, _QUIET_TENSORFLOW)
    with quiet_stderr():
        import keras
    if keras.backend.backend() != name:
        raise ValueError(
            f"Keras already runs on {keras.backend.backend()!r} in this process; {name!r} needs a new process."
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


SPINNING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")  # settings of OpenMP libraries
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # of glibc's malloc.h


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory for later allocations; return whether the settings were accepted.

    By default glibc returns each large block to the system, which maps and clears its pages again when the next batch
    needs as much. Call this before a library starts threads: they must share one arena, since the other arenas always
    return large blocks. Other C libraries have no such settings, and nothing changes there.

    The process then holds its peak memory until it ends. The peak itself can be higher, because small blocks fill the
    gaps that aligned large blocks leave: a training step of ConvNeXt-Tiny on JAX takes 6.6 GB
    (docs/benchmarks/depthwise-jax).
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    settings = ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1))
    return mallopt is not None and all([mallopt(*setting) for setting in settings])


def import_onnxruntime() -> Any:
    """Return the module `onnxruntime`.

    Its official builds send usage data to Microsoft over HTTPS unless ORT_DISABLE_TELEMETRY is set before they are
    imported. It is set here, unless the environment has a value of its own.

    Raises:
        ImportError: it is not installed.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime


def let_threads_sleep() -> None:
    """Let PyTorch's threads sleep soon after they have nothing to do, unless the environment has a setting of its own.

    By default the OpenMP library of PyTorch's wheels lets them spin for 300,000 turns, on cores that other processes,
    or threads that decode images, could use; see docs/measurements/serving.md. It is read when PyTorch is imported.
    """
    if not any(name in os.environ for name in SPINNING):
        os.environ["GOMP_SPINCOUNT"] = "1000"


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Suppress what native libraries print to stderr while they load; print it if the block raises."""
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


class QuietImport(importlib.abc.MetaPathFinder):
    """Finds one package, and hides what its native libraries print while it is imported."""

    def __init__(self, name: str):
        self.name = name

    def find_spec(self, name, path=None, target=None):
        """Return the spec of the package, with a loader that prints nothing; None for other names."""
        spec = importlib.machinery.PathFinder.find_spec(name, path, target) if name == self.name else None
        if spec is not None and spec.loader is not None:
            quiet = quiet_stderr()(spec.loader.exec_module)
            spec.loader.exec_module = quiet  # type: ignore[method-assign]
        return spec


_QUIET_TENSORFLOW = QuietImport("tensorflow")  # Keras imports it on every backend, when it sets a seed or saves a model


def foreign_owners() -> list[tuple[str, str]]:
    """Return [(name, path), …] of our import names that belong, wholly or in part, to another package."""
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


def check_names() -> None:
    """Raise an ImportError, with the command that repairs it, if another package owns one of our import names."""
    for name, where in foreign_owners():
        raise ImportError(f"The import name {name!r} belongs to another package ({where}). Repair it: {REPAIR}")
