"""The short campaign of kills; `tests/kill_campaign.py` runs the long one."""

import os
import random
import signal

import pytest
from kill_campaign import campaign

pytestmark = [
    pytest.mark.backend,
    pytest.mark.wide,
    pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the system has no SIGKILL"),
]


# one each: the processes of a campaign take seconds to start
MODES = {"jax": "contrastive", "tensorflow": "classify", "torch": "pretrain"}


def test_a_killed_and_resumed_run_ends_like_an_uninterrupted_one():
    figures = campaign(random.Random(1), kills=1, mode=MODES[os.environ["KERAS_BACKEND"]])
    assert figures["kills"] == 1 and figures["runs"] >= 1
    assert figures["equal"] == figures["runs"], figures
    assert figures["failed_restarts"] == 0
