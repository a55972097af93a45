"""CIFAR's and MNIST's original files: read as published, and hostile ones refused without running anything."""

import os
import pickle
import struct

import numpy as np
import pytest
from published_files import idx, python2_batch, rows_of, write_archive, write_cifar10, write_cifar100, write_mnist

from zoo.data.benchmarks import read_benchmark
from zoo.data.datasets import load_labelled


@pytest.fixture
def labelled(rng):
    """uint8 (6, 32, 32, 3) and labels."""
    return rng.integers(0, 256, (6, 32, 32, 3), np.uint8), np.array([3, 1, 4, 1, 5, 9])


def same(read, labelled):
    images, labels = read
    assert images.dtype == np.uint8 and labels.dtype == np.int32
    np.testing.assert_array_equal(images, labelled[0])
    np.testing.assert_array_equal(labels, labelled[1])


@pytest.mark.parametrize("layout", ["archive", "its folder", "folder", "inner folder", "file"])
def test_cifar_as_python_2_wrote_it(layout, labelled, tmp_path):
    batch = python2_batch(rows_of(labelled[0]), labelled[1])
    inner, packed = tmp_path / "cifar-10-batches-py", tmp_path / "packed"
    for folder in (inner, packed):
        folder.mkdir()
    (inner / "test_batch").write_bytes(batch)
    path = {
        "archive": write_archive(packed / "cifar-10-python.tar.gz", {"cifar-10-batches-py/test_batch": batch}),
        "its folder": packed,
        "folder": inner,
        "inner folder": tmp_path,
        "file": inner / "test_batch",
    }[layout]
    same(read_benchmark("cifar10", path), labelled)


def test_the_published_archives(labelled, tmp_path):
    same(read_benchmark("cifar10", write_cifar10(tmp_path, *labelled)), labelled)
    same(read_benchmark("cifar10", tmp_path / "cifar-10-python.tar.gz", "train"), labelled)
    for split in ("test", "train"):
        same(read_benchmark("cifar100", write_cifar100(tmp_path, *labelled), split), labelled)
    data = load_labelled("cifar100", tmp_path / "cifar-100-python.tar.gz")
    assert (len(data.records), len(data.class_names), data.class_names[9], len(data.templates)) == (
        6,
        100,
        "bottle",
        18,
    )


@pytest.mark.parametrize("protocol", [2, 4])
def test_cifar_as_python_3_writes_it(protocol, labelled, tmp_path):
    batch = {"data": rows_of(labelled[0]), "fine_labels": labelled[1].tolist(), "coarse_labels": [0] * 6}
    (tmp_path / "test").write_bytes(pickle.dumps(batch, protocol))
    same(read_benchmark("cifar100", tmp_path), labelled)


def test_the_training_split_is_five_batches_in_order(labelled, tmp_path):
    parts = {f"x/data_batch_{i}": python2_batch(rows_of(labelled[0][[i]]), [i]) for i in range(1, 6)}
    images, labels = read_benchmark("cifar10", write_archive(tmp_path / "c.tar.gz", parts), "train")
    np.testing.assert_array_equal(images, labelled[0][1:])
    assert labels.tolist() == [1, 2, 3, 4, 5]


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("ran",)


ONE = np.zeros((1, 3072), np.uint8)


