"""Every key of a classifier's configuration changes what a run would do, and no more than it should; so do the flags.

A run is described just before its first step. Each row of the tables says which parts of that description its key
changes, and no key may be missing. That they change results too, test_training_classify examines.
"""

import json
from pathlib import Path

import keras
import pytest
from training_plan import KEYS_BASE, Row, changed, fill, flags_of, record, write_data

from zoo import cli
from zoo.training import config

pytestmark = [pytest.mark.backend, pytest.mark.once]

ROOT = Path(__file__).resolve().parent.parent
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
    "epochs": Row(3, {"run epochs", "rate", "identity"}),
    "image_size": Row(16, {"batch", "images", "identity"}),
    "learning_rate": Row(0.1, {"rate", "identity"}),
    "weight_decay": Row(0.5, {"decay", "identity"}),
    "warmup_steps": Row(2, {"rate", "identity"}),
    "layer_decay": Row(0.5, {"factors", "identity"}),
    "clip_norm": Row(1.0, {"clip", "identity"}),
    "precision": Row("float16", {"precision", "guard", "identity"}),
    "checkpoint_activations": Row(True, {"recomputed"}),
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
    "early_stopping": Row(2, {"should_stop", "identity"}, {"validation_data": "{more}"}),
    "save_every": Row(1, {"run save_every"}),
    "validate_every": Row(1, {"run validate_every"}),
    "log_every": Row(1, {"run log_every"}),
    "report_to": Row("tensorboard", {"run report_to"}),
    "max_skipped": Row(3, {"run max_skipped"}),
    "max_bad_fraction": Row(0.5, {"bad"}),
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
    "layer_norm_eps": Row(1e-3, "layer_norm_eps is 0.001. Allowed: 1e-6"),
    "devices": Row(4, "devices=4"),
    "model_axis": Row(4, "model_axis=4"),
    "coordinator": Row("127.0.0.1:1", "coordinator, processes and process_id belong together"),
    "processes": Row(2, "coordinator, processes and process_id belong together"),
    "process_id": Row(1, "coordinator, processes and process_id belong together"),
    "num_channels": Row(1, "num_channels is 1; images are read as RGB"),
    "num_stages": Row(3, "num_stages is 3, depths are [1, 1]"),
    "downsample_in_first_stage": Row(True, "downsample_in_first_stage"),
    "downsample_in_bottleneck": Row(True, "downsample_in_bottleneck"),
}


@pytest.fixture
def plans(monkeypatch):
    """A list to which each started run adds its description, in place of training."""
    return record(monkeypatch)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def described():
    """Descriptions of runs without flags, by their values: many tests compare with the same ones."""
    return {}


def of_keys(data, plans, described, values):
    key = json.dumps(values)
    if key not in described:
        described[key] = run_classify(data, plans, values)
    return described[key]


def run_classify(data, plans, values, *flags):
    path = Path(data, "config.json")
    path.write_text(json.dumps({k: fill(v, data) for k, v in values.items() if v is not None}))
    backend = ["--backend", keras.backend.backend()]
    code = cli.main(["train", "classify", "--config", str(path), *fill(list(flags), data), *backend])
    return plans.pop() if code == 0 else None


@pytest.mark.parametrize("key", [*KEYS, *RESNET_KEYS])
def test_each_key_has_its_effect(data, plans, described, key):
    value, changes, beside = {**KEYS, **RESNET_KEYS}[key]
    base = {**KEYS_BASE, **dict(beside)}
    one, other = (of_keys(data, plans, described, values) for values in (base, base | {key: value}))
    assert changed(one, other) == changes


@pytest.mark.parametrize("key", REFUSED_KEYS)
def test_unsupported_keys_are_refused(data, plans, key, capsys):
    base = {**KEYS_BASE, **RESNET_BASE} if key.startswith("downsample") else KEYS_BASE
    assert run_classify(data, plans, {**base, key: REFUSED_KEYS[key].value}) is None
    assert REFUSED_KEYS[key].changes in capsys.readouterr().err


def test_no_key_is_missing():
    assert config.KINDS.keys() | config.ARCHITECTURE.keys() == KEYS.keys() | RESNET_KEYS.keys() | REFUSED_KEYS.keys()


def test_a_flag_of_classification_equals_its_key(data, plans, described, capsys):
    """Every flag but four is named as a key, and the run is that of a file with this value."""
    flags = flags_of("train classify") - {"--allow-code", "--config", "--local-processes", "--resume"}
    assert flags >= {"--epochs", "--seed", "--output", "--train-data", "--validation-data", "--layer-decay"}
    for flag in sorted(flags):
        key = flag.removeprefix("--").replace("-", "_")
        if key in REFUSED_KEYS:
            assert run_classify(data, plans, KEYS_BASE, flag, str(REFUSED_KEYS[key].value)) is None
            assert REFUSED_KEYS[key].changes in capsys.readouterr().err
            continue
        value = KEYS[key].value
        by_flag = run_classify(data, plans, KEYS_BASE, flag, *([] if value is True else [str(value)]))
        by_key = of_keys(data, plans, described, {**KEYS_BASE, key: value})
        assert changed(by_flag, by_key) == set(), flag
    plain, resumed = of_keys(data, plans, described, KEYS_BASE), run_classify(data, plans, KEYS_BASE, "--resume")
    assert changed(plain, resumed) == {"resume"}
