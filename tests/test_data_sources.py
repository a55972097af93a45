"""Records: the same images from CSV, folders, tar shards, parquet and arrays, and what makes a record bad."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from data_writers import (
    WORDS,
    digits,
    encode,
    write_captioned_folder,
    write_class_folders,
    write_csv,
    write_shards,
    write_tar,
)

from zoo.data import BadSample, from_arrays, open_record, read_csv, read_folder, read_parquet, read_shards

ROOT = Path(__file__).resolve().parent.parent
COUNT = 60


def pixels(dataset, index):
    return np.asarray(open_record(dataset.record(index)))


def write_rows(path: Path, text: str, encoding: str = "utf-8") -> Path:
    (path.parent / "a.png").write_bytes(encode(digits(1)[0][0]))
    path.write_bytes(text.encode(encoding))
    return path


# --- the layouts agree ---


@pytest.mark.parametrize("layout", ["csv", "tsv", "captioned", "shards", "json shards", "arrays"])
def test_every_layout_gives_the_same_images_and_captions(tmp_path, layout):
    images, captions, labels = digits(COUNT)
    dataset = {
        "csv": lambda: read_csv(write_csv(tmp_path, COUNT)),
        "tsv": lambda: read_csv(write_csv(tmp_path, COUNT, separator="\t")),
        "captioned": lambda: read_folder(write_captioned_folder(tmp_path, COUNT)),
        "shards": lambda: read_shards(write_shards(tmp_path, COUNT)),
        "json shards": lambda: read_shards(write_shards(tmp_path, COUNT, notes=True)),
        "arrays": lambda: from_arrays(images, captions, labels),
    }[layout]()
    assert len(dataset) == COUNT and dataset.captions
    for i in range(COUNT):
        assert dataset.record(i).caption == captions[i]
        assert np.array_equal(pixels(dataset, i), images[i])
    assert len(set(dataset.names)) == COUNT
    if layout in ("shards", "json shards", "arrays"):
        assert np.array_equal(dataset.labels, labels)
        assert [dataset.record(i).label for i in range(COUNT)] == list(labels)
    else:
        assert dataset.labels is None


def test_class_folders_give_labels_and_names(tmp_path):
    images, _, labels = digits(COUNT)
    dataset = read_folder(write_class_folders(tmp_path, COUNT))
    assert dataset.class_names == tuple(f"{i}_{word}" for i, word in enumerate(WORDS)) and not dataset.captions
    numbers = [int(Path(name).stem) for name in dataset.names]
    assert sorted(numbers) == list(range(COUNT))
    for i, number in enumerate(numbers):
        assert dataset.labels[i] == labels[number] == dataset.record(i).label
        assert np.array_equal(pixels(dataset, i), images[number])


def test_classes_in_a_csv_are_names_or_numbers(tmp_path):
    labels = digits(COUNT)[2]
    path = write_csv(tmp_path, COUNT)
    dataset = read_csv(path, caption_key=None, label_key="class")
    assert dataset.class_names == tuple(sorted(WORDS)) and not dataset.captions
    assert [dataset.class_names[label] for label in dataset.labels] == [WORDS[label] for label in labels]
    chosen = read_csv(path, label_key="class", class_names=WORDS)
    assert np.array_equal(chosen.labels, labels) and chosen.class_names == WORDS and chosen.captions
    numbers = write_rows(tmp_path / "numbers.csv", "filepath,class\na.png,7\na.png,0\n")
    dataset = read_csv(numbers, caption_key=None, label_key="class")
    assert list(dataset.labels) == [7, 0] and dataset.class_names is None
    assert list(read_csv(numbers, caption_key=None, label_key="class", class_names=WORDS).labels) == [7, 0]


def test_an_unknown_class_is_a_bad_record(tmp_path):
    path = write_rows(tmp_path / "t.csv", "filepath,class\na.png,cat\na.png,dog\n")
    dataset = read_csv(path, caption_key=None, label_key="class", class_names=["dog"])
    assert list(dataset.labels) == [-1, 0] and dataset.record(1).label == 0
    with pytest.raises(BadSample, match="'cat' is not among the 1 known"):
        dataset.record(0)
    numbers = write_rows(tmp_path / "n.csv", "filepath,class\na.png,1\na.png,5\n")
    dataset = read_csv(numbers, caption_key=None, label_key="class", class_names=["cat", "dog"])
    assert list(dataset.labels) == [1, -1]
    write_class_folders(tmp_path / "folders", 20)
    dataset = read_folder(tmp_path / "folders", class_names=["3_three"])
    assert set(dataset.labels) == {0, -1}
    with pytest.raises(BadSample, match="not among the 1 known classes"):
        dataset.record(int(np.flatnonzero(dataset.labels < 0)[0]))


# --- CSV ---


def test_the_separator_is_detected_by_the_columns(tmp_path):
    for separator in (",", "\t", ";", "|"):
        path = write_rows(
            tmp_path / "t.csv", f"id{separator}filepath{separator}caption\n1{separator}a.png{separator}x\n"
        )
        assert read_csv(path).record(0).caption == "x"
    path = write_rows(tmp_path / "t.csv", "filepath#caption\na.png#x, y\n")
    assert read_csv(path, separator="#").record(0).caption == "x, y"


def test_quotes_line_breaks_and_byte_order_marks_are_understood(tmp_path):
    path = write_rows(tmp_path / "t.csv", '\ufefffilepath,caption\r\na.png,"two\nlines, ""quoted"""\r\n\r\na.png,é\r\n')
    dataset = read_csv(path)
    assert [dataset.record(i).caption for i in range(2)] == ['two\nlines, "quoted"', "é"]


