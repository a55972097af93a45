"""A fuzz test of everything that reads files, names or values from elsewhere.

    KERAS_BACKEND=torch python tests/hostile.py [--inputs 20000] [--seed 0] [--targets images,tables] [--slice 1/4]

Each input is a valid one, changed by a seeded generator: values of JSON replaced, bytes flipped, files cut, swapped for
links, pipes and folders. An input is refused clearly if it raises ValueError, TypeError, OSError, ImportError, or
KeyError of an id, with one short printable line, and leaves the disk as it was. Anything else is a fault: another
exception, something run or written outside, a raw control character, over 10 s of processor time, over 1 GB of memory.

It prints for each target, a function that reads such inputs: inputs, refused clearly, accepted, faults.
"""

import argparse
import contextlib
import hashlib
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

os.environ["HF_HUB_OFFLINE"] = "1"  # no input asks the network

ROOT = Path(__file__).resolve().parent.parent
SECONDS, BYTES = 10.0, 1_000_000_000  # of processor time and memory, for one input
LONGEST_LINE = 4000
CLEAR = (ValueError, TypeError, OSError, ImportError)
ACCIDENT = re.compile(  # what Python says of an operation that nobody checked
    "object is not |not supported between|unhashable type|unsupported operand|has no attribute|positional argument|"
    "indices must be|cannot unpack|values to unpack|cannot be interpreted|argument of type|must be real number|"
    "index out of range|invalid literal for|could not convert|expected str instance"
)
# Messages that quote the reason of a library: Keras, torch, ONNX Runtime, Pillow.
QUOTING = ("that Keras can load", "a plain torch checkpoint", "ONNX Runtime cannot run", "cut off or damaged")
NASTY_TEXTS = (
    *("", "\0", "a\x1b[2Jb", "\u202eabc", "x" * 20_000, "../../escape", "/etc/passwd", "pipe:touch ran", "\ud800"),
    *(
        "http://localhost/x",
        "idlelib.idle.x",
        "os.system",
        "__import__('os')",
        "1_0",
        "NaN",
        "{,}" * 30,
        "%s%n",
        "$(id)",
    ),
)
NASTY_VALUES = (
    *(None, True, False, 0, -1, 1, 0.5, -0.0, 1e308, 2**31, 2**40, 2**64, 10**30, [], {}, [[]], [0] * 1000, {"": 5}),
    *([None], [["a", 1]], {"a": {"b": {"c": {}}}}),
    *NASTY_TEXTS,
)
NASTY_JSON = (  # what json.dumps does not write
    *("{", "", "null", "[]", '"', "NaN", "-Infinity", "1e999", "1" + "0" * 400, "1" + "0" * 5000),
    *("[" * 1000 + "]" * 1000, "[" * 100_000, '{"a":' * 1000 + "1" + "}" * 1000, "\xff\xfe", "{}" * 10),
)


class Target(NamedTuple):
    """What is tested.

    Args:
        weight: share of the campaign's inputs.
        good: folder → None; writes good files into it.
        change: (folder, random) → None; makes them hostile.
        use: (folder, random) → None; what a user would call.
    """

    weight: int
    good: Callable[[Path], None]
    change: Callable[[Path, random.Random], None]
    use: Callable[[Path, random.Random], None]


TARGETS: dict[str, Target] = {}


def target(weight: int, good: Callable[[Path], None], change: "Callable | None" = None) -> Callable:
    def register(use: Callable) -> Callable:
        TARGETS[use.__name__] = Target(weight, good, change or change_files, use)
        return use

    return register


# Changes.


def change_files(folder: Path, rng: random.Random) -> None:
    """Change one or two files of a folder."""
    for _ in range(rng.choice((1, 1, 1, 2))):
        files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
        if files:
            change_file(rng.choice(files), rng)


def change_file(path: Path, rng: random.Random) -> None:
    is_json = path.suffix in (".json", ".jsonl")
    kinds = ["bytes", "bytes", "cut", "other", "place"] + ["json"] * 12 * is_json
    kind = rng.choice(kinds)
    if kind == "json":
        content = change_json(path.read_text(encoding="utf-8", errors="replace"), rng)
        path.write_bytes(content.encode("utf-8", "surrogatepass"))
    elif kind == "bytes":
        path.write_bytes(change_bytes(path.read_bytes(), rng))
    elif kind == "cut":
        content = path.read_bytes()
        path.write_bytes(content[: rng.randrange(len(content) + 1)])
    elif kind == "other":
        path.write_bytes(
            rng.choice((b"", b"\0" * 1000, rng.randbytes(500), b"PK\3\4" + bytes(60), b"SQLite format 3\0"))
        )
    else:
        replace_place(path, rng)


