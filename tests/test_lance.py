"""An index as a Lance data set: exact agreement without an approximate index, recall with one, refusals."""

# ruff: noqa: F811  (arguments have the names of fixtures, which are imported)

import numpy as np
import pytest
from pipeline_case import album, images, model, pipeline, saved  # noqa: F401

from zoo.cli import main
from zoo.search import Index
from zoo.search.build import build_index
from zoo.search.lance_store import LanceStore, export_index
from zoo.search.query import search_images

pytest.importorskip("lance")
pytestmark = [pytest.mark.backend, pytest.mark.once, pytest.mark.slow]


def low_rank(count, dim=64, rank=12, seed=0):
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(count, rank)) @ rng.normal(size=(rank, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_search_agrees_with_the_index_and_finds_nearly_all_with_ivf_pq(tmp_path):
    vectors, queries = np.split(low_rank(20_020), [20_000])
    index = Index.build(vectors, tmp_path / "i", dtype="float16", model="m", metadata=[{"n": i} for i in range(20_000)])
    assert export_index(str(tmp_path / "i"), to=str(tmp_path / "v.lance"), ann=True) == {
        "vectors": 20_000,
        "dim": 64,
        "approximate": True,
    }
    store = LanceStore(tmp_path / "v.lance")
    recalls = []
    for query in queries:
        ids, scores = index.search(query, 10)
        exact = store.search(query, 10, approximate=False)
        np.testing.assert_allclose([score for _, score, _ in exact], scores, atol=2e-3)
        assert len({name for name, _, _ in exact} & set(ids)) >= 9  # float16 swaps neighbours that are equally near
        assert exact[0][2] == {"n": int(exact[0][0])}
        recalls.append(len({name for name, _, _ in store.search(query, 10)} & set(ids)) / 10)
    assert np.mean(recalls) >= 0.95
    store.require("m")
    with pytest.raises(ValueError, match="built with another model"):
        store.require("other")


def test_a_text_finds_the_same_images(album, saved, tmp_path, capsys):
    index, data, cache = str(tmp_path / "i"), str(tmp_path / "v.lance"), str(tmp_path / "t.sqlite")
    build_index(str(album), model=str(saved), output=index)
    assert main(["index", "export", index, "--to", data]) == 0
    expected = search_images(index, "a seven", k=3, cache=cache)
    page = tmp_path / "found.html"
    found = search_images(data, "a seven", k=3, cache=cache, sheet=str(page))
    assert page.read_text("utf-8").count("data:image/png") == 3
    assert [match.id for match in found] == [match.id for match in expected]
    np.testing.assert_allclose([m.score for m in found], [m.score for m in expected], atol=2e-3)
    assert found[0].metadata == expected[0].metadata
    capsys.readouterr()
    for arguments, message in (
        (["index", "export", index, "--to", data], "already exists"),
        (["index", "export", index, "--to", "v.parquet"], "must end in .lance"),
        (["search", data, "a seven", "--where", "folder=left"], "--where: not for a .lance data set"),
        (["search", str(tmp_path / "no.lance"), "a seven"], "No Lance data set at"),
    ):
        assert main(arguments) == 2
        assert message in capsys.readouterr().err


def test_a_killed_export_leaves_nothing_that_opens_and_can_be_repeated(tmp_path, monkeypatch):
    import lance

    Index.build(low_rank(100), tmp_path / "i", model="m")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(lance.LanceDataset, "commit", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        export_index(str(tmp_path / "i"), to=str(tmp_path / "v.lance"))
    with pytest.raises(FileNotFoundError):
        LanceStore(tmp_path / "v.lance")
    export_index(str(tmp_path / "i"), to=str(tmp_path / "v.lance"))
    assert len(LanceStore(tmp_path / "v.lance")) == 100