def test_malformed_rows_are_bad_records_with_their_line(tmp_path):
    good, long = "a.png,fine\n", "x" * ((1 << 20) + 1)
    text = f"filepath,caption\n{good}a.png\na.png,too,many\na.png,\n,no path\na.png,{long}\n{good}"
    path = write_rows(tmp_path / "t.csv", text)
    with open(path, "ab") as file:
        file.write(b"a.png,caf\xe9\na.png,fine\n")
    dataset = read_csv(path)
    reasons = {}
    for i in range(len(dataset)):
        try:
            assert dataset.record(i).caption == "fine"
        except BadSample as error:
            reasons[dataset.names[i]] = str(error)
    assert reasons == {
        "t.csv line 3": "1 fields under a header of 2",
        "t.csv line 4": "3 fields under a header of 2",
        "t.csv line 5": "no caption",
        "t.csv line 6": "no filepath",
        "t.csv line 7": "caption has 1048577 characters; at most 1048576 are allowed",
        "t.csv line 9": "caption is not UTF-8; save the table as UTF-8, for instance with iconv -f LATIN1 -t UTF-8",
    }
    assert len(dataset) == 9


def test_a_csv_without_the_column_or_without_rows_is_refused(tmp_path):
    path = write_rows(tmp_path / "t.csv", "file_path,caption\na.png,x\n")
    with pytest.raises(ValueError, match=r"no column 'filepath'; nearest is 'file_path', columns are \['file_path'"):
        read_csv(path)
    assert read_csv(path, image_key="file_path").record(0).caption == "x"
    for text in ("", "filepath,caption\n"):
        with pytest.raises(ValueError, match="no column|no rows"):
            read_csv(write_rows(tmp_path / "t.csv", text))


def test_paths_are_relative_to_the_table_or_the_data_root(tmp_path):
    table = write_csv(tmp_path / "data", 3)
    with open(table, newline="") as file:
        rows = list(csv.reader(file))
    moved = tmp_path / "elsewhere" / "train.csv"
    moved.parent.mkdir()
    moved.write_bytes(table.read_bytes())
    with pytest.raises(BadSample, match="does not exist"):
        read_csv(moved).record(0)
    assert read_csv(moved, data_root=tmp_path / "data").record(0).name == rows[1][0]


# --- folders and shards ---


