"""`Command`, a row of the command table, and the arguments that several commands share."""

import argparse
from typing import Any, Literal, NamedTuple

Argument = tuple[tuple[str, ...], dict[str, Any]]  # what `add_argument` takes: flags and options


class Command(NamedTuple):
    """One command: its help, the function it calls and the function that formats the result.

    Args:
        summary: one line for the help.
        function: "module:name", called with the parsed arguments by name.
        show: "module:name", result → text for stdout.
        arguments: from `argument`.
        backend: what the command does with a Keras backend. None: nothing, or it chooses one itself. "model": build or
            run a model; "batches": run batch after batch, for which freed memory is kept; "training": batches with
            gradients. Anything but None adds --backend and imports Keras before the function is imported.
        succeeded: "module:name", result → whether the exit code is 0 rather than 1; None for always 0.
        examples: command lines for the end of the help.
    """

    summary: str
    function: str
    show: str
    arguments: tuple[Argument, ...] = ()
    backend: Literal[None, "model", "batches", "training"] = None
    succeeded: str | None = None
    examples: tuple[str, ...] = ()


def argument(*flags: str, **options: Any) -> Argument:
    """What `argparse.ArgumentParser.add_argument` will be called with."""
    return flags, options


def positive(text: str) -> int:
    """Parse an integer of at least 1."""
    number = int(text) if text.lstrip("+-").isdigit() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer, got {text!r}")
    return number


def words(text: str) -> tuple[str, ...]:
    """Parse comma-separated words."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def numbers(text: str) -> tuple[int, ...]:
    """Parse comma-separated positive integers."""
    return tuple(positive(word) for word in words(text))


def show_nothing(_: object) -> str:
    """For commands that print while they run."""
    return ""


PAIR = argument(
    "--model", required=True, metavar="NAME|PATH", help="saved CLIP model, or the name of published weights"
)
BATCH_SIZE = argument("--batch-size", type=positive, default=64, help="images per batch (default 64)")
