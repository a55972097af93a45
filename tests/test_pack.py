"""`zoo data pack`: what was in the source is in the shards, and equal sources give equal bytes."""

import json

import numpy as np
import pytest
from data_writers import digits, encode, write_captioned_folder, write_class_folders, write_csv

from zoo.cli import main
from zoo.data import open_dataset
from zoo.data.pack import pack


def rows(dataset):
    return [dataset.record(i) for i in range(len(dataset))]


@pytest.mark.parametrize("write", [write_captioned_folder, write_class_folders, write_csv])
def test_a_packed_source_has_the_same_records(write, tmp_path):
    source = write(tmp_path / "source", 7)
    options = {"label_key": "class"} if write is write_csv else {}
    before = open_dataset(source, **options)
    assert pack(str(source), str(tmp_path / "shards"), shard_size=3, **options)["shards"] == 3
    names = {"class_names": before.class_names} if before.class_names else {}
    after = open_dataset(str(tmp_path / "shards" / "*.tar"), **names)
    for old, new in zip(rows(before), rows(after), strict=True):
        assert (new.image, new.caption, new.label) == (old.image, old.caption, old.label)
    if before.class_names:
        assert (tmp_path / "shards" / "classes.txt").read_text().split("\n")[:-1] == list(before.class_names)


def test_equal_sources_give_equal_bytes_and_a_seed_another_order(tmp_path):
    one, two = (write_captioned_folder(tmp_path / name, 9) for name in ("one", "two"))
    for source, out, seed in ((one, "a", None), (two, "b", None), (one, "c", 1), (two, "d", 1)):
        pack(str(source), str(tmp_path / out), shard_size=4, shuffle_seed=seed)
    shards = {out: [path.read_bytes() for path in sorted((tmp_path / out).glob("*.tar"))] for out in "abcd"}
    assert shards["a"] == shards["b"] != shards["c"] == shards["d"]
    texts = [[record.caption for record in rows(open_dataset(str(tmp_path / out / "*.tar")))] for out in "ac"]
    assert texts[0] != texts[1] and sorted(texts[0]) == sorted(texts[1])


def test_several_captions_stay_with_their_image_and_bad_images_are_named(tmp_path):
    for i, image in enumerate(digits(2)[0]):
        (tmp_path / f"{i}.png").write_bytes(encode(image))
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    table = tmp_path / "t.csv"
    table.write_text(
        "filepath,caption,year\n0.png,a nought,1\n0.png,a zero,1\n1.png,a one,2\nbad.jpg,x,3\ngone.png,y,4\n"
    )
    out = tmp_path / "shards"
    assert pack(str(table), str(out))["left out"] == 2
    left_out = json.loads((out / "shards.json").read_text())["left_out"]
    assert "not an image" in left_out["bad.jpg"] and "does not exist" in left_out["gone.png"]
    packed = open_dataset(str(out / "*.tar"))
    texts = {}
    for record in rows(packed):
        texts.setdefault(record.image, []).append(record.caption)
    assert sorted(map(sorted, texts.values())) == [["a nought", "a zero"], ["a one"]]


@pytest.mark.parametrize("name, content", [("t.csv", "filepath\n0.png\n"), ("t.jsonl", '{"file_name": "0.png"}')])
def test_a_table_without_captions_is_packed(tmp_path, name, content):
    (tmp_path / "0.png").write_bytes(encode(digits(1)[0][0]))
    (tmp_path / name).write_text(content)
    assert pack(str(tmp_path / name), str(tmp_path / "shards"))["samples"] == 1
    with pytest.raises(ValueError, match="has no column 'words'|has no 'words'"):
        pack(str(tmp_path / name), str(tmp_path / "other"), caption_key="words")


def test_arrays_are_packed_and_an_existing_folder_is_refused(tmp_path, capsys):
    out = str(tmp_path / "shards")
    assert main(["data", "pack", "digits", out, "--shard-size", "200"]) == 0
    packed = open_dataset(f"{out}/*.tar")
    assert (
        len(packed) == 360
        and np.bincount(packed.labels).tolist() == np.bincount(open_dataset("digits").labels).tolist()
    )
    assert main(["data", "pack", "digits", out]) == 2 and "already exists" in capsys.readouterr().err
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.jpg").write_bytes(b"no image")
    (tmp_path / "bad" / "x.txt").write_text("a caption")
    assert main(["data", "pack", str(tmp_path / "bad"), str(tmp_path / "none")]) == 2
    assert "none of the 1 images" in capsys.readouterr().err and not (tmp_path / "none").exists()
