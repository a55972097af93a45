"""Weight files → {key: numpy array}. The format is detected from the first bytes.

safetensors (one file, or shards with an index) and `.npz` are read without torch. A torch zip checkpoint is read by
`torch.load(weights_only=True)` of torch ≥ 2.10 (CVE-2026-24747) and by nothing else; older pickles are refused.
safetensors and torch files are memory-mapped, and an array is copied when it is accessed; a member of an `.npz` file,
which may be compressed, is unpacked then. So a checkpoint needs no memory of its own.
"""

import argparse
import contextlib
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from zoo.utils.files import check_unpacked, open_file
from zoo.utils.strict_json import object_of, read_json, text
from zoo.utils.text import quoted, shown
from zoo.weights.write import DTYPES

_OLDEST_TORCH = (2, 10)
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net", "params")  # around the weights in checkpoints
_AVERAGED = ("state_dict_ema", "model_ema", "model_ema_state_dict", "ema_state_dict", "params_ema")  # moving averages
_STEPS = "n_averaged"  # torch's AveragedModel counts its steps beside the weights
_PREFIXES = ("module.", "_orig_mod.")  # DistributedDataParallel's and torch.compile's, in front of every key
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, struct.error, UnicodeDecodeError, OSError, EOFError, RuntimeError)
_LARGEST_INDEX = 64 << 20  # bytes of the list of shards, which has about a hundred for each tensor


