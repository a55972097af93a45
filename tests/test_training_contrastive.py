"""Contrastive training: every flag changes something, two passes give the batch's gradient, a run resumes."""

import dataclasses
import os
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
from data_writers import digits, encode, write_csv
from training_case import BASE, ROW, Killed, losses, no_curves, rows, until, weights  # noqa: F401

import zoo
from clip import CLIP, Pair, ResNet, create_clip
from zoo import cli
from zoo.data import CONTRASTIVE, Batches, from_arrays, read_csv
from zoo.data.preprocess import PreprocessSpec
from zoo.evaluation.retrieval import evaluate_retrieval
from zoo.inference.encoder import keras_encoder
from zoo.training import contrastive, loop
from zoo.training.average import average
from zoo.training.checkpoint import newest_checkpoint, save_checkpoint
from zoo.training.setup import compile_resumable, describe_schedule, optimizer_options
from zoo.training.two_pass import accumulate_gradients
from zoo.training.validation import PairValidation

pytestmark = pytest.mark.backend
once = pytest.mark.once


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return write_csv(tmp_path_factory.mktemp("data"), 24)


@pytest.fixture(scope="module")
def plain(table, tmp_path_factory):
    """(output folder, outcome) of a run of three steps."""
    folder = tmp_path_factory.mktemp("plain")
    return folder, zoo.train(ROW, table, output=folder, **BASE)


@once
def test_a_run_writes_a_pair_that_loads(plain):
    folder, outcome = plain
    assert outcome.finished and outcome.steps == 3
    loaded = zoo.load(folder / "model.safetensors")
    assert isinstance(loaded.model, CLIP) and loaded.transform is not None
    assert {"model.safetensors", "checkpoints", "history.jsonl", "history.csv"} <= set(os.listdir(folder))
    assert [row["step"] for row in rows(folder)] == [1, 2, 3]


@once
def test_the_last_lines_say_where_the_files_are_and_how_to_use_them(plain):
    folder, outcome = plain
    first, *lines = loop.to_text(outcome).splitlines()
    assert first == "Finished: step 3 of 3."
    assert lines[:2] == [f"  model    {folder / 'model.safetensors'}", f"  history  {folder / 'history.csv'}"]
    model = str(folder / "model.safetensors")
    parts = (f"zoo eval retrieval --model {model} --data ", f"--model {model} --output", "ClipPipeline")
    assert all(part in line for part, line in zip(parts, lines[2:], strict=True))
    assert lines[2].startswith("  use it   zoo eval") and len(lines) == 5


@once
def test_it_learns(table, tmp_path):
    zoo.train(ROW, table, output=tmp_path, **{**BASE, "epochs": 20, "log_every": 3}, learning_rate=0.002)
    found = losses(tmp_path)
    assert found[-1] < 0.8 * found[0]


@once
def test_arrays_train_like_files(table, plain, tmp_path):
    images, captions, labels = digits(24)
    for name, more in (("plain", {}), ("labels", {"labels": labels})):
        assert zoo.train(ROW, from_arrays(images, captions, **more), output=tmp_path / name, **BASE).finished
    assert losses(tmp_path / "plain") == losses(plain[0])
    zoo.train(ROW, table, output=tmp_path / "classes", label_key="class", **BASE)
    assert losses(tmp_path / "labels") == losses(tmp_path / "classes") != losses(plain[0])


@once
def test_captions_of_one_image_are_positives(tmp_path):
    images, captions, _ = digits(4)
    for i, image in enumerate(images):
        (tmp_path / f"{i}.png").write_bytes(encode(image))
        (tmp_path / f"copy_{i}.png").write_bytes(encode(image))
    found = []
    for second in ("{}.png", "copy_{}.png"):  # the same images; only the first rows say that they are
        names = [*(f"{i}.png" for i in range(4)), *(second.format(i) for i in range(4))]
        lines = [f'{name},"{caption[:20]}"' for name, caption in zip(names, captions + captions[::-1], strict=True)]
        (tmp_path / "t.csv").write_text("\n".join(["filepath,caption", *lines]))
        output = tmp_path / f"run{len(found)}"
        zoo.train(ROW, tmp_path / "t.csv", output=output, **BASE)
        found.append(losses(output)[0])
    assert abs(found[0] - found[1]) > 1e-3 and np.isfinite(found).all()


def differs(table, plain, folder, options):
    """A run with these options ends with other weights than one without."""
    zoo.train(ROW, table, output=folder, **{**BASE, **options})
    assert weights(folder) != weights(plain[0])
    if options.get("precision") != "float16":  # there the scale of the loss has to come down first
        assert all(row["skipped"] == 0 for row in rows(folder))


