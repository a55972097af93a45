"""`open_dataset`: every kind of source becomes records, with the metadata that an index stores."""

import json

import numpy as np
import pytest
from data_writers import (
    digits,
    encode,
    write_captioned_folder,
    write_class_folders,
    write_csv,
    write_shards,
)

from zoo.data import from_arrays, open_dataset, open_record, read_csv, read_folder, read_shards

COUNT = 12


def same(a, b):
    assert list(a.names) == list(b.names) and a.fingerprint == b.fingerprint
    assert a.captions == b.captions and a.class_names == b.class_names
    assert (a.labels is None) == (b.labels is None) and (a.labels is None or np.array_equal(a.labels, b.labels))
    assert a.record(3) == b.record(3)


@pytest.mark.parametrize(
    "write, read",
    [
        (write_csv, read_csv),
        (write_captioned_folder, read_folder),
        (write_class_folders, read_folder),
        (write_shards, read_shards),
    ],
)
def test_a_path_is_read_as_what_it_is(tmp_path, write, read):
    path = write(tmp_path / "data", COUNT)
    same(open_dataset(path), read(path))
    same(open_dataset(str(path)), read(path))


def test_tables_of_any_ending_and_shards_by_pattern(tmp_path):
    table = write_csv(tmp_path / "t", COUNT, separator="\t")
    expected = read_csv(table)
    for ending in (".tsv", ".TXT"):
        table = table.rename(table.with_suffix(ending))
        same(open_dataset(table), expected)
    shards = write_shards(tmp_path / "s", COUNT)
    for pattern in (f"shards:{shards}", f"{tmp_path}/s/*", f"{tmp_path}/s/*.tar"):
        assert list(open_dataset(pattern).names) == list(read_shards(shards).names)
    first = str(shards).replace("*", "0000")
    assert len(open_dataset([first, first])) == 2 * len(open_dataset(first))


