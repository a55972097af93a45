"""A checkpoint needs no memory of its own: shapes without reading, arrays read when asked for, one at a time."""

import tracemalloc
import zipfile

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import convnext
import zoo
from zoo.weights import load_weights, read_checkpoint
from zoo.weights.read import LazyTensors, count_numbers, shapes_of

pytestmark = [pytest.mark.backend, pytest.mark.once]


def test_shapes_are_known_without_reading():
    def read(key):
        raise AssertionError(f"{key} was read")

    stored = LazyTensors({"module.a": (2, 3), "module.b": ()}, read).without_prefix("module.")
    assert list(stored) == ["a", "b"] and len(stored) == 2
    assert "a" in stored and "module.a" not in stored
    assert shapes_of(stored) == shapes_of({"a": np.zeros((2, 3)), "b": np.zeros(())}) == {"a": (2, 3), "b": ()}
    assert count_numbers(stored) == 7
    with pytest.raises(KeyError, match="c"):
        stored["c"]
    with pytest.raises(AssertionError, match=r"module\.a was read"):
        stored["a"]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_loading_holds_a_few_arrays_whatever_the_file_holds(tmp_path, dtype):
    model = convnext.create_convnext_v1(convnext.Variant((6,), (384,)), 3, (32, 32, 3))
    own, path = tmp_path / "own.safetensors", tmp_path / "m.safetensors"
    zoo.save(model, own)
    arrays = {key: value.astype(dtype) for key, value in load_file(own).items()}
    save_file(arrays, path, read_checkpoint(own).metadata)
    largest = 4 * max(array.size for array in arrays.values())
    assert 4 * sum(array.size for array in arrays.values()) > 10 * largest  # what all of them would take
    del arrays
    tracemalloc.start()
    load_weights(model, path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3.5 * largest


def test_a_torch_file_that_was_compressed_afterwards_is_read_as_it_was(tmp_path, rng):
    """A member that is not stored as it is cannot be mapped."""
    import torch

    numbers = torch.from_numpy(rng.standard_normal((2, 64, 64), np.float32))
    state = {"a.weight": numbers[0].clone(), "c": numbers[1].clone(), "b": torch.ones(3, dtype=torch.bfloat16)}
    torch.save(state, tmp_path / "m.pth")
    with zipfile.ZipFile(tmp_path / "m.pth") as before, zipfile.ZipFile(tmp_path / "c.pth", "w") as after:
        for member in before.infolist():
            after.writestr(member.filename, before.read(member), zipfile.ZIP_DEFLATED)
    assert (tmp_path / "c.pth").stat().st_size < (tmp_path / "m.pth").stat().st_size
    for name in ("m.pth", "c.pth"):
        tensors = read_checkpoint(tmp_path / name).tensors
        assert shapes_of(tensors) == {"a.weight": (64, 64), "c": (64, 64), "b": (3,)}
        for key, value in state.items():
            np.testing.assert_array_equal(tensors[key], value.float().numpy())
