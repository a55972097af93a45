"""A cache of text embeddings: the latest in memory, over an SQLite file that processes may share.

The key of an entry is a digest of everything the embedding depends on: the space (weights, tokenizer, precision) and
the text in Unicode's normal form C. The value is the unit vector, float32, with a checksum; a damaged entry is dropped
and encoded again. The file is in WAL mode and survives a killed writer. A cache that SQLite cannot read is renamed and
replaced by an empty one; a file that is not a cache, or that holds anything beside one, is refused and left unchanged.
"""

import contextlib
import functools
import hashlib
import os
import secrets
import sqlite3
import threading
import unicodedata
import weakref
import zlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zoo.utils.database import check_pages, open_database
from zoo.utils.files import open_file
from zoo.utils.text import quoted, shown

_VERSION = "1"  # of the keys
_SCHEMA = (  # as SQLite stores it
    """CREATE TABLE vectors
(key BLOB PRIMARY KEY, vector BLOB NOT NULL, checksum INTEGER NOT NULL, place INTEGER NOT NULL)""",
    "CREATE INDEX places ON vectors(place)",  # without it, every write would scan the table
    "CREATE TABLE counts (name TEXT PRIMARY KEY, value INTEGER NOT NULL)",
)
LONGEST_VALUE = 1 << 20  # bytes: an embedding of 262,144 dimensions
_SUFFIX, _SCHEMA_BYTES = ".sqlite", 1 << 16  # of a file's name; first bytes of it, which hold the schema
_LAST_PLACE = "SELECT MAX(place) FROM vectors WHERE place < 1 << 62"  # a damaged one may be a text
_OLDEST_TENTH = "SELECT rowid FROM vectors ORDER BY place LIMIT 1 + (SELECT COUNT(*) FROM vectors) / 10"
_USED = """SELECT (page_count - freelist_count) * page_size
FROM pragma_page_count, pragma_freelist_count, pragma_page_size"""
_COUNTED = ("memory_hits", "disk_hits", "misses", "damaged")
_QUERY_SIZE = 500  # keys in one SQL query
# Classes of errors that do not mean a damaged file, but a lock held too long, a full disk or a wrong call.
_ENVIRONMENT_ERRORS = (sqlite3.OperationalError, sqlite3.InterfaceError, sqlite3.ProgrammingError)
_ERRORS = (sqlite3.Error, UnicodeDecodeError)  # the latter from a damaged name in a message
_KEYS = 4096  # memoised: computing one takes a fifth of a hit's time


def default_cache_path() -> Path:
    """Return $ZOO_TEXT_CACHE, or a file in the user's cache folder."""
    if path := os.environ.get("ZOO_TEXT_CACHE"):
        return Path(path)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "convnext-clip-zoo" / "texts.sqlite"


@dataclass(frozen=True)
class CacheStats:
    """The requests of this process to a cache, and the size of the cache.

    Args:
        memory_hits, disk_hits, misses: texts requested.
        damaged: entries dropped.
        entries, bytes: number and size of the entries in the file, or in memory if there is no file.
    """

    memory_hits: int
    disk_hits: int
    misses: int
    damaged: int
    entries: int
    bytes: int

    @property
    def hit_rate(self) -> float:
        """Share of the requested texts that were in the cache; 0 before the first request."""
        hits = self.memory_hits + self.disk_hits
        return hits / max(1, hits + self.misses)


