"""The search commands: build, resume and search an index, draw sheets, maintain the cache, write embeddings."""

# ruff: noqa: F811  (arguments have the names of fixtures, which are imported)

import json
import shutil
import sys

import numpy as np
import pytest
from data_writers import encode, write_class_folders, write_dng, write_heic, write_shards
from pipeline_case import album, images, model, pipeline, saved  # noqa: F401

from zoo import ClipPipeline
from zoo.cli import main
from zoo.embeddings.parts import read_parts
from zoo.inference.encoder import Encoder
from zoo.search import Index, embed
from zoo.search.build import build_index, index_add, index_info, index_refresh, to_text
from zoo.search.cache import cache_clear, cache_export, cache_import, cache_stats, cache_verify
from zoo.search.embed import embed_images
from zoo.search.query import search_images

pytestmark = [pytest.mark.backend, pytest.mark.once]


def test_an_index_is_built_resumed_and_searched(album, saved, images, tmp_path, monkeypatch, capsys):
    out = str(tmp_path / "i")
    build = {"model": str(saved), "output": out, "batch_size": 3}
    monkeypatch.setattr(embed, "PORTION", 3)
    add = Index.add

    def die_at_the_third(self, *arguments, **options):
        if self.info()["segments"] == 2:
            raise KeyboardInterrupt
        add(self, *arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Index, "add", die_at_the_third)
        build_index(str(album), **build)
    there = Index.open(out).ids
    assert 0 < len(there) < 7
    info = build_index(str(album), **build)
    assert info["vectors"] == 7 and Index.open(out).ids[: len(there)] == there
    assert set(info["left_out"]) == {"right/bad.png", "right/copy.png"}
    assert info["left_out"]["right/copy.png"] == "the same bytes as left/0.png"
    assert build_index(str(album), **build) == info  # nothing is added twice

    cache = str(tmp_path / "t.sqlite")
    matches = search_images(out, "a seven", k=3, cache=cache, sheet=str(tmp_path / "s.png"))
    assert [match.rank for match in matches] == [1, 2, 3] and (tmp_path / "s.png").stat().st_size > 1000
    (found,) = search_images(out, model=str(saved), image=str(album / "right/5.png"), k=1, cache=cache)
    assert found.id == "right/5.png" and found.score == pytest.approx(1, abs=1e-5)
    assert cache_stats(cache)["entries"] == 1
    with pytest.raises(ValueError, match="either a query or --image"):
        search_images(out, model=str(saved))

    capsys.readouterr()
    assert main(["index", "remove", out, "left/1.png"]) == 0 and main(["index", "verify", out]) == 0
    assert "vectors 6" in " ".join(capsys.readouterr().out.split())
    assert main(["index", "remove", out, "left/1.png"]) == 2
    assert "is not in the index" in capsys.readouterr().err


def test_further_sources_are_added_and_filtered(album, saved, images, tmp_path, capsys):
    out, cache = str(tmp_path / "i"), str(tmp_path / "t.sqlite")
    build_index(str(album / "left"), model=str(saved), output=out)
    more = tmp_path / "more" / "left"
    more.mkdir(parents=True)
    for name, image in (("4.png", images[4]), ("0.png", images[0]), ("5.png", images[5])):
        (more / name).write_bytes(encode(image))
    (more / "list.csv").write_text("filepath,author,year\n4.png,Ann,2001\n0.png,Bob,2002\n5.png,Bob,2003\n4.png,,\n")
    info = index_add(out, str(more / "list.csv"))
    assert Index.open(out).ids[4:] == ["list.csv/4.png", "list.csv/5.png"]
    assert info["left_out"] == {"list.csv/0.png": "the same bytes as 0.png"}
    assert Index.open(out).metadata("list.csv/5.png")["year"] == "2003"
    assert index_add(out) == info  # neither source has new images

    (album / "left" / "9.png").write_bytes(encode(images[6]))
    assert main(["index", "add", out]) == 0
    assert "vectors 7" in " ".join(capsys.readouterr().out.split())
    search = ["search", out, "a seven", "--cache", cache, "-k", "9"]
    page = tmp_path / "found.html"
    assert main([*search, "--where", "author=Bob", "--where", "year=2003", "--sheet", str(page), "--json"]) == 0
    (match,) = json.loads(capsys.readouterr().out)
    assert match["id"] == "list.csv/5.png" and match["metadata"]["author"] == "Bob"
    assert "a seven</h1>" in page.read_text() and page.read_text().count("data:image/png") == 1
    assert main([*search, "--where", "author"]) == 2 and "is not KEY=VALUE" in capsys.readouterr().err
    for option in (["--approximate"], ["--expansion", "64"]):
        assert main([*search, *option]) == 2 and "no graph" in capsys.readouterr().err
    assert search_images(out, "a seven", k=9, where=["folder="], cache=cache)[0].rank == 1


