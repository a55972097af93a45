"""The index: exact results, atomic writes, damage detected."""

import contextlib
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from zoo.embeddings.catalogue import NAME, Catalogue
from zoo.embeddings.segment import widen
from zoo.embeddings.vectors import best
from zoo.search import Index
from zoo.utils.arrays import unit_rows
from zoo.utils.files import lock

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def vectors(rng):
    return unit_rows(rng.standard_normal((500, 32)))


def exact(vectors, query, k):
    """Return the k best by a full sort, ties by place."""
    return np.lexsort((np.arange(len(vectors)), -(vectors @ query)))[:k]


@pytest.mark.parametrize("k", [1, 5, 499, 500, 1000])
def test_search_is_exact(k, vectors, tmp_path, rng):
    index = Index.build(vectors, tmp_path / "i")
    for query in unit_rows(rng.standard_normal((5, 32))):
        ids, scores = index.search(query, k)
        expected = exact(vectors, query, k)
        assert ids == [str(place) for place in expected]
        np.testing.assert_allclose(scores, (vectors @ query)[expected], atol=1e-6)


def test_several_queries_at_once(vectors, tmp_path):
    index = Index.build(vectors, tmp_path / "i")
    ids, scores = index.search(vectors[:3], 2)
    assert [row[0] for row in ids] == ["0", "1", "2"] and scores.shape == (3, 2)


@pytest.mark.parametrize("dtype, error", [("float32", 1e-6), ("float16", 1e-3), ("int8", 1e-2)])
def test_reduced_precision_storage_changes_size_and_little_else(dtype, error, vectors, tmp_path, monkeypatch):
    monkeypatch.setattr("zoo.embeddings.segment.BLOCK_BYTES", 32 * 4 * 7)  # several blocks
    index = Index.build(vectors, tmp_path / "i", dtype=dtype)
    _, scores = index.search(vectors[9], 500)
    np.testing.assert_allclose(scores, np.sort(vectors @ vectors[9])[::-1], atol=error)
    assert index.search(vectors[9], 1)[0] == ["9"]
    bytes_a_number = {"float32": 4, "float16": 2, "int8": 1}[dtype]
    assert (tmp_path / "i" / "vectors-000001.bin").stat().st_size == 500 * 32 * bytes_a_number
    np.testing.assert_allclose(index.vector("9"), vectors[9], atol=error)


def test_every_float16_is_widened_exactly():
    halves = np.arange(1 << 16, dtype="<u2").view("<f2").reshape(256, 256)
    finite = np.isfinite(halves)
    found = widen(halves)
    np.testing.assert_array_equal(found[finite].view(np.int32), halves[finite].astype(np.float32).view(np.int32))
    assert np.isnan(found[~finite]).all() and found.dtype == np.float32


def test_ties_keep_the_order_they_were_added():
    scores = np.array([0.5, 0.9, 0.5, 0.9, 0.5], np.float32)
    assert best(scores, 3).tolist() == [1, 3, 0]
    assert best(scores, 4).tolist() == [1, 3, 0, 2]
    assert best(scores, 0).tolist() == []


def test_a_score_does_not_depend_on_other_vectors(vectors, tmp_path):
    whole, parts = Index.build(vectors, tmp_path / "whole"), Index.build(vectors[:7], tmp_path / "parts")
    parts.add(np.concatenate([vectors[7:], vectors[:7]]))
    for query in vectors[:5]:
        one, two = whole.search(query, len(vectors)), parts.search(query, len(vectors) + 7)
        assert set(one[1]) == set(two[1])  # to the last bit


def test_an_opened_index_equals_the_built_one(vectors, tmp_path):
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


def test_a_query_that_matches_nothing_finds_nothing(rng, tmp_path):
    kinds = rng.standard_normal((10, 64))
    vectors = unit_rows(kinds[rng.integers(0, 10, 1000)] + 0.6 * rng.standard_normal((1000, 64)))
    index = Index.build(vectors, tmp_path / "i")
    with pytest.raises(ValueError, match="is not calibrated"):
        index.score_limit()
    with pytest.raises(ValueError, match="19 queries; a calibration needs at least 20"):
        index.calibrate(vectors[:19])
    strange = unit_rows(rng.standard_normal((2000, 64)))
    index.calibrate(strange[:1000])
    for rate in (0.02, 0.2):
        limit = Index.open(tmp_path / "i").score_limit(rate)
        _, scores = index.search(strange[1000:], 1)
        assert 0.5 * rate < (scores >= limit).mean() < 1.5 * rate
    for kind in kinds:
        query = unit_rows(kind + 0.5 * rng.standard_normal(64))
        assert len(index.search(query, min_score=index.score_limit(0.02))[0]) == 10
    with pytest.raises(ValueError, match="false_rate=1"):
        index.score_limit(1)


