"""Old import path of `zoo.data.preprocess`."""

from zoo.data.preprocess import *  # noqa: F403