def replace_place(path: Path, rng: random.Random) -> None:
    """Put a link, a pipe or a folder in the place of a file."""
    path.unlink()
    kind = rng.choice(("link", "dangling", "pipe", "folder", "missing", "outside"))
    outside = path.parents[len(path.parts) - len(sandbox().parts) - 1] / "outside"
    if kind == "link":
        path.symlink_to(outside / "precious.txt")
    elif kind == "outside":
        path.symlink_to(outside)
    elif kind == "dangling":
        path.symlink_to(outside / "new")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()


def change_bytes(content: bytes, rng: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        if not data:
            break
        place = rng.randrange(min(len(data), rng.choice((64, 2000, len(data)))))
        what = rng.random()
        if what < 0.5:
            data[place] ^= 1 << rng.randrange(8)
        elif what < 0.7:
            data[place : place + 4] = rng.choice((b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff"))
        elif what < 0.85:
            data[place:place] = rng.randbytes(rng.choice((1, 7, 300)))
        else:
            del data[place : place + rng.choice((1, 8, 100))]
    return bytes(data)


def change_json(text: str, rng: random.Random) -> str:
    """Replace, remove or add one value of a JSON text, or of one of its lines."""
    if rng.random() < 0.1:
        return rng.choice(NASTY_JSON)
    lines = text.splitlines() if text.startswith("{") and text.rstrip().count("\n{") else [text]
    number = rng.randrange(len(lines)) if lines else 0
    try:
        value = json.loads(lines[number])
    except (ValueError, IndexError, RecursionError):
        return rng.choice(NASTY_JSON)
    places = list(_places(value))
    if not places:
        return json.dumps(rng.choice(NASTY_VALUES))
    holder, key = rng.choice(places)
    what = rng.random()
    if what < 0.7:
        holder[key] = rng.choice(NASTY_VALUES)
    elif what < 0.8:
        del holder[key]
    elif what < 0.9 and isinstance(holder, dict):
        holder[rng.choice(NASTY_TEXTS)] = rng.choice(NASTY_VALUES)
    else:
        holder[key] = "@@@"
        lines[number] = json.dumps(value).replace('"@@@"', rng.choice(NASTY_JSON))
        return "\n".join(lines)
    lines[number] = json.dumps(value)
    return "\n".join(lines)


def _places(value) -> Iterator[tuple]:
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


# The targets. Good files are made once a process; every input starts from a copy.


def tiny_row():
    import convnext

    return convnext.Variant((1, 1), (4, 8))


def tiny_pair():
    import clip

    image = clip.ViT(width=8, layers=1, patch_size=16, head_width=8)
    return clip.create_clip(clip.Pair(8, 32, image, clip.Text(width=8, heads=1, layers=1)))


def good_own(folder: Path) -> None:
    import convnext
    import zoo

    zoo.save(convnext.create_convnext_v1(tiny_row(), 3, (32, 32, 3)), folder / "own.safetensors")


def change_safetensors(folder: Path, rng: random.Random) -> None:
    """Change the header's JSON, the JSON inside its metadata, or bytes."""
    path = next(folder.glob("*.safetensors"))
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, rest = data[8 : 8 + length].decode(), data[8 + length :]
    what = rng.random()
    if what < 0.25:
        change_file(path, rng)
        return
    if what < 0.8 and "__metadata__" in header:
        parsed = json.loads(header)
        facts = parsed["__metadata__"]
        key = rng.choice(sorted(facts))
        facts[key] = change_json(facts[key], rng) if facts[key][:1] in "{[" else str(rng.choice(NASTY_VALUES))
        text = json.dumps(parsed).encode("utf-8", "surrogatepass")
    else:
        text = change_json(header, rng).encode("utf-8", "surrogatepass")
    path.write_bytes(len(text).to_bytes(8, "little") + text + rest)


@target(6, good_own, change_safetensors)
def own_weights(folder: Path, rng: random.Random) -> None:
    import zoo

    zoo.load(folder / "own.safetensors")


def good_pair(folder: Path) -> None:
    import zoo

    zoo.save(tiny_pair(), folder / "pair.safetensors")


@target(4, good_pair, change_safetensors)
def pair_weights(folder: Path, rng: random.Random) -> None:
    from zoo.models import registry

    registry.load_pair(folder / "pair.safetensors")


def good_foreign(folder: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    arrays = {f"stages.{i}.blocks.0.gamma": np.ones(4, np.float32) for i in range(3)}
    save_file(arrays, folder / "model.safetensors")
    np.savez(folder / "model.npz", **arrays)
    np.savez_compressed(folder / "packed.npz", **arrays)
    torch = sys.modules.get("torch")
    if torch:
        torch.save({key: torch.from_numpy(array) for key, array in arrays.items()}, folder / "model.pth")
    (folder / "m.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict.fromkeys(arrays, "model.safetensors")})
    )


@target(14, good_foreign)
def foreign_weights(folder: Path, rng: random.Random) -> None:
    from zoo.weights import read_checkpoint

    for path in sorted(folder.iterdir()):
        with refusing():
            for key, array in read_checkpoint(path).tensors.items():
                assert key is not None and array is not None


def good_hub(folder: Path) -> None:
    import convnext
    import zoo

    model = convnext.create_convnext_v1(convnext.Variant((1,) * 4, (4, 8, 8, 8)), 3, (64, 64, 3), stem_stride=4)
    zoo.export_weights(model, folder, format="transformers")
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"size": {"shortest_edge": 64}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3})
    )


@target(12, good_hub)
def hub_folders(folder: Path, rng: random.Random) -> None:
    import zoo

    zoo.load(folder)


def good_open_clip(folder: Path) -> None:
    import zoo

    zoo.export_weights(tiny_pair(), folder, format="open_clip")


@target(8, good_open_clip)
def open_clip_folders(folder: Path, rng: random.Random) -> None:
    import zoo

    zoo.load(folder)


def good_keras(folder: Path) -> None:
    import convnext

    convnext.create_convnext_v1(tiny_row(), 3, (32, 32, 3)).save(folder / "model.keras")


def change_keras(folder: Path, rng: random.Random) -> None:
    import zipfile

    path = folder / "model.keras"
    if rng.random() < 0.3:
        change_file(path, rng)
        return
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(sorted(members))
    if name.endswith(".json") and rng.random() < 0.8:
        members[name] = change_json(members[name].decode(), rng).encode("utf-8", "surrogatepass")
    elif rng.random() < 0.2:
        del members[name]
    else:
        members[name] = change_bytes(members[name], rng)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@target(4, good_keras, change_keras)
def keras_files(folder: Path, rng: random.Random) -> None:
    import zoo

    zoo.load(folder / "model.keras")


def good_images(folder: Path) -> None:
    from PIL import Image

    image = Image.effect_noise((40, 30), 50).convert("RGB")
    for name in ("a.png", "b.jpg", "c.webp", "d.gif", "e.bmp"):
        image.save(folder / name)
    image.save(folder / "f.jpg", progressive=True)
    image.convert("P").save(folder / "g.png", transparency=0)


@target(24, good_images)
def images(folder: Path, rng: random.Random) -> None:
    from zoo.data.preprocess import PreprocessSpec, open_image, preprocess

    for path in sorted(folder.iterdir()):
        with refusing():
            preprocess(open_image(path), PreprocessSpec(image_size=32))


def good_table(folder: Path) -> None:
    good_images(folder)
    rows = [f'{name},"a photo, {i}",{i % 2}' for i, name in enumerate(("a.png", "b.jpg", "c.webp"))]
    (folder / "t.csv").write_text("\n".join(["filepath,caption,label", *rows]) + "\n")
    notes = [{"file_name": name, "text": f"photo {i}", "label": i} for i, name in enumerate(("a.png", "b.jpg"))]
    (folder / "m.jsonl").write_text("\n".join(map(json.dumps, notes)))
    coco = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(("a.png", "b.jpg"))],
        "annotations": [{"image_id": i, "caption": f"photo {i}", "id": i} for i in range(2)],
    }
    (folder / "coco.json").write_text(json.dumps(coco))
    (folder / "names.json").write_text(json.dumps(["zero", "one"]))
    (folder / "names.txt").write_text("zero\none\n")


