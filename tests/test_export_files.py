"""ONNX files: written atomically, checked against the model, reported, read by `OnnxModel`, written by the command."""

import importlib.util
import json
import re
import sys

import keras
import numpy as np
import onnx
import pytest
from export_cases import SIZE, build
from PIL import Image

import zoo
from zoo import cli
from zoo.data.preprocess import PreprocessSpec
from zoo.export import OnnxModel, emit, exporter, to_proto
from zoo.export.command import class_list, export, export_via_keras, read_images, to_text
from zoo.export.runtime import choose_providers
from zoo.export.verify import compare, random_inputs
from zoo.utils.files import sha256

pytestmark = [pytest.mark.backend, pytest.mark.once]


@pytest.fixture
def images(rng):
    return rng.standard_normal((4, *SIZE), np.float32)


def test_the_report_describes_the_file_and_its_checks(tmp_path):
    path = tmp_path / "model.onnx"
    report = zoo.export_onnx(build("convnext v2"), path)
    assert (report.path, report.precision, report.opset, report.tolerance) == (str(path), "float32", 20, 1e-4)
    assert report.bytes == path.stat().st_size
    assert report.sha256 == sha256(path)
    assert report.nodes == len(onnx.load(path).graph.node)
    assert {(check.inputs, check.batch) for check in report.checks} == {
        (kind, batch) for kind in ("random", "photographs") for batch in (1, 3)
    }
    assert 0 < report.error < 1e-5
    assert report.cosine > 0.999999
    assert report.top1 == 1.0
    text = to_text(report)
    assert report.sha256 in text and "All within the tolerance" in text
    assert sum(line.startswith("| random") for line in text.splitlines()) == 2
    assert [path] == list(tmp_path.iterdir())


def test_verify_false_skips_the_checks(tmp_path):
    report = zoo.export_onnx(build("convnext v1"), tmp_path / "model.onnx", verify=False)
    assert report.checks == () and report.error is report.cosine is report.top1 is None
    assert "was not compared" in to_text(report)


def test_the_report_says_why_real_inputs_are_missing(tmp_path, images, monkeypatch):
    path, model = tmp_path / "model.onnx", build("convnext v1")
    assert zoo.export_onnx(model, path).note == ""
    texts = zoo.export_onnx(build("vit pair"), path, part="text")
    assert "random inputs only" in texts.note and "CLIP's vocabulary" in texts.note
    for name in ("sklearn", "sklearn.datasets"):
        monkeypatch.setitem(sys.modules, name, None)
    report = zoo.export_onnx(model, path)
    assert "random inputs only" in report.note and "'convnext-clip-zoo[report]'" in report.note
    assert report.note in to_text(report)
    assert zoo.export_onnx(model, path, calibration=images).note == ""


def test_progress_prints_a_line_per_step(tmp_path, capsys):
    path, model = tmp_path / "model.onnx", build("convnext v1")
    zoo.export_onnx(model, path)
    assert capsys.readouterr().out == ""
    zoo.export_onnx(model, path, progress=True)
    assert capsys.readouterr().out.splitlines() == [
        "Folding convnext_custom",
        f"Writing {path}, float32, opset 20",
        "Checking that the file is valid",
        "Comparing with convnext_custom: random",
        "Comparing with convnext_custom: photographs",
    ]
    zoo.export_onnx(model, path, progress=True, fold=False, verify=False)
    assert capsys.readouterr().out.splitlines() == [f"Writing {path}, float32, opset 20"]


def test_the_report_compares_on_calibration_images(tmp_path, images):
    report = zoo.export_onnx(build("convnext v1"), tmp_path / "model.onnx", precision="int8", calibration=images)
    assert {check.inputs for check in report.checks} == {"random", "given"}
    assert 1e-6 < report.error < 0.1 and 0.999 < report.cosine < 1
    assert report.tolerance == 1e-3


def test_an_existing_file_stays_if_the_new_one_fails(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"existing")
    with pytest.raises(ValueError, match=r"int8 file differs from 'convnext_custom'.*tolerance is 1e-12"):
        zoo.export_onnx(build("convnext v1"), path, precision="int8", tolerance=1e-12)
    assert path.read_bytes() == b"existing"
    assert [path] == list(tmp_path.iterdir())


