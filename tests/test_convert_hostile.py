"""Damaged, wrong and hostile weight files: one clear error each, nothing executed, the model's weights as they were."""

import io
import json
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file

import convnext
from zoo import load_weights
from zoo import weights as convert
from zoo.weights import read_checkpoint
from zoo.weights.sources import timm

pytestmark = [pytest.mark.backend, pytest.mark.once]

ROW = convnext.Variant((1, 1), (4, 8))


def create():
    return convnext.create_convnext_v1(ROW, 3, (32, 32, 3))


@pytest.fixture(scope="module")
def good():
    """{key: array} that the model takes."""
    return {key: np.ascontiguousarray(a) for key, a in convert.export_tensors(create(), timm.CONVNEXT).items()}


class Bomb:
    """Unpickling it would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


# Each makes one file in a folder and returns its path; `ran` must never come into being.


def safetensors(folder, tensors, change=lambda data: data):
    save_file(tensors, folder / "whole")
    path = folder / "m.safetensors"
    path.write_bytes(change((folder / "whole").read_bytes()))
    return path


def with_header(folder, change):
    """A safetensors file of one tensor, its header modified by `change`."""
    header = {"stem.0.weight": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}
    text = change(header)
    text = text if isinstance(text, bytes) else json.dumps(text or header).encode()
    path = folder / "m.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(16))
    return path


def field(name, value):
    return lambda header: header["stem.0.weight"].update({name: value})


def torch_file(folder, content):
    import torch

    torch.save(content, folder / "m.pth")
    return folder / "m.pth"


def torch_tensors(tensors):
    import torch

    return {key: torch.from_numpy(value.copy()) for key, value in tensors.items()}


def torchscript(folder, _):
    import torch

    torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(folder / "m.pt")
    return folder / "m.pt"


def sparse(folder, tensors):
    import torch

    return torch_file(folder, torch_tensors(tensors) | {"stem.0.weight": torch.eye(4).to_sparse()})


def endless(folder, tensors):
    import torch

    return torch_file(folder, torch_tensors(tensors) | {"stem.0.weight": torch.zeros(1).expand(1 << 45)})


def archive(folder, members):
    path = folder / "m.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def npy(declared, data=b""):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": declared})
    return buffer.getvalue() + data


def objects(folder, _):
    np.savez(folder / "m.npz", x=np.array([Bomb(folder / "ran")], dtype=object), allow_pickle=True)
    return folder / "m.npz"


def sharded(folder, tensors, where):
    save_file(tensors, folder / "one.safetensors")
    path = folder / "m.safetensors.index.json"
    path.write_text(where if isinstance(where, str) else json.dumps({"weight_map": where}))
    return path


def outside(folder, tensors):
    """An index whose shard is there, but above the index's folder."""
    (folder / "inner").mkdir()
    save_file(tensors, folder / "one.safetensors")
    path = folder / "inner" / "m.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": dict.fromkeys(tensors, "../one.safetensors")}))
    return path


def bytes_file(folder, content):
    (folder / "m.pth").write_bytes(content)
    return folder / "m.pth"


def changed(key, value):
    return lambda folder, tensors: safetensors(folder, tensors | {key: value})


