"""Training from the command line on data as it lies on disks: three layouts, the seed's synthetic run, damage."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from corrupt_images import CORRUPTIONS, corrupt
from data_writers import encode, write_captioned_folder, write_class_folders, write_csv, write_shards
from training_case import BASE, ROW, losses, no_curves  # noqa: F401

import zoo
from clip import create_clip
from convnext import Variant, create_convnext_v2
from zoo import cli
from zoo.models import registry
from zoo.training.classify import train_classifier
from zoo.training.config import parse_config

pytestmark = pytest.mark.backend
once = pytest.mark.once

ROOT = Path(__file__).resolve().parent.parent
CLASSIFIER = {
    **{"model_type": "convnextv2", "hidden_sizes": [8, 8], "depths": [1, 1], "stem_stride": 2, "image_size": 16},
    **{"batch_size": 8, "epochs": 2, "log_every": 1, "threads": 1, "label_key": "class", "num_labels": 10},
}
LAYOUTS = {
    "contrastive": {"csv": write_csv, "folder": write_captioned_folder, "shards": write_shards},
    "classify": {"csv": write_csv, "folder": write_class_folders, "shards": write_shards},
    "pretrain": {"csv": write_csv, "folder": write_class_folders, "shards": write_shards},
}
BACKBONE = "convnextv2_atto"
CASES = [(mode, layout) for mode, layouts in LAYOUTS.items() for layout in layouts]


@pytest.fixture
def quick(monkeypatch):
    """A tiny model by any name."""

    def create_model(name, *, weights=None, pooling=None, **options):  # noqa: ARG001
        return create_convnext_v2(Variant((1, 1), (8, 8)), **options) if name == BACKBONE else create_clip(ROW)

    monkeypatch.setattr(registry, "create_model", create_model)


def command(mode, data, folder, *, epochs, flags=(), **values):
    """Words of `zoo train …` or `zoo pretrain …`; `values` are of a classifier's file, `flags` of the other modes."""
    words = ["--train-data", str(data), "--output", str(folder / "out"), "--epochs", str(epochs)]
    more = ["--batch-size", "8", "--log-every", "1", "--threads", "1", *flags]
    if mode == "contrastive":
        return ["train", mode, *words, "--model", "convnext_v2_atto", *more]
    if mode == "pretrain":
        shape = ["--image-size", "32", "--stem-stride", "1", "--decoder-dim", "64"]
        return [mode, *words, "--model", BACKBONE, *shape, *more]
    (folder / "config.json").write_text(json.dumps({**CLASSIFIER, **values}))
    return ["train", mode, *words, "--config", str(folder / "config.json")]


@once
@pytest.mark.parametrize(("mode", "layout"), CASES)
def test_each_mode_trains_on_digits_in_every_layout(quick, mode, layout, tmp_path):
    data = LAYOUTS[mode][layout](tmp_path / "data", 24)
    words = command(mode, data, tmp_path, epochs=2, flags=["--context-length", "12"] * (mode == "contrastive"))
    assert cli.main([*words, "--backend", keras.backend.backend()]) == 0
    assert len(losses(tmp_path / "out")) == 6 and np.isfinite(losses(tmp_path / "out")).all()
    assert zoo.load(tmp_path / "out" / "model.safetensors").model is not None


