"""The demo: its batches depend on seed and index alone, its metrics are correct, and a run writes what it promises."""

import csv
import importlib.util
import json
import math
import re

import keras
import numpy as np
import pytest
from keras import ops
from PIL import Image
from serve_case import serving

import zoo
from clip import Pair, ResNet, Text, clip_loss, create_clip, tokenize
from zoo import demo
from zoo.cli import main
from zoo.data.digits import draw, load_split
from zoo.demo import evaluation, page, training
from zoo.export import OnnxModel
from zoo.utils.report import png_size

pytestmark = [pytest.mark.backend, pytest.mark.once]  # tests/test_demo_backends.py trains the whole on each

EPOCHS = 4  # of 10
SMALL = Pair(32, 32, ResNet((1, 1, 1, 1), 16), Text(width=64, heads=4, layers=1))  # trains in a fifth of the time
PNGS = ["confusion", "examples", "hardest", "searches", "similarity", "temperature", "training"]
ONNX = ["digits-float32.onnx", "digits-float16.onnx", "digits-int8.onnx"]
FILES = ["metrics.json", "model.safetensors", "predictions.csv", "report.html", "zero_shot_classifier.keras", *ONNX]


@pytest.fixture(scope="module")
def split():
    return load_split()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(folder, metrics) of one run with a smaller model, in a folder that had files before."""
    folder = tmp_path_factory.mktemp("demo") / "output" / "of the demo"
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    (folder / "metrics.json").write_text("old")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "create_pair", lambda: create_clip(SMALL))
        patch.setattr(training, "PEAK_LEARNING_RATE", 3e-3)
        return folder, demo.run_demo(folder, epochs=EPOCHS)


def captioned(digits, **options):
    return training.CaptionedDigits(digits, training.TRAIN_TEMPLATES, **{"seed": 0, "epochs": 3, **options})


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


# Data.


def test_the_split_is_stratified_and_fixed(split):
    train, held_out = split
    assert (len(train), len(held_out)) == (1437, 360)
    assert sorted([*train.indices, *held_out.indices]) == list(range(1797))
    counts = [np.bincount(digits.labels, minlength=10) / len(digits) for digits in split]
    assert np.abs(counts[0] - counts[1]).max() < 0.01
    again = load_split()
    assert all(np.array_equal(one.indices, other.indices) for one, other in zip(split, again, strict=True))


def test_train_images_limits_the_training_split_only(split):
    train, held_out = load_split(train_images=100)
    assert np.array_equal(train.indices, split[0].indices[:100])
    assert np.array_equal(held_out.indices, split[1].indices)


def test_digits_are_black_on_white(split):
    for digits in split:
        assert digits.images.dtype == np.uint8 and digits.images.shape[1:] == (32, 32, 3)
    blank, full = draw(np.zeros((8, 8))), draw(np.full((8, 8), 16.0))
    assert (blank == 255).all() and (full == 0).all()


def test_normalisation_uses_the_statistics_of_the_training_images(split):
    pixels = split[0].images / 255
    assert pixels.mean() == pytest.approx(training.DIGITS_MEAN, abs=0.005)
    assert pixels.std() == pytest.approx(training.DIGITS_STD, abs=0.005)


def test_the_model_reads_digits_with_a_fine_stem():
    tower = training.create_pair().image_encoder
    assert tower.input_shape == (None, 32, 32, 3) and tower.get_layer("stem_conv").strides == (2, 2)


def test_held_out_prompts_are_not_training_captions():
    trained = {text for texts in training.captions(training.TRAIN_TEMPLATES) for text in texts}
    held_out = {text for texts in training.captions(training.HELD_OUT_TEMPLATES) for text in texts}
    assert not trained & held_out
    plain = [{re.sub(r"\W", "", text.lower()) for text in texts} for texts in (trained, held_out)]
    assert not plain[0] & plain[1], "they differ in punctuation only"


def test_captions_name_their_digit():
    texts = training.captions(["a {}", "{}!"])
    assert len(texts) == 10 and texts[3] == ["a 3", "a three", "3!", "three!"]


def test_short_tokens_drop_the_common_padding():
    texts = ["a photo of the digit 3.", "3"]
    short, whole = training.short_tokens(texts), tokenize(texts)
    assert short.shape == (2, 9) and np.array_equal(short, whole[:, :9]) and not whole[:, 9:].any()


def test_augmentation_changes_an_image_slightly(split, rng):
    image = split[0].images[0]
    moved = [training.augment_image(image, rng) for _ in range(20)]
    assert all(one.shape == image.shape and one.dtype == np.uint8 for one in moved)
    assert len({one.tobytes() for one in moved}) == 20
    near = np.abs(np.mean(moved, axis=0) - image).mean()
    far = np.abs(np.mean(moved, axis=0) - split[0].images[split[0].labels != split[0].labels[0]]).mean()
    assert near < far / 2


@pytest.mark.parametrize("option", ["MAX_SHIFT", "MAX_DEGREES", "MAX_SHEAR", "MAX_STRETCH"])
def test_each_augmentation_changes_the_image(option, split, monkeypatch):
    for name in ("MAX_SHIFT", "MAX_DEGREES", "MAX_SHEAR", "MAX_STRETCH"):
        if name != option:
            monkeypatch.setattr(training, name, 0.0)
    image = split[0].images[0]
    assert not np.array_equal(training.augment_image(image, np.random.default_rng(0)), image)
    monkeypatch.setattr(training, option, 0.0)
    assert np.array_equal(training.augment_image(image, np.random.default_rng(0)), image)


def test_a_batch_depends_on_its_index_alone(split):
    batches, again = captioned(split[0]), captioned(split[0])
    assert batches.steps == 22 and len(batches) == 66
    indices = [0, 65, 21, 22, 40, 0]
    forward, backward = {i: batches[i] for i in indices}, {i: again[i] for i in reversed(indices)}
    assert all(same(forward[i], backward[i]) for i in indices)


def test_batches_have_one_shape(split):
    batches = captioned(split[0])
    for index in (0, 21, 22, 65):
        batch = batches[index]
        assert batch["images"].shape == (64, 32, 32, 3) and batch["images"].dtype == np.float32
        assert batch["tokens"].shape == batches[0]["tokens"].shape and batch["tokens"].dtype == np.int32
        assert batch["label"].shape == (64,) and batch["label"].dtype == np.int32


def test_captions_name_the_digit_of_their_image(split):
    batches = captioned(split[0])
    texts = training.captions(training.TRAIN_TEMPLATES)
    digit_of = {
        tuple(row): k for k in range(10) for row in training.short_tokens(sum(texts, [])).reshape(10, 24, -1)[k]
    }
    seen = [batches[index] for index in range(44)]
    for batch in seen:
        assert [digit_of[tuple(row)] for row in batch["tokens"]] == batch["label"].tolist()
    assert len({tuple(row) for batch in seen for row in batch["tokens"]}) == len(digit_of) == 240


@pytest.mark.parametrize("change", [{"seed": 1}, {"augment": False}], ids=str)
def test_seed_and_augment_change_the_batches(change, split):
    assert not same(captioned(split[0])[0], captioned(split[0], **change)[0])


def test_epochs_differ_and_use_each_image_once(split):
    still = captioned(split[0], augment=False)
    first, second = still.draw_epoch(0), still.draw_epoch(1)
    for name in first:
        assert not np.array_equal(first[name], second[name])
    used = [{image.tobytes() for image in epoch["images"]} for epoch in (first, second)]
    assert used[0] == used[1] and len(used[0]) == len(np.unique(split[0].images, axis=0))


def test_lowest_loss_is_the_loss_of_perfect_logits(split):
    batches = captioned(split[0], augment=False)
    losses = []
    for index in range(batches.steps):
        label = batches[index]["label"]
        logits = 1e4 * (label[:, None] == label[None, :]).astype(np.float32)
        losses.append(float(ops.convert_to_numpy(clip_loss(ops.convert_to_tensor(logits), label))))
    assert training.lowest_loss(batches) == pytest.approx(np.mean(losses), rel=1e-5)


def test_the_learning_rate_warms_up_and_decays_to_zero():
    optimizer, rates = training.create_optimizer(steps=10, epochs=5), []
    for step in range(51):
        optimizer.iterations.assign(step)
        rates.append(float(ops.convert_to_numpy(optimizer.learning_rate)))
    assert rates[0] == 0 and rates[10] == pytest.approx(training.PEAK_LEARNING_RATE) == max(rates)
    assert rates[:11] == sorted(rates[:11]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[50] == pytest.approx(0, abs=1e-9)


# Metrics.


@pytest.fixture
def perfect():
    """Predictions for 20 images, two per digit, whose embeddings are those of their prompts."""
    axes = np.eye(10, dtype=np.float32)
    labels = np.tile(np.arange(10, dtype=np.int32), 2)
    texts = np.broadcast_to(axes, (2, len(training.HELD_OUT_TEMPLATES), 10, 10)).copy()
    return evaluation.Predictions(axes[labels], texts, axes[labels], labels, scale=10.0)


def test_metrics_of_perfect_predictions(perfect):
    metrics = evaluation.measure(perfect)
    assert metrics["zero_shot_accuracy"] == 1
    assert metrics["retrieval"] == {
        "text_to_image_recall_at_1": 1,
        "text_to_image_precision_at_10": pytest.approx(0.2),  # there are two images of each digit
        "texts": 80,
    }
    assert {value for row in metrics["accuracy_per_template"].values() for value in row.values()} == {1}
    assert metrics["confusion"] == (2 * np.eye(10, dtype=int)).tolist()
    assert metrics["logit_scale"] == pytest.approx(math.log(10)) and metrics["temperature"] == 0.1


def test_each_metric_uses_its_own_prompts(perfect):
    perfect.texts[1, 2] = perfect.texts[1, 2, ::-1].copy()  # the words in the third template name 9 − digit
    metrics = evaluation.measure(perfect)
    accuracies = {(t, s): a for t, row in metrics["accuracy_per_template"].items() for s, a in row.items()}
    assert [key for key, accuracy in accuracies.items() if accuracy < 1] == [(training.HELD_OUT_TEMPLATES[2], "words")]
    assert metrics["retrieval"]["text_to_image_recall_at_1"] == 70 / 80


# Errors.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
        ({"epochs": 0}, "epochs must be an integer of at least 1, got 0"),
        ({"epochs": 1.5}, "epochs must be an integer of at least 1, got 1.5"),
        ({"train_images": 63}, "train_images must be an integer of at least 64, got 63"),
    ],
)
def test_arguments_out_of_range(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        demo.run_demo(tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_writable_fails_before_training(tmp_path):
    (tmp_path / "file").write_text("mine")
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match="is not a writable folder"):
            demo.run_demo(output)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sklearn" else find(name))
    with pytest.raises(ImportError, match=r"needs sklearn\..*convnext-clip-zoo\[onnx,report\]"):
        demo.run_demo(tmp_path)


# One run.


def test_a_trained_pair_classifies_with_new_prompts(run):
    _, metrics = run
    assert metrics["zero_shot_accuracy"] >= 0.9
    assert metrics["retrieval"]["text_to_image_recall_at_1"] >= 0.9
    assert min(row["words"] for row in metrics["accuracy_per_template"].values()) >= 0.8
    assert metrics["history"]["loss"][-1] < metrics["history"]["loss"][0]
    assert metrics["history"]["loss"][-1] > metrics["history"]["lowest_loss"]


def test_all_files_are_written_and_others_kept(run):
    folder, _ = run
    pages = [f"{name}.png" for name in PNGS]
    assert sorted(p.name for p in folder.iterdir()) == sorted([*FILES, *pages, "digits", "digits.index", "notes.txt"])
    assert (folder / "notes.txt").read_text() == "mine"
    for name in PNGS:
        width, height = png_size((folder / f"{name}.png").read_bytes())
        assert width >= 600 and height >= 300


def test_the_index_finds_the_digits(run, split):
    folder, metrics = run
    pipeline, index = zoo.ClipPipeline(folder / "model.safetensors"), zoo.search.Index.open(folder / "digits.index")
    assert len(index) == len(split[1])
    best = [pipeline.search(index, f"a photo of the number: {word}", 1)[0][0] for word in training.WORDS]
    assert [index.metadata(identity)["digit"] for identity in best] == list(training.WORDS)
    command = demo.summary(folder, metrics).rstrip().splitlines()[-1]
    assert command.endswith(f"zoo serve --model {folder / 'model.safetensors'} --index {index.path}")


def test_metrics_json_is_the_returned_value(run):
    folder, metrics = run
    assert json.loads((folder / "metrics.json").read_text(encoding="utf-8")) == metrics
    assert metrics["backend"] == keras.backend.backend() and metrics["epochs"] == EPOCHS and metrics["seed"] == 0
    assert set(metrics["versions"]) == {"python", "keras", "numpy", metrics["backend"]}
    assert all(len(metrics["history"][name]) == EPOCHS for name in ("loss", "val_loss", "accuracy", "logit_scale"))
    assert metrics["train_seconds"] > 0 and metrics["cores"] >= 1


def test_predictions_csv_agrees_with_the_metrics(run, split):
    folder, metrics = run
    with open(folder / "predictions.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["image"]) for row in rows] == split[1].indices.tolist()
    assert [int(row["digit"]) for row in rows] == split[1].labels.tolist()
    assert np.mean([int(row["correct"]) for row in rows]) == metrics["zero_shot_accuracy"]
    for row in rows:
        shares = [float(row[f"p_{name}"]) for name in training.WORDS]
        assert sum(shares) == pytest.approx(1, abs=1e-5)
        assert int(np.argmax(shares)) == int(row["read_as"])


def test_the_report_contains_every_plot_and_metric(run):
    folder, metrics = run
    source = (folder / "report.html").read_text(encoding="utf-8")
    assert source.count('src="data:image/png;base64,') == len(PNGS)
    assert not re.search(r'(?:src|href)="(?!data:)', source)
    for template in training.HELD_OUT_TEMPLATES:
        assert template in source
    assert f"{100 * metrics['zero_shot_accuracy']:.1f} %" in source


def test_onnx_files_classify_as_keras_does(run, split):
    folder, metrics = run
    transform = training.PREPROCESS.eval_transform()
    images = np.stack([transform(image) for image in split[1].images])
    assert [f"digits-{file['precision']}.onnx" for file in metrics["onnx"]] == ONNX
    for name, file in zip(ONNX, metrics["onnx"], strict=True):
        guesses = OnnxModel(folder / name).predict(images).argmax(axis=1)
        assert (guesses == split[1].labels).mean() == file["accuracy"]
        assert abs(file["accuracy"] - metrics["zero_shot_accuracy"]) <= 0.005
        assert (folder / name).stat().st_size == file["bytes"] and file["milliseconds"] > 0
    assert metrics["onnx"][0]["agreement"] == 1


def test_the_saved_pair_gives_the_same_predictions(run, split):
    folder, metrics = run
    predictions = evaluation.predict(zoo.ClipPipeline(folder / "model.safetensors"), split[1])
    assert metrics["reloaded_predictions_equal"] == 1
    assert (predictions.classes == split[1].labels).mean() == metrics["zero_shot_accuracy"]
    assert predictions.scale == pytest.approx(1 / metrics["temperature"], rel=1e-5)


def test_the_keras_classifier_gives_the_probabilities_of_the_csv(run, split):
    folder, metrics = run
    classifier = keras.saving.load_model(folder / "zero_shot_classifier.keras", safe_mode=True)
    transform = training.PREPROCESS.eval_transform()
    images = np.stack([transform(image) for image in split[1].images])
    scores = classifier.predict(images, batch_size=120, verbose=0)
    assert (scores.argmax(axis=1) == split[1].labels).mean() == metrics["zero_shot_accuracy"]
    with open(folder / "predictions.csv", encoding="utf-8", newline="") as file:
        written = [[float(row[f"p_{name}"]) for name in training.WORDS] for row in csv.DictReader(file)]
    np.testing.assert_allclose(scores, written, atol=2e-5)


def test_the_code_in_the_report_runs(run, split, tmp_path, monkeypatch, capsys):
    folder, _ = run
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    Image.fromarray(split[1].images[0]).save(tmp_path / "digit.png")
    monkeypatch.chdir(tmp_path)
    exec(compile(page.CLASSIFY.format(words=list(training.WORDS)), "report", "exec"), {})
    assert capsys.readouterr().out.splitlines()[-1] in training.WORDS


@pytest.mark.slow
def test_the_command_serves_the_held_out_digits(tmp_path, monkeypatch):
    answers = {}

    def ask(app, limits, host, port):
        assert (host, port) == ("127.0.0.1", 8000)
        with serving(app, limits) as client:
            answers["page"] = client.get("/").body.decode()
            answers["index"] = client.get("/v1/index").json
            answers["found"] = client.post("/v1/search", query="a photo of the digit seven", k=3).json["results"]
            answers["thumbnail"] = client.get(answers["found"][0]["thumbnail"])

    monkeypatch.setattr(demo, "create_pair", lambda: create_clip(SMALL))
    monkeypatch.setattr("zoo.serve.server.run", ask)
    assert main(["demo", "--output", str(tmp_path), "--epochs", "1", "--serve"]) == 0
    assert "<title>Search and classify</title>" in answers["page"]
    assert answers["index"]["images"] == 360
    assert answers["index"]["filters"] == {"digit": sorted(training.WORDS)}
    assert [match["metadata"]["digit"] in training.WORDS for match in answers["found"]] == [True] * 3
    assert answers["thumbnail"].headers["content-type"] == "image/jpeg"