def test_hidden_and_other_files_are_ignored_and_a_loose_image_is_refused(tmp_path):
    folder = write_class_folders(tmp_path, 10)
    for name in ("._x.png", "notes.md", "README.txt"):
        (folder / "0_zero" / name).write_bytes(b"x")
    (folder / ".git").mkdir()
    assert len(read_folder(folder)) == 10 and len(read_folder(folder).class_names) == 10
    (folder / "loose.png").write_bytes(encode(digits(1)[0][0]))
    with pytest.raises(ValueError, match="'loose.png' has neither a .txt beside it nor a class folder"):
        read_folder(folder)
    with pytest.raises(ValueError, match="not a folder"):
        read_folder(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no images"):
        read_folder(tmp_path / "empty")


def test_captions_that_are_missing_empty_or_not_text_are_bad_records(tmp_path):
    folder = write_captioned_folder(tmp_path, 5)
    (folder / "00000.txt").unlink()
    (folder / "00001.txt").write_bytes(b" \n")
    (folder / "00002.txt").write_bytes(b"\xff\xfe")
    dataset = read_folder(folder)
    for i, reason in enumerate(["no .txt beside it", "the caption is empty", "the caption is not UTF-8"]):
        with pytest.raises(BadSample, match=reason):
            dataset.record(i)
    assert dataset.record(3).caption == digits(5)[1][3]


def test_shards_are_named_by_braces_wildcards_and_lists(tmp_path):
    write_shards(tmp_path, 12, shards=3)
    names = read_shards(f"{tmp_path}/digits-{{0000..0002}}.tar").names
    assert len(names) == 12 and names[0] == "digits-0000.tar/00000"
    assert read_shards(f"{tmp_path}/digits-*.tar").names == names
    assert read_shards([tmp_path / f"digits-000{i}.tar" for i in range(3)]).names == names
    assert len(read_shards(f"{tmp_path}/digits-000{{0,2}}.tar")) == 8
    with pytest.raises(ValueError, match="no shard '.*digits-0003.tar'"):
        read_shards(f"{tmp_path}/digits-{{0000..0003}}.tar")
    with pytest.raises(ValueError, match="no shard"):
        read_shards(f"{tmp_path}/nothing-*.tar")


@pytest.mark.parametrize("form", ["ustar", "gnu", "pax"])
def test_long_and_foreign_names_are_read_in_every_tar_format(tmp_path, form):
    import tarfile

    number = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}[form]
    long = "/".join(["a" * 60] * 3) + "/image" if form == "ustar" else "ä" * 150 + "/image"
    members = {f"{long}.png": encode(digits(1)[0][0]), f"{long}.txt": "größe".encode(), "short.PNG": b"x" * 512}
    write_tar(tmp_path / "a.tar", members, format=number)
    dataset = read_shards(tmp_path / "a.tar")
    assert dataset.names == [f"a.tar/{long}", "a.tar/short"]
    assert dataset.record(0).caption == "größe" and np.array_equal(pixels(dataset, 0), digits(1)[0][0])


def test_incomplete_samples_of_a_shard_are_bad_records(tmp_path):
    image = encode(digits(1)[0][0])
    members = {
        **{"good.png": image, "good.txt": b"x", "good.cls": b"3\n", "good.seg.png": b"passed over"},
        **{"no_text.png": image, "no_text.cls": b"1"},
        **{"no_label.png": image, "no_label.txt": b"x"},
        **{"odd_label.png": image, "odd_label.txt": b"x", "odd_label.cls": b"3.5"},
        **{"no_image.txt": b"x", "no_image.cls": b"1"},
        **{"other_class.png": image, "other_class.txt": b"x", "other_class.cls": b"10"},
    }
    dataset = read_shards(write_tar(tmp_path / "a.tar", members), class_names=WORDS)
    reasons = []
    for i in range(1, len(dataset)):
        with pytest.raises(BadSample) as caught:
            dataset.record(i)
        reasons.append(str(caught.value))
    label = "no label, or a label that is not a class"
    assert reasons == ["no caption", label, label, "no image among .txt, .cls", label]
    assert dataset.record(0).label == 3 and list(dataset.labels) == [3, 1, -1, -1, -1, -1]


