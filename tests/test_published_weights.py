"""Published weights: folders, repositories and tags load as the libraries that wrote them compute; no network."""

import dataclasses
import json
import re
import shutil
import warnings

import keras
import numpy as np
import pytest
from helpers import declare_torchvision_operators, predict

import clip
import convnext
import zoo
import zoo.weights.published
from zoo.data.preprocess import OPENAI_STD, PreprocessSpec
from zoo.models import names
from zoo.models.conversion import convert
from zoo.utils.files import sha256
from zoo.weights import ModelConfig, config, export_tensors, load, native, read_checkpoint, write_safetensors
from zoo.weights.published import Weights, find_weights
from zoo.weights.sources import open_clip, timm

pytestmark = [pytest.mark.backend, pytest.mark.once]

TOLERANCE = 2e-5
MODEL_CFG = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
}
PREPROCESS_CFG = {
    **{"mean": [0.5, 0.4, 0.3], "std": list(OPENAI_STD)},
    **{"interpolation": "bilinear", "resize_mode": "squash"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pair of open_clip's own, with random weights, in the layout of its repositories; and the model itself."""
    torch = pytest.importorskip("torch")
    declare_torchvision_operators()
    CLIP = pytest.importorskip("open_clip.model").CLIP
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = CLIP(**MODEL_CFG).eval()
    path = tmp_path_factory.mktemp("pair")
    save_file(
        {key: value.contiguous() for key, value in model.state_dict().items()}, path / "open_clip_model.safetensors"
    )
    values = {"model_cfg": MODEL_CFG, "preprocess_cfg": PREPROCESS_CFG}
    (path / "open_clip_config.json").write_text(json.dumps(values))
    return path, model


def assert_same_pair(model, theirs, rng, size=64):
    import torch

    images = rng.standard_normal((2, size, size, 3)).astype("float32")
    tokens = clip.tokenize(["a cat", "a photo of a dog"])
    ours = model.predict({"images": images, "tokens": tokens}, verbose=0)
    with torch.no_grad():
        expected = {
            "image_embeddings": theirs.encode_image(torch.from_numpy(images.transpose(0, 3, 1, 2)), normalize=True),
            "text_embeddings": theirs.encode_text(torch.from_numpy(tokens).long(), normalize=True),
        }
    for key, value in expected.items():
        value = value.numpy()
        assert np.abs(ours[key] - value).max() / np.abs(value).max() <= TOLERANCE, key


def same_weights(one, other):
    for first, second in zip(one.weights, other.weights, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(first), keras.ops.convert_to_numpy(second))


# folders and repositories


def test_a_folder_in_open_clips_layout(folder, rng):
    path, theirs = folder
    loaded = zoo.load(path)
    assert_same_pair(loaded.model, theirs, rng)
    assert loaded.info.preprocess == PreprocessSpec(64, (0.5, 0.4, 0.3), OPENAI_STD, "bilinear", "squash")
    assert loaded.transform(np.zeros((9, 12, 3), np.uint8)).shape == (64, 64, 3)
    assert loaded.model.architecture["activation"] == "quick_gelu"
    assert loaded.tokenizer is clip.tokenize
    same_weights(zoo.load(path / "open_clip_model.safetensors").model, loaded.model)


def test_a_repository_of_the_hub(folder, hub_cache):
    path, _ = folder
    for name in ("open_clip_config.json", "open_clip_model.safetensors"):
        hub_cache.put("owner/pair", name, (path / name).read_bytes())
    loaded = zoo.load("hf-hub:owner/pair")
    same_weights(loaded.model, zoo.load(path).model)
    assert native.recall(loaded.model).source["sha256"] == sha256(path / "open_clip_model.safetensors")
    with pytest.raises(ConnectionError, match="owner/other"):
        zoo.load("hf-hub:owner/other")


def test_a_damaged_download_is_refused(folder, hub_cache):
    path, _ = folder
    hub_cache.put("owner/pair", "open_clip_config.json", (path / "open_clip_config.json").read_bytes())
    content = (path / "open_clip_model.safetensors").read_bytes()
    link = hub_cache.put("owner/pair", "open_clip_model.safetensors", content)
    link.resolve().write_bytes(content[:-1000])
    with pytest.raises(ValueError, match="the hub's announcement says"):
        zoo.load("hf-hub:owner/pair")


def test_a_torch_checkpoint_in_the_layout(folder, tmp_path):
    torch = pytest.importorskip("torch")
    path, theirs = folder
    shutil.copy(path / "open_clip_config.json", tmp_path)
    torch.save(theirs.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    same_weights(zoo.load(tmp_path).model, zoo.load(path).model)


def test_timms_layout_with_and_without_a_classifier(tmp_path, capfd):
    source = convnext.create_convnext_v2("atto", 7, (64, 64, 3), stem_stride=4)
    write_safetensors(tmp_path / "model.safetensors", export_tensors(source, timm.CONVNEXT_CONV_MLP), {})
    said = {"input_size": [3, 64, 64], "crop_pct": 0.9, "interpolation": "bicubic", "license": "cc-by-nc-4.0"}
    said |= {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    config = {"architecture": "convnextv2_atto", "num_classes": 7, "pretrained_cfg": said}
    (tmp_path / "config.json").write_text(json.dumps(config))
    load._print_once.cache_clear()
    loaded = zoo.load(tmp_path)
    same_weights(loaded.model, source)
    assert loaded.info.preprocess.crop_pct == 0.9 and loaded.info.licence == "CC-BY-NC-4.0"
    zoo.load(tmp_path)
    said_once = [line for line in capfd.readouterr().err.splitlines() if "CC-BY-NC-4.0" in line]
    assert said_once == ["model.safetensors: its weights are under CC-BY-NC-4.0 (not for commercial use)."]

    tensors = {key: value for key, value in export_tensors(source, timm.CONVNEXT_CONV_MLP).items() if "head" not in key}
    write_safetensors(tmp_path / "model.safetensors", tensors, {})
    trunk = zoo.load(tmp_path)
    assert trunk.model.output_shape == (None, 2, 2, 320)
    with pytest.warns(UserWarning) as warned:
        fresh = zoo.create_model("convnextv2_atto", weights=tmp_path, num_classes=3)
    lines = sorted(str(line.message) for line in warned if "newly initialized" in str(line.message))
    assert lines == [
        "model.safetensors: head_fc is newly initialized: the file has no classes, and 3 are requested.",
        "model.safetensors: head_norm is newly initialized: the file has no norm after the pooling.",
    ]
    assert fresh.output_shape == (None, 3)


def test_transformers_layout(tmp_path, rng):
    torch = pytest.importorskip("torch")
    declare_torchvision_operators()
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        depths=[1, 2], hidden_sizes=[8, 16], layer_type="basic", embedding_size=4, num_labels=5
    )
    theirs = transformers.ResNetForImageClassification(config).eval()
    theirs.save_pretrained(tmp_path)
    model = zoo.load(tmp_path).model
    images = rng.standard_normal((2, 64, 64, 3)).astype("float32")
    with torch.no_grad():
        logits = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2))).logits
    expected = torch.softmax(logits, dim=-1).numpy()
    assert np.abs(predict(model, images) - expected).max() / expected.max() <= TOLERANCE


