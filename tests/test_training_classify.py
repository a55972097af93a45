"""Training of classifiers: the configuration is read exactly, every key changes something, a run resumes."""

import functools
import json
import shutil
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from data_writers import write_class_folders
from training_case import assert_resumes, losses, no_curves, rows, weights  # noqa: F401

import zoo
from zoo import cli
from zoo.data.preprocess import IMAGENET_MEAN, IMAGENET_STD
from zoo.training import classify
from zoo.training.architecture import describe_model
from zoo.training.classify import create_classifier, create_loss, no_improvement, train_classifier
from zoo.training.config import parse_config, read_config
from zoo.weights import load

pytestmark = pytest.mark.backend
once = pytest.mark.once

EXAMPLES = Path(__file__).resolve().parent.parent / "examples" / "config"
BASE = {
    **{"model_type": "convnextv2", "hidden_sizes": [8, 8], "depths": [1, 1], "stem_stride": 2, "image_size": 8},
    **{"batch_size": 8, "epochs": 1, "log_every": 1, "threads": 1, "label_key": "class"},
}
HUB = "hf-hub:facebook/convnext-tiny-224"
RESNET = {"model_type": "resnet", "layer_type": "basic", "embedding_size": 8, "stem_stride": None}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return str(write_class_folders(tmp_path_factory.mktemp("data") / "digits", 24, size=8))


@pytest.fixture(scope="module")
def plain(folders, tmp_path_factory):
    """(output folder, outcome) of a run of three steps."""
    folder = tmp_path_factory.mktemp("plain")
    return folder, run(folder, train_data=folders)


def run(folder, *, resume=False, **options):
    return train_classifier(parse_config({**BASE, "output": str(folder), **options}), resume=resume)


def config(**values):
    return parse_config({"train_data": "d", "output": "o", **values})


@once
def test_the_weights_say_that_transparent_images_were_on_white(plain):
    assert zoo.load(plain[0] / "model.safetensors").info.preprocess.background == "white"


# The configuration.


@pytest.mark.once
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"model_type": "convnext", "model": "facebook/convnext-tiny-224"}, ("tiny", 224)),
        ({"model_type": "convnext", "model": "facebook/convnext-xlarge-384-22k-1k"}, ("xlarge", 384)),
        ({"model_type": "convnextv2", "model": "facebook/convnextv2-tiny-22k-224"}, ("tiny", 224)),
        ({"model_type": "convnextv2", "model": "convnextv2_nano"}, ("nano", None)),
        ({"model": "facebook/convnext-tiny-224"}, ("tiny", 224)),
        ({"model": "microsoft/resnet-50"}, ("50", None)),
        ({"model": "microsoft/resnet-18"}, ("18", None)),
        ({"model": "resnet101"}, ("101", None)),
        ({}, ("50", None)),
        ({"model_type": "convnext"}, ("tiny", None)),
        ({"layer_type": "basic", "depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512]}, ("18", None)),
        ({"model_type": "convnext", "model": "convnext_tiny", "depths": [3, 3, 27, 3]}, ("small", None)),
    ],
    ids=str,
)  # fmt: skip
def test_names_and_architectures_are_rows(values, expected):
    assert describe_model(config(**values))[:2] == expected


@pytest.mark.once
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"num_train_epochs": 3.0, "per_device_train_batch_size": 4}, {"epochs": 3, "batch_size": 4}),
        ({"output_dir": "there", "eval_steps": 5, "logging_steps": 2}, {"output": "there", "validate_every": 5}),
        ({"image_mean": list(IMAGENET_MEAN), "image_std": list(IMAGENET_STD), "resample": 3, "do_resize": True}, {}),
        ({"size": {"shortest_edge": 64}}, {"image_size": 64}),
        ({"size": {"height": 32, "width": 32}, "crop_size": 32}, {"image_size": 32}),
        ({"id2label": {"0": "cat", "1": "dog"}, "label2id": {"cat": 0, "dog": 1}}, {"num_labels": 2}),
        ({"bf16": True, "fp16": False, "optim": "adamw_torch"}, {"precision": "bfloat16"}),
        ({"model": "facebook/convnext-tiny-224", "use_pretrained": True}, {"weights": HUB, "model_type": "convnext"}),
        ({"model_name_or_path": "facebook/convnext-tiny-224", "pretrained": True}, {"weights": HUB}),
        ({"model": "timm/convnext_tiny.fb_in1k", "model_type": "convnext", "pretrained": True}, {"weights": "fb_in1k"}),
        ({"model": "facebook/convnext-tiny-224", "use_pretrained": False}, {"weights": None}),
        ({"architectures": ["ConvNextForImageClassification"], "transformers_version": "5.0"}, {}),
        ({"max_grad_norm": 1.0, "warmup_ratio": 0.1, "lr_scheduler_type": "cosine"}, {"clip_norm": 1.0}),
    ],
    ids=str,
)
def test_keys_of_transformers_are_taken_where_they_mean_the_same(theirs, ours):
    parsed = parse_config({"train_data": "d", **({} if "output_dir" in theirs else {"output": "o"}), **theirs})
    assert {key: getattr(parsed, key) for key in ours} == ours


