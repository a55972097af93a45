"""SQLite files that may be from elsewhere: opened without links, views, triggers or surprises in the schema.

A SQLite file brings its own program: a trigger runs when a row is written, a view or a generated column when one is
read, and pages may be linked in a circle. So `open_database` compares the schema with ours before any query, and
`check_pages` visits every page once before all rows are read.
"""

import os
import sqlite3
import time
from collections.abc import Collection, Iterable
from pathlib import Path

from zoo.utils.files import check_written
from zoo.utils.text import shown

BUSY_SECONDS = 30.0  # to wait for another process' lock
LONGEST_VALUE = 16 << 20  # bytes of one value or row; the longest of ours, a list of ids or metadata, is far below
# Instructions of SQLite's virtual machine, about a minute of work, for all statements of a connection that only reads.
# Reading every row of a cache of 1 GB takes a thousandth of it.
MOST_STEPS = 1_000_000_000
_STEPS_AT_ONCE = 1_000_000  # between two looks at the count
_MOST_OBJECTS = 64  # tables and indices that are looked at
_SIDECARS = ("", "-wal", "-shm", "-journal")


def open_database(
    path: str | Path,
    statements: Collection[str],
    what: str,
    *,
    write: bool = False,
    create: bool = False,
    longest: int = LONGEST_VALUE,
    synchronous: str = "NORMAL",
) -> sqlite3.Connection:
    """Open a SQLite file whose schema is ours, in autocommit mode, for any thread.

    Args:
        statements: every CREATE statement that the file may hold, as SQLite stores it: without IF NOT EXISTS.
        what: what such a file is, for messages: "a text cache".
        write: also to change it, in WAL mode; statements that a file of ours lacks are then executed. Otherwise nothing
            on disk changes, and the connection stops after MOST_STEPS.
        create: make a missing file, and the tables of an empty one; needs `write`.
        longest: bytes of one value or row; longer ones raise sqlite3.DataError.
        synchronous: SQLite's setting for writing: with "NORMAL" a crash of the system may undo the last commits, with
            "FULL" none.

    Raises:
        ValueError: a link, no regular file, or a schema other than ours.
        sqlite3.Error: of SQLite: no such file, damage, a lock held too long.
    """
    for sidecar in _SIDECARS:
        check_written(f"{os.fspath(path)}{sidecar}")
    connection = _connect(Path(path), "rwc" if create else "rw" if write else "ro")
    try:
        connection.text_factory = lambda text: text.decode(errors="replace")  # a damaged text is not UTF-8
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, longest)
        connection.execute("PRAGMA trusted_schema=OFF")
        connection.execute("PRAGMA cell_size_check=ON")
        if not write:
            connection.execute("PRAGMA query_only=ON")
            connection.set_progress_handler(_Steps(), _STEPS_AT_ONCE)
        not_ours = f"{shown(path)} is not {what}"
        present = _check_schema(connection, statements, not_ours)
        for statement in statements:
            if statement not in present:
                if not (create or write and present):
                    raise ValueError(f"{not_ours}: it lacks {shown(' '.join(statement.split()), 80)}")
                kind, _, rest = statement.removeprefix("CREATE ").partition(" ")
                connection.execute(f"CREATE {kind} IF NOT EXISTS {rest}")
        if write:
            _use_wal(connection)
            connection.execute(f"PRAGMA synchronous={synchronous}")
    except BaseException:
        connection.close()
        raise
    return connection


def check_pages(connection: sqlite3.Connection) -> None:
    """Raise sqlite3.DatabaseError if pages are damaged or used twice: reading all rows might then take for ever."""
    (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise sqlite3.DatabaseError(f"damaged pages: {shown(found)}")


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    if mode == "ro" and not any(os.path.lexists(f"{os.fspath(path)}{end}") for end in _SIDECARS[1:]):
        uri += "&immutable=1"  # no process is writing: SQLite then needs no file beside it
    return sqlite3.connect(uri, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, uri=True)


def _use_wal(connection: sqlite3.Connection, attempts: int = 100) -> None:
    """Switch to WAL mode, which fails at once while another process does so too."""
    for attempt in range(attempts):
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError:
            if attempt == attempts - 1:
                raise
            time.sleep(0.02)


class _Steps:
    """A progress handler that interrupts after MOST_STEPS."""

    def __init__(self) -> None:
        self.done = 0

    def __call__(self) -> bool:
        self.done += _STEPS_AT_ONCE
        return self.done > MOST_STEPS


def _check_schema(connection: sqlite3.Connection, statements: Iterable[str], not_ours: str) -> set[str]:
    """Return which statements a file holds; ValueError if it holds others.

    sqlite3.DatabaseError for one that differs from ours by a single character: it is damaged, not another's.
    """
    known, present = set(statements), set()
    query = "SELECT type, name, sql FROM sqlite_master LIMIT ?"
    for kind, name, sql in connection.execute(query, [_MOST_OBJECTS]):
        if kind == "index" and sql is None and str(name).startswith("sqlite_autoindex_"):
            continue
        if sql in known:
            present.add(sql)
        elif isinstance(sql, str) and not any(_differs_once(sql, ours) for ours in known):
            raise ValueError(f"{not_ours}: it has the {shown(kind, 20)} {shown(name, 100)}, which is none of its own")
        else:
            raise sqlite3.DatabaseError("the schema is damaged")
    return present


def _differs_once(one: str, other: str) -> bool:
    return len(one) == len(other) and sum(a != b for a, b in zip(one, other, strict=True)) == 1
