"""The cache of text embeddings and the index: exact, shared, and whole after a kill or a flipped byte."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from zoo.files import lock
from zoo.search import Index, TextCache
from zoo.search.index import best
from zoo.search.text_cache import make_key

ROOT = Path(__file__).resolve().parent.parent
DIM = 6


def unit(x):
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def encode(texts):
    """A vector for each text, a function of the text alone."""
    rows = [np.random.default_rng(list(text.encode()) or [0]).standard_normal(DIM) for text in texts]
    return unit(np.stack(rows))


@pytest.fixture
def cache(tmp_path):
    made = TextCache(tmp_path / "texts.sqlite")
    yield made
    made.close()


# The cache.


@pytest.mark.parametrize("on_disk", [True, False])
def test_a_text_is_encoded_once(on_disk, tmp_path):
    asked = []

    def watched(texts):
        asked.append(list(texts))
        return encode(texts)

    cache = TextCache(tmp_path / "t.sqlite" if on_disk else None)
    first = cache.embed("w", ["a", "b", "a"], watched)
    again = cache.embed("w", ["b", "c"], watched)
    assert asked == [["a", "b"], ["c"]]
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
    raise AssertionError(f"{texts} should have been there")


def test_another_model_never_hits(cache):
    cache.embed("one", ["a"], encode)
    np.testing.assert_array_equal(cache.embed("two", ["a"], lambda texts: -encode(texts)), -encode(["a"]))
    assert make_key("one", "a") != make_key("on", "ea") != make_key("one|", "a")


def test_texts_in_another_normal_form_are_the_same_text():
    assert make_key("w", "caf\u00e9") == make_key("w", "cafe\u0301") != make_key("w", "cafe")


def test_memory_is_bounded_and_the_file_still_has_it(tmp_path):
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
    cache.embed("w", ["text 1999"], refuse)  # the first written go first


def test_a_flipped_byte_is_found_and_encoded_again(cache, tmp_path):
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


def test_verify_drops_what_is_damaged(cache):
    cache.embed("w", ["a", "b"], encode)
    cache._ask("UPDATE vectors SET checksum = checksum + 1 WHERE key = ?", [make_key("w", "b")])
    assert cache.verify() == (2, 1)
    assert cache.stats().entries == 1


@pytest.mark.parametrize("content", [b"this is no database at all" * 100, b"SQLite format 3\0" + bytes(4000)])
def test_a_file_that_is_no_database_is_set_aside(content, tmp_path):
    path = tmp_path / "t.sqlite"
    path.write_bytes(content)
    cache = TextCache(path)
    np.testing.assert_array_equal(cache.embed("w", ["a"], encode), encode(["a"]))
    assert cache.stats().entries == 1
    (aside,) = [p for p in tmp_path.iterdir() if ".damaged-" in p.name]
    assert aside.read_bytes() == content


def test_clear(cache):
    cache.embed("w", ["a", "b"], encode)
    assert cache.clear() == 2 and cache.stats().entries == 0
    with pytest.raises(AssertionError):
        cache.embed("w", ["a"], refuse)


def test_what_was_asked_is_counted_over_processes(tmp_path):
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


def test_entries_are_copied_bit_by_bit_and_damaged_ones_are_not(cache, tmp_path):
    texts = [f"text {i}" for i in range(700)]
    expected = cache.embed("w", texts, encode)
    cache._ask("UPDATE vectors SET checksum = checksum + 1 WHERE key = ?", [make_key("w", "text 5")])
    other = TextCache(tmp_path / "other.sqlite", memory=0)
    assert cache.copy_to(other) == 699
    np.testing.assert_array_equal(other.embed("w", texts[6:], refuse), expected[6:])
    memory = TextCache()
    assert other.copy_to(memory) == 699 and memory.copy_to(TextCache(tmp_path / "third.sqlite")) == 699
    with pytest.raises(AssertionError):
        memory.embed("w", ["text 5"], refuse)


def test_facts_are_committed_with_the_vectors(vectors, tmp_path):
    index = Index.build(vectors[:5], tmp_path / "i", facts={"a": 1, "b": 2})
    index.add(vectors[5:9], facts={"b": 3})
    index.add(vectors[:0], facts={"c": 4})
    info = Index.open(tmp_path / "i").info()
    assert (info["a"], info["b"], info["c"], info["vectors"], info["segments"]) == (1, 3, 4, 9, 2)
    with pytest.raises(ValueError):
        index.add(vectors[9:10], ids=["0"], facts={"b": 5})
    assert Index.open(tmp_path / "i").info()["b"] == 3


def test_the_highest_of_many_are_those_of_a_full_sort(rng):
    scores = np.round(rng.standard_normal(10_000), 2).astype(np.float32)  # with equals
    order = np.lexsort((np.arange(10_000), -scores))
    for k in (1, 7, 38, 39, 40, 1000, 10_000, 20_000):
        np.testing.assert_array_equal(best(scores, k), order[:k])
    rest = np.full(1000, -np.inf, np.float32)
    rest[[3, 998]] = 1.0  # the last group is not a whole one
    assert best(rest, 2).tolist() == [3, 998] and best(rest, 1).tolist() == [3]


WRITER = """
import sys
sys.path.insert(0, {tests!r})
from test_search import encode, TextCache
cache = TextCache({path!r}, memory=0)
for i in range({count}):
    cache.embed("w", [f"{name} {{i}}"], encode)
    print(i, flush=True)
