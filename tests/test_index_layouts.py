"""The catalogue of an index: earlier layouts, merged segments, filters, read-only folders."""

import threading

import numpy as np
import pytest
from old_index import write_old

from zoo.embeddings import catalogue as catalogue_module
from zoo.embeddings import entries, manifest, store
from zoo.embeddings.catalogue import NAME, Catalogue
from zoo.search import Index
from zoo.utils.arrays import unit_rows

METADATA = [{"n": i, "half": i / 2, "even": i % 2 == 0, "name": f"käfer {i % 5}", "tags": [i % 3]} for i in range(300)]


@pytest.fixture
def vectors(rng):
    return unit_rows(rng.standard_normal((300, 16)))


def names(index, vectors, **options):
    return index.search(vectors[7], 20, **options)[0]


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_an_old_index_searches_identically_and_is_converted_by_a_write(dtype, vectors, tmp_path):
    facts = {"note": "x", "left_out": {"b.png": "damaged"}}
    new = Index.build(vectors, tmp_path / "new", metadata=METADATA, dtype=dtype, model="m", facts=facts)
    write_old(new, tmp_path / "old")
    files = {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir()}
    old = Index.open(tmp_path / "old", model="m")
    assert old.ids == new.ids and old.verify() == 300 and old.info()["left_out"] == {"b.png": "damaged"}
    for options in ({}, {"where": {"even": True}}, {"where": {"tags": [2]}}):
        np.testing.assert_array_equal(
            old.search(vectors[7], 20, **options)[1], new.search(vectors[7], 20, **options)[1]
        )
        assert names(old, vectors, **options) == names(new, vectors, **options)
    with pytest.raises(ValueError, match="already in the index"):
        old.add(vectors[:1], ids=["5"])
    assert {path.name: path.read_bytes() for path in (tmp_path / "old").iterdir() if path.name != ".lock"} == files
    reader = Index.open(tmp_path / "old")
    old.add(vectors[:1], ids=["later"], facts={"more": 1})
    assert not list((tmp_path / "old").glob("*.json")) and (tmp_path / "old" / NAME).is_file()
    assert reader.metadata("7") == METADATA[7]  # it has what it read
    again = Index.open(tmp_path / "old", model="m")
    assert again.ids == [*new.ids, "later"] and again.verify() == 301 and "removed" not in again
    assert again.facts == {**facts, "more": 1} and again.metadata("9") == METADATA[9]
    reader.remove(["5"])
    assert len(again) == len(reader) == 300 and "5" not in again


@pytest.mark.parametrize("step", ["write_terms", "remove_old_files", "publish"])
def test_an_interrupted_conversion_is_repeated(step, vectors, tmp_path, monkeypatch):
    write_old(Index.build(vectors, tmp_path / "new", metadata=METADATA), tmp_path / "old")

    def killed(*_):
        raise KeyboardInterrupt

    owner = {"write_terms": store, "remove_old_files": manifest, "publish": Catalogue}[step]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(owner, step, killed)
        Index.open(tmp_path / "old").add(vectors[:1], ids=["a"])
    with Index.open(tmp_path / "old") as index:
        assert len(index) == index.verify() == 300
        index.add(vectors[:1], ids=["a"])
    assert Index.open(tmp_path / "old").verify() == 301


def test_a_damaged_old_list_is_not_converted(vectors, tmp_path):
    write_old(Index.build(vectors, tmp_path / "new"), tmp_path / "old")
    file = tmp_path / "old" / "ids-000001.json"
    file.write_text(file.read_text().replace('"3"', '"x"'))
    with pytest.raises(ValueError, match="ids-000001.json is damaged: its digest"):
        Index.open(tmp_path / "old").add(vectors[:1], ids=["a"])
    assert (tmp_path / "old" / "manifest.json").is_file() and not (tmp_path / "old" / NAME).exists()


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_small_segments_are_merged_and_nothing_else_changes(dtype, vectors, tmp_path, monkeypatch):
    whole = Index.build(vectors, tmp_path / "whole", metadata=METADATA, dtype=dtype)
    monkeypatch.setattr(store, "MOST_SMALL", 6)
    monkeypatch.setattr(store, "MERGED", 3)
    index = Index.build(vectors[:0], tmp_path / "i", dtype=dtype)
    reader = Index.open(tmp_path / "i")
    (index.path / "terms-000099.bin").touch()  # of a writer that was killed
    for first in range(0, 300, 10):
        index.add(vectors[first : first + 10], metadata=METADATA[first : first + 10])
        assert len(reader) == first + 10 and names(reader, vectors)[0]
        index._store.finish_merge()
    index.close()
    index = Index.open(tmp_path / "i")
    assert index.info()["segments"] <= 9 and len(list(index.path.glob("terms-*"))) == index.info()["segments"]
    assert index.ids == whole.ids and index.verify() == 300
    for options in ({}, {"where": {"name": "käfer 3"}}, {"where": {"n": {3, 200}}}):
        assert names(index, vectors, **options) == names(whole, vectors, **options) == names(reader, vectors, **options)


