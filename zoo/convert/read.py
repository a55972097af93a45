"""Foreign and own weight files → {key: numpy array}, told apart by their first bytes.

safetensors (one file, or shards with an index) and `.npz` are read without torch. A torch zip checkpoint goes through
`torch.load(weights_only=True)` of torch ≥ 2.10 (CVE-2026-24747) and through nothing else; older pickles are refused.
"""

import json
import math
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

OLDEST_TORCH = (2, 10)
WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model",
)  # around the weights in the checkpoints of training scripts
PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile, in front of every key
ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, struct.error, UnicodeDecodeError, OSError, EOFError, RuntimeError)
LARGEST_INDEX = 64 << 20  # bytes
LARGEST_GROWTH, FREE_GROWTH = 100, 64 << 20  # a compressed .npz may grow a hundredfold, and to 64 MiB in any case


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    Args:
        tensors: key → array; float16, bfloat16 and float64 are float32 here, integers are as stored.
        metadata: str → str, of a safetensors file.
        path: where it was read.
    """

    tensors: dict[str, np.ndarray]
    metadata: dict[str, str] = field(default_factory=dict)
    path: Path | None = None


def read_checkpoint(path):
    """The `Checkpoint` in a `.safetensors`, `.safetensors.index.json`, `.npz` or torch zip file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is none of these, is damaged, or holds something else than arrays.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No weight file at {str(path)!r}.")
    tensors, metadata = _reader(path)(path)
    return Checkpoint(_plain_keys({key: _to_float32(value) for key, value in tensors.items()}), metadata, path)


def _reader(path):
    with open(path, "rb") as file:
        head = file.read(9)
    if head[:2] == b"PK":
        return _read_zip
    if path.suffix == ".json":
        return _read_sharded
    if len(head) == 9 and head[8:] == b"{":
        return _read_safetensors
    raise ValueError(
        f"{path.name} is not a weight file this package reads: .safetensors, .safetensors.index.json, .npz, or a torch "
        f"checkpoint in the zip form that torch.save writes. It starts with {head!r}."
    )


def _read_safetensors(path):
    import ml_dtypes  # noqa: F401 (teaches numpy the name "bfloat16", which safetensors asks for)
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, TypeError, AttributeError) as error:  # the last for a type that numpy does not have
        raise ValueError(f"{path.name} is not a sound safetensors file: {error}") from error


def _read_sharded(path):
    """All shards that an index names; they must lie beside it."""
    if path.stat().st_size > LARGEST_INDEX:
        raise ValueError(
            f"{path.name} has {path.stat().st_size} bytes, too many for the index of a sharded checkpoint."
        )
    try:
        where = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        shards = {str(name): {key for key in where if where[key] == name} for name in sorted(set(where.values()))}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path.name} is not the index of a sharded checkpoint: no usable 'weight_map'.") from error
    tensors = {}
    for name, keys in shards.items():
        shard = path.parent / name
        if Path(name).name != name or not name.endswith(".safetensors") or not shard.is_file():
            raise ValueError(f"{path.name} names the shard {name!r}, and there is no such .safetensors file beside it.")
        found = _read_safetensors(shard)[0]
        if set(found) != keys:
            difference = sorted(set(found) ^ keys)
            raise ValueError(f"{name} and {path.name} disagree about {len(difference)} keys, e.g. {difference[0]!r}.")
        tensors |= found
    return tensors, {}


def _read_zip(path):
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if any(name.endswith("/constants.pkl") for name in names):
                raise ValueError(
                    f"{path.name} is a TorchScript archive, which holds a program beside the weights and is not read. "
                    "Look for a .safetensors copy of it."
                )
            if any(name.rpartition("/")[2] == "data.pkl" for name in names):
                return _read_torch(path), {}
            if names and all(name.endswith(".npy") for name in names):
                _check_growth(path, archive)
                return {name.removesuffix(".npy"): _read_npy(archive, name) for name in names}, {}
    except ZIP_ERRORS as error:
        raise ValueError(f"{path.name} is a damaged zip file: {error}") from error
    raise ValueError(f"{path.name} is a zip file, but neither .npz nor a torch checkpoint. It holds {names[:5]}.")


