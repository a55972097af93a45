"""What `clip.load` calls: a CLIP model by OpenAI's name, with its preprocessing."""

from collections.abc import Callable
from pathlib import Path

import clip
from zoo.models.registry import load_pair


def load(name: str) -> tuple["clip.CLIP", Callable]:
    """Return (model, preprocess); see `clip.load`."""
    if name in clip.available_models():
        name = f"{name}.openai"
    elif "." not in name and not Path(name).exists():
        raise ValueError(
            f"There is no model {name!r}; available are {', '.join(clip.available_models())}, names with a tag of "
            "published weights (ViT-B-32.laion2b_s34b_b79k), and files."
        )
    pair = load_pair(name)
    return pair.model, pair.preprocess.eval_transform()
