"""The command `zoo doctor`: checks versions, backends, import names and packaged files, and runs a small model."""

import importlib.metadata
import importlib.util
import platform
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from zoo.utils.env import OWN_NAMES, REPAIR, choose_backend, foreign_owners, installed_backends

DISTRIBUTION = "convnext-clip-zoo"
MIN_PYTHON, MIN_KERAS = (3, 11), (3, 15, 1)
EXTRAS = {  # module: the extra that installs it
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "usearch": "search",
    "starlette": "serve",
    "uvicorn": "serve",
    "prometheus_client": "serve",
    "matplotlib": "report",
    "sklearn": "report",
}
HELLO_WORLD = [49406, 3306, 1002, 49407]


class Check(NamedTuple):
    """One line of the report. `passed` is None for an optional package that is not installed."""

    name: str
    passed: bool | None
    detail: str


def examine(backend: str | None = None) -> list[Check]:
    """Run every check, in the order in which failures should be repaired.

    Args:
        backend: backend to run a model on; None for $KERAS_BACKEND, else the first one installed.
    """
    checks = [_check_python(), _check_owners(), _check_backends(), _check_keras(), *_check_extras(), _check_tokenizer()]
    if all_passed(checks):
        checks.append(check_model(backend))
    if all_passed(checks):
        checks.append(_check_kernels())
    return checks


def _check_python() -> Check:
    version = f"{platform.python_version()} on {platform.platform()}"
    return Check(
        "python", sys.version_info >= MIN_PYTHON, f"{version}, needs {'.'.join(map(str, MIN_PYTHON))} or later"
    )


def _check_owners() -> Check:
    """No other package owns our import names, neither by the files that load nor by pip's records."""
    owners = importlib.metadata.packages_distributions()
    others = {name: sorted({*owners.get(name, [])} - {DISTRIBUTION}) for name in OWN_NAMES}
    conflicts = [f"{name}: {', '.join(names)}" for name, names in others.items() if names]
    conflicts += [f"{name}: {where}" for name, where in foreign_owners()]
    detail = f"also owned by {'; '.join(conflicts)}. To repair: {REPAIR}" if conflicts else ", ".join(OWN_NAMES)
    return Check("import names", not conflicts, detail)


def _check_backends() -> Check:
    installed = installed_backends()
    versions = ", ".join(f"{name} {_version_of(name)}" for name in installed)
    return Check("backends", bool(installed), versions or f"none installed; pip install '{DISTRIBUTION}[jax]'")


def _check_keras() -> Check:
    version = _version_of("keras")
    numbers = tuple(int(part) for part in version.split(".")[:3] if part.isdigit())
    return Check("keras", numbers >= MIN_KERAS, f"{version}, needs {'.'.join(map(str, MIN_KERAS))} or later")


def _check_extras() -> Iterator[Check]:
    for module, extra in EXTRAS.items():
        if importlib.util.find_spec(module) is not None:
            yield Check(module, True, _version_of(module))
        else:
            yield Check(module, None, f"optional, not installed; pip install '{DISTRIBUTION}[{extra}]'")


def _check_tokenizer() -> Check:
    """The packaged vocabulary gives the expected token ids."""
    from clip import tokenize

    try:
        ids = tokenize(["hello world"])[0, :4].tolist()
    except (OSError, ValueError) as error:
        return Check("tokenizer", False, str(error))
    return Check("tokenizer", ids == HELLO_WORLD, f"'hello world' → {ids}")


def check_model(backend: str | None) -> Check:
    """A small ConvNeXt V2 runs on the backend and its probabilities sum to 1."""
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


def _check_kernels() -> Check:
    """The forms of the layers' kernels that this process uses."""
    from convnext import kernels

    return Check("kernels", True, ", ".join(f"{name}: {form}" for name, form in kernels.in_use().items()))


def _version_of(module: str) -> str:
    """Version of the distribution that installed a module; "?" when none is recorded."""
    for name in (module, f"{module}-cpu", {"sklearn": "scikit-learn"}.get(module, module)):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "?"


def all_passed(checks: Sequence[Check]) -> bool:
    return all(check.passed is not False for check in checks)


def to_text(checks: Sequence[Check]) -> str:
    """One line per check: ok, FAIL, or - for an optional package that is not installed."""
    mark = {True: "ok  ", False: "FAIL", None: "-   "}
    return "\n".join(f"{mark[check.passed]}  {check.name:<13} {check.detail}" for check in checks)
