"""Text embeddings kept: a memory of the latest over an SQLite file that processes share.

An entry's key is a digest of all that the embedding depends on: the space (weights, tokenizer, precision) and the text
in Unicode's normal form C. Its value is the unit vector itself, float32, with a checksum: a damaged one is dropped and
encoded again. The file is in WAL mode, so that it survives a killed writer; a cache that SQLite cannot read is set
aside, and what is no cache is refused.
"""

import contextlib
import functools
import hashlib
import os
import secrets
import sqlite3
import threading
import time
import unicodedata
import zlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

VERSION = "1"  # of what a key says
BUSY_SECONDS = 30.0
TABLE = """CREATE TABLE IF NOT EXISTS vectors
(key BLOB PRIMARY KEY, vector BLOB NOT NULL, checksum INTEGER NOT NULL, place INTEGER NOT NULL)"""
PLACES = "CREATE INDEX IF NOT EXISTS places ON vectors(place)"  # else each write would read all that is there
COUNTS = "CREATE TABLE IF NOT EXISTS counts (name TEXT PRIMARY KEY, value INTEGER NOT NULL)"
STATEMENTS = (TABLE, PLACES, COUNTS)
OURS = {statement.replace("IF NOT EXISTS ", "") for statement in STATEMENTS}  # as SQLite keeps them
SUFFIX, HEAD = ".sqlite", 1 << 16  # of a file's name; bytes that hold its schema
LAST_PLACE = "SELECT MAX(place) FROM vectors WHERE place < 1 << 62"  # no damaged one, which may be a text
OLDEST_TENTH = "SELECT rowid FROM vectors ORDER BY place LIMIT 1 + (SELECT COUNT(*) FROM vectors) / 10"
USED = """SELECT (page_count - freelist_count) * page_size
FROM pragma_page_count, pragma_freelist_count, pragma_page_size"""
COUNTED = ("memory_hits", "disk_hits", "misses", "damaged")
ASKED_AT_ONCE = 500  # of SQLite's parameters
# What SQLite says of the machine, or of us. READONLY it says of the machine or of the file, all else of the file.
MACHINE = {
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_NOLFS,
    sqlite3.SQLITE_MISUSE,
}
ERRORS = (sqlite3.Error, UnicodeDecodeError)  # the latter where a message has a damaged name in it
KEYS = 4096  # remembered: to make one takes a fifth of a hit's time


def default_cache_path() -> Path:
    """$ZOO_TEXT_CACHE, or a file below the user's cache folder."""
    if path := os.environ.get("ZOO_TEXT_CACHE"):
        return Path(path)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "convnext-clip-zoo" / "texts.sqlite"


@dataclass(frozen=True)
class CacheStats:
    """What this process asked of a cache, and what the file holds.

    Args:
        memory_hits, disk_hits, misses: texts asked for.
        damaged: entries that were dropped.
        entries, bytes: of the file; of the memory where there is no file.
    """

    memory_hits: int
    disk_hits: int
    misses: int
    damaged: int
    entries: int
    bytes: int

    @property
    def hit_rate(self) -> float:
        """Share of the texts asked for that were there; 0 before any was."""
        hits = self.memory_hits + self.disk_hits
        return hits / max(1, hits + self.misses)


