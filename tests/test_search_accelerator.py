"""Accelerators: copies give the results of a full scan, a graph reports its recall, and both can be rebuilt."""

import json
import subprocess
import sys

import numpy as np
import pytest

from zoo.embeddings import accelerator
from zoo.embeddings.accelerator import CANDIDATES, KINDS, Accelerator, Accelerators, Graph
from zoo.embeddings.segment import quantize
from zoo.embeddings.vectors import Vectors
from zoo.search import Index
from zoo.utils.arrays import unit_rows

COUNT, DIM = 3000, 32


@pytest.fixture
def vectors(rng):
    return unit_rows(rng.standard_normal((COUNT, DIM)))


@pytest.fixture
def index(vectors, tmp_path):
    """Two segments, with metadata in the second."""
    made = Index.build(vectors[:1000], tmp_path / "i")
    made.add(vectors[1000:], metadata=[{"even": i % 2 == 0} for i in range(1000, COUNT)])
    return made


def refuse(*_):
    raise AssertionError("a full scan was run")


def opened(index, kind):
    return index._accelerators.get(kind, index._store.current())


def same(found, expected):
    assert found[0] == expected[0]
    np.testing.assert_allclose(found[1], expected[1], atol=1e-6)


@pytest.mark.parametrize("k", [1, 10, 40])
def test_results_equal_a_full_scan(k, index, rng, monkeypatch):
    queries = unit_rows(rng.standard_normal((20, DIM)))
    expected = [index.search(query, k) for query in queries]
    index.accelerate("int8")
    monkeypatch.setitem(CANDIDATES, "int8", (1, 16))
    requests = []
    nearest = Accelerator.nearest
    monkeypatch.setattr(Accelerator, "nearest", lambda *a: requests.append(a[2]) or nearest(*a))
    for query, truth in zip(queries, expected, strict=True):
        same(index.search(query, k), truth)
        same(Index.open(index.path).search(3 * query, k), (truth[0], 3 * truth[1]))
    assert len(requests) >= 40
    monkeypatch.setitem(CANDIDATES, "int8", (256, 16))
    monkeypatch.setattr(Vectors, "nearest", refuse)
    same(index.search(queries[0], k), expected[0])


def test_removed_added_and_filtered_vectors_are_respected(index, vectors, rng):
    index.accelerate("float16")  # of earlier versions; int8 now
    plain = Index.build(vectors, index.path.parent / "plain", metadata=[{"even": i % 2 == 0} for i in range(COUNT)])
    more = unit_rows(rng.standard_normal((50, DIM)))
    for other in (index, plain):
        other.remove(["5", "2000"])
        other.add(more, ids=[f"more {i}" for i in range(50)], metadata=[{"even": True}] * 50)
    assert index.info()["accelerators"] == ["int8"] and plain.info()["accelerators"] == []
    for query in [*more[:3], vectors[5], vectors[2000]]:
        same(index.search(query, 10), plain.search(query, 10))
    late = lambda entry: entry.get("even") is False  # noqa: E731
    for query in vectors[1001:1010:3]:
        found = index.search(query, 5, where={"even": True})
        assert all(index.metadata(identity)["even"] for identity in found[0])
        same(index.search(query, 5, where=lambda entry: not late(entry) and bool(entry)), found)


def test_vectors_too_similar_for_the_copy_fall_back_to_a_full_scan(tmp_path, rng):
    base = unit_rows(rng.standard_normal(DIM))
    vectors = unit_rows(base + 1e-3 * rng.standard_normal((COUNT, DIM)))
    index = Index.build(vectors, tmp_path / "i")
    expected = index.search(vectors[7], 20)
    index.accelerate("int8")
    same(index.search(vectors[7], 20), expected)


def test_vectors_may_have_any_length(vectors, tmp_path, rng):
    index = Index.build(vectors * rng.uniform(0.1, 5, (COUNT, 1)), tmp_path / "i")
    queries = rng.standard_normal((5, DIM))
    expected = [index.search(query, 10) for query in queries]
    index.accelerate("int8")
    for query, truth in zip(queries, expected, strict=True):
        same(index.search(query, 10), truth)
        same(index.search(-query, 10), (lambda full: (full[0][0], full[1][0]))(index.search(-query[None], 10)))
    assert index.search(np.zeros(DIM), 3)[0] == ["0", "1", "2"]


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_reduced_precision_storage_can_be_accelerated(dtype, vectors, tmp_path):
    index = Index.build(vectors, tmp_path / "i", dtype=dtype)
    expected = index.search(vectors[3], 10)
    index.accelerate("int8")
    same(index.search(vectors[3], 10), expected)