@pytest.mark.once
@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"image_mean": [0.5, 0.5, 0.5]},
            r"image_mean is \[0.5, 0.5, 0.5\]; here images are normalised with Im",
        ),
        ({"lr_scheduler_type": "linear"}, "here the learning rate follows a cosine"),
        ({"per_device_eval_batch_size": 8}, "here validation uses batch_size"),
        ({"gradient_accumulation_steps": 4}, "here a batch is one step; give batch_size"),
        ({"warmup_ratio": 0.05}, "here give warmup_steps; the default is a tenth"),
        ({"num_train_epochs": 3, "epochs": 4}, "num_train_epochs and epochs mean the same, and are 3 and 4"),
        ({"num_train_epochs": "three"}, "epochs is 'three'; it must be int"),
        ({"use_pretrained": True}, "use_pretrained needs model"),
        ({"size": {"height": 32, "width": 64}}, "image_size is .*; it must be"),
        ({"id2label": {"0": "a"}, "num_labels": 3}, "id2label and num_labels mean the same, and are .* and 3"),
    ],
    ids=str,
)
def test_keys_of_transformers_with_another_meaning_are_refused_by_meaning(values, message):
    with pytest.raises(ValueError, match=message):
        config(**values)


@once
def test_random_weights_are_named(folders, tmp_path, capsys):
    load._print_once.cache_clear()
    zoo.create_model("convnext_atto", input_shape=(32, 32, 3))
    zoo.create_model("convnext_atto", input_shape=(32, 32, 3))
    zoo.create_model("resnet18", input_shape=(32, 32, 3), num_classes=2)
    run(tmp_path / "a", train_data=folders)
    classify._load(None, config(model="facebook/convnext-tiny-224"))
    classify._load(None, read_config(EXAMPLES / "convnext_example.json"))  # with the sizes of that model
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "convnext_atto: random weights; published: d2_in1k (weights='d2_in1k')."
    assert lines[1].startswith("resnet18: random weights; published: ")
    assert [line for line in lines if "random weights" in line][2:] == [
        "A convnextv2 of other sizes: random weights; none are published.",
        next(line for line in lines if line.startswith("convnext_tiny: random weights; published: ")),
    ]


@once
@pytest.mark.parametrize("folder", ["a", "begun"])
def test_random_weights_are_named_unless_a_checkpoint_replaces_them(folder, plain, folders, tmp_path, capsys):
    shutil.copytree(plain[0], tmp_path / "begun")
    load._print_once.cache_clear()
    run(tmp_path / folder, train_data=folders, resume=True)
    assert ("random weights" in capsys.readouterr().err) == (folder == "a")


@pytest.mark.once
def test_a_custom_architecture_is_a_row():
    variant, size, extra = describe_model(
        config(model_type="convnext", num_stages=2, depths=[1, 2], hidden_sizes=[8, 16], patch_size=2, num_channels=3)
    )
    assert variant == {"depths": [1, 2], "dims": [8, 16], "epsilon": 1e-6, "activation": "gelu", "patch_size": 2}
    assert (size, extra) == (None, {"channels": 3, "layer_scale_init_value": 1e-6})