def test_a_link_in_place_of_the_catalogue_is_refused(vectors, tmp_path):
    Index.build(vectors[:5], tmp_path / "i").close()
    (tmp_path / "i" / NAME).rename(tmp_path / "other")
    (tmp_path / "i" / NAME).symlink_to(tmp_path / "other")
    with pytest.raises(ValueError, match=NAME):
        Index.open(tmp_path / "i")


def test_two_writers_see_each_other(vectors, tmp_path):
    one = Index.build(vectors[:10], tmp_path / "i", ids=[f"a{i}" for i in range(10)])
    other = Index.open(tmp_path / "i")
    one.add(vectors[10:20], ids=[f"b{i}" for i in range(10)])
    other.add(vectors[20:30], ids=[f"c{i}" for i in range(10)])
    assert len(Index.open(tmp_path / "i")) == len(other) == 30
    with pytest.raises(ValueError, match="'c0' is already in the index"):
        one.add(vectors[:1], ids=["c0"])
    with lock(tmp_path / "i" / ".lock"), pytest.raises(ValueError, match="is held by process"):
        one.add(vectors[:1], ids=["d"])


def test_another_models_index_is_refused(vectors, tmp_path):
    Index.build(vectors, tmp_path / "i", model="a" * 64)
    with pytest.raises(ValueError, match="made with another model"):
        Index.open(tmp_path / "i", model="b" * 64)


def test_damaged_files_are_detected(vectors, tmp_path):
    Index.build(vectors, tmp_path / "i")
    file = tmp_path / "i" / "vectors-000001.bin"
    content = bytearray(file.read_bytes())
    content[1000] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="vectors-000001.bin is damaged: its digest"):
        Index.open(tmp_path / "i").verify()
    file.write_bytes(content[:-4])
    with pytest.raises(ValueError, match="bytes instead of 64000"):
        Index.open(tmp_path / "i")


@pytest.mark.parametrize(
    "arguments",
    [
        {"ids": ["a", "a"]},
        {"ids": ["a", "\udcff"]},
        {"ids": ["a"]},
        {"metadata": [{}, {"a": "\udcff"}]},
        {"metadata": [{}, {"a": object()}]},
    ],
)
def test_refused_input_leaves_no_files(arguments, vectors, tmp_path):
    with pytest.raises((ValueError, TypeError)):
        Index.build(vectors[:2], tmp_path / "i", **arguments)
    with pytest.raises(ValueError):
        Index.build(vectors[:2] * np.nan, tmp_path / "i")
    assert not list(tmp_path.rglob("*.sqlite")) + list(tmp_path.rglob("*.bin"))
    index = Index.build(vectors[2:4], tmp_path / "i", ids=["c", "d"])
    files = set(index.path.iterdir())
    with pytest.raises((ValueError, TypeError)):
        index.add(vectors[:2], **arguments)
    assert set(index.path.iterdir()) == files and len(Index.open(index.path)) == 2


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE info SET value = '0' WHERE name = 'dim'",
        "UPDATE info SET value = '\"float64\"' WHERE name = 'dtype'",
        "UPDATE info SET value = '[]' WHERE name = 'facts'",
        "UPDATE info SET value = '{' WHERE name = 'facts'",
        "UPDATE info SET value = '3' WHERE name = 'version'",
        "UPDATE info SET value = '1' WHERE name = 'model'",
        "DELETE FROM info",
        "UPDATE segments SET first = 1",
        "UPDATE segments SET size = -1",
        "UPDATE segments SET size = 'x'",
        "UPDATE segments SET number = -1",
        "UPDATE segments SET terms = 4",
        "INSERT INTO removed VALUES (5)",
        "INSERT INTO removed VALUES (-1)",
        "CREATE TRIGGER t AFTER INSERT ON removed BEGIN DELETE FROM entries; END",
        "CREATE VIEW v AS SELECT 1",
    ],
)
def test_an_invalid_catalogue_is_refused(statement, vectors, tmp_path):
    with Index.build(vectors[:5], tmp_path / "i") as index:
        index.remove(["0"])
    change(index, statement)
    with pytest.raises(ValueError, match="catalogue|damaged"):
        Index.open(tmp_path / "i")


def change(index, statement):
    with contextlib.closing(sqlite3.connect(index.path / NAME)) as connection:
        connection.execute(statement)
        connection.commit()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entries SET id = 'x' WHERE place = 3",
        "UPDATE entries SET metadata = '{}' WHERE place = 3",
        "DELETE FROM entries WHERE place = 3",
        "UPDATE history SET vectors = 'x'",
    ],
)
def test_a_changed_catalogue_is_detected(statement, vectors, tmp_path):
    with Index.build(vectors[:5], tmp_path / "i") as index:
        assert index.verify() == 5
    change(index, statement)
    with pytest.raises(ValueError, match="damaged"):
        Index.open(tmp_path / "i").verify()


def test_k_may_be_any_integer_type(vectors, tmp_path):
    index = Index.build(vectors, tmp_path / "i")
    assert index.search(vectors[0], np.int8(100))[0] == index.search(vectors[0], 100)[0]


