"""A command as a row of a table, and the arguments that several commands take."""

import argparse
from typing import NamedTuple

TRAIN = ("zoo.training.", "zoo.demo:")
RUN_BATCHES = (*TRAIN, "zoo.evaluation.", "zoo.experiments.", "zoo.search.build:")


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

    @property
    def runs_batches(self) -> bool:
        """Whether it sends batch after batch through a model, for which memory is best kept."""
        return self.uses_backend and self.function.startswith(RUN_BATCHES)

    @property
    def trains(self) -> bool:
        """Whether it may take steps of training."""
        return self.function.startswith(TRAIN)


def argument(*flags, **options):
    return flags, options


def positive(text):
    """An integer of at least 1, for argparse."""
    number = int(text) if text.lstrip("+-").isdigit() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer, got {text!r}")
    return number


def words(text):
    """Words with commas between them, for argparse."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def numbers(text):
    """Positive integers with commas between them, for argparse."""
    return tuple(positive(word) for word in words(text))


def show_nothing(_):
    """For commands that say what they do while they do it."""
    return ""


PAIR = argument("--model", required=True, metavar="NAME|PATH", help="a saved file, or a pair's name with weights")
IMAGES_AT_A_TIME = argument("--batch-size", type=positive, default=64, help="images at a time (default 64)")
