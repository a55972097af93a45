"""`.keras` files before Keras reads them: what they would unpack to, and the sizes that their configuration names.

Keras itself refuses code (`safe_mode`), links and external storage. It allocates whatever a configuration asks for, and
unpacks compressed arrays without a limit.
"""

import math
import zipfile
import zlib
from pathlib import Path
from typing import Any

from zoo.utils.files import check_unpacked, open_file
from zoo.utils.strict_json import parse_json
from zoo.utils.text import quoted, shown

_CONFIG, _WEIGHTS = "config.json", "model.weights.h5"
LARGEST_CONFIG = 16 << 20  # bytes; that of the largest CLIP model has 1.5 MB
FREE_SIZE = 1 << 16  # a number in a configuration may be this large, or as large as the longest side of an array
_NOT_SIZES = ("seed", "shared_object_id")  # numbers of any size
_MOST_MEMBERS = 10_000  # of an archive
_MOST_ARRAYS = 100_000  # arrays and groups in the weights: ten for each of 10,000 layers


def check_keras(path: Path) -> None:
    """Raise ValueError for a `.keras` file that would take more memory than one of its size can need.

    Every number in its configuration is at most FREE_SIZE, or the longest side of an array in the file: a layer has
    its weights in the file.
    """
    try:
        with open_file(path) as file, zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if len(members) > _MOST_MEMBERS:
                raise ValueError(f"{len(members)} members; at most {_MOST_MEMBERS} are allowed")
            check_unpacked(path, sum(member.file_size for member in members))
            largest = max(FREE_SIZE, _longest_side(archive, path))
            if archive.getinfo(_CONFIG).file_size > LARGEST_CONFIG:
                raise ValueError(
                    f"{_CONFIG} has {archive.getinfo(_CONFIG).file_size} bytes; at most {LARGEST_CONFIG} are allowed"
                )
            config = parse_json(archive.read(_CONFIG), _CONFIG)
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, OSError, RuntimeError, NotImplementedError) as error:
        raise ValueError(f"{shown(path.name)} is not a .keras file, or a damaged one: {shown(error)}") from error
    except ValueError as error:
        raise ValueError(f"{shown(path.name)} is not read: {shown(error)}") from error
    _check_config(config, largest, path.name)


def _longest_side(archive: zipfile.ZipFile, path: Path) -> int:
    """Return the longest side of an array in the weights; ValueError if they would unpack to too much."""
    import h5py

    if _WEIGHTS not in archive.namelist():
        return 0
    longest, size, count = 0, 0, 0

    def visit(_: str, found: Any) -> None:
        nonlocal longest, size, count
        count += 1
        if count > _MOST_ARRAYS:
            raise ValueError(f"{_WEIGHTS} has more than {_MOST_ARRAYS} arrays and groups")
        if isinstance(found, h5py.Dataset) and found.shape is not None:
            chunk = math.prod(found.chunks or ())  # may be larger than the array, and is unpacked as a whole
            longest, size = max([longest, *found.shape]), size + max(found.size, chunk) * found.dtype.itemsize

    with archive.open(_WEIGHTS) as member, h5py.File(member, "r") as weights:
        weights.visititems(visit)
    check_unpacked(path, size)
    return longest


def _check_config(config: Any, largest: int, name: str) -> None:
    """Raise ValueError for a number above `largest`, and for a model or layer whose description is no object."""
    if not isinstance(config, dict) or not isinstance(config.get("config"), dict):
        raise ValueError(f"{shown(name)}: {_CONFIG} is {quoted(config, 200)}; it must describe a Keras model")
    waiting = [("", config["config"])]  # the optimizer's numbers, beside it, are of steps
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.items()
        elif isinstance(value, list):
            waiting += [(key, item) for item in value]
        elif isinstance(value, int) and abs(value) > largest and key not in _NOT_SIZES:
            raise ValueError(f"{shown(name)}: {shown(key)} in {_CONFIG} is {value}; at most {largest} is allowed")
