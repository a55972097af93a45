"""Records from tar shards in webdataset's layout, without unpacking, pickles or shell commands.

Members with the same path up to the first dot of the file name are one sample: `00012.jpg`, `00012.txt`, `00012.cls`.
The headers are read once; after that, a record takes one seek and one read, so shards can be shuffled like files.
"""

import contextlib
import glob
import itertools
import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from zoo.data.folders import IMAGE_EXTENSIONS, MAX_TEXT_BYTES, read_caption
from zoo.data.records import BadSample, Dataset, Record, check_labels, digest, refuse_url
from zoo.data.tar import Member, read_members
from zoo.utils.files import MAX_FILE_BYTES, check_regular, open_file
from zoo.utils.strict_json import parse_json
from zoo.utils.text import quoted

_IMAGES = tuple(extension[1:] for extension in IMAGE_EXTENSIONS)
_EXTENSIONS = (*_IMAGES, "txt", "json", "cls")  # others are ignored
MAX_SHARDS = 1_000_000  # of one pattern, whose names are looked up one by one; several patterns may be given
MAX_BRACES = 8  # in one pattern; each may multiply the number of names
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d{1,12})\.\.(\d{1,12})")
_LABEL = re.compile(rb"\s*[+-]?[0-9]{1,18}\s*")


class _Sample(dict):
    """{extension: Member} of one sample in the shard at a path; `wrong` is its problem, if any."""

    def __init__(self, shard: str, key: str, wrong: str | None = None):
        super().__init__()
        self.shard, self.key, self.wrong = shard, key, wrong

    def add(self, extension: str, member: Member) -> None:
        cap = MAX_FILE_BYTES if extension in _IMAGES else MAX_TEXT_BYTES
        if extension in self:
            self.wrong = f"two members with the extension .{extension}"
        elif not member.regular:
            self.wrong = f".{extension} is not a regular file"
        elif member.size > cap:
            self.wrong = f".{extension} has {member.size} bytes; at most {cap} are allowed"
        self[extension] = member

    @property
    def name(self) -> str:
        return f"{os.path.basename(self.shard)}/{self.key}"

    @property
    def image(self) -> Member | None:
        return next((self[extension] for extension in _IMAGES if extension in self), None)

    def read(self, member: Member) -> bytes:
        """Return the bytes of a member."""
        with open(self.shard, "rb", buffering=0) as file:
            file.seek(member.offset)
            data = file.read(member.size)
        if len(data) < member.size:
            raise BadSample("the shard became shorter")
        return data

    def notes(self) -> dict:
        """Return the content of the .json, or {}."""
        if "json" not in self:
            return {}
        try:
            notes = parse_json(self.read(self["json"]), self.key)
        except ValueError:
            raise BadSample("the .json is damaged") from None
        return notes if isinstance(notes, dict) else {}


def read_shards(pattern: str | Path | Sequence[str | Path], *, class_names: Sequence[str] | None = None) -> Dataset:
    """Return the samples in uncompressed tar files.

    A sample has one image; its caption is its .txt, or "caption" or "captions" in its .json; its label is its .cls, or
    "label" in its .json. The data set has captions, or labels, if any sample has such a member or the first .json such
    a key. If the first .json holds a list of captions, each caption is a record. A sample that lacks what others have,
    and the damaged rest of a shard, are bad records. Compressed shards are refused: a record is read from its place.

    Args:
        pattern: one or several paths, which may contain `{0000..0127}`, `{a,b}`, `*` and `?`.
        class_names: names of labels 0 to K - 1.

    Raises:
        ValueError: a URL or command, a missing file, or no samples.
    """
    patterns = [pattern] if isinstance(pattern, (str, Path)) else list(pattern)
    shards = [shard for part in patterns for shard in find_shards(str(part))]
    samples = [sample for shard in shards for sample in _scan(shard)]
    if all(sample.wrong is not None for sample in samples):
        reason = f": {samples[0].wrong}" if samples else ""
        others = f" or {len(shards) - 1} more" * (len(shards) > 1)
        raise ValueError(f"no samples in {quoted(shards[0])}{others}{reason}")
    return _dataset(samples, class_names)


def _dataset(samples: list[_Sample], class_names: Sequence[str] | None) -> Dataset:
    first = _first_notes(samples)
    there = {extension for sample in samples for extension in sample}.union(first)
    captions = not there.isdisjoint({"txt", "caption", "captions"})
    numbers = [0] * len(samples)  # of each record's caption
    if captions and isinstance(_captions_of(first), list):
        samples, numbers = _one_per_caption(samples)
    labels = None if there.isdisjoint({"cls", "label"}) else _labels(samples, class_names)

    def read(i: int) -> Record:
        sample = samples[i]
        image, caption, label = sample.image, None, None
        if sample.wrong is not None or image is None:
            raise BadSample(sample.wrong or "no image")
        if captions:
            caption = _caption(sample, numbers[i])
        if labels is not None:
            label = int(labels[i])
            if label < 0:
                raise BadSample("no label, or a label that is not a class")
        return Record(sample.read(image), names[i], caption, label)

    names = [sample.name for sample in samples]
    layout = (
        f"{name} {ext} {m.size}" for name, sample in zip(names, samples, strict=True) for ext, m in sample.items()
    )
    names_of_classes = None if class_names is None else tuple(class_names)
    return Dataset(names, read, digest(layout), captions, labels, names_of_classes)


