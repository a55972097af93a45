"""Bad records: counted, named in a file once each, and too many of them end the run."""

import json
import threading
from collections.abc import Sequence
from pathlib import Path

from zoo.utils.files import LineFile

SHOWN = 3


class TooManyBadSamples(ValueError):
    """More records are bad than was allowed."""


class BadSamples:
    """The records of a data set found to be bad, by this process or, as its file says, by one before it.

    Threads may share one. Several processes may not share a file: each would name what the others have named.

    Args:
        names: of the N records.
        path: a file of one JSON object a line, {"index", "name", "reason"}, appended to; or None to keep no file.
        max_fraction: of N; more than this end the run.
    """

    def __init__(self, names: Sequence[str], path: str | Path | None = None, max_fraction: float = 0.01):
        if not 0 <= max_fraction <= 1:
            raise ValueError(f"max_bad_fraction={max_fraction!r}; it must be in [0, 1]")
        self.path = None if path is None else Path(path)
        self._names, self._max_fraction = names, max_fraction
        self._reasons: dict[int, str] = {}
        self._lock = threading.Lock()
        self._log = None if self.path is None else self._open()

    def __len__(self) -> int:
        return len(self._reasons)

    @property
    def reasons(self) -> dict[int, str]:
        """{index: reason}, a copy."""
        with self._lock:
            return dict(self._reasons)

    def add(self, index: int, reason: str) -> None:
        """Counts and names a record, unless it already is; TooManyBadSamples when that is one too many."""
        with self._lock:
            if index not in self._reasons:
                self._reasons[index] = reason
                if self._log is not None:
                    self._log.add(json.dumps({"index": index, "name": self._names[index], "reason": reason}))
            if len(self._reasons) > self._max_fraction * len(self._names):
                raise TooManyBadSamples(self._complaint())

    def _open(self) -> LineFile:
        """Takes over the lines that speak of these records; others, and torn ones, are passed over."""
        if not self.path.parent.is_dir():
            raise ValueError(f"bad_samples={str(self.path)!r}, but there is no such folder")
        content = self.path.read_bytes() if self.path.exists() else b""
        for line in content.splitlines():
            try:
                entry = json.loads(line)
                index, name, reason = entry["index"], entry["name"], str(entry["reason"])
            except (ValueError, TypeError, KeyError):
                continue
            if isinstance(index, int) and 0 <= index < len(self._names) and self._names[index] == name:
                self._reasons[index] = reason
        torn = content and not content.endswith(b"\n")  # a process was killed inside its last line
        return LineFile(self.path, begin=b"\n" if torn else b"")

    def _complaint(self) -> str:
        first = [f"{self._names[i]!r}: {reason}" for i, reason in list(self._reasons.items())[:SHOWN]]
        count, total = len(self._reasons), len(self._names)
        where = "" if self.path is None else f" All are in {self.path}."
        return (
            f"{count} of {total} samples are bad, more than the {self._max_fraction:.2%} that max_bad_fraction allows. "
            f"The first: {'; '.join(first)}.{where}"
        )
