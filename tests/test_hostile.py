"""Every kind of hostile input that once was not refused well, and a part of the campaign of tests/hostile.py.

A refusal is one printable line, quick, and leaves what is on disk as it was.
"""

import contextlib
import gzip
import importlib
import io
import json
import os
import random
import re
import shutil
import sqlite3
import struct
import tarfile
import time
import warnings
import zipfile
from types import SimpleNamespace

import hostile
import keras
import numpy as np
import pytest
from PIL import Image

import convnext
from zoo import cli
from zoo.data import read_shards
from zoo.data.benchmarks import read_benchmark
from zoo.data.preprocess import PreprocessSpec
from zoo.embeddings import Index, TextCache
from zoo.export.runtime import OnnxModel
from zoo.inference.classifier import Classifier
from zoo.inference.encoder import Encoder
from zoo.models.registry import create_model, load, save
from zoo.search.build import add_images, index_add
from zoo.search.embed import open_images
from zoo.training.classify import _write_class_names, create_classifier, create_loss, run
from zoo.training.config import parse_config, read_config
from zoo.training.history import MOST_PANELS, History
from zoo.utils.files import sha256
from zoo.weights.write import write_safetensors

pytestmark = [pytest.mark.backend, pytest.mark.once]

SECRET = "my thesis\n"
REPEAT = b'{"class_name": "RepeatVector", "module": "keras.layers", "config": {"n": 3}}'


@contextlib.contextmanager
def refused(folder, message, errors=(ValueError, OSError, TypeError)):
    """Expect an error in the block, told in a short printable line, in time, with nothing changed in a folder."""
    before, start = hostile.tree(folder), time.process_time()
    with pytest.raises(errors, match=message) as caught, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    assert time.process_time() - start < 5
    hostile.check_line(" ".join(str(caught.value).split("\n")))
    assert hostile.tree(folder) == before


@pytest.fixture
def precious(tmp_path):
    path = tmp_path / "precious"
    path.write_text(SECRET)
    return path


def link(path, target):
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


# Written outside.


@pytest.fixture
def index(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    Index.build(vectors, tmp_path / "index", metadata=[{"n": i} for i in range(40)]).accelerate("int8")
    return tmp_path / "index"


def test_the_lock_of_an_index_is_no_link(index, precious):
    link(index / ".lock", precious)
    with refused(index, "lock is not a regular file; it is a symbolic link"):
        Index.open(index).remove(["1"])
    assert precious.read_text() == SECRET


@pytest.mark.parametrize("kind", ["int8", "hnsw"])
def test_an_accelerator_takes_the_place_of_a_link(index, precious, kind):
    for end in ("bin", "json"):
        link(index / f"accelerator-{kind}.{end}", precious)
    Index.open(index).accelerate(kind)
    assert precious.read_text() == SECRET and not (index / f"accelerator-{kind}.bin").is_symlink()


def test_vectors_of_nan_hide_nothing(index):
    path = next(index.glob("vectors-*.bin"))
    rows = np.fromfile(path, "<f4")
    rows[:8] = np.nan
    rows.tofile(path)
    (index / "accelerator-int8.json").unlink()
    with refused(index, "damaged: 1 of its vectors are NaN or infinite"):
        Index.open(index).search(np.ones(8, np.float32), 5)


# Indices.


def old_index(index, folder):
    """Return a copy of an index in the layout before the catalogue."""
    from old_index import write_old

    with Index.open(index) as opened:
        write_old(opened, folder)
    return folder


def change_manifest(folder, *path, value):
    manifest = json.loads((folder / "manifest.json").read_text())
    target = manifest
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    (folder / "manifest.json").write_text(json.dumps(manifest))


FOREIGN_FACTS = [
    ({"sources": {"": 5}}, "facts.sources is"),
    ({"sources": [["a", 1]]}, "facts.sources is"),
    ({"weights": {"": "x"}}, "facts.weights is"),
    ({"weights": 5}, "facts.weights is 5"),
    ({"runtime": [1]}, r"facts.runtime is \[1\]"),
    ({"weights": "x" * 20_000}, "xxx"),
    ({"weights": "a\x1b[2J\u202e"}, r"\\x1b"),
]


@pytest.mark.parametrize(("facts", "message"), FOREIGN_FACTS)
def test_facts_of_another_type_are_refused_by_the_commands_that_use_them(index, tmp_path, facts, message):
    with Index.open(index) as opened:
        opened.set_facts(facts)
    hostile.command_line(["index", "info", str(index)])
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "a.png")
    with refused(index, message):
        index_add(str(index), str(tmp_path / "photos"))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("facts", "left_out"), "x", "facts.left_out is 'x'"),
        (("facts", "left_out"), {"a": 5}, "facts.left_out is"),
        (("facts",), 5, "facts is 5"),
        (("segments", 0, "name"), "x" * 20_000, "name is 'xxx"),
        (("segments", 0, "name"), "\x1b[2J", r"name is '\\x1b"),
        (("segments", 0, "count"), 10**400, "has more than 64 bits"),
        (("segments", 0), 5, r"segments\[0\] is 5"),
        (("segments",), {}, "segments is {}"),
        (("removed",), [10**10], "removed is 10000000000. Allowed: places of"),
        (("dim",), "8", "dim is '8'"),
        (("model",), {}, "model is {}"),
    ],
)
def test_manifests_of_the_earlier_layout(index, tmp_path, path, value, message):
    folder = old_index(index, tmp_path / "old")
    change_manifest(folder, *path, value=value)
    with refused(folder, message):
        Index.open(folder)