@pytest.mark.parametrize("tolerance", [0, -1.0, float("nan"), float("inf")])
def test_a_bad_tolerance_is_refused_before_any_work(tolerance, tmp_path):
    words = f"tolerance must be a finite number above 0, got {tolerance}"
    with pytest.raises(ValueError, match=words):
        zoo.export_onnx(None, tmp_path / "model.onnx", tolerance=tolerance)
    for via in ("zoo", "keras"):
        with pytest.raises(ValueError, match=words):
            export(tmp_path / "nothing.keras", tmp_path / "model.onnx", tolerance=tolerance, via=via)


@pytest.mark.parametrize("library", ["onnx", "onnxruntime"])
def test_missing_libraries_are_reported_before_any_work(library, tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"")
    monkeypatch.setitem(sys.modules, library, None)
    missing = rf"ONNX needs {library}. Install with: pip install 'convnext-clip-zoo\[onnx\]'"
    with pytest.raises(ImportError, match=missing):
        zoo.export_onnx(None, path)
    with pytest.raises(ImportError, match=missing):
        export(tmp_path / "nothing.keras", path)
    if library == "onnxruntime":
        assert zoo.export_onnx(build("convnext v1"), path, verify=False).bytes == path.stat().st_size
        with pytest.raises(ImportError, match=missing):
            OnnxModel(path)


def test_a_missing_folder_is_reported(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no folder '.*nowhere' for model.onnx"):
        zoo.export_onnx(None, tmp_path / "nowhere" / "model.onnx")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        zoo.export_onnx(None, tmp_path)


def test_wrong_weights_fail_the_check(tmp_path, monkeypatch):
    model = build("convnext v1")
    other = build("convnext v1")
    other.get_layer("head_fc").bias.assign(np.ones(5, np.float32))
    real = exporter.verification.verify
    monkeypatch.setattr(exporter.verification, "verify", lambda _, path, **options: real(other, path, **options))
    with pytest.raises(ValueError, match="differs from"):
        zoo.export_onnx(model, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_nan_fails_the_check():
    nan = np.full((1, 2), np.nan, np.float32)
    assert not compare("random", 1, "output", nan, np.ones((1, 2))).is_within("float32", 1e-4)
    assert not compare("random", 1, "output", nan, np.ones((1, 2))).is_within("int8", 1e-3)
    assert not compare("random", 1, "output", np.ones((1, 3)), np.ones((1, 2))).is_within("float32", 1e-4)


def test_large_weights_go_to_a_second_file(tmp_path, monkeypatch):
    path, model = tmp_path / "model.onnx", build("convnext pair")
    whole = zoo.export_onnx(model, path)
    inside = OnnxModel(path).predict(random_inputs(model, None, "NHWC"))
    monkeypatch.setattr(exporter, "EXTERNAL_LIMIT", 1000)
    report = zoo.export_onnx(model, path)
    (weights,) = [file for file in tmp_path.iterdir() if file != path]
    assert weights.name.startswith("model.onnx-") and weights.suffix == ".data"
    assert report.bytes == path.stat().st_size + weights.stat().st_size
    assert path.stat().st_size < whole.bytes
    outside = OnnxModel(path).predict(random_inputs(model, None, "NHWC"))
    for name, value in inside.items():
        np.testing.assert_array_equal(outside[name], value)
    assert zoo.export_onnx(model, path).sha256 == report.sha256


def test_the_weights_file_is_removed_if_the_check_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(exporter, "EXTERNAL_LIMIT", 1000)
    with pytest.raises(ValueError, match="differs from"):
        zoo.export_onnx(build("convnext v1"), tmp_path / "model.onnx", tolerance=1e-30)
    assert list(tmp_path.iterdir()) == []


def test_the_weights_file_of_an_existing_model_survives_a_failed_export(tmp_path, images, monkeypatch):
    monkeypatch.setattr(exporter, "EXTERNAL_LIMIT", 1000)
    path, model = tmp_path / "model.onnx", build("convnext v1")
    zoo.export_onnx(model, path)
    before = OnnxModel(path).predict(images)
    with pytest.raises(ValueError, match="differs from"):
        zoo.export_onnx(model, path, tolerance=1e-30)
    np.testing.assert_array_equal(OnnxModel(path).predict(images), before)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("options", "outputs"),
    [
        ({"part": "image"}, ["output"]),
        ({"part": "text", "normalize": True}, ["output"]),
        ({"part": "text", "preprocess": PreprocessSpec(image_size=32)}, ["output"]),
        ({"part": "pair", "preprocess": PreprocessSpec(image_size=32)}, ["image_embeddings", "text_embeddings"]),
        ({"part": "pair", "logits": True}, ["image_embeddings", "logits", "text_embeddings"]),
    ],
)
def test_parts_of_a_pair(options, outputs, tmp_path):
    report = zoo.export_onnx(build("convnext pair"), tmp_path / "part.onnx", **options)
    assert sorted(OnnxModel(tmp_path / "part.onnx").outputs) == outputs
    assert {check.output for check in report.checks} == set(outputs)


def test_zero_shot_part(tmp_path, images):
    import clip

    pair = build("zero-shot")  # any model that is not a pair
    with pytest.raises(ValueError, match="needs a CLIP model"):
        zoo.export_onnx(pair, tmp_path / "part.onnx", part="image")
    pair = clip.create_clip("convnext_v2_atto", image_size=32)
    zoo.export_onnx(pair, tmp_path / "part.onnx", part="zero-shot", class_names=["cat", "dog"])
    scores = OnnxModel(tmp_path / "part.onnx").predict(images)
    np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-5)
    biased = clip.create_clip("convnext_v2_atto", image_size=32, init_logit_bias=-10.0)
    options = {"class_names": ["cat", "dog"], "verify": False}
    zoo.export_onnx(biased, tmp_path / "biased.onnx", part="zero-shot", **options)
    expected = clip.zero_shot_classifier(biased, ["cat", "dog"]).predict(images, verbose=0)
    np.testing.assert_allclose(OnnxModel(tmp_path / "biased.onnx").predict(images), expected, rtol=1e-2)
    for options in ({"part": "zero-shot"}, {"class_names": ["cat"]}):
        with pytest.raises(ValueError, match="need each other"):
            zoo.export_onnx(pair, tmp_path / "part.onnx", **options)
    with pytest.raises(ValueError, match="'image', 'text', 'pair', 'zero-shot', got 'both'"):
        zoo.export_onnx(pair, tmp_path / "part.onnx", part="both")


