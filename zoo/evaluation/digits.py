"""Old import path of `zoo.data.digits`."""

from zoo.data.digits import load_split

__all__ = ["load_split"]