def test_a_graph_is_used_for_approximate_searches_only(index, vectors, rng, monkeypatch):
    with pytest.raises(ValueError, match="no graph to search approximately"):
        index.search(vectors[0], approximate=True)
    facts = index.accelerate("hnsw")
    assert facts["vectors"] == COUNT and 0.95 < facts["recall_at_10"] <= 1
    queries = unit_rows(rng.standard_normal((20, DIM)))
    assert index.recall(queries) > 0.95
    assert index.accelerators() == ["hnsw"]
    assert opened(index, "int8") is None
    ids, scores = index.search(vectors[:3], 10, approximate=True)
    assert [row[0] for row in ids] == ["0", "1", "2"]
    np.testing.assert_allclose(scores[1], [vectors[1] @ vectors[int(i)] for i in ids[1]], atol=1e-6)
    index.remove(["1"])
    assert index.search(vectors[1], 10, approximate=True)[0] == index.search(vectors[1], 10)[0]
    monkeypatch.setattr(Vectors, "nearest", refuse)
    Index.open(index.path).search(queries[0], 10, approximate=True)


def test_recall_is_measured(tmp_path, rng):
    vectors = unit_rows(rng.standard_normal((4000, 256)))
    index = Index.build(vectors, tmp_path / "i")
    poor = index.accelerate("hnsw", connectivity=2, expansion=2)["recall_at_10"]
    assert poor < index.accelerate("hnsw", connectivity=16, expansion=128)["recall_at_10"]
    queries = unit_rows(rng.standard_normal((20, 256)))
    seen = [index.recall(queries, approximate=kept) for kept in (16, True, 128, 1000)]
    assert seen[0] < seen[1] == seen[2] < seen[3]


@pytest.fixture
def begun(monkeypatch):
    """The size of each graph that a build begins with."""
    sizes, begin = [], Accelerators._begun_graph

    def noted(*arguments, **options):
        found = begin(*arguments, **options)
        sizes.append(len(found))
        return found

    monkeypatch.setattr(Accelerators, "_begun_graph", noted)
    return sizes


def test_a_graph_is_extended(index, vectors, rng, begun):
    more = unit_rows(rng.standard_normal((500, DIM)))
    index.accelerate("hnsw")
    index.add(more)
    assert index.accelerate("hnsw")["vectors"] == COUNT + 500 and begun == [0, COUNT]
    assert Index.open(index.path).search(more[3], 1, approximate=True)[0] == [str(COUNT + 3)]
    index.add(unit_rows(rng.standard_normal((5, DIM))))
    assert index.accelerate("hnsw", connectivity=8)["vectors"] == COUNT + 505 and begun[2:] == [0]  # rebuilt


def test_an_interrupted_graph_is_resumed(index, vectors, monkeypatch):
    monkeypatch.setattr(accelerator, "PORTION", 1)
    add = Graph.add

    def killed(self, unit):
        if len(self) >= 1000:
            raise KeyboardInterrupt
        add(self, unit)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Graph, "add", killed)
        index.accelerate("hnsw")
    again = Index.open(index.path)
    assert opened(again, "hnsw").count == 1000 and again.verify() == COUNT
    assert again.search(vectors[2500], 1, approximate=True)[0] == ["2500"]  # vectors outside the graph are scanned
    facts = again.accelerate("hnsw")
    assert facts["vectors"] == COUNT and facts["recall_at_10"] > 0.95


def near_plane(rng, count, dim=256, rank=20, seed=0):
    """Return unit rows near a subspace drawn from the seed."""
    plane = np.random.default_rng(seed).standard_normal((rank, dim))
    return unit_rows(rng.standard_normal((count, rank)) @ plane + 0.2 * rng.standard_normal((count, dim)))


def test_leading_directions_are_the_fewest_that_explain_the_share(rng, monkeypatch):
    monkeypatch.setattr(accelerator, "LINE", 1)
    axes = np.eye(6, dtype=np.float32)
    sample = 3 * axes[[4] * 60 + [1] * 39 + [0]]  # shares 0.6, 0.39 and 0.01
    monkeypatch.setattr(accelerator, "EXPLAINED", 0.985)
    found = accelerator.leading_directions(sample)
    np.testing.assert_allclose(np.abs(found), axes[[4, 1]].T, atol=1e-6)
    assert accelerator.explained(sample, found) == pytest.approx(0.99)
    assert accelerator.explained(axes, found) == pytest.approx(2 / 6)
    monkeypatch.setattr(accelerator, "EXPLAINED", 0.995)
    assert accelerator.leading_directions(sample).shape == (6, 3)
    np.testing.assert_array_equal(accelerator.leading_directions(axes), axes)  # all are needed
    monkeypatch.undo()
    rows = near_plane(rng, 500)
    found = accelerator.leading_directions(rows)
    assert found.shape == (256, accelerator.LINE) and accelerator.explained(rows, found) > accelerator.EXPLAINED
    np.testing.assert_allclose(found.T @ found, np.eye(accelerator.LINE), atol=1e-5)


