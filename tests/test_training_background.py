"""New trainings put transparent images on white and say so in the weights; a run begun without it resumes so."""

import json

import numpy as np
import pytest

from zoo.data.preprocess import PreprocessSpec
from zoo.training.checkpoint import CHECKPOINTS, save_checkpoint
from zoo.training.setup import training_spec

pytestmark = [pytest.mark.backend, pytest.mark.once]


def test_a_new_run_is_on_white_and_an_old_one_as_it_began(tmp_path):
    spec = PreprocessSpec(32)
    white = training_spec(spec, tmp_path)
    assert white == PreprocessSpec(32, background="white")
    own = PreprocessSpec(32, background="black")
    assert training_spec(own, tmp_path) is own
    for began in (spec, white):
        identity = {"identity": {"spec": repr(began)}, "position": 0, "left_out": []}
        save_checkpoint(tmp_path / CHECKPOINTS, {"x": np.zeros(1, np.float32)}, identity)
        assert training_spec(spec, tmp_path) == began
    (tmp_path / CHECKPOINTS / "checkpoint-000002" / "progress.json").write_text(json.dumps([]))
    assert training_spec(spec, tmp_path) == spec  # what the checkpoint before says
