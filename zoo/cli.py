"""The command `zoo`: a table from commands to functions. Each function is imported when its command runs."""

import argparse
import contextlib
import dataclasses
import importlib
import json
import sys
import traceback
from typing import NamedTuple

from zoo.env import BACKENDS, choose_backend

BAD_INPUT = 2


class Command(NamedTuple):
    """A row: what the help says, the function ("module:name") and the one that shows its result, its arguments.

    `uses_backend` chooses Keras' backend before the function is imported and adds --backend; `succeeded` names the
    function that tells from the result whether the exit code is 0 or 1.
    """

    summary: str
    function: str
    show: str
    arguments: tuple = ()
    uses_backend: bool = False
    succeeded: str | None = None


def argument(*flags, **options):
    return flags, options


def positive(text):
    """An integer of at least 1, for argparse."""
    number = int(text) if text.lstrip("+-").isdigit() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer, got {text!r}")
    return number


SEED = argument("--seed", type=int, default=0, help="of the weights, captions and augmentation (default 0)")

COMMANDS = {
    "list": Command(
        "names of the models",
        "zoo.registry:list_models",
        "zoo.cli:show_list",
        (argument("pattern", nargs="?", default="*", help="as in a shell, e.g. 'convnextv2_*'"),),
    ),
    "info": Command(
        "parameters, FLOPs, input, preprocessing, licence of a model",
        "zoo.registry:model_info",
        "zoo.cli:show_info",
        (argument("name", help="e.g. convnextv2_tiny, clip/ViT-B-32"),),
    ),
    "demo": Command(
        "train a pair on handwritten digits, classify them from sentences, write a report",
        "zoo.demo:run_demo",
        "zoo.cli:show_nothing",
        (
            argument(
                "--output", default="demo-output", metavar="DIR", help="folder of the report (default demo-output)"
            ),
            SEED,
            argument("--epochs", type=int, default=None, help="of training (default: the demo's own)"),
        ),
        uses_backend=True,
    ),
    "bench": Command(
        "time a classifier beside keras.applications' model of the same size",
        "zoo.bench:bench_classifier",
        "zoo.bench:to_text",
        (
            argument("name", help="e.g. convnext_tiny"),
            argument("--batch-size", type=positive, default=8),
            argument("--image-size", type=positive, default=224),
            argument("--rounds", type=positive, default=5, help="timed calls of each (default 5)"),
            argument("--train", action="store_true", help="time a training step too"),
        ),
        uses_backend=True,
    ),
    "parity": Command(
        "compare our models with reference outputs written by tests/oracles.py",
        "zoo.parity:parity",
        "zoo.parity:to_markdown",
        (
            argument("directory", help="folder of cases"),
            argument("--pattern", default="*", help="of case names, e.g. 'timm-*'"),
        ),
        uses_backend=True,
        succeeded="zoo.parity:all_within",
    ),
    "export-weights": Command(
        "write a checkpoint that timm, transformers, torchvision, open_clip or facebookresearch's code loads",
        "zoo.exchange:export_weights",
        "builtins:str",
        (
            argument("model", help="a saved file, or a name with weights"),
            argument("path", metavar="OUT", help=".safetensors file, or a folder for weights and configuration"),
            argument("--format", required=True, metavar="LIBRARY", help="timm, transformers, torchvision, …"),
        ),
        uses_backend=True,
    ),
    "doctor": Command(
        "examine the installation",
        "zoo.doctor:examine",
        "zoo.doctor:to_text",
        (argument("--backend", choices=BACKENDS, help="to run a model on"),),
        succeeded="zoo.doctor:all_passed",
    ),
}


def main(argv=None):
    """Runs one command; returns 0, 1 when what it looked at failed, or 2 on bad input with one line saying why."""
    options = vars(build_parser().parse_args(argv))
    command = COMMANDS[options.pop("command")]
    as_json, show_traceback = options.pop("json"), options.pop("traceback")
    sys.stdout.reconfigure(errors="replace")  # a Windows pipe may not know "→" or "×"
    progress = sys.stderr if as_json else sys.stdout  # with --json, stdout holds nothing else
    try:
        if command.uses_backend:
            choose_backend(options.pop("backend"))
        with contextlib.redirect_stdout(progress):
            result = resolve(command.function)(**options)
    except (ValueError, TypeError, OSError, ImportError) as error:
        if show_traceback:
            traceback.print_exc()
        return refuse(error)
    text = to_json(result) if as_json else resolve(command.show)(result)
    with contextlib.suppress(BrokenPipeError):  # the reader, such as `head`, may have seen enough
        print(text, end="\n" if text else "", flush=True)
    return 0 if command.succeeded is None or resolve(command.succeeded)(result) else 1


def refuse(error):
    """One line on stderr, whatever the message's own lines; the exit code of bad input."""
    print(f"zoo: error: {' '.join(str(error).split())}", file=sys.stderr)
    return BAD_INPUT


class Parser(argparse.ArgumentParser):
    """argparse without the usage lines above an error."""

    def error(self, message):
        sys.exit(refuse(message))


def build_parser():
    parser = Parser(prog="zoo", description="ConvNeXt, ResNet and CLIP models in Keras 3.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        sub = commands.add_parser(name, help=command.summary, description=command.summary)
        for flags, options in command.arguments:
            sub.add_argument(*flags, **options)
        if command.uses_backend:
            sub.add_argument(
                "--backend", choices=BACKENDS, help="default: $KERAS_BACKEND, else the first one installed"
            )
        sub.add_argument("--json", action="store_true", help="print the result for a program to read")
        sub.add_argument("--traceback", action="store_true", help="on an error, show where it arose")
    return parser


def resolve(path):
    """The function "module:name"."""
    module, name = path.split(":")
    return getattr(importlib.import_module(module), name)


def to_json(result):
    """JSON of dataclasses, named tuples, and lists of them."""
    return json.dumps(_plain(result), indent=1, ensure_ascii=False)


def _plain(value):
    if dataclasses.is_dataclass(value):
        return dataclasses.asdict(value)
    if hasattr(value, "_asdict"):
        return value._asdict()
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def show_list(names):
    return "\n".join(names)


def show_nothing(_):
    """For commands that say what they do while they do it."""
    return ""


def show_info(info):
    """A line a fact."""
    height, width, channels = info.input
    spec = info.preprocess
    facts = {
        "name": info.name,
        "parameters": f"{info.parameters:,}",
        "FLOPs": f"{info.flops / 1e9:.2f} G, of {info.flops / 2e9:.2f} G multiply–adds",
        "input": f"{height} × {width} × {channels}",
        "preprocessing": spec and f"{spec.interpolation}, mean {spec.mean}, std {spec.std}",
        "licence": info.licence,
        "score": info.score,
        "paper": info.source,
    }
    return "\n".join(f"{name:<14}{value}" for name, value in facts.items() if value is not None)
