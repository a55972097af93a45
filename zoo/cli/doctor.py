"""Looks at an installation: versions, backends, owners of our import names, assets, and one model that runs."""

import importlib.metadata
import importlib.util
import platform
import sys
from typing import NamedTuple

from zoo.utils.env import OWN_NAMES, REPAIR, choose_backend, foreign_owners, installed_backends

DISTRIBUTION = "convnext-clip-zoo"
MIN_PYTHON, MIN_KERAS = (3, 11), (3, 15, 1)
EXTRAS = {  # module: the extra that brings it
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "usearch": "search",
    "matplotlib": "report",
    "sklearn": "report",
}
HELLO_WORLD = [49406, 3306, 1002, 49407]


class Check(NamedTuple):
    """One line of the report. `passed` is None for a thing one can do without."""

    name: str
    passed: bool | None
    detail: str


def examine(backend=None):
    """Every check, in the order one would repair them.

    Args:
        backend: the one to run a model on; None for the environment's choice, else the first one installed.

    Returns:
        A list of `Check`.
    """
    checks = [check_python(), check_owners(), check_backends(), check_keras(), *check_extras(), check_tokenizer()]
    if all(check.passed is not False for check in checks):
        checks.append(check_model(backend))
    return checks


def check_python():
    return Check("python", sys.version_info >= MIN_PYTHON, f"{platform.python_version()} on {platform.platform()}")


def check_owners():
    """Our import names belong to our distribution alone, in the files that load and in pip's records."""
    owners = importlib.metadata.packages_distributions()
    others = {name: sorted({*owners.get(name, [])} - {DISTRIBUTION}) for name in OWN_NAMES}
    trouble = [f"{name}: {', '.join(names)}" for name, names in others.items() if names]
    trouble += [f"{name}: {where}" for name, where in foreign_owners()]
    detail = f"also owned by {'; '.join(trouble)}. Repair: {REPAIR}" if trouble else ", ".join(OWN_NAMES)
    return Check("import names", not trouble, detail)


def check_backends():
    installed = installed_backends()
    versions = ", ".join(f"{name} {version_of(name)}" for name in installed)
    return Check("backends", bool(installed), versions or f"none; pip install '{DISTRIBUTION}[jax]'")


def check_keras():
    version = version_of("keras")
    numbers = tuple(int(part) for part in version.split(".")[:3] if part.isdigit())
    return Check("keras", numbers >= MIN_KERAS, f"{version}, at least {'.'.join(map(str, MIN_KERAS))} is needed")


def check_extras():
    for module, extra in EXTRAS.items():
        there = importlib.util.find_spec(module) is not None
        detail = version_of(module) if there else f"not there; pip install '{DISTRIBUTION}[{extra}]'"
        yield Check(module, True if there else None, detail)


def check_tokenizer():
    """The merges came with the installation and give the known ids."""
    from clip import tokenize

    try:
        ids = tokenize(["hello world"])[0, :4].tolist()
    except (OSError, ValueError) as error:
        return Check("tokenizer", False, str(error))
    return Check("tokenizer", ids == HELLO_WORLD, f"'hello world' → {ids}")


def check_model(backend):
    """A small ConvNeXt V2 runs on the backend and its probabilities sum to one."""
    try:
        backend = choose_backend(backend)
        import numpy as np

        from convnext import Variant, create_convnext_v2

        row = Variant(depths=(1, 1), dims=(8, 16))
        scores = create_convnext_v2(row, 10, (32, 32, 3)).predict(np.zeros((2, 32, 32, 3), "float32"), verbose=0)
        total = float(scores.sum(axis=-1).mean())
    except Exception as error:  # whatever a broken installation raises is the finding
        return Check("model", False, f"{type(error).__name__}: {error}")
    return Check("model", abs(total - 1) < 1e-5, f"ConvNeXt V2 on {backend}: probabilities sum to {total:.6f}")


def version_of(module):
    """Version of the distribution that brings a module, "?" where none is recorded."""
    for name in (module, f"{module}-cpu", {"sklearn": "scikit-learn"}.get(module, module)):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "?"


def all_passed(checks):
    return all(check.passed is not False for check in checks)


def to_text(checks):
    """One line a check: ok, FAIL, or - for what one can do without."""
    mark = {True: "ok  ", False: "FAIL", None: "-   "}
    return "\n".join(f"{mark[check.passed]}  {check.name:<13} {check.detail}" for check in checks)