"""


def start_writer(path, name, count):
    code = WRITER.format(tests=str(ROOT / "tests"), path=str(path), name=name, count=count)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)


def test_two_processes_write_and_one_is_killed(tmp_path):
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


def test_a_forked_child_opens_the_file_anew(cache):
    if not hasattr(os, "fork"):
        pytest.skip("no fork")
    cache.embed("w", ["a"], encode)
    connection = cache._connection
    process = cache._process
    cache._process = -1  # as a child sees it
    cache._memory.clear()
    cache.embed("w", ["a"], refuse)
    assert cache._connection is not connection and cache._process == process
    connection.close()


# The index.


@pytest.fixture
def vectors(rng):
    return unit(rng.standard_normal((500, 32)))


def exact(vectors, query, k):
    """The k best by a full sort, of equals the first."""
    return np.lexsort((np.arange(len(vectors)), -(vectors @ query)))[:k]


@pytest.mark.parametrize("k", [1, 5, 499, 500, 1000])
def test_search_is_exact(k, vectors, tmp_path, rng):
    index = Index.build(vectors, tmp_path / "i")
    for query in unit(rng.standard_normal((5, 32))):
        ids, scores = index.search(query, k)
        expected = exact(vectors, query, k)
        assert ids == [str(place) for place in expected]
        np.testing.assert_allclose(scores, (vectors @ query)[expected], atol=1e-6)


def test_several_queries_at_once(vectors, tmp_path):
    index = Index.build(vectors, tmp_path / "i")
    ids, scores = index.search(vectors[:3], 2)
    assert [row[0] for row in ids] == ["0", "1", "2"] and scores.shape == (3, 2)


@pytest.mark.parametrize("dtype, error", [("float32", 1e-6), ("float16", 1e-3), ("int8", 1e-2)])
def test_storage_changes_size_and_little_else(dtype, error, vectors, tmp_path, monkeypatch):
    monkeypatch.setattr("zoo.search.segment.BLOCK_BYTES", 32 * 4 * 7)  # several blocks
    index = Index.build(vectors, tmp_path / "i", dtype=dtype)
    _, scores = index.search(vectors[9], 500)
    np.testing.assert_allclose(scores, np.sort(vectors @ vectors[9])[::-1], atol=error)
    assert index.search(vectors[9], 1)[0] == ["9"]
    bytes_a_number = {"float32": 4, "float16": 2, "int8": 1}[dtype]
    assert (tmp_path / "i" / "vectors-000001.bin").stat().st_size == 500 * 32 * bytes_a_number
    np.testing.assert_allclose(index.vector("9"), vectors[9], atol=error)


def test_equals_stand_in_the_order_they_were_added():
    scores = np.array([0.5, 0.9, 0.5, 0.9, 0.5], np.float32)
    assert best(scores, 3).tolist() == [1, 3, 0]
    assert best(scores, 4).tolist() == [1, 3, 0, 2]
    assert best(scores, 0).tolist() == []


def test_a_score_does_not_depend_on_what_stands_beside(vectors, tmp_path):
    whole, parts = Index.build(vectors, tmp_path / "whole"), Index.build(vectors[:7], tmp_path / "parts")
    parts.add(np.concatenate([vectors[7:], vectors[:7]]))
    for query in vectors[:5]:
        one, two = whole.search(query, len(vectors)), parts.search(query, len(vectors) + 7)
        assert set(one[1]) == set(two[1])  # to the last bit


def test_an_index_is_opened_as_it_was_built(vectors, tmp_path):
    metadata = [{"even": i % 2 == 0, "name": f"käfer {i}"} for i in range(500)]
    built = Index.build(vectors, tmp_path / "i", ids=[f"n{i}" for i in range(500)], metadata=metadata, model="m")
    opened = Index.open(tmp_path / "i", model="m")
    assert opened.search(vectors[3], 3)[0] == built.search(vectors[3], 3)[0]
    assert opened.metadata("n3") == {"even": False, "name": "käfer 3"}
    assert (
        opened.search(vectors[3], 3, where={"even": True})[0]
        == [f"n{place}" for place in exact(vectors, vectors[3], 500) if place % 2 == 0][:3]
    )
    assert (len(opened), opened.verify(), opened.info()["segments"]) == (500, 500, 1)


def test_adding_and_removing(vectors, tmp_path):
    index = Index.build(vectors[:100], tmp_path / "i")
    index.add(vectors[100:], metadata=[{"new": True}] * 400)
    whole = Index.build(vectors, tmp_path / "whole")
    assert index.search(vectors[7], 50)[0] == whole.search(vectors[7], 50)[0]
    index.remove(["7", "200"])
    again = Index.open(tmp_path / "i")
    assert len(again) == 498 and "7" not in again.search(vectors[7], 498)[0]
    assert again.metadata("499") == {"new": True} and again.metadata("3") == {}
    with pytest.raises(KeyError, match="'7' is not in the index"):
        again.remove(["7"])
    again.add(vectors[[7]], ids=["7"])
    assert again.search(vectors[7], 1)[0] == ["7"]


def test_two_writers_see_each_other(vectors, tmp_path):
    one = Index.build(vectors[:10], tmp_path / "i", ids=[f"a{i}" for i in range(10)])
    other = Index.open(tmp_path / "i")
    one.add(vectors[10:20], ids=[f"b{i}" for i in range(10)])
    other.add(vectors[20:30], ids=[f"c{i}" for i in range(10)])
    assert len(Index.open(tmp_path / "i")) == len(other) == 30
    with pytest.raises(ValueError, match="'c0' is in the index already"):
        one.add(vectors[:1], ids=["c0"])
    with lock(tmp_path / "i" / ".lock"), pytest.raises(ValueError, match="is held by process"):
        one.add(vectors[:1], ids=["d"])


def test_another_models_index_is_refused(vectors, tmp_path):
    Index.build(vectors, tmp_path / "i", model="a" * 64)
    with pytest.raises(ValueError, match="made with another model"):
        Index.open(tmp_path / "i", model="b" * 64)


def test_damage_is_found(vectors, tmp_path):
    Index.build(vectors, tmp_path / "i")
    file = tmp_path / "i" / "vectors-000001.bin"
    content = bytearray(file.read_bytes())
    content[1000] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="vectors-000001.bin is damaged: its digest"):
        Index.open(tmp_path / "i").verify()
    file.write_bytes(content[:-4])
    with pytest.raises(ValueError, match="bytes, and 64000 were written"):
        Index.open(tmp_path / "i")


@pytest.mark.parametrize("cut", [0, 1, 50, 200])
def test_a_torn_manifest_is_refused(cut, vectors, tmp_path):
    Index.build(vectors[:5], tmp_path / "i")
    file = tmp_path / "i" / "manifest.json"
    file.write_text(file.read_text()[:cut])
    with pytest.raises(ValueError, match="not the manifest of an index"):
        Index.open(tmp_path / "i")


def test_a_write_that_fails_leaves_the_index_as_it_was(vectors, tmp_path, monkeypatch):
    index = Index.build(vectors[:10], tmp_path / "i")

    def full(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr("zoo.search.index._write_manifest", full)
    with pytest.raises(OSError, match="no space"):
        index.add(vectors[10:], ids=[f"n{i}" for i in range(490)])
    monkeypatch.undo()
    opened = Index.open(tmp_path / "i")
    assert len(opened) == opened.verify() == 10
    opened.add(vectors[10:], ids=[f"n{i}" for i in range(490)])
    assert len(Index.open(tmp_path / "i")) == 500


ADDER = """
import sys, numpy as np
from zoo.search import Index
index = Index.open({path!r})
vectors = np.eye(4, dtype=np.float32)
for i in range(10**9):
    index.add(vectors, ids=[f"{{i}}-{{j}}" for j in range(4)])
    print(i, flush=True)
