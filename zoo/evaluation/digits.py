"""Old import path of `zoo.data.digits`."""

from zoo.data.digits import load_split  # noqa: F401
