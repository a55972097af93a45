"""Captions as people have them: lists, Hugging Face's metadata.jsonl, COCO's annotations, compressed shards."""

import gzip
import json

import pytest
from data_writers import digits, encode, write_class_folders, write_tar

from zoo.data import BadSample, from_arrays, open_dataset, read_coco, read_csv, read_jsonl, read_parquet, read_shards

IMAGES, CAPTIONS, LABELS = digits(4)
FILES = [encode(image) for image in IMAGES]
LISTS = [["a cat", "one cat"], ["a dog"], [], ["a bird", " ", "two birds"]]
EXPECTED = [(0, "a cat"), (0, "one cat"), (1, "a dog"), (3, "a bird"), (3, "two birds")]


def found(dataset) -> list[tuple[int, str]]:
    """(number of the image, caption) of the good records."""
    pairs = []
    for i in range(len(dataset)):
        try:
            record = dataset.record(i)
            pairs.append((FILES.index(record.image), record.caption))
        except BadSample as error:
            assert str(error) in ("no caption", "no text")
    return pairs


def write_lists(folder, layout: str):
    """Four images, with LISTS as captions; returns what opens them."""
    folder.mkdir(exist_ok=True)
    for i, content in enumerate(FILES):
        (folder / f"{i}.png").write_bytes(content)
    if layout == "parquet":
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        images = [{"bytes": content, "path": None} for content in FILES]
        parquet.write_table(pyarrow.table({"image": images, "caption": LISTS}), folder / "t.parquet", row_group_size=2)
        return read_parquet(folder / "t.parquet")
    if layout == "jsonl":
        rows = [json.dumps({"file_name": f"{i}.png", "text": texts}) for i, texts in enumerate(LISTS)]
        (folder / "metadata.jsonl").write_text("\n".join(rows))
        return open_dataset(folder, needs="captions")
    if layout == "shards":
        members = {}
        for i, texts in enumerate(LISTS):
            members |= {f"{i}.png": FILES[i], f"{i}.json": json.dumps({"caption": texts}).encode()}
        return read_shards(write_tar(folder / "a.tar", members))
    notes = [(image, text) for image, texts in enumerate(LISTS) for text in texts]
    content = {
        "images": [{"id": 10 + i, "file_name": f"{i}.png"} for i in range(4)],
        "annotations": [{"image_id": 10 + image, "caption": text} for image, text in notes],
    }
    (folder / "captions_val.json").write_text(json.dumps(content))
    return open_dataset(folder / "captions_val.json", needs="captions")


@pytest.mark.parametrize("layout", ["parquet", "jsonl", "shards", "coco"])
def test_each_caption_of_an_image_is_a_record_of_one_name(tmp_path, layout):
    dataset = write_lists(tmp_path, layout)
    assert found(dataset) == EXPECTED
    names = [dataset.names[i] for i in range(len(dataset))]
    assert names[0] == names[1] != names[2]
    labelled = dataset.with_image_labels()
    assert labelled.labels[0] == labelled.labels[1] != labelled.labels[2]
    assert labelled.record(1).label == labelled.labels[1] and labelled.fingerprint != dataset.fingerprint
    assert len(dataset.unique()) == len(set(names))


def test_rows_of_one_image_are_positives_and_other_data_is_as_it_was(tmp_path):
    (tmp_path / "t.csv").write_text("filepath,caption\na.png,one\nb.png,two\na.png,three\n")
    assert list(read_csv(tmp_path / "t.csv").with_image_labels().labels) == [0, 1, 0]
    dataset = from_arrays(IMAGES, CAPTIONS)
    assert dataset.with_image_labels() is dataset


def test_a_single_text_among_lists_and_other_notes(tmp_path):
    members = {}
    notes = [{"captions": ["x", "y"]}, {"captions": "alone"}, {"url": "-"}]
    for i, note in enumerate(notes):
        members |= {f"{i}.png": FILES[i], f"{i}.json": json.dumps(note).encode()}
    assert found(read_shards(write_tar(tmp_path / "a.tar", members))) == [(0, "x"), (0, "y"), (1, "alone")]


@pytest.mark.parametrize("key", ["caption", "text", "captions", "title"])
def test_a_folder_with_metadata_csv(tmp_path, key):
    write_class_folders(tmp_path, 4)
    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png"))
    rows = "".join(f"{name};'[\"text {i}\"]';{i % 2}\n".replace("'", "") for i, name in enumerate(names))
    (tmp_path / "metadata.csv").write_text(f"file_name;{key};class\n{rows}", encoding="utf-8")
    dataset = open_dataset(tmp_path, needs="captions", caption_key="title" if key == "title" else "caption")
    assert [dataset.record(i).caption for i in range(4)] == [f"text {i}" for i in range(4)]
    assert list(open_dataset(tmp_path, needs="labels", label_key="class").labels) == [0, 1, 0, 1]
    by_folder = open_dataset(tmp_path, needs="labels", label_key="label")  # the default of zoo train classify
    assert by_folder.class_names == tuple(sorted({name.split("/")[0] for name in names}))


