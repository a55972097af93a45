"""The trained model in one file."""

from pathlib import Path

import keras

from zoo.data.preprocess import PreprocessSpec
from zoo.models import registry
from zoo.utils.files import atomic_path
from zoo.weights.describe import describe

MODEL = "model.safetensors"


def write_model(model: keras.Model, folder: Path, spec: PreprocessSpec) -> Path:
    """Write model.safetensors and return its path; model.keras for a custom architecture that metadata cannot hold."""
    try:
        describe(model)
    except ValueError:
        with atomic_path(folder / "model.keras") as path:
            model.save(path)
        return folder / "model.keras"
    registry.save(model, folder / MODEL, preprocess=spec)
    return folder / MODEL
