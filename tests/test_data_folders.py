"""Folders that are no classes: empty, hidden, and those that systems leave behind."""

import warnings

import numpy as np
import pytest
from data_writers import digits, encode

from zoo.data import open_dataset, read_folder
from zoo.data.folders import SYSTEM_FOLDERS

IMAGE = encode(digits(1)[0][0])


@pytest.fixture
def classes(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "0.jpg").write_bytes(IMAGE)
        (tmp_path / name / "deep" / "1.png").write_bytes(IMAGE)
    return tmp_path


@pytest.mark.parametrize("name", [*sorted(SYSTEM_FOLDERS), ".hidden", ".ipynb_checkpoints"])
@pytest.mark.parametrize("place", ["", "cat"])
def test_folders_of_systems_are_ignored_at_any_depth(classes, name, place):
    inner = classes / place / name / "cat"
    inner.mkdir(parents=True)
    (inner / "._0.jpg").write_bytes(b"\0\5\x16\7")
    (inner / "0.jpg").write_bytes(IMAGE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = read_folder(classes)
    assert dataset.class_names == ("cat", "dog") and list(dataset.labels) == [0, 0, 1, 1]
    assert open_dataset(classes, needs="images").names == list(dataset.names)


def test_folders_without_images_are_named_and_have_no_number(classes):
    (classes / "bird").mkdir()
    (classes / "eagle").mkdir()
    (classes / "eagle" / "notes.md").write_text("none yet")
    with pytest.warns(UserWarning, match="no images, and so no class, in 'bird', 'eagle' of"):
        dataset = read_folder(classes)
    assert dataset.class_names == ("cat", "dog")
    for i in range(7):
        (classes / f"empty_{i}").mkdir()
    with pytest.warns(UserWarning, match="and 4 more of"):
        read_folder(classes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        named = read_folder(classes, class_names=("bird", "cat", "dog"))  # the caller's numbers count
    assert np.array_equal(named.labels, [1, 1, 2, 2])
