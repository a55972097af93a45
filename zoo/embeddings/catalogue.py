"""The catalogue of an index: a SQLite file with the ids and metadata of its vectors, its segments and its facts.

Entries are added and never changed; a removed one is listed in `removed`. So a place, the number of a vector in the
order they were added, stays what it is, and readers need no lock. One process writes at a time, in WAL mode; a commit
makes everything visible that was written before it.
"""

import contextlib
import hashlib
import itertools
import json
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clip import Field
from zoo.embeddings.segment import DTYPES, Row
from zoo.utils.database import check_pages, open_database
from zoo.utils.files import atomic_path
from zoo.utils.strict_json import OBJECT, check_fields, parse_json, text
from zoo.utils.text import quoted, shown

NAME = "catalogue.sqlite"
FORMAT, VERSION = "convnext-clip-zoo index", 2
_WHAT = "the catalogue of an index"
_STATEMENTS = (
    "CREATE TABLE info (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE segments (number INTEGER PRIMARY KEY, first INTEGER NOT NULL, size INTEGER NOT NULL, "
    "terms INTEGER NOT NULL, digest TEXT)",
    "CREATE TABLE history (last INTEGER PRIMARY KEY, vectors TEXT NOT NULL, entries TEXT NOT NULL)",
    "CREATE TABLE entries (place INTEGER PRIMARY KEY, id TEXT NOT NULL, metadata TEXT)",
    "CREATE TABLE removed (place INTEGER PRIMARY KEY)",
    "CREATE TABLE left_out (id TEXT PRIMARY KEY, reason TEXT NOT NULL) WITHOUT ROWID",
)
_QUERY_SIZE = 500  # values in one SQL query
_STREAMED = 10_000  # rows fetched at a time, so that no other statement waits long
_CACHE_KIB = 8192  # of pages, in memory
MOST = 1 << 40  # vectors
_INFO = {
    "format": Field.one_of(FORMAT),
    "version": Field.one_of(VERSION),
    "dim": Field.integer(1, MOST),
    "dtype": Field.one_of(*DTYPES),
    "model": text().or_null(),
    "facts": OBJECT,
    "next": Field.integer(1, MOST),
}


class Added(NamedTuple):
    """One add, as the history records it.

    Args:
        last: the place after its last vector.
        vectors: SHA-256 of its vectors; for int8 also that of their scales, after a space.
        entries: `_digest_entries` of its ids and metadata.
    """

    last: int
    vectors: str
    entries: str