def test_computational_options_work_on_every_backend(table, plain, tmp_path):
    half = "bfloat16" if keras.backend.backend() == "jax" else "float16"  # XLA multiplies no float16 on a CPU
    differs(table, plain, tmp_path, {"loss": "siglip", "ema": 0.9, "precision": half, "lock_text": True})


def named(options):
    return "-".join(f"{key}={value}" for key, value in options.items())


@once
@pytest.mark.parametrize(
    "options",
    [
        {"loss": "siglip"},
        {"label_key": "class"},
        {"clip_norm": 1e-3},
        {"precision": "float16"},
        {"ema": 0.9},
        {"lock_image": True},
        {"context_length": 6},
    ],
    ids=named,
)
def test_options_change_the_weights(table, plain, tmp_path, options):
    differs(table, plain, tmp_path, options)


@once
@pytest.mark.slow  # that the run has them, tests/test_training_flags.py shows
@pytest.mark.parametrize(
    "options",
    [
        {"seed": 1},
        {"learning_rate": 1e-2},
        {"weight_decay": 0.5},
        {"warmup_steps": 2},
        {"batch_size": 4},
        {"epochs": 2},
        {"precision": "bfloat16"},
        {"lock_text": True},
        {"image_size": 24},
    ],
    ids=named,
)
def test_other_options_change_the_weights(table, plain, tmp_path, options):
    differs(table, plain, tmp_path, options)


@once
def test_the_same_arguments_give_the_same_bytes(table, plain, tmp_path):
    zoo.train(ROW, table, output=tmp_path, **{**BASE, "threads": 2}, save_every=1)
    assert weights(tmp_path) == weights(plain[0])


@pytest.mark.parametrize("tower", [pytest.param("vit", marks=pytest.mark.wide), pytest.param("resnet", marks=once)])
def test_a_locked_tower_and_its_statistics_do_not_change(tower, table, tmp_path):
    keras.utils.set_random_seed(0)
    row = ROW if tower == "vit" else Pair(8, 32, ResNet((1, 1, 1, 1), 2), ROW.text)
    pair = create_clip(row)
    before = [keras.ops.convert_to_numpy(v).copy() for v in pair.image_encoder.variables]
    text = [keras.ops.convert_to_numpy(v).copy() for v in pair.text_encoder.variables]
    zoo.train(pair, table, output=tmp_path, **BASE, lock_image=True)
    after = [keras.ops.convert_to_numpy(v) for v in pair.image_encoder.variables]
    assert all(np.array_equal(*two) for two in zip(before, after, strict=True))
    moved = [keras.ops.convert_to_numpy(v) for v in pair.text_encoder.variables]
    assert not all(np.array_equal(*two) for two in zip(text, moved, strict=True))


@once
def test_training_starts_from_given_weights(table, plain, tmp_path):
    path = plain[0] / "model.safetensors"
    pair = zoo.load(path).model
    zoo.train(pair, table, output=tmp_path, **BASE, learning_rate=1e-12, weight_decay=0.0)
    again = zoo.load(tmp_path / "model.safetensors").model
    for one, other in zip(pair.get_weights(), zoo.load(path).model.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-8)
    for one, other in zip(pair.get_weights(), again.get_weights(), strict=True):
        assert np.array_equal(one, other)


@once
def test_validation_measures_retrieval_and_zero_shot_accuracy(table, tmp_path):
    options = {"validation_data": table, "validate_every": 2, "label_key": "class", "classes": "digits"}
    zoo.train(ROW, table, output=tmp_path, **BASE, **options)
    examined = [row for row in rows(tmp_path) if "val_zero_shot_accuracy" in row]
    assert [row["step"] for row in examined] == [2]
    for way in ("image_to_text", "text_to_image"):
        recalls = [examined[0][f"val_{way}_recall_at_{k}"] for k in (1, 5, 10)]
        assert recalls == sorted(recalls) and 0 <= recalls[0] <= recalls[2] <= 1
        assert 1 <= examined[0][f"val_{way}_median_rank"] <= 24


