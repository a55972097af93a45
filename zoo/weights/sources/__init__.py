"""One file a library: its tensor names, its configuration read and written. Here: what goes over all of them.

A new library is a file with a `SOURCE`, and a line in SOURCES.
"""

from pathlib import Path
from typing import Any

from zoo.utils.text import shown
from zoo.weights.config import ModelConfig
from zoo.weights.schema import CLIP, RESNET, check_arguments, field_error
from zoo.weights.sources import apple, facebook, open_clip, timm, torchvision, transformers
from zoo.weights.sources.source import Find, Source, Target, read_object

__all__ = ["FORMATS", "LIBRARIES", "SOURCES", "Source", "Target", "find_config", "read_config", "target_of"]

# In the order in which signatures are tried: OpenAI's ResNet tower has all the keys of timm's ResNet.
SOURCES = tuple(module.SOURCE for module in (open_clip, apple, transformers, timm, torchvision, facebook))
FORMATS = tuple(known for source in SOURCES for known in source.formats)
LIBRARIES = tuple(source.name for source in SOURCES if source.fixed)  # that models can be exported for
_FAMILY_NAMES = {"convnext": "ConvNeXt", "convnextv2": "ConvNeXt-V2", RESNET: "ResNet", CLIP: "image–text pair"}

# configuration file → weight files that may stand beside it
LAYOUTS = {source.config: source.weights for source in SOURCES if source.config}


def find_config(where: str, find: Find) -> tuple[ModelConfig, Path]:
    """Return the config and the weight file of a folder or repository.

    Args:
        where: for messages.
        find: file name → path, or None where there is no such file.

    Raises:
        FileNotFoundError: no configuration with weights beside it.
        ValueError: the configuration describes a model that this package does not make.
    """
    for name, files in LAYOUTS.items():
        path = find(name)
        weights = next(filter(None, map(find, files)), None) if path else None
        if path is not None and weights is not None:
            return read_config(path, find), weights
    layouts = "; ".join(f"{name} beside {' or '.join(files)}" for name, files in LAYOUTS.items())
    raise FileNotFoundError(f"{where} has no weights with a configuration. Looked for: {layouts}.")


def read_config(path: Path, find: Find | None = None) -> ModelConfig:
    """Read a library's configuration file.

    Args:
        path: `open_clip_config.json`, or timm's or transformers' `config.json`.
        find: file name → path of a further file, or None where there is no such file; unless given, files in the same
            folder are found.

    Raises:
        ValueError: it is not JSON, or describes a model that this package does not make; the message names the field.
    """
    values = read_object(path)
    readers = [source for source in SOURCES if source.config == path.name and source.recognises(values)]
    if not readers:
        known = "those of " + " or ".join(source.name for source in SOURCES if source.config == path.name)
        raise field_error(path.name, "the list of keys", sorted(values)[:8], known)
    source = readers[0]
    assert source.read is not None
    try:
        config = source.read(values, path.name, find or (lambda name: _beside(path, name)))
    except (TypeError, ValueError, OverflowError) as error:
        if path.name in str(error):
            raise
        raise ValueError(f"{shown(path.name)} describes no model of this package: {shown(error)}") from error
    check_arguments(config.family, config.arguments, path.name)
    return config


def _beside(path, name):
    other = path.with_name(name)
    return other if other.is_file() else None


def target_of(config: ModelConfig, library: str) -> Target:
    """Return the `Target` of a model for one of LIBRARIES.

    Args:
        config: config of the model, with its preprocessing and licence.
        library: one of LIBRARIES.

    Raises:
        ValueError: an unknown library, one without such models, or one whose models differ in a fact of `Source.fixed`.
    """
    if library not in LIBRARIES:
        raise ValueError(f"Unknown format {library!r}. Allowed: {', '.join(LIBRARIES)}.")
    source, family = next(source for source in SOURCES if source.name == library), config.family
    if family not in source.fixed:
        known = [source.name for source in SOURCES if family in source.fixed]
        raise ValueError(f"{library} has no {_FAMILY_NAMES[family]}. Formats for this model: {', '.join(known)}.")
    facts = {} if family == CLIP else _facts(config)
    for fact, fixed in source.fixed[family].items():
        if facts[fact] != fixed:
            raise ValueError(
                f"{library}'s {_FAMILY_NAMES[family]} has {fact} {fixed}, and this model has {facts[fact]}: "
                "its outputs would differ there."
            )
    return source.target(config)


def _facts(config: ModelConfig) -> dict[str, Any]:
    """Facts of a classifier or trunk that `Source.fixed` may contain."""
    arguments, row = config.arguments, config.row
    return {
        "stages": len(row.depths),
        "widths": row.dims,
        "patch size": row.patch_size,
        "epsilon": row.epsilon,
        "activation": row.activation,
        "stem width": getattr(row, "stem_dim", row.dims[0]),
        "overlapping stem": arguments.get("stem_stride", row.patch_size) != row.patch_size,
        "overlapping downsampling": "downsample_strides" in arguments,
        "LayerScale": arguments.get("layer_scale_init_value") is not None,
        "classifier": arguments["include_top"],
        "head norm": arguments["include_top"] or arguments["pooling"] is not None,
        "channels": arguments["input_shape"][-1],
    }
