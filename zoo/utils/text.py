"""Foreign text in messages: ids, names, captions, paths and values from files, made safe to print.

A terminal acts on control characters, and characters that set the direction of writing reorder a line. So whatever
comes from a file, a name or a user is printed by `shown` or `quoted`: on one line, escaped, and cut.
"""

import os
import reprlib
import unicodedata
from typing import Any

LONGEST = 500  # characters of one value in a message
LONGEST_LINE = 4000  # of a message, which may name several values
_LARGEST_INTEGER = 1 << 256  # larger ones are not written out


def shown(value: object, longest: int = LONGEST) -> str:
    """Return a text, a path or an error as it stands, other values as Python writes them; safe to print.

    The result is one line of at most `longest` characters; control, format and direction characters, line breaks and
    lone surrogates are escaped as in Python's literals. An error's line breaks become spaces.
    """
    if isinstance(value, BaseException):
        value = " ".join(str(value).split())
    elif isinstance(value, os.PathLike):
        value = os.fsdecode(value)
    elif not isinstance(value, str):
        return quoted(value, longest)
    return _cut(_escaped(value[: longest + 1]), longest)


def quoted(value: object, longest: int = LONGEST) -> str:
    """Return a value as Python writes it, a text in quotes; safe to print, at most `longest` characters."""
    return _cut(_escaped(_REPR.repr(value)), longest)


def printed(text: str) -> str:
    """Return lines that are safe to print: everything but line breaks is escaped as in `shown`, and nothing is cut."""
    return text if text.isprintable() else "\n".join(map(_escaped, text.split("\n")))


def _escaped(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or unicodedata.category(c) == "Zs" else _escape(c) for c in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


class _Repr(reprlib.Repr):
    """repr of bounded length, depth and time."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 8
        self.maxstring = self.maxother = self.maxlong = LONGEST
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = self.maxfrozenset = 64

    def repr_str(self, x: str, level: int) -> str:  # noqa: ARG002
        return repr(x) if len(x) <= LONGEST else f"{x[:LONGEST]!r}…"

    def repr_int(self, x: int, level: int) -> str:  # noqa: ARG002
        return repr(x) if abs(x) < _LARGEST_INTEGER else f"an integer of {x.bit_length()} bits"

    def repr_bytes(self, x: bytes, level: int) -> str:  # noqa: ARG002
        return repr(x) if len(x) <= LONGEST else f"{x[:LONGEST]!r}…"

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:  # in the file's order, unlike reprlib's
        if level <= 0 and x:
            return "{…}"
        entries = [f"{self.repr1(k, level - 1)}: {self.repr1(x[k], level - 1)}" for k, _ in zip(x, range(64))]  # noqa: B905
        return "{" + ", ".join([*entries, *["…"] * (len(x) > 64)]) + "}"


_REPR = _Repr()