def test_a_refresh_adds_drops_keeps_and_renames(album, saved, images, tmp_path, monkeypatch, capsys):
    out = str(tmp_path / "i")
    build_index(str(album), model=str(saved), output=out)
    (album / "middle").mkdir()
    (album / "left" / "1.png").rename(album / "middle" / "one.png")
    (album / "left" / "2.png").unlink()
    (album / "left" / "0.png").unlink()  # its copy in right/ takes its place
    (album / "right" / "bad.png").unlink()
    (album / "left" / "new.png").write_bytes(encode(255 - images[0]))
    moved = Index.open(out).vector("left/1.png")
    embedded = []
    embed = Encoder.embed_batches
    monkeypatch.setattr(
        Encoder, "embed_batches", lambda self, b: embedded.extend(map(len, b := list(b))) or embed(self, b)
    )
    assert main(["index", "refresh", out, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"added": 1, "dropped": 1, "kept": 6, "renamed": 2}
    assert sum(embedded) == 1
    index = Index.open(out)
    expected = {"left/3.png", "left/new.png", "middle/one.png", "right/copy.png", "right/4.png", "right/5.png"}
    assert set(index.ids) == expected | {"right/6.png"} and index.verify() == 7
    assert index.metadata("middle/one.png")["folder"] == "middle" and index.info()["left_out"] == {}
    np.testing.assert_array_equal(index.vector("middle/one.png"), moved)
    assert index_refresh(out) == {"added": 0, "dropped": 0, "kept": 7, "renamed": 0}
    (album / "left" / "3.png").rename(album / "left" / "three.png")
    assert index_add(out)["vectors"] == 7 and "left/three.png" in Index.open(out) and sum(embedded) == 1
    with pytest.raises(ValueError, match="is not a source of"):
        index_refresh(out, str(tmp_path))
    shutil.rmtree(album)
    with pytest.raises(FileNotFoundError):
        index_refresh(out)
    assert len(Index.open(out)) == 7


def test_duplicates_by_command(album, saved, images, tmp_path, capsys):
    for i in range(2):
        near = images[0].copy()
        near[0, 0] = i
        (album / "left" / f"near-{i}.png").write_bytes(encode(near))
    out, page = str(tmp_path / "i"), tmp_path / "d.html"
    build_index(str(album), model=str(saved), output=out)
    assert main(["index", "duplicates", out, "--threshold", "0.9999", "--sheet", str(page), "--json"]) == 0
    (group,) = json.loads(capsys.readouterr().out)
    assert [one["id"] for one in group] == ["left/0.png", "left/near-0.png", "left/near-1.png"]
    assert page.read_text("utf-8").count("data:image/png") == 3
    assert main(["index", "duplicates", out, "--threshold", "0.9999", "--sheet", str(tmp_path / "d.png")]) == 0
    assert "3 images in 1 groups" in capsys.readouterr().out


def no_folder(folder):
    return folder / "nosuch"


def no_images(folder):
    return folder


def no_column(folder):
    (folder / "a.csv").write_text("path\na.png\n")
    return folder / "a.csv"


def empty_table(folder):
    (folder / "a.csv").write_text("")
    return folder / "a.csv"


@pytest.mark.parametrize("make", [no_folder, no_images, no_column, empty_table])
def test_an_unreadable_source_leaves_no_files(make, album, saved, tmp_path):
    (tmp_path / "wrong").mkdir()
    wrong = str(make(tmp_path / "wrong"))
    for command, out in (("index build", "i"), ("embed", "e")):
        assert main([*command.split(), wrong, "--model", str(saved), "--out", str(tmp_path / out)]) == 2
        assert not (tmp_path / out).exists()
    out = str(tmp_path / "i")
    build_index(str(album), model=str(saved), output=out)
    with pytest.raises((ValueError, FileNotFoundError)):
        index_add(out, wrong)
    info = index_add(out)
    assert list(info["sources"]) == [""] and "left/0.png" in Index.open(out).ids


def test_heic_and_raw_photos_are_indexed_where_their_decoders_are(saved, images, tmp_path, monkeypatch):
    pytest.importorskip("pillow_heif")
    pytest.importorskip("rawpy")
    folder = tmp_path / "photos"
    folder.mkdir()
    write_heic(folder / "a.heic", images[0].repeat(4, 0).repeat(4, 1))
    (folder / "b.dng").write_bytes(write_dng(np.arange(64 * 96).reshape(64, 96) * 9))
    (folder / "c.png").write_bytes(encode(images[1]))
    build = ["index", "build", str(folder), "--model", str(saved), "--out", str(tmp_path / "i")]
    with monkeypatch.context() as patch:
        for module in ("pillow_heif", "rawpy"):
            patch.setitem(sys.modules, module, None)
        assert main(build) == 0
    left_out = Index.open(tmp_path / "i").facts["left_out"]
    assert "convnext-clip-zoo[heic]" in left_out["a.heic"] and "convnext-clip-zoo[raw]" in left_out["b.dng"]
    assert main(build) == 0
    index = Index.open(tmp_path / "i")
    assert index.ids == ["c.png", "a.heic", "b.dng"] and index.facts["left_out"] == {}
    for name in ("a.heic", "b.dng"):
        (found,) = search_images(str(index.path), image=str(folder / name), k=1, cache=str(tmp_path / "t.sqlite"))
        assert found.id == name and found.score == pytest.approx(1, abs=1e-5)


def test_a_name_that_is_not_utf8_is_left_out(album, saved, tmp_path):
    try:
        (album / "left" / "\udcff.png").write_bytes((album / "left" / "2.png").read_bytes() + b"\0")
    except (OSError, UnicodeError):
        pytest.skip("the file system takes no such name")
    out, why = str(tmp_path / "i"), "its name is not UTF-8"
    info = build_index(str(album), model=str(saved), output=out)
    assert info["vectors"] == 7 and info["left_out"]["left/\\udcff.png"] == why
    embed_images(str(album), model=str(saved), output=str(tmp_path / "e"))
    assert json.loads((tmp_path / "e" / "manifest.json").read_text("utf-8"))["left_out"]["left/\\udcff.png"] == why


def test_a_column_named_sha256_does_not_replace_the_digest(album, saved, images, tmp_path):
    table = album / "list.csv"
    table.write_text("filepath,sha256\nleft/0.png,one\nright/copy.png,two\n")
    info = build_index(str(table), model=str(saved), output=str(tmp_path / "i"))
    again = index_add(str(tmp_path / "i"), str(album / "left"))
    assert info["left_out"] == {"right/copy.png": "the same bytes as left/0.png"}
    assert again["left_out"]["left~2/0.png"] == "the same bytes as left/0.png" and again["vectors"] == 4


def test_a_table_whose_files_lie_elsewhere(album, saved, tmp_path, monkeypatch, capsys):
    (tmp_path / "tables").mkdir()
    table, out = tmp_path / "tables" / "list.csv", str(tmp_path / "i")
    table.write_text("filepath\nleft/0.png\nright/5.png\n")
    monkeypatch.chdir(album)
    build = ["index", "build", str(table), "--model", str(saved), "--out", out]
    vectors = ["embed", str(table), "--model", str(saved), "--out", str(tmp_path / "e")]
    for command in (build, vectors):
        assert main(command) == 2
        assert "found from the working folder; add --data-root . (" in capsys.readouterr().err
        assert main([*command, "--data-root", "."]) == 0
    assert main(["index", "add", out, str(table)]) == 0  # the index has recorded the folder
    from_vectors = str(tmp_path / "v")
    build_index(vectors=str(tmp_path / "e"), model=str(saved), output=from_vectors)
    monkeypatch.chdir(tmp_path)
    for index in (out, from_vectors):
        assert index_refresh(index) == {"added": 0, "dropped": 0, "kept": 2, "renamed": 0}
        search_images(index, "a seven", cache=str(tmp_path / "t.sqlite"), sheet=str(tmp_path / "s.html"))
        assert (tmp_path / "s.html").read_text("utf-8").count("data:image/png") == 2
    with pytest.raises(ValueError, match=r"data_root='\.' is for a source, which is missing"):
        index_add(out, data_root=".")


def test_an_index_keeps_its_dtype(album, saved, tmp_path):
    build = {"source": str(album), "model": str(saved), "output": str(tmp_path / "i")}
    build_index(**build, dtype="int8")
    with pytest.raises(ValueError, match="i stores int8, not float32"):
        build_index(**build, dtype="float32")
    assert build_index(**build)["dtype"] == "int8"


def test_a_moved_model_is_reported(album, saved, tmp_path):
    model, out = tmp_path / "own.safetensors", str(tmp_path / "i")
    model.write_bytes(saved.read_bytes())
    build_index(str(album), model=str(model), output=out)
    model.rename(tmp_path / "moved.safetensors")
    with pytest.raises(
        FileNotFoundError,
        match=r"No saved model at .*own.safetensors.*.*i was built with it; if it has moved, pass --model",
    ):
        index_add(out)
    with pytest.raises(FileNotFoundError, match=r"^No saved model at '/nosuch'\.$"):
        index_add(out, model="/nosuch")
    assert index_add(out, model=str(tmp_path / "moved.safetensors"))["vectors"] == 7


def test_sheets_show_the_images_that_still_exist(saved, tmp_path, capsys):
    pattern = write_shards(tmp_path / "shards", 5)
    out, page = str(tmp_path / "i"), tmp_path / "found.html"
    build_index(pattern, model=str(saved), output=out)
    search = {"index": out, "query": "a seven", "k": 9, "cache": str(tmp_path / "t.sqlite")}
    search_images(**search, sheet=str(page))
    assert page.read_text("utf-8").count("data:image/png") == 5

    folder = write_class_folders(tmp_path / "folder", 7)
    index_add(out, str(folder))  # five of them are in the shards
    gone, changed = (next(folder.rglob(f"*{i}.png")) for i in (5, 6))
    gone.unlink()
    changed.write_bytes(b"no image")
    arguments = ["search", out, "a seven", "-k", "9", "--cache", search["cache"], "--sheet"]
    assert main([*arguments, str(page)]) == 0
    output = capsys.readouterr()
    assert len(output.out.splitlines()) == 7 and page.read_text("utf-8").count("data:image/png") == 5
    assert f"{gone.name} is not drawn: no source" in output.err and f"{changed.name} is not drawn: the" in output.err
    for shard in (tmp_path / "shards").iterdir():
        shard.unlink()
    with pytest.warns(UserWarning), pytest.raises(ValueError, match=r"none of the images found .*; .* is not drawn: "):
        search_images(**search, sheet=str(page))
    with pytest.raises(ValueError, match="the search found nothing"):
        search_images(**search, sheet=str(page), where=["folder=none"])


@pytest.mark.parametrize(
    "name, message", [("s.jpg", r"s\.jpg cannot be a sheet.* \.png, \.html or \.htm"), ("no/s.png", "No folder .*no'")]
)
def test_an_invalid_sheet_path_is_refused_before_the_search(name, message, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        search_images(str(tmp_path / "no index"), "a", sheet=str(tmp_path / name))


def test_an_index_is_accelerated_by_command(album, saved, tmp_path, capsys):
    out = str(tmp_path / "i")
    build_index(str(album), model=str(saved), output=out)
    assert main(["index", "accelerate", out]) == 0 and main(["index", "accelerate", out, "--kind", "hnsw"]) == 0
    assert "recall at 10" in capsys.readouterr().out
    assert index_info(out)["accelerators"] == ["int8", "hnsw"]


def test_an_index_without_a_recorded_model_needs_one(pipeline, images, saved, album, tmp_path):
    Index.build(pipeline.embed_images(images), tmp_path / "i", model=pipeline.fingerprint)
    with pytest.raises(ValueError, match="does not record its model"):
        search_images(str(tmp_path / "i"), "a")
    cache = str(tmp_path / "t.sqlite")
    assert len(search_images(str(tmp_path / "i"), "a", model=str(saved), cache=cache)) == 5
    info = index_add(str(tmp_path / "i"), str(album), model=str(saved))
    assert info["vectors"] == 14 and set(info["left_out"]) == {"right/bad.png", "right/copy.png"}


def test_the_cache_by_command(saved, tmp_path, capsys):
    path, other = str(tmp_path / "a.sqlite"), str(tmp_path / "b.sqlite")
    pipeline = ClipPipeline(saved, cache=path)
    pipeline.embed_texts(["one", "two"])
    pipeline.embed_texts(["one"])
    pipeline.cache.close()
    stats = cache_stats(path)
    assert (stats["entries"], stats["misses"], stats["memory_hits"], stats["hit_rate"]) == (2, 2, 1, 1 / 3)
    assert main(["cache", "export", other, "--cache", path]) == 0
    assert main(["cache", "export", other, "--cache", path]) == 2 and "already exists" in capsys.readouterr().err
    assert cache_clear(path) == {"dropped": 2} and cache_import(other, path) == {"read": 2}
    again = ClipPipeline(saved, cache=path)
    again.embed_texts(["one", "two"])
    assert again.cache.stats().disk_hits == 2 and cache_verify(path) == {"entries": 2, "damaged": 0}
    assert main(["cache", "import", str(tmp_path / "none"), "--cache", path]) == 2


@pytest.mark.parametrize("job", [["stats"], ["verify"], ["clear"], ["import", "FILE"]])
def test_cache_commands_leave_other_files_unchanged(job, images, tmp_path, capsys):
    image = tmp_path / "a.png"
    image.write_bytes(encode(images[0]))
    for path, message in (
        (image, "not a text cache"),
        (tmp_path, "it is a folder"),
        (tmp_path / "typo" / "x.sqlite", "No text cache at"),
    ):
        command = ["cache", *(str(path) if part == "FILE" else part for part in job)]
        assert main(command if "FILE" in job else [*command, "--cache", str(path)]) == 2
        error = capsys.readouterr().err
        assert message in error and str(path) in error
    assert list(tmp_path.iterdir()) == [image] and image.read_bytes() == encode(images[0])


def test_an_index_remembers_the_precision_of_its_vectors(album, saved, pipeline, images, tmp_path):
    out, narrow = str(tmp_path / "i"), {"model": str(saved), "precision": "bfloat16"}
    build_index(str(album), output=out, **narrow)
    embed_images(str(album), output=str(tmp_path / "e"), **narrow)
    (part,) = read_parts(tmp_path / "e").parts
    embedded = part.vectors[part.ids.index("left/0.png")]
    indexed = Index.open(out).vector("left/0.png")
    np.testing.assert_allclose(embedded, indexed, atol=1e-3)
    assert 1e-5 < np.abs(indexed - pipeline.embed_images([images[0]])[0]).max() < 0.05
    assert main(["search", out, "a seven", "--cache", str(tmp_path / "t.sqlite")]) == 0
    with pytest.raises(ValueError, match="another model"):
        build_index(str(album), output=out, model=str(saved))


@pytest.mark.once
def test_facts_are_formatted_as_text():
    facts = {
        "vectors": 2,
        "accelerators": [],
        "sources": {"": "/photos"},
        "left_out": {"a.png": "damaged", "b.png": ""},
    }
    expected = [
        "vectors       2",
        "accelerators  none",
        "sources       1, e.g. /photos",
        "left out      2, e.g. a.png: damaged",
    ]
    assert to_text(facts).splitlines() == expected
    more = {"accelerators": ["int8", "hnsw"], "left_out": {}, "hit_rate": 1 / 3, "unrelated": [0.25] * 100}
    assert to_text(more).splitlines() == [
        "accelerators  int8, hnsw",
        "left out      0",
        "hit rate      0.3333",
        "unrelated     100, e.g. 0.25",
    ]


def test_an_index_is_calibrated_by_command(album, saved, tmp_path, capsys):
    out, cache = str(tmp_path / "i"), ["--cache", str(tmp_path / "t.sqlite")]
    build_index(str(album), model=str(saved), output=out)
    assert main(["search", out, "a seven", "--false-rate", "0.05", *cache]) == 2
    assert "is not calibrated" in capsys.readouterr().err
    assert main(["index", "calibrate", out, "--json"]) == 0
    limits = json.loads(capsys.readouterr().out)
    assert limits["queries"] > 100 and limits["limit at 0.01"] >= limits["limit at 0.1"]
    assert main(["search", out, str(album / "left/0.png"), "--false-rate", "0.05", "--json", *cache]) == 0
    assert json.loads(capsys.readouterr().out)[0]["id"] == "left/0.png"
    few = tmp_path / "few.txt"
    few.write_text("one\ntwo\n\none\n")
    assert main(["index", "calibrate", out, str(few)]) == 2 and "2 queries; a calibration" in capsys.readouterr().err
    assert main(["search", out, "a seven", "--min-score", "2", *cache]) == 0
    assert capsys.readouterr().out == "nothing matches\n"


def test_the_users_cache_before_its_first_use_is_empty(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_TEXT_CACHE", str(tmp_path / "folder" / "texts.sqlite"))
    stats = cache_stats()
    assert stats["file"] == str(tmp_path / "folder" / "texts.sqlite")
    assert {name: stats[name] for name in ("entries", "bytes", "misses", "hit_rate")} == {
        **{"entries": 0, "bytes": 0},
        **{"misses": 0, "hit_rate": 0.0},
    }
    assert cache_clear() == {"dropped": 0} and cache_verify() == {"entries": 0, "damaged": 0}
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError, match="No text cache at"):
        cache_export(str(tmp_path / "copy.sqlite"))
