"""Training options: one declaration gives the Python signature, the flags and the config keys."""

import argparse
import inspect

import pytest

import zoo
from zoo import cli
from zoo.training.config import (
    KINDS,
    ClassifierConfig,
    ContrastiveConfig,
    PretrainConfig,
    accepts,
    describe_option,
    options_of,
)

SHARED = {  # option: default, of every mode
    **{"image_key": "filepath", "data_root": None, "batch_size": 32, "epochs": 10, "image_size": None},
    **{"stem_stride": None, "weights": None, "weight_decay": 0.05, "warmup_steps": None, "precision": "float32"},
    **{"checkpoint_activations": False, "ema": None, "validation_data": None, "validate_every": None},
    **{"devices": None, "model_axis": None, "save_every": None, "report_to": None, "log_every": 10, "max_skipped": 10},
    **{"max_bad_fraction": 0.01, "threads": None, "seed": 0},
    **{"coordinator": None, "processes": None, "process_id": None},
}
MODES = {
    "train contrastive": {
        **SHARED,
        **{"output": "contrastive-output", "caption_key": "caption", "label_key": None, "loss": "clip"},
        **{"learning_rate": 5e-4, "clip_norm": 1.0, "accumulate": 1, "lock_image": False, "lock_text": False},
        **{"context_length": 77, "classes": None, "teacher": None, "distill_weight": 1.0, "resume": False},
    },
    "pretrain": {
        **SHARED,
        **{"output": "pretrain-output", "mask_ratio": 0.6, "decoder_dim": 512, "decoder_depth": 1, "crop_scale": 0.2},
        **{"flip": 0.5, "learning_rate": 1e-3, "clip_norm": None, "resume": False},
    },
}
CLASSIFIER = {
    **SHARED,
    **{"model_type": "resnet", "model": None, "num_labels": None, "drop_path_rate": 0.0, "dropout_rate": 0.0},
    **{"train_data": "", "label_key": "label", "output": "classify-output", "learning_rate": 1e-3, "clip_norm": None},
    **{"layer_decay": None, "loss": "cross_entropy", "label_smoothing": 0.0, "focal_gamma": 2.0, "class_weights": None},
    **{"mixup": 0.0, "cutmix": 0.0, "crop_scale": None, "flip": 0.5, "rand_augment": False, "random_erasing": 0.0},
    **{"freeze_backbone": False, "early_stopping": None},
}


def parse(command, *arguments):
    """Return the options that the command's function would be called with."""
    options = vars(cli.build_parser().parse_args([*command.split(), *arguments]))
    return {name: options[name] for name in options.keys() - {"command", "backend", "json", "traceback"}}


@pytest.mark.parametrize(
    ("command", "config"), [("train contrastive", ContrastiveConfig), ("pretrain", PretrainConfig)]
)
def test_flags_and_defaults_are_those_of_the_config(command, config):
    found = parse(command, "--model", "m", "--train-data", "d")
    assert found == {"model": "m", "train_data": "d", **MODES[command]}
    assert vars(config(**found)) == found


def test_keys_and_defaults_of_a_classifier():
    assert {field.name: field.default for field in options_of(ClassifierConfig)} == CLASSIFIER
    assert KINDS.keys() == CLASSIFIER.keys()
    assert KINDS["epochs"] is int and KINDS["ema"] == float | None and KINDS["output"] is str


def test_flags_of_a_classifier_replace_keys():
    found = parse("train classify", "--config", "c.json", "--epochs", "3")
    names = {"train_data", "validation_data", "weights", "output", "layer_decay", "devices", "model_axis", "seed"}
    names |= {"checkpoint_activations", "coordinator", "processes", "process_id", "data_root"}
    assert found == {"config": "c.json", "resume": False, "allow_code": False, "epochs": 3, **dict.fromkeys(names)}


def test_flags_check_their_values(capsys):
    for flags, message in (
        (["--epochs", "0"], "must be a positive integer"),
        (["--loss", "l1"], "invalid choice: 'l1'"),
        (["--stem-stride", "3"], "invalid choice: 3"),
        (["--epoch", "x"], ""),
    ):
        with pytest.raises(SystemExit):
            parse("train contrastive", "--model", "m", "--train-data", "d", *flags)
        assert message in capsys.readouterr().err


@pytest.mark.backend
@pytest.mark.once
@pytest.mark.parametrize("name", ["train", "pretrain"])
def test_functions_show_their_options_and_refuse_others(name):
    function, command = getattr(zoo, name), {"train": "train contrastive", "pretrain": "pretrain"}[name]
    parameters = inspect.signature(function).parameters
    assert list(parameters)[:2] == ["model", "train_data"]
    options = {n: p.default for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    assert options == MODES[command]
    with pytest.raises(TypeError, match="no option 'learning_rat'; nearest is 'learning_rate'"):
        function("m", "d", learning_rat=1.0)
    with pytest.raises(TypeError, match="train_data"):
        function("m")
    assert "learning_rate: peak learning rate" in function.__doc__


def test_a_decorated_function_gets_its_arguments_and_documentation():
    @accepts(PretrainConfig)
    def run(model, train_data, **options):
        """Do it.

        Raises:
            ValueError: never.
        """
        return model, train_data, options

    assert run("m", train_data="d", seed=1) == ("m", "d", {"seed": 1})
    assert run.__doc__.startswith("Do it.\n\nArgs:\n    model: ") and run.__doc__.endswith("ValueError: never.")


def test_help_names_the_default():
    fields = {field.name: field for field in options_of(ContrastiveConfig)}
    assert describe_option(fields["epochs"]).endswith("(default 10)")
    assert "(default" not in describe_option(fields["resume"]) + describe_option(fields["ema"])
    parser = argparse.ArgumentParser()
    for flags, options in cli.COMMANDS["train contrastive"].arguments:
        parser.add_argument(*flags, **options)
    assert "EMA decay" in parser.format_help()
