"""Old import path of `zoo.utils.env`."""

from zoo.utils.env import *  # noqa: F403
