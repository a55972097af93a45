"""Every flag of training changes what a run would do, and changes no more than it should.

A run is described just before its first step. Each row of the tables says which parts of that description its flag
changes, and no flag may be missing. That they change results too, the other files examine; a classifier's keys, and
its flags with them, are in test_training_keys.
"""

import json
from pathlib import Path

import keras
import pytest
from training_plan import KEYS_BASE, Row, changed, fill, flags_of, record, write_data

from zoo import cli

pytestmark = [pytest.mark.backend, pytest.mark.once]

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def plans(monkeypatch):
    """A list to which each started run adds its description, in place of training."""
    return record(monkeypatch)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("flags"))


# Contrastive training.

PAIR_BASE = {
    **{
        "--model": "convnext_v2_atto",
        "--train-data": "{a/train.csv}",
        "--output": "{out}",
        "--batch-size": "8",
        "--epochs": "2",
    },
    **{"--threads": "1", "--context-length": "12", "--image-size": "16", "--warmup-steps": "1"},
}
VALIDATION = ("--validation-data", "{a/train.csv}")
TEACHER = ("--teacher", "{pair.safetensors}")
CONTRASTIVE = {
    "--model": Row(["convnext_v2_femto"], {"shapes", "weights", "identity"}),
    "--train-data": Row(["{b/train.csv}"], {"records", "images", "tokens", "rate", "identity"}),
    "--output": Row(["{other}"], {"output"}),
    "--image-key": Row(["other_image"], {"records", "images", "identity"}),
    "--caption-key": Row(["other_text"], {"records", "tokens", "identity"}),
    "--label-key": Row(["kind"], {"records", "labels", "identity"}),
    "--data-root": Row(["{b}"], {"images"}),
    "--batch-size": Row(["4"], {"batch", "images", "tokens", "rate", "identity"}),
    "--epochs": Row(["3"], {"run epochs", "rate", "identity"}),
    "--image-size": Row(["32"], {"shapes", "weights", "batch", "images", "identity"}),
    "--stem-stride": Row(["2"], {"stride", "identity"}, ("--model", "convnext_v2_pico")),
    "--weights": Row(["{pair.safetensors}"], {"weights", "identity"}),
    "--loss": Row(["siglip"], {"loss", "shapes", "weights", "trainable", "identity"}),
    "--learning-rate": Row(["0.1"], {"rate", "identity"}),
    "--weight-decay": Row(["0.5"], {"decay", "identity"}),
    "--warmup-steps": Row(["2"], {"rate", "identity"}),
    "--clip-norm": Row(["0"], {"clip", "identity"}),
    "--accumulate": Row(["2"], {"chunks", "identity"}),
    "--precision": Row(["float16"], {"precision", "guard", "identity"}),
    "--checkpoint-activations": Row([], {"recomputed"}),
    "--ema": Row(["0.9"], {"guard", "identity"}),
    "--lock-image": Row([], {"trainable", "identity"}),
    "--lock-text": Row([], {"trainable", "identity"}),
    "--context-length": Row(["6"], {"tokens", "identity"}),
    "--validation-data": Row(["{b/train.csv}"], {"validation"}),
    "--validate-every": Row(["1"], {"run validate_every"}),
    "--classes": Row(["digits"], {"validation"}, (*VALIDATION, "--label-key", "kind")),
    "--teacher": Row(["{pair.safetensors}"], {"teacher", "identity"}),
    "--distill-weight": Row(["0.5"], {"distill_weight", "identity"}, TEACHER),
    "--save-every": Row(["1"], {"run save_every"}),
    "--log-every": Row(["1"], {"run log_every"}),
    "--report-to": Row(["tensorboard"], {"run report_to"}),
    "--max-skipped": Row(["3"], {"run max_skipped"}),
    "--max-bad-fraction": Row(["0.5"], {"bad"}),
    "--threads": Row(["2"], {"threads"}),
    "--seed": Row(["1"], {"weights", "images", "tokens", "identity"}),
    "--resume": Row([], {"resume"}),
}


# Masked pretraining.