@pytest.mark.parametrize(
    "content, message",
    [
        (pickle.dumps(Bomb()), r"names (posix|nt)\.mkdir"),
        (pickle.dumps({b"data": np.array([object()]), b"labels": [1]}), "it names"),
        (pickle.dumps({"data": np.zeros((1, 3072)), "labels": [1]}), "not made of uint8"),
        (pickle.dumps([1, 2]), "it is a list"),
        (pickle.dumps({"data": 1}), "is not a cifar10 batch"),
        (pickle.dumps({"data": ONE, "labels": ["one"]}), "are not integers"),
        (pickle.dumps({"data": np.concatenate([ONE, ONE]), "labels": [1]}), "2.*1 labels"),
        (python2_batch(ONE, [1]).replace(b"M\x01\x00M", b"M\xff\xffM"), "has 3072"),
        (python2_batch(ONE, [1])[:-40], "is not a CIFAR batch"),
        (b"", "is not a CIFAR batch"),
        (b"cos\nsystem\n(S'true'\ntR.", "names os.system"),
    ],
    ids=range(11),
)
def test_what_is_no_batch_is_refused_and_nothing_runs(content, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "test_batch").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_benchmark("cifar10", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["test_batch"]


@pytest.mark.parametrize(
    "name, content, message",
    [("c.tar.gz", b"not a tar", "damaged archive"), ("d.tar.gz", None, "has no member 'test_batch'")],
)
def test_archives_without_the_batch_are_refused(name, content, message, tmp_path):
    path = tmp_path / name
    write_archive(path, {"other": b"x"}) if content is None else path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_benchmark("cifar10", path)


@pytest.mark.parametrize("end", ["", ".gz"])
def test_mnist(end, rng, tmp_path):
    images, labels = rng.integers(0, 256, (5, 28, 28), np.uint8), np.array([7, 2, 1, 0, 4], np.uint8)
    same(read_benchmark("mnist", write_mnist(tmp_path, images, labels, end)), (images, labels))
    data = load_labelled("mnist", tmp_path)
    assert (len(data.records), data.class_names[7], data.templates) == (5, "7", ('a photo of the number: "{}".',))
    np.testing.assert_array_equal(data.records.record(0).image, images[0])


@pytest.mark.parametrize("place", ["t10k-images-idx3-ubyte.gz", ".", "MNIST/raw", "MNIST", "raw"])
def test_mnist_is_found_in_the_usual_layouts(place, rng, tmp_path):
    images, labels = rng.integers(0, 256, (5, 28, 28), np.uint8), np.array([7, 2, 1, 0, 4], np.uint8)
    inside = place if place[0] != "t" else "."
    (tmp_path / inside).mkdir(parents=True, exist_ok=True)
    write_mnist(tmp_path / inside, images, labels)
    data = load_labelled("mnist", tmp_path / place if place[0] == "t" else tmp_path)
    np.testing.assert_array_equal(data.records.labels, labels)


@pytest.mark.parametrize(
    "name, place",
    [
        ("mnist", "mnist.npz"),
        ("cifar10", "cifar10.npz"),
        ("cifar100", "cifar100.npz"),
        ("cifar100", "cifar-100-python/test"),
        ("fashion_mnist", "fashion_mnist.npz"),
        ("fashion_mnist", "FashionMNIST/raw"),
    ],
)
def test_other_files_are_found_in_the_usual_layouts(name, place, labelled, tmp_path):
    (tmp_path / place).parent.mkdir(exist_ok=True)
    if place.endswith(".npz"):
        np.savez(tmp_path / place, x_test=labelled[0], y_test=labelled[1])
    elif place.endswith("raw"):
        (tmp_path / place).mkdir()
        write_mnist(tmp_path / place, labelled[0][..., 0], labelled[1])
    else:
        (tmp_path / place).write_bytes(python2_batch(rows_of(labelled[0]), labelled[1], b"fine_labels"))
    assert load_labelled(name, tmp_path).records.labels.tolist() == labelled[1].tolist()


def test_no_damaged_byte_of_a_packed_file_lets_another_error_through(rng, tmp_path):
    labels = np.array([7, 2, 1], np.uint8)
    write_mnist(tmp_path, rng.integers(0, 256, (3, 4, 4), np.uint8), labels)
    packed = write_archive(tmp_path / "c.tar.gz", {"test_batch": python2_batch(ONE, [1])})
    for path, read in (
        (tmp_path / "t10k-images-idx3-ubyte.gz", lambda: read_benchmark("mnist", tmp_path)),
        (packed, lambda: read_benchmark("cifar10", packed)),
    ):
        whole, refused = path.read_bytes(), 0
        for place in range(len(whole)):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
            try:
                read()
            except ValueError as error:
                assert str(path) in str(error)
                refused += 1
        assert refused > len(whole) // 2
        path.write_bytes(whole)


@pytest.mark.parametrize(
    "images, message",
    [
        (b"\x00\x00\x08\x03" + struct.pack(">3I", 2**31, 28, 28), "declares"),
        (b"\x00\x00\x0d\x03" + bytes(12), "not an idx file of bytes"),
        (b"\x00\x00\x08\xff", "not an idx file"),
        (b"", "not an idx file"),
    ],
)
def test_damaged_idx_files_are_refused(images, message, tmp_path):
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(images)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(np.zeros(1, np.uint8)))
    with pytest.raises(ValueError, match=message):
        read_benchmark("mnist", tmp_path)


def test_npz(labelled, tmp_path):
    np.savez(tmp_path / "c.npz", x_test=labelled[0], y_test=labelled[1][:, None])
    same(read_benchmark("cifar10", tmp_path / "c.npz"), labelled)
    with pytest.raises(ValueError, match="no x_train and y_train"):
        read_benchmark("cifar10", tmp_path / "c.npz", "train")
