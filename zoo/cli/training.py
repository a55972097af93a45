"""The training commands. Their flags are the fields of a mode's config, `zoo.training.config`."""

import argparse
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, get_args

from zoo.cli.command import Argument, Command, argument, positive
from zoo.training.config import (
    OPEN_CLIP,
    ClassifierConfig,
    ContrastiveConfig,
    PretrainConfig,
    TrainConfig,
    describe_option,
    options_of,
    value_type,
)

RESUME = argument("--resume", action="store_true", help="resume from the newest checkpoint in the output folder")
CLASSIFY = (
    *("train_data", "validation_data", "data_root", "weights", "output", "epochs", "layer_decay"),
    "checkpoint_activations",
    *("devices", "model_axis", "coordinator", "processes", "process_id", "seed"),
)
LOCAL_PROCESSES = argument(
    "--local-processes",
    type=positive,
    default=argparse.SUPPRESS,
    metavar="N",
    help="train in N connected processes on this machine",
)


def flags(config: type[TrainConfig]) -> tuple[Argument, ...]:
    """A flag for each option of a config."""
    return tuple(_flag(field, default=field.default) for field in options_of(config))


def overrides(config: type[TrainConfig], names: tuple[str, ...]) -> tuple[Argument, ...]:
    """A flag for each of these options that replaces the value in a JSON config."""
    fields = {field.name: field for field in options_of(config)}
    return tuple(_flag(fields[name], default=None) for name in names)


def _flag(field: dataclasses.Field, default: Any) -> Argument:
    flags = [_as_flag(name) for name in (field.name, *field.metadata["aliases"])]
    values = field.metadata["values"]
    (kind, *_) = get_args(value_type(field)) or (value_type(field),)
    text = describe_option(field).replace("%", "%%")
    if kind is bool and values:
        return argument(*flags, nargs="?", const=True, default=False, type=one_of(values), metavar="latest", help=text)
    if kind is bool:
        return argument(*flags, action="store_true", default=default, help=text)
    parse: Callable[[str], Any] | None = None if kind is str else kind
    if values:
        parse = functools.partial(lambda names, value: names.get(value, value), values)
    if kind is int and field.metadata["minimum"] == 1:
        parse = positive
    options = {"type": parse, "default": default, "help": text}
    options |= {key: field.metadata[key] for key in ("metavar", "choices") if field.metadata[key]}
    if default is dataclasses.MISSING:
        options |= {"required": True, "default": None}
    return argument(*flags, **{key: value for key, value in options.items() if value is not None})


def _as_flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def one_of(values: dict[str, Any]) -> Callable[[str], Any]:
    """Return a parser of the names in `values`."""

    def parse(text):
        if text not in values:
            allowed = ", ".join(values)
            raise argparse.ArgumentTypeError(f"{text!r} is not {allowed}; a run resumes in its --output folder")
        return values[text]

    return parse


def _open_clip_flags() -> tuple[Argument, ...]:
    """Flags for the options of open_clip that are not one of ours; absent unless given."""
    kinds: dict[type, dict[str, Any]] = {bool: {"action": "store_true"}, int: {"type": positive, "metavar": "N"}}
    return tuple(
        argument(_as_flag(name), default=argparse.SUPPRESS, help=text, **kinds.get(kind, {"metavar": name.upper()}))
        for name, (kind, text) in OPEN_CLIP.items()
    )


COMMANDS = {
    "train contrastive": Command(
        "train a CLIP model on captioned images",
        "zoo.training.contrastive:run",
        "zoo.training.loop:to_text",
        (*flags(ContrastiveConfig), *_open_clip_flags(), LOCAL_PROCESSES),
        backend="training",
        examples=("zoo train contrastive --model convnext_v2_tiny --train-data captions.csv",),
    ),
    "train classify": Command(
        "train a classifier from a JSON config",
        "zoo.training.classify:run",
        "zoo.training.loop:to_text",
        (
            argument("--config", required=True, metavar="JSON", help="e.g. examples/config/convnext_example.json"),
            *overrides(ClassifierConfig, CLASSIFY),
            argument(
                "--allow-code",
                action="store_true",
                help='let the config name a function to import as its loss, "package.function"',
            ),
            RESUME,
            LOCAL_PROCESSES,
        ),
        backend="training",
        examples=("zoo train classify --config examples/config/convnext_example.json --epochs 5",),
    ),
    "pretrain": Command(
        "pretrain a ConvNeXt V2 on unlabelled images (masked autoencoder)",
        "zoo.training.pretrain:pretrain",
        "zoo.training.loop:to_text",
        (*flags(PretrainConfig), LOCAL_PROCESSES),
        backend="training",
        examples=("zoo pretrain --model convnextv2_tiny --train-data photos",),
    ),
    "demo": Command(
        "train a small CLIP model on handwritten digits, evaluate it and write a report",
        "zoo.demo:run_demo",
        "zoo.cli.command:show_nothing",
        (
            argument("--output", default="demo-output", metavar="DIR", help="output folder (default demo-output)"),
            argument("--seed", type=int, default=0, help="seed of weights, captions and augmentation (default 0)"),
            argument("--epochs", type=int, default=None, help="training epochs (default 10)"),
            argument(
                "--serve", action="store_true", help="serve the model at the end, with a page to search the digits"
            ),
        ),
        backend="training",
    ),
}
