"""The cache of text embeddings: exact, shared between processes, safe against kills and damage."""

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from zoo.embeddings.text_cache import make_key
from zoo.search import TextCache

ROOT = Path(__file__).resolve().parent.parent
DIM = 6


def encode(texts):
    """Return a unit vector for each text, a function of that text."""
    rows = np.stack([np.random.default_rng(list(text.encode()) or [0]).standard_normal(DIM) for text in texts])
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture
def cache(tmp_path):
    made = TextCache(tmp_path / "texts.sqlite")
    yield made
    made.close()


@pytest.mark.parametrize("on_disk", [True, False])
def test_a_text_is_encoded_once(on_disk, tmp_path):
    encoded = []

    def record(texts):
        encoded.append(list(texts))
        return encode(texts)

    cache = TextCache(tmp_path / "t.sqlite" if on_disk else None)
    first = cache.embed("w", ["a", "b", "a"], record)
    again = cache.embed("w", ["b", "c"], record)
    assert encoded == [["a", "b"], ["c"]]
    np.testing.assert_array_equal(first, encode(["a", "b", "a"]))
    np.testing.assert_array_equal(again, encode(["b", "c"]))
    stats = cache.stats()
    assert (stats.memory_hits, stats.disk_hits, stats.misses, stats.entries) == (1, 0, 3, 3)
    assert stats.hit_rate == pytest.approx(1 / 4)


def test_another_process_reads_the_same_bits(cache, tmp_path):
    expected = cache.embed("w", ["a", "b"], encode)
    other = TextCache(tmp_path / "texts.sqlite")
    np.testing.assert_array_equal(other.embed("w", ["b", "a"], refuse), expected[::-1])
    assert other.stats().disk_hits == 2
    other.close()


def refuse(texts):
    raise AssertionError(f"{texts} should have been in the cache")


def test_another_model_never_hits(cache):
    cache.embed("one", ["a"], encode)
    np.testing.assert_array_equal(cache.embed("two", ["a"], lambda texts: -encode(texts)), -encode(["a"]))
    assert make_key("one", "a") != make_key("on", "ea") != make_key("one|", "a")


def test_texts_in_another_normal_form_are_the_same_text():
    assert make_key("w", "caf\u00e9") == make_key("w", "cafe\u0301") != make_key("w", "cafe")


def test_memory_is_bounded_and_dropped_vectors_stay_in_the_file(tmp_path):
    cache = TextCache(tmp_path / "t.sqlite", memory=2)
    cache.embed("w", ["a", "b", "c"], encode)
    cache.embed("w", ["a"], refuse)
    assert cache.stats().disk_hits == 1
    small = TextCache(memory=2)
    small.embed("w", ["a", "b", "c"], encode)
    with pytest.raises(AssertionError):
        small.embed("w", ["a"], refuse)


def test_the_file_is_bounded(tmp_path):
    cache = TextCache(tmp_path / "t.sqlite", memory=0, max_bytes=60_000)
    for first in range(0, 2000, 100):
        cache.embed("w", [f"text {i}" for i in range(first, first + 100)], encode)
    stats = cache.stats()
    assert stats.bytes <= 60_000 and 0 < stats.entries < 2000
    cache.embed("w", ["text 1999"], refuse)  # the oldest entries are dropped


def test_an_entry_with_a_flipped_bit_is_encoded_again(cache, tmp_path):
    cache.embed("w", ["a", "b"], encode)
    cache.close()
    with sqlite3.connect(tmp_path / "texts.sqlite") as file:
        vector = bytearray(file.execute("SELECT vector FROM vectors WHERE key = ?", [make_key("w", "a")]).fetchone()[0])
        vector[5] ^= 1
        file.execute("UPDATE vectors SET vector = ? WHERE key = ?", [bytes(vector), make_key("w", "a")])
    again = TextCache(tmp_path / "texts.sqlite")
    np.testing.assert_array_equal(again.embed("w", ["a", "b"], encode), encode(["a", "b"]))
    assert (again.stats().damaged, again.stats().misses) == (1, 1)
    assert again.verify() == (2, 0)


def test_verify_drops_damaged_entries(cache):
    cache.embed("w", ["a", "b"], encode)
    cache._query("UPDATE vectors SET checksum = checksum + 1 WHERE key = ?", [make_key("w", "b")])
    assert cache.verify() == (2, 1)
    assert cache.stats().entries == 1


