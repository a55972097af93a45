"""Masked pretraining from the command line: what it leaves, that it resumes, and that training begins from it."""

import functools
import os

import keras
import numpy as np
import pytest
from data_writers import digits, write_class_folders, write_csv
from helpers import predict
from PIL import Image
from training_case import assert_resumes, no_curves, rows, weights  # noqa: F401

import convnext
import zoo
from zoo import cli
from zoo.data import from_arrays, open_dataset
from zoo.data.preprocess import PreprocessSpec
from zoo.training import pretrain as pretraining
from zoo.training.classify import create_classifier, train_classifier
from zoo.training.config import parse_config
from zoo.training.validation import held_out_batches

pytestmark = pytest.mark.backend
once = pytest.mark.once

ROW = convnext.Variant((1, 1), (8, 8))
BASE = {"batch_size": 8, "epochs": 1, "log_every": 1, "threads": 1, "image_size": 16, "stem_stride": 2}
BASE |= {"decoder_dim": 8}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_class_folders(tmp_path_factory.mktemp("data") / "digits", 24)


@pytest.fixture(scope="module")
def plain(folders, tmp_path_factory):
    """(output folder, outcome) of a run of three steps."""
    folder = tmp_path_factory.mktemp("plain")
    return folder, run(folder, folders)


def run(folder, data, **options):
    return zoo.pretrain(ROW, data, output=folder, **{**BASE, **options})


@pytest.mark.once
def test_a_run_writes_a_backbone_that_loads(plain):
    folder, outcome = plain
    assert outcome.finished and outcome.steps == 3
    loaded = zoo.load(folder / "model.safetensors")
    assert loaded.model.output_shape == (None, 4, 4, 8) and loaded.transform is not None
    assert {"reconstruction.png", "report.html", "checkpoints", "history.csv"} <= set(os.listdir(folder))
    assert [row["step"] for row in rows(folder)] == [1, 2, 3] and all(row["loss"] > 0 for row in rows(folder))
    assert "data:image/png;base64," in (folder / "report.html").read_text()


@once
def test_a_killed_and_resumed_run_ends_like_an_uninterrupted_one(folders, tmp_path):
    options = {"epochs": 2, "save_every": 2, "ema": 0.5, "validation_data": folders}
    assert_resumes(functools.partial(run, data=folders, **options), tmp_path)
    drawn = [(tmp_path / name / "reconstruction.png").read_bytes() for name in ("parts", "whole")]
    assert drawn[0] == drawn[1]


@pytest.mark.once
def test_validation_uses_other_images_and_constant_masks(folders, plain, tmp_path):
    options = {"validation_data": folders, "validate_every": 2, "learning_rate": 1e-12, "batch_size": 5}
    run(tmp_path, folders, **options)  # its last batch is filled up
    examined = {row["step"]: row["val_loss"] for row in rows(tmp_path) if "val_loss" in row}
    assert list(examined) == [2, 4] and examined[2] == pytest.approx(examined[4], rel=1e-6)
    assert "val_loss" not in {name for row in rows(plain[0]) for name in row}
    assert "val_loss" in (tmp_path / "history.csv").read_text().splitlines()[0]


