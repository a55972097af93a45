"""Pretrain a ConvNeXt V2 on unlabelled digits (masked autoencoder), then fine-tune it with ten labels per digit.

    python examples/08_pretrain.py
    python examples/08_pretrain.py --smoke

For comparison, the same network is trained from scratch on the same labels. On the command line the two steps are
`zoo pretrain` and `zoo train classify --weights`. The digits come with scikit-learn.
"""

import argparse
import contextlib
import io
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import zoo
from convnext import Variant
from zoo.data.digits import load_split
from zoo.training.classify import train_classifier
from zoo.training.config import parse_config

LABELS = 10  # per digit
SHAPE = {"image_size": 32, "stem_stride": 4}  # with two stages: 16 patches of 8 × 8 pixels
ROW = Variant(depths=(2, 2), dims=(32, 64))
PRETRAINING = {**SHAPE, "epochs": 40, "batch_size": 64, "learning_rate": 4e-3, "decoder_dim": 64}
FINE_TUNING = {**SHAPE, "epochs": 60, "batch_size": 20, "learning_rate": 3e-3}
ARCHITECTURE = {"model_type": "convnextv2", "depths": list(ROW.depths), "hidden_sizes": list(ROW.dims)}
MIN_CROP = 0.7  # share of the area; no flips, since a mirrored digit is not a digit


def write(folder, digits, places):
    """Write images as PNG files, one folder per digit; return the path."""
    for place in places:
        path = folder / str(digits.labels[place]) / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(digits.images[place]).save(path)
    return str(folder)


def few(labels, seed):
    """Return the indices of LABELS random examples of each digit."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.permutation(np.flatnonzero(labels == digit))[:LABELS] for digit in range(10)])


def rows_of(outcome):
    """Return the history of a run; exit if it was interrupted."""
    return outcome.rows if outcome.finished else sys.exit("Stopped.")


def run(folder, train, held_out, seed, pretraining, fine_tuning):
    """Return (accuracy from scratch, accuracy after pretraining, pretraining loss)."""
    every = write(folder / "every", train, range(len(train)))
    labelled = write(folder / "labelled", train, few(train.labels, seed))
    tests = write(folder / "tests", held_out, range(len(held_out)))
    options = {"crop_scale": MIN_CROP, "flip": 0.0, "save_every": 10**6, "seed": seed}
    history = rows_of(zoo.pretrain(ROW, every, output=folder / "pretrained", **options, **pretraining))

    options |= {"crop_scale": [MIN_CROP, 1.0], "train_data": labelled, "validation_data": tests}
    options |= {"validate_every": fine_tuning["epochs"] * 10 * LABELS // fine_tuning["batch_size"]}  # only at the end
    accuracies = []
    for weights in ({}, {"weights": str(folder / "pretrained" / "model.safetensors")}):
        output = {"output": str(folder / f"tuned{len(weights)}"), **weights}
        rows = rows_of(train_classifier(parse_config({**ARCHITECTURE, **fine_tuning, **options, **output})))
        accuracies.append(rows[-1]["val_accuracy"])
    return (*accuracies, history[-1]["loss"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="random seeds (default 0 1 2 3 4)"
    )
    parser.add_argument("--smoke", action="store_true", help="one seed, one epoch each, few images")
    options = parser.parse_args()
    train, held_out = load_split(256 if options.smoke else None)
    recipe = PRETRAINING, FINE_TUNING
    if options.smoke:
        options.seeds, recipe = [0], [{**part, "epochs": 1} for part in recipe]

    results = []
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            results.append(run(Path(folder), train, held_out, seed, *recipe))
        scratch, tuned, loss = results[-1]
        print(f"Seed {seed}: {scratch:.1%} from scratch, {tuned:.1%} after pretraining (loss {loss:.3f}).", flush=True)
    scratch, tuned, _ = np.mean(results, axis=0)
    print(
        f"Mean accuracy of {len(results)} seeds on {len(held_out)} images: {scratch:.1%} from {10 * LABELS} labels "
        f"alone, {tuned:.1%} after pretraining on {len(train):,} unlabelled images."
    )


if __name__ == "__main__":
    main()
