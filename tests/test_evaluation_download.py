"""Data sets in Keras' own cache: found there, verified, and asked for by name when the network does not give them."""

import gzip
import hashlib
import urllib.error

import keras
import numpy as np
import pytest
from test_evaluation_published import idx, python2_batch, rows_of, write_archive

from zoo.data import benchmarks
from zoo.data.datasets import load_labelled

pytestmark = [pytest.mark.backend, pytest.mark.once]
MNIST_LABELS = np.array([7, 2, 1], np.uint8)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Keras' cache in a folder of the test's own, with nothing behind it."""
    real = keras.utils.get_file

    def get_file(name, origin, **options):
        path = tmp_path / options["cache_subdir"] / name
        if not path.exists():
            raise urllib.error.URLError("no route to host")
        return real(name, origin, cache_dir=tmp_path, **options)

    monkeypatch.setattr(keras.utils, "get_file", get_file)
    return tmp_path / "datasets"


def put(cache, monkeypatch, name, files):
    """Files of a data set, with the digests that its table would have if they were the published ones."""
    folder = cache / name
    folder.mkdir(parents=True)
    for file, content in files.items():
        (folder / file).write_bytes(content)
    kind = {64: hashlib.sha256, 32: hashlib.md5}
    table = {
        file: (origin, kind[len(digest)](files[file]).hexdigest())
        for file, (origin, digest) in benchmarks.ORIGINS[name].items()
    }
    monkeypatch.setitem(benchmarks.ORIGINS, name, table)


def cifar_archive(rng, tmp_path, member, key):
    images = rng.integers(0, 256, (3, 32, 32, 3), np.uint8)
    batch = python2_batch(rows_of(images), [3, 1, 4], key)
    return images, write_archive(tmp_path / "made.tar.gz", {member: batch}).read_bytes()


@pytest.mark.parametrize(
    "name, file, member, key",
    [
        ("cifar10", "cifar-10-python.tar.gz", "cifar-10-batches-py/test_batch", b"labels"),
        ("cifar100", "cifar-100-python.tar.gz", "cifar-100-python/test", b"fine_labels"),
    ],
)
def test_cifar(name, file, member, key, cache, rng, tmp_path, monkeypatch):
    images, archive = cifar_archive(rng, tmp_path, member, key)
    put(cache, monkeypatch, name, {file: archive})
    data = load_labelled(name)
    assert data.records.labels.tolist() == [3, 1, 4] and len(data.templates) == 18
    np.testing.assert_array_equal(data.records.record(2).image, images[2])


def test_mnist_as_one_npz_and_fashion_mnist_as_idx(cache, rng, tmp_path, monkeypatch):
    images = rng.integers(0, 256, (3, 28, 28), np.uint8)
    np.savez(tmp_path / "made.npz", x_test=images, y_test=MNIST_LABELS)
    put(cache, monkeypatch, "mnist", {"mnist.npz": (tmp_path / "made.npz").read_bytes()})
    idx_files = {
        f"{split}-{what}-ubyte.gz": gzip.compress(idx(array))
        for split in ("t10k", "train")
        for what, array in (("images-idx3", images), ("labels-idx1", MNIST_LABELS))
    }
    put(cache, monkeypatch, "fashion_mnist", idx_files)
    for name in ("mnist", "fashion_mnist"):
        data = load_labelled(name)
        assert data.records.labels.tolist() == [7, 2, 1]
        np.testing.assert_array_equal(data.records.record(0).image, images[0])


def test_without_a_network_the_files_are_asked_for(cache):
    with pytest.raises(ValueError, match=r"no route to host.*Get cifar-100-python.tar.gz from .*--data PATH"):
        load_labelled("cifar100")


def test_a_file_with_another_digest_is_not_read(cache, rng, tmp_path, monkeypatch):
    _, archive = cifar_archive(rng, tmp_path, "x/test_batch", b"labels")
    put(cache, monkeypatch, "cifar10", {"cifar-10-python.tar.gz": archive})
    (cache / "cifar10" / "cifar-10-python.tar.gz").write_bytes(archive[:-1] + b"x")
    monkeypatch.setattr("keras.src.utils.file_utils.urlretrieve", refuse)  # it would be fetched again
    with pytest.raises(ValueError, match="the download failed"):
        load_labelled("cifar10")


def refuse(*_, **__):
    raise urllib.error.URLError("no route to host")
