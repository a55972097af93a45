"""The command `zoo`: reads the command line, runs the function that COMMANDS names, shows its result."""

import argparse
import contextlib
import dataclasses
import importlib
import json
import sys
import traceback
import warnings

from zoo.cli import evaluation, models, search, training
from zoo.cli.command import Command
from zoo.utils.env import BACKENDS, choose_backend, keep_freed_memory

__all__ = ["COMMANDS", "GROUPS", "Command", "main"]

BAD_INPUT = 2

GROUPS = {  # first words of commands of two
    "train": "train a pair or a classifier",
    "eval": "measure a pair",
    "index": "make and examine an index of images",
    "cache": "examine the cache of text embeddings",
}

COMMANDS = models.COMMANDS | training.COMMANDS | evaluation.COMMANDS | search.COMMANDS


def main(argv=None):
    """Runs one command; returns 0, 1 when what it looked at failed, or 2 on bad input with one line saying why."""
    options = vars(build_parser().parse_args(argv))
    command = COMMANDS[options.pop("command")]
    as_json, show_traceback = options.pop("json"), options.pop("traceback")
    sys.stdout.reconfigure(errors="replace")  # a Windows pipe may not know "→" or "×"
    progress = sys.stderr if as_json else sys.stdout  # with --json, stdout holds nothing else
    try:
        if command.runs_batches:
            keep_freed_memory()
        if command.uses_backend:
            choose_backend(options.pop("backend"), command.trains)
        with contextlib.redirect_stdout(progress), plain_warnings():
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


@contextlib.contextmanager
def plain_warnings():
    """Shows what the library remarks on as one line each, without the place in the code that Python adds."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def show_plainly(message, category, *place):
            if category is UserWarning:
                print(f"zoo: {message}", file=sys.stderr)
            else:
                show(message, category, *place)

        warnings.showwarning = show_plainly
        yield


class Parser(argparse.ArgumentParser):
    """argparse without the usage lines above an error."""

    def error(self, message):
        sys.exit(refuse(message))


def build_parser():
    parser = Parser(prog="zoo", description="ConvNeXt, ResNet and CLIP models in Keras 3.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    groups = {
        group: commands.add_parser(group, help=summary, description=summary).add_subparsers(
            required=True, metavar="JOB"
        )
        for group, summary in GROUPS.items()
    }
    for name, command in COMMANDS.items():
        group, _, job = name.rpartition(" ")
        sub = groups.get(group, commands).add_parser(job, help=command.summary, description=command.summary)
        sub.set_defaults(command=name)
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