@pytest.mark.parametrize("content", [b"this is not a database" * 100, b"SQLite format 3\0" + bytes(4000)])
def test_a_damaged_database_is_renamed_and_replaced(content, tmp_path):
    path = tmp_path / "t.sqlite"
    path.write_bytes(content)
    cache = TextCache(path)
    np.testing.assert_array_equal(cache.embed("w", ["a"], encode), encode(["a"]))
    assert cache.stats().entries == 1
    (aside,) = [p for p in tmp_path.iterdir() if ".damaged-" in p.name]
    assert aside.read_bytes() == content


def test_clear_drops_all_entries(cache):
    cache.embed("w", ["a", "b"], encode)
    assert cache.clear() == 2 and cache.stats().entries == 0
    with pytest.raises(AssertionError):
        cache.embed("w", ["a"], refuse)


def test_requests_are_counted_across_processes(tmp_path):
    path = tmp_path / "t.sqlite"
    for texts in (["a", "b", "a"], ["a", "c"]):
        cache = TextCache(path)
        cache.embed("w", texts, encode)
        cache.embed("w", texts, refuse)
        cache.close()
    counts = TextCache(path).lifetime()
    assert (counts["misses"], counts["disk_hits"], counts["memory_hits"]) == (3, 1, 4)
    assert counts["hit_rate"] == 5 / 8
    assert TextCache().lifetime()["hit_rate"] == 0


def test_undamaged_entries_are_copied_bit_for_bit(cache, tmp_path):
    texts = [f"text {i}" for i in range(700)]
    expected = cache.embed("w", texts, encode)
    cache._query("UPDATE vectors SET checksum = checksum + 1 WHERE key = ?", [make_key("w", "text 5")])
    other = TextCache(tmp_path / "other.sqlite", memory=0)
    assert cache.copy_to(other) == 699
    np.testing.assert_array_equal(other.embed("w", texts[6:], refuse), expected[6:])
    memory = TextCache()
    assert other.copy_to(memory) == 699 and memory.copy_to(TextCache(tmp_path / "third.sqlite")) == 699
    with pytest.raises(AssertionError):
        memory.embed("w", ["text 5"], refuse)


WRITER = """
import sys
sys.path.insert(0, {tests!r})
from test_text_cache import encode, TextCache
cache = TextCache({path!r}, memory=0)
for i in range({count}):
    cache.embed("w", [f"{name} {{i}}"], encode)
    print(i, flush=True)
"""


def start_writer(path, name, count):
    code = WRITER.format(tests=str(ROOT / "tests"), path=str(path), name=name, count=count)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)


def test_a_killed_writer_beside_another_loses_nothing(tmp_path):
    path = tmp_path / "t.sqlite"
    steady, killed = start_writer(path, "steady", 60), start_writer(path, "killed", 10**9)
    for _ in range(20):
        killed.stdout.readline()
    killed.send_signal(signal.SIGKILL)
    written = 20 + len(killed.communicate(timeout=60)[0].splitlines())
    assert steady.communicate(timeout=60) and steady.returncode == 0
    cache = TextCache(path)
    cache.embed("w", [f"steady {i}" for i in range(60)], refuse)
    cache.embed("w", [f"killed {i}" for i in range(written - 1)], refuse)
    entries, damaged = cache.verify()
    assert damaged == 0 and entries >= 60 + written - 1


def test_a_forked_child_opens_its_own_connection(cache):
    if not hasattr(os, "fork"):
        pytest.skip("no fork")
    cache.embed("w", ["a"], encode)
    connection = cache._connection
    process = cache._process
    cache._process = -1  # as in a forked child
    cache._memory.clear()
    cache.embed("w", ["a"], refuse)
    assert cache._connection is not connection and cache._process == process
    connection.close()


def flips(content, count):
    """Yield `count` copies of a file, each with one bit flipped outside the zero bytes."""
    rng = np.random.default_rng(0)
    for place in rng.choice(np.flatnonzero(np.frombuffer(content, np.uint8)), count, replace=False):
        damaged = bytearray(content)
        damaged[place] ^= 1 << rng.integers(8)
        yield bytes(damaged)