@pytest.mark.parametrize("content", ["[" * 100_000, "[1, 2, 3]", "{}", "\x1b", "[" + "1" * 5000 + "]"])
@pytest.mark.parametrize("name", ["manifest.json", "ids-000001.json", "metadata-000001.json"])
def test_lists_of_the_earlier_layout(index, tmp_path, name, content):
    folder = old_index(index, tmp_path / "old")
    (folder / name).write_text(content)
    with refused(folder, name.split(".")[0]):
        Index.open(folder)


@pytest.mark.parametrize(
    "name", ["manifest.json", "ids-000001.json", "metadata-000001.json", "vectors-000001.bin", "catalogue.sqlite"]
)
def test_a_pipe_in_an_index_does_not_block(index, tmp_path, name):
    folder = index if name.endswith("sqlite") else old_index(index, tmp_path / "old")
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises((ValueError, OSError), match="FIFO|No index at|has None bytes"):
        Index.open(folder)


def test_a_pipe_as_an_accelerator_does_not_block(index):
    for end in ("bin", "json"):
        (index / f"accelerator-int8.{end}").unlink()
        os.mkfifo(index / f"accelerator-int8.{end}")
    assert Index.open(index).accelerators() == []
    assert len(Index.open(index).search(np.ones(8, np.float32), 5)[0]) == 5


def test_the_digest_of_an_accelerator_is_printed_escaped(index):
    path = index / "accelerator-int8.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"digest": "\x1b[2J"}))
    with refused(index, r"its digest is not \\x1b\[2J"):
        Index.open(index).verify()


def test_a_source_is_not_recorded_where_the_metadata_is_damaged(index, tmp_path):
    from PIL import Image

    (tmp_path / "photos").mkdir()
    image = Image.new("RGB", (8, 8), "red")
    image.save(tmp_path / "photos" / "a.png")
    digest = sha256(tmp_path / "photos" / "a.png")
    with Index.open(index) as opened:
        opened.add(np.ones((1, 8), np.float32), ids=["same"], metadata=[{"sha256": digest}])
    with contextlib.closing(sqlite3.connect(index / "catalogue.sqlite", isolation_level=None)) as file:
        file.execute("UPDATE entries SET metadata = 'hello' WHERE id = 'same'")
        file.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    encoder = Encoder(lambda x: x.reshape(len(x), -1)[:, :8] + 1, None, PreprocessSpec(image_size=8), 8)
    opened = Index.open(index)
    with pytest.raises(ValueError, match="metadata 'hello' is not JSON"):
        add_images(opened, SimpleNamespace(encoder=encoder), tmp_path / "photos", open_images(tmp_path / "photos"))
    assert opened.facts == {} and len(opened) == 41


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A folder with a finished run and a `.keras` archive, made once."""
    folder = tmp_path_factory.mktemp("good")
    hostile.good_run(folder)
    hostile.good_keras(folder)
    return folder


@pytest.fixture
def finished(good, tmp_path):
    shutil.copytree(good / "run", tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("name", ["history.csv", "history.jsonl"])
def test_what_a_run_writes_takes_the_place_of_a_link(finished, precious, name):
    link(finished / name, precious)
    assert hostile.fit(finished, resume=True).finished
    assert precious.read_text() == SECRET and not (finished / name).is_symlink()


def test_saved_models_reports_and_plots_take_the_place_of_a_link(tmp_path, precious):
    from zoo.training.result import write_model
    from zoo.utils.report import write_page

    model = convnext.create_convnext_v1(hostile.tiny_row(), 3, (32, 32, 3))
    custom = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    names = ("model.safetensors", "model.keras", "page.html", "history.jsonl", "curves.png", "classes.json")
    for name in names:
        link(tmp_path / name, precious)
    write_model(model, tmp_path, None)
    write_model(custom, tmp_path, None)
    write_page(tmp_path / "page.html", "title", "")
    history = History(tmp_path / "history.jsonl")
    for step in range(2):
        history.add(epoch=1, step=step, loss=0.5)
    assert history.draw(tmp_path / "curves.png")
    _write_class_names(["a", "b"], tmp_path)
    assert precious.read_text() == SECRET and not any(path.is_symlink() for path in tmp_path.iterdir())
    assert all((tmp_path / name).stat().st_size for name in names)


@pytest.mark.parametrize("name", ["checkpoints", "checkpoints/checkpoint-000001", ".lock"])
def test_folders_and_locks_of_a_run_are_no_links(finished, tmp_path, precious, name):
    target = tmp_path / "theirs"
    target.mkdir()
    (target / ".tmp-mine").write_text(SECRET)
    place = sorted((finished / "checkpoints").iterdir())[-1] if name.endswith("1") else finished / name
    link(place, precious if name == ".lock" else target)
    with refused(finished, "is a symbolic link"):
        hostile.fit(finished, resume=True)
    assert (target / ".tmp-mine").read_text() == SECRET == precious.read_text()


# Checkpoints.


def rewrite(run_folder, name, content):
    """Replace a file of every checkpoint, with the right digest."""
    for checkpoint in (run_folder / "checkpoints").iterdir():
        (checkpoint / name).write_bytes(content)
        hostile.write_digests(checkpoint)


def progress(**changes):
    facts = {"identity": {}, "position": 2, "left_out": []} | changes
    return json.dumps({key: value for key, value in facts.items() if value is not ...}).encode()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("progress.json", progress(position=2**40), "progress.json|is at step"),
        ("progress.json", progress(position=10**400), "has more than 64 bits"),
        ("progress.json", progress(position=-1), "position is -1"),
        ("progress.json", progress(position="\x1b[2J"), r"position is '\\x1b\[2J'"),
        ("progress.json", progress(position=...), "lacks position"),
        ("progress.json", progress(identity=...), "lacks identity"),
        ("progress.json", progress(left_out=...), "lacks left_out"),
        ("progress.json", progress(left_out="x"), "left_out is 'x'"),
        ("progress.json", progress(left_out=[99]), "leaves out 1 batches"),
        ("progress.json", b"[" * 100_000, "nested more than 64"),
        ("history.jsonl", b"hello\n", "history.jsonl is not JSON"),
        ("history.jsonl", b'{"epoch": 1, "step": "x"}\n', "step is 'x'"),
        ("history.jsonl", b'{"epoch": 1, "step": 1, "loss": {}}\n', "loss is {}"),
        ("state.safetensors", b"null", "not a valid safetensors file"),
    ],
)
def test_an_intact_checkpoint_of_other_content_is_refused(finished, name, content, message):
    identity = json.loads(next((finished / "checkpoints").glob("*/progress.json")).read_text())["identity"]
    if name == "progress.json" and b'"identity": {}' in content:
        content = content.replace(b'"identity": {}', f'"identity": {json.dumps(identity)}'.encode())
    rewrite(finished, name, content)
    with refused(finished, message):
        hostile.fit(finished, resume=True)


def test_a_random_state_that_no_generator_has_is_refused(finished):
    from safetensors.numpy import load_file

    state = load_file(next((finished / "checkpoints").glob("*/state.safetensors")))
    write_safetensors(finished / "s", state | {"random/cpu": np.zeros(0, np.uint8)}, keep_dtypes=True)
    content = (finished / "s").read_bytes()
    (finished / "s").unlink()
    rewrite(finished, "state.safetensors", content)
    if keras.backend.backend() == "torch":
        with refused(finished, "random generator"):
            hostile.fit(finished, resume=True)


def test_the_panels_of_a_chart_are_counted(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("zoo.training.history.plot_panels", lambda _, panels: drawn.extend(panels))
    history = History(tmp_path / "history.jsonl")
    for step in range(2):
        history.add(epoch=1, step=step, **{f"metric {i}": 0.5 for i in range(3000)})
    assert history.draw(tmp_path / "curves.png") and len(drawn) == MOST_PANELS


# Pipes.


@pytest.mark.parametrize("name", ["manifest.json", "progress.json", "state.safetensors", "history.jsonl"])
def test_a_pipe_in_a_checkpoint_does_not_block(finished, name):
    for checkpoint in (finished / "checkpoints").iterdir():
        (checkpoint / name).unlink()
        os.mkfifo(checkpoint / name)
    with pytest.warns(UserWarning, match="FIFO"), contextlib.suppress(ValueError, OSError):
        hostile.fit(finished, resume=True)


# Configurations.


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden_sizes": [2**20] * 4, "depths": [3] * 4}, "weights; at most"),
        ({"depths": [800] * 4, "hidden_sizes": [4] * 4}, "3200 blocks"),
        ({"image_size": 10**6}, "image_size is 1000000; at most 2048"),
        ({"hidden_act": "\x1b[2J"}, r"\\x1b\[2J"),
        ({"depths": "x" * 20_000}, "depths is 'xxx"),
    ],
)
def test_a_model_without_bounds_is_refused_before_it_is_built(tmp_path, values, message):
    with refused(tmp_path, message):
        create_classifier(parse_config({"model_type": "convnextv2", "train_data": "d", **values}), 3)


@pytest.mark.parametrize("content", hostile.NASTY_JSON)
def test_a_configuration_that_is_no_json_object_is_refused(tmp_path, content):
    (tmp_path / "c.json").write_bytes(content.encode("latin-1"))
    with refused(tmp_path, "c.json"):
        read_config(tmp_path / "c.json")


def test_a_configuration_names_code_only_with_allow_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "theirs.py").write_text("open('ran', 'w')\ndef loss(t, l): return l")
    for loss in ("idlelib.idle.x", "theirs.loss"):
        (tmp_path / "c.json").write_text(json.dumps({"train_data": "nowhere", "loss": loss}))
        with refused(tmp_path, rf"c\.json: loss is '{loss}', code .*--allow-code"):
            run("c.json")
    with refused(tmp_path, "nowhere"):
        run("c.json", allow_code=True)
    for name, message in (("os.name", "must be a function"), ("no.such", "cannot be imported")):
        with pytest.raises(ValueError, match=message):
            create_loss(parse_config({"train_data": "d", "loss": name}))


# Archives.


def keras_file(good, folder, change=None, config=None, drop=()):
    with zipfile.ZipFile(good / "model.keras") as archive:
        members = {name: archive.read(name) for name in archive.namelist() if name not in drop}
    if change is not None:
        parsed = json.loads(members["config.json"])
        change(parsed)
        members["config.json"] = json.dumps(parsed).encode()
    if config is not None:
        members["config.json"] = config
    with zipfile.ZipFile(folder / "m.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return folder / "m.keras"


def dense(value):
    def change(parsed):
        next(x for x in parsed["config"]["layers"] if x["name"] == "head_fc")["config"]["units"] = value

    return change


def strange_layer(parsed):
    parsed["config"]["layers"][1].update(module=0.5, name="\x1b[2J")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drop": ("config.json",)}, "no item named 'config.json'"),
        ({"config": b'{"module": "clip", "class_name": "CLIP", "config": {}}'}, "not a model that Keras can load"),
        ({"config": REPEAT}, "m.keras holds a RepeatVector"),
        ({"change": strange_layer}, "not a model that Keras can load"),
        ({"change": dense(10**18)}, "units in config.json is 1000000000000000000; at most"),
        ({"config": b"[" * 100_000}, "nested more than 64"),
        ({"config": b" " * (80 << 20)}, "would unpack into"),
    ],
)
def test_keras_archives(good, tmp_path, options, message):
    path = keras_file(good, tmp_path, **options)
    with refused(tmp_path, message):
        load(path)


@pytest.mark.parametrize("name", ["config.json", "model.weights.h5"])
def test_a_keras_archive_with_a_flipped_bit(good, tmp_path, name):
    path = keras_file(good, tmp_path)
    with zipfile.ZipFile(path) as archive:
        place = archive.getinfo(name).header_offset + 30 + len(name) + 12  # of its compressed bytes
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)
    with refused(tmp_path, "m.keras is not"):
        load(path)


@pytest.mark.parametrize(
    ("shape", "chunk"), [((1 << 31,), 1 << 20), ((1,), 1 << 28)], ids=["the array", "a chunk larger than the array"]
)
def test_a_keras_archive_whose_arrays_unpack_without_end_is_refused(good, tmp_path, shape, chunk):
    import h5py

    path = keras_file(good, tmp_path)
    with zipfile.ZipFile(path) as archive:
        config = archive.read("config.json")
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file.create_dataset("x", shape, "f4", maxshape=(None,), chunks=(chunk,), compression="gzip")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", config)
        archive.writestr("model.weights.h5", content.getvalue())
    with refused(tmp_path, "would unpack into"):
        load(path)


def test_a_cifar_archive_with_an_endless_name_is_refused(tmp_path):
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = b"L", 1 << 30
    with gzip.open(tmp_path / "c.tar.gz", "wb", compresslevel=1) as file:
        file.write(header.tobuf())
        for _ in range(1 << 7):
            file.write(bytes(1 << 20))
    with refused(tmp_path, "damaged archive"):
        read_benchmark("cifar10", tmp_path / "c.tar.gz")


def test_a_cifar_batch_that_would_fill_memory_is_refused(tmp_path):
    (tmp_path / "test_batch").write_bytes(b"\x80\x02N" + b"r" + struct.pack("<I", 1 << 30) + b".")
    with refused(tmp_path, "not a CIFAR batch"):
        read_benchmark("cifar10", tmp_path / "test_batch")


def test_labels_of_mnist_beyond_32_bits_are_refused(tmp_path):
    np.savez(tmp_path / "m.npz", x_test=np.zeros((1, 28, 28), np.uint8), y_test=np.array([2**40]))
    with refused(tmp_path, "labels .* are not integers"):
        read_benchmark("mnist", tmp_path / "m.npz")


# Preprocessing.


def test_preprocessing_far_larger_than_the_model_is_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    model = convnext.create_convnext_v1(hostile.tiny_row(), 3, (32, 32, 3))
    save(model, path, preprocess=PreprocessSpec(image_size=5000))
    with refused(tmp_path, r"preprocess.image_size is \[5000, 5000\]. Allowed: at most 262,144 pixels"):
        load(path)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("preprocessor_config.json", {"size": {"shortest_edge": 10**6}}, "input_shape is"),
        ("config.json", {"hidden_sizes": [2**20] * 4}, "a model that"),
        ("config.json", {"depths": [2**40]}, "depths is 1099511627776"),
        ("config.json", {"hidden_act": "\x1b[2J"}, r"\\x1b\[2J"),
    ],
)
def test_hub_folders_without_bounds(tmp_path, name, change, message):
    hostile.good_hub(tmp_path)
    facts = json.loads((tmp_path / name).read_text())
    (tmp_path / name).write_text(json.dumps(facts | change))
    with refused(tmp_path, message):
        load(tmp_path)


# Shards.


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{01..00}.tar", "matches no shard"),
        ("{,}" * 2000, "2000 braces"),
        ("{,}" * 19, "19 braces"),
        ("{0..9999999}.tar", "counts to"),
        ("{0..999}{0..999}{0..999}", "names 1,000,000,000 shards"),
        ("x" * 20_000, "no shard"),
        ("\x1b[2J", r"no shard '\\x1b\[2J'"),
    ],
)
def test_patterns(tmp_path, pattern, message):
    with refused(tmp_path, message):
        read_shards(pattern)


def test_a_label_is_written_in_digits(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as shard:
        for name, label in (("a", b"1_0"), ("b", b"3"), ("c", b"\xd9\xa3"), ("d", b"9" * 400)):
            hostile.add(shard, f"{name}.png", b"x")
            hostile.add(shard, f"{name}.cls", label)
    assert list(read_shards(tmp_path / "0.tar").labels) == [-1, 3, -1, -1]


# Classifiers, ONNX files.


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ('{"class_names": ["a"], "scale": 1' + "0" * 400 + ', "bias": 0}', "more than 64 bits"),
        ('{"class_names": ["a"], "scale": NaN, "bias": 0}', "NaN is not a number"),
        ('{"class_names": 5, "scale": 1, "bias": 0}', "class_names is 5"),
        ('{"scale": 1, "bias": 0}', "lacks class_names"),
        ("[" * 1000, "nested"),
    ],
)
def test_classifiers(tmp_path, facts, message):
    metadata = {"format": "convnext-clip-zoo classifier", "classifier": facts}
    write_safetensors(tmp_path / "c.safetensors", {"matrix": np.ones((2, 1), np.float32)}, metadata)
    with refused(tmp_path, message):
        Classifier.load(tmp_path / "c.safetensors")


def test_a_classifier_of_nan_is_refused(tmp_path):
    with refused(tmp_path, "NaN or infinity"):
        Classifier(np.full((2, 1), np.nan, np.float32), ("a",))


def onnx_file(path, nodes, inputs=("x",), attributes=()):
    from onnx import TensorProto, helper, save

    value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2])  # noqa: E731
    graph = helper.make_graph(nodes, "g", [value(name) for name in inputs], [value("y")], list(attributes))
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_onnx_files_and_feeds(tmp_path, capfd):
    from onnx import TensorProto, helper, numpy_helper

    node = helper.make_node
    constant = numpy_helper.from_array(np.ones((1, 2), np.float32), "c")
    alone = onnx_file(tmp_path / "alone.onnx", [node("Identity", ["c"], ["y"])], (), [constant])
    with refused(tmp_path, "has 0 inputs"):
        OnnxModel(alone)
    side = numpy_helper.from_array(np.array([2**20, 2**20]), "s")
    large = [node("ConstantOfShape", ["s"], ["z"]), node("MatMul", ["x", "z"], ["y"])]
    large = onnx_file(tmp_path / "large.onnx", large, attributes=[side])
    with refused(tmp_path, "ONNX Runtime cannot run"):
        OnnxModel(large).predict(np.ones((1, 2), np.float32))
    body = helper.make_graph(
        [node("Identity", ["go"], ["on"]), node("Identity", ["a"], ["b"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("a", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("b", TensorProto.FLOAT, None),
        ],
    )
    true = numpy_helper.from_array(np.array(True), "t")
    torn = numpy_helper.from_array(np.ones((1, 2), np.float32), "\x1b[2J" + "n" * 100_000)
    torn.raw_data = b"x"
    torn = onnx_file(tmp_path / "torn.onnx", [node("Add", ["x", torn.name], ["y"])], attributes=[torn])
    with refused(tmp_path, "ONNX Runtime cannot run torn.onnx"):
        OnnxModel(torn)
    assert "\x1b" not in capfd.readouterr().err
    loop = onnx_file(tmp_path / "loop.onnx", [node("Loop", ["", "t", "x"], ["y"], body=body)], attributes=[true])
    with refused(tmp_path, "did not end in 0.5 s"):
        OnnxModel(loop, seconds=0.5, threads=1).predict(np.ones((1, 2), np.float32))
    good = OnnxModel(onnx_file(tmp_path / "good.onnx", [node("Identity", ["x"], ["y"])]))
    for feed in (10**400, [[10**400, 1]], "x", None, {"\x1b": [[1.0, 2.0]]}, []):
        with refused(tmp_path, "good.onnx|same number of rows"):
            good.predict(feed)
    assert good.predict(np.ones((3, 2), np.float32)).shape == (3, 2)


# Text caches.


@pytest.mark.parametrize("statement", hostile.HOSTILE_SQL[:6])
def test_a_cache_with_another_schema_is_refused_by_every_command(tmp_path, statement):
    hostile.good_cache(tmp_path)
    path = tmp_path / "texts.sqlite"
    file = sqlite3.connect(path, isolation_level=None)
    file.executescript(statement)
    file.close()
    for command in (["stats"], ["verify"], ["clear"]):
        with refused(tmp_path, "refused"):
            hostile.command_line(["cache", *command, "--cache", str(path)])
    with refused(tmp_path, "not a text cache"):
        TextCache(path).embed("space", ["text 1"], hostile.unit_vectors)
    with refused(tmp_path, "refused"):
        hostile.command_line(["cache", "import", str(path), "--cache", str(tmp_path / "own.sqlite")])


# Messages.


@pytest.mark.parametrize(
    "argv",
    [
        ["info", "\x1b[2J"],
        ["info", "\x1b[2J.safetensors"],
        ["search", "\u202e", "x", "--where", "a\x1bb"],
        ["load", "x" * 9999],
    ],
)
def test_commands_print_no_raw_characters(tmp_path, monkeypatch, argv):
    monkeypatch.chdir(tmp_path)
    with refused(tmp_path, "refused"):
        hostile.command_line(argv)


def test_an_empty_name_of_weights_is_refused(tmp_path):
    with refused(tmp_path, "weights is empty; it must be a file or a tag"):
        create_model("convnext_atto", weights="")


def test_ids_are_printed_escaped(tmp_path):
    ids = ["a\x1b[2J", "b\u202e\x07"]
    Index.build(np.ones((2, 8), np.float32), tmp_path / "index", ids=ids).close()
    hostile.command_line(["index", "duplicates", str(tmp_path / "index")])
    with refused(tmp_path, "refused"):
        hostile.command_line(["index", "remove", str(tmp_path / "index"), "\x1b[2J"])


def test_output_is_escaped():
    assert json.loads(cli._to_json({"id": "a\x1b\u202e\x85"})) == {"id": "a\x1b\u202e\x85"}
    assert cli._to_json("a\x1b\u202e\x9b").isprintable()


# The campaign.


def test_a_part_of_the_campaign(tmp_path):
    names = [name for name in hostile.TARGETS if name not in ("pair_weights", "keras_files", "onnx_files")]
    faults = [found for found in hostile.run(names, 160, seed=7) if found[2] == "fault"]
    assert not faults, faults[0]


def test_good_inputs_are_accepted(tmp_path):
    names = ("own_weights", "hub_folders", "open_clip_folders", "keras_files", "images", "tables", "indices")
    for name in (*names, "onnx_files", "text_caches", "training_configurations"):
        folder = tmp_path / name
        folder.mkdir()
        hostile.TARGETS[name].good(folder)
        hostile._state.update(refused=0)
        if name == "onnx_files":
            OnnxModel(folder / "m.onnx").predict(np.ones((1, 4), np.float32))
        elif name != "text_caches":
            hostile.TARGETS[name].use(folder, random.Random(1))
        assert hostile._state["refused"] == 0, name


def test_every_limit_on_the_security_page_is_a_constant():
    page = (hostile.ROOT / "docs" / "security.md").read_text()
    table = page.partition("\n## Limits\n")[2].partition("\n## ")[0]
    names = re.findall(r"`(zoo\.[\w.]+)\.([A-Z_]+)`", table)
    assert len(names) > 30
    for module, constant in names:
        assert hasattr(importlib.import_module(module), constant), (module, constant)
