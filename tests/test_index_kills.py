"""A short kill campaign; `tests/kill_campaign_index.py` runs the long one."""

import random
import signal

import pytest
from kill_campaign_index import campaign

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the system has no SIGKILL")


def test_killed_builds_end_with_a_complete_index():
    figures = campaign(2, 200, random.Random(3))
    assert figures["kills"] == 2
    assert figures["whole"] == figures["indices"] > 0, figures["wrong"]
    assert figures["images"] + figures["left_out"] == 200 and figures["left_out"] == 7