def test_parquet(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    images, captions, labels = digits(COUNT)
    table = {"image": [encode(image) for image in images], "caption": captions, "label": labels}
    table |= {"score": [0.5] * COUNT, "note": [None, *("n" * (COUNT - 1))], "list": [[1]] * COUNT}
    parquet.write_table(pyarrow.table(table), tmp_path / "t.parquet")
    dataset = open_dataset(tmp_path / "t.parquet", image_key="image", needs="images", metadata=True)
    assert len(dataset) == COUNT and not dataset.captions and dataset.record(0).label is None
    assert dataset.metadata(1) == {"caption": captions[1], "label": str(labels[1]), "score": "0.5", "note": "n"}
    assert dataset.metadata(0)["note"] == ""


def test_a_data_set_is_returned_as_it_is():
    images, captions, labels = digits(COUNT)
    dataset = from_arrays(images, captions, labels)
    assert open_dataset(dataset) is dataset and open_dataset(dataset, needs="captions") is dataset
    assert open_dataset(dataset, needs="images").labels is None


def test_a_benchmark_by_name_and_a_folder_of_that_name_first(tmp_path, monkeypatch):
    assert len(open_dataset("digits")) == 360 and len(open_dataset("digits", split="train")) == 1437
    assert len(open_dataset("digits").class_names) == 10
    monkeypatch.chdir(tmp_path)
    write_class_folders(tmp_path / "digits", COUNT)
    assert len(open_dataset("digits")) == COUNT


def test_images_alone_lie_at_any_depth_with_nothing_beside_them(tmp_path):
    image = encode(digits(1)[0][0])
    for name in ("a.png", "b/c.png", "b/d/e.PNG"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(image)
    dataset = open_dataset(tmp_path, needs="images")
    assert dataset.names == ["a.png", "b/c.png", "b/d/e.PNG"]
    assert [dataset.metadata(i) for i in range(3)] == [{"folder": ""}, {"folder": "b"}, {"folder": "b/d"}]
    assert dataset.subset([2]).metadata(0) == {"folder": "b/d"}
    assert open_record(dataset.record(2)).size == (16, 16)


def test_a_tables_other_columns_are_metadata_and_names_are_unique(tmp_path):
    (tmp_path / "a.png").write_bytes(encode(digits(1)[0][0]))
    table = tmp_path / "t.csv"
    table.write_bytes(b"filepath;year;note\na.png;1999;\xff\nb.png;2000;x\na.png;2001;y\nc.png;1\n")
    dataset = open_dataset(table, needs="images", metadata=True)
    assert len(dataset) == 4 and dataset.metadata(2) == {"year": "2001", "note": "y"}
    unique = dataset.unique()
    assert unique.names[:2] == ["a.png", "b.png"] and len(unique) == 3
    assert unique.metadata(0) == {"year": "1999", "note": "\ufffd"} and unique.metadata(2) == {}
    assert open_dataset(table, needs="images").metadata(0) == {}


def test_what_is_needed_and_missing_is_refused(tmp_path):
    captioned, classes = write_captioned_folder(tmp_path / "a", COUNT), write_class_folders(tmp_path / "b", COUNT)
    with pytest.raises(ValueError, match="/b' has no captions"):
        open_dataset(classes, needs="captions")
    with pytest.raises(ValueError, match="/a' has no labels"):
        open_dataset(captioned, needs="labels")
    with pytest.raises(ValueError, match="the data set has no captions"):
        open_dataset(from_arrays(digits(2)[0]), needs="captions")
    with pytest.raises(ValueError, match="needs='texts'; allowed are"):
        open_dataset(captioned, needs="texts")


def test_other_files_urls_and_missing_paths_are_refused(tmp_path):
    (tmp_path / "a.md").write_text("{}")
    with pytest.raises(ValueError, match=r"a.md' is not a data set; allowed are .csv, .tsv, .txt, .parquet, .jsonl"):
        open_dataset(tmp_path / "a.md")
    for url in ("https://host/a.csv", "pipe:cat a.tar", "shards:https://host/a.tar"):
        with pytest.raises(ValueError, match="is a URL or a command"):
            open_dataset(url)
    with pytest.raises(FileNotFoundError, match="'nowhere' does not exist"):
        open_dataset("nowhere")


def write_rows(path, names):
    """A table of image names, in the layout of its ending."""
    if path.suffix == ".parquet":
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.table({"filepath": names, "caption": ["x"] * len(names)}), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"filepath": name, "caption": "x"}) + "\n" for name in names))
    else:
        mark = "\t" if path.suffix == ".tsv" else ","
        path.write_text(mark.join(("filepath", "caption")) + "\n" + "".join(f"{name}{mark}x\n" for name in names))
    return path


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("needs", ["captions", "images"])
def test_files_that_are_found_from_elsewhere(tmp_path, monkeypatch, ending, needs):
    (tmp_path / "images").mkdir()
    (tmp_path / "tables").mkdir()
    (tmp_path / "images" / "0.png").write_bytes(encode(digits(1)[0][0]))
    monkeypatch.chdir(tmp_path)
    table = write_rows(tmp_path / "tables" / f"t{ending}", ["images/0.png", "images/1.png"])
    with pytest.raises(ValueError, match="'images/0.png', is not below .* from the working folder; add --data-root ."):
        open_dataset(table, needs=needs)
    assert len(open_dataset(table, needs=needs, data_root=".")) == 2
    absolute = [str(tmp_path / "images" / f"{i}.png") for i in range(2)]
    with pytest.raises(ValueError, match=f"add --data-root {tmp_path}/images "):
        open_dataset(write_rows(table, absolute), needs=needs)
    assert len(open_dataset(table, needs=needs, data_root=tmp_path / "images")) == 2
    with pytest.raises(ValueError, match="the first 20 rows are all bad; 'n0.png': the file does not exist; name"):
        open_dataset(write_rows(table, [f"n{i}.png" for i in range(30)]), needs=needs)
    bad_then_good = [*(f"n{i}.png" for i in range(19)), "images/0.png"]
    assert len(open_dataset(write_rows(table, bad_then_good), needs=needs, data_root=tmp_path)) == 20


def test_a_table_in_another_encoding_stops_at_its_first_rows(tmp_path):
    table = tmp_path / "t.csv"
    table.write_bytes("filepath,caption\n0.png,café\n1.png,größe\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"first 2 rows are all bad; 't.csv line 2': caption is not UTF-8; save"):
        open_dataset(table, needs="captions")


def test_the_name_that_earlier_commands_used_stays(tmp_path):
    from zoo.evaluation.retrieval import read_pairs

    table = write_rows(tmp_path / "t.csv", ["0.png"])
    (tmp_path / "0.png").write_bytes(encode(digits(1)[0][0]))
    assert read_pairs(table).record(0).caption == "x"