@pytest.mark.once
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden_size": [1]}, "unknown key 'hidden_size'; nearest is 'hidden_sizes'"),
        ({"epochs": "ten"}, "epochs is 'ten'; it must be int"),
        ({"epochs": True}, "epochs is True"),
        ({"learning_rate": "1e-3"}, "learning_rate is '1e-3'; it must be float"),
        ({"model_type": "vit"}, "model_type is 'vit'; it must be one of resnet, convnext, convnextv2"),
        ({"train_data": ""}, "train_data is missing"),
        ({"output": ""}, "output is missing"),
        ({"num_labels": 0}, "num_labels is 0; it must be at least 1"),
        ({"image_size": 0}, "image_size is 0"),
        ({"early_stopping": 0}, "early_stopping is 0"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0; it must be at least 0 and less than 1"),
        ({"crop_scale": [0.5]}, "crop_scale has 1 numbers; it must have 2"),
        ({"crop_scale": [0.5, "1"]}, "crop_scale is .*; it must be a list of numbers of at least 0"),
        ({"class_weights": [1, -1]}, "class_weights is .*; it must be a list of numbers"),
        ({"class_weights": [1.0, 2.0], "num_labels": 3}, "class_weights has 2 numbers; it must have 3"),
        ({"model": "facebook/convnext-tiny-224", "model_type": "resnet"}, "is a convnext; model_type says 'resnet'"),
        ({"model": "resnet49"}, "resnet49"),
        ({"num_stages": 3, "depths": [1, 1]}, "num_stages is 3"),
        ({"downsample_in_first_stage": True}, "downsample_in_first_stage"),
    ],
    ids=str,
)
def test_unknown_keys_and_wrong_types_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        describe_model(config(**values))


@pytest.mark.once
def test_a_file_that_is_not_a_config_is_refused(tmp_path):
    path = tmp_path / "config.json"
    for text, message in (("{", "is not JSON"), ("[]", "Allowed: an object")):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_config(path)


@pytest.mark.once
@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.json")), ids=lambda path: path.stem)
def test_the_examples_describe_models(path):
    described = read_config(path)
    variant, _, _ = describe_model(described)
    expected = {"convnext_example": "tiny", "resnet_example": "50"}
    assert variant == expected.get(path.stem, variant)


@pytest.mark.once
def test_overrides_replace_the_values_of_the_file():
    path = EXAMPLES / "resnet_example.json"
    assert read_config(path, epochs=7, output=None).epochs == 7
    assert read_config(path, epochs=7, output=None).output == read_config(path).output
    assert parse_config({"train_data": "photos"}).output == "classify-output"


# Training.


@pytest.mark.once
def test_a_run_writes_a_classifier_that_loads(plain, folders):
    folder, outcome = plain
    assert outcome.finished and outcome.steps == 3
    loaded = zoo.load(folder / "model.safetensors")
    images = np.zeros((2, 8, 8, 3), np.float32)
    scores = loaded.model.predict(images, verbose=0)
    assert scores.shape == (2, 10)
    np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-5)
    assert loaded.transform is not None
    assert json.loads((folder / "classes.json").read_text()) == sorted(path.name for path in Path(folders).iterdir())
    assert {"loss", "accuracy", "learning_rate", "skipped"} <= set(rows(folder)[0])


@pytest.mark.once
def test_it_learns(folders, tmp_path):
    plainly = {"crop_scale": [1.0, 1.0], "flip": 0.0, "hidden_sizes": [16, 32], "weight_decay": 0.0}
    run(tmp_path, train_data=folders, epochs=40, learning_rate=0.02, log_every=3, validation_data=folders, **plainly)
    found = losses(tmp_path)
    assert found[-1] < 0.8 * found[0]
    last = [row for row in rows(tmp_path) if "val_accuracy" in row][-1]
    assert last["val_accuracy"] >= 0.3 and last["val_top_5_accuracy"] >= last["val_accuracy"] and last["val_loss"] > 0


def half(targets, logits):
    """A loss of one's own."""
    return 0.5 * keras.losses.categorical_crossentropy(targets, logits, from_logits=True) ** 2


@pytest.mark.slow
def test_computational_options_work_on_every_backend(folders, plain, tmp_path):
    options = {"drop_path_rate": 0.5, "ema": 0.5, "precision": "bfloat16", "mixup": 0.8, "class_weights": [2.0] * 10}
    run(tmp_path, train_data=folders, loss="focal", label_smoothing=0.1, **options)
    assert weights(tmp_path) != weights(plain[0])


def named(options):
    return "-".join(f"{key}={value}" for key, value in options.items())[:40]


@once
@pytest.mark.parametrize(
    "options",
    [
        {"drop_path_rate": 0.5},
        {"dropout_rate": 0.5},
        {"clip_norm": 0.001},
        {"precision": "bfloat16"},
        {"ema": 0.5},
        {"loss": "focal"},
        {"loss": "test_training_classify:half"},
        {"label_smoothing": 0.3},
        {"class_weights": [5.0, *[1.0] * 9]},
        {"mixup": 0.8},
        {"cutmix": 1.0},
        {"rand_augment": True},
        {"random_erasing": 1.0},
        {"freeze_backbone": True},
        {"model_type": "convnext", "layer_scale_init_value": 1.0},
    ],
    ids=named,
)
def test_keys_change_the_weights(folders, plain, tmp_path, options):
    run(tmp_path, train_data=folders, **options)
    assert weights(tmp_path) != weights(plain[0])


