"""Weight files to arrays: each kind of file, and files that are damaged or hostile."""

import argparse
import fractions
import json
import struct

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from zoo.weights import read, read_checkpoint, write_safetensors

TENSORS = {"a.weight": np.float32([[1, 2], [3, 4]]), "b": np.float32([0.5])}


def assert_same(tensors, expected=TENSORS):
    assert tensors.keys() == expected.keys()
    for key, value in expected.items():
        assert tensors[key].dtype == value.dtype
        np.testing.assert_array_equal(tensors[key], value)


def test_safetensors_with_metadata(tmp_path):
    save_file(TENSORS, tmp_path / "m.safetensors", metadata={"format": "pt"})
    checkpoint = read_checkpoint(tmp_path / "m.safetensors")
    assert_same(checkpoint.tensors)
    assert checkpoint.metadata == {"format": "pt"}


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_precisions_become_float32_exactly(tmp_path, rng, dtype):
    values = rng.standard_normal(1000).astype(np.float32).astype(dtype)
    name = {"float16": "F16", "bfloat16": "BF16", "float64": "F64"}[np.dtype(dtype).name]
    header = json.dumps({"x": {"dtype": name, "shape": [1000], "data_offsets": [0, values.nbytes]}}).encode()
    (tmp_path / "m.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + values.tobytes())
    assert_same(read_checkpoint(tmp_path / "m.safetensors").tensors, {"x": values.astype(np.float32)})


def test_integers_stay_as_they_are(tmp_path):
    save_file({"n": np.int64([7])}, tmp_path / "m.safetensors")
    assert read_checkpoint(tmp_path / "m.safetensors").tensors["n"].dtype == np.int64


def test_npz(tmp_path):
    np.savez(tmp_path / "m.npz", **TENSORS)
    assert_same(read_checkpoint(tmp_path / "m.npz").tensors)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_member_of_an_npz_is_unpacked_when_it_is_looked_at(tmp_path, monkeypatch, save):
    save(tmp_path / "m.npz", **TENSORS)
    unpacked = []
    monkeypatch.setattr(read, "_read_npy", lambda _, name: unpacked.append(name) or np.zeros(1, np.float16))
    tensors = read_checkpoint(tmp_path / "m.npz").tensors
    assert (dict(tensors.shapes), unpacked) == ({"a.weight": (2, 2), "b": (1,)}, [])
    assert tensors["b"].dtype == np.float32 and unpacked == ["b.npy"]
    assert tensors["b"] is not tensors["b"] and unpacked == 3 * ["b.npy"]  # kept by nobody


def test_damage_in_one_member_of_an_npz_is_reported_when_it_is_read(tmp_path):
    np.savez(tmp_path / "m.npz", good=np.ones(10_000, np.float32), bad=np.full(10_000, 2, np.float32))
    content = (tmp_path / "m.npz").read_bytes()
    last = content.rindex(np.float32(2).tobytes())
    (tmp_path / "m.npz").write_bytes(content[:last] + b"\1" + content[last + 1 :])
    tensors = read_checkpoint(tmp_path / "m.npz").tensors
    np.testing.assert_array_equal(tensors["good"], np.ones(10_000, np.float32))
    with pytest.raises(ValueError, match=r"m\.npz is a damaged zip file"):
        tensors["bad"]


def test_shards(tmp_path):
    save_file({"a.weight": TENSORS["a.weight"]}, tmp_path / "one.safetensors")
    save_file({"b": TENSORS["b"]}, tmp_path / "two.safetensors")
    path = tmp_path / "m.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": {"a.weight": "one.safetensors", "b": "two.safetensors"}}))
    assert_same(read_checkpoint(path).tensors)


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "module"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod."])
def test_torch_checkpoints_and_their_wrappers(tmp_path, wrapper, prefix):
    torch = pytest.importorskip("torch")
    state = {prefix + key: torch.from_numpy(value.copy()) for key, value in TENSORS.items()}
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "m.pth")
    assert_same(read_checkpoint(tmp_path / "m.pth").tensors)


AVERAGED = [
    ("model_ema", "module."),
    ("state_dict_ema", ""),
    ("model_ema_state_dict", ""),
    ("ema_state_dict", "_orig_mod."),
]