"""


def test_a_killed_writer_leaves_whole_portions(tmp_path):
    path = tmp_path / "i"
    Index.build(np.empty((0, 4), np.float32), path)
    child = subprocess.Popen(
        [sys.executable, "-c", ADDER.format(path=str(path))], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    for _ in range(5):
        child.stdout.readline()
    time.sleep(0.013)
    child.send_signal(signal.SIGKILL)
    said = 5 + len(child.communicate(timeout=60)[0].splitlines())
    opened = Index.open(path)
    assert len(opened) % 4 == 0 and len(opened) >= 4 * said and opened.verify() == len(opened)
    opened.add(np.eye(4, dtype=np.float32), ids=list("abcd"))
    assert opened.search(np.eye(4, dtype=np.float32)[2], len(opened))[1].sum() == len(opened) // 4


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda v, p: Index.build(v, p, dtype="float64"), "one of float32, float16, int8"),
        (lambda v, p: Index.build(v[0], p), r"must be \(N, D\)"),
        (lambda v, p: Index.build(v, p, ids=["a"]), "500 vectors, 1 ids"),
        (lambda v, p: Index.build(v[:2], p, ids=["a", "a"]), "'a' is in the index already, or twice"),
        (lambda v, p: Index.build(v * np.nan, p), "must be finite"),
        (lambda v, p: Index.build(v, p).search(v[0, :5]), r"query is \(5,\); it must be \(32,\)"),
        (lambda v, p: Index.build(v, p).search(v[0], 0), "k=0"),
        (lambda v, p: Index.build(v, p).search(v[0] * np.nan), "query is not finite"),
        (lambda v, p: (Index.build(v, p), Index.build(v, p)), "holds an index already"),
    ],
)
def test_what_cannot_be_is_refused(call, message, vectors, tmp_path):
    with pytest.raises(ValueError, match=message):
        call(vectors, tmp_path / "i")


def test_no_index_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="No index at"):
        Index.open(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"format": "other"}))
    with pytest.raises(ValueError, match="not the manifest"):
        Index.open(tmp_path)