@once
@pytest.mark.slow  # that the run has them, tests/test_training_keys.py shows
@pytest.mark.parametrize(
    "options",
    [
        {"seed": 1},
        {"depths": [2, 1]},
        {"stem_stride": 1},
        {"image_size": 16},
        {"num_labels": 12},
        {"learning_rate": 0.01},
        {"weight_decay": 0.9},
        {"warmup_steps": 2},
        {"loss": "focal", "focal_gamma": 5.0},
        {"crop_scale": [0.9, 1.0]},
        {"flip": 0.0},
        {"batch_size": 4},
        {"epochs": 2},
    ],
    ids=named,
)
def test_other_keys_change_the_weights(folders, plain, tmp_path, options):
    run(tmp_path, train_data=folders, **options)
    assert weights(tmp_path) != weights(plain[0])


@pytest.mark.wide
def test_a_run_resumes_bit_for_bit(folders, tmp_path):
    options = {"train_data": folders, "epochs": 2, "mixup": 0.8, "save_every": 2, **RESNET}
    assert_resumes(functools.partial(run, **options), tmp_path)


@pytest.mark.wide
def test_a_run_resumes_with_more_epochs(folders, tmp_path, capsys):
    options = {"train_data": folders, **RESNET}
    run(tmp_path, epochs=1, **options)
    outcome = run(tmp_path, epochs=2, resume=True, **options)
    assert outcome.finished and outcome.step == outcome.steps
    assert "With 2 epochs instead of 1, the learning rate falls to 0 at step" in capsys.readouterr().out


def test_one_class_is_refused_with_the_remedy(tmp_path):
    write_class_folders(tmp_path / "data", 4)
    for other in sorted((tmp_path / "data").iterdir())[1:]:
        shutil.rmtree(other)
    with pytest.raises(ValueError, match="one class, '.*', and a softmax .* as a second class; .*'sigmoid'"):
        run(tmp_path / "out", train_data=str(tmp_path / "data"))
    assert not (tmp_path / "out").exists()


@pytest.mark.wide
def test_a_frozen_backbone_and_its_statistics_do_not_change(folders, tmp_path):
    parsed = parse_config({**BASE, **RESNET, "output": str(tmp_path), "train_data": folders, "freeze_backbone": True})
    keras.utils.set_random_seed(0)
    start = create_classifier(parsed, 10)[0].get_weights()
    train_classifier(parsed)
    end = zoo.load(tmp_path / "model.safetensors").model.get_weights()
    changed = [not np.array_equal(*pair) for pair in zip(start, end, strict=True)]
    assert changed == [False] * (len(start) - 2) + [True, True]


@once
def test_training_starts_from_given_weights_with_a_new_head(plain, folders, tmp_path, capsys):
    options = {"weights": str(plain[0] / "model.safetensors"), "learning_rate": 1e-12, "weight_decay": 0.0}
    run(tmp_path, train_data=folders, num_labels=11, **options)
    assert "head_fc" in capsys.readouterr().err
    before = zoo.load(plain[0] / "model.safetensors").model.get_weights()
    after = zoo.load(tmp_path / "model.safetensors").model.get_weights()
    for one, other in zip(before[:-2], after[:-2], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-8)


@once
def test_training_starts_from_published_weights_by_tag(tmp_path, monkeypatch, capsys):
    """Their layers that fit are taken, whatever the images' size and the classes; the others are named."""
    published = zoo.create_model("convnextv2_atto")
    zoo.save(published, tmp_path / "published.safetensors")
    asked = []
    fetch = lambda repository, *_, **__: asked.append(repository) or tmp_path / "published.safetensors"  # noqa: E731
    monkeypatch.setattr("zoo.weights.locate.fetch", fetch)
    start = {"model_type": "convnextv2", "image_size": 32, "weights": "fcmae_ft_in1k"}
    for model in ("convnextv2_atto", "facebook/convnextv2-atto-1k-224"):
        fresh, _ = create_classifier(config(model=model, **start), 3)
        assert "head_fc" in capsys.readouterr().err
        for one, other in zip(published.get_weights()[:-2], fresh.get_weights()[:-2], strict=True):
            np.testing.assert_array_equal(one, other)
    del start["weights"]
    for model in ("convnextv2_atto.fcmae_ft_in1k", "timm/convnextv2_atto.fcmae_ft_in1k"):
        fresh, _ = create_classifier(config(model=model, **start), 3)
        np.testing.assert_array_equal(published.get_weights()[0], fresh.get_weights()[0])
    assert len(asked) == 4 and len(set(asked)) == 1
    with pytest.raises(ValueError, match="fcmae_ft_in1k"):
        create_classifier(config(model="convnextv2_atto", **{**start, "weights": "fcmae_ft_in1"}), 3)


