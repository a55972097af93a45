"""Fixtures, and the separation of tests that need a Keras backend from tests that must not import one.

A module whose tests need a backend sets `pytestmark = pytest.mark.backend`, may import keras at its top, and runs with
KERAS_BACKEND set. All other modules run without a backend, and their tests must not leave keras imported.
"""

import ast
import functools
import gc
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from hub_cache import HubCache

SEED = 20240229
GROWTH = 1.5e9  # bytes of new memory after which garbage is collected; the suite on JAX would grow to 22 GB
BACKEND = os.environ.get("KERAS_BACKEND")
os.environ["HF_HUB_OFFLINE"] = "1"  # no test asks the network

refused: list[str] = []


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(SEED)


@pytest.fixture(scope="session")
def oracle_dir() -> Path:
    """The folder of reference outputs written by tests/oracles.py."""
    default = Path(__file__).resolve().parent.parent / "build" / "oracles"
    path = Path(os.environ.get("ZOO_ORACLES", default))
    if not path.is_dir():
        pytest.fail(f"no oracle outputs in {path}; write them with: python tests/oracles.py {path}")
    return path


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """huggingface_hub's cache in an empty folder, which only `put` fills."""
    pytest.importorskip("huggingface_hub")
    return HubCache(tmp_path / "hub", monkeypatch)


@pytest.fixture(autouse=True)
def fresh_keras(request):
    """Give each backend test a fresh Keras: seeded, float32, names counted from zero."""
    if request.node.get_closest_marker("backend") is None:
        yield
        return
    import keras

    keras.utils.set_random_seed(SEED)
    yield
    keras.utils.clear_session(free_memory=False)
    keras.config.set_dtype_policy("float32")
    if resident_bytes() > collect.resident + GROWTH:
        collect()


def collect():
    """Free the models in reference cycles, and the programs that JAX keeps, which it would compile again."""
    if jax := sys.modules.get("jax"):
        jax.clear_caches()
    gc.collect()
    collect.resident = resident_bytes()


collect.resident = 0  # bytes, after the last collection


def resident_bytes():
    """Return the resident memory of this process, or 0 where /proc is missing."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


class Unimported(pytest.File):
    """A module that is not imported; it ends the run if its tests were selected, and only the backend is missing."""

    def collect(self):
        if not unwanted(self.path, self.config):
            refused.append(self.name)
        return []


def pytest_pycollect_makemodule(module_path, parent):
    """Do not import modules of which no test is selected, nor backend modules where there is no backend."""
    needs_backend = "pytest.mark.backend" in marks_of(module_path)[0]
    if unwanted(module_path, parent.config) or (needs_backend and not BACKEND):
        return Unimported.from_parent(parent, path=module_path)
    return None


@pytest.hookimpl(tryfirst=True)  # before pytest reads the marks
def pytest_collection_modifyitems(config, items):
    """Deselect tests marked `only(backend, …)` on the other backends; `wide` ones are slow if compiled."""
    for item in items:
        if BACKEND != "torch" and item.get_closest_marker("wide"):
            item.add_marker(pytest.mark.slow)
    left = [item for item in items for mark in item.iter_markers("only") if BACKEND not in mark.args]
    config.hook.pytest_deselected(items=left)
    items[:] = [item for item in items if item not in left]


def pytest_collection_finish(session):
    """End a run before its first test if the tests need a backend and none is set."""
    needing = [item.nodeid for item in session.items if item.get_closest_marker("backend")]
    keras = sys.modules.get("keras")
    if not BACKEND and (refused or needing):
        raise pytest.UsageError(
            f"{(refused + needing)[0]} needs a Keras backend. Set KERAS_BACKEND to jax, tensorflow or torch, "
            'or leave such tests out with -m "not backend".'
        )
    if not BACKEND and keras:
        raise pytest.UsageError("a test module imports keras without pytestmark = pytest.mark.backend")
    if keras and keras.backend.backend() != BACKEND:
        raise pytest.UsageError(f"KERAS_BACKEND is {BACKEND}, but keras runs on {keras.backend.backend()}")
    gc.freeze()  # what the imports made stays, and need not be searched for garbage again


def pytest_runtest_teardown(item):
    if not BACKEND and "keras" in sys.modules:
        pytest.fail(f"{item.nodeid} left keras imported; mark it backend, or import keras in a subprocess")


@functools.cache  # pytest asks for every module of the folder again for each file on its command line
def marks_of(path: Path) -> tuple[str, str]:
    """Return (a module's `pytestmark` as it is written, its whole text), without importing the module."""
    text = path.read_text(encoding="utf-8")
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark":
            return ast.unparse(node.value), text
    return "", text


def unwanted(path: Path, config) -> bool:
    """Return whether the -m of tests/run_suite.py surely selects no test of a module; importing them takes seconds."""
    expression, (marks, text) = config.option.markexpr, marks_of(path)
    if "not backend" in expression:
        return "pytest.mark.backend" in marks
    if "not once" in expression:
        return "mark.backend" not in text or "pytest.mark.once" in marks
    return expression.startswith("once") and "mark.once" not in text
