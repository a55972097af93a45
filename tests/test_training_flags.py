"""Every flag and every key of the configuration changes what a run would do, and changes no more than it should.

A run is described just before its first step: model, data, optimizer, pace. Each row of the tables says which parts of
that description its flag changes, and no flag may be missing. That they change results too, the other files examine.
"""

import argparse
import csv
import json
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import pytest
from data_writers import WORDS, write_class_folders, write_csv

import zoo
from clip import ConvNeXt, Pair, Text, ViT, create_clip
from convnext import Variant
from zoo import cli
from zoo.data.records import digest
from zoo.training import classify, config, contrastive
from zoo.training.loop import Outcome

pytestmark = [pytest.mark.backend, pytest.mark.once]

ROOT = Path(__file__).resolve().parent.parent
TEXT = Text(width=16, heads=2, layers=1)
PAIRS = {
    "tiny": Pair(8, 32, ViT(16, 1, 8, head_width=8), TEXT),
    "wide": Pair(8, 32, ViT(24, 1, 8, head_width=8), TEXT),
    "convolutional": Pair(8, 32, ConvNeXt("convnextv2", Variant((1,), (8,))), TEXT),
}
GENERAL = {"--help", "--backend", "--json", "--traceback"}  # of every command; the last three are examined below


class Row(NamedTuple):
    """Arguments of a flag, or the value of a key; what it changes; what stands beside it in both runs."""

    value: object
    changes: set[str]
    beside: object = ()


# What a run is about to do.

DETAILS = ("rate", "activation", "epsilon")  # of a layer


def describe(model, batches, output, pace, *, arrange=None, validate=None, enough=None, identity, resume):
    """{part: how it is}, of what `train_durably` is given."""
    guard, kinds = model.optimizer, {layer.dtype_policy.name for layer in model.layers}
    if isinstance(model, keras.Model) and hasattr(model, "image_encoder"):
        kinds = {layer.dtype_policy.name for layer in model.image_encoder.layers}
    trainable = {id(v) for v in model.trainable_variables}
    first = batches[0]
    given = arrange(first) if arrange else first
    names = given if isinstance(given, dict) else ()  # a pair's batch has names, a classifier's is (images, targets)
    held_out = validate and next(a for a in (*validate.args, validate.func) if hasattr(a, "batches") or is_batches(a))
    examined = held_out if held_out is None or is_batches(held_out) else held_out.batches
    return {
        "shapes": [tuple(w.shape) for w in model.weights],
        "layers": [[getattr(layer, name, None) for name in DETAILS] for layer in model._flatten_layers()],
        "stride": [layer.strides for layer in model._flatten_layers() if isinstance(layer, keras.layers.Conv2D)][0],
        "weights": digest([w for w in model.get_weights() if w.dtype == np.float32]),
        "trainable": [id(v) in trainable for v in model.weights],
        "precision": sorted(kinds),
        "loss": loss_name(model),
        "distill_weight": getattr(model, "distill_weight", None),
        "teacher": digest([given["teacher_logits"]]) if "teacher_logits" in names else None,
        "targets": None if names else digest([np.asarray(target) for target in given[1:]]),
        "rate": guard.inner.get_config()["learning_rate"]["config"],
        "decay": guard.inner.weight_decay,
        "clip": guard.inner.global_clipnorm,
        "guard": (guard.initial_scale, guard.ema),
        "factors": guard.factors,
        "chunks": getattr(model.train_step, "args", (None,))[1:],
        "records": batches.dataset.fingerprint,
        "labels": batches.dataset.labels is not None,
        "images": digest([first["images"]]),
        "tokens": digest([first["tokens"]]) if "tokens" in first else None,
        "batch": (batches.batch_size, batches.spec),
        "augment": (batches.augment, batches.mix),
        "threads": batches.threads,
        "bad": batches.bad._max_fraction,
        **{f"pace {name}": value for name, value in vars(pace).items()},
        "validation": examined and (examined.dataset.fingerprint, getattr(held_out, "class_names", None)),
        "enough": enough and enough.__closure__[0].cell_contents,
        "output": str(output),
        "resume": resume,
        "identity": digest([json.dumps(identity, sort_keys=True), batches.fingerprint]),
    }


