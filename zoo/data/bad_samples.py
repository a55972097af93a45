"""Bad records: each is counted and logged once, and too many of them end the run."""

import json
import threading
from collections.abc import Sequence
from pathlib import Path

from zoo.utils.files import LineFile, check_written, read_file
from zoo.utils.strict_json import parse_json
from zoo.utils.text import quoted, shown

_MAX_NAMED = 3  # in the message


class TooManyBadSamples(ValueError):
    """More records are bad than `max_bad_fraction` allows."""


class BadSamples:
    """The bad records of a data set, found by this process or, according to the log, by an earlier one.

    It is thread-safe. Processes must not share a file.

    Args:
        names: names of the N records.
        path: log with one JSON object per line, {"index", "name", "reason"}, appended to; None for no log.
        max_fraction: largest allowed fraction of N; more bad records end the run.
    """

    def __init__(self, names: Sequence[str], path: str | Path | None = None, max_fraction: float = 0.01):
        if not 0 <= max_fraction <= 1:
            raise ValueError(f"max_bad_fraction={max_fraction!r}; it must be in [0, 1]")
        self.path = None if path is None else Path(path)  # of the log
        self._names, self._max_fraction = names, max_fraction
        self._reasons: dict[int, str] = {}
        self._lock = threading.Lock()
        self._log = None if self.path is None else self._open(self.path)

    def __len__(self) -> int:
        return len(self._reasons)

    @property
    def reasons(self) -> dict[int, str]:
        """Return {index: reason}, a copy."""
        with self._lock:
            return dict(self._reasons)

    def add(self, index: int, reason: str) -> None:
        """Count and log a record once; raise TooManyBadSamples if that is one too many."""
        with self._lock:
            if index not in self._reasons:
                self._reasons[index] = reason
                if self._log is not None:
                    self._log.add(json.dumps({"index": index, "name": self._names[index], "reason": reason}))
            if len(self._reasons) > self._max_fraction * len(self._names):
                raise TooManyBadSamples(self._complaint())

    def _open(self, path: Path) -> LineFile:
        """Read the lines about these records, ignoring others and incomplete ones; open the log for appending."""
        if not path.parent.is_dir():
            raise ValueError(f"bad_samples={quoted(str(path))}, but there is no such folder")
        check_written(path)
        content = read_file(path) if path.exists() else b""
        for line in content.splitlines():
            try:
                entry = parse_json(line, path.name)
                index, name, reason = entry["index"], entry["name"], str(entry["reason"])
            except (ValueError, TypeError, KeyError):
                continue
            if isinstance(index, int) and 0 <= index < len(self._names) and self._names[index] == name:
                self._reasons[index] = reason
        torn = content and not content.endswith(b"\n")  # a process was killed while writing
        return LineFile(path, begin=b"\n" if torn else b"")

    def _complaint(self) -> str:
        first = [
            f"{quoted(self._names[i], 200)}: {shown(reason, 300)}"
            for i, reason in list(self._reasons.items())[:_MAX_NAMED]
        ]
        count, total = len(self._reasons), len(self._names)
        where = "" if self.path is None else f" All are in {shown(self.path)}."
        return (
            f"{count} of {total} samples are bad, more than the {self._max_fraction:.2%} that max_bad_fraction allows. "
            f"The first: {'; '.join(first)}.{where}"
        )
