"""Every kind of hostile input that once was not refused well, and a part of the campaign of tests/hostile.py.

A refusal is one printable line, quick, and leaves what is on disk as it was.
"""

import contextlib
import gzip
import io
import json
import os
import random
import shutil
import sqlite3
import struct
import tarfile
import time
import warnings
import zipfile

import hostile
import keras
import numpy as np
import pytest

import convnext
from zoo import cli
from zoo.data import read_shards
from zoo.data.benchmarks import read_cifar, read_mnist
from zoo.embeddings import Index, TextCache
from zoo.export.runtime import OnnxModel
from zoo.inference.classifier import Classifier
from zoo.models.registry import load
from zoo.training.classify import create_classifier, create_loss, run
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
    Index.build(vectors, tmp_path / "index", metadata=[{"n": i} for i in range(40)]).accelerate("float16")
    return tmp_path / "index"


def test_the_lock_of_an_index_is_no_link(index, precious):
    link(index / ".lock", precious)
    with refused(index, "lock is not a regular file; it is a symbolic link"):
        Index.open(index).remove(["1"])
    assert precious.read_text() == SECRET


@pytest.mark.parametrize("kind", ["float16", "hnsw"])
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
    (index / "accelerator-float16.json").unlink()
    with refused(index, "damaged: 1 of its vectors are NaN or infinite"):
        Index.open(index).search(np.ones(8, np.float32), 5)


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
    for name in ("model.safetensors", "model.keras", "page.html", "history.jsonl"):
        link(tmp_path / name, precious)
    write_model(model, tmp_path, None)
    write_model(custom, tmp_path, None)
    write_page(tmp_path / "page.html", "title", "")
    History(tmp_path / "history.jsonl").add(epoch=1, step=1, loss=0.5)
    assert precious.read_text() == SECRET and not any(path.is_symlink() for path in tmp_path.iterdir())


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
        manifest = json.loads((checkpoint / "manifest.json").read_text())
        manifest["sha256"][name] = sha256(checkpoint / name)
        (checkpoint / "manifest.json").write_text(json.dumps(manifest))


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
    (tmp_path / "c.json").write_text(json.dumps({"train_data": "nowhere", "loss": "theirs.loss"}))
    with refused(tmp_path, r"c\.json: loss is 'theirs\.loss', code .*--allow-code"):
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drop": ("config.json",)}, "no item named 'config.json'"),
        ({"config": b'{"module": "clip", "class_name": "CLIP", "config": {}}'}, "not a model that Keras can load"),
        (
            {"config": b'{"class_name": "RepeatVector", "module": "keras.layers", "config": {"n": 3}}'},
            "m.keras holds a RepeatVector",
        ),
        ({"change": dense(10**18)}, "units in config.json is 1000000000000000000; at most"),
        ({"config": b"[" * 100_000}, "nested more than 64"),
        ({"config": b" " * (80 << 20)}, "would unpack into"),
    ],
)
def test_keras_archives(good, tmp_path, options, message):
    path = keras_file(good, tmp_path, **options)
    with refused(tmp_path, message):
        load(path)


def test_a_keras_archive_whose_arrays_unpack_without_end_is_refused(good, tmp_path):
    import h5py

    path = keras_file(good, tmp_path)
    with zipfile.ZipFile(path) as archive:
        config = archive.read("config.json")
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file.create_dataset("x", (1 << 31,), "f4", chunks=(1 << 20,), compression="gzip")
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
        read_cifar(tmp_path / "c.tar.gz", "cifar10")


def test_a_cifar_batch_that_would_fill_memory_is_refused(tmp_path):
    (tmp_path / "test_batch").write_bytes(b"\x80\x02N" + b"r" + struct.pack("<I", 1 << 30) + b".")
    with refused(tmp_path, "not a CIFAR batch"):
        read_cifar(tmp_path / "test_batch", "cifar10")


def test_labels_of_mnist_beyond_32_bits_are_refused(tmp_path):
    np.savez(tmp_path / "m.npz", x_test=np.zeros((1, 28, 28), np.uint8), y_test=np.array([2**40]))
    with refused(tmp_path, "labels .* are not integers"):
        read_mnist(tmp_path / "m.npz")


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


def test_onnx_files_and_feeds(tmp_path):
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
    "argv", [["info", "\x1b[2J"], ["search", "\u202e", "x", "--where", "a\x1bb"], ["load", "x" * 9999]]
)
def test_commands_print_no_raw_characters(tmp_path, monkeypatch, argv):
    monkeypatch.chdir(tmp_path)
    with refused(tmp_path, "refused"):
        hostile.command_line(argv)


def test_output_is_escaped():
    assert json.loads(cli._to_json({"id": "a\x1b\u202e\x85"})) == {"id": "a\x1b\u202e\x85"}
    assert cli._to_json("a\x1b\u202e\x9b").isprintable()


# The campaign.


def test_a_part_of_the_campaign(tmp_path):
    names = [name for name in hostile.DOORS if name not in ("pair_weights", "keras_files", "onnx_files")]
    faults = [found for found in hostile.run(names, 160, seed=7) if found[2] == "fault"]
    assert not faults, faults[0]


def test_good_inputs_are_accepted(tmp_path):
    for name in ("own_weights", "images", "tables", "indices", "text_caches", "onnx_files"):
        folder = tmp_path / name
        folder.mkdir()
        hostile.DOORS[name].good(folder)
        hostile._state.update(refused=0)
        if name == "onnx_files":
            OnnxModel(folder / "m.onnx").predict(np.ones((1, 4), np.float32))
        elif name != "text_caches":
            hostile.DOORS[name].use(folder, random.Random(1))
        assert hostile._state["refused"] == 0, name