@once
@pytest.mark.parametrize("batch_size", [3, 8, 24])
def test_validation_agrees_with_the_evaluation_where_images_have_several_captions(batch_size, rng):
    pair = create_clip(ROW)
    pair.set_weights([rng.standard_normal(w.shape) / 4 for w in pair.get_weights()])
    images = list(rng.integers(0, 256, (6, 16, 16, 3), "uint8"))
    single = from_arrays(images, [f"caption {i}" for i in range(6)])
    order = [0, 1, 0, 2, 2, 2, 3, 4, 5, 0, 5, 1]  # the rows of an image stand anywhere, in one batch or in several

    def read(row):
        return dataclasses.replace(single.record(order[row]), caption=f"caption {row}")

    several = dataclasses.replace(single, names=[single.names[i] for i in order], read=read)
    spec, tokenize = PreprocessSpec(16), contrastive.Tokenize(12)
    validate = PairValidation(several, spec, tokenize, batch_size=batch_size)
    found = validate(pair)
    expected, _ = evaluate_retrieval(keras_encoder(pair, spec, tokenizer=tokenize), several)
    for way in ("image_to_text", "text_to_image"):
        for name, value in getattr(expected, way).items():
            assert name == "queries" or found[f"{way}_{name}"] == value


@once
def test_two_sets_of_weights_are_averaged(table, plain, tmp_path, capsys):
    zoo.train(ROW, table, output=tmp_path, **{**BASE, "seed": 1})
    files = [plain[0] / "model.safetensors", tmp_path / "model.safetensors"]
    one, other = (zoo.load(path).model.get_weights() for path in files)
    for alpha in (0.0, 0.25, 1.0):
        out = tmp_path / f"{alpha}.safetensors"
        assert cli.main(["average", *map(str, files), "--alpha", str(alpha), "--output", str(out)]) == 0
        for got, a, b in zip(zoo.load(out).model.get_weights(), one, other, strict=True):
            np.testing.assert_allclose(got, (1 - alpha) * a + alpha * b, rtol=1e-6, atol=1e-7)
    assert "0.75 of the first and 0.25 of the second" in capsys.readouterr().out
    larger = zoo.train(ROW, table, output=tmp_path / "larger", **{**BASE, "image_size": 24})
    assert larger.finished
    with pytest.raises(ValueError, match="differ: image_size 16 and 24"):
        average(files[0], tmp_path / "larger" / "model.safetensors", output=out)
    with pytest.raises(ValueError, match="alpha=2"):
        average(*files, output=out, alpha=2)


# Two passes.


def dropout_pair():
    keras.utils.set_random_seed(3)
    images = keras.Input((16, 16, 3))
    x = keras.layers.Dropout(0.5)(keras.layers.Flatten()(images))
    tokens = keras.Input((None,), dtype="int32")
    y = keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(64, 6)(tokens))
    dense = keras.layers.Dense
    return CLIP(keras.Model(images, dense(4)(x)), keras.Model(tokens, dense(4)(y)))


def one_step(chunks, rate=None):
    """(weights after one step of plain descent, logs): the change is the gradient times the rate."""
    pair = dropout_pair()
    if rate is not None:
        for layer in pair.image_encoder.layers:
            if isinstance(layer, keras.layers.Dropout):
                layer.rate = rate
    compile_resumable(pair, keras.optimizers.SGD(1.0), precision="float32", ema=None)
    if chunks:
        accumulate_gradients(pair, chunks)
    rng = np.random.default_rng(0)
    batch = {
        "images": rng.standard_normal((8, 16, 16, 3)).astype(np.float32),
        "tokens": rng.integers(1, 64, (8, 5)).astype(np.int32),
        "label": np.array([0, 1, 2, 3, 0, 5, 6, 7], np.int32),
    }
    logs = pair.train_on_batch(batch, return_dict=True)
    return [keras.ops.convert_to_numpy(v).copy() for v in pair.trainable_variables], logs


@pytest.mark.parametrize("chunks", [2, *(pytest.param(chunks, marks=pytest.mark.wide) for chunks in (1, 4, 8))])
def test_two_passes_give_the_gradient_of_the_whole_batch(chunks):
    start = [keras.ops.convert_to_numpy(v).copy() for v in dropout_pair().trainable_variables]
    (whole, logs), (parts, chunk_logs) = one_step(None, rate=0.0), one_step(chunks, rate=0.0)
    for begin, one, other in zip(start, whole, parts, strict=True):
        gradient = np.abs(begin - one).max()
        assert np.abs(one - other).max() <= 2e-6 * max(gradient, 1.0)
        assert gradient > 0
    assert logs["loss"] == pytest.approx(chunk_logs["loss"], rel=1e-5)
    assert logs["accuracy"] == pytest.approx(chunk_logs["accuracy"])