# --- arrays, parquet, subsets ---


def test_arrays_of_other_kinds_and_lengths_are_refused():
    images, captions, labels = digits(4)
    with pytest.raises(ValueError, match=r"image 0 is float64 \(16, 16, 3\); allowed is uint8"):
        from_arrays(images / 255)
    with pytest.raises(ValueError, match="3 captions for 4 images"):
        from_arrays(images, captions[:3])
    with pytest.raises(ValueError, match="labels run from 0 to 3; allowed are 0 to 1"):
        from_arrays(images, labels=labels, class_names=["zero", "one"])
    with pytest.raises(ValueError, match="labels are float64"):
        from_arrays(images, labels=labels / 2)
    mixed = from_arrays([images[0], images[1][..., 0], images[2][:5, :, :1]])
    assert [pixels(mixed, i).shape for i in range(3)] == [(16, 16, 3), (16, 16), (5, 16)]


@pytest.mark.parametrize("holds", ["bytes", "paths", "structs"])
def test_parquet_gives_the_same_records(tmp_path, holds):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    images, captions, labels = digits(20)
    files = [encode(image) for image in images]
    for i, content in enumerate(files):
        (tmp_path / f"{i}.png").write_bytes(content)
    column = {
        "bytes": files,
        "paths": [f"{i}.png" for i in range(20)],
        "structs": [{"bytes": content, "path": None} for content in files],
    }[holds]
    table = {"image": column, "caption": [*captions[:19], None], "label": labels}
    parquet.write_table(pyarrow.table(table), tmp_path / "t.parquet", row_group_size=7)
    dataset = read_parquet(tmp_path / "t.parquet", label_key="label")
    for i in range(19):
        record = dataset.record(i)
        assert (record.caption, record.label) == (captions[i], labels[i])
        assert np.array_equal(pixels(dataset, i), images[i])
    with pytest.raises(BadSample, match="no caption"):
        dataset.record(19)
    with pytest.raises(ValueError, match="no column 'img'; nearest is 'image'"):
        read_parquet(tmp_path / "t.parquet", image_key="img")
    with pytest.raises(ValueError, match="unpacks to .*at most 100 are held"):
        read_parquet(tmp_path / "t.parquet", max_bytes=100)


def test_parquet_names_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r"needs pyarrow\. Install with: pip install 'convnext-clip-zoo\[parquet\]'"):
        read_parquet(tmp_path / "t.parquet")


def test_a_subset_has_the_given_records_in_order(tmp_path):
    dataset = read_shards(write_shards(tmp_path, 12))
    part = dataset.subset([7, 2])
    assert part.names == [dataset.names[7], dataset.names[2]] and len(part) == 2
    assert part.record(1) == dataset.record(2) and list(part.labels) == [dataset.labels[7], dataset.labels[2]]
    assert part.subset([1]).record(0) == dataset.record(2)
    for wrong in (-1, 12):
        with pytest.raises(IndexError, match="allowed are 0 to 11"):
            dataset.subset([wrong])
    with pytest.raises(IndexError, match="record 2 of 2"):
        part.record(2)


def test_the_fingerprint_changes_with_rows_order_and_texts():
    images, captions, labels = digits(6)
    dataset = from_arrays(images, captions, labels)
    others = [
        from_arrays(images[::-1], captions, labels),
        from_arrays(images, captions[::-1], labels),
        from_arrays(images, captions, labels[::-1]),
        from_arrays(images, captions),
        from_arrays(images[:5], captions[:5], labels[:5]),
        dataset.subset(range(5)),
        dataset.subset([1, 0, 2, 3, 4, 5]),
    ]
    prints = {dataset.fingerprint, *(other.fingerprint for other in others)}
    assert len(prints) == len(others) + 1
    assert from_arrays(images.copy(), list(captions), labels.copy()).fingerprint == dataset.fingerprint


def test_import_needs_numpy_and_pillow_only():
    code = (
        "import sys, zoo.data; "
        "assert not {'keras', 'torch', 'jax', 'tensorflow', 'pyarrow', 'tokenizers', 'clip.model'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
