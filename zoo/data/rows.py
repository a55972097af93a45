"""The rows of a CSV or TSV file, as Python's csv module reads them, except for quotes that nothing closes.

csv takes all lines up to the next quote for one field. Here a row may span lines only if it then has the fields of the
header and does not contain other rows; otherwise the quote is a character of its own line.
"""

import codecs
import csv
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from zoo.utils.files import open_file

_MAX_LINES = 1000  # of one row
_MAX_FIELD = 1 << 30  # characters; the line is in memory anyway
_BYTE_ORDER_MARKS = (  # UTF-32 first, because its little-endian mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_field_limit = threading.Lock()  # csv has one limit for the whole process


def find_encoding(path: str | Path) -> str:
    """Return "utf-8-sig", or the encoding that a byte order mark names.

    Raises:
        ValueError: not a regular file, or zero bytes in the header without such a mark, as in UTF-16.
    """
    with open_file(path) as file:
        head = file.readline(1024)
    for mark, encoding in _BYTE_ORDER_MARKS:
        if head.startswith(mark):
            return encoding
    if b"\0" in head:
        raise ValueError(
            f"{path} has zero bytes in its header: it is UTF-16 without a byte order mark, or no text. Save it "
            "as UTF-8, for instance with iconv -f UTF-16LE -t UTF-8"
        )
    return "utf-8-sig"


class RowReader:
    """An iterator of (line number, fields, or the problem of that line) of the lines below a header.

    Empty lines are ignored. A row that spans lines has the number of its last one.

    Args:
        lines: with their ends, as from a file opened with newline="".
        separator: one character.
        header: the names of the columns.
        image: the column of image names; a line whose image has the same extension is a row.
        spaced: whether spaces follow the separators, as they do in the header.
    """

    def __init__(self, lines: Iterable[str], separator: str, header: Sequence[str], image: int, spaced: bool = False):
        self.unclosed: list[int] = []  # the lines whose quote was read as a character
        self._lines, self._ahead = iter(lines), deque[str]()
        self._separator, self._columns, self._image, self._spaced = separator, len(header), image, spaced

    def __iter__(self) -> Iterator[tuple[int, list[str] | str]]:
        with _field_limit:
            before = csv.field_size_limit(_MAX_FIELD)
            try:
                yield from self._rows()
            finally:
                csv.field_size_limit(before)

    def _rows(self) -> Iterator[tuple[int, list[str] | str]]:
        number = 1  # the header's
        while (line := self._ahead.popleft() if self._ahead else next(self._lines, None)) is not None:
            number += 1
            if not line.strip("\r\n"):
                continue
            try:
                fields, is_open = self._parse(line)
            except csv.Error as error:
                yield number, f"not a row: {error}"
                continue
            if not is_open:
                yield number, fields
                continue
            whole = self._parse_lines(line)
            if whole is not None:
                fields, count = whole
                for _ in range(count):
                    self._ahead.popleft()
                number += count
                yield number, fields
                continue
            self.unclosed.append(number)
            fields = self._split(line)
            yield number, fields if len(fields) == self._columns else "a quote opens a field and nothing closes it"

    def _parse(self, line: str) -> tuple[list[str], bool]:
        """Return (fields, whether a quote is open at the end)."""
        if '"' not in line:
            return self._split(line), False
        source = iter((line, ""))
        fields = next(self._reader(source))
        return fields, next(source, None) is None  # csv asks for another line within quotes only

    def _reader(self, source: Iterable[str], strict: bool = False):
        return csv.reader(source, delimiter=self._separator, skipinitialspace=self._spaced, strict=strict)

    def _split(self, line: str) -> list[str]:
        """Return the fields of a line in which quotes are characters."""
        fields = line.rstrip("\r\n").split(self._separator)
        return [field.lstrip(" ") for field in fields] if self._spaced else fields

    def _parse_lines(self, first: str) -> tuple[list[str], int] | None:
        """Return (fields, number of further lines) of the row that `first` begins; None if it is not one row."""
        more: list[str] = []
        while not more or more[-1].count('"') % 2 == 0:  # doubled quotes do not close the field
            if len(more) == _MAX_LINES:
                return None
            if len(more) == len(self._ahead):
                if (line := next(self._lines, None)) is None:
                    return None
                self._ahead.append(line)
            more.append(self._ahead[len(more)])
        try:
            fields = next(self._reader(["".join([first, *more])], strict=True))
        except csv.Error:
            return None
        if len(fields) != self._columns or self._are_rows(first, more, _extension(fields[self._image])):
            return None
        return fields, len(more)

    def _are_rows(self, first: str, more: Sequence[str], extension: str) -> bool:
        """Whether the lines of a row in quotes are rows of the table themselves."""
        if not self._is_row(self._split(first), extension):
            return False
        fields = [self._parse(line)[0] for line in more]
        if extension:
            return any(self._is_row(row, extension) for row in fields)
        return len(more) > 1 and all(self._is_row(row, extension) for row in fields)

    def _is_row(self, fields: list[str], extension: str) -> bool:
        return len(fields) == self._columns and _extension(fields[self._image]) == extension


def _extension(name: str) -> str:
    return os.path.splitext(name.strip(' "'))[1].lower()
