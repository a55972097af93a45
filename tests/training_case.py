"""Shared by the tests of training: a small CLIP model, its data, the files of a run, and an interrupted run."""

import json
from pathlib import Path

import pytest

from clip import Pair, Text, ViT
from zoo.data import Batches
from zoo.training.checkpoint import newest_checkpoint

ROW = Pair(8, 16, ViT(16, 1, 8, head_width=8), Text(width=16, heads=2, layers=1))
BASE = {"batch_size": 8, "epochs": 1, "context_length": 12, "log_every": 1, "threads": 1}


@pytest.fixture(scope="module", autouse=True)
def no_curves():
    """Half the time of so small a run would go into drawing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zoo.training.history.History.draw", lambda *_: False)
        yield


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def rows(folder: Path) -> list[dict]:
    """The history without its times."""
    lines = (folder / "history.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in rows(folder) if "loss" in row]


class Killed(Exception):
    """Interrupts a run. An Exception, because TensorFlow passes on no other kind from a data set."""


def assert_resumes(run, folder: Path) -> None:
    """Assert that an interrupted and resumed run ends like an uninterrupted one, in weights and history.

    Args:
        run: called with an output folder, and with resume=True to resume; two epochs of three steps, with a checkpoint
            every second step.
        folder: gets "whole", the uninterrupted run, and "parts", the other one.
    """
    run(folder / "whole")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Batches, "batch", until(1, 2))
        run(folder / "parts")
    assert newest_checkpoint(folder / "parts" / "checkpoints").progress["position"] in (2, 4)
    run(folder / "parts", resume=True)
    assert weights(folder / "parts") == weights(folder / "whole")
    assert rows(folder / "parts") == rows(folder / "whole")


def until(epoch: int, step: int):
    """`Batches.batch` up to this batch, which nobody gets."""
    whole = Batches.batch

    def batch(self, *place):
        if place == (epoch, step):
            raise Killed
        return whole(self, *place)

    return batch
