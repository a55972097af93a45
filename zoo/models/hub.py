"""Folders and repositories in the layout of a hub: a configuration, and the weights it describes.

`locate` finds both, and the configuration becomes a `Recipe`. A configuration is data from elsewhere: it is matched
field by field to what our builders make, and refused with the field that differs.
"""

from collections.abc import Callable
from pathlib import Path

from zoo.models.recipes import Recipe
from zoo.weights.published import OPEN_CLIP_FILES, TIMM_FILES
from zoo.weights.schema import check_arguments
from zoo.weights.sources import hub_open_clip as open_clip
from zoo.weights.sources import hub_timm as timm
from zoo.weights.sources import hub_transformers as transformers
from zoo.weights.sources.values import read_json, refusal

__all__ = ["LAYOUTS", "locate", "read_recipe"]

PREPROCESSOR = "preprocessor_config.json"
SHARD_INDEX = "model.safetensors.index.json"

# configuration → weight files looked for beside it, in this order
LAYOUTS = {
    "open_clip_config.json": OPEN_CLIP_FILES,
    "config.json": (TIMM_FILES[0], SHARD_INDEX, *TIMM_FILES[1:]),
}


def locate(where: str, get: Callable[[str], Path | None]) -> tuple[Recipe, Path]:
    """The recipe and the weight file of a folder or repository.

    Args:
        where: for messages.
        get: file name → path, or None where there is no such file.

    Raises:
        FileNotFoundError: no configuration with weights beside it.
        ValueError: the configuration describes a model that this package does not make.
    """
    for config_name, files in LAYOUTS.items():
        config = get(config_name)
        weights = next(filter(None, map(get, files)), None) if config else None
        if weights is not None:
            return read_recipe(config, get(PREPROCESSOR) if config_name == "config.json" else None), weights
    layouts = "; ".join(f"{name} beside {' or '.join(files)}" for name, files in LAYOUTS.items())
    raise FileNotFoundError(f"{where} holds no weights that say what they are. Looked for: {layouts}.")


def read_recipe(config: Path, preprocessor: Path | None = None) -> Recipe:
    """The `Recipe` in a configuration.

    Args:
        config: `open_clip_config.json`, or timm's or transformers' `config.json`.
        preprocessor: transformers' `preprocessor_config.json`, where there is one.

    Raises:
        ValueError: it is not JSON, or describes what our builders do not make; the field is named.
    """
    values, name = read_json(config), config.name
    if name == "open_clip_config.json":
        recipe = open_clip.read(values, name)
    elif "architecture" in values:
        recipe = timm.read(values, name)
    elif "model_type" in values:
        recipe = transformers.read(values, name, preprocessor)
    else:
        raise refusal(name, "the list of keys", sorted(values)[:8], "'architecture' (timm) or 'model_type'")
    check_arguments(recipe.description.family, recipe.arguments, name)
    return recipe