def is_batches(value):
    return isinstance(value, zoo.training.classify.Batches)


def loss_name(model):
    if hasattr(model, "contrastive_loss"):
        return model.contrastive_loss
    return getattr(model.loss, "get_config", lambda: model.loss)()


@pytest.fixture
def plans(monkeypatch):
    """A list to which each started run adds its description, in place of training."""
    found = []

    def train_durably(*arguments, **options):
        found.append(describe(*arguments, **options))
        return Outcome(True, 0, 0, 0)

    def create_model(name, *, weights=None, **options):
        pair = create_clip(PAIRS[name], **options)
        if weights is not None:
            zoo.load_weights(pair, weights)
        return pair

    for module in (contrastive, classify):
        monkeypatch.setattr(module, "train_durably", train_durably)
        monkeypatch.setattr(module, "write_model", lambda *_: None)
    monkeypatch.setattr(classify, "with_softmax", lambda *_: None)
    monkeypatch.setattr(contrastive.registry, "create_model", create_model)
    return found


def changed(one, other):
    return {part for part in one if one[part] != other[part]}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder: train.csv with more columns than are needed, the digits by class, weights, a teacher."""
    folder = tmp_path_factory.mktemp("flags")
    table = write_csv(folder / "a", 16, size=8)
    write_csv(folder / "b", 24, size=12)
    rows = list(csv.DictReader(table.open(encoding="utf-8")))
    for i, row in enumerate(rows):
        row |= {"other_image": rows[-1 - i]["filepath"], "other_text": f"number {i}", "kind": WORDS[i % 2]}
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    write_class_folders(folder / "classes", 16, size=8)
    write_class_folders(folder / "more", 24, size=8)
    keras.utils.set_random_seed(9)
    zoo.save(create_clip(PAIRS["tiny"], image_size=16), folder / "pair.safetensors")
    keras.utils.set_random_seed(9)
    start = config.parse_config({**KEYS_BASE, "train_data": "d", "output": "o", "num_labels": 10})
    model, description = classify.create_classifier(start, 10)
    zoo.save(model, folder / "classifier.safetensors", preprocess=description.preprocess)
    return folder


def fill(arguments, folder):
    """Names in braces become paths in the folder of data."""
    if isinstance(arguments, str):
        return arguments.replace("{", f"{folder}/").replace("}", "")
    return [fill(argument, folder) for argument in arguments] if isinstance(arguments, list | tuple) else arguments


def flags_of(command):
    """The longest spelling of each flag that the parser of a command has."""
    parser = cli.build_parser()
    for word in command.split():
        parser = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction)).choices[word]
    flags = {max(action.option_strings, key=len) for action in parser._actions if action.option_strings}
    assert flags > GENERAL
    return flags - GENERAL


# Contrastive training.

PAIR_BASE = {
    **{"--model": "tiny", "--train-data": "{a/train.csv}", "--output": "{out}", "--batch-size": "8", "--epochs": "2"},
    **{"--threads": "1", "--context-length": "12", "--image-size": "16", "--warmup-steps": "1"},
}
VALIDATION = ("--validation-data", "{a/train.csv}")
TEACHER = ("--teacher", "{pair.safetensors}")
CONTRASTIVE = {
    "--model": Row(["wide"], {"shapes", "weights", "identity"}),
    "--train-data": Row(["{b/train.csv}"], {"records", "images", "tokens", "rate", "identity"}),
    "--output": Row(["{other}"], {"output"}),
    "--image-key": Row(["other_image"], {"records", "images", "identity"}),
    "--caption-key": Row(["other_text"], {"records", "tokens", "identity"}),
    "--label-key": Row(["kind"], {"records", "labels", "identity"}),
    "--data-root": Row(["{b}"], {"images"}),
    "--batch-size": Row(["4"], {"batch", "images", "tokens", "rate", "identity"}),
    "--epochs": Row(["3"], {"pace epochs", "rate", "identity"}),
    "--image-size": Row(["32"], {"shapes", "weights", "batch", "images", "identity"}),
    "--stem-stride": Row(["2"], {"stride", "identity"}, ("--model", "convolutional")),
    "--weights": Row(["{pair.safetensors}"], {"weights", "identity"}),
    "--loss": Row(["siglip"], {"loss", "shapes", "weights", "trainable", "identity"}),
    "--learning-rate": Row(["0.1"], {"rate", "identity"}),
    "--weight-decay": Row(["0.5"], {"decay", "identity"}),
    "--warmup-steps": Row(["2"], {"rate", "identity"}),
    "--clip-norm": Row(["0"], {"clip", "identity"}),
    "--accumulate": Row(["2"], {"chunks", "identity"}),
    "--precision": Row(["float16"], {"precision", "guard", "identity"}),
    "--ema": Row(["0.9"], {"guard", "identity"}),
    "--lock-image": Row([], {"trainable", "identity"}),
    "--lock-text": Row([], {"trainable", "identity"}),
    "--context-length": Row(["6"], {"tokens", "identity"}),
    "--validation-data": Row(["{b/train.csv}"], {"validation"}),
    "--validate-every": Row(["1"], {"pace validate_every"}),
    "--classes": Row(["digits"], {"validation"}, (*VALIDATION, "--label-key", "kind")),
    "--teacher": Row(["{pair.safetensors}"], {"teacher", "identity"}),
    "--distill-weight": Row(["0.5"], {"distill_weight", "identity"}, TEACHER),
    "--save-every": Row(["1"], {"pace save_every"}),
    "--log-every": Row(["1"], {"pace log_every"}),
    "--max-skipped": Row(["3"], {"pace max_skipped"}),
    "--max-bad-fraction": Row(["0.5"], {"bad"}),
    "--threads": Row(["2"], {"threads"}),
    "--seed": Row(["1"], {"weights", "images", "tokens", "identity"}),
    "--resume": Row([], {"resume"}),
}
REFUSED = {"--devices": (["4"], "devices=4")}  # one device is here; what four change, test_training_devices examines


def run_contrastive(data, plans, options, beside=()):
    words = [word for pair in options.items() for word in (pair[0], *pair[1])]
    code = cli.main(["train", "contrastive", *fill([*words, *beside], data), "--backend", keras.backend.backend()])
    return plans.pop() if code == 0 else None


@pytest.mark.parametrize("flag", CONTRASTIVE)
def test_a_flag_of_contrastive_training_changes_what_it_says(data, plans, flag):
    value, changes, beside = CONTRASTIVE[flag]
    base = {name: [value] for name, value in PAIR_BASE.items()}
    one, other = (run_contrastive(data, plans, options, beside) for options in (base, base | {flag: value}))
    assert changed(one, other) == changes


def test_no_flag_of_contrastive_training_is_missing():
    assert flags_of("train contrastive") == CONTRASTIVE.keys() | REFUSED.keys()


@pytest.mark.parametrize("flag", REFUSED)
def test_a_flag_of_contrastive_training_is_refused_where_it_cannot_be(data, plans, flag, capsys):
    value, message = REFUSED[flag]
    base = {name: [value] for name, value in PAIR_BASE.items()}
    assert run_contrastive(data, plans, base | {flag: value}) is None
    assert message in capsys.readouterr().err


# Classification.

KEYS_BASE = {
    **{"model_type": "convnextv2", "hidden_sizes": [8, 8], "depths": [1, 1], "stem_stride": 2, "image_size": 8},
    **{"batch_size": 8, "epochs": 2, "threads": 1, "train_data": "{classes}", "output": "{out}", "warmup_steps": 1},
}
SHAPES = {"shapes", "weights", "identity"}
TABLE = {"train_data": "{a/train.csv}", "label_key": "class"}
NAMED = {"model": "convnextv2_femto", "hidden_sizes": None, "depths": None, "image_size": 32}
KEYS = {
    "model_type": Row("convnext", SHAPES | {"trainable", "layers"}),
    "model": Row("convnextv2_atto", SHAPES, NAMED),
    "num_labels": Row(12, SHAPES | {"targets"}),
    "weights": Row("{classifier.safetensors}", {"weights", "identity"}),
    "stem_stride": Row(1, {"stride", "identity"}),
    "drop_path_rate": Row(0.5, {"layers", "weights", "identity"}),
    "dropout_rate": Row(0.5, {"layers", "weights", "identity"}),
    "train_data": Row("{more}", {"records", "images", "targets", "rate", "identity"}),
    "validation_data": Row("{more}", {"validation"}),
    "image_key": Row("other_image", {"records", "images", "identity"}, TABLE),
    "label_key": Row("kind", SHAPES | {"records", "targets"}, TABLE),
    "data_root": Row("{b}", {"images"}, TABLE),
    "output": Row("{other}", {"output"}),
    "batch_size": Row(4, {"batch", "images", "targets", "rate", "identity"}),
    "epochs": Row(3, {"pace epochs", "rate", "identity"}),
    "image_size": Row(16, {"batch", "images", "identity"}),
    "learning_rate": Row(0.1, {"rate", "identity"}),
    "weight_decay": Row(0.5, {"decay", "identity"}),
    "warmup_steps": Row(2, {"rate", "identity"}),
    "layer_decay": Row(0.5, {"factors", "identity"}),
    "clip_norm": Row(1.0, {"clip", "identity"}),
    "precision": Row("float16", {"precision", "guard", "identity"}),
    "ema": Row(0.5, {"guard", "identity"}),
    "loss": Row("focal", {"loss", "identity"}),
    "label_smoothing": Row(0.1, {"loss", "identity"}),
    "focal_gamma": Row(3.0, {"loss", "identity"}, {"loss": "focal"}),
    "class_weights": Row([1.0, 2.0, *[1.0] * 8], {"targets", "identity"}),
    "mixup": Row(0.8, {"augment", "images", "targets", "identity"}),
    "cutmix": Row(1.0, {"augment", "images", "targets", "identity"}),
    "crop_scale": Row([0.5, 1.0], {"augment", "images", "identity"}),
    "flip": Row(1.0, {"augment", "images", "identity"}),
    "rand_augment": Row(True, {"augment", "images", "identity"}),
    "random_erasing": Row(1.0, {"augment", "images", "identity"}),
    "freeze_backbone": Row(True, {"trainable", "identity"}),
    "early_stopping": Row(2, {"enough", "identity"}, {"validation_data": "{more}"}),
    "save_every": Row(1, {"pace save_every"}),
    "validate_every": Row(1, {"pace validate_every"}),
    "log_every": Row(1, {"pace log_every", "identity"}),
    "max_skipped": Row(3, {"pace max_skipped", "identity"}),
    "max_bad_fraction": Row(0.5, {"bad", "identity"}),
    "threads": Row(2, {"threads"}),
    "seed": Row(1, {"weights", "images", "targets", "identity"}),
    # the architecture
    "patch_size": Row(2, SHAPES),
    "hidden_sizes": Row([8, 16], SHAPES),
    "depths": Row([1, 2], SHAPES | {"trainable", "layers"}),
    "hidden_act": Row("relu", {"layers", "identity"}),
    "layer_scale_init_value": Row(0.5, {"weights", "identity"}, {"model_type": "convnext"}),
}
RESNET_BASE = {"model_type": "resnet", "stem_stride": None, "image_size": 32}
RESNET_KEYS = {
    "layer_type": Row("basic", SHAPES | {"trainable", "layers"}, RESNET_BASE),
    "embedding_size": Row(16, SHAPES, RESNET_BASE),
}
REFUSED_KEYS = {
    "layer_norm_eps": Row(1e-3, "Models of this package have: 1e-6"),
    "devices": Row(4, "devices=4"),
    "num_channels": Row(1, "num_channels is 1; pictures are read as RGB"),
    "num_stages": Row(3, "num_stages is 3, depths are [1, 1]"),
    "downsample_in_first_stage": Row(True, "downsample_in_first_stage"),
    "downsample_in_bottleneck": Row(True, "downsample_in_bottleneck"),
}


def run_classify(data, plans, values, *flags):
    path = Path(data, "config.json")
    path.write_text(json.dumps({k: fill(v, data) for k, v in values.items() if v is not None}))
    backend = ["--backend", keras.backend.backend()]
    code = cli.main(["train", "classify", "--config", str(path), *fill(list(flags), data), *backend])
    return plans.pop() if code == 0 else None


@pytest.mark.parametrize("key", [*KEYS, *RESNET_KEYS])
def test_a_key_of_the_configuration_changes_what_it_says(data, plans, key):
    value, changes, beside = {**KEYS, **RESNET_KEYS}[key]
    base = {**KEYS_BASE, **dict(beside)}
    one, other = (run_classify(data, plans, values) for values in (base, base | {key: value}))
    assert changed(one, other) == changes


@pytest.mark.parametrize("key", REFUSED_KEYS)
def test_a_key_of_the_configuration_is_refused_where_it_cannot_be(data, plans, key, capsys):
    base = {**KEYS_BASE, **RESNET_BASE} if key.startswith("downsample") else KEYS_BASE
    assert run_classify(data, plans, {**base, key: REFUSED_KEYS[key].value}) is None
    assert REFUSED_KEYS[key].changes in capsys.readouterr().err


def test_no_key_of_the_configuration_is_missing():
    assert config.KINDS.keys() | config.ARCHITECTURE.keys() == KEYS.keys() | RESNET_KEYS.keys() | REFUSED_KEYS.keys()


def test_the_documents_name_every_key():
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    assert [key for key in config.KINDS.keys() | config.ARCHITECTURE.keys() if f"`{key}`" not in text] == []


def test_a_flag_of_classification_counts_as_its_key_does(data, plans, capsys):
    """Every flag but --config and --resume is named as a key, and the run is that of a file with this value."""
    flags = flags_of("train classify") - {"--config", "--resume"}
    assert flags >= {"--epochs", "--seed", "--output", "--train-data", "--validation-data", "--layer-decay"}
    for flag in sorted(flags):
        key = flag.removeprefix("--").replace("-", "_")
        if key in REFUSED_KEYS:
            assert run_classify(data, plans, KEYS_BASE, flag, str(REFUSED_KEYS[key].value)) is None
            assert REFUSED_KEYS[key].changes in capsys.readouterr().err
            continue
        value = KEYS[key].value
        by_flag = run_classify(data, plans, KEYS_BASE, flag, str(value))
        by_key = run_classify(data, plans, {**KEYS_BASE, key: value})
        assert changed(by_flag, by_key) == set(), flag
    plain, resumed = (run_classify(data, plans, KEYS_BASE, *more) for more in ((), ("--resume",)))
    assert changed(plain, resumed) == {"resume"}


# What every command has.


@pytest.mark.parametrize("command", ["train contrastive", "train classify"])
def test_general_flags_are_obeyed(command, data, plans, capsys, monkeypatch):
    chosen = []
    monkeypatch.setattr(cli, "choose_backend", chosen.append)
    options = {name: [value] for name, value in PAIR_BASE.items()}

    def run(*more):
        capsys.readouterr()
        if command == "train contrastive":
            words = [word for pair in options.items() for word in (pair[0], *pair[1])]
        else:
            Path(data, "config.json").write_text(json.dumps({k: fill(v, data) for k, v in KEYS_BASE.items()}))
            words = ["--config", "{config.json}"]
        cli.main([*command.split(), *fill(words, data), *more])
        return capsys.readouterr()

    assert "Finished" in run().out
    assert json.loads(run("--json").out)["finished"] is True
    assert run("--backend", "jax") and chosen == [None, None, "jax"]
    wrong = ["--epochs", "1", "--train-data", "nowhere.csv"]
    assert "Traceback" not in run(*wrong).err and "Traceback" in run(*wrong, "--traceback").err
