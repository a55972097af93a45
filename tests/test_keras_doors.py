"""What people do with Keras models of any kind: open saved ones, clone them, put two into one graph."""

import subprocess
import sys

import keras
import numpy as np
import pytest
from golden import make_golden as golden

import clip
import convnext
import zoo

pytestmark = [pytest.mark.backend, pytest.mark.once]


# Opening what was saved, in a process that has imported a package and nothing of it.

SAVED = ("pair-mci.keras", "zero-shot.keras", "compiled-convnextv2.keras", "fcmae.keras")
HDF5 = ("convnextv2.h5", "pair-vit.h5")

BEFORE_KERAS = """
import importlib.resources, importlib.util, sys, convnext
assert "keras" not in sys.modules
assert importlib.util.find_spec("keras").origin  # other libraries ask like this whether Keras is there
import keras
assert not any(type(finder).__module__.startswith("convnext") for finder in sys.meta_path)
assert keras.__loader__ is keras.__spec__.loader and importlib.resources.files("keras").is_dir()
"""
AFTER_KERAS = """
import keras.models
from clip import tokenize
import zoo
for name in ("zero-shot.keras", "fcmae.keras"):
    zoo.load(sys.argv[1] + "/" + name)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("saved")
    for file in (*SAVED, *HDF5):
        name, _, suffix = file.partition(".")
        plain, optimizer = golden.COMPILED.get(name, (name, None))
        model = golden.MODELS[plain]()
        if optimizer is not None:
            golden.compile_model(model, optimizer)
        keras.saving.save_model(model, root / file)
    return root


@pytest.mark.parametrize("imports", [BEFORE_KERAS, pytest.param(AFTER_KERAS, marks=pytest.mark.slow)])
def test_an_import_is_enough_to_open_any_model(folder, imports):
    code = f"""
import sys
{imports}
for name in {(*SAVED, *HDF5)!r}:
    model = keras.saving.load_model(sys.argv[1] + "/" + name)
    print(name, type(model).__module__, type(model).__name__)
"""
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    kinds = dict(line.split(" ", 1) for line in done.stdout.strip().splitlines())
    assert kinds["pair-mci.keras"] == kinds["pair-vit.h5"] == "clip.model CLIP"
    assert kinds["fcmae.keras"] == "convnext.fcmae FCMAE"


@pytest.mark.parametrize(
    "first",
    [
        pytest.param("from convnext import create_convnext_v2", marks=pytest.mark.slow),
        "import convnext.model, keras",
    ],
)
def test_a_module_of_ours_may_be_what_imports_keras(first):
    done = subprocess.run([sys.executable, "-c", first], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


# Clones.


@pytest.mark.parametrize("compiled", [False, True])
def test_a_clone_of_a_pair_is_a_pair(tmp_path, compiled):
    pair = golden.PAIRS["pair-convnext"]() if compiled else golden.PAIRS["pair-vit"]()
    if compiled:
        pair.compile("sgd", loss="siglip")
    clone = keras.models.clone_model(pair)
    assert type(clone) is clip.CLIP
    assert clone.architecture == pair.architecture and clone.init_logit_bias == pair.init_logit_bias
    assert not {id(v) for v in clone.variables} & {id(v) for v in pair.variables}
    clone.set_weights(golden.fill(pair).get_weights())
    for name, value in golden.outputs(pair).items():
        np.testing.assert_allclose(golden.outputs(clone)[name], value, atol=1e-6)
    np.testing.assert_allclose(
        clone.encode_image(golden.make_inputs(pair)["images"]).shape, (2, pair.image_encoder.output_shape[-1])
    )
    zoo.save(clone, tmp_path / "clone.safetensors")
    assert not compiled or clone.contrastive_loss == "siglip"


def test_a_clone_with_other_layers_is_a_plain_model():
    def halved(layer, *args, **kwargs):
        outputs = layer(*args, **kwargs)
        return keras.layers.Rescaling(0.5)(outputs) if layer.name == "image_encoder" else outputs

    clone = keras.models.clone_model(golden.PAIRS["pair-vit"](), call_function=halved)
    assert not isinstance(clone, clip.CLIP) and any(isinstance(x, keras.layers.Rescaling) for x in clone.layers)


def test_the_signature_of_a_pair_is_that_of_its_constructor():
    import inspect

    assert list(inspect.signature(clip.CLIP).parameters)[:3] == ["image_tower", "text_tower", "init_logit_scale"]


# Two backbones in one functional model.

BUILDERS = {
    "convnext": lambda **name: convnext.create_convnext_v1(golden.ROW, 3, (16, 16, 3), drop_path_rate=0.1, **name),
    "convnextv2": lambda **name: convnext.create_convnext_v2(golden.ROW, 3, (16, 16, 3), dropout_rate=0.1, **name),
    "resnet": lambda **name: convnext.create_resnet(
        convnext.ResNetVariant((1, 1), (4, 8), stem_dim=4), 3, (16, 16, 3), **name
    ),
}


@pytest.mark.parametrize("family", BUILDERS)
def test_two_named_backbones_stand_in_one_graph(tmp_path, family):
    left, right, plain = (BUILDERS[family](**name) for name in ({"name": "left"}, {"name": "right"}, {}))
    names = [layer.name for layer in plain.layers]
    assert [layer.name for layer in left.layers] == [f"left_{name}" for name in names]
    assert left.input.name == "left_images" and plain.input.name == "images"
    golden.fill(left)
    both = keras.Model([left.input, right.input], keras.layers.Concatenate()([left.output, right.output]))
    images = np.random.default_rng(0).standard_normal((2, 16, 16, 3)).astype("float32")
    outputs = both.predict([images, images], verbose=0)
    np.testing.assert_allclose(outputs[:, :3], left.predict(images, verbose=0), atol=1e-6)
    assert len({v.path for v in both.variables}) == len(both.variables)


@pytest.mark.parametrize("family", BUILDERS)
def test_whatever_goes_by_layer_names_takes_a_named_backbone(tmp_path, family):
    from zoo.training.layer_decay import update_factors

    named, plain = BUILDERS[family](name="left"), BUILDERS[family]()
    golden.fill(named)
    assert update_factors(named, 0.5) == update_factors(plain, 0.5)
    assert len(convnext.feature_maps(named).outputs) == 2
    images = np.random.default_rng(0).standard_normal((2, 16, 16, 3)).astype("float32")
    want = named.predict(images, verbose=0)
    zoo.save(named, tmp_path / "named.safetensors")
    zoo.load_weights(plain, tmp_path / "named.safetensors")
    loaded = zoo.load(tmp_path / "named.safetensors").model
    assert loaded.name == "left" and loaded.layers[0].name == "images"
    named.save(tmp_path / "named.keras")
    for model in (plain, loaded, zoo.load(tmp_path / "named.keras").model, zoo.fold(named)):
        np.testing.assert_allclose(model.predict(images, verbose=0), want, atol=1e-5)


def test_masked_pretraining_takes_a_named_encoder():
    encoder = convnext.create_convnext_v2(golden.ROW, input_shape=(16, 16, 3), include_top=False, name="left")
    assert convnext.FCMAE(encoder, decoder_dim=8).predict(np.zeros((1, 16, 16, 3), "float32"), verbose=0)