def test_a_configuration_that_promises_more_than_the_file_has(folder, tmp_path):
    shutil.copytree(folder[0], tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"]["width"] = 1 << 18
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"a model that \d+ tensors with .* numbers can fill; this one has"):
        zoo.load(tmp_path)


def test_a_foreign_file_with_nan_inside(folder, tmp_path):
    from safetensors.numpy import load_file

    shutil.copytree(folder[0], tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "open_clip_model.safetensors")
    tensors["visual.proj"] = tensors["visual.proj"].copy()
    tensors["visual.proj"][3, 5] = np.nan
    write_safetensors(tmp_path / "open_clip_model.safetensors", tensors, {})
    with pytest.raises(ValueError, match=r"visual\.proj: 1 of 2048 values are NaN"):
        zoo.load(tmp_path)


# tags


SMALL = clip.Pair(32, 64, clip.ViT(64, 2, 16), clip.Text(64, 1, 2))


@pytest.fixture
def published(folder, hub_cache, monkeypatch):
    """A row of the table for the folder's weights, under a name of its own, in the cache."""
    path, _ = folder
    row = Weights(
        "clip/small",
        "openai",
        repository="owner/pair",
        files=("open_clip_model.safetensors",),
        licence="Apple-AMLR",
        preprocess=PreprocessSpec(64, (0.5, 0.4, 0.3), OPENAI_STD, "bilinear", "squash"),
        activation="quick_gelu",
        score=50.5,
        sha256=sha256(path / "open_clip_model.safetensors"),
    )
    hub_cache.put("owner/pair", "open_clip_model.safetensors", (path / "open_clip_model.safetensors").read_bytes())
    monkeypatch.setitem(clip.VARIANTS, "small", SMALL)
    monkeypatch.setitem(zoo.weights.published.all_weights(), "clip/small", {"openai": row})
    config.catalogue.cache_clear()
    load._print_once.cache_clear()
    yield row
    config.catalogue.cache_clear()


