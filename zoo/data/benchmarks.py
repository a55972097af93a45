"""The original files of CIFAR-10, CIFAR-100, MNIST and Fashion-MNIST, read safely.

CIFAR's batches are pickles. They are read by an unpickler that accepts bytes, numbers, lists, dictionaries and the
names with which NumPy pickles an array; it imports nothing, and an array is made only of uint8 that the file holds.

Formats: https://www.cs.toronto.edu/~kriz/cifar.html, http://yann.lecun.com/exdb/mnist/.
"""

import contextlib
import gzip
import io
import math
import pickle
import pickletools
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from zoo.data.tar import read_members
from zoo.utils.files import check_unpacked, most_unpacked, open_file, read_file
from zoo.utils.text import shown

MAX_BYTES = 512 << 20  # of one uncompressed member; CIFAR's largest has 154 MB, MNIST's 47 MB
_MAX_OPCODES = 1_000_000  # of a CIFAR batch; with the names of 50,000 files they are about 200,000
_CIFAR_SIDE = 32
_CIFAR_LABELS = {"cifar10": b"labels", "cifar100": b"fine_labels"}
_CIFAR_FILES = {
    ("cifar10", "test"): ("test_batch",),
    ("cifar10", "train"): tuple(f"data_batch_{i}" for i in range(1, 6)),
    ("cifar100", "test"): ("test",),
    ("cifar100", "train"): ("train",),
}
_IDX_PREFIXES = {"test": "t10k", "train": "train"}
_IDX_FILES = ("t10k-images-idx3-ubyte*", "t10k-images.idx3-ubyte*")
_LAYOUTS = {  # name: (archives and folders, as published or as torchvision and Keras unpack them; files)
    "cifar10": (("cifar-10-python.tar.gz", "cifar-10-batches-py", "cifar10.npz"), ("test_batch",)),
    "cifar100": (("cifar-100-python.tar.gz", "cifar-100-python", "cifar100.npz"), ("test",)),
    "mnist": (("mnist.npz", "MNIST/raw", "MNIST", "raw"), _IDX_FILES),
    "fashion_mnist": (("fashion_mnist.npz", "FashionMNIST/raw", "FashionMNIST", "raw"), _IDX_FILES),
}
_IDX_UBYTE = 0x08
_GOOGLE = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/"
_TORONTO = "https://www.cs.toronto.edu/~kriz/"
ORIGINS = {  # file: (URL, SHA-256 or MD5), as in Keras 3.15 and torchvision 0.26
    "cifar10": {
        "cifar-10-python.tar.gz": (_TORONTO, "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce")
    },
    "cifar100": {
        "cifar-100-python.tar.gz": (_TORONTO, "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7")
    },
    "mnist": {"mnist.npz": (_GOOGLE, "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1")},
    "fashion_mnist": {
        "t10k-images-idx3-ubyte.gz": (_GOOGLE, "bef4ecab320f06d8554ea6380940ec79"),
        "t10k-labels-idx1-ubyte.gz": (_GOOGLE, "bb300cfdad3c16e7a12a480ee83cd310"),
        "train-images-idx3-ubyte.gz": (_GOOGLE, "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
        "train-labels-idx1-ubyte.gz": (_GOOGLE, "25c81989df183df01b3e8a0aad5dffbe"),
    },
}

Arrays = tuple[np.ndarray, np.ndarray]


def read_benchmark(name: str, path: str | Path | None = None, split: str = "test") -> Arrays:
    """Return the images of a benchmark, uint8 (N, H, W) or (N, H, W, 3), and its labels, int32 (N,).

    Args:
        name: a key of ORIGINS; "cifar100" gives the fine labels.
        path: the original files, or a folder with them; unless given, Keras' cache, downloaded if needed. Of CIFAR the
            published `.tar.gz`, the folder in it, or one batch file. Of MNIST and Fashion-MNIST a folder with
            t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte (train-… for the training images), each plain or `.gz`,
            or one of these files. Of each an `.npz` with x_test and y_test.
        split: "test" or "train".

    Raises:
        ValueError: no such files, damaged files, or a failed download.
    """
    path = _original(path or _cached(name), name)
    if path.suffix == ".npz":
        return _from_npz(path, split)
    if name in _CIFAR_LABELS:
        images, labels = zip(*(_read_batch(path, file, name) for file in _CIFAR_FILES[name, split]), strict=True)
        return np.concatenate(images), np.concatenate(labels)
    folder = path.parent if path.is_file() else path
    files = (f"{_IDX_PREFIXES[split]}-{what}-ubyte" for what in ("images-idx3", "labels-idx1"))
    pixels, classes = (_read_idx(_idx_file(folder, file)) for file in files)
    return _checked(pixels, classes, folder)


def _cached(name: str) -> Path:
    """Return Keras' copy of the files, downloaded and verified if needed."""
    import keras

    path = ""
    for file, (origin, digest) in ORIGINS[name].items():
        try:
            path = keras.utils.get_file(file, origin + file, file_hash=digest, cache_subdir=f"datasets/{name}")
        except Exception as error:  # errors of urllib, sockets and Keras have no common base
            raise ValueError(
                f"{name} is not on this machine, and the download failed ({' '.join(str(error).split())}). "
                f"Get {', '.join(ORIGINS[name])} from {origin} and pass the path: --data PATH."
            ) from error
    return Path(path) if len(ORIGINS[name]) == 1 else Path(path).parent


def find_files(folder: Path, name: str) -> Path | None:
    """Return the path of a data set's original files in a folder, in any known layout; None if there are none."""
    places, files = _LAYOUTS[name]
    for path in (*(folder / place for place in places), folder):
        if path.is_file() or any(list(path.glob(file)) for file in files):
            return path
    return None


def _original(path: str | Path, name: str) -> Path:
    """Return the file or folder to read, at a path or below it; raise ValueError if the path does not exist."""
    path = Path(path)
    if not path.exists():
        raise ValueError(
            f"data={str(path)!r} does not exist; it must be a file or folder with the original files of {name}"
        )
    return (path.is_dir() and find_files(path, name)) or path


def _read_batch(path: Path, file: str, name: str) -> Arrays:
    batch = _unpickle(_member(path, file), path)
    data, key = batch.get(b"data"), _CIFAR_LABELS[name]
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != 3 * _CIFAR_SIDE**2 or key not in batch:
        raise ValueError(f"{path} is not a {name} batch: data (N, 3072) and {key.decode()} are needed")
    images = data.reshape(-1, 3, _CIFAR_SIDE, _CIFAR_SIDE).transpose(0, 2, 3, 1)
    return _checked(np.ascontiguousarray(images), batch[key], path)


def _checked(images: np.ndarray, labels, path: Path) -> Arrays:
    try:
        labels = np.array([int(label) for label in labels], np.int32)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"the labels in {shown(path)} are not integers: {shown(error)}") from error
    if images.ndim not in (3, 4) or len(images) != len(labels) or not len(labels):
        raise ValueError(f"{path} holds images {images.shape} and {len(labels)} labels; one each is needed")
    return images, labels