@pytest.mark.wide
def test_both_passes_use_the_same_dropout():
    """With one chunk the draw is the batch's own, so that a second draw in the second pass would show."""
    (whole, _), (parts, _) = one_step(None), one_step(1)
    for one, other in zip(whole, parts, strict=True):
        assert np.abs(one - other).max() <= 2e-6 * np.abs(other).max()
    (other_rate, _) = one_step(1, rate=0.0)
    assert not np.allclose(other_rate[0], whole[0], atol=1e-4)


@pytest.mark.wide
def test_batch_statistics_count_each_chunk_once():
    def create():
        images, tokens = keras.Input((8, 8, 3)), keras.Input((None,), dtype="int32")
        x = keras.layers.GlobalAveragePooling2D()(keras.layers.BatchNormalization(momentum=0.5)(images))
        y = keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(64, 4)(tokens))
        return CLIP(keras.Model(images, keras.layers.Dense(4)(x)), keras.Model(tokens, keras.layers.Dense(4)(y)))

    rng = np.random.default_rng(0)
    images, tokens = rng.standard_normal((8, 8, 8, 3)).astype(np.float32), rng.integers(1, 64, (8, 5)).astype(np.int32)
    trained, called = create(), create()
    compile_resumable(trained, keras.optimizers.SGD(0.1), precision="float32", ema=None)
    accumulate_gradients(trained, 2)
    trained.train_on_batch({"images": images, "tokens": tokens})
    for part in (slice(0, 4), slice(4, 8)):
        called({"images": images[part], "tokens": tokens[part]}, training=True)
    for one, other in zip(trained.non_trainable_variables, called.non_trainable_variables, strict=True):
        np.testing.assert_allclose(*map(keras.ops.convert_to_numpy, (one, other)), rtol=1e-5)


@once
def test_accumulation_is_an_option_of_training(table, plain, tmp_path):
    zoo.train(ROW, table, output=tmp_path, **BASE, accumulate=4)
    for one, other in zip(
        zoo.load(tmp_path / "model.safetensors").model.get_weights(),
        zoo.load(plain[0] / "model.safetensors").model.get_weights(),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, atol=2e-3)  # Adam divides small gradients by their own size
    assert losses(tmp_path) == pytest.approx(losses(plain[0]), rel=1e-3)


# Stopping and going on, from the command line.


@once
def test_the_identity_is_the_same_in_another_process(table):
    """The fingerprint of the batches depends on values, never on an object's address."""
    code = (
        "import sys; from zoo.training import contrastive as c; from zoo.data import *\n"
        "from zoo.data.preprocess import *\n"
        "print(Batches(read_csv(sys.argv[1]), PreprocessSpec(image_size=16), batch_size=8, augment=CONTRASTIVE, "
        "tokenize=c.Tokenize(12)).fingerprint)"
    )
    run = subprocess.run([sys.executable, "-c", code, str(table)], capture_output=True, text=True, check=True)
    options = {"augment": CONTRASTIVE, "tokenize": contrastive.Tokenize(12)}
    with Batches(read_csv(table), PreprocessSpec(image_size=16), batch_size=8, **options) as batches:
        assert run.stdout.strip() == batches.fingerprint


@once
def test_a_run_resumes_with_more_epochs(table, tmp_path, capsys):
    """The cosine is that of the longer run; cut off in between, it ends the same."""
    run = lambda name, epochs, **more: zoo.train(  # noqa: E731
        ROW, table, output=tmp_path / name, **{**BASE, "epochs": epochs, "save_every": 1}, **more
    )
    for name in ("whole", "parts"):
        run(name, 2)
    first = rows(tmp_path / "whole")
    assert "6 steps; the learning rate falls from 0.0005 to 0." in capsys.readouterr().out
    outcome = run("whole", 4, resume=True)
    printed = capsys.readouterr().out
    assert (outcome.finished, outcome.step, outcome.steps) == (True, 12, 12)
    assert "With 4 epochs instead of 2, the learning rate falls to 0 at step 12; it continues at 0.00025." in printed
    found = rows(tmp_path / "whole")
    assert found[:6] == first and len(found) == 12
    expected = [0.00025 * (1 + np.cos(np.pi * step / 12)) for step in range(7, 13)]
    np.testing.assert_allclose([row["learning_rate"] for row in found[6:]], expected, rtol=1e-5, atol=1e-10)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Batches, "batch", until(2, 2))
        run("parts", 4, resume=True)
    run("parts", 4, resume=True)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    with pytest.raises(ValueError, match="is of another run: epochs was 4 and is 3"):
        run("whole", 3, resume=True)


