"""Values from elsewhere, read with suspicion: JSON of bounded size, fields that must be what our models have."""

import dataclasses
import json
from pathlib import Path

from zoo.data.preprocess import PreprocessSpec

LARGEST_CONFIG = 4 << 20  # bytes; the names of 21,841 classes take one million


def read_json(path: Path) -> dict:
    """A JSON object from a small file.

    Raises:
        ValueError: it is something else; the file is named.
    """
    if path.stat().st_size > LARGEST_CONFIG:
        raise ValueError(f"{path.name} has {path.stat().st_size} bytes, too many for a configuration.")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise refusal(path.name, "its content", values, "an object")
    return values


def refusal(filename, field, value, allowed):
    """The error for a field that no model of this package has: file, field, value, what it may be."""
    shown = repr(value)
    shown = shown if len(shown) < 200 else f"{shown[:200]}…"
    return ValueError(f"{filename}: {field} is {shown}. Models of this package have: {allowed}.")


def section(values, key, filename):
    """An object inside an object."""
    inner = values.get(key)
    if not isinstance(inner, dict):
        raise refusal(filename, key, inner, "an object")
    return inner


def integer(values, key, default, filename, prefix=""):
    """A positive integer of a bounded size, or `default` where nothing is said."""
    value = default if values.get(key) is None else values[key]
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 1 << 20:
        raise refusal(filename, f"{prefix}{key}", value, "a positive integer")
    return value


def integers(values, key, default, filename):
    """A tuple of such integers."""
    value = default if values.get(key) is None else values[key]
    if not isinstance(value, list | tuple) or not 1 <= len(value) <= 16:
        raise refusal(filename, key, value, "a list of positive integers")
    return tuple(integer({key: number}, key, None, filename) for number in value)


def check_fixed(values, fixed, free, filename, prefix=""):
    """Refuses fields that are not what our models have, and fields that nobody knows.

    Args:
        values: field → value. What is null or empty says nothing.
        fixed: field → the one value there is here.
        free: fields that may be anything: they are read elsewhere, or matter in training alone.
    """
    for key, value in values.items():
        if key in free or value in (None, "", {}, []):
            continue
        if key not in fixed:
            raise refusal(filename, f"{prefix}{key}", value, "no such thing")
        if value != fixed[key]:
            raise refusal(filename, f"{prefix}{key}", value, repr(fixed[key]))


def variant_of(family, row):
    """The table's name of a row, or its fields as JSON has them."""
    import convnext

    label = next((label for label, known in convnext.TABLES[family].items() if known == row), None)
    fields = {key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(row).items()}
    return label or fields


def spec(fields, where):
    """A `PreprocessSpec`; ValueError names where the wrong field stands."""
    try:
        return PreprocessSpec.from_dict(fields)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error