def _from_npz(path: Path, split: str) -> Arrays:
    keys = (f"x_{split}", f"y_{split}")
    try:
        with zipfile.ZipFile(path) as archive:
            check_unpacked(path, sum(member.file_size for member in archive.infolist()))
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            if not set(keys) <= set(names):
                raise ValueError(f"{path} has no {keys[0]} and {keys[1]}; it has {sorted(names)[:8]}")
            images, labels = (_read_npy(archive, key, path) for key in keys)
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError) as error:
        raise ValueError(f"{path} is a damaged zip file: {error}") from error
    if images.size and not (images.min() >= 0 and images.max() <= 255 and (images == np.rint(images)).all()):
        raise ValueError(f"{keys[0]} in {path} is not made of whole numbers from 0 to 255")
    return _checked(images.astype(np.uint8), labels.ravel(), path)


def _read_npy(archive: zipfile.ZipFile, key: str, path: Path) -> np.ndarray:
    """Return the array of one member, no larger than its bytes, whatever its header declares."""
    size = archive.getinfo(f"{key}.npy").file_size
    if size > MAX_BYTES:
        raise ValueError(f"{path}: {key} has {size} bytes; at most {MAX_BYTES} are allowed")
    with archive.open(f"{key}.npy") as member:
        file = io.BytesIO(member.read(size))  # without a size, zipfile would unpack 2 GB before it compares
    headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        shape, fortran, dtype = headers[np.lib.format.read_magic(file)](file)
        if dtype.kind not in "biuf":
            raise ValueError(f"it holds {dtype}, not numbers")
        array = np.frombuffer(file.getbuffer(), dtype, math.prod(shape), file.tell())
        return array.reshape(shape, order="F" if fortran else "C")
    except (ValueError, KeyError, OverflowError) as error:
        raise ValueError(f"{key} in {path} is not a sound array: {error}") from error


