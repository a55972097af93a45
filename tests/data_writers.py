"""Real images with captions and labels, written in every layout that zoo.data reads."""

import csv
import functools
import io
import json
import struct
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@functools.cache
def digits(count: int, size: int = 16) -> tuple[np.ndarray, tuple[str, ...], np.ndarray]:
    """(uint8 (N, size, size, 3), captions, int32 (N,)) of scikit-learn's digits, the first N; after 1,797 again."""
    from sklearn.datasets import load_digits

    data = load_digits()
    rows = np.arange(count) % len(data.images)
    gray = 255 - np.rint(data.images[rows] * (255 / 16)).astype(np.uint8)
    images = [Image.fromarray(g).resize((size, size), Image.Resampling.BICUBIC).convert("RGB") for g in gray]
    labels = data.target[rows].astype(np.int32)
    captions = tuple(f'a handwritten {WORDS[label]}, the "{i}"th' for i, label in enumerate(labels))
    return np.stack([np.asarray(image) for image in images]), captions, labels


def encode(image: np.ndarray, kind: str = "PNG", **options) -> bytes:
    """The bytes of an image file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **options)
    return file.getvalue()


def write_csv(folder: Path, count: int, *, separator: str = ",", size: int = 16) -> Path:
    """train.csv with the columns filepath, caption and class, and the images beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "images").mkdir()
    path = folder / "train.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, delimiter=separator)
        rows.writerow(["filepath", "caption", "class"])
        for i, (image, caption, label) in enumerate(zip(*digits(count, size), strict=True)):
            name = f"images/{i:05d}.png"
            (folder / name).write_bytes(encode(image))
            rows.writerow([name, caption, WORDS[label]])
    return path


def write_captioned_folder(folder: Path, count: int, *, size: int = 16) -> Path:
    """Images with .txt beside them, in one folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, (image, caption, _) in enumerate(zip(*digits(count, size), strict=True)):
        (folder / f"{i:05d}.png").write_bytes(encode(image))
        (folder / f"{i:05d}.txt").write_text(caption, encoding="utf-8")
    return folder


def write_class_folders(folder: Path, count: int, *, size: int = 16) -> Path:
    """Images in one folder a class: 0_zero, 1_one, …"""
    for i, (image, _, label) in enumerate(zip(*digits(count, size), strict=True)):
        inner = folder / f"{label}_{WORDS[label]}"
        inner.mkdir(parents=True, exist_ok=True)
        (inner / f"{i:05d}.png").write_bytes(encode(image))
    return folder


def write_shards(folder: Path, count: int, shards: int = 3, *, notes: bool = False, size: int = 16, **options) -> str:
    """Tar shards of .png, .txt and .cls, or with `notes` of .png and .json; returns the pattern that names them."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = list(enumerate(zip(*digits(count, size), strict=True)))
    for shard, part in enumerate(np.array_split(np.arange(count), shards)):
        members = {}
        for i, (image, caption, label) in (rows[place] for place in part):
            members[f"{i:05d}.png"] = encode(image)
            if notes:
                members[f"{i:05d}.json"] = json.dumps({"caption": caption, "label": int(label)}).encode()
            else:
                members |= {f"{i:05d}.txt": caption.encode(), f"{i:05d}.cls": str(label).encode()}
        write_tar(folder / f"digits-{shard:04d}.tar", members, **options)
    return str(folder / f"digits-{{0000..{shards - 1:04d}}}.tar")


def write_tar(path: Path, members: dict[str, bytes], **options) -> Path:
    """An uncompressed tar file of these members, in this order."""
    with tarfile.open(path, "w", **options) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def write_dng(values: np.ndarray) -> bytes:
    """Return an uncompressed DNG file of sensor values uint16 (H, W), with the pattern RGGB."""
    height, width = values.shape
    model = b"Test camera\0"
    matrix = struct.pack("<18i", *sum(([10000 * (i % 4 == 0), 10000] for i in range(9)), []))
    tags = [
        (254, 4, 1, 0),
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 1, 16),
        (259, 3, 1, 1),
        (262, 3, 1, 32803),
        (271, 2, len(model), model),
        (272, 2, len(model), model),
        (273, 4, 1, "pixels"),
        (274, 3, 1, 1),
        (277, 3, 1, 1),
        (278, 4, 1, height),
        (279, 4, 1, 2 * values.size),
        (33421, 3, 2, struct.pack("<2H", 2, 2)),
        (33422, 1, 4, bytes([0, 1, 1, 2])),
        (50706, 1, 4, bytes([1, 4, 0, 0])),
        (50708, 2, len(model), model),
        (50714, 3, 1, 0),
        (50717, 4, 1, 65535),
        (50721, 10, 9, matrix),
        (50728, 5, 3, struct.pack("<6I", *[1, 1] * 3)),
        (50778, 3, 1, 21),
    ]
    after = 8 + 2 + 12 * len(tags) + 4
    entries, data = b"", b""
    pixels = after + sum(
        len(value) + len(value) % 2 for *_, value in tags if isinstance(value, bytes) and len(value) > 4
    )
    for tag, kind, count, value in tags:
        if value == "pixels":
            value = pixels
        if isinstance(value, bytes) and len(value) > 4:
            field = struct.pack("<I", after + len(data))
            data += value + b"\0" * (len(value) % 2)
        else:
            field = value.ljust(4, b"\0") if isinstance(value, bytes) else struct.pack("<I", value)
        entries += struct.pack("<HHI", tag, kind, count) + field
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0)
    return head + data + values.astype("<u2").tobytes()


WRITE_HEIC = """
import sys, pillow_heif
from PIL import Image
pillow_heif.from_pillow(Image.open(sys.argv[1])).save(sys.argv[2], quality=95)
"""


def write_heic(path: Path, image: np.ndarray) -> None:
    """Write a HEIC file in another process: the encoder, not the decoder, fails where usearch's library is loaded."""
    original = path.with_suffix(".heic.png")
    original.write_bytes(encode(image))
    subprocess.run([sys.executable, "-c", WRITE_HEIC, original, path], check=True)
    original.unlink()