def test_a_tag_brings_all_that_is_known_of_it(published, folder, rng, capfd):
    loaded = zoo.load("small.openai")
    assert_same_pair(loaded.model, folder[1], rng)
    assert loaded.info.name == "clip/small.openai"
    assert (loaded.info.licence, loaded.info.score) == ("Apple-AMLR", 50.5)
    assert loaded.info.preprocess == published.preprocess
    assert loaded.info == dataclasses.replace(zoo.model_info("clip/small.openai"))
    assert "clip/small.openai: its weights are under Apple-AMLR (research only" in capfd.readouterr().err
    same_weights(zoo.create_model("clip/small", weights="openai"), loaded.model)
    same_weights(zoo.create_model("clip/small.openai"), loaded.model)


def test_a_tag_is_saved_with_its_provenance(published, tmp_path):
    zoo.save(zoo.create_model("small.openai"), tmp_path / "own.safetensors")
    again = zoo.load(tmp_path / "own.safetensors")
    assert (again.info.licence, again.info.preprocess) == ("Apple-AMLR", published.preprocess)
    source = native.recall(again.model).source
    assert source == {"name": "clip/small.openai", "sha256": published.sha256, "format": "open_clip with a ViT"}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("clip/small.openai", {"activation": "gelu"}), ("clip/small", {"activation": "gelu", "weights": "openai"})],
)
def test_another_activation_than_the_tags_is_refused(published, name, arguments):
    with pytest.raises(ValueError, match="clip/small.openai was trained with activation 'quick_gelu', and 'gelu'"):
        zoo.create_model(name, **arguments)


def test_a_spelling_that_asks_for_another_activation_is_refused():
    with pytest.raises(ValueError, match="ViT-B-32.laion2b_s34b_b79k was trained with activation 'gelu', and 'quick"):
        zoo.create_model("ViT-B-32-quickgelu.laion2b_s34b_b79k")


def test_a_pinned_digest_that_differs_is_refused(published, monkeypatch):
    row = dataclasses.replace(published, sha256="0" * 64)
    monkeypatch.setitem(zoo.weights.published.all_weights(), "clip/small", {"openai": row})
    with pytest.raises(ValueError, match=f"the table of published weights says {'0' * 64}"):
        zoo.load("small.openai")


def test_another_image_size_resizes_the_positions_and_says_so(published, folder, rng):
    torch = pytest.importorskip("torch")
    from open_clip.model import CLIP, resize_pos_embed

    with pytest.warns(UserWarning, match="positional_embedding: the file's 4 × 4 positions .* the model's 6 × 6"):
        model = zoo.create_model("small.openai", image_size=96)
    theirs = CLIP(**{**MODEL_CFG, "vision_cfg": {**MODEL_CFG["vision_cfg"], "image_size": 96}}).eval()
    state = {key: value.clone() for key, value in folder[1].state_dict().items()}
    resize_pos_embed(state, theirs)
    theirs.load_state_dict(state)
    assert_same_pair(model, theirs, rng, size=96)
    assert native.recall(model).preprocess.size == (96, 96)
    report = zoo.load_weights(model, folder[0] / "open_clip_model.safetensors")
    assert [note for note in report.notes if "4 × 4" in note and "bicubic" in note]
    assert torch.equal(folder[1].visual.positional_embedding[0], state["visual.positional_embedding"][0])