def change_table(folder: Path, rng: random.Random) -> None:
    tables = [path for path in folder.iterdir() if path.suffix in (".csv", ".jsonl", ".json", ".txt")]
    path = rng.choice(sorted(tables))
    if path.suffix in (".csv", ".txt") and rng.random() < 0.6:
        cells = path.read_text().replace("\n", ",\n,").split(",")
        cells[rng.randrange(len(cells))] = str(rng.choice(NASTY_VALUES))
        path.write_bytes(",".join(cells).replace(",\n,", "\n").encode("utf-8", "surrogatepass"))
    else:
        change_file(path, rng)


@target(20, good_table, change_table)
def tables(folder: Path, rng: random.Random) -> None:
    from zoo.data import open_dataset, read_coco, read_jsonl
    from zoo.data.datasets import find_templates, read_names

    def read_all(dataset) -> None:
        for i in range(len(dataset)):
            with refusing():
                dataset.record(i)

    for read in (
        lambda: read_all(open_dataset(folder / "t.csv", needs="captions")),
        lambda: read_all(open_dataset(folder / "t.csv", needs="labels", label_key="label")),
        lambda: read_all(read_jsonl(folder / "m.jsonl")),
        lambda: read_all(read_coco(folder / "coco.json")),
        lambda: read_names(folder / "names.json"),
        lambda: find_templates(folder / "names.txt"),
    ):
        with refusing():
            read()