class Catalogue:
    """An open catalogue. Threads may share it; after a fork it is opened again.

    Args:
        path: the file; None for a temporary one.
    """

    def __init__(self, path: Path | None):
        self.path, self.lock = path, threading.RLock()
        self._connection, self._process = self._connect(), os.getpid()

    def _connect(self) -> sqlite3.Connection:
        if self.path is None:
            connection = sqlite3.connect("", isolation_level=None, check_same_thread=False)
            for statement in _STATEMENTS:
                connection.execute(statement)
            return connection
        writable = os.access(self.path, os.W_OK) and os.access(self.path.parent, os.W_OK)
        with self._errors():
            connection = open_database(self.path, _STATEMENTS, _WHAT, write=writable, synchronous="FULL")
        connection.set_progress_handler(None, 0)  # no limit: searches may go on for months
        connection.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
        return connection

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise OSError(f"{shown(self.path)}: {shown(error)}") from error
        except sqlite3.Error as error:
            raise ValueError(f"{shown(self.path)} is not {_WHAT}, or a damaged one: {shown(error)}") from error

    def close(self) -> None:
        """Close the file; SQLite then removes what it keeps beside it."""
        if self._process == os.getpid():
            self._connection.close()

    def query(self, statement: str, values: Sequence = (), *, many: bool = False) -> list[tuple]:
        """Return the rows of a statement; with `many`, run it for each of the values."""
        with self.lock, self._errors():
            if self._process != os.getpid():
                self._connection, self._process = self._connect(), os.getpid()
            return (self._connection.executemany if many else self._connection.execute)(statement, values).fetchall()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit everything in the block together, or nothing."""
        with self.lock, self._errors():
            self.query("BEGIN IMMEDIATE")
            with self._connection:
                yield

    # Facts.

    def set_info(self, values: Mapping[str, Any]) -> None:
        rows = [(name, json.dumps(value, ensure_ascii=False)) for name, value in values.items()]
        self.query("INSERT OR REPLACE INTO info VALUES (?, ?)", rows, many=True)

    def info(self) -> dict[str, Any]:
        """Return {"format", "version", "dim", "dtype", "model", "facts", "next"}; ValueError for other values."""
        try:
            found = {name: parse_json(value, name) for name, value in self.query("SELECT name, value FROM info")}
            check_fields(found, _INFO, NAME, others=True)
        except ValueError as error:
            raise ValueError(f"{shown(self.path)} is not {_WHAT}: {shown(error)}") from error
        return found

    def left_out(self) -> dict[str, str]:
        return dict(self.query("SELECT id, reason FROM left_out ORDER BY id"))

    def set_left_out(self, reasons: Mapping[str, str | None]) -> None:
        """Change the reasons of some ids; None drops one."""
        self.query("DELETE FROM left_out WHERE id = ?", [(name,) for name in reasons], many=True)
        rows = [(name, why) for name, why in reasons.items() if why is not None]
        self.query("INSERT INTO left_out VALUES (?, ?)", rows, many=True)

    # Segments and entries.

    def segments(self) -> list[Row]:
        """Return the rows of the segments in the order of their vectors; ValueError unless they join."""
        found = [Row(*row) for row in self.query("SELECT * FROM segments ORDER BY first")]
        place = 0
        for row in found:
            whole = [Field.integer(least, MOST).allows(value) for value, least in zip(row, (1, 0, 1, 1), strict=False)]
            if not all(whole) or row.first != place or not isinstance(row.digest, str | None):
                wrong = f"the segment {quoted(tuple(row))} does not begin at place {place}"
                raise ValueError(f"{shown(self.path)} is damaged: {wrong}")
            place += row.size
        return found

    def set_segments(self, added: Iterable[Row], dropped: Iterable[Row] = ()) -> None:
        self.query("DELETE FROM segments WHERE number = ?", [(row.number,) for row in dropped], many=True)
        self.query("INSERT INTO segments VALUES (?, ?, ?, ?, ?)", list(added), many=True)

    def history(self) -> list[Added]:
        return [Added(*row) for row in self.query("SELECT * FROM history ORDER BY last")]

    def append(self, first: int, ids: Sequence[str], texts: Sequence[str | None], vectors: str) -> None:
        """Add entries from a place on, and their history."""
        rows = list(zip(range(first, first + len(ids)), ids, texts, strict=True))
        self.query("INSERT INTO entries VALUES (?, ?, ?)", rows, many=True)
        entries = _digest_entries((identity, text) for _, identity, text in rows)
        self.query("INSERT INTO history VALUES (?, ?, ?)", (first + len(ids), vectors, entries))

    def entries(self, places: np.ndarray) -> dict[int, tuple[str, str | None]]:
        """Return {place: (id, metadata as JSON or None)}."""
        found: dict[int, tuple[str, str | None]] = {}
        wanted = [int(place) for place in places]
        for start in range(0, len(wanted), _QUERY_SIZE):
            part = wanted[start : start + _QUERY_SIZE]
            marks = ",".join("?" * len(part))
            rows = self.query(f"SELECT place, id, metadata FROM entries WHERE place IN ({marks})", part)
            found |= {place: (identity, text) for place, identity, text in rows}
        if missing := len(set(wanted)) - len(found):
            raise ValueError(f"{shown(self.path)} is damaged: it lacks the entries of {missing} vectors")
        return found

    def stream_entries(self, first: int = 0) -> Iterator[tuple[int, str, str | None]]:
        """Yield (place, id, metadata as JSON or None) of all entries from a place on, removed ones too."""
        statement = "SELECT place, id, metadata FROM entries WHERE place >= ? ORDER BY place LIMIT ?"
        while rows := self.query(statement, [first, _STREAMED]):
            yield from rows
            first = rows[-1][0] + 1

    def removed(self) -> np.ndarray:
        """Return the removed places, int64, ascending."""
        return np.array([place for (place,) in self.query("SELECT place FROM removed ORDER BY place")], np.int64)

    def version(self) -> int:
        """Return a number that changes when another connection has written."""
        return self.query("PRAGMA data_version")[0][0]

    def check(self) -> None:
        """Raise ValueError for damaged pages, or entries that are not those that were added."""
        with self.lock, self._errors():
            check_pages(self._connection)
        first, rows = 0, self.stream_entries()
        for added in self.history():
            count = added.last - first
            if _digest_entries(row[1:] for row in itertools.islice(rows, max(0, count))) != added.entries:
                changed = f"its entries {first} to {shown(added.last)} are not those added"
                raise ValueError(f"{shown(self.path)} is damaged: {changed}")
            first = added.last

    # Files.

    def publish(self, target: Path) -> "Catalogue":
        """Write a temporary catalogue to its final name and return the one there."""
        with atomic_path(target) as draft, contextlib.closing(sqlite3.connect(draft)) as copy, self._errors():
            self._connection.backup(copy)
            copy.execute("PRAGMA journal_mode=WAL")  # here, as two processes cannot switch it at once
        self.close()
        return Catalogue(target)


def _digest_entries(entries: Iterable[tuple[str, str | None]]) -> str:
    """Return the SHA-256 of (id, metadata) pairs."""
    total = hashlib.sha256()
    for identity, metadata in entries:
        total.update(f"{identity}\0{metadata or ''}\0".encode())
    return total.hexdigest()