@once
def test_the_warm_up_of_a_run_with_more_epochs_stays_that_of_its_beginning(tmp_path):
    config = contrastive.ContrastiveConfig(model="x", train_data="x", output=tmp_path, epochs=2)
    assert optimizer_options(config, 60)["warmup_steps"] == 6
    for progress in ({"identity": {"epochs": 2}}, {"identity": {"epochs": 3}, "first_epochs": 2}):
        save_checkpoint(tmp_path / "checkpoints", {}, progress)
        for epochs in (2, 3, 6):
            longer = dataclasses.replace(config, epochs=epochs)
            assert optimizer_options(longer, 30 * epochs)["warmup_steps"] == 6
    given = dataclasses.replace(config, warmup_steps=1)
    rates = optimizer_options(given, 60)
    assert describe_schedule(given, 60, rates) == (
        "60 steps; the learning rate rises from 0 to 0.0005 in the first 1, then falls to 0."
    )


def command(table, output, *more):
    words = ["train", "contrastive", "--model", "convnext_v2_atto", "--train-data", str(table), "--output", str(output)]
    options = ["--batch-size", "8", "--epochs", "2", "--context-length", "12", "--log-every", "1", "--threads", "1"]
    return [*words, *options, *more]


@pytest.mark.wide
def test_the_command_resumes_bit_for_bit(table, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(contrastive.registry, "create_model", lambda *_, **__: contrastive.clip.create_clip(ROW))
    backend = ["--backend", keras.backend.backend()]
    assert cli.main(command(table, tmp_path / "whole", *backend)) == 0
    fit, count = Batches.batch, []

    def batch(self, epoch, step):
        count.append(1)
        if len(count) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return fit(self, epoch, step)

    monkeypatch.setattr(Batches, "batch", batch)
    assert cli.main(command(table, tmp_path / "parts", *backend)) == 0
    position = newest_checkpoint(tmp_path / "parts" / "checkpoints").progress["position"]
    assert 0 < position < 6
    monkeypatch.undo()
    monkeypatch.setattr(contrastive.registry, "create_model", lambda *_, **__: contrastive.clip.create_clip(ROW))
    assert cli.main(command(table, tmp_path / "parts", *backend)) == 2
    assert "holds checkpoints of a run" in capsys.readouterr().err
    assert cli.main(command(table, tmp_path / "parts", *backend, "--resume")) == 0
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")


@once
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "float64"}, "precision='float64'; it must be one of float32"),
        ({"loss": "triplet"}, "loss='triplet'"),
        ({"accumulate": 3}, "accumulate=3 .* divide batch_size=8"),
        ({"classes": "dogs", "validation_data": "table"}, "classes='dogs'"),
        ({"classes": "digits"}, "classes='digits' needs validation_data"),
        ({"classes": "digits", "validation_data": "table"}, "validation data has no labels; name their column"),
        ({"validate_every": 1}, "validate_every=1, but there is no validation data"),
        ({"validation_data": "https://a.b/c.tar"}, "is a URL or a command"),
        ({"caption_key": "text"}, "no column 'text'; nearest is"),
        ({"model": "convnextv2_atto", "image_size": 32}, "is a classifier; contrastive training needs a CLIP model"),
        ({"epochs": 0}, "epochs=0"),
        ({"lock_image": True, "lock_text": True}, "leave nothing to train"),
        ({"context_length": 200}, "context_length=200; it must be between 2"),
        ({"context_length": 1}, "context_length=1; it must be"),
        ({"learning_rate": -1e-3}, "learning_rate=-0.001; it must be a number of at least 0"),
        ({"weight_decay": float("nan")}, "weight_decay=nan"),
        ({"clip_norm": -1.0}, "clip_norm=-1.0"),
        ({"warmup_steps": 4}, "warmup_steps=4"),
        ({"lock_image": True, "batch_size": 1000}, "do not fill a batch of 1000"),
    ],
)
def test_bad_arguments_are_refused_before_training(table, tmp_path, options, message):
    options = {key: table if value == "table" else value for key, value in options.items()}
    model = options.pop("model", ROW)
    with pytest.raises(ValueError, match=message):
        zoo.train(model, table, output=tmp_path, **{**BASE, **options})
    assert not (tmp_path / "checkpoints").exists()


@once
def test_missing_data_is_named(table, tmp_path):
    for missing in ("nowhere.csv", "nowhere"):
        with pytest.raises(FileNotFoundError, match=f"'{missing}' does not exist"):
            zoo.train(ROW, missing, output=tmp_path, **BASE)