def good_shards(folder: Path) -> None:
    import tarfile

    good_images(folder)
    with tarfile.open(folder / "0.tar", "w") as shard:
        for i, name in enumerate(("a.png", "b.jpg", "c.webp")):
            add(shard, f"{i}.{name.rpartition('.')[2]}", (folder / name).read_bytes())
            add(shard, f"{i}.json", json.dumps({"caption": f"photo {i}", "label": i}).encode())
            add(shard, f"{i}.cls", b"%d" % i)
    for path in folder.iterdir():
        if path.suffix != ".tar":
            path.unlink()


def add(shard, name: str, content: bytes) -> None:
    import tarfile

    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    shard.addfile(entry, io.BytesIO(content))


@target(14, good_shards)
def shards(folder: Path, rng: random.Random) -> None:
    from zoo.data import read_shards

    pattern = str(folder / "0.tar")
    if rng.random() < 0.3:
        pattern = rng.choice(
            (
                f"{folder}/{{0..0}}.tar",
                "{01..00}.tar",
                f"{folder}/0.tar" + "{,}" * rng.choice((2, 19, 2000)),
                f"{folder}/*",
            )
            + ("{0..99999999999}.tar", "{" * 500, f"{folder}/{rng.choice(NASTY_TEXTS)}.tar", "pipe:touch ran")
        )
    dataset = read_shards(pattern)
    for i in range(len(dataset)):
        with refusing():
            dataset.record(i)


def good_index(folder: Path) -> None:
    import numpy as np

    from zoo.embeddings import Index

    vectors = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    dtype = "int8" if folder.name.endswith("8") else "float32"
    notes = [{"folder": str(i)} for i in range(40)]
    index = Index.build(vectors, folder / "index", metadata=notes, dtype=dtype, facts={"sources": {"": "/x"}})
    index.add(vectors[:5] + 1, ids=[f"more {i}" for i in range(5)])
    index.accelerate("int8")
    index.remove(["7"])


@target(18, good_index)
def indices(folder: Path, rng: random.Random) -> None:
    import numpy as np

    from zoo.embeddings import Index
    from zoo.search.build import to_text

    query = np.ones(8, np.float32)
    opened = Index.open(folder / "index")
    found, scores = opened.search(query, 5)
    assert np.isfinite(scores).all() and len(found) == 5
    to_text(opened.info())
    for use in (
        lambda: opened.metadata(found[0]),
        lambda: opened.search(query, 3, where={"folder": "1"}),
        lambda: opened.remove([found[0]]),
        lambda: opened.add(np.ones((1, 8), np.float32), ids=["new"]),
        lambda: opened.accelerate("int8"),
        opened.verify,
    ):
        with refusing():
            use()


def good_cache(folder: Path) -> None:
    from zoo.embeddings import TextCache

    cache = TextCache(folder / "texts.sqlite")
    cache.embed("space", [f"text {i}" for i in range(40)], unit_vectors)
    cache.close()


def unit_vectors(texts):
    import numpy as np

    return np.eye(8, dtype=np.float32)[[len(text) % 8 for text in texts]]