def test_onnx_model_predicts_in_batches(tmp_path, images):
    model, path = build("convnext v1"), tmp_path / "model.onnx"
    zoo.export_onnx(model, path, verify=False)
    ours = OnnxModel(path, threads=1)
    assert (ours.inputs, ours.outputs) == (["images"], ["output"])
    whole = ours.predict(images)
    assert whole.shape == (4, 5) and whole.dtype == np.float32
    np.testing.assert_allclose(ours.predict(images, batch_size=3), whole, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ours.predict({"images": images.astype(np.float64)}), whole, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(whole, model.predict(images, verbose=0), rtol=1e-4, atol=1e-5)


def test_onnx_model_refuses_wrong_inputs(tmp_path, images):
    path = tmp_path / "model.onnx"
    zoo.export_onnx(build("convnext v1"), path, preprocess=PreprocessSpec(image_size=32))
    model = OnnxModel(path)
    assert model.predict(np.zeros((1, *SIZE), np.uint8)).shape == (1, 5)
    with pytest.raises(ValueError, match="images of model.onnx must be uint8, got float32"):
        model.predict(images)
    with pytest.raises(ValueError, match="uint8 pixels, 0 to 255, got int64"):
        model.predict(np.zeros((1, *SIZE), np.int64))
    with pytest.raises(ValueError, match="takes images, got pictures"):
        model.predict({"pictures": images})
    for shape in ((1, 32, 32, 4), (1, 64, 64, 3), SIZE):
        with pytest.raises(ValueError, match=re.escape(f"must have shape (batch, 32, 32, 3), got {shape}.")):
            model.predict(np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match="at least one"):
        model.predict(np.zeros((0, *SIZE), np.uint8))
    with pytest.raises(ValueError, match="has no NoSuchProvider"):
        OnnxModel(path, providers=["NoSuchProvider"])
    with pytest.raises(FileNotFoundError, match="There is no file"):
        OnnxModel(tmp_path / "nothing.onnx")
    path.write_bytes(b"no protobuf")
    with pytest.raises(ValueError, match="cannot run model.onnx"):
        OnnxModel(path)


def test_command_writes_and_reports(tmp_path, capsys):
    zoo.save(build("convnext v1"), tmp_path / "model.safetensors", preprocess=PreprocessSpec(image_size=32))
    arguments = ["export", str(tmp_path / "model.safetensors"), str(tmp_path / "model.onnx")]
    backend = ["--backend", keras.backend.backend()]
    assert cli.main([*arguments, *backend]) == 0
    out = capsys.readouterr().out
    assert "Comparing with convnext_custom: random\n" in out and "All within the tolerance" in out
    assert cli.main([*arguments, *backend, "--include-preprocessing", "--precision", "int8", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["precision"] == "int8" and len(report["checks"]) == 4
    assert OnnxModel(tmp_path / "model.onnx").predict(np.zeros((1, *SIZE), np.uint8)).shape == (1, 5)


@pytest.fixture
def image_folder(tmp_path, rng):
    """A folder of two PNG files of another size than the model's."""
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(folder / name)
    return folder


def test_command_compares_on_calibration_images(tmp_path, image_folder, capsys):
    zoo.save(build("convnext v1"), tmp_path / "model.safetensors", preprocess=PreprocessSpec(image_size=32))
    words = ["export", str(tmp_path / "model.safetensors"), str(tmp_path / "model.onnx"), "--json"]
    words += ["--backend", keras.backend.backend(), "--calibration"]
    for more in ([], ["--include-preprocessing", "--layout", "NCHW"]):
        assert cli.main([*words, str(image_folder), *more]) == 0
        checks = json.loads(capsys.readouterr().out)["checks"]
        assert [check["inputs"] for check in checks] == ["random", "random", "given", "given"]
    assert cli.main([*words, str(tmp_path / "nowhere")]) == cli.BAD_INPUT
    assert "nowhere' does not exist" in capsys.readouterr().err
    build("convnext v1").save(tmp_path / "model.keras")
    words[1] = str(tmp_path / "model.keras")
    for folder, message in ((tmp_path / "nowhere", "does not exist"), (image_folder, "zoo.save(model")):
        assert cli.main([*words, str(folder)]) == cli.BAD_INPUT
        assert message in capsys.readouterr().err


def test_calibration_images_are_prepared_as_the_file_takes_them(image_folder):
    spec, model = PreprocessSpec(image_size=32), build("vit pair")
    feed = read_images(model, image_folder, spec, False, "NHWC")
    assert feed["images"].shape == (2, *SIZE) and feed["images"].dtype == np.float32
    assert feed["tokens"].shape == (2, 10) and feed["tokens"].dtype == np.int32
    pixels = read_images(model.image_encoder, image_folder, spec, True, "NCHW")["images"]
    assert pixels.shape == (2, 3, 32, 32) and pixels.dtype == np.uint8
    np.testing.assert_allclose(
        feed["images"], (pixels.transpose(0, 2, 3, 1) / np.float32(255) - spec.mean) / spec.std, atol=1e-5
    )
    with pytest.raises(ValueError, match=r"needs a model with an image input; 'text_encoder' has none"):
        read_images(model.text_encoder, image_folder, spec, False, "NHWC")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["convnext_atto", "{}/no/model.onnx"], "There is no folder"),
        (["convnext_tinny", "{}/model.onnx"], "'convnext_tiny'"),
        (["{}/nothing.safetensors", "{}/model.onnx"], "nothing.safetensors"),
        (["{}/model.keras", "{}/model.onnx", "--include-preprocessing"], "zoo.save(model, 'model.saf"),
        (["{}/model.keras", "{}/model.onnx", "--part", "image"], "needs a CLIP model"),
        (["{}/model.keras", "{}/model.onnx", "--tolerance", "1e-30"], "differs from"),
        (["{}/model.keras", "{}/model.onnx", "--via", "keras", "--no-fold", "--logits"], "support --logits, --no-fold"),
    ],
)
def test_command_refuses(words, message, tmp_path, capsys):
    build("convnext v1").save(tmp_path / "model.keras")
    words = [word.format(tmp_path) for word in words]
    assert cli.main(["export", *words, "--backend", keras.backend.backend()]) == cli.BAD_INPUT
    err = capsys.readouterr().err
    assert message in err and err.count("zoo: error:") == 1
    assert not (tmp_path / "model.onnx").exists()