@pytest.mark.parametrize("raw", ["state_dict", "model", "model_state_dict"])
@pytest.mark.parametrize(("name", "prefix"), AVERAGED)
def test_averaged_weights_are_taken_before_raw_ones(tmp_path, raw, name, prefix):
    torch = pytest.importorskip("torch")
    state = {prefix + key: torch.from_numpy(value.copy()) for key, value in TENSORS.items()}
    averaged = {"n_averaged": torch.tensor(7), **{key: value + 1 for key, value in state.items()}}
    torch.save({raw: state, name: averaged, "epoch": 3}, tmp_path / "both.pth")
    plus_one = {key: value + 1 for key, value in TENSORS.items()}
    for options, expected, chosen in (
        ({}, plus_one, name),
        ({"ema": True}, plus_one, name),
        ({"ema": False}, TENSORS, raw),
    ):
        checkpoint = read_checkpoint(tmp_path / "both.pth", **options)
        assert_same(checkpoint.tensors, expected)
        (note,) = checkpoint.notes
        assert f"ones, {chosen!r}, are taken" in note
    torch.save({name: averaged}, tmp_path / "alone.pth")
    checkpoint = read_checkpoint(tmp_path / "alone.pth")
    assert_same(checkpoint.tensors, plus_one)
    assert checkpoint.notes == ()
    with pytest.raises(ValueError, match=f"alone.pth holds averaged weights alone, under '{name}'"):
        read_checkpoint(tmp_path / "alone.pth", ema=False)
    torch.save({raw: state, name: None}, tmp_path / "none.pth")  # as training scripts write it without an average
    assert_same(read_checkpoint(tmp_path / "none.pth", ema=True).tensors)


def test_torch_bfloat16_and_parameters(tmp_path):
    torch = pytest.importorskip("torch")
    state = {"x": torch.nn.Parameter(torch.tensor([1.5, -2.0], dtype=torch.bfloat16))}
    torch.save(state, tmp_path / "m.bin")
    assert_same(read_checkpoint(tmp_path / "m.bin").tensors, {"x": np.float32([1.5, -2.0])})


def test_old_torch_is_refused(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    torch.save({"x": torch.zeros(1)}, tmp_path / "m.pth")
    monkeypatch.setattr(torch, "__version__", "2.9.1")
    with pytest.raises(ImportError, match=r"2\.9\.1.*torch>=2\.10"):
        read_checkpoint(tmp_path / "m.pth")


def test_the_options_of_a_training_script_are_the_only_objects(tmp_path):
    torch = pytest.importorskip("torch")
    state = {key: torch.from_numpy(value.copy()) for key, value in TENSORS.items()}
    options = argparse.Namespace(lr=1e-3, betas=(0.9, 0.99), model=argparse.Namespace(name="atto"))
    torch.save({"state_dict": state, "args": options}, tmp_path / "options.pth")
    assert_same(read_checkpoint(tmp_path / "options.pth").tensors)
    options.output = fractions.Fraction(1, 2)
    torch.save({"state_dict": state, "args": options}, tmp_path / "fraction.pth")
    with pytest.raises(
        ValueError, match=r"fraction.pth .* it holds objects of fractions\.Fraction, which are not read"
    ):
        read_checkpoint(tmp_path / "fraction.pth")


def test_a_missing_file_says_where(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.safetensors"):
        read_checkpoint(tmp_path / "nowhere.safetensors")


def test_every_truncation_and_every_flipped_header_byte_is_refused_or_harmless(tmp_path):
    path = tmp_path / "m.safetensors"
    write_safetensors(path, TENSORS, {"format": "x"})
    good = path.read_bytes()
    start = 8 + struct.unpack("<Q", good[:8])[0]
    damaged = [good[:length] for length in range(len(good))]
    damaged += [good[:at] + bytes([good[at] ^ 0x10]) + good[at + 1 :] for at in range(start)]
    for content in damaged:
        path.write_bytes(content)
        try:
            checkpoint = read_checkpoint(path)
        except ValueError:
            continue
        assert sum(tensor.size for tensor in checkpoint.tensors.values()) <= 5  # another name or type, never more data


def test_written_files_are_plain_safetensors_with_sorted_bytes(tmp_path):
    first, second = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    write_safetensors(first, TENSORS, {"b": "2", "a": "ä"})
    backwards = {key: np.asfortranarray(TENSORS[key]) for key in reversed(TENSORS)}
    write_safetensors(second, backwards, {"a": "ä", "b": "2"})
    assert first.read_bytes() == second.read_bytes()
    assert read_checkpoint(first).metadata == {"a": "ä", "b": "2"}
    assert_same(read_checkpoint(first).tensors)
    header = struct.unpack("<Q", first.read_bytes()[:8])[0]
    assert header % 8 == 0