HOSTILE_SQL = (
    "CREATE VIEW v AS SELECT * FROM vectors",
    "DROP TABLE counts; CREATE VIEW counts(name, value) AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 "
    "FROM n) SELECT i, i FROM n",
    "CREATE TRIGGER t AFTER INSERT ON counts BEGIN DELETE FROM vectors; END",
    "CREATE TRIGGER u BEFORE DELETE ON vectors BEGIN INSERT INTO counts VALUES (zeroblob(900000000), 1); END",
    "ALTER TABLE vectors ADD COLUMN big AS (zeroblob(900000000))",
    'CREATE TABLE "a\x1bb" (x)',
    "UPDATE vectors SET vector = zeroblob(3)",
    "UPDATE vectors SET vector = 'text', key = 5 WHERE rowid = 3",
    "UPDATE vectors SET place = 'x'",
    "INSERT INTO counts VALUES ('misses', 'many'), ('other', 1e300)",
    "PRAGMA user_version = 77",
    "DROP TABLE vectors",
    "PRAGMA writable_schema=ON; UPDATE sqlite_master SET sql = 'CREATE TABLE vectors (key)' WHERE name = 'vectors'",
    "PRAGMA writable_schema=ON; UPDATE sqlite_master SET rootpage = 2",
)


def change_cache(folder: Path, rng: random.Random) -> None:
    import sqlite3

    path = folder / "texts.sqlite"
    if rng.random() < 0.5:
        change_file(path, rng)
    elif rng.random() < 0.8:
        file = sqlite3.connect(path, isolation_level=None)
        with contextlib.suppress(sqlite3.Error):
            file.executescript(rng.choice(HOSTILE_SQL))
        file.close()
    else:
        other = path.with_name(path.name + rng.choice(("-wal", "-shm", "-journal")))
        other.write_bytes(rng.randbytes(rng.choice((0, 100, 5000))))
        if rng.random() < 0.5:
            replace_place(other, rng)


@target(16, good_cache, change_cache)
def text_caches(folder: Path, rng: random.Random) -> None:
    import numpy as np

    from zoo.embeddings import TextCache
    from zoo.search.cache import cache_clear, cache_import, cache_stats, cache_verify

    path, own = str(folder / "texts.sqlite"), str(folder / "own.sqlite")
    uses = [
        lambda: cache_stats(path),
        lambda: cache_import(path, own),
        lambda: cache_verify(path),
        lambda: cache_clear(path),
    ]
    for use in rng.sample(uses, 2):
        with refusing():
            use()
    cache = TextCache(path, create=False)
    try:
        found = cache.embed("space", ["text 1", "text 2", "other"], unit_vectors)
        np.testing.assert_array_equal(found, unit_vectors(["text 1", "text 2", "other"]))
    finally:
        cache.close()


_run: dict = {}


def good_run(folder: Path) -> None:
    fit(folder / "run", resume=False)


def fit(output: Path, resume: bool):
    """Train a model of one layer for two steps, or resume it."""
    import keras
    import numpy as np

    from zoo.data import Batches, from_arrays
    from zoo.data.preprocess import PreprocessSpec
    from zoo.training.loop import RunConfig, fit_resumable
    from zoo.training.setup import compile_resumable

    if not _run:
        model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2)])
        compile_resumable(model, keras.optimizers.SGD(0.1), precision="float32", ema=None, loss="mse")
        _run["model"] = model
        images = np.zeros((4, 8, 8, 3), np.uint8)
        _run["data"] = from_arrays(images, labels=np.zeros(4, np.int32))
    batches = Batches(_run["data"], PreprocessSpec(image_size=8), batch_size=2)
    arrange = lambda batch: (batch["images"], np.zeros((2, 2), np.float32))  # noqa: E731
    with batches, contextlib.redirect_stdout(io.StringIO()):
        return fit_resumable(_run["model"], batches, output, RunConfig(1), arrange=arrange, resume=resume)


def change_run(folder: Path, rng: random.Random) -> None:
    """Change a file of the newest checkpoint and write the right digests, or change the run's folder."""
    checkpoints = sorted((folder / "run" / "checkpoints").iterdir())
    if rng.random() < 0.25:
        change_files(folder / "run", rng)
        return
    if rng.random() < 0.1:
        place = rng.choice((folder / "run" / "checkpoints", checkpoints[-1]))
        shutil.rmtree(place)
        place.symlink_to(folder.parent / "outside")
        return
    for checkpoint in checkpoints:
        path = checkpoint / rng.choice(("progress.json", "history.jsonl", "state.safetensors", "progress.json"))
        if path.suffix == ".safetensors":
            shutil.copy(path, checkpoint / "whole.safetensors")
            path.unlink()
            shutil.move(checkpoint / "whole.safetensors", path)
            path.write_bytes(change_bytes(path.read_bytes(), rng))
        else:
            path.write_bytes(
                change_json(path.read_text(encoding="utf-8", errors="replace"), rng).encode("utf-8", "surrogatepass")
            )
        write_digests(checkpoint)