class LazyTensors(Mapping):
    """key → array, read from the file at each access; shapes are known without reading.

    Args:
        shapes: key → shape.
        read: key → array. float16, bfloat16 and float64 become float32, integers keep their type.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], read: Callable[[str], np.ndarray]):
        self.shapes = dict(shapes)
        self._read = read

    def __getitem__(self, key: str) -> np.ndarray:
        if key not in self.shapes:
            raise KeyError(key)
        return _to_float32(self._read(key))

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def __contains__(self, key: object) -> bool:  # Mapping's own would read the array
        return key in self.shapes

    def without_prefix(self, prefix: str) -> "LazyTensors":
        """The same arrays with `prefix` removed from every key."""
        shapes = {key.removeprefix(prefix): shape for key, shape in self.shapes.items()}
        return LazyTensors(shapes, lambda key: self._read(prefix + key))

    def shared_prefix(self) -> str:
        """The first part of every key, "model." of "model.a.b" and "model.c"; "" where the keys differ in it."""
        first, dot, _ = next(iter(self.shapes), "").partition(".")
        prefix = first + dot
        return prefix if dot and all(key.startswith(prefix) and key != prefix for key in self.shapes) else ""


def _to_float32(value):
    """Floating-point arrays of any width as float32: exact from narrower types, rounded from float64."""
    is_float = value.dtype.kind == "f" or value.dtype.name == "bfloat16"
    return value.astype(np.float32) if is_float and value.dtype != np.float32 else value


def shapes_of(tensors: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """key → shape, without reading the arrays of a `LazyTensors`."""
    if isinstance(tensors, LazyTensors):
        return tensors.shapes
    return {key: value.shape for key, value in tensors.items()}


def count_numbers(tensors: Mapping[str, Any]) -> int:
    """Total number of elements in all arrays."""
    return sum(map(math.prod, shapes_of(tensors).values()))


@dataclass(frozen=True)
class Checkpoint:
    """Content of a weight file.

    Args:
        tensors: key → array, read at each access. float16, bfloat16 and float64 become float32, integers stay.
        metadata: str → str, of a safetensors file.
        path: path of the file.
        notes: one line each on what was chosen of the file, for the report.
    """

    tensors: LazyTensors
    metadata: dict[str, str] = field(default_factory=dict)
    path: Path = Path("weights")
    notes: tuple[str, ...] = ()


def read_checkpoint(path: str | Path, *, ema: bool = True) -> Checkpoint:
    """Open a `.safetensors`, `.safetensors.index.json`, `.npz` or torch zip file.

    Args:
        ema: of a training checkpoint that holds a moving average of the weights beside them, take the average, as the
            loaders of timm and facebookresearch do; False takes the weights themselves.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another type of file, a damaged one, one that holds anything but arrays, or, with `ema=False`, one
            with averaged weights alone.
    """
    path = Path(path)
    if not os.path.exists(path) or path.is_dir():
        raise FileNotFoundError(f"No weight file at {quoted(str(path))}.")
    with open_file(path) as file:
        head = file.read(9)
    notes: tuple[str, ...] = ()
    if head[:2] == b"PK":
        tensors, metadata, notes = _read_zip(path, ema)
    elif path.suffix == ".json":
        tensors, metadata = _read_sharded(path)
    elif len(head) == 9 and head[8:] == b"{":
        tensors, metadata = _read_safetensors(path)
    else:
        raise ValueError(
            f"{shown(path.name)} is not a supported weight file. Supported: .safetensors, .safetensors.index.json, "
            f".npz, and the zip files that torch.save writes. It starts with {quoted(head)}."
        )
    return Checkpoint(_plain_keys(tensors), metadata, path, notes)


def _read_safetensors(path):
    import ml_dtypes  # noqa: F401 (registers "bfloat16" with numpy, which safetensors needs)
    from safetensors import SafetensorError, safe_open

    def unsound(error):
        return ValueError(f"{shown(path.name)} is not a valid safetensors file: {shown(error)}")

    def read(key):
        try:
            return file.get_tensor(key)
        except (SafetensorError, TypeError, AttributeError) as error:
            raise unsound(f"{shown(key)}: {shown(error)}") from error

    try:
        file = safe_open(path, framework="numpy")  # mapped until the last reader is collected
        slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, TypeError, AttributeError) as error:
        raise unsound(error) from error
    supported = set(DTYPES.values())
    foreign = sorted({entry.get_dtype() for entry in slices.values()} - supported)
    if foreign:
        raise unsound(f"it holds {', '.join(foreign)}; supported: {', '.join(sorted(supported))}")
    shapes = {key: tuple(entry.get_shape()) for key, entry in slices.items()}
    return LazyTensors(shapes, read), file.metadata() or {}


def shard_map(index: Path) -> dict[str, set[str]]:
    """{name of a shard: its keys} of a `.safetensors.index.json` file, sorted by name.

    Raises:
        ValueError: it is larger than _LARGEST_INDEX or has no usable "weight_map".
    """
    try:
        found = read_json(index, {"weight_map": object_of(text(1000))}, others=True, max_bytes=_LARGEST_INDEX)
    except ValueError as error:
        raise ValueError(
            f"{shown(index.name)} is not the index of a sharded checkpoint: no usable 'weight_map'. {shown(error)}"
        ) from None
    shards: dict[str, set[str]] = {name: set() for name in sorted(set(found["weight_map"].values()))}
    for key, name in found["weight_map"].items():
        shards[name].add(key)
    return shards


def _read_sharded(path):
    """All shards of an index; they must be in its folder."""
    holder: dict[str, LazyTensors] = {}  # key → tensors of the shard that has it
    for name, keys in shard_map(path).items():
        shard = path.parent / name
        if Path(name).name != name or not name.endswith(".safetensors") or not shard.is_file():
            raise ValueError(
                f"{shown(path.name)} names the shard {quoted(name)}, and there is no such .safetensors file beside it."
            )
        found = _read_safetensors(shard)[0]
        if set(found) != keys:
            difference = sorted(set(found) ^ keys)
            raise ValueError(
                f"{shown(name)} and {shown(path.name)} disagree about {len(difference)} keys, e.g. "
                f"{quoted(difference[0])}."
            )
        holder |= dict.fromkeys(found, found)
    shapes = {key: found.shapes[key] for key, found in holder.items()}
    return LazyTensors(shapes, lambda key: holder[key][key]), {}


def _read_zip(path, ema):
    with _damaged_zip(path), zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if any(name.endswith("/constants.pkl") for name in names):
            raise ValueError(
                f"{shown(path.name)} is a TorchScript archive, which holds a program beside the weights and is not "
                "read. Look for a .safetensors copy of it."
            )
        if any(name.rpartition("/")[2] == "data.pkl" for name in names):
            # Only members that are not compressed, as torch.save writes them, can be memory-mapped.
            can_map = all(member.compress_type == zipfile.ZIP_STORED for member in archive.infolist())
            tensors, notes = _read_torch(path, can_map, ema)
            return tensors, {}, notes
        if names and all(name.endswith(".npy") for name in names):
            return _read_npz(path), {}, ()
    raise ValueError(
        f"{shown(path.name)} is a zip file, but neither .npz nor a torch checkpoint. It holds {shown(names[:5])}."
    )


@contextlib.contextmanager
def _damaged_zip(path):
    """Re-raise zipfile's errors as a ValueError with the file's name."""
    try:
        yield
    except _ZIP_ERRORS as error:
        raise ValueError(f"{shown(path.name)} is a damaged zip file: {shown(error)}") from error


def _read_npz(path):
    archive = zipfile.ZipFile(path)  # open until the last reader is collected
    check_unpacked(path, sum(member.file_size for member in archive.infolist()))

    def read(key):
        with _damaged_zip(path):
            return _read_npy(archive, f"{key}.npy")

    return LazyTensors({name.removesuffix(".npy"): _npy_shape(archive, name) for name in archive.namelist()}, read)


def _npy_shape(archive, name):
    """Shape of one member of an .npz file, checked against its size before anything is allocated."""
    size = archive.getinfo(name).file_size
    with archive.open(name) as file, _invalid_npy(name):
        version = np.lib.format.read_magic(file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        shape, _, dtype = read_header[version](file)
        declared = math.prod(shape) * dtype.itemsize
    if dtype.hasobject or min(shape, default=0) < 0 or declared > size:
        raise ValueError(
            f"{shown(name)} in the .npz file declares {shape} of {dtype}, which does not fit its {size} bytes."
        )
    return shape


def _read_npy(archive, name):
    with archive.open(name) as file, _invalid_npy(name):
        array = np.lib.format.read_array(file, allow_pickle=False)
        file.read(1)  # zipfile compares a member's checksum at its end
        return array


@contextlib.contextmanager
def _invalid_npy(name):
    try:
        yield
    except (ValueError, KeyError) as error:
        raise ValueError(f"{shown(name)} in the .npz file is not a valid array: {shown(error)}") from error


def _read_torch(path, can_map, ema):
    torch = _recent_torch()
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # the options of a training script
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=can_map)
    except Exception as error:  # the unpickler refuses in many ways; none of them ran anything
        raise ValueError(
            f"{shown(path.name)} is not a plain torch checkpoint of tensors: {_refusal(path, error)}"
        ) from error
    state, notes = _unwrap(content, ema, path.name)
    if not state:
        names = ", ".join(_WRAPPERS + _AVERAGED)
        raise ValueError(f"{shown(path.name)} holds no weights, neither at its top nor under {names}.")
    for key, value in state.items():
        _check_plain(torch, key, value, path)
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    return LazyTensors(shapes, lambda key: _to_numpy(torch, state[key])), notes


def _refusal(path, error):
    """Why torch refused a checkpoint: the classes it would have to unpickle, else the error's first line."""
    from torch.serialization import get_unsafe_globals_in_checkpoint

    try:
        names = set(get_unsafe_globals_in_checkpoint(path)) - {"argparse.Namespace"}
    except Exception:  # damaged in such a way that its names cannot be read
        names = set()
    if names:
        listed = ", ".join(shown(name, 60) for name in sorted(names)[:5])
        return f"it holds objects of {listed}, which are not read. Save the state dict alone."
    return shown(next(iter(str(error).strip().splitlines()), ""), 300)


