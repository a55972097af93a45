"""Accelerators: exact ones give what a full search gives, a graph says what it misses; neither is the truth."""

import json
import sys

import numpy as np
import pytest

from zoo.embeddings import accelerator, graph
from zoo.embeddings import index as module
from zoo.embeddings.accelerator import ASKED, EXACT, KINDS
from zoo.search import Index

pytest.importorskip("usearch")
COUNT, DIM = 3000, 32


def unit(x):
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture
def vectors(rng):
    return unit(rng.standard_normal((COUNT, DIM)))


@pytest.fixture
def index(vectors, tmp_path):
    """Two segments, with metadata in the second."""
    made = Index.build(vectors[:1000], tmp_path / "i")
    made.add(vectors[1000:], metadata=[{"even": i % 2 == 0} for i in range(1000, COUNT)])
    return made


def refuse(*_):
    raise AssertionError("every vector was looked at")


def same(found, expected):
    assert found[0] == expected[0]
    np.testing.assert_allclose(found[1], expected[1], atol=1e-6)


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("k", [1, 10, 40])
def test_results_are_those_of_a_full_search(kind, k, index, rng, monkeypatch):
    queries = unit(rng.standard_normal((20, DIM)))
    expected = [index.search(query, k) for query in queries]
    index.accelerate(kind)
    monkeypatch.setitem(ASKED, kind, (1, 16))
    asked = []
    nearest = module.Accelerator.nearest
    monkeypatch.setattr(module.Accelerator, "nearest", lambda *a: asked.append(a[2]) or nearest(*a))
    for query, truth in zip(queries, expected, strict=True):
        same(index.search(query, k), truth)
        same(Index.open(index.path).search(3 * query, k), (truth[0], 3 * truth[1]))
    assert len(asked) >= 40
    if kind == "float16":  # so near its originals that the first question always suffices
        monkeypatch.setattr(Index, "_find_all", refuse)
        index.search(queries[0], k)


@pytest.mark.parametrize("kind", EXACT)
def test_what_was_removed_added_or_filtered_is_seen(kind, index, vectors, rng):
    index.accelerate(kind)
    plain = Index.build(vectors, index.path.parent / "plain", metadata=[{"even": i % 2 == 0} for i in range(COUNT)])
    more = unit(rng.standard_normal((50, DIM)))
    for other in (index, plain):
        other.remove(["5", "2000"])
        other.add(more, ids=[f"more {i}" for i in range(50)], metadata=[{"even": True}] * 50)
    assert index.info()["accelerators"] == [kind] and plain.info()["accelerators"] == []
    for query in [*more[:3], vectors[5], vectors[2000]]:
        same(index.search(query, 10), plain.search(query, 10))
    late = lambda entry: entry.get("even") is False  # noqa: E731
    for query in vectors[1001:1010:3]:
        found = index.search(query, 5, where={"even": True})
        assert all(index.metadata(identity)["even"] for identity in found[0])
        same(index.search(query, 5, where=lambda entry: not late(entry) and bool(entry)), found)


def test_vectors_too_alike_for_the_copy_are_all_looked_at(tmp_path, rng):
    base = unit(rng.standard_normal(DIM))
    vectors = unit(base + 1e-3 * rng.standard_normal((COUNT, DIM)))
    index = Index.build(vectors, tmp_path / "i")
    expected = index.search(vectors[7], 20)
    index.accelerate("int8")
    same(index.search(vectors[7], 20), expected)


@pytest.mark.parametrize("kind", EXACT)
def test_lengths_may_differ(kind, vectors, tmp_path, rng):
    index = Index.build(vectors * rng.uniform(0.1, 5, (COUNT, 1)), tmp_path / "i")
    queries = rng.standard_normal((5, DIM))
    expected = [index.search(query, 10) for query in queries]
    index.accelerate(kind)
    for query, truth in zip(queries, expected, strict=True):
        same(index.search(query, 10), truth)
        same(index.search(-query, 10), (lambda full: (full[0][0], full[1][0]))(index.search(-query[None], 10)))
    assert index.search(np.zeros(DIM), 3)[0] == ["0", "1", "2"]


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_narrow_storage_is_accelerated_too(dtype, vectors, tmp_path):
    index = Index.build(vectors, tmp_path / "i", dtype=dtype)
    expected = index.search(vectors[3], 10)
    index.accelerate("int8")
    same(index.search(vectors[3], 10), expected)