def test_a_graph_of_few_directions_still_scores_with_the_vectors(tmp_path, rng):
    vectors, others = near_plane(rng, 3000), unit_rows(rng.standard_normal((3000, 256)))
    index, plain = Index.build(5 * vectors, tmp_path / "i"), Index.build(others, tmp_path / "plain")
    low_rank, full_rank = index.accelerate("hnsw"), plain.accelerate("hnsw")
    assert (low_rank["directions"], full_rank["directions"]) == (64, 256) and low_rank["bytes"] < 0.7 * full_rank[
        "bytes"
    ]
    queries = near_plane(rng, 30)
    assert index.recall(queries) > 0.95
    ids, scores = index.search(queries[0], 10, approximate=True)
    np.testing.assert_allclose(scores, 5 * vectors[[int(i) for i in ids]] @ queries[0], atol=1e-5)
    directions = opened(Index.open(index.path), "hnsw").open_graph().directions
    across = unit_rows(queries[0] - directions @ (directions.T @ queries[0]))
    assert (
        len(index.search(across, 10, approximate=True)[0]) == 10
    )  # its projection is zero, so any vectors are candidates
    assert quantize(np.zeros((1, 4), np.float32))[0].tolist() == [[0] * 4]


def test_a_graph_is_rebuilt_when_its_directions_no_longer_fit(tmp_path, rng, begun):
    index = Index.build(near_plane(rng, 1000), tmp_path / "i")
    for seed, expected in ((0, [0]), (1, [0, 1000]), (1, [0, 1000, 0])):
        assert index.accelerate("hnsw")["recall_at_10"] > 0.95 and begun == expected
        more = near_plane(rng, 1000, seed=seed)
        index.add(more, ids=[f"{len(begun)} {i}" for i in range(len(more))])


def test_a_graph_of_an_older_layout_is_ignored(index):
    for kind in ("int8", "hnsw"):
        index.accelerate(kind)
        path = index.path / f"accelerator-{kind}.json"
        facts = json.loads(path.read_text())
        del facts["directions"]
        path.write_text(json.dumps(facts))
    assert Index.open(index.path).accelerators() == ["int8"]
    index.accelerate("hnsw")
    assert Index.open(index.path).accelerators() == ["int8", "hnsw"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_accelerator_is_detected_and_rebuilt(kind, index, vectors):
    index.accelerate(kind)
    path = index.path / f"accelerator-{kind}.bin"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged: its digest"):
        Index.open(index.path).verify()
    if kind == "hnsw":  # the digest is checked before usearch reads it
        with pytest.raises(ValueError, match="is damaged: its digest"):
            Index.open(index.path).search(vectors[0], approximate=True)
    path.write_bytes(content[:-1])
    with pytest.raises(ValueError, match="is damaged"):
        Index.open(index.path).search(vectors[0], approximate=kind == "hnsw")
    index.accelerate(kind)
    assert Index.open(index.path).verify() == COUNT


def test_an_accelerator_of_other_vectors_is_ignored(index, vectors, tmp_path):
    index.accelerate("int8")
    other = Index.build(vectors[::-1], tmp_path / "other")
    for end in ("bin", "json"):
        (other.path / f"accelerator-int8.{end}").write_bytes((index.path / f"accelerator-int8.{end}").read_bytes())
    assert Index.open(other.path).accelerators() == []
    (index.path / "accelerator-int8.json").write_text('{"covers": 3}')
    assert Index.open(index.path).accelerators() == []


def test_invalid_accelerators_are_refused(index, vectors, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="allowed are int8, hnsw"):
        index.accelerate("faiss")
    with pytest.raises(ValueError, match="is empty"):
        Index.build(vectors[:0], tmp_path / "empty").accelerate("int8")
    emptied = Index.build(vectors[:2], tmp_path / "emptied")
    emptied.remove(["0", "1"])
    with pytest.raises(ValueError, match="is empty"):
        emptied.accelerate("hnsw")
    with pytest.raises(ValueError, match="3 of 3 vectors are zero"):
        Index.build(np.zeros((3, 4)), tmp_path / "zero").accelerate("int8")
    for name in ("usearch", "usearch.index"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"convnext-clip-zoo\[search\]"):
        index.accelerate("int8")
    assert index.accelerators() == []


def test_onnx_runtime_can_be_imported_after_an_accelerator_was_used(index):
    """Imported after usearch alone, it ends the process (usearch 2.26, onnxruntime 1.31)."""
    index.accelerate("int8")
    code = f"""
import os
from zoo.search import Index
Index.open({str(index.path)!r}).search([1.0] * {DIM}, 5)
import onnxruntime
assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
"""
    subprocess.run([sys.executable, "-c", code], check=True)
