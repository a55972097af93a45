"""What a run leaves: the model in one file, with the weights to use."""

from pathlib import Path

import keras

from zoo.data.preprocess import PreprocessSpec
from zoo.models import registry
from zoo.weights.describe import describe

MODEL = "model.safetensors"


def write_model(model: keras.Model, folder: Path, spec: PreprocessSpec) -> Path:
    """The path of model.safetensors, or of model.keras for a model that a few words do not describe."""
    try:
        describe(model)
    except ValueError:
        model.save(folder / "model.keras")
        return folder / "model.keras"
    registry.save(model, folder / MODEL, preprocess=spec)
    return folder / MODEL