def test_the_same_size_says_nothing(published):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        zoo.create_model("small.openai")


def test_a_folder_of_another_model_is_refused(folder, published):
    with pytest.raises(ValueError, match="open_clip_config.json in .* describes a clip .*, not clip/ViT-B-32"):
        zoo.create_model("clip/ViT-B-32", weights=folder[0])
    same_weights(zoo.create_model("clip/small", weights=folder[0]), zoo.load(folder[0]).model)


def test_an_attention_pool_is_resized_too(tmp_path):
    row = clip.Pair(16, 64, clip.ResNet((1, 1, 1, 1), 2), clip.Text(64, 1, 1))
    source = clip.create_clip(row)
    write_safetensors(tmp_path / "rn.safetensors", export_tensors(source, open_clip_resnet(source)), {})
    larger = clip.create_clip(row, image_size=96)
    report = zoo.load_weights(larger, tmp_path / "rn.safetensors")
    assert [note for note in report.notes if "2 × 2 positions were resized to the model's 3 × 3" in note]


def open_clip_resnet(model):
    from zoo.weights.engine import match_slots

    wholes = [known for known in open_clip.FORMATS if {"image", "text"} <= known.parts.keys()]
    return next(known for known in wholes if not match_slots(model, known)[1])


# Every tag of the table is buildable: its recipe makes a model whose count the table knows.


@pytest.mark.parametrize("name", ["convnextv2_atto.fcmae", "resnet18.tv_in1k", "convnext_femto.d1_in1k"])
def test_a_tags_recipe_loads_what_timm_publishes(hub_cache, name, tmp_path):
    entry = names.find(name)
    row = find_weights(entry.name, entry.tag)
    source = names.config_of(entry).build()
    formats = [known for known in timm.FORMATS if known.name.startswith("timm")]
    target = next(known for known in formats if _fits(source, known))
    write_safetensors(tmp_path / "model.safetensors", export_tensors(source, target), {})
    hub_cache.put(row.repository, "model.safetensors", (tmp_path / "model.safetensors").read_bytes())
    loaded = zoo.load(name)
    same_weights(loaded.model, source)
    assert loaded.info == zoo.model_info(name)


def _fits(model, known):
    from zoo.weights.engine import match_slots

    keys = {key: np.zeros([1] * rank) for key, rank in known.signature.items()}
    slots, unmapped = match_slots(model, known)
    shapes = {key: shape for slot in slots for key, shape in zip(slot.keys, slot.shapes(), strict=True)}
    return not unmapped and all(len(shapes.get(key, ())) == keys[key].ndim for key in keys)


# zoo convert


def test_convert_writes_name_digest_format_and_preprocessing(published, folder, tmp_path):
    source = folder[0] / "open_clip_model.safetensors"
    done = convert(source, tmp_path / "own.safetensors", arch="small.openai")
    assert (done.format, done.sha256, done.name) == ("open_clip with a ViT", sha256(source), "clip/small.openai")
    assert "format open_clip with a ViT" in str(done)
    loaded = zoo.load(tmp_path / "own.safetensors")
    assert native.recall(loaded.model).source["sha256"] == sha256(source)
    assert loaded.info.preprocess == published.preprocess
    same_weights(loaded.model, zoo.load(folder[0]).model)
    again = convert(tmp_path / "own.safetensors", tmp_path / "again.safetensors")
    assert again.format == native.FORMAT
    assert (tmp_path / "own.safetensors").read_bytes() == (tmp_path / "again.safetensors").read_bytes()


