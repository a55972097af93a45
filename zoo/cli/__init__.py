"""The command `zoo`: parses the command line, calls the function that `COMMANDS` names and prints its result."""

import argparse
import contextlib
import dataclasses
import difflib
import importlib
import io
import json
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from convnext import called_here
from zoo.cli import evaluation, models, search, training
from zoo.cli.command import Command
from zoo.utils.env import BACKENDS, choose_backend, keep_freed_memory, let_threads_sleep
from zoo.utils.text import LONGEST_LINE, printed, shown

__all__ = ["COMMANDS", "GROUPS", "Command", "main"]

BAD_INPUT = 2
NOISE = (  # beginnings of warnings that concern nothing a user could change
    "__array__ implementation doesn't accept a copy keyword",  # Keras on torch, once per variable
    r"Glyph \d+ .* missing from",  # matplotlib, of captions in other scripts
    "Palette images with Transparency expressed in bytes",  # Pillow
)

GROUPS = {  # the first word of two-word commands
    "train": "train a CLIP model or a classifier",
    "eval": "evaluate a CLIP model",
    "data": "prepare data sets",
    "index": "build and maintain a search index of images",
    "cache": "inspect and maintain the cache of text embeddings",
}

COMMANDS = models.COMMANDS | training.COMMANDS | evaluation.COMMANDS | search.COMMANDS

EXAMPLES = (
    "zoo demo",
    "zoo list 'convnextv2_*' --weights",
    "zoo info ViT-B-32.openai",
    'zoo search photos-index "a dog on a beach"',
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        Exit code: 0; 1 when a check or an experiment failed; 2 on bad input, with one line on stderr.
    """
    parsed, unknown = build_parser().parse_known_args(argv)
    options = vars(parsed)
    command = COMMANDS[name := options.pop("command")]
    if unknown:
        sys.exit(_report_error(f"zoo {name} has no {_describe_unknown(unknown, command)}"))
    as_json, show_traceback = options.pop("json"), options.pop("traceback")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a Windows pipe may lack "→" or "×"
    progress = sys.stderr if as_json else sys.stdout  # with --json, stdout holds nothing but the result
    processes = options.pop("local_processes", None)
    if processes is not None:
        return _run_locally(processes, sys.argv[1:] if argv is None else argv)
    try:
        if command.backend in ("batches", "training"):
            keep_freed_memory()
        if command.backend == "batches":
            let_threads_sleep()
        if command.backend is not None:
            choose_backend(options.pop("backend"), trains=command.backend == "training")
        with contextlib.redirect_stdout(progress), _plain_warnings():
            result = resolve(command.function)(**options)
    except (ValueError, TypeError, OSError, ImportError) as error:
        if show_traceback:
            traceback.print_exc()
        return _report_error(error)
    text = _to_json(result) if as_json else printed(resolve(command.show)(result))
    with contextlib.suppress(BrokenPipeError):  # a reader such as `head` may have closed the pipe
        print(text, end="\n" if text else "", flush=True)
    return 0 if command.succeeded is None or resolve(command.succeeded)(result) else 1


def _describe_unknown(words: Sequence[str], command: Command) -> str:
    """The first unknown word of a command line, and what it is here or the option nearest in spelling."""
    option = next((word.partition("=")[0] for word in words if word.startswith("--")), None)
    if option is None:
        return f"argument {words[0]!r}.{called_here(words[0])}".removesuffix(".")
    flags = [flag for names, _ in command.arguments for flag in names if flag.startswith("--")]
    near = difflib.get_close_matches(option, flags, n=1)
    return f"option {option}.{called_here(option) or (f' Did you mean {near[0]}?' if near else '')}".removesuffix(".")


def _report_error(error: object) -> int:
    """Print an error as one line on stderr; return the exit code of bad input."""
    line = error if isinstance(error, BaseException) else " ".join(str(error).split())
    print(f"zoo: error: {shown(line, LONGEST_LINE)}", file=sys.stderr)
    return BAD_INPUT


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Print the library's own warnings as one line each, without the source location that Python adds.

    Warnings of NOISE, which frameworks give about their own code, are left out.
    """
    with warnings.catch_warnings():
        for pattern in NOISE:
            warnings.filterwarnings("ignore", message=pattern)
        show = warnings.showwarning

        def show_plainly(message, category, *place):
            if category is UserWarning:
                print(f"zoo: {shown(message, LONGEST_LINE)}", file=sys.stderr)
            else:
                show(message, category, *place)

        warnings.showwarning = show_plainly
        yield


class _Parser(argparse.ArgumentParser):
    """argparse that prints an error as one line, without the usage above it."""

    def error(self, message: str) -> NoReturn:
        wrong = re.search(r"invalid choice: '(.*?)'", message)
        sys.exit(_report_error(message + (called_here(wrong[1]) if wrong else "")))


def _run_locally(processes: int, argv: Sequence[str]) -> int:
    """Run a training command, without --local-processes, in several processes; return the exit code."""
    from zoo.training.processes import launch

    words, skip = [], False
    for word in argv:
        if skip or word.startswith("--local-processes="):
            skip = False
        elif word == "--local-processes":
            skip = True
        else:
            words.append(word)
    return launch(processes, words)


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="zoo", **_help_texts("ConvNeXt, ResNet and CLIP models in Keras 3.", EXAMPLES))
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    groups = {
        group: commands.add_parser(group, help=summary, description=sentence(summary)).add_subparsers(
            required=True, metavar="JOB"
        )
        for group, summary in GROUPS.items()
    }
    for name, command in COMMANDS.items():
        group, _, job = name.rpartition(" ")
        texts = _help_texts(sentence(command.summary), command.examples)
        sub = groups.get(group, commands).add_parser(job, help=command.summary, **texts)
        sub.set_defaults(command=name)
        for flags, options in command.arguments:
            sub.add_argument(*flags, **options)
        if command.backend is not None:
            sub.add_argument(
                "--backend", choices=BACKENDS, help="default: $KERAS_BACKEND, else the first one installed"
            )
        sub.add_argument("--json", action="store_true", help="print the result as JSON")
        sub.add_argument("--traceback", action="store_true", help="print the traceback of an error")
    return parser


def _help_texts(description: str, examples: Sequence[str]) -> dict[str, Any]:
    """argparse's options for a help with a description above and examples below."""
    epilog = "\n  ".join(["examples:" if len(examples) > 1 else "example:", *examples]) if examples else None
    return {"description": description, "epilog": epilog, "formatter_class": argparse.RawDescriptionHelpFormatter}


def sentence(summary: str) -> str:
    """A command's summary as a sentence."""
    return f"{summary[0].upper()}{summary[1:]}."


def resolve(path: str) -> Callable:
    """Import the function "module:name"."""
    module, name = path.split(":")
    return getattr(importlib.import_module(module), name)


def _to_json(result: object) -> str:
    """Format dataclasses, named tuples and lists of them as JSON. Control and direction characters are escaped."""
    text = json.dumps(_plain(result), indent=1, ensure_ascii=False)
    return "\n".join(line if line.isprintable() else _escape_json(line) for line in text.split("\n"))


def _escape_json(line: str) -> str:
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in line)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if hasattr(value, "_asdict"):
        return value._asdict()
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