def _recent_torch():
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            'A torch checkpoint can only be read with torch: pip install "torch>=2.10", or use a .safetensors copy.'
        ) from error
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < _OLDEST_TORCH:
        raise ImportError(
            f"torch {torch.__version__} is not safe for loading checkpoints from elsewhere. "
            'Install "torch>=2.10", or use a .safetensors copy.'
        )
    return torch


def _unwrap(content, ema, filename):
    """Return (the mapping of keys to tensors inside a checkpoint, or {}; notes on what was chosen)."""
    notes: tuple[str, ...] = ()
    while isinstance(content, Mapping):
        tensors = {key: value for key, value in content.items() if isinstance(key, str) and hasattr(value, "detach")}
        raw, averaged = (
            next((name for name in names if isinstance(content.get(name), Mapping) and content[name]), None)
            for names in (_WRAPPERS, _AVERAGED)
        )
        if tensors or not (raw or averaged):
            return tensors, notes
        if averaged and not ema and not raw:
            raise ValueError(
                f"{shown(filename)} holds averaged weights alone, under {quoted(averaged)}; ema=False refuses them."
            )
        if averaged and raw:
            chosen, other = (averaged, raw) if ema else (raw, averaged)
            hint = "; ema=False takes the raw ones" if ema else ""
            kind = "averaged" if ema else "raw"
            choice = f"the {kind} ones, {quoted(chosen)}, are taken, not {quoted(other)}{hint}"
            notes += (f"The file holds raw and averaged weights: {choice}.",)
        content = content[averaged if averaged and ema else raw]
        content = {key: value for key, value in content.items() if key != _STEPS}
    return {}, notes


def _check_plain(torch, key, value, path):
    """ValueError for a tensor that is not an array, or that repeats its numbers, as `expand` does, up to any size."""
    if value.numel() * value.element_size() > path.stat().st_size:
        raise ValueError(
            f"{shown(key)} in {shown(path.name)} declares {tuple(value.shape)}, more than the whole file holds."
        )
    try:
        if value.layout is not torch.strided or value.is_quantized or value.device.type != "cpu":
            raise TypeError(f"{value.layout}, {value.dtype}, on {value.device}")
        _to_numpy(torch, torch.empty(0, dtype=value.dtype))
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"{shown(key)} in {shown(path.name)} is not a plain tensor: {shown(error)}") from error


def _to_numpy(torch, value):
    value = value.detach()
    return (value.float() if value.dtype == torch.bfloat16 else value).contiguous().numpy()


def _plain_keys(tensors):
    """`tensors` without the prefix that wrappers put in front of every key."""
    while (prefix := tensors.shared_prefix()) in _PREFIXES:
        tensors = tensors.without_prefix(prefix)
    return tensors