def find_shards(pattern: str) -> list[str]:
    """Return the real paths of the tar files that a pattern matches, in order; ValueError for a URL or missing file."""
    refuse_url(pattern)
    paths: list[str] = []
    for name in expand_braces(pattern):
        found = sorted(glob.glob(name)) if glob.has_magic(name) and not os.path.exists(name) else [name]
        if not found or not os.path.exists(found[0]):
            raise ValueError(f"no shard {quoted(name)}")
        paths += [os.path.realpath(path) for path in found]
        if len(paths) > MAX_SHARDS:
            raise ValueError(f"{quoted(pattern)} matches more than {MAX_SHARDS} shards")
    if not paths:
        raise ValueError(f"{quoted(pattern)} matches no shard: a range counts upwards")
    for path in paths:
        check_regular(path, os.stat(path))
    return paths


def expand_braces(pattern: str) -> Iterator[str]:
    """Return the expansions of `{07..12}` and `{a,b}` in a pattern; the last brace varies fastest.

    Raises:
        ValueError: more than MAX_BRACES braces, or more than MAX_SHARDS expansions.
    """
    texts, choices, start = [], [], 0
    for brace in _BRACES.finditer(pattern):
        texts.append(pattern[start : brace.start()])
        choices.append(_choices(brace[1]))
        start = brace.end()
    if len(choices) > MAX_BRACES:
        raise ValueError(f"{quoted(pattern)} has {len(choices)} braces; at most {MAX_BRACES} are allowed")
    if (count := math.prod(map(len, choices))) > MAX_SHARDS:
        raise ValueError(f"{quoted(pattern)} names {count:,} shards; at most {MAX_SHARDS:,} are allowed")
    for chosen in itertools.product(*choices):
        yield "".join(itertools.chain(*zip(texts, chosen, strict=True))) + pattern[start:]


def _choices(brace: str) -> Sequence[str]:
    numbers = _RANGE.fullmatch(brace)
    if numbers is None:
        return brace.split(",")
    first, last = numbers.groups()
    places = range(int(first), int(last) + 1)
    if len(places) > MAX_SHARDS:
        raise ValueError(f"{{{brace}}} counts to {len(places):,}; at most {MAX_SHARDS:,} are allowed")
    return [f"{i:0{len(first)}d}" for i in places]


def _scan(shard: str) -> list[_Sample]:
    """Return the samples of one shard; damage to the shard is one more, bad, sample."""
    samples: list[_Sample] = []
    with open_file(shard) as file:
        try:
            for member in read_members(file):
                folder, _, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                if not stem or extension.lower() not in _EXTENSIONS:
                    continue
                key = f"{folder}/{stem}" if folder else stem
                if not samples or samples[-1].key != key:
                    leaves = member.name.startswith("/") or ".." in folder.split("/")
                    samples.append(_Sample(shard, key, "its name leaves the shard" if leaves else None))
                samples[-1].add(extension.lower(), member)
        except ValueError as error:
            samples.append(_Sample(shard, "", wrong=f"the shard is {error}"))
    for sample in samples:
        if sample.wrong is None and sample.image is None:
            sample.wrong = f"no image among .{', .'.join(sample)}"
    return samples


def _first_notes(samples: list[_Sample]) -> dict:
    """Return the content of the first readable .json."""
    for sample in samples:
        if sample.wrong is None and "json" in sample:
            with contextlib.suppress(BadSample):
                return sample.notes()
    return {}


def _captions_of(notes: dict) -> object:
    return notes.get("caption", notes.get("captions"))


def _one_per_caption(samples: list[_Sample]) -> tuple[list[_Sample], list[int]]:
    """Return each sample as often as it has captions in its .json, and the number of each record's caption."""
    repeated: list[_Sample] = []
    numbers: list[int] = []
    for sample in samples:
        count = 1
        if sample.wrong is None and "txt" not in sample:
            with contextlib.suppress(BadSample):  # raised again when the record is read
                found = _captions_of(sample.notes())
                count = max(1, len(found)) if isinstance(found, list) else 1
        repeated += [sample] * count
        numbers += range(count)
    return repeated, numbers


def _caption(sample: _Sample, number: int) -> str:
    if "txt" in sample:
        return read_caption(sample.read(sample["txt"]))
    caption = _captions_of(sample.notes())
    if isinstance(caption, list):
        caption = caption[number] if number < len(caption) else None
    if not isinstance(caption, str) or not caption.strip():
        raise BadSample("no caption")
    return caption


def _labels(samples: list[_Sample], class_names: Sequence[str] | None) -> np.ndarray:
    """Return int32 (N,), -1 for a missing or invalid label."""
    labels = np.full(len(samples), -1, np.int32)
    for i, sample in enumerate(samples):
        if sample.wrong is None:
            with contextlib.suppress(ValueError):
                labels[i] = check_labels([_label(sample)], class_names)[0]
    return labels


def _label(sample: _Sample) -> int:
    if "cls" in sample:
        digits = sample.read(sample["cls"])
        return int(digits) if _LABEL.fullmatch(digits) else -1
    number = sample.notes().get("label")
    return number if isinstance(number, int) else -1