class TextCache:
    """A cache of text embeddings. Threads may share one object, and processes one file.

    Args:
        path: path of the file, created with its folder if missing; None keeps embeddings in memory only.
        memory: maximum number of vectors in memory; the least recently used are dropped first.
        max_bytes: maximum size of the file; the oldest entries are dropped first.
        create: create a missing file, and replace a damaged cache by an empty one.
        write: False only reads the file, which must exist: nothing is added, dropped or counted.

    All methods raise OSError for a file that cannot be read or written at the moment, and ValueError for a file that is
    not a cache; with create=False, also FileNotFoundError, and ValueError for a damaged cache.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        memory: int = 4096,
        max_bytes: int = 1 << 30,
        create: bool = True,
        write: bool = True,
    ):
        self.path = None if path is None else Path(path)
        self._file = self.path or Path()  # read only if there is a path
        self.max_bytes, self._create, self._writes = max_bytes, create and write, write
        self._memory: OrderedDict[bytes, np.ndarray] = OrderedDict()
        self._max_vectors = memory
        self._counts = dict.fromkeys(_COUNTED, 0)
        self._unsaved = Counter[str]()  # not yet added to the counts in the file
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._process = 0  # id of the one that opened it

    def embed(self, space: str, texts: Sequence[str], encode: Callable[[list[str]], np.ndarray]) -> np.ndarray:
        """Return embeddings, float32 (N, D), from the cache; missing ones are encoded and added to it.

        Args:
            space: digest of everything but the text that the vectors depend on.
            texts: N strings; each distinct one is encoded once.
            encode: M texts → float32 (M, D), unit rows.
        """
        keys = [make_key(space, text) for text in texts]
        found = self.get(keys)
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in found}
        if missing:
            vectors = np.asarray(encode(list(missing.values())), np.float32)
            fresh = dict(zip(missing, vectors, strict=True))
            self.put(fresh)
            found |= fresh
        rows = np.empty((len(keys), len(found[keys[0]]) if keys else 0), np.float32)
        for row, key in zip(rows, keys, strict=True):  # for one row, five times as fast as np.stack
            row[:] = found[key]
        return rows

    def get(self, keys: Sequence[bytes]) -> dict[bytes, np.ndarray]:
        """Return {key: float32 (D,), read-only} of the keys in the cache."""
        with self._lock:
            found = {key: self._memory[key] for key in keys if key in self._memory}
            for key in found:
                self._memory.move_to_end(key)
            self._count("memory_hits", len(found))
            rest = [key for key in dict.fromkeys(keys) if key not in found]
            if not rest:
                return found
            from_disk = self._read(rest) if self.path is not None else {}
            for key, vector in from_disk.items():
                self._remember(key, vector)
            self._count("disk_hits", len(from_disk))
            self._count("misses", len(rest) - len(from_disk))
            return found | from_disk

    def put(self, vectors: dict[bytes, np.ndarray]) -> None:
        """Add float32 (D,) vectors under their keys."""
        with self._lock:
            for key, vector in vectors.items():
                self._remember(key, np.array(vector, np.float32))
            if self.path is not None:
                self._write(vectors)

    def stats(self) -> CacheStats:
        """Return the counts of this process and the size of the cache."""
        with self._lock:
            if self.path is None:
                size = sum(vector.nbytes for vector in self._memory.values())
                return CacheStats(**self._counts, entries=len(self._memory), bytes=size)
            self._run(check_pages)
            entries = self._query("SELECT COUNT(*) FROM vectors")[0][0]
            return CacheStats(**self._counts, entries=entries, bytes=self._used_bytes())

    def lifetime(self) -> dict:
        """Return {"memory_hits", "disk_hits", "misses", "damaged", "hit_rate"} of all processes that closed the file or
        wrote to it; without a file, of this process."""
        with self._lock:
            counts = dict(self._counts)
            if self.path is not None:
                self._run(lambda connection: _save_counts(connection, self._unsaved))
                rows = self._query("SELECT name, value FROM counts LIMIT 100")
                counts |= {name: value for name, value in rows if name in counts and isinstance(value, int)}
            return {**counts, "hit_rate": CacheStats(**counts, entries=0, bytes=0).hit_rate}

    def copy_to(self, other: "TextCache") -> int:
        """Copy every undamaged entry to another cache and return their number."""
        if self.path is None:
            other.put(dict(self._memory))
            return len(self._memory)
        copied = 0
        with self._lock:
            self._run(check_pages)
            keys = [key for (key,) in self._query("SELECT key FROM vectors ORDER BY place")]
            for first in range(0, len(keys), _QUERY_SIZE):
                part = self._read(keys[first : first + _QUERY_SIZE])
                other.put({key: part[key] for key in keys[first : first + _QUERY_SIZE] if key in part})
                copied += len(part)
        return copied

    def clear(self) -> int:
        """Drop all entries and return their number."""
        with self._lock:
            entries = self.stats().entries
            self._memory.clear()
            if self.path is not None:
                self._query("DELETE FROM vectors")
                self._query("VACUUM")
            return entries

    def verify(self) -> tuple[int, int]:
        """Check every entry, drop damaged ones, and return (entries, damaged)."""
        if self.path is None:
            return len(self._memory), 0
        with self._lock:
            self._run(check_pages)
            entries, damaged = self._run(_find_damaged)
            self._drop(damaged)
            return entries, len(damaged)

    def close(self) -> None:
        """Close the file; the next call opens it again."""
        with self._lock:
            if self._connection is not None:
                self._finalizer()
            self._connection = None

    # Memory.

    def _remember(self, key: bytes, vector: np.ndarray) -> None:
        vector.flags.writeable = False
        self._memory[key] = vector
        self._memory.move_to_end(key)
        while len(self._memory) > self._max_vectors:
            self._memory.popitem(last=False)

    def _count(self, name: str, count: int) -> None:
        self._counts[name] += count
        if self._writes:
            self._unsaved[name] += count

    # The file.

    def _read(self, keys: list[bytes]) -> dict[bytes, np.ndarray]:
        found, damaged = {}, []
        for first in range(0, len(keys), _QUERY_SIZE):
            part = keys[first : first + _QUERY_SIZE]
            marks = ",".join("?" * len(part))
            for row, key, vector, check in self._query(
                f"SELECT rowid, key, vector, checksum FROM vectors WHERE key IN ({marks})", part
            ):
                if _is_sound(key, vector, check):
                    found[key] = np.frombuffer(vector, "<f4").astype(np.float32)
                else:
                    damaged.append(row)
        self._drop(damaged)
        return found

    def _write(self, vectors: dict[bytes, np.ndarray]) -> None:
        blobs = {key: np.asarray(vector, "<f4").tobytes() for key, vector in vectors.items()}

        def write(connection):
            connection.execute("BEGIN IMMEDIATE")
            with connection:  # one transaction is several times as fast as five
                place = (connection.execute(_LAST_PLACE).fetchone()[0] or 0) + 1
                rows = [(key, blob, _checksum(key, blob), place + i) for i, (key, blob) in enumerate(blobs.items())]
                connection.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?, ?)", rows)
                _save_counts(connection, self._unsaved)

        self._run(write)
        drop = f"DELETE FROM vectors WHERE rowid IN ({_OLDEST_TENTH})"
        while self._used_bytes() > self.max_bytes and self._run(lambda c: c.execute(drop).rowcount):
            pass

    def _drop(self, rows: list[int]) -> None:
        self._count("damaged", len(rows))
        if rows and self._writes:
            self._run(lambda c: c.executemany("DELETE FROM vectors WHERE rowid = ?", [(row,) for row in rows]))

    def _used_bytes(self) -> int:
        return self._query(_USED)[0][0]

    def _query(self, statement: str, values: Sequence = ()) -> list:
        """Return the rows of one statement, run as its own transaction."""
        return self._run(lambda c: c.execute(statement, values).fetchall())

    def _run(self, action: Callable):
        """Return action(connection). If the file is damaged, open it again, as another process may have replaced it;
        if it is still damaged, replace it by an empty one."""
        for repair in (self.close, self._set_aside, None):
            try:
                return action(self._open())
            except _ERRORS as error:
                if not self._is_damage(error):
                    raise OSError(f"{shown(self._file)}: {shown(error)}") from error
                if repair is None or not (self._create and self._was_cache()):
                    raise ValueError(
                        f"{shown(self._file)} is not a text cache, or a damaged one: {shown(error)}"
                    ) from error
                repair()
        raise AssertionError("unreachable")

    def _is_damage(self, error: Exception) -> bool:
        """Whether an error means a damaged file."""
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF
        if code == sqlite3.SQLITE_READONLY:
            return os.access(self._file, os.W_OK)
        in_schema = code in (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_SCHEMA)  # such as a missing table
        return in_schema or not isinstance(error, _ENVIRONMENT_ERRORS)

    def _was_cache(self) -> bool:
        """Whether a damaged file may be replaced: it has a cache's name, or still holds part of a cache's schema."""
        if self._file.suffix == _SUFFIX:
            return True
        with open_file(self._file) as file:
            head = file.read(_SCHEMA_BYTES)
        return any(statement.encode() in head for statement in _SCHEMA)

    def _open(self) -> sqlite3.Connection:
        if self._connection is None or self._process != os.getpid():  # a forked child may not use its parent's
            if self._create:
                self._file.parent.mkdir(parents=True, exist_ok=True)
            elif not os.path.exists(self._file):
                raise FileNotFoundError(f"No text cache at {quoted(str(self.path))}.")
            connection = open_database(
                self._file, _SCHEMA, "a text cache", write=self._writes, create=self._create, longest=LONGEST_VALUE
            )
            self._connection, self._process = connection, os.getpid()
            self._finalizer = weakref.finalize(self, _close, connection, self._unsaved, os.getpid())
        return self._connection

    def _set_aside(self) -> None:
        """Rename a damaged file, so that a new one takes its place."""
        self.close()
        aside = f"{self.path}.damaged-{secrets.token_hex(4)}"
        for end in ("", "-wal", "-shm"):
            with contextlib.suppress(OSError):
                os.replace(f"{self.path}{end}", f"{aside}{end}")


def _find_damaged(connection: sqlite3.Connection) -> tuple[int, list[int]]:
    """Return (number of entries, rows of damaged ones)."""
    entries, damaged = 0, []
    for row, *entry in connection.execute("SELECT rowid, key, vector, checksum FROM vectors"):
        entries += 1
        if not _is_sound(*entry):
            damaged.append(row)
    return entries, damaged


def _close(connection: sqlite3.Connection, unsaved: Counter[str], process: int) -> None:
    """Save the counts and close a connection, also when the cache is dropped or the process ends."""
    if process == os.getpid():  # a forked child may not use its parent's
        with contextlib.suppress(*_ERRORS):  # closing matters more than the counts
            _save_counts(connection, unsaved)
        connection.close()


def _save_counts(connection: sqlite3.Connection, unsaved: Counter[str]) -> None:
    """Add counts to those in the file, and reset them."""
    statement = "INSERT INTO counts VALUES (?, ?) ON CONFLICT(name) DO UPDATE SET value = value + excluded.value"
    if unsaved.total():
        connection.executemany(statement, list(unsaved.items()))
        unsaved.clear()


@functools.lru_cache(maxsize=_KEYS)
def make_key(space: str, text: str) -> bytes:
    """Return the key of a text: a digest of the space and the text, 32 bytes."""
    normal = unicodedata.normalize("NFC", text).encode("utf-8", "surrogatepass")
    head = f"{_VERSION}|{len(space)}|{space}|".encode()
    return hashlib.sha256(head + normal).digest()


def _checksum(key: bytes, vector: bytes) -> int:
    """Return the CRC-32 of an entry."""
    return zlib.crc32(vector, zlib.crc32(key))


def _is_sound(key, vector, check) -> bool:
    """Whether an entry is undamaged and finite; damage may also change the type of a value."""
    are_bytes = isinstance(key, bytes) and isinstance(vector, bytes) and not len(vector) % 4
    return are_bytes and _checksum(key, vector) == check and bool(np.isfinite(np.frombuffer(vector, "<f4")).all())