@pytest.mark.parametrize("key", ["caption", "text", "captions", "title"])
def test_an_image_folder_of_hugging_face(tmp_path, key):
    write_class_folders(tmp_path, 4)
    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png"))
    rows = [{"file_name": name, key: f"text {i}", "class": i % 2} for i, name in enumerate(names)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n[1]\n{\n")
    options = {"caption_key": key} if key == "title" else {}
    dataset = open_dataset(tmp_path, needs="captions", **options)
    assert [dataset.record(i).caption for i in range(4)] == [f"text {i}" for i in range(4)]
    with pytest.raises(BadSample, match="not a JSON object"):
        dataset.record(4)
    assert len(open_dataset(tmp_path, needs="labels").class_names) == len({name.split("/")[0] for name in names})
    by_column = open_dataset(tmp_path, needs="labels", label_key="class")
    assert list(by_column.labels) == [0, 1, 0, 1, -1, -1]
    direct = read_jsonl(tmp_path / "metadata.jsonl", caption_key=None, metadata=True)
    assert direct.metadata(1)["class"] == "1" and direct.record(0).caption is None
    assert open_dataset(tmp_path, needs="images").names == names
    with pytest.raises(ValueError, match=r"metadata.jsonl: its first object has no 'caption' or .*; its fields are"):
        (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "words": "x"}')
        open_dataset(tmp_path, needs="captions")


def test_parquet_of_hugging_face_has_its_class_names(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"image": FILES, "label": [0, 1, 1, 0]})
    path = tmp_path / "t.parquet"
    features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    for content, expected in (
        (json.dumps({"info": {"features": features}}), ("cat", "dog")),
        ('{"info": 3}', None),
        ("{", None),
        (json.dumps({"info": {"features": {"label": {"names": [1, 2]}}}}), None),
    ):
        parquet.write_table(table.replace_schema_metadata({"huggingface": content}), path)
        dataset = read_parquet(path, caption_key=None, label_key="label")
        assert dataset.class_names == expected and list(dataset.labels) == [0, 1, 1, 0]
    parquet.write_table(
        table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}), path
    )
    given = read_parquet(path, caption_key=None, label_key="label", class_names=["Katze", "Hund"])
    assert given.class_names == ("Katze", "Hund")


@pytest.mark.parametrize("captions", [["a", "b", "c", "d"], LISTS])
def test_parquet_files_of_hugging_face_are_read_together(tmp_path, captions):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    images = [{"bytes": content, "path": None} for content in FILES]
    table = pyarrow.table({"image": images, "label": [0, 1, 1, 0], "text": captions})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    (tmp_path / "data").mkdir()
    for i in range(2):
        parquet.write_table(table.slice(2 * i, 2), tmp_path / "data" / f"train-{i}-of-2.parquet")
    pattern = str(tmp_path / "data" / "train-*.parquet")
    whole = open_dataset(pattern, needs="captions")
    expected = EXPECTED if captions is LISTS else list(enumerate(captions))
    assert found(whole) == expected
    labelled = open_dataset(pattern, needs="labels", label_key="label")
    assert labelled.class_names == ("cat", "dog") and list(labelled.labels) == [0, 1, 1, 0]
    assert len(open_dataset(pattern, needs="images", metadata=True)) == 4
    for needs in (None, "captions", "images"):
        with pytest.raises(ValueError, match=r"no images, but .parquet files; name them, as '.*data/\*.par"):
            open_dataset(tmp_path, needs=needs)


def test_coco_needs_its_images_and_other_json_is_refused(tmp_path):
    write_lists(tmp_path / "images", "coco")
    moved = tmp_path / "annotations.json"
    (tmp_path / "images" / "captions_val.json").rename(moved)
    with pytest.raises(ValueError, match="has no '0.png', the first image of .*; name its folder with data_root"):
        open_dataset(moved)
    assert found(open_dataset(moved, data_root=tmp_path / "images")) == EXPECTED
    for content in ("{}", "[]", "{", '{"images": [{"id": 1}], "annotations": []}', "3"):
        moved.write_text(content)
        with pytest.raises(ValueError, match="is not a caption file of COCO"):
            read_coco(moved)
    note = {"image_id": 7, "caption": "x"}
    for path in ("../a.png", "/etc/passwd"):
        moved.write_text(json.dumps({"images": [{"id": 7, "file_name": path}], "annotations": [note]}))
        with pytest.raises(ValueError, match="leaves the data root"):
            read_coco(moved)


@pytest.mark.parametrize(
    "mark, kind", [(b"\x1f\x8b", "gzip"), (b"BZh", "bzip2"), (b"\xfd7zXZ\0", "xz"), (b"(\xb5/\xfd", "zstd")]
)
@pytest.mark.parametrize("length", [20, 2000])
def test_compressed_shards_are_refused_with_the_remedy(tmp_path, mark, kind, length):
    (tmp_path / "a.tar").write_bytes(mark + bytes(length))
    with pytest.raises(ValueError, match=rf"compressed with {kind}; unpack it first \({kind} -d\)"):
        read_shards(tmp_path / "a.tar")


def test_compressed_files_are_refused_by_their_name(tmp_path):
    write_tar(tmp_path / "a.tar", {"0.png": FILES[0], "0.txt": b"x"})
    for name in ("a.tar.gz", "a.tgz", "t.csv.gz", "photos.zip"):
        (tmp_path / name).write_bytes(gzip.compress((tmp_path / "a.tar").read_bytes()))
        with pytest.raises(ValueError, match=f"{name}' is compressed; unpack it first"):
            open_dataset(tmp_path / name)
    with pytest.raises(ValueError, match="compressed with gzip"):
        open_dataset(f"shards:{tmp_path}/a.tar.gz")