@pytest.mark.parametrize("cut", [0, 1, 50, 200, 5000])
def test_a_truncated_catalogue_is_refused(cut, vectors, tmp_path):
    Index.build(vectors[:5], tmp_path / "i").close()
    file = tmp_path / "i" / NAME
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises((ValueError, OSError), match=NAME):
        Index.open(tmp_path / "i").verify()


def test_a_failed_write_leaves_the_index_unchanged(vectors, tmp_path, monkeypatch):
    index = Index.build(vectors[:10], tmp_path / "i")

    def full(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(Catalogue, "append", full)
    with pytest.raises(OSError, match="no space"):
        index.add(vectors[10:], ids=[f"n{i}" for i in range(490)], facts={"a": 1})
    monkeypatch.undo()
    opened = Index.open(tmp_path / "i")
    assert len(opened) == opened.verify() == len(index) == 10 and opened.facts == {}
    opened.add(vectors[10:], ids=[f"n{i}" for i in range(490)])
    assert len(Index.open(tmp_path / "i")) == len(index) == 500


ADDER = """
import sys, numpy as np
from zoo.search import Index
index = Index.open({path!r})
vectors = np.eye(4, dtype=np.float32)
for i in range(10**9):
    index.add(vectors, ids=[f"{{i}}-{{j}}" for j in range(4)])
    print(i, flush=True)
"""


def test_a_killed_writer_leaves_whole_segments(tmp_path):
    path = tmp_path / "i"
    Index.build(np.empty((0, 4), np.float32), path)
    child = subprocess.Popen(
        [sys.executable, "-c", ADDER.format(path=str(path))], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    for _ in range(5):
        child.stdout.readline()
    time.sleep(0.013)
    child.send_signal(signal.SIGKILL)
    committed = 5 + len(child.communicate(timeout=60)[0].splitlines())
    opened = Index.open(path)
    assert len(opened) % 4 == 0 and len(opened) >= 4 * committed and opened.verify() == len(opened)
    opened.add(np.eye(4, dtype=np.float32), ids=list("abcd"))
    assert opened.search(np.eye(4, dtype=np.float32)[2], len(opened))[1].sum() == len(opened) // 4


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda v, p: Index.build(v, p, dtype="float64"), "allowed are float32, float16, int8"),
        (lambda v, p: Index.build(v[0], p), r"must be \(N, D\)"),
        (lambda v, p: Index.build(v, p, ids=["a"]), "500 vectors, 1 ids"),
        (lambda v, p: Index.build(v[:2], p, ids=["a", "a"]), "'a' is already in the index, or given twice"),
        (lambda v, p: Index.build(v * np.nan, p), "must be finite"),
        (lambda v, p: Index.build(v, p).search(v[0, :5]), r"query has shape \(5,\); it must be \(32,\)"),
        (lambda v, p: Index.build(v, p).search(v[0], 0), "k=0"),
        (lambda v, p: Index.build(v, p).search(v[0] * np.nan), "query is not finite"),
        (lambda v, p: Index.build(v, p).search(v[0], 1.0), "k=1.0"),
        (lambda v, p: (Index.build(v, p), Index.build(v, p)), "already holds an index"),
        (lambda v, p: Index.build(v[:1], p, ids=["\udcff.png"]), r"'\\udcff.png' is not an id"),
        (lambda v, p: Index.build(v[:1], p, ids=[1]), "1 is not an id"),
    ],
)
def test_invalid_arguments_are_refused(call, message, vectors, tmp_path):
    with pytest.raises(ValueError, match=message):
        call(vectors, tmp_path / "i")


def test_a_folder_without_an_index_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="No index at"):
        Index.open(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": "other"}')
    with pytest.raises(ValueError, match="not the manifest"):
        Index.open(tmp_path)


def test_facts_are_committed_with_the_vectors(vectors, tmp_path):
    index = Index.build(vectors[:5], tmp_path / "i", facts={"a": 1, "b": 2})
    index.add(vectors[5:9], facts={"b": 3})
    index.add(vectors[:0], facts={"c": 4})
    info = Index.open(tmp_path / "i").info()
    assert (info["a"], info["b"], info["c"], info["vectors"], info["segments"]) == (1, 3, 4, 9, 2)
    with pytest.raises(ValueError):
        index.add(vectors[9:10], ids=["0"], facts={"b": 5})
    assert Index.open(tmp_path / "i").info()["b"] == 3


def test_best_equals_a_full_sort(rng):
    scores = np.round(rng.standard_normal(10_000), 2).astype(np.float32)  # with ties
    order = np.lexsort((np.arange(10_000), -scores))
    for k in (1, 7, 38, 39, 40, 1000, 10_000, 20_000):
        np.testing.assert_array_equal(best(scores, k), order[:k])
    rest = np.full(1000, -np.inf, np.float32)
    rest[[3, 998]] = 1.0  # the last group is smaller
    assert best(rest, 2).tolist() == [3, 998] and best(rest, 1).tolist() == [3]