def test_a_graph_finds_nearly_all_and_only_when_asked(index, vectors, rng, monkeypatch):
    with pytest.raises(ValueError, match="no graph to search approximately"):
        index.search(vectors[0], approximate=True)
    facts = index.accelerate("hnsw")
    assert facts["vectors"] == COUNT and 0.95 < facts["recall_at_10"] <= 1
    queries = unit(rng.standard_normal((20, DIM)))
    assert index.recall(queries) > 0.95
    assert index.accelerators() == ["hnsw"] and index._helper(False) is None
    ids, scores = index.search(vectors[:3], 10, approximate=True)
    assert [row[0] for row in ids] == ["0", "1", "2"]
    np.testing.assert_allclose(scores[1], [vectors[1] @ vectors[int(i)] for i in ids[1]], atol=1e-6)
    index.remove(["1"])
    assert index.search(vectors[1], 10, approximate=True)[0] == index.search(vectors[1], 10)[0]
    monkeypatch.setattr(Index, "_find_all", refuse)
    Index.open(index.path).search(queries[0], 10, approximate=True)


def test_a_poor_graph_has_poor_recall(tmp_path, rng):
    vectors = unit(rng.standard_normal((4000, 256)))
    index = Index.build(vectors, tmp_path / "i")
    poor = index.accelerate("hnsw", connectivity=2, expansion=2)["recall_at_10"]
    assert poor < index.accelerate("hnsw", connectivity=16, expansion=128)["recall_at_10"]
    queries = unit(rng.standard_normal((20, 256)))
    seen = [index.recall(queries, approximate=kept) for kept in (16, True, 128, 1000)]
    assert seen[0] < seen[1] == seen[2] < seen[3]  # the more are kept in view, the more are found


def test_a_graph_is_gone_on_with(index, vectors, rng, monkeypatch):
    more = unit(rng.standard_normal((500, DIM)))
    index.accelerate("hnsw")
    index.add(more)
    added = []
    write = accelerator._write_graph
    counted = lambda path, blocks, graph: added.append(-len(graph)) or write(path, blocks, graph)  # noqa: E731
    monkeypatch.setattr(accelerator, "_write_graph", counted)
    assert index.accelerate("hnsw")["vectors"] == COUNT + 500 and added == [-COUNT]
    assert Index.open(index.path).search(more[3], 1, approximate=True)[0] == [str(COUNT + 3)]
    index.add(unit(rng.standard_normal((5, DIM))))
    assert index.accelerate("hnsw", connectivity=8)["vectors"] == COUNT + 505 and added[1:] == [0]  # another one


def test_a_graph_that_was_interrupted_holds_what_was_written(index, vectors, monkeypatch):
    monkeypatch.setattr(graph, "PORTION", 1)
    write = accelerator._write_graph

    def killed(path, blocks, graph):
        if len(graph):
            raise KeyboardInterrupt
        write(path, blocks, graph)

    monkeypatch.setattr(accelerator, "_write_graph", killed)
    with pytest.raises(KeyboardInterrupt):
        index.accelerate("hnsw")
    again = Index.open(index.path)
    assert again._accelerator("hnsw").facts.count == 1000 and again.verify() == COUNT
    assert again.search(vectors[2500], 1, approximate=True)[0] == ["2500"]  # what the graph has not is looked at
    monkeypatch.setattr(accelerator, "_write_graph", write)
    facts = again.accelerate("hnsw")
    assert facts["vectors"] == COUNT and facts["recall_at_10"] > 0.95


def near_plane(rng, count, dim=256, rank=20, seed=0):
    """Unit rows near a subspace, which the seed draws."""
    plane = np.random.default_rng(seed).standard_normal((rank, dim))
    return unit(rng.standard_normal((count, rank)) @ plane + 0.2 * rng.standard_normal((count, dim)))