IMAGES_BASE = {
    **{"--model": "convnextv2_atto", "--train-data": "{a/train.csv}", "--output": "{out}", "--batch-size": "8"},
    **{"--epochs": "2", "--threads": "1", "--image-size": "16", "--stem-stride": "2", "--decoder-dim": "8"},
    **{"--warmup-steps": "1"},
}
SHAPES = {"shapes", "weights", "identity"}
PRETRAIN = {
    "--model": Row(["convnextv2_femto"], SHAPES),
    "--train-data": Row(["{b/train.csv}"], {"records", "images", "rate", "identity"}),
    "--output": Row(["{other}"], {"output"}),
    "--image-key": Row(["other_image"], {"records", "images", "identity"}),
    "--data-root": Row(["{b}"], {"images"}),
    "--batch-size": Row(["4"], {"batch", "images", "rate", "identity"}),
    "--epochs": Row(["3"], {"run epochs", "rate", "identity"}),
    "--image-size": Row(["24"], {"batch", "images", "mask", "identity"}),
    "--stem-stride": Row(["1"], SHAPES | {"stride", "mask"}),
    "--weights": Row(["{backbone.safetensors}"], {"weights", "identity"}),
    "--mask-ratio": Row(["0.3"], {"mask", "identity"}),
    "--decoder-dim": Row(["12"], SHAPES),
    "--decoder-depth": Row(["2"], SHAPES | {"trainable", "layers"}),
    "--crop-scale": Row(["0.9"], {"augment", "images", "identity"}),
    "--flip": Row(["1"], {"augment", "images", "identity"}),
    "--learning-rate": Row(["0.1"], {"rate", "identity"}),
    "--weight-decay": Row(["0.5"], {"decay", "identity"}),
    "--warmup-steps": Row(["2"], {"rate", "identity"}),
    "--clip-norm": Row(["0.5"], {"clip", "identity"}),
    "--precision": Row(["float16"], {"precision", "guard", "identity"}),
    "--checkpoint-activations": Row([], {"recomputed"}),
    "--ema": Row(["0.9"], {"guard", "identity"}),
    "--validation-data": Row(["{b/train.csv}"], {"validation"}),
    "--validate-every": Row(["1"], {"run validate_every"}),
    "--save-every": Row(["1"], {"run save_every"}),
    "--log-every": Row(["1"], {"run log_every"}),
    "--report-to": Row(["tensorboard"], {"run report_to"}),
    "--max-skipped": Row(["3"], {"run max_skipped"}),
    "--max-bad-fraction": Row(["0.5"], {"bad"}),
    "--threads": Row(["2"], {"threads"}),
    "--seed": Row(["1"], {"weights", "images", "identity"}),
    "--resume": Row([], {"resume"}),
}

# Both.

REFUSED = {  # one device and one process are here; test_training_devices and test_training_processes have more
    "--devices": (["4"], "devices=4"),
    "--model-axis": (["4"], "model_axis=4"),
    "--coordinator": (["127.0.0.1:1"], "coordinator, processes and process_id belong together"),
    "--processes": (["2"], "coordinator, processes and process_id belong together"),
    "--process-id": (["1"], "coordinator, processes and process_id belong together"),
}
COMMANDS = {"train contrastive": (PAIR_BASE, CONTRASTIVE), "pretrain": (IMAGES_BASE, PRETRAIN)}
FLAGS = [(command, flag) for command, (_, rows) in COMMANDS.items() for flag in rows]


@pytest.fixture(scope="module")
def unchanged():
    """Descriptions of the runs without a change, by their arguments: most flags are compared with the same one."""
    return {}


def run(data, plans, command, flags=None, beside=()):
    """The description of a run with these flags in place of the base's; None if it was refused."""
    options = {name: [value] for name, value in COMMANDS[command][0].items()} | (flags or {})
    words = [word for name, values in options.items() for word in (name, *values)]
    code = cli.main([*command.split(), *fill([*words, *beside], data), "--backend", keras.backend.backend()])
    return plans.pop() if code == 0 else None


@pytest.mark.parametrize(("command", "flag"), FLAGS)
def test_each_flag_has_its_effect(data, plans, unchanged, command, flag):
    value, changes, beside = COMMANDS[command][1][flag]
    if (command, beside) not in unchanged:
        unchanged[command, beside] = run(data, plans, command, {}, beside)
    assert changed(unchanged[command, beside], run(data, plans, command, {flag: value}, beside)) == changes


@pytest.mark.parametrize("command", COMMANDS)
def test_no_flag_is_missing(command):
    assert flags_of(command) - {"--local-processes"} == COMMANDS[command][1].keys() | REFUSED.keys()


@pytest.mark.parametrize("command", COMMANDS)
def test_unsupported_flags_are_refused(data, plans, command, capsys):
    for flag, (value, message) in REFUSED.items():
        assert run(data, plans, command, {flag: value}) is None
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_its_default_output_folder(command, data, plans, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [word for pair in COMMANDS[command][0].items() if pair[0] != "--output" for word in pair]
    assert cli.main([*command.split(), *fill(words, data), "--backend", keras.backend.backend()]) == 0
    assert plans.pop()["output"] == f"{command.split()[-1]}-output"


@pytest.mark.parametrize("command", [*COMMANDS, "train classify"])
def test_general_flags_work(command, data, plans, capsys, monkeypatch):
    chosen = []
    monkeypatch.setattr(cli, "choose_backend", lambda name, trains: chosen.append((name, trains)))
    if command in COMMANDS:
        words = [word for pair in COMMANDS[command][0].items() for word in pair]
    else:
        Path(data, "config.json").write_text(json.dumps({k: fill(v, data) for k, v in KEYS_BASE.items()}))
        words = ["--config", "{config.json}"]

    def say(*more):
        capsys.readouterr()
        cli.main([*command.split(), *fill(words, data), *more])
        return capsys.readouterr()

    assert "Finished" in say().out
    assert json.loads(say("--json").out)["finished"] is True
    assert say("--backend", "jax") and chosen == [(None, True), (None, True), ("jax", True)]
    wrong = ["--epochs", "1", "--train-data", "nowhere.csv"]
    assert "Traceback" not in say(*wrong).err and "Traceback" in say(*wrong, "--traceback").err
