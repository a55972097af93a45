"""MobileCLIP's checkpoint layouts: every format out and in again, and Apple's naming as open_clip undoes it."""

import dataclasses

import numpy as np
import pytest
from helpers import declare_torchvision_operators, predict, randomize
from safetensors.numpy import save_file

import clip
from zoo import weights as convert
from zoo.bench.parity import error
from zoo.weights import load_weights

pytestmark = [pytest.mark.backend, pytest.mark.once]

TEXT = clip.Text(16, 2, 2, vocabulary_size=60, causal=False)
MCT = dataclasses.replace(TEXT, mixer_kernel=5)
MCI = clip.MCi((1, 1, 1, 1), (8, 8, 16, 32))
FOLDED = dataclasses.replace(MCI, reparameterized=True)
STEM = clip.ViT(16, 2, 16, 8, stem_dim=8, projection_bias=True)
PATCH = clip.ViT(16, 2, 16, 8, projection_bias=True)
FORMATS = {source.name: source for source in convert.FORMATS}


def pair(image, text=TEXT, size=32):
    return clip.create_clip(clip.Pair(8, size, image, text))


def tower(image):
    return pair(image).image_encoder


MADE_FOR = [
    ("open_clip with a FastViT", lambda: pair(MCI)),
    ("open_clip's image tower, a FastViT", lambda: tower(MCI)),
    ("timm's trunk, a FastViT", lambda: tower(MCI)),
    ("open_clip with a re-parameterised FastViT", lambda: pair(FOLDED)),
    ("open_clip's image tower, a re-parameterised FastViT", lambda: tower(FOLDED)),
    ("timm's trunk, a re-parameterised FastViT", lambda: tower(FOLDED)),
    ("open_clip with a timm ViT", lambda: pair(STEM)),
    ("open_clip with a timm ViT", lambda: pair(PATCH)),
    ("open_clip's image tower, a timm ViT", lambda: tower(STEM)),
    ("timm's trunk, a timm ViT", lambda: tower(PATCH)),
    ("Apple's MobileCLIP with an MCi", lambda: pair(MCI, MCT)),
    ("Apple's MobileCLIP with a re-parameterised MCi", lambda: pair(FOLDED)),
    ("Apple's MobileCLIP with a ViT", lambda: pair(STEM)),
    ("the text tower of open_clip's custom-text layout", lambda: pair(PATCH).text_encoder),
    ("Apple's MobileCLIP text tower", lambda: pair(PATCH, MCT).text_encoder),
]


def fill(model, name):
    """Gives every variable values of its own; Apple's projections have no bias."""
    rng = np.random.default_rng(1)
    for variable in model.weights:
        variable.assign(rng.uniform(0.5, 1.5, variable.shape).astype(np.float32))
    towers = [getattr(model, "image_encoder", model)] if name.startswith("Apple") else []
    for layer in [layer for tower in towers for layer in tower.layers if layer.name in ("proj", "head_proj")]:
        layer.bias.assign(np.zeros(layer.bias.shape, np.float32))
    return model


def values(model):
    import keras

    return [keras.ops.convert_to_numpy(variable.value) for variable in model.weights]


def write(path, tensors):
    save_file({key: np.ascontiguousarray(value).reshape(value.shape) for key, value in tensors.items()}, path)
    return path


@pytest.mark.parametrize(("name", "create"), MADE_FOR)
def test_what_is_exported_loads_again_and_is_recognised(tmp_path, name, create):
    source = fill(create(), name)
    tensors = convert.export_tensors(source, FORMATS[name])
    target = create()
    report = load_weights(target, write(tmp_path / "m.safetensors", tensors))
    assert (report.format, report.loaded, report.ignored) == (name, len(target.weights), {})
    for one, other in zip(values(target), values(source), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("padding", [0, 1])
def test_where_apples_stem_and_open_clips_differ_the_report_says_so(tmp_path, padding):
    model = fill(pair(dataclasses.replace(STEM, stem_padding=padding)), "Apple")
    tensors = convert.export_tensors(model, FORMATS["Apple's MobileCLIP with a ViT"])
    notes = load_weights(model, write(tmp_path / "m.safetensors", tensors)).notes
    assert [note for note in notes if "stem_padding" in note] == list(notes[1:]) and len(notes) == 2 - padding


@pytest.mark.parametrize("change", ["missing", "left over", "shape"])
def test_a_file_that_does_not_fit_changes_nothing(tmp_path, change):
    model = fill(pair(MCI, MCT), "Apple")
    tensors = convert.export_tensors(model, FORMATS["Apple's MobileCLIP with an MCi"])
    key = "image_encoder.model.network.1.proj.0.small_conv.conv.weight"
    value = tensors.pop(key)
    if change == "left over":
        tensors |= {key: value, key.replace("small", "smaller"): value}
    elif change == "shape":
        tensors[key] = value[:, :, :1]
    target = pair(MCI, MCT)
    before = values(target)
    with pytest.raises(ValueError, match="network.1.proj.0.small"):
        load_weights(target, write(tmp_path / "m.safetensors", tensors))
    for one, other in zip(values(target), before, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kind", ["MCi", "ViT"])
def test_open_clip_reads_what_is_written_in_apples_naming(kind):
    torch = pytest.importorskip("torch")
    declare_torchvision_operators()
    open_clip = pytest.importorskip("open_clip")
    import oracles_mobileclip

    image = clip.MCi((1, 1, 1, 1), (16, 16, 32, 64)) if kind == "MCi" else clip.ViT(64, 2, 16, 32, stem_dim=16)
    image = image if kind == "MCi" else dataclasses.replace(image, projection_bias=True)
    row = clip.Pair(24, 64, image, clip.Text(64, 2, 2, causal=False))
    ours = randomize(clip.create_clip(row), np.random.default_rng(2), scale=0.1)
    projection = ours.image_encoder.layers[-1]
    projection.bias.assign(np.zeros(projection.bias.shape, np.float32))
    name = "Apple's MobileCLIP with " + ("an MCi" if kind == "MCi" else "a ViT")
    apples = convert.export_tensors(ours, FORMATS[name])
    theirs = oracles_mobileclip.reference_pair(row).eval()
    state = {key: torch.from_numpy(np.array(value)) for key, value in apples.items()}
    converted = open_clip.convert.convert_mobile_clip_state_dict(theirs, state, fastvit=kind == "MCi")
    missing, unexpected = theirs.load_state_dict(converted, strict=False)
    assert not unexpected and all(key.endswith("num_batches_tracked") for key in missing)
    images = np.random.default_rng(4).standard_normal((2, 64, 64, 3)).astype("float32")
    with torch.no_grad():
        expected = theirs.encode_image(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    assert error(predict(ours.image_encoder, images), expected) < 2e-5
