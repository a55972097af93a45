"""Keras learns the classes of this library as soon as both are imported, in either order, so that saved models load.

`import convnext`, `import clip` or `import zoo` imports no Keras. If Keras is there already, the modules below, which
register classes by name, are imported at once; else right after Keras, by a hook on its import. They are those of all
three packages, since a saved model mixes their classes. Their names are all that this package knows of the others.
"""

import contextlib
import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

KERAS = "keras"
MODULES = {  # package → its modules whose import registers classes with Keras
    "convnext": ("adamw", "fcmae", "functional", "layers"),
    "clip": ("layers", "model", "towers.branches", "zero_shot"),
    "zoo": ("training.optimizer",),
}
LIBRARY = Path(__file__).resolve().parent.parent


def register_with_keras() -> None:
    """Register all classes: now if Keras has been imported, else when it is."""
    if hasattr(sys.modules.get(KERAS), "saving"):
        _register()
    elif not any(isinstance(finder, _AfterKeras) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterKeras())


def _register() -> None:
    for package, modules in MODULES.items():
        if _is_ours(package):
            for module in modules:
                # where one of our own modules is what imports Keras, those that need it come when they are used
                with contextlib.suppress(ImportError) if _is_importing() else contextlib.nullcontext():
                    importlib.import_module(f"{package}.{module}")


def _is_importing() -> bool:
    """Whether the import of one of our modules is under way."""
    ours = [module for name, module in list(sys.modules.items()) if name.partition(".")[0] in MODULES]
    return any(getattr(getattr(module, "__spec__", None), "_initializing", False) for module in ours)


def _is_ours(package: str) -> bool:
    """Whether a package's name leads to this library; other libraries have a `clip` too."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None and Path(spec.origin).resolve().parent.parent == LIBRARY


class _AfterKeras(importlib.abc.MetaPathFinder):
    """Finds Keras as the other finders do, and registers the classes after its import."""

    is_asking = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del path, target
        if fullname != KERAS or self.is_asking:
            return None
        self.is_asking = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self.is_asking = False
        if spec is not None and spec.loader is not None:
            spec.loader = _ThenRegister(spec.loader, self)
        return spec


class _ThenRegister(importlib.abc.Loader):
    """Loads a module as its own loader does, then registers the classes."""

    def __init__(self, loader: importlib.abc.Loader, finder: _AfterKeras):
        self.loader, self.finder = loader, finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        if self.finder in sys.meta_path:
            sys.meta_path.remove(self.finder)
        _register()