def test_no_flipped_bit_raises_or_changes_a_vector(tmp_path):
    sound, texts = tmp_path / "sound.cache", [f"text {i}" for i in range(8)]
    cache = TextCache(sound)
    cache.embed("w", texts, encode)
    cache.close()
    path = tmp_path / "flipped.cache"  # not a cache's suffix, so only the content identifies it
    for i, content in enumerate(flips(sound.read_bytes(), 200)):
        path.write_bytes(content)
        cache = TextCache(path, memory=0)
        for requested in (texts, [*texts, "another"]):
            np.testing.assert_array_equal(cache.embed("w", requested, encode), encode(requested), f"flip {i}")
        cache.lifetime()
        cache.verify()
        assert cache.verify()[1] == 0
        cache.close()
    assert 10 < len(list(tmp_path.glob("flipped.cache.damaged-*"))) < 200


@pytest.mark.parametrize(
    "error", [sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY]
)
def test_an_environment_error_is_reported_and_replaces_nothing(error, cache, tmp_path, monkeypatch):
    cache.embed("w", ["a"], encode)

    def refused(connection):
        failure = sqlite3.OperationalError("the machine is busy")
        failure.sqlite_errorcode = error
        raise failure

    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(OSError, match="texts.sqlite: the machine is busy"):
        cache._run(refused)
    assert cache.stats().entries == 1 and not list(tmp_path.glob("*.damaged-*"))


def test_a_locked_file_times_out(cache, tmp_path, monkeypatch):
    cache.embed("w", ["a"], encode)
    monkeypatch.setattr("zoo.utils.database.BUSY_SECONDS", 0.01)
    other = TextCache(tmp_path / "texts.sqlite")
    cache._query("BEGIN IMMEDIATE")
    with pytest.raises(OSError, match="texts.sqlite: database is locked"):
        other.embed("w", ["b"], encode)
    cache._query("COMMIT")
    np.testing.assert_array_equal(other.embed("w", ["b"], encode), encode(["b"]))
    other.close()


def text_file(path):
    path.write_text("one\ntwo\n")


def foreign_database(path):
    with sqlite3.connect(path) as file:
        file.execute("CREATE TABLE vectors (mine TEXT)")
    file.close()


def empty_file(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("make", [text_file, foreign_database, empty_file])
def test_a_file_that_is_not_a_cache_is_left_unchanged(make, tmp_path):
    path = tmp_path / "mine.db"
    make(path)
    before = path.read_bytes()
    for create in (True, False) if before else (False,):
        cache = TextCache(path, create=create)
        for method in (TextCache.stats, TextCache.verify, lambda cache: cache.embed("w", ["a"], encode)):
            with pytest.raises(ValueError, match="mine.db is not a text cache"):
                method(cache)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_missing_cache_is_created_only_with_create(tmp_path):
    with pytest.raises(FileNotFoundError, match="No text cache at .*t.sqlite"):
        TextCache(tmp_path / "typo" / "t.sqlite", create=False).stats()
    assert not list(tmp_path.iterdir())
    (tmp_path / "t.sqlite").write_bytes(b"SQLite format 3\0" + bytes(4000))
    with pytest.raises(ValueError, match="or a damaged one"):
        TextCache(tmp_path / "t.sqlite", create=False).verify()
    with pytest.raises(ValueError, match="not a regular file; it is a folder"):
        TextCache(tmp_path).stats()
    assert [path.name for path in tmp_path.iterdir()] == ["t.sqlite"]


@pytest.mark.parametrize("end", ["", "del cache; ", "cache.close(); "])
def test_hits_are_kept_when_the_process_ends(cache, tmp_path, end):
    """However the cache goes: at the end of the process, with its last reference, or closed."""
    cache.embed("s", ["a", "b"], encode)
    cache.close()
    program = (
        "import sys; from zoo.search import TextCache; cache = TextCache(sys.argv[1]); "
        f"[cache.embed('s', ['a', 'b'], None) for _ in range(50)]; {end}"
    )
    subprocess.run([sys.executable, "-c", program, tmp_path / "texts.sqlite"], check=True, cwd=ROOT)
    found = cache.lifetime()
    assert (found["disk_hits"], found["memory_hits"], found["misses"]) == (2, 98, 2)