@once
def test_early_stopping_ends_the_run_with_a_message(folders, tmp_path, capsys):
    options = {"train_data": folders, "validation_data": folders, "epochs": 9, "learning_rate": 1e-12}
    outcome = run(tmp_path, early_stopping=2, **options)
    assert outcome.finished and outcome.step == 9 and outcome.steps == 27
    assert capsys.readouterr().out.count("Early stopping: the validations no longer improve.") == 1
    again = run(tmp_path, early_stopping=2, resume=True, **options)
    assert again.finished and again.step == 9
    with pytest.raises(ValueError, match="early_stopping needs validation_data"):
        run(tmp_path / "none", early_stopping=2, train_data=folders)


@pytest.mark.once
@pytest.mark.parametrize(
    ("accuracies", "ends"), [([], False), ([1, 1], False), ([1, 1, 1], True), ([1, 2, 1], False), ([1, 1, 1, 2], False)]
)
def test_early_stopping_counts_validations_without_improvement(accuracies, ends):
    assert no_improvement(2)([{"val_accuracy": a} for a in accuracies] + [{"loss": 1}]) is ends


@pytest.mark.once
def test_losses_match_their_names():
    logits = keras.ops.convert_to_tensor(np.array([[2.0, -1.0, 0.5]], np.float32))
    targets = keras.ops.convert_to_tensor(np.array([[0.0, 1.0, 0.0]], np.float32))
    value = lambda **options: float(keras.ops.convert_to_numpy(create_loss(config(**options))(targets, logits)).mean())  # noqa: E731
    log_p = np.array([2.0, -1.0, 0.5]) - np.log(np.exp([2.0, -1.0, 0.5]).sum())
    assert value() == pytest.approx(-log_p[1], rel=1e-5)
    assert value(label_smoothing=0.3) == pytest.approx(-(0.8 * log_p[1] + 0.1 * log_p[0] + 0.1 * log_p[2]), rel=1e-5)
    assert value(loss="focal") == pytest.approx(-((1 - np.exp(log_p[1])) ** 2) * log_p[1], rel=1e-5)
    for wrong in ("mse", ".mse", "no.such.module:loss", "test_training_classify:third", "test_training_classify.third"):
        with pytest.raises(ValueError, match="loss"):
            create_loss(config(loss=wrong))


@pytest.mark.once
def test_a_custom_loss_is_imported_by_its_dotted_name(tmp_path, monkeypatch):
    assert create_loss(config(loss="test_training_classify.half")).__name__ == "half"
    assert create_loss(config(loss="keras.losses.categorical_hinge")) is keras.losses.categorical_hinge
    (tmp_path / "losses_beside_the_data.py").write_text("def nothing(targets, logits):\n    return 0 * logits[:, 0]\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])  # as an installed command has it
    assert create_loss(config(loss="losses_beside_the_data.nothing")).__name__ == "nothing"


@pytest.mark.once
def test_the_number_of_class_weights_must_match_the_classes(folders, tmp_path):
    with pytest.raises(ValueError, match="class_weights has 2 numbers for 10 classes"):
        run(tmp_path, train_data=folders, class_weights=[1.0, 2.0])


@pytest.mark.once
@pytest.mark.parametrize("key", ["learning_rate", "weight_decay", "clip_norm", "focal_gamma"])
def test_numbers_below_zero_are_refused(folders, tmp_path, key):
    with pytest.raises(ValueError, match=f"{key}=-1; it must be a number of at least 0"):
        run(tmp_path, train_data=folders, **{key: -1})


@pytest.mark.wide
def test_the_command_trains_from_a_config_file(folders, tmp_path, plain, capsys):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**BASE, "train_data": "nowhere", "output": str(tmp_path / "out")}))
    command = ["train", "classify", "--config", str(path), "--backend", keras.backend.backend()]
    assert cli.main(command) == 2
    assert "nowhere" in capsys.readouterr().err
    assert cli.main([*command, "--train-data", folders]) == 0
    assert "Finished: step 3 of 3" in capsys.readouterr().out
    assert weights(tmp_path / "out") == weights(plain[0])