def write_digests(checkpoint: Path) -> None:
    """Write the right digests of a changed checkpoint."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    for name in manifest["sha256"]:
        manifest["sha256"][name] = hashlib.sha256((checkpoint / name).read_bytes()).hexdigest()
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


@target(8, good_run, change_run)
def checkpoints(folder: Path, rng: random.Random) -> None:
    outcome = fit(folder / "run", resume=True)
    assert outcome.step <= outcome.steps


def good_config(folder: Path) -> None:
    config = {
        **{"model_type": "convnextv2", "depths": [1, 1, 1, 1], "hidden_sizes": [4, 8, 8, 8], "train_data": "data"},
        **{"output": "out", "num_labels": 3, "image_size": 32, "epochs": 1, "batch_size": 2, "loss": "focal"},
        **{"learning_rate": 0.001, "crop_scale": [0.5, 1], "class_weights": [1, 1, 1], "weights": None, "mixup": 0.1},
    }
    (folder / "config.json").write_text(json.dumps(config))


@target(16, good_config)
def training_configurations(folder: Path, rng: random.Random) -> None:
    from zoo.training.classify import LOSSES, create_classifier, create_loss, run
    from zoo.training.config import read_config

    config = read_config(folder / "config.json")
    if config.loss in LOSSES:
        create_classifier(config, config.num_labels or 3)
        create_loss(config)
    else:
        run(folder / "config.json", train_data=str(folder / "nowhere"), output=str(folder / "out"))


def change_names(folder: Path, rng: random.Random) -> None:
    pass


@target(20, lambda folder: (folder / "file").write_text("x"), change_names)
def names_and_paths(folder: Path, rng: random.Random) -> None:
    import zoo
    from zoo.data import open_dataset
    from zoo.embeddings import Index

    text = rng.choice(NASTY_TEXTS) + rng.choice(("", ".safetensors", ".keras", "/x", ".csv", ".openai", "clip/"))
    name = rng.choice((text, f"convnext_{text}", f"hf-hub:{text}", str(folder / "file") + text, f"ViT-B-32.{text}"))
    use = rng.choice(
        (
            lambda: zoo.create_model(name),
            lambda: zoo.model_info(name),
            lambda: zoo.list_models(name),
            lambda: zoo.load(name),
            lambda: zoo.create_model("convnext_atto", weights=name),
            lambda: Index.open(name),
            lambda: open_dataset(name, needs="images"),
            lambda: command(rng, name),
        )
    )
    use()


def command(rng: random.Random, name: str) -> None:
    command_line(
        rng.choice(
            (
                *(["info", name], ["list", name], ["index", "info", name], ["cache", "stats", "--cache", name]),
                *(["index", "remove", name, "id"], ["search", name, "words"], ["info", name, "--json"]),
            )
        )
    )


def command_line(argv: list[str]) -> None:
    """Run a command, whose output must be printable lines; ValueError if it prints an error."""
    from zoo import cli

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), contextlib.suppress(SystemExit):
        cli.main(argv)
    for line in (out.getvalue() + err.getvalue()).split("\n"):
        check_line(line)
    if err.getvalue():
        raise ValueError("refused by the command")


def good_onnx(folder: Path) -> None:
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])]
    weight = numpy_helper.from_array(np.ones((4, 2), np.float32), "w")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", inputs, outputs, [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "m.onnx")


FEEDS = (
    *(10**400, "x", None, [], [[]], [[1, 2, 3]], [["a"] * 4], float("nan"), {"x": 5}, {"\x1b": 1}, {}, [[10**400] * 4]),
    *([[1.0, 2.0, 3.0, 4.0]],) * 6,
)


@target(12, good_onnx)
def onnx_files(folder: Path, rng: random.Random) -> None:
    from zoo.export.runtime import OnnxModel

    OnnxModel(folder / "m.onnx", seconds=5, threads=1).predict(rng.choice(FEEDS))


@target(14, lambda _: None, change_names)
def python_api(folder: Path, rng: random.Random) -> None:
    import numpy as np

    from zoo.data.preprocess import PreprocessSpec
    from zoo.embeddings import Index
    from zoo.evaluation import metrics
    from zoo.inference.classifier import Classifier

    bad = rng.choice((np.nan, np.inf, -np.inf))
    vectors = np.ones((6, 4), np.float32)
    vectors[rng.randrange(6), rng.randrange(4)] = bad
    value = rng.choice(NASTY_VALUES)
    labels = np.arange(6) % 4
    uses = {
        "build": lambda: Index.build(vectors, folder / "i"),
        "ids": lambda: Index.build(np.ones((1, 4), np.float32), folder / "j", ids=[value]),
        "classifier": lambda: Classifier(vectors, tuple("abcd")),
        "accuracy": lambda: metrics.top_k_accuracy(vectors, labels),
        "spec": lambda: PreprocessSpec(**{rng.choice(("image_size", "mean", "std", "fill", "crop_pct")): value}),
    }
    name = rng.choice(sorted(uses))
    uses[name]()
    assert name in ("ids", "spec"), f"{name} took {bad}"


# Running.


def sandbox() -> Path:
    return Path(_state["sandbox"])


_state: dict = {"refused": 0, "sandbox": ""}


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Go on after a clear refusal in the block."""
    try:
        yield
    except BaseException as error:
        if not is_clear(error):
            raise
        _state["refused"] += 1


