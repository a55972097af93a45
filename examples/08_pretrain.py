"""Digits without labels first: a ConvNeXt V2 learns to draw what is hidden of them; ten labels a digit do the rest.

    python examples/08_pretrain.py
    python examples/08_pretrain.py --smoke

Beside it the same network learns from the same labels, by the same recipe, without the pretraining. On the command line
the two steps are `zoo pretrain` and `zoo train classify --weights`. The pictures are scikit-learn's.
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

LABELS = 10  # a digit
SHAPE = {"image_size": 32, "stem_stride": 4}  # with two stages: 16 patches of 8×8 pixels
ROW = Variant(depths=(2, 2), dims=(32, 64))
PRETRAINING = {**SHAPE, "epochs": 40, "batch_size": 64, "learning_rate": 4e-3, "decoder_dim": 64}
FINE_TUNING = {**SHAPE, "epochs": 60, "batch_size": 20, "learning_rate": 3e-3}
ARCHITECTURE = {"model_type": "convnextv2", "depths": list(ROW.depths), "hidden_sizes": list(ROW.dims)}
LEAST_CROP = 0.7  # share of a picture; nothing is mirrored, for digits are not what their mirror images are


def write(folder, digits, places):
    """Some of the pictures as files, in one folder a digit."""
    for place in places:
        path = folder / str(digits.labels[place]) / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(digits.pictures[place]).save(path)
    return str(folder)


def few(labels, seed):
    """Places of LABELS examples of each digit."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.permutation(np.flatnonzero(labels == digit))[:LABELS] for digit in range(10)])


def rows_of(outcome):
    """The history of a run; the program ends with one that was told to stop."""
    return outcome.rows if outcome.finished else sys.exit("Stopped.")


def run(folder, train, held_out, seed, pretraining, fine_tuning):
    """(share of held-out digits read right after training from scratch, and after pretraining, the latter's loss)."""
    every = write(folder / "every", train, range(len(train)))
    labelled = write(folder / "labelled", train, few(train.labels, seed))
    tests = write(folder / "tests", held_out, range(len(held_out)))
    options = {"crop_scale": LEAST_CROP, "flip": 0.0, "save_every": 10**6, "seed": seed}
    history = rows_of(zoo.pretrain(ROW, every, output=folder / "pretrained", **options, **pretraining))

    options |= {"crop_scale": [LEAST_CROP, 1.0], "train_data": labelled, "validation_data": tests}
    options |= {"validate_every": fine_tuning["epochs"] * 10 * LABELS // fine_tuning["batch_size"]}  # at the end alone
    accuracies = []
    for weights in ({}, {"weights": str(folder / "pretrained" / "model.safetensors")}):
        output = {"output": str(folder / f"tuned{len(weights)}"), **weights}
        rows = rows_of(train_classifier(parse_config({**ARCHITECTURE, **fine_tuning, **options, **output})))
        accuracies.append(rows[-1]["val_accuracy"])
    return (*accuracies, history[-1]["loss"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="of network, labels, masks, order"
    )
    parser.add_argument("--smoke", action="store_true", help="one seed, one epoch of each on few pictures")
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
        f"Mean of {len(results)}: {scratch:.1%} of {len(held_out)} from {10 * LABELS} labels alone, {tuned:.1%} after"
    )
    print(f"pretraining on {len(train):,} pictures without labels.")


if __name__ == "__main__":
    main()
