"""Train a small CLIP model on captioned digits, then classify other digits with prompts that were not captions.

    python examples/04_tiny_clip.py
    python examples/04_tiny_clip.py --smoke

The captions and image paths are in a CSV file. `zoo train contrastive` does the same from the command line.
"""

import argparse
import csv
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import zoo
from clip import CLASS_NAMES, TEMPLATES, zero_shot_classifier

NAMES = CLASS_NAMES["digits"]  # zero, one, two, …
CAPTIONS = ("the number {}", "a {} written by hand", "somebody wrote a {}.", "this is a {}.", "{}, drawn with a pen")


def to_rgb(images):
    """Convert digits (N, 8, 8) in [0, 16] to uint8 (N, 32, 32, 3)."""
    return np.rint(images * (255 / 16)).astype("uint8").repeat(4, 1).repeat(4, 2)[..., None].repeat(3, -1)


def write(folder, images, labels, rng):
    """Write train.csv: the path of each image, a random caption, and the digit as label.

    With labels, all images and captions of a digit are positives of each other.
    """
    with (folder / "train.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["filepath", "caption", "digit"])
        for i, (image, label) in enumerate(zip(to_rgb(images), labels, strict=True)):
            Image.fromarray(image).save(folder / f"{i:04d}.png")
            rows.writerow([f"{i:04d}.png", rng.choice(CAPTIONS).format(NAMES[label]), NAMES[label]])
    return folder / "train.csv"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--smoke", action="store_true", help="one epoch on 64 images")
    options = parser.parse_args()
    data = load_digits()
    train, held_out = train_test_split(np.arange(1797), test_size=360, stratify=data.target, random_state=0)
    train = train[:64] if options.smoke else train

    with tempfile.TemporaryDirectory() as scratch:
        table = write(Path(scratch), data.images[train], data.target[train], np.random.default_rng(0))
        epochs = 1 if options.smoke else options.epochs
        small = {"image_size": 32, "stem_stride": 2, "context_length": 12}
        run = {"batch_size": 64, "epochs": epochs, "label_key": "digit", "output": f"{scratch}/run"}
        zoo.train("convnext_v2_atto", table, **small, **run)
        model, transform, _, _ = zoo.load(f"{scratch}/run/model.safetensors")

    classifier = zero_shot_classifier(model, NAMES, TEMPLATES["digits"])  # "a photo of the digit {}." and three more
    images = np.stack([transform(image) for image in to_rgb(data.images[held_out])])
    accuracy = (classifier.predict(images, verbose=0).argmax(axis=1) == data.target[held_out]).mean()
    print(f"Zero-shot accuracy on held-out digits: {accuracy:.1%}")


if __name__ == "__main__":
    main()