SMALL_PAIR = ["--batch-size", "16", "--context-length", "16", "--image-size", "32", "--stem-stride", "2"]
LEARNING = {  # flags, keys, epochs and steps of 256 digits
    "contrastive": (SMALL_PAIR, {}, 2, 32),
    "classify": ([], {"hidden_sizes": [16, 32], "learning_rate": 0.01, "crop_scale": [0.9, 1.0], "flip": 0.0}, 5, 160),
    "pretrain": ([], {}, 1, 32),
}


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "layout"), CASES)
def test_each_mode_learns_digits_in_every_layout(mode, layout, tmp_path):
    """The same with models of the tables, in a process of its own."""
    flags, keys, epochs, steps = LEARNING[mode]
    data = LAYOUTS[mode][layout](tmp_path / "data", 256)
    words = command(mode, data, tmp_path, epochs=epochs, flags=flags, **keys)
    environment = os.environ | {"KERAS_BACKEND": keras.backend.backend()}
    done = subprocess.run(
        [sys.executable, "-m", "zoo", *words], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 and f"Finished: step {steps} of {steps}." in done.stdout, done.stderr[-2000:]
    found = losses(tmp_path / "out")
    assert np.mean(found[-8:]) < 0.8 * np.mean(found[:8])


def write_synthetic(folder, count=100):
    """The seed's data/synthetic/train.csv: images of one colour each, and captions that name it."""
    (folder / "images").mkdir(parents=True)
    colours = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}
    with (folder / "train.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["filepath", "caption"])
        for i in range(count):
            name, colour = list(colours.items())[i % len(colours)]
            noise = np.random.default_rng(i).integers(0, 64, (24, 24, 3))
            (folder / f"images/{i}.png").write_bytes(encode(np.maximum(colour, noise).astype(np.uint8)))
            rows.writerow([f"images/{i}.png", f"a {name} picture, number {i}"])
    return folder / "train.csv"


SEEDS_COMMAND = "train contrastive --model convnext_v2_tiny --image-key filepath --caption-key caption --batch-size 32"


@once
def test_the_seeds_synthetic_run(quick, tmp_path, capsys):
    """100 samples, 2 epochs, the seed's flags by our names."""
    table = write_synthetic(tmp_path / "synthetic")
    words = [*SEEDS_COMMAND.split(), "--train-data", str(table), "--epochs", "2", "--output", str(tmp_path / "out")]
    assert cli.main([*words, "--backend", keras.backend.backend()]) == 0
    assert "Finished: step 6 of 6." in capsys.readouterr().out
    assert (tmp_path / "out" / "model.safetensors").exists()


# Damage.


def damage(table, kinds, rng):
    """Replaces the images of some records of a CSV file, one for each kind; their numbers."""
    chosen = rng.choice(32, len(kinds), replace=False)
    for i, kind in zip(chosen, kinds, strict=True):
        corrupt(table.parent / "images" / f"{i:05d}.png", CORRUPTIONS[kind]())
    return sorted(int(i) for i in chosen)


def named(folder, file="bad_samples.jsonl"):
    return sorted(json.loads(line)["index"] for line in (folder / file).read_text().splitlines())


@once
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_a_run_on_k_corrupt_images_finishes_and_counts_exactly_k(quick, kind, tmp_path, rng):
    table = write_csv(tmp_path / "data", 32)
    chosen = damage(table, [kind] * 3, rng)
    outcome = zoo.train(ROW, table, output=tmp_path / "out", **BASE, max_bad_fraction=0.1)
    assert (outcome.finished, outcome.step, outcome.bad, outcome.skipped) == (True, 4, 3, 0)
    assert named(tmp_path / "out") == chosen


@once
def test_bad_validation_records_are_logged_and_limited(quick, tmp_path, rng):
    table, held_out = write_csv(tmp_path / "data", 16), write_csv(tmp_path / "held_out", 32)
    chosen = damage(held_out, ["empty file", "truncated JPEG", "text"], rng)
    run = lambda name, **more: zoo.train(ROW, table, output=tmp_path / name, **BASE, **more)  # noqa: E731
    outcome = run("out", validation_data=held_out, max_bad_fraction=0.1)
    assert outcome.finished and outcome.bad == 0 and "val_text_to_image_recall_at_1" in outcome.rows[-1]
    assert named(tmp_path / "out", "bad_validation_samples.jsonl") == chosen
    with pytest.raises(ValueError, match="of 32 samples are bad, more than the 5.00% that max_bad_fraction allows"):
        run("strict", validation_data=held_out, max_bad_fraction=0.05)
    for path in (held_out.parent / "images").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="the first 20 rows are all bad; .*: the file does not exist"):
        run("none", validation_data=held_out, max_bad_fraction=1.0)
    assert not (tmp_path / "none" / "checkpoints").exists()


@pytest.mark.once
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_classifier_trains_on_all_kinds_of_damage_at_once(quick, tmp_path, rng):
    table = write_csv(tmp_path / "data", 32)
    chosen = damage(table, list(CORRUPTIONS), rng)
    values = {**CLASSIFIER, "train_data": str(table), "epochs": 1}
    run = lambda **more: train_classifier(parse_config({**values, **more}))  # noqa: E731
    outcome = run(output=str(tmp_path / "out"), max_bad_fraction=0.25)
    assert (outcome.finished, outcome.step, outcome.bad, outcome.skipped) == (True, 4, 8, 0)
    assert named(tmp_path / "out") == chosen
    with pytest.raises(ValueError, match="of 32 samples are bad, more than the 20.00% that max_bad_fraction allows"):
        run(output=str(tmp_path / "strict"), max_bad_fraction=0.2)
