"""The commands of `zoo`, as tables from name to function."""

from zoo.commands import evaluation, models, search, training
from zoo.commands.command import Command

__all__ = ["COMMANDS", "GROUPS", "Command"]

GROUPS = {  # first words of commands of two
    "train": "train a pair or a classifier",
    "eval": "measure a pair",
    "index": "make and examine an index of images",
    "cache": "examine the cache of texts' embeddings",
}

COMMANDS = models.COMMANDS | training.COMMANDS | evaluation.COMMANDS | search.COMMANDS
