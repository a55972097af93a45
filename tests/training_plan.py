"""What a run is about to do, just before its first step: what the tests of flags and keys compare."""

import argparse
import csv
import json
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
from data_writers import WORDS, write_class_folders, write_csv

import zoo
from clip import ConvNeXt, Pair, Text, ViT, create_clip
from convnext import Variant, create_convnext_v2
from zoo import cli
from zoo.data import Batches
from zoo.data.records import digest
from zoo.training import classify, config, contrastive, pretrain, setup
from zoo.training.loop import Outcome

TEXT = Text(width=16, heads=2, layers=1)
PAIRS = {
    "convnext_v2_atto": Pair(8, 32, ViT(16, 1, 8, head_width=8), TEXT),
    "convnext_v2_femto": Pair(8, 32, ViT(24, 1, 8, head_width=8), TEXT),
    "convnext_v2_pico": Pair(8, 32, ConvNeXt("convnextv2", Variant((1,), (8,))), TEXT),
}
BACKBONES = {"convnextv2_atto": Variant((1, 1), (8, 8)), "convnextv2_femto": Variant((1, 1), (8, 16))}
KEYS_BASE = {
    **{"model_type": "convnextv2", "hidden_sizes": [8, 8], "depths": [1, 1], "stem_stride": 2, "image_size": 8},
    **{"batch_size": 8, "epochs": 2, "threads": 1, "train_data": "{classes}", "output": "{out}", "warmup_steps": 1},
}
GENERAL = {"--help", "--backend", "--json", "--traceback"}  # of every command


class Row(NamedTuple):
    """Arguments of a flag, or the value of a key; what it changes; what stands beside it in both runs."""

    value: object
    changes: set[str]
    beside: object = ()


DETAILS = ("rate", "activation", "epsilon")  # of a layer


def describe(model, batches, output, run, *, arrange=None, validate=None, should_stop=None, identity, resume, schedule):
    """{part: how it is}, of what `fit_resumable` is given."""
    assert schedule.startswith(f"{run.epochs * batches.steps} steps; the learning rate ")
    guard, encoder = model.optimizer, getattr(model, "image_encoder", None) or getattr(model, "encoder", model)
    trainable = {id(v) for v in model.trainable_variables}
    first = batches[0]
    given = arrange(first) if arrange else first
    names = given if isinstance(given, dict) else ()  # a pair's batch has names, a classifier's is (images, targets)
    held_out = validate and next(a for a in (*validate.args, validate.func) if hasattr(a, "batches") or is_batches(a))
    examined = held_out if held_out is None or is_batches(held_out) else held_out.batches
    return {
        "shapes": [tuple(w.shape) for w in model.weights],
        "layers": [[getattr(layer, name, None) for name in DETAILS] for layer in model._flatten_layers()],
        "stride": next(c.strides for c in encoder._flatten_layers() if isinstance(c, keras.layers.Conv2D)),
        "weights": digest([np.asarray(w) for w in model.get_weights() if w.dtype == np.float32]),
        "trainable": [id(v) in trainable for v in model.weights],
        "precision": sorted({layer.dtype_policy.name for layer in encoder.layers}),
        "recomputed": [getattr(part, "checkpoint_activations", False) for part in (model, *model.layers)].count(True)
        > 0,
        "loss": loss_name(model),
        "mask": getattr(model, "kept", None),
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
        **{f"run {name}": value for name, value in vars(run).items()},
        "validation": examined and (examined.dataset.fingerprint, getattr(held_out, "class_names", None)),
        "should_stop": should_stop and should_stop.__closure__[0].cell_contents,
        "output": str(output),
        "resume": resume,
        "identity": digest([json.dumps(identity, sort_keys=True), batches.fingerprint]),
    }


def is_batches(value):
    return isinstance(value, Batches)


def loss_name(model):
    if hasattr(model, "contrastive_loss"):
        return model.contrastive_loss
    return getattr(model.loss, "get_config", lambda: model.loss)()


def record(monkeypatch):
    """A list to which each started run adds its description, in place of training."""
    found = []

    def fit_resumable(*arguments, **options):
        found.append(describe(*arguments, **options))
        return Outcome(True, 0, 0, 0)

    monkeypatch.setattr(setup, "fit_resumable", fit_resumable)
    for module in (contrastive, classify, pretrain):
        monkeypatch.setattr(module, "write_model", lambda *_: Path("model.safetensors"))
    monkeypatch.setattr(pretrain, "write_report", lambda *_: None)
    monkeypatch.setattr(classify, "with_softmax", lambda *_: None)
    monkeypatch.setattr(contrastive.registry, "create_model", create_model)
    return found


def create_model(name, *, weights=None, **options):
    """In place of the registry's: the small models above."""
    create, rows = (create_clip, PAIRS) if name in PAIRS else (create_convnext_v2, BACKBONES)
    model = create(rows[name], **options)
    if weights is not None:
        zoo.load_weights(model, weights)
    return model


def changed(one, other):
    return {part for part in one if one[part] != other[part]}


def write_data(folder):
    """train.csv with more columns than are needed, the digits by class, weights, a teacher; the folder."""
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
    write_weights(folder)
    return folder


def write_weights(folder):
    """Of a pair, a classifier and a backbone."""
    keras.utils.set_random_seed(9)
    zoo.save(create_clip(PAIRS["convnext_v2_atto"], image_size=16), folder / "pair.safetensors")
    keras.utils.set_random_seed(9)
    start = config.parse_config({**KEYS_BASE, "train_data": "d", "output": "o", "num_labels": 10})
    model, description = classify.create_classifier(start, 10)
    zoo.save(model, folder / "classifier.safetensors", preprocess=description.preprocess)
    backbone = create_convnext_v2(
        BACKBONES["convnextv2_atto"], input_shape=(16, 16, 3), stem_stride=2, include_top=False
    )
    zoo.save(backbone, folder / "backbone.safetensors")


def fill(arguments, folder):
    """Names in braces become paths in the folder of data."""
    if isinstance(arguments, str):
        return arguments.replace("{", f"{folder}/").replace("}", "")
    return [fill(argument, folder) for argument in arguments] if isinstance(arguments, list | tuple) else arguments


def flags_of(command):
    """Our spelling of each flag that the parser of a command has; flags of open_clip alone are left out."""
    parser = cli.build_parser()
    for word in command.split():
        parser = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction)).choices[word]
    ours = [a for a in parser._actions if a.option_strings and a.dest not in config.OPEN_CLIP]
    flags = {next(flag for flag in action.option_strings if flag.startswith("--")) for action in ours}
    assert flags > GENERAL
    return flags - GENERAL