def test_filters_compare_as_python_does(vectors, tmp_path):
    index = Index.build(vectors, tmp_path / "i", metadata=METADATA)
    for asked in (
        {"n": 7},
        {"n": 7.0},
        {"half": 3},
        {"half": 3.5},
        {"even": True},
        {"even": 0},
        {"n": True},
        {"name": "käfer 2", "even": False},
        {"tags": [1]},
        {"tags": [1], "even": True},
        {"missing": None, "n": 3},
        {"missing": 1},
        {"n": np.int64(9)},
    ):
        fits = lambda entry, w=asked: all(entry.get(key) == w[key] for key in w)  # noqa: E731
        assert names(index, vectors, where=asked) == names(index, vectors, where=fits), asked
    both = index.search(vectors[7], 300, where={"n": {3, 4.0}, "even": {True, False}})[0]
    assert sorted(both) == ["3", "4"]
    index.remove(["4"])
    assert index.search(vectors[7], 300, where={"n": {3, 4}})[0] == ["3"]
    assert index.ids_by("n", [3, 4, 5]) == {3: "3", 5: "5"}


def test_a_function_as_filter_says_that_it_is_slow(vectors, tmp_path, monkeypatch):
    index = Index.build(vectors, tmp_path / "i")
    monkeypatch.setattr(entries, "SLOW_ENTRIES", 299)
    with pytest.warns(UserWarning, match="all 300 vectors, which is slow"):
        index.search(vectors[0], where=bool)


def test_a_read_only_folder_is_opened_and_searched(vectors, tmp_path, monkeypatch):
    Index.build(vectors, tmp_path / "i", metadata=METADATA).close()
    before = {path.name: path.read_bytes() for path in (tmp_path / "i").iterdir()}
    monkeypatch.setattr(catalogue_module.os, "access", lambda *_: False)
    with Index.open(tmp_path / "i") as index:
        assert names(index, vectors, where={"even": True}) and index.verify() == 300
        assert {path.name: path.read_bytes() for path in (tmp_path / "i").iterdir()} == before
        with pytest.raises(OSError, match="readonly"):
            index.add(vectors[:1], ids=["a"])


def test_threads_search_while_others_add(vectors, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "MOST_SMALL", 6)
    index = Index.build(vectors[:20], tmp_path / "i", metadata=METADATA[:20])
    problems = []

    def search():
        try:
            for _ in range(40):
                assert index.search(vectors[7], 1)[0] == ["7"] and index.metadata("7") == METADATA[7]
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    for first in range(20, 300, 20):
        index.add(vectors[first : first + 20])
    for thread in threads:
        thread.join()
    index.close()
    assert not problems and Index.open(tmp_path / "i").verify() == 300


def test_near_duplicates_are_grouped(rng, tmp_path, monkeypatch):
    monkeypatch.setattr("zoo.embeddings.groups.BLOCK", 7)
    vectors = rng.standard_normal((60, 32))
    for copy, original in ((50, 3), (51, 50), (52, 3), (40, 20), (59, 58)):
        vectors[copy] = 2 * vectors[original] + 0.02 * rng.standard_normal(32)
    vectors[30] = 0
    index = Index.build(vectors, tmp_path / "i")
    index.remove(["59"])
    groups = index.duplicates(0.99)
    assert [sorted(name for name, _ in group) for group in groups] == [["3", "50", "51", "52"], ["20", "40"]]
    unit = unit_rows(vectors[[3, 50, 51, 52]])
    cosines = unit @ unit.T - 2 * np.eye(4)
    np.testing.assert_allclose([score for _, score in groups[0]], cosines.max(axis=1), atol=1e-6)
    assert index.duplicates(1.0) == []
    with pytest.raises(ValueError, match=r"threshold=1\.5; it must be above 0 and at most 1"):
        index.duplicates(1.5)