@once
def test_the_validation_loss_is_the_error_of_hidden_patches_for_any_batch_size(folders):
    model = convnext.create_fcmae(ROW, (16, 16, 3), stem_stride=2, decoder_dim=8)
    data, spec = open_dataset(folders, needs="images"), pretraining.preprocessing(model)
    examined = []
    for size in (24, 8, 5):  # the last batch of the last one is filled up
        with held_out_batches(data, spec, batch_size=size, seed=3) as batches:
            examined.append(pretraining.evaluate(model, batches)["loss"])
            images = np.concatenate([batch["images"] for batch in batches])
    assert examined[1:] == pytest.approx(examined[:1] * 2, rel=1e-5)
    places = np.random.default_rng(3).random((24, 16)).argsort(axis=1).argsort(axis=1)
    mask = (places >= model.kept).astype(np.float32).reshape(24, 4, 4)
    patches = predict(model, {"images": images, "mask": mask})["patches"]
    target = images.reshape(24, 4, 4, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(24, 4, 4, 48)
    target = (target - target.mean(-1, keepdims=True)) / np.sqrt(target.var(-1, ddof=1, keepdims=True) + 1e-6)
    assert examined[0] == pytest.approx(np.square(patches - target).mean(-1)[mask == 1].mean(), rel=1e-4)


@once
def test_a_classifier_starts_from_the_backbone(plain, folders, tmp_path, capsys):
    start = str(plain[0] / "model.safetensors")
    values = {"model_type": "convnextv2", "hidden_sizes": [8, 8], "depths": [1, 1], "weights": start}
    values |= {"stem_stride": 2, "image_size": 16, "batch_size": 8, "epochs": 1, "label_key": "class", "threads": 1}
    config = parse_config({**values, "train_data": str(folders), "output": str(tmp_path)})
    model, _ = create_classifier(config, 10)
    said = capsys.readouterr().err
    assert "head_fc is newly initialized" in said and "head_norm" in said
    backbone = zoo.load(start).model
    for layer in backbone.layers:
        for one, other in zip(layer.get_weights(), model.get_layer(layer.name).get_weights(), strict=True):
            np.testing.assert_array_equal(one, other)
    assert train_classifier(config).finished


@once
def test_a_zoo_model_starts_from_the_backbone(folders, tmp_path):
    run_of_atto = {**BASE, "epochs": 1, "image_size": 32, "batch_size": 4, "stem_stride": None}
    few = tmp_path / "few"
    few.mkdir()
    for number in range(4):
        Image.new("L", (20, 30), 60 * number).save(few / f"{number}.png")
    zoo.pretrain("convnextv2_atto", few, output=tmp_path / "out", **run_of_atto)
    path = tmp_path / "out" / "model.safetensors"
    backbone = zoo.load(path).model
    with pytest.warns(UserWarning, match="head_fc is newly initialized"):
        model = zoo.create_model("convnextv2_atto", weights=path, num_classes=5)
    assert model.output_shape == (None, 5) and model.input_shape == (None, 32, 32, 3)
    for layer in backbone.layers:
        for one, other in zip(layer.get_weights(), model.get_layer(layer.name).get_weights(), strict=True):
            np.testing.assert_array_equal(one, other)
    again = zoo.pretrain("convnextv2_atto", few, output=tmp_path / "more", weights=path, **run_of_atto)
    assert again.finished


@once
def test_the_backbone_is_exported(plain, tmp_path):
    report = zoo.export_onnx(zoo.load(plain[0] / "model.safetensors").model, tmp_path / "backbone.onnx", verify=True)
    assert (tmp_path / "backbone.onnx").is_file() and report.error <= report.tolerance


@once
@pytest.mark.parametrize(
    "options",
    [
        {"mask_ratio": 0.3},
        {"decoder_depth": 2},
        {"crop_scale": 0.9},
        {"clip_norm": 0.001},
        {"precision": "bfloat16"},
        {"ema": 0.5},
        *(
            pytest.param(options, marks=pytest.mark.slow)  # that the run has them, tests/test_training_flags.py shows
            for options in (
                *({"seed": 1}, {"stem_stride": 1}, {"image_size": 24}, {"decoder_dim": 12}, {"flip": 0.0}),
                *(
                    {"learning_rate": 0.01},
                    {"weight_decay": 0.9},
                    {"warmup_steps": 2},
                    {"batch_size": 4},
                    {"epochs": 2},
                ),
            )
        ),
    ],
    ids=str,
)
def test_every_flag_changes_the_weights(folders, plain, tmp_path, options):
    run(tmp_path, folders, **options)
    assert weights(tmp_path) != weights(plain[0])


@once
def test_arrays_train_like_tables(tmp_path):
    assert run(tmp_path / "table", write_csv(tmp_path / "data", 16)).finished
    assert run(tmp_path / "arrays", from_arrays(*digits(16))).finished
    assert weights(tmp_path / "arrays") == weights(tmp_path / "table")


@once
def test_an_existing_model_is_trained_in_place(folders, tmp_path):
    model = convnext.create_fcmae(ROW, (16, 16, 3), stem_stride=2, decoder_dim=8, normalize_target=False)
    before = model.encoder.get_weights()
    options = {key: value for key, value in BASE.items() if key not in ("image_size", "stem_stride", "decoder_dim")}
    zoo.pretrain(model, folders, output=tmp_path, **options)
    after = zoo.load(tmp_path / "model.safetensors").model.get_weights()
    for start, ours, saved in zip(before, model.encoder.get_weights(), after, strict=True):
        assert not np.array_equal(start, ours)
        np.testing.assert_array_equal(ours, saved)
    with pytest.raises(ValueError, match="image_size, stem_stride cannot be changed in an existing model"):
        zoo.pretrain(model, folders, output=tmp_path / "two", **BASE)


@once
def test_the_figure_shows_image_mask_and_reconstruction(tmp_path, rng):
    model = convnext.create_fcmae(ROW, (16, 16, 3), stem_stride=2, decoder_dim=8)
    spec = PreprocessSpec(image_size=16)
    pixels = rng.integers(0, 100, (2, 16, 16, 3)).astype(np.uint8)
    images = (pixels.astype(np.float32) / 255 - np.float32(spec.mean)) / np.float32(spec.std)
    pretraining.draw_reconstructions(tmp_path / "drawn.png", model, images, spec)
    page = np.asarray(Image.open(tmp_path / "drawn.png"))
    assert page.shape == (2 * 104, 3 * 104, 3)
    original, masked, drawn = (page[4:100:6, left : left + 96 : 6] for left in (4, 108, 212))
    np.testing.assert_array_equal(original, pixels[0])
    hidden = (masked == 128).all(axis=-1)
    assert hidden.sum() == 10 * 16  # int(16 · 0.4) = 6 patches of 4×4 stay
    np.testing.assert_array_equal(masked[~hidden], pixels[0][~hidden])
    np.testing.assert_array_equal(drawn[~hidden], pixels[0][~hidden])
    assert (drawn[hidden] != pixels[0][hidden]).any()


@once
@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("resnet50", {}, "'resnet50' is not a ConvNeXt V2"),
        ("convnext_tiny", {}, "is not a ConvNeXt V2"),
        ("convnextv2_tinny", {}, "convnextv2_tiny"),
        (ROW, {"precision": "int8"}, "precision='int8'"),
        (ROW, {"learning_rate": -1.0}, "learning_rate=-1.0"),
        (ROW, {"image_size": 18}, "multiples of the patch side"),
        (ROW, {"weights": "some.safetensors"}, "weights need a model's name"),
    ],
    ids=str,
)
def test_contradicting_options_are_refused(model, options, message, folders, tmp_path):
    with pytest.raises(ValueError, match=message):
        zoo.pretrain(model, folders, output=tmp_path, **{**BASE, **options})


@once
def test_the_command_reports_errors_and_runs(folders, tmp_path, capsys, monkeypatch):
    command = ["pretrain", "--model", "convnextv2_atto", "--output", str(tmp_path), "--image-size", "32"]
    command += ["--backend", keras.backend.backend()]
    assert cli.main([*command, "--train-data", "nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err
    asked = {}
    monkeypatch.setattr(pretraining, "pretrain", lambda *_, **options: asked.update(options) or fake)
    fake = pretraining.Outcome(True, 3, 3, 0)
    flags = ["--mask-ratio", "0.5", "--crop-scale", "1", "--flip", "0", "--decoder-dim", "64", "--resume"]
    assert cli.main([*command, "--train-data", str(folders), *flags]) == 0
    assert "Finished: step 3 of 3" in capsys.readouterr().out
    expected = {"mask_ratio": 0.5, "crop_scale": 1.0, "flip": 0.0, "decoder_dim": 64, "resume": True, "image_size": 32}
    assert {key: asked[key] for key in expected} == expected