def _check_growth(path, archive):
    """ValueError for a small file that would unpack into a very large one."""
    before, after = path.stat().st_size, sum(member.file_size for member in archive.infolist())
    if after > LARGEST_GROWTH * before + FREE_GROWTH:
        raise ValueError(f"{path.name} has {before:,} bytes and would unpack into {after:,}; weights do not.")


def _read_npy(archive, name):
    """One member of an .npz file, its declared shape checked against its size before any of it is allocated."""
    size = archive.getinfo(name).file_size
    with archive.open(name) as file:
        try:
            version = np.lib.format.read_magic(file)
            read_header = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }
            shape, _, dtype = read_header[version](file)
            declared = math.prod(shape) * dtype.itemsize
        except (ValueError, KeyError) as error:
            raise ValueError(f"{name} in the .npz file is not a sound array: {error}") from error
    if dtype.hasobject or min(shape, default=0) < 0 or declared > size:
        raise ValueError(f"{name} in the .npz file declares {shape} of {dtype}, which does not fit its {size} bytes.")
    with archive.open(name) as file:
        try:
            return np.lib.format.read_array(file, allow_pickle=False)
        except ValueError as error:
            raise ValueError(f"{name} in the .npz file is not a sound array: {error}") from error


def _read_torch(path):
    torch = _recent_torch()
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler refuses in many ways; none of them ran anything
        first_line = str(error).strip().splitlines()[:1]
        raise ValueError(f"{path.name} is not a plain torch checkpoint of tensors: {first_line}") from error
    state = _unwrap(content)
    if not state:
        raise ValueError(f"{path.name} holds no weights, neither at its top nor under {', '.join(WRAPPERS)}.")
    return {key: _torch_to_numpy(torch, key, value, path) for key, value in state.items()}


def _recent_torch():
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            'A torch checkpoint can only be read with torch: pip install "torch>=2.10", or use a .safetensors copy.'
        ) from error
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < OLDEST_TORCH:
        raise ImportError(
            f"torch {torch.__version__} is not safe for loading checkpoints from elsewhere. "
            'Install "torch>=2.10", or use a .safetensors copy.'
        )
    return torch


def _unwrap(content):
    """The mapping of keys to tensors inside a checkpoint, or {}."""
    while isinstance(content, Mapping):
        tensors = {key: value for key, value in content.items() if isinstance(key, str) and hasattr(value, "detach")}
        inner = next((content[name] for name in WRAPPERS if isinstance(content.get(name), Mapping)), None)
        if tensors or inner is None:
            return tensors
        content = inner
    return {}


def _torch_to_numpy(torch, key, value, path):
    """A plain tensor as an array; one that repeats its numbers, as `expand` makes it, could be of any size."""
    if value.numel() * value.element_size() > path.stat().st_size:
        raise ValueError(f"{key} in {path.name} declares {tuple(value.shape)}, more than the whole file holds.")
    try:
        value = value.detach()
        return (value.float() if value.dtype == torch.bfloat16 else value).contiguous().numpy()
    except (TypeError, RuntimeError) as error:  # sparse, quantised, without data
        raise ValueError(f"{key} in {path.name} is not a plain tensor: {error}") from error


def _to_float32(value):
    """Floating-point arrays of any width as float32: exact from below, rounded from float64."""
    is_float = value.dtype.kind == "f" or value.dtype.name == "bfloat16"
    return value.astype(np.float32) if is_float and value.dtype != np.float32 else value


def _plain_keys(tensors):
    """`tensors` without the prefix that wrappers put in front of every key."""
    for prefix in PREFIXES:
        if tensors and all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors
