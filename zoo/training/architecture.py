"""The architecture that a classifier's config describes: a name, transformers' keys, or both.

The keys are those of transformers' configs (`hidden_sizes`, `depths`, …). They describe a new row of the tables, or
change the row that `model` names.
"""

from typing import Any

from zoo.models.names import Entry, find
from zoo.training.config import ClassifierConfig
from zoo.training.transformers_keys import HUB_NAME
from zoo.weights.schema import RESNET
from zoo.weights.sources import transformers

EXPANSION = {"basic": 1, "bottleneck": 4}  # of a ResNet block's channels


def describe_model(config: ClassifierConfig) -> tuple[str | dict, int | None, dict]:
    """Return (row's name or fields, image size in the model's name, further arguments of the family's builder).

    Raises:
        ValueError: `model` and `model_type` disagree, or the architecture is not supported.
    """
    entry, size = named_model(config)
    values = {"model_type": config.model_type, **_row_values(entry), **config.architecture}
    stages = values.pop("num_stages", None)
    if stages is not None and stages != len(values.get("depths", range(4))):
        raise ValueError(f"num_stages is {stages}, depths are {values.get('depths', 'four')}; the numbers must agree")
    arguments = transformers.read_config(values, "the config", lambda _: None).arguments
    kept = {key: value for key, value in arguments.items() if key == "layer_scale_init_value"}
    return arguments["variant"], size, {"channels": arguments["input_shape"][-1], **kept}


def named_model(config: ClassifierConfig) -> tuple[Entry | None, int | None]:
    """Return (zoo entry of `model`, image size in the name), each None if there is none."""
    if config.model is None:
        return None, None
    match, size = HUB_NAME.fullmatch(config.model), None
    if match:
        joint = "" if match[1] == RESNET else "_"
        entry, size = find(f"{match[1]}{joint}{match[2]}"), int(match[4]) if match[4] else None
    else:
        entry = find(config.model.removeprefix("timm/"))
    if entry.family != config.model_type:
        raise ValueError(f"model {config.model!r} is a {entry.family}; model_type says {config.model_type!r}")
    return entry, size


def _row_values(entry: Entry | None) -> dict:
    """Return a row of the tables as keys of a transformers config."""
    import convnext

    if entry is None:
        return {}
    family = entry.family
    row: Any = convnext.TABLES[family][entry.label]
    values = {"depths": list(row.depths), "hidden_sizes": list(row.dims), "hidden_act": row.activation}
    if family != RESNET:
        return {**values, "patch_size": row.patch_size}
    sizes = [size * EXPANSION[row.block] for size in row.dims]
    return {**values, "hidden_sizes": sizes, "layer_type": row.block, "embedding_size": row.stem_dim}