def test_classes_option():
    import clip

    assert class_list(None) == (None, None)
    assert class_list("digits") == (clip.CLASS_NAMES["digits"], clip.TEMPLATES["digits"])
    assert class_list("cat, dog") == (["cat", "dog"], None)
    with pytest.raises(ValueError, match="commas"):
        class_list("cat")


def test_via_keras_checks_the_file_too(tmp_path, monkeypatch):
    """Keras' exporter needs libraries that are not installed with this package, so it is replaced by ours."""
    model, path = build("convnext v1"), tmp_path / "model.onnx"

    def export(file, **options):
        assert options == {"format": "onnx", "verbose": False, "opset_version": 17}
        file.write_bytes(to_proto(emit(model, opset=17)).SerializeToString())

    monkeypatch.setattr(model, "export", export)
    report = export_via_keras(model, path, opset=17)
    assert report.bytes == path.stat().st_size and len(report.checks) == 4
    with pytest.raises(ValueError, match="differs from"):
        export_via_keras(model, path, opset=17, tolerance=1e-30)

    def fail(file, **options):
        raise RuntimeError("an operator is missing")

    monkeypatch.setattr(model, "export", fail)
    with pytest.raises(ValueError, match="exporter failed on 'convnext_custom': RuntimeError: an operator"):
        export_via_keras(model, path, opset=17)
    assert path.stat().st_size == report.bytes


