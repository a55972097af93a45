"""A model of ours → the files from which another library loads it."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zoo.utils.files import atomic_write
from zoo.weights import native
from zoo.weights.describe import describe
from zoo.weights.engine import export_tensors
from zoo.weights.targets import LIBRARIES, target_of
from zoo.weights.write import write_safetensors

__all__ = ["LIBRARIES", "WeightExport", "write_for"]


@dataclass(frozen=True)
class WeightExport:
    """What `export_weights` wrote.

    Args:
        format: the naming of the tensors.
        tensors: how many there are.
        files: their paths; the weights first, then the configurations.
    """

    format: str
    tensors: int
    files: tuple[str, ...]

    def __str__(self):
        return f"{self.tensors} tensors in the format of {self.format}: {', '.join(self.files)}"


def write_for(model, path, library, preprocess=None):
    """Writes a model's weights as a library names them, and the configurations that it reads beside them.

    A file is written whole or not at all, the weights first.

    Args:
        model: from this package's builders.
        path: ends in `.safetensors`, or a folder, which is made if need be and gets the library's own file name.
        library: of LIBRARIES.
        preprocess: `PreprocessSpec`, for timm and open_clip; unless given, that of the file the weights came from.

    Returns:
        A `WeightExport`.

    Raises:
        ValueError: a model or a format that do not go together, or another suffix.
    """
    path = Path(path)
    if path.suffix not in ("", ".safetensors"):
        raise ValueError(f"Weights are exported to a folder or a .safetensors file, got {path.name!r}.")
    known = native.recall(model)
    given = {"preprocess": preprocess or known.preprocess, "licence": known.licence}
    target = target_of(model, dataclasses.replace(describe(model), **given), library)
    tensors = with_counters(export_tensors(model, target.format))
    if path.suffix == "":
        path.mkdir(parents=True, exist_ok=True)
        path /= target.weights
    write_safetensors(path, tensors, {"format": "pt"})
    configs = [path.with_name(name) for name in target.configs]
    for config in configs:
        with atomic_write(config, "w") as file:
            json.dump(target.configs[config.name], file, indent=2)
    return WeightExport(target.format.name, len(tensors), tuple(str(file) for file in (path, *configs)))


def with_counters(tensors):
    """The tensors with the step counter that each BatchNorm of torch has beside its statistics."""
    norms = [key.removesuffix("running_var") for key in tensors if key.endswith(".running_var")]
    return tensors | {f"{norm}num_batches_tracked": np.zeros((), np.int64) for norm in norms}
