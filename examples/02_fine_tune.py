"""Train a ConvNeXt V2 on the digits 0 to 5, then freeze its backbone and train a new head for 6 to 9.

    python examples/02_fine_tune.py

The digits come with scikit-learn and are written as folders of images. `weights` also takes a published checkpoint.
`zoo train classify --config` reads the same values from a JSON file.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from zoo.training.classify import train_classifier
from zoo.training.config import parse_config

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def write(folder, digits, *, limit):
    """Write the folders train/ and held_out/ with PNG files, one subfolder per class."""
    data = load_digits()
    chosen = np.flatnonzero(np.isin(data.target, digits))
    parts = train_test_split(chosen, test_size=0.25, stratify=data.target[chosen], random_state=0)
    for name, part in zip(("train", "held_out"), parts, strict=True):
        for i in part[:limit]:
            path = folder / name / NAMES[data.target[i]] / f"{i:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.rint(data.images[i] * (255 / 16)).astype("uint8")
            Image.fromarray(pixels).resize((32, 32), Image.Resampling.NEAREST).save(path)


def fine_tune(folder, digits, *, limit, **values):
    """Train on some of the digits; return the path of the saved model."""
    write(folder, digits, limit=limit)
    config = {"model_type": "convnextv2", "model": "convnextv2_atto", "image_size": 32, "stem_stride": 4}
    config |= {"train_data": f"{folder}/train", "validation_data": f"{folder}/held_out", "output": f"{folder}/run"}
    config |= {"flip": 0.0, "crop_scale": [0.8, 1.0]}  # a mirrored digit is not a digit
    outcome = train_classifier(parse_config({**config, **values}))
    accuracy = [row["val_accuracy"] for row in outcome.rows if "val_accuracy" in row][-1]
    print(f"Held-out accuracy on {NAMES[digits[0]]} to {NAMES[digits[-1]]}: {accuracy:.1%}\n")
    return f"{folder}/run/model.safetensors"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=12, help="epochs of each training (default %(default)s)")
    parser.add_argument("--smoke", action="store_true", help="one epoch on 64 images")
    options = parser.parse_args()
    limits = {"epochs": 1 if options.smoke else options.epochs, "limit": 64 if options.smoke else None}
    with tempfile.TemporaryDirectory() as scratch:
        low, high = Path(scratch, "low"), Path(scratch, "high")
        weights = fine_tune(low, [0, 1, 2, 3, 4, 5], learning_rate=1e-3, **limits)
        # The file has six classes, so a new head is created; a warning says so.
        fine_tune(high, [6, 7, 8, 9], weights=weights, freeze_backbone=True, learning_rate=1e-2, **limits)


if __name__ == "__main__":
    main()
