"""The one reader of foreign JSON: bounded in size, depth and integers, and compared with a schema.

    facts = read_json(path, {"dim": Field.integer(1, 65536), "names": Field.name().list()}, optional={"names"})

Every error is a ValueError that names the file, the field, its value and what is allowed.
"""

import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NoReturn

from clip import Field
from zoo.utils.files import open_file
from zoo.utils.text import quoted, shown

LARGEST_JSON = 64 << 20  # bytes of a file; an index of a million images has ids of 30 MB
DEEPEST = 64  # levels of arrays and objects; configurations of published models have at most 6
_LONGEST_NUMBER = 40  # characters; a float64 has at most 24, an integer of 64 bits 20
LARGEST_INTEGER = (1 << 64) - 1

Schema = Field | Mapping[str, Field]

OBJECT = Field(lambda value: isinstance(value, dict), "an object")
LIST = Field(lambda value: isinstance(value, list), "a list")
ANYTHING = Field(lambda _: True, "any value")


def text(longest: int = 1 << 20) -> Field:
    """Allow a text of at most `longest` characters that can be encoded as UTF-8."""
    return Field(lambda value: isinstance(value, str) and len(value) <= longest and is_utf8(value), "a text")


def object_of(entry: Field) -> Field:
    """Allow an object with any names, whose values `entry` allows."""

    def allows(value: Any) -> bool:
        return isinstance(value, dict) and all(is_utf8(key) and entry.allows(value[key]) for key in value)

    return Field(allows, f"an object, each of its values {entry.allowed}")


def list_of(entry: Field, count: int | None = None) -> Field:
    """Allow a list of any length, or of `count` entries, that `entry` allows."""

    def allows(value: Any) -> bool:
        return isinstance(value, list) and count in (None, len(value)) and all(map(entry.allows, value))

    return Field(allows, f"a list{'' if count is None else f' of {count}'}, each item {entry.allowed}")


def is_utf8(value: str) -> bool:
    """Whether a text can be encoded. A file name that is not UTF-8 holds lone surrogates, which cannot."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_json(
    path: str | Path,
    schema: Schema = ANYTHING,
    *,
    optional: Collection[str] = (),
    others: bool = False,
    max_bytes: int = LARGEST_JSON,
) -> Any:
    """Return the content of a JSON file, checked.

    Args:
        schema: what the whole is allowed to be, or the fields of an object.
        optional: fields that may be missing.
        others: whether there may be fields that the schema does not name.
        max_bytes: largest file.

    Raises:
        ValueError: no regular file, too large, not JSON, or against the schema. OSError: of the system.
    """
    with open_file(path, max_bytes=max_bytes) as file:
        content = file.read(max_bytes + 1)
    return parse_json(content, Path(path).name, schema, optional=optional, others=others)


def parse_json(
    content: str | bytes,
    name: str,
    schema: Schema = ANYTHING,
    *,
    optional: Collection[str] = (),
    others: bool = False,
) -> Any:
    """`read_json` of a text, or of its bytes in UTF-8; `name` is what messages call it."""
    try:
        decoded = content.decode("utf-8-sig") if isinstance(content, bytes) else content
        value = json.loads(decoded, parse_int=_integer, parse_float=_float, parse_constant=_constant)
    except RecursionError:
        raise _too_deep(name) from None
    except ValueError as error:
        raise ValueError(f"{shown(name)} is not JSON: {shown(error)}") from None
    _check_depth(value, name)
    if isinstance(schema, Field):
        if not schema.allows(value):
            raise field_error(name, "its content", value, schema.allowed)
    else:
        check_fields(value, schema, name, optional=optional, others=others)
    return value


def check_fields(
    value: Any,
    schema: Mapping[str, Field],
    name: str,
    where: str = "",
    *,
    optional: Collection[str] = (),
    others: bool = False,
) -> None:
    """Raise ValueError unless `value` is an object with the fields of a schema.

    Args:
        name: of the file, for messages.
        where: field that holds the object, "architecture.arguments"; "" for the whole file.
        optional, others: as in `read_json`.
    """
    fields = set(value) if isinstance(value, dict) else set()
    missing, unknown = set(schema) - fields - set(optional), fields - set(schema)
    if not isinstance(value, dict) or missing or (unknown and not others):
        exactly = f"an object with {'' if others else 'exactly '}{', '.join(schema)}"
        lacks = f" (it lacks {', '.join(sorted(missing))})" if missing and isinstance(value, dict) else ""
        raise field_error(name, where or "its content", value, f"{exactly}{lacks}")
    for key, entry in schema.items():
        if key in value and not entry.allows(value[key]):
            raise field_error(name, f"{where}.{key}" if where else key, value[key], entry.allowed)


def field_error(filename: str, field: str, value: object, allowed: str) -> ValueError:
    """Return the error for one field: file, field, value, allowed values."""
    return ValueError(f"{shown(filename)}: {shown(field)} is {quoted(value, 200)}. Allowed: {allowed}.")


def _integer(digits: str) -> int:
    if len(digits) > _LONGEST_NUMBER or abs(number := int(digits)) > LARGEST_INTEGER:
        raise ValueError(f"the integer {shown(digits, 24)} has more than 64 bits")
    return number


def _float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"the number {shown(digits, 24)} is too large")
    return number


def _constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number that JSON has")


def _too_deep(name: str) -> ValueError:
    return ValueError(f"{shown(name)} is nested more than {DEEPEST} levels deep")


def _check_depth(value: Any, name: str) -> None:
    level, kinds = [value], (dict, list)
    for _ in range(DEEPEST):
        inner = (each.values() if isinstance(each, dict) else each for each in level if isinstance(each, kinds))
        level = [each for group in inner for each in group if isinstance(each, kinds)]
        if not level:
            return
    raise _too_deep(name)