def test_convert_keeps_a_trunk_of_our_own_as_it_is(tmp_path):
    row = convnext.Variant((1, 1), (8, 16))
    zoo.save(
        convnext.create_convnext_v1(row, input_shape=(32, 32, 3), include_top=False, pooling="max"),
        tmp_path / "a.safetensors",
    )
    convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    one, other = (zoo.load(tmp_path / f"{name}.safetensors").model for name in "ab")
    assert type(one.get_layer("head_pool")) is type(other.get_layer("head_pool"))
    same_weights(one, other)


def test_convert_finds_the_model_of_a_folder(folder, tmp_path):
    done = convert(folder[0], tmp_path / "own.safetensors")
    assert done.licence is None and done.preprocess.mean == (0.5, 0.4, 0.3)
    same_weights(zoo.load(tmp_path / "own.safetensors").model, zoo.load(folder[0]).model)


@pytest.mark.parametrize(
    ("family", "variant", "name"),
    [("clip", "ViT-B-32", "clip/ViT-B-32"), ("resnet", "50", "resnet50"), ("convnext", {"dims": (8,)}, "mine")],
)
def test_a_converted_model_is_called_as_the_zoo_calls_it(family, variant, name):
    assert config.name_of(family, variant, "mine") == name


def test_convert_refuses_what_contradicts_the_tag(published, folder, tmp_path, monkeypatch):
    out = tmp_path / "own.safetensors"
    for field, value in (("mean", (0.0, 0.0, 0.0)), ("image_size", 384)):
        row = dataclasses.replace(published, preprocess=dataclasses.replace(published.preprocess, **{field: value}))
        monkeypatch.setitem(zoo.weights.published.all_weights(), "clip/small", {"openai": row})
        said = re.escape(f"preprocessed with {field} {value!r}, and open_clip_config.json says")
        with pytest.raises(ValueError, match=said):
            convert(folder[0], out, arch="small.openai")
    row = dataclasses.replace(published, activation="gelu")
    monkeypatch.setitem(zoo.weights.published.all_weights(), "clip/small", {"openai": row})
    with pytest.raises(ValueError, match="was trained with activation 'gelu', and 'quick_gelu' is requested"):
        convert(folder[0], out, arch="small.openai")
    with pytest.raises(ValueError, match="has variant 'small', and clip/ViT-B-16 has 'ViT-B-16'"):
        convert(folder[0], out, arch="ViT-B-16")
    with pytest.raises(ValueError, match="does not say which architecture"):
        convert(folder[0] / "open_clip_model.safetensors", out)
    with pytest.raises(ValueError, match=r"is a \.safetensors file, got 'own\.bin'"):
        convert(folder[0], tmp_path / "own.bin")
    assert not out.exists()


@pytest.mark.parametrize("source", ["3", '{"name":"x"}', '{"name":"x","sha256":1,"format":"y"}', "NaN"])
def test_a_source_that_convert_would_not_write_is_refused(tmp_path, source):
    path = tmp_path / "m.safetensors"
    model = convnext.create_convnext_v2(convnext.Variant((1,), (8,)), 2, (32, 32, 3))
    zoo.save(model, path, source={"name": "x", "sha256": "0", "format": "y"})
    assert native.recall(zoo.load(path).model).source == {"name": "x", "sha256": "0", "format": "y"}
    from safetensors import safe_open
    from safetensors.numpy import load_file

    with safe_open(path, "numpy") as file:
        metadata = file.metadata()
    write_safetensors(path, load_file(path), {**metadata, "source": source})
    with pytest.raises(ValueError, match=r"m\.safetensors: source is"):
        zoo.load(path)


def test_a_config_that_describes_no_model_is_refused_by_name(tmp_path):
    source = convnext.create_convnext_v2("atto", 2, (64, 64, 3), stem_stride=4)
    write_safetensors(tmp_path / "model.safetensors", export_tensors(source, timm.CONVNEXT_CONV_MLP), {})
    named = ModelConfig.from_name("convnextv2_atto")
    arguments = {**named.arguments, "num_classes": 2, "stem_stride": 3}
    described = dataclasses.replace(named, arguments=arguments, origin="config.json", from_weights=True)
    with pytest.raises(ValueError, match="config.json describes no model: stem_stride"):
        load.create_with_weights(described, read_checkpoint(tmp_path / "model.safetensors"))