NOT_WEIGHTS = "not a supported weight file"
UNSOUND = "not a valid safetensors"
HOSTILE = {
    "empty": (lambda folder, _: bytes_file(folder, b""), NOT_WEIGHTS),
    "a web page": (lambda folder, _: bytes_file(folder, b"<html>404</html>"), NOT_WEIGHTS),
    "a Git LFS pointer": (lambda folder, _: bytes_file(folder, b"version https://git-lfs"), NOT_WEIGHTS),
    "the beginning of a zip file": (lambda folder, _: bytes_file(folder, b"PK"), "damaged zip"),
    "a zip file in name": (lambda folder, _: bytes_file(folder, b"PK\x03\x04 no zip"), "damaged zip"),
    "a bare pickle": (lambda folder, _: bytes_file(folder, pickle.dumps(Bomb(folder / "ran"))), NOT_WEIGHTS),
    "torch, a pickle that opens a file": (
        lambda folder, _: torch_file(folder, {"model": Bomb(folder / "ran")}),
        "not a plain torch checkpoint",
    ),
    "torch, a whole module": (
        lambda folder, _: torch_file(folder, __import__("torch").nn.Linear(2, 2)),
        "not a plain torch checkpoint",
    ),
    "torch, no weights": (lambda folder, _: torch_file(folder, {"epoch": 3}), "holds no weights"),
    "torch, TorchScript": (torchscript, "TorchScript archive"),
    "torch, a sparse tensor": (sparse, "not a plain tensor"),
    "torch, one number repeated without end": (endless, "more than the whole file holds"),
    "torch, truncated": (
        lambda folder, t: bytes_file(folder, torch_file(folder, torch_tensors(t)).read_bytes()[:-40]),
        "damaged zip",
    ),
    "zip of something else": (lambda folder, _: archive(folder, {"readme.txt": b"hello"}), "neither .npz nor"),
    "npz, objects": (objects, "declares"),
    "npz, more declared than there": (
        lambda folder, _: archive(folder, {"x.npy": npy((1 << 40,))}),
        "does not fit its",
    ),
    "npz, a negative side": (lambda f, _: archive(f, {"x.npy": npy((-4, -4), bytes(64))}), "does not fit its"),
    "npz, a zip bomb": (
        lambda folder, _: archive(folder, {"x.npy": npy((50 << 20,), bytes(200 << 20))}),
        "would unpack into",
    ),
    "npz, no array": (lambda folder, _: archive(folder, {"x.npy": b"hello, this is no array"}), "not a valid array"),
    "safetensors, payload truncated": (lambda f, t: safetensors(f, t, lambda data: data[:-1]), UNSOUND),
    "safetensors, header truncated": (lambda f, t: safetensors(f, t, lambda data: data[:40]), UNSOUND),
    "safetensors, bytes to spare": (lambda f, t: safetensors(f, t, lambda data: data + b"!"), UNSOUND),
    "safetensors, a header as long as memory": (
        lambda f, t: safetensors(f, t, lambda data: struct.pack("<Q", 1 << 62) + data[8:]),
        UNSOUND,
    ),
    "safetensors, another shape": (lambda f, _: with_header(f, field("shape", [1 << 40, 4])), UNSOUND),
    "safetensors, a hole": (lambda f, _: with_header(f, field("data_offsets", [8, 24])), UNSOUND),
    "safetensors, an unknown type": (lambda f, _: with_header(f, field("dtype", "F31")), UNSOUND),
    "safetensors, a type numpy lacks": (
        lambda f, _: with_header(f, lambda h: h["stem.0.weight"].update({"dtype": "F8_E4M3", "shape": [4, 4]})),
        "m.safetensors",
    ),
    "safetensors, no JSON": (lambda f, _: with_header(f, lambda _: b"{" * 5000), UNSOUND),
    "shards, outside of the folder": (outside, "no such .safetensors file beside it"),
    "shards, an absolute path": (
        lambda folder, t: sharded(folder, t, dict.fromkeys(t, str(folder / "one.safetensors"))),
        "no such .safetensors file beside it",
    ),
    "shards, one missing": (
        lambda folder, t: sharded(folder, t, dict.fromkeys(t, "two.safetensors")),
        "no such .safetensors file beside it",
    ),
    "shards, a key too many": (
        lambda folder, t: sharded(folder, t, dict.fromkeys([*t, "more"], "one.safetensors")),
        "disagree about 1 keys, e.g. 'more'",
    ),
    "shards, a list for a name": (
        lambda folder, t: sharded(folder, t, {"x": ["one.safetensors"]}),
        "no usable 'weight_map'",
    ),
    "shards, a list for a map": (lambda folder, t: sharded(folder, t, []), "no usable 'weight_map'"),
    "shards, an index without end": (lambda folder, t: sharded(folder, t, "[" * 100_000), "no usable 'weight_map'"),
    "another architecture": (
        lambda folder, _: safetensors(folder, {"conv1.weight": np.zeros((4, 3, 7, 7), np.float32)}),
        "match no known format",
    ),
    "not a number": (changed("stem.0.bias", np.float32([np.nan] * 4)), "4 of 4 values are NaN or infinite"),
    "integers": (changed("stem.0.bias", np.int64([1] * 4)), "needs floating point"),
    "another shape": (changed("stem.0.bias", np.float32([1] * 5)), "stem_conv/bias needs (4,)"),
    "a key too many": (changed("stem.0.more", np.float32([1])), "Unexpected (1): stem.0.more"),
    "a key too few": (
        lambda folder, t: safetensors(folder, {key: t[key] for key in t if key != "head.fc.bias"}),
        "Missing (1): head.fc.bias",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_bad_file_is_one_clear_error_and_changes_nothing(tmp_path, good, name):
    make, message = HOSTILE[name]
    path, model = make(tmp_path, good), create()
    before = model.get_weights()
    with pytest.raises(ValueError) as caught:
        load_weights(model, path)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 2000
    assert not (tmp_path / "ran").exists()
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_good_file_behind_them_loads(tmp_path, good):
    assert load_weights(create(), safetensors(tmp_path, good)).loaded == len(good)
    assert load_weights(create(), torch_file(tmp_path, {"model": torch_tensors(good)})).loaded == len(good)
    assert load_weights(create(), sharded(tmp_path, good, dict.fromkeys(good, "one.safetensors"))).loaded == len(good)


SMALL = {"a.weight": np.arange(4, dtype=np.float32), "b": np.float32([1.5])}


def write_npz(path):
    np.savez_compressed(path, **SMALL)


def write_torch(path):
    import torch

    torch.save(torch_tensors(SMALL), path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(("name", "write"), [("m.npz", write_npz), ("m.pth", write_torch)])
def test_truncated_and_flipped_zip_files_are_refused_or_of_the_same_size(tmp_path, rng, name, write):
    """A flipped bit in a torch file's numbers is seen by nobody but a digest; anything else is an error."""
    path = tmp_path / name
    write(path)
    whole = path.read_bytes()
    damaged = [whole[:length] for length in rng.integers(0, len(whole), 40)]
    damaged += [whole[:at] + bytes([whole[at] ^ 0x20]) + whole[at + 1 :] for at in rng.integers(0, len(whole), 150)]
    refused = 0
    for content in damaged:
        path.write_bytes(content)
        try:
            tensors = read_checkpoint(path).tensors
        except ValueError as error:
            assert name in str(error) or ".npz" in str(error)
            refused += 1
        else:
            assert sum(tensor.size for tensor in tensors.values()) <= 5
    assert refused >= 40


def test_a_file_that_may_not_be_read_is_an_error_of_the_system(tmp_path):
    path = tmp_path / "folder.safetensors"
    path.mkdir()
    with pytest.raises(FileNotFoundError, match=r"folder\.safetensors"):
        read_checkpoint(path)
    if os.name == "posix":
        os.mkfifo(tmp_path / "pipe.safetensors")
        with pytest.raises(ValueError, match=r"pipe\.safetensors is not a regular file; it is a FIFO"):  # it would hang
            read_checkpoint(tmp_path / "pipe.safetensors")