class TextCache:
    """A cache of text embeddings. Threads may share one object, processes one file.

    Args:
        path: of the file, made with its folder if need be; None keeps embeddings in memory alone.
        memory: how many vectors are kept in memory, the least recently used dropped first.
        max_bytes: of the file; beyond it the entries written first are dropped.
        create: whether a file that is missing is made, and a damaged cache set aside for a new one.

    All methods raise OSError for a file that the machine does not let be read or written now, and ValueError for one
    that is no cache; unless `create`, also FileNotFoundError and, for a damaged cache, ValueError.
    """

    def __init__(
        self, path: str | Path | None = None, *, memory: int = 4096, max_bytes: int = 1 << 30, create: bool = True
    ):
        self.path = None if path is None else Path(path)
        self.max_bytes, self._create = max_bytes, create
        self._memory: OrderedDict[bytes, np.ndarray] = OrderedDict()
        self._most = memory
        self._counts = dict.fromkeys(COUNTED, 0)
        self._told = dict.fromkeys(COUNTED, 0)  # of them, what the file knows
        self._lock = threading.RLock()
        self._connection, self._process = None, None

    def embed(self, space: str, texts: Sequence[str], encode: Callable[[list[str]], np.ndarray]) -> np.ndarray:
        """float32 (N, D): what is there, and of the rest what `encode` gives, which is kept.

        Args:
            space: digest of what the vectors depend on but the text.
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
        for row, key in zip(rows, keys, strict=True):  # for one row a fifth of what np.stack takes
            row[:] = found[key]
        return rows

    def get(self, keys: Sequence[bytes]) -> dict[bytes, np.ndarray]:
        """{key: float32 (D,), not to be written to} of those that are there."""
        with self._lock:
            found = {key: self._memory[key] for key in keys if key in self._memory}
            for key in found:
                self._memory.move_to_end(key)
            self._counts["memory_hits"] += len(found)
            rest = [key for key in dict.fromkeys(keys) if key not in found]
            if not rest:
                return found
            from_disk = self._read(rest) if self.path is not None else {}
            for key, vector in from_disk.items():
                self._remember(key, vector)
            self._counts["disk_hits"] += len(from_disk)
            self._counts["misses"] += len(rest) - len(from_disk)
            return found | from_disk

    def put(self, vectors: dict[bytes, np.ndarray]) -> None:
        """Keeps float32 (D,) vectors under their keys."""
        with self._lock:
            for key, vector in vectors.items():
                self._remember(key, np.array(vector, np.float32))
            if self.path is not None:
                self._write(vectors)

    def stats(self) -> CacheStats:
        with self._lock:
            if self.path is None:
                size = sum(vector.nbytes for vector in self._memory.values())
                return CacheStats(**self._counts, entries=len(self._memory), bytes=size)
            entries = self._ask("SELECT COUNT(*) FROM vectors")[0][0]
            return CacheStats(**self._counts, entries=entries, bytes=self._used_bytes())

    def lifetime(self) -> dict:
        """{"memory_hits", "disk_hits", "misses", "damaged", "hit_rate"} of all processes that closed the file or wrote
        to it; of this one where there is no file."""
        with self._lock:
            counts = dict(self._counts)
            if self.path is not None:
                self._run(self._tell)
                told = self._ask("SELECT name, value FROM counts")
                counts |= {name: value for name, value in told if name in counts and isinstance(value, int)}
            return {**counts, "hit_rate": CacheStats(**counts, entries=0, bytes=0).hit_rate}

    def copy_to(self, other: "TextCache") -> int:
        """Puts every sound entry into another cache; how many there were."""
        if self.path is None:
            other.put(dict(self._memory))
            return len(self._memory)
        copied = 0
        with self._lock:
            keys = [key for (key,) in self._ask("SELECT key FROM vectors ORDER BY place")]
            for first in range(0, len(keys), ASKED_AT_ONCE):
                part = self._read(keys[first : first + ASKED_AT_ONCE])
                other.put({key: part[key] for key in keys[first : first + ASKED_AT_ONCE] if key in part})
                copied += len(part)
        return copied

    def clear(self) -> int:
        """Drops all entries; how many there were."""
        with self._lock:
            entries = self.stats().entries
            self._memory.clear()
            if self.path is not None:
                self._ask("DELETE FROM vectors")
                self._ask("VACUUM")
            return entries

    def verify(self) -> tuple[int, int]:
        """(entries, damaged ones, which are dropped) of the file, each read and checked."""
        if self.path is None:
            return len(self._memory), 0
        with self._lock:
            rows = self._ask("SELECT rowid, key, vector, checksum FROM vectors")
            damaged = [row for row, *entry in rows if not is_sound(*entry)]
            self._drop(damaged)
            return len(rows), len(damaged)

    def close(self) -> None:
        with self._lock:
            if self._connection is not None and self._process == os.getpid():
                with contextlib.suppress(*ERRORS):  # what was counted matters less than that it closes
                    self._tell(self._connection)
                self._connection.close()
            self._connection = None

    # Memory.

    def _remember(self, key: bytes, vector: np.ndarray) -> None:
        vector.flags.writeable = False
        self._memory[key] = vector
        self._memory.move_to_end(key)
        while len(self._memory) > self._most:
            self._memory.popitem(last=False)

    # The file.

    def _read(self, keys: list[bytes]) -> dict[bytes, np.ndarray]:
        found, damaged = {}, []
        for first in range(0, len(keys), ASKED_AT_ONCE):
            part = keys[first : first + ASKED_AT_ONCE]
            marks = ",".join("?" * len(part))
            for row, key, vector, check in self._ask(
                f"SELECT rowid, key, vector, checksum FROM vectors WHERE key IN ({marks})", part
            ):
                if is_sound(key, vector, check):
                    found[key] = np.frombuffer(vector, "<f4").astype(np.float32)
                else:
                    damaged.append(row)
        self._drop(damaged)
        return found

    def _write(self, vectors: dict[bytes, np.ndarray]) -> None:
        blobs = {key: np.asarray(vector, "<f4").tobytes() for key, vector in vectors.items()}

        def write(connection):
            connection.execute("BEGIN IMMEDIATE")
            with connection:  # one transaction, which takes a fraction of what five do
                place = (connection.execute(LAST_PLACE).fetchone()[0] or 0) + 1
                rows = [(key, blob, checksum(key, blob), place + i) for i, (key, blob) in enumerate(blobs.items())]
                connection.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?, ?)", rows)
                self._tell(connection)

        self._run(write)
        drop = f"DELETE FROM vectors WHERE rowid IN ({OLDEST_TENTH})"
        while self._used_bytes() > self.max_bytes and self._run(lambda c: c.execute(drop).rowcount):
            pass

    def _tell(self, connection: sqlite3.Connection) -> None:
        """Adds what was counted since the last time to what the file knows."""
        rows = [(name, self._counts[name] - self._told[name]) for name in COUNTED]
        statement = "INSERT INTO counts VALUES (?, ?) ON CONFLICT(name) DO UPDATE SET value = value + excluded.value"
        if any(more for _, more in rows):
            connection.executemany(statement, rows)
            self._told = dict(self._counts)

    def _drop(self, rows: list[int]) -> None:
        if rows:
            self._counts["damaged"] += len(rows)
            self._ask("DELETE FROM vectors WHERE rowid = ?", [(row,) for row in rows], many=True)

    def _used_bytes(self) -> int:
        return self._ask(USED)[0][0]

    def _ask(self, statement: str, values: Sequence = (), *, many: bool = False) -> list:
        """Rows of one statement, a transaction of its own."""
        return self._run(lambda c: (c.executemany if many else c.execute)(statement, values).fetchall())

    def _run(self, action: Callable):
        """What `action` makes of the connection; where it says that the file is damaged, of a new one: another process
        may have set the file aside already, else it gives way to an empty one."""
        for repair in (self.close, self._set_aside, None):
            try:
                return action(self._open())
            except ERRORS as error:
                if not self._is_damage(error):
                    raise OSError(f"{self.path}: {error}") from error
                if repair is None or not (self._create and self._was_cache()):
                    raise ValueError(f"{self.path} is no cache of texts, or a damaged one: {error}") from error
                repair()
        raise AssertionError("unreachable")

    def _is_damage(self, error: Exception) -> bool:
        """Whether an error is of the file: not for a lock held too long or a full disk, with which it is sound."""
        if isinstance(error, UnicodeDecodeError):
            return True
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_MISUSE) & 0xFF
        return os.access(self.path, os.W_OK) if code == sqlite3.SQLITE_READONLY else code not in MACHINE

    def _was_cache(self) -> bool:
        """Whether a file that cannot be read may give way: by its name, or a statement of ours that is still in it."""
        if self.path.suffix == SUFFIX:
            return True
        with open(self.path, "rb") as file:
            head = file.read(HEAD)
        return any(statement.encode() in head for statement in OURS)

    def _open(self) -> sqlite3.Connection:
        if self._connection is None or self._process != os.getpid():  # a forked child may not use its parent's
            if self._create:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            elif not self.path.exists():
                raise FileNotFoundError(f"No cache of texts at {str(self.path)!r}.")
            connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            try:
                self._prepare(connection)
            except BaseException:
                connection.close()
                raise
            self._connection, self._process = connection, os.getpid()
        return self._connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        """Makes the tables where there are none; ValueError for a database that has others."""
        connection.text_factory = lambda text: text.decode(errors="replace")
        there = {statement for (statement,) in connection.execute("SELECT sql FROM sqlite_master")}
        if there.isdisjoint(OURS) and (there or not self._create):
            raise ValueError(f"{self.path} is no cache of texts: it has other tables than one, or none")
        _retry(lambda: connection.execute("PRAGMA journal_mode=WAL"))
        connection.execute("PRAGMA synchronous=NORMAL")
        for statement in STATEMENTS:
            connection.execute(statement)

    def _set_aside(self) -> None:
        """Renames a file that SQLite cannot read, so that a new one takes its place."""
        self.close()
        aside = f"{self.path}.damaged-{secrets.token_hex(4)}"
        for end in ("", "-wal", "-shm"):
            with contextlib.suppress(OSError):
                os.replace(f"{self.path}{end}", f"{aside}{end}")


def _retry(action: Callable, times: int = 100) -> None:
    """For the one statement that does not wait while another process says the same."""
    for attempt in range(times):
        try:
            action()
            return
        except sqlite3.OperationalError:
            if attempt == times - 1:
                raise
            time.sleep(0.02)


@functools.lru_cache(maxsize=KEYS)
def make_key(space: str, text: str) -> bytes:
    """32 bytes: a digest of the space and the text, each with its length."""
    normal = unicodedata.normalize("NFC", text).encode("utf-8", "surrogatepass")
    head = f"{VERSION}|{len(space)}|{space}|".encode()
    return hashlib.sha256(head + normal).digest()


def checksum(key: bytes, vector: bytes) -> int:
    return zlib.crc32(vector, zlib.crc32(key))


def is_sound(key, vector, check) -> bool:
    """Whether an entry is what was written; damage may change the type of a value, too."""
    return (
        isinstance(key, bytes) and isinstance(vector, bytes) and not len(vector) % 4 and checksum(key, vector) == check
    )