def is_clear(error: BaseException) -> bool:
    if isinstance(error, KeyError) and type(error) is KeyError:
        error = KeyError(*error.args)
        return len(error.args) == 1 and "not in the index" in str(error) and check_line(str(error)) is None
    if not isinstance(error, CLEAR) or (isinstance(error, TypeError) and not _is_raised(error)):
        return False
    if ACCIDENT.search(str(error)) and not any(said in str(error) for said in QUOTING):
        return False
    check_line(" ".join(str(error).split(" ")).replace("\n", " "))
    return True


def _is_raised(error: BaseException) -> bool:
    """Whether a statement of this package raises an error, rather than an operation that fails by accident."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    ours = Path(last.filename).is_relative_to(ROOT) and "site-packages" not in last.filename
    return ours and (last.line or "").startswith("raise")


def check_line(line: str) -> None:
    if len(line) > LONGEST_LINE:
        raise AssertionError(f"a line of {len(line)} characters: {line[:80]!r}")
    raw = [c for c in line if not c.isprintable() and c not in "\u3000\xa0"]
    if raw:
        raise AssertionError(f"raw characters {raw[:3]!r} in {line[:200]!r}")


def tree(folder: Path) -> dict[str, str]:
    """Return {path: digest} of everything in a folder; locks left out."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        elif path.is_file() and path.name != ".lock" and not path.name.endswith(("-shm", "-wal")):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def audit(event: str, arguments: tuple) -> None:
    if _state.get("watching") and event in (
        "os.system",
        "subprocess.Popen",
        "os.exec",
        "os.posix_spawn",
        "socket.connect",
    ):
        _state["events"].append(f"{event} {arguments!r:.200}")


def attempt(name: str, seed: int, good: Path, place: Path) -> tuple[str, str, float]:
    """Try one input; return ("refused", "accepted" or "fault", description, processor seconds)."""
    rng = random.Random(f"{name} {seed}")
    folder, outside = place / "in", place / "outside"
    for path in (folder, outside):
        shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(good, folder, symlinks=True)
    outside.mkdir()
    (outside / "precious.txt").write_text("my thesis\n")
    _state.update(sandbox=str(folder), refused=0, events=[], watching=False)
    before_outside = tree(outside)
    TARGETS[name].change(folder, rng)
    before, start, memory = tree(folder), time.process_time(), peak(reset=True)
    kind, text = "accepted", ""
    _state["watching"] = True
    signal.setitimer(signal.ITIMER_REAL, 4 * SECONDS)
    try:
        quiet = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
        with warnings.catch_warnings(record=True) as told, quiet[0], quiet[1]:
            warnings.simplefilter("always")
            TARGETS[name].use(folder, rng)
        for warning in told:
            if warning.category is UserWarning:
                check_line(str(warning.message))
    except AssertionError as error:
        kind, text = "fault", f"{error}\n{traceback.format_exc()[-1500:]}"
    except BaseException as error:
        try:
            kind, text = ("refused", str(error)) if is_clear(error) else ("fault", traceback.format_exc()[-2500:])
        except AssertionError as unclear:
            kind, text = "fault", f"{unclear}\n{traceback.format_exc()[-1500:]}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        _state["watching"] = False
    seconds, grown = time.process_time() - start, peak() - memory
    kind = "refused" if kind == "accepted" and _state["refused"] else kind
    if seconds > SECONDS or grown > BYTES:
        kind, text = "fault", f"{seconds:.1f} s, {grown / 1e6:.0f} MB; {text}"
    if _state["events"] or tree(outside) != before_outside or (folder / "ran").exists() or Path("ran").exists():
        kind, text = "fault", f"outside: {_state['events']}, {tree(outside)}; {text}"
    if kind == "refused" and name not in MAY_CHANGE and tree(folder) != before:
        kind, text = (
            "fault",
            f"refused, and changed {sorted(set(tree(folder).items()) ^ set(before.items()))[:4]}; {text}",
        )
    return kind, text, seconds