@pytest.mark.parametrize(("backend", "message"), [("tensorflow", r"zoo\[tf2onnx\]"), ("jax", "jax2onnx")])
def test_via_keras_says_what_it_needs_before_it_loads_a_model(tmp_path, monkeypatch, backend, message):
    monkeypatch.setattr(keras.backend, "backend", lambda: backend)
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name.endswith("2onnx") else find(name))
    with pytest.raises(ImportError, match=f"--via keras needs .* on {backend}: pip install .*{message}"):
        export(tmp_path / "nothing.keras", tmp_path / "model.onnx", via="keras")


def test_tensorrt_is_taken_where_onnx_runtime_lists_it(monkeypatch):
    import onnxruntime

    with pytest.raises(ValueError, match=r"no TensorrtExecutionProvider\. Available: "):
        choose_providers("tensorrt")
    listed = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)
    assert choose_providers("tensorrt") == listed
    assert choose_providers() == listed[1:]


@pytest.mark.filterwarnings("ignore")  # of torch's exporter
@pytest.mark.only("torch")  # whose exporter comes with the backend itself
def test_via_keras_exports_a_loaded_model(tmp_path, capsys):
    """Keras' exporter needs a model that was called before; a loaded one was not."""
    x = keras.Input((4,))
    keras.Model(x, keras.layers.Dense(3)(keras.layers.Dense(5, activation="relu")(x))).save(tmp_path / "model.keras")
    words = ["export", str(tmp_path / "model.keras"), str(tmp_path / "model.onnx"), "--backend", "torch"]
    assert cli.main([*words, "--via", "keras", "--opset", "17", "--json"]) == 0
    assert {check["batch"] for check in json.loads(capsys.readouterr().out)["checks"]} == {1, 3}


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"precision": "int8"}, "--precision"),
        ({"include_preprocessing": True}, "--include-preprocessing"),
        ({"layout": "NCHW"}, "--layout"),
        ({"normalize": True}, "--normalize"),
        ({"logits": True}, "--logits"),
        ({"fold": False}, "--no-fold"),
        ({"verify": False}, "--no-verify"),
        ({"calibration": "photos"}, "--calibration"),
    ],
)
def test_via_keras_refuses_other_options(options, flag, tmp_path):
    with pytest.raises(ValueError, match=f"--via keras does not support {flag};"):
        export(tmp_path / "nothing.keras", tmp_path / "model.onnx", via="keras", **options)