def _member(path: Path, name: str) -> bytes:
    """Return the bytes of a CIFAR batch from its archive, its folder, or the file itself, without unpacking to disk."""
    if path.is_dir():
        found = [file for file in (path / name, *sorted(path.glob(f"*/{name}"))) if file.is_file()]
        if not found:
            raise ValueError(f"{path} has neither CIFAR's archive (cifar-…-python.tar.gz) nor the file {name!r} of it")
        path = found[0]
    if not path.name.endswith((".tar.gz", ".tgz", ".tar")):
        return read_file(path, max_bytes=MAX_BYTES, follow=True)
    try:
        with _unpacked(path) as archive:
            for member in read_members(archive):
                if member.regular and member.name.rpartition("/")[2] == name and member.size <= MAX_BYTES:
                    archive.seek(member.offset)
                    return archive.read(member.size)
    except (ValueError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{shown(path)} is a damaged archive: {shown(error)}") from error
    raise ValueError(f"{shown(path)} has no member {name!r}")


@contextlib.contextmanager
def _unpacked(path: Path) -> Iterator[BinaryIO]:
    """Yield a tar file, unpacked into a temporary file where it is compressed with gzip."""
    with open_file(path) as file, tempfile.TemporaryFile() as unpacked:
        if file.read(2) != b"\x1f\x8b":
            yield file
            return
        file.seek(0)
        left = most_unpacked(path)
        with gzip.open(file) as content:
            while left > 0 and (chunk := content.read(1 << 20)):
                unpacked.write(chunk)
                left -= len(chunk)
        if left <= 0:
            raise ValueError(f"it unpacks into more than {most_unpacked(path):,} bytes")
        yield cast(BinaryIO, unpacked)


class _Array:
    """Stand-in for a pickled array: keeps the state that NumPy would fill it with."""

    state: Any = None

    def __setstate__(self, state):
        self.state = state


class _Type:
    """Stand-in for a pickled dtype; its state, the byte order, is irrelevant for bytes."""

    def __init__(self, name="", *_):
        self.name = name.decode("latin-1") if isinstance(name, bytes) else name

    def __setstate__(self, state):
        pass


def _encode(text, encoding):
    """Decode bytes as Python 3 writes them in a pickle for Python 2."""
    if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError(f"bytes in the encoding {encoding!r}")
    return text.encode("latin-1")


_STAND_INS = {
    ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(),
    ("numpy._core.multiarray", "_reconstruct"): lambda *_: _Array(),
    ("numpy", "ndarray"): None,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which a CIFAR batch does not")
        return _STAND_INS[module, name]


def _unpickle(data: bytes, path: Path) -> dict:
    """Return {bytes: value} of a batch; raise ValueError for anything else."""
    try:
        _check_opcodes(data)
        batch = _Unpickler(io.BytesIO(data), encoding="bytes").load()
        if not isinstance(batch, dict):
            raise pickle.UnpicklingError(f"it is a {type(batch).__name__}")
        named = {key.encode("latin-1") if isinstance(key, str) else key: value for key, value in batch.items()}
        return {key: _array(value) if isinstance(value, _Array) else value for key, value in named.items()}
    except Exception as error:  # a damaged pickle can raise anything
        raise ValueError(f"{shown(path)} is not a CIFAR batch: {shown(error)}") from error


def _check_opcodes(data: bytes) -> None:
    """Raise ValueError for a pickle that would fill memory: too many steps, or a large place in its list of objects."""
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        if count > _MAX_OPCODES or (opcode.name in ("PUT", "LONG_BINPUT") and int(argument or 0) > _MAX_OPCODES):
            raise pickle.UnpicklingError(f"it has more than {_MAX_OPCODES} steps or objects")


def _array(stand_in: _Array) -> np.ndarray:
    _, shape, dtype, fortran, data = stand_in.state
    if dtype.name not in ("u1", "uint8") or fortran or not isinstance(data, bytes):
        raise pickle.UnpicklingError("an array is not made of uint8 in C order")
    if math.prod(shape) != len(data) or any(side < 0 for side in shape):
        raise pickle.UnpicklingError(f"an array of shape {shape} has {len(data)} bytes")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _idx_file(folder: Path, name: str) -> Path:
    """Return the file of that name, as spelled by MNIST's page or Keras' cache."""
    spellings = [f"{stem}{end}" for stem in (name, name.replace("-idx", ".idx")) for end in ("", ".gz")]
    for path in (folder / spelling for spelling in spellings):
        if path.is_file():
            return path
    raise ValueError(f"{folder} has neither {name} nor {name}.gz")


def _read_idx(path: Path) -> np.ndarray:
    """Return uint8 of the shape in the header, which the file size must match."""
    try:
        with open_file(path) as stored:
            file: Any = gzip.GzipFile(fileobj=stored) if path.suffix == ".gz" else stored
            data = file.read(most_unpacked(path) + 1)
        check_unpacked(path, len(data))
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    sides = data[3] if len(data) > 3 else 0
    if data[:3] != bytes([0, 0, _IDX_UBYTE]) or len(data) < 4 + 4 * sides:
        raise ValueError(f"{path} is not an idx file of bytes; it begins with {data[:4]!r}")
    shape = tuple(np.frombuffer(data, ">u4", sides, 4).tolist())
    if math.prod(shape) != len(data) - 4 - 4 * sides:
        raise ValueError(f"{path} declares {shape}, and holds {len(data) - 4 - 4 * sides} bytes")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * sides).reshape(shape)
