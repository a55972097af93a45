"""CIFAR's and MNIST's files, written byte for byte in the layouts of the published ones.

Formats: https://www.cs.toronto.edu/~kriz/cifar.html, http://yann.lecun.com/exdb/mnist/.
"""

import gzip
import io
import struct
import tarfile
from pathlib import Path

import numpy as np

AT_ONCE = 1000  # elements that Python 2's pickler appends to a list at a time


def rows_of(images: np.ndarray) -> np.ndarray:
    """uint8 (N, 32, 32, 3) → (N, 3072): red plane, green plane, blue plane, as CIFAR has them."""
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def python2_batch(data: np.ndarray, labels, key: bytes = b"labels", **others) -> bytes:
    """The opcodes with which Python 2's cPickle, protocol 2, and an old NumPy wrote the published batches.

    Args:
        data: uint8 (N, 3072).
        labels: N integers below 256, under `key`.
        others: further lists of such integers.
    """
    count, width = data.shape
    dtype = b"cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87Rq\x07(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    shape = b"M" + struct.pack("<H", count) + b"M" + struct.pack("<H", width) + b"\x86"
    array = b"cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85U\x01bq\x04\x87q\x05R"
    array += b"(K\x01" + shape + dtype + b"\x89T" + struct.pack("<i", data.size) + data.tobytes() + b"tb"
    names = [_string(f"picture_s_{i:06d}.png".encode()) for i in range(count)]
    values = {
        b"batch_label": _string(b"testing batch 1 of 1"),
        key: _list([b"K" + bytes([label]) for label in labels]),
        **{other.encode(): _list([b"K" + bytes([label]) for label in values]) for other, values in others.items()},
        b"data": array,
        b"filenames": _list(names),
    }
    return b"\x80\x02}q\x01(" + b"".join(_string(name) + value for name, value in values.items()) + b"u."


def _string(text: bytes) -> bytes:
    return b"U" + bytes([len(text)]) + text


def _list(elements: list[bytes]) -> bytes:
    parts = (elements[first : first + AT_ONCE] for first in range(0, len(elements), AT_ONCE))
    return b"]" + b"".join(b"(" + b"".join(part) + b"e" for part in parts)


def write_archive(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def write_cifar10(folder: Path, images: np.ndarray, labels) -> Path:
    """cifar-10-python.tar.gz: the five training batches, the test batch, and what else lies there."""
    inner = "cifar-10-batches-py"
    parts = np.array_split(np.arange(len(labels)), 5)
    train = {
        f"{inner}/data_batch_{i}": python2_batch(rows_of(images[part]), np.asarray(labels)[part])
        for i, part in enumerate(parts, 1)
    }
    test = {f"{inner}/test_batch": python2_batch(rows_of(images), labels)}
    names = {f"{inner}/batches.meta": b"not a batch", f"{inner}/readme.html": b"<html>"}
    return write_archive(folder / "cifar-10-python.tar.gz", {**names, **train, **test})


def write_cifar100(folder: Path, images: np.ndarray, labels) -> Path:
    """cifar-100-python.tar.gz: fine labels 0 … 99, and coarse ones that are not to be taken for them."""
    coarse = [label // 5 for label in labels]
    batch = python2_batch(rows_of(images), labels, b"fine_labels", coarse_labels=coarse)
    members = {f"cifar-100-python/{name}": batch for name in ("test", "train")}
    return write_archive(folder / "cifar-100-python.tar.gz", {"cifar-100-python/meta": b"not a batch", **members})


def idx(array: np.ndarray) -> bytes:
    """uint8 of any shape."""
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_mnist(folder: Path, images: np.ndarray, labels, end: str = ".gz") -> Path:
    """The test images' and labels' idx files, as they are (`end` "") or packed."""
    arrays = {"t10k-images-idx3-ubyte": images, "t10k-labels-idx1-ubyte": np.asarray(labels, np.uint8)}
    for name, array in arrays.items():
        (folder / f"{name}{end}").write_bytes(gzip.compress(idx(array)) if end else idx(array))
    return folder