def test_leading_directions_are_the_fewest_that_hold_the_share(rng, monkeypatch):
    monkeypatch.setattr(graph, "LINE", 1)
    axes = np.eye(6, dtype=np.float32)
    sample = 3 * axes[[4] * 60 + [1] * 39 + [0]]  # 0.6, 0.39 and 0.01 of the whole
    monkeypatch.setattr(graph, "HELD", 0.985)
    found = graph.leading_directions(sample)
    np.testing.assert_allclose(np.abs(found), axes[[4, 1]].T, atol=1e-6)
    assert graph.held(sample, found) == pytest.approx(0.99) and graph.held(axes, found) == pytest.approx(2 / 6)
    monkeypatch.setattr(graph, "HELD", 0.995)
    assert graph.leading_directions(sample).shape == (6, 3)
    np.testing.assert_array_equal(graph.leading_directions(axes), axes)  # all needed: as they are
    monkeypatch.undo()
    rows = near_plane(rng, 500)
    found = graph.leading_directions(rows)
    assert found.shape == (256, graph.LINE) and graph.held(rows, found) > graph.HELD
    np.testing.assert_allclose(found.T @ found, np.eye(graph.LINE), atol=1e-5)


def test_a_graph_lies_along_few_directions_and_results_are_scored_with_the_vectors(tmp_path, rng):
    vectors, others = near_plane(rng, 3000), unit(rng.standard_normal((3000, 256)))
    index, plain = Index.build(5 * vectors, tmp_path / "i"), Index.build(others, tmp_path / "plain")
    few, all_of_them = index.accelerate("hnsw"), plain.accelerate("hnsw")
    assert (few["directions"], all_of_them["directions"]) == (64, 256) and few["bytes"] < 0.7 * all_of_them["bytes"]
    queries = near_plane(rng, 30)
    assert index.recall(queries) > 0.95
    ids, scores = index.search(queries[0], 10, approximate=True)
    np.testing.assert_allclose(scores, 5 * vectors[[int(i) for i in ids]] @ queries[0], atol=1e-5)
    directions = Index.open(index.path)._accelerator("hnsw")._graph().directions
    across = unit(queries[0] - directions @ (directions.T @ queries[0]))
    assert len(index.search(across, 10, approximate=True)[0]) == 10  # nothing of it is left: any will do
    assert graph.filled(np.zeros((1, 4), np.float32)).tolist() == [[0] * 4]


def test_a_graph_of_other_directions_is_begun_anew(tmp_path, rng, monkeypatch):
    added, write = [], accelerator._write_graph
    counted = lambda path, blocks, graph: added.append(len(graph)) or write(path, blocks, graph)  # noqa: E731
    monkeypatch.setattr(accelerator, "_write_graph", counted)
    index = Index.build(near_plane(rng, 1000), tmp_path / "i")
    for seed, begun in ((0, [0]), (1, [0, 1000]), (1, [0, 1000, 0])):
        assert index.accelerate("hnsw")["recall_at_10"] > 0.95 and added == begun
        more = near_plane(rng, 1000, seed=seed)
        index.add(more, ids=[f"{len(begun)} {i}" for i in range(len(more))])


def test_a_graph_of_an_older_layout_does_not_count(index):
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
def test_a_damaged_accelerator_is_found_and_made_anew(kind, index, vectors):
    index.accelerate(kind)
    path = index.path / f"accelerator-{kind}.bin"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged: its digest"):
        Index.open(index.path).verify()
    if kind == "hnsw":  # usearch is not let near it
        with pytest.raises(ValueError, match="is damaged: its digest"):
            Index.open(index.path).search(vectors[0], approximate=True)
    path.write_bytes(content[:-1])
    with pytest.raises(ValueError, match="is damaged"):
        Index.open(index.path).search(vectors[0], approximate=kind == "hnsw")
    index.accelerate(kind)
    assert Index.open(index.path).verify() == COUNT


def test_one_made_of_other_vectors_does_not_count(index, vectors, tmp_path):
    index.accelerate("int8")
    other = Index.build(vectors[::-1], tmp_path / "other")
    for end in ("bin", "json"):
        (other.path / f"accelerator-int8.{end}").write_bytes((index.path / f"accelerator-int8.{end}").read_bytes())
    assert Index.open(other.path).accelerators() == []
    (index.path / "accelerator-int8.json").write_text('{"covers": 3}')
    assert Index.open(index.path).accelerators() == []


def test_what_cannot_be_accelerated(index, vectors, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="one of float16, int8, hnsw"):
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
