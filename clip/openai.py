"""The face of OpenAI's package `clip`: `available_models` and `load`; `tokenize` is in tokenizer.py.

Files and published weights belong to the package zoo, which this one does not import. It offers a function that opens
models: as an entry point of the installed distribution, and when `zoo` is imported.
"""

import importlib
import importlib.metadata
from typing import Any

ENTRY_POINTS, OPENER = "convnext_clip_zoo", "clip.load"
NAMES = {  # OpenAI's: ours
    **{name: name for name in ("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64")},
    **{"ViT-B/32": "ViT-B-32", "ViT-B/16": "ViT-B-16", "ViT-L/14": "ViT-L-14", "ViT-L/14@336px": "ViT-L-14-336"},
}
_openers: list[str] = []


def available_models() -> list[str]:
    """Return the names of OpenAI's models, as OpenAI writes them."""
    return list(NAMES)


def register_opener(path: str) -> None:
    """Set the function that `load` calls, "module:name"; imported at the first call."""
    _openers[:] = [path]


def load(name: str, device: Any = None, jit: bool = False) -> tuple:
    """Return (model, preprocess) of OpenAI's weights, downloaded once, or of a file.

    Args:
        name: one of `available_models`, published weights such as "ViT-B-32.laion2b_s34b_b79k", or a file.
        device, jit: accepted and not used: Keras places the model on the backend's default device, and the backend
            compiles what it compiles.

    Returns:
        `clip.CLIP`, and a function from a PIL image to float32 (H, W, 3), which `numpy.stack` makes a batch.

    Raises:
        ValueError: an unknown name. ConnectionError: the weights are not cached, and there is no network.
        ImportError: the package zoo, which reads weights, is not known here.
    """
    del device, jit
    if not _openers:
        _openers.extend(e.value for e in importlib.metadata.entry_points(group=ENTRY_POINTS, name=OPENER))
    if not _openers:
        ours = f"{NAMES.get(name, name)}.openai" if name in NAMES else name
        raise ImportError(
            f"clip.load needs the package zoo, which reads weights: `import zoo` first, or zoo.load({ours!r})"
        )
    module, _, function = _openers[0].partition(":")
    return getattr(importlib.import_module(module), function)(name)
