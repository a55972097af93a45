"""The trained model in one file."""

import dataclasses
from pathlib import Path

import keras

from zoo.data.preprocess import PreprocessSpec
from zoo.models import registry
from zoo.training import processes
from zoo.training.loop import Outcome
from zoo.utils.files import atomic_path
from zoo.weights.describe import describe

MODEL = "model.safetensors"


def write_model(model: keras.Model, folder: Path, spec: PreprocessSpec) -> Path:
    """Write model.safetensors and return its path; model.keras for a custom architecture that metadata cannot hold.

    Of several processes the first writes.
    """
    if not processes.is_first():
        return folder / MODEL
    try:
        describe(model)
    except ValueError:
        with atomic_path(folder / "model.keras") as path:
            model.save(path)
        return folder / "model.keras"
    registry.save(model, folder / MODEL, preprocess=spec)
    return folder / MODEL


def finished(outcome: Outcome, model: Path, *use: str) -> Outcome:
    """Return the outcome of a run with the files that are in its folder, and what to do with the model next."""
    others = {"curves": "curves.png", "history": "history.csv", "report": "report.html"}
    files = {"model": model} | {label: model.with_name(name) for label, name in others.items()}
    found = {label: str(path) for label, path in files.items() if path.is_file()}
    return dataclasses.replace(outcome, files=found, use=use)
