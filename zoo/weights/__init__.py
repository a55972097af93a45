"""Weight files in and out: other libraries' checkpoints by rule tables, our own format by its metadata.

`config` has the `ModelConfig`; `read` and `write` know files, `native` our own format, `describe` derives a config from
a model; `layouts` and `engine` apply the tables of `sources`, one file a library, to a model; `published` is the table
of published weights, `download` and `locate` find their files, `load` puts them into models.
"""

from zoo.weights.config import ModelConfig
from zoo.weights.engine import LoadReport, classes, export_tensors, holds
from zoo.weights.load import create_with_weights, detect_format, load_checkpoint, load_weights, read_weights
from zoo.weights.read import Checkpoint, LazyTensors, read_checkpoint
from zoo.weights.sources import FORMATS, LIBRARIES
from zoo.weights.write import write_safetensors

__all__ = [
    "FORMATS",
    "LIBRARIES",
    "Checkpoint",
    "LazyTensors",
    "LoadReport",
    "ModelConfig",
    "classes",
    "create_with_weights",
    "detect_format",
    "export_tensors",
    "holds",
    "load_checkpoint",
    "load_weights",
    "read_checkpoint",
    "read_weights",
    "write_safetensors",
]