MAY_CHANGE = ("indices", "text_caches", "checkpoints")  # several uses, of which some may be taken


def peak(reset: bool = False) -> int:
    """Return the peak of resident memory in bytes, or with `reset` begin anew."""
    if reset:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def inputs_of(name: str, total: int, names: list[str]) -> int:
    return -(-total * TARGETS[name].weight // sum(TARGETS[other].weight for other in names))


def run(names: list[str], total: int, seed: int, part: int = 0, parts: int = 1) -> Iterator[tuple]:
    """Yield (target, number, kind, text, processor seconds) of each input of a part of the campaign."""
    if not _state.get("hooked"):
        sys.addaudithook(audit)
        _state["hooked"] = True
    signal.signal(signal.SIGALRM, _too_long)
    with tempfile.TemporaryDirectory(prefix="hostile-") as temporary:
        place, here = Path(temporary), Path.cwd()
        os.chdir(place)
        try:
            for name in list(names):
                (place / "good" / name).mkdir(parents=True)
                try:
                    TARGETS[name].good(place / "good" / name)
                except Exception:  # the other targets are tried all the same
                    names = [other for other in names if other != name]
                    yield name, -1, "fault", traceback.format_exc()[-2500:], 0.0
            for name, number in _in_turn(names, total, part, parts):
                yield name, number, *attempt(name, seed * 1_000_000 + number, place / "good" / name, place)
        finally:
            os.chdir(here)


def _in_turn(names: list[str], total: int, part: int, parts: int) -> list[tuple[str, int]]:
    """Return (target, number) of a part's inputs; a run that is stopped early has seen every target in proportion."""
    places = []
    for name in names:
        count = inputs_of(name, total, names)
        places += [(number / count, name, number) for number in range(part, count, parts)]
    return [(name, number) for _, name, number in sorted(places)]


def _too_long(*_) -> None:
    raise AssertionError("did not end")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--targets", "--doors", default=",".join(TARGETS))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--slice", default="1/1", help="3/4 runs only the third of four equal slices of the inputs")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no input after so many")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args()
    names, start = options.targets.split(","), time.time()
    if options.part is not None:
        for found in run(names, options.inputs, options.seed, *map(int, options.part.split("/"))):
            print(json.dumps(found), flush=True)
            if found[2] == "fault":
                print(f"{found[0]} {found[1]}: {found[3]}", file=sys.stderr, flush=True)
            if time.time() - start > options.seconds:
                break
        return 0
    number, slices = map(int, options.slice.split("/"))
    first, parts, children = (number - 1) * options.processes, slices * options.processes, []
    with tempfile.TemporaryDirectory() as temporary:
        logs = [Path(temporary, str(i)) for i in range(options.processes)]
        for i, log in enumerate(logs):
            with log.open("w") as output:  # a file: a full pipe would block the child
                command = [sys.executable, __file__, *sys.argv[1:], "--part", f"{first + i}/{parts}"]
                children.append(subprocess.Popen(command, stdout=output))
        failed = [child.wait() for child in children]
        found = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
    print_table(names, found)
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = usage.ru_utime + usage.ru_stime
    print(f"{time.time() - start:.0f} s with {options.processes} processes, {used:.0f} s of processor time")
    return 1 if any(failed) or any(kind == "fault" for _, _, kind, *_ in found) else 0


def print_table(names: list[str], found: list) -> None:
    print(f"{'target':<26}{'inputs':>8}{'refused':>9}{'accepted':>10}{'faults':>8}{'CPU s':>8}")
    for name in [*names, "all"]:
        mine = [(kind, seconds) for target, _, kind, _, seconds in found if name in (target, "all")]
        counts = Counter(kind for kind, _ in mine)
        row = f"{len(mine):>8}{counts['refused']:>9}{counts['accepted']:>10}{counts['fault']:>8}"
        print(f"{name:<26}{row}{sum(seconds for _, seconds in mine):>8.0f}")


if __name__ == "__main__":
    sys.exit(main())
