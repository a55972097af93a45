"""Every variable of every architecture has a path of its own, by which torch's parameters go."""

import collections

import keras
import numpy as np
import pytest
from golden import make_golden as golden

import clip
import convnext
import zoo

pytestmark = [pytest.mark.backend, pytest.mark.once]

TEXT = clip.Text(8, 2, 1, context_length=10, vocabulary_size=50)
MODELS = {
    **{name: golden.MODELS[name] for name in golden.MODELS if name not in ("zero-shot", "layers", "heads")},
    "resnet-bottleneck": lambda: convnext.create_resnet(
        convnext.ResNetVariant((1, 1), (4, 8), block="bottleneck", stem_dim=4), 3, (32, 32, 3)
    ),
    "pair-conv-vit": lambda: clip.create_clip(clip.Pair(8, 16, clip.ViT(16, 1, 16, head_width=8, stem_dim=4), TEXT)),
    "pair-mci-layer-norm": lambda: clip.create_clip(
        clip.Pair(8, 64, clip.MCi((1, 1, 1), (8, 16, 32), norm="layer", stem_scale=False), TEXT)
    ),
    "folded-vit": lambda: zoo.fold(golden.PAIRS["pair-vit"]()),
    "own-towers": lambda: clip.create_clip(
        image_tower=own_tower("vision", (3,)), text_tower=own_tower("language", (7,))
    ),
    "copied": lambda: clip.CLIP.from_config(golden.PAIRS["pair-mci"]().get_config()),
}


def own_tower(name, shape):
    """Two of these have equal layer names and, built outside any scope, equal paths."""
    inputs = keras.Input(shape, name="inputs")
    x = keras.layers.Dense(8, name="hidden")(inputs)
    return keras.Model(inputs, keras.layers.Dense(8, name="proj")(x), name=name)


def own_variables(model):
    """The model's variables without those of its metrics, which a compiled model creates and torch does not train."""
    return [*model.trainable_variables, *model.non_trainable_variables]


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return MODELS[request.param]()


def test_paths_are_unique(model):
    repeated = [path for path, times in collections.Counter(v.path for v in model.variables).items() if times > 1]
    assert not repeated


@pytest.mark.only("torch")
def test_torch_sees_every_variable(model):
    import torch

    known = {id(parameter) for parameter in model.parameters()}
    lost = [v.path for v in own_variables(model) if v.dtype.startswith("float") and id(v.value) not in known]
    assert not lost
    state = {name: value.clone() for name, value in model.state_dict().items()}
    before = [keras.ops.convert_to_numpy(keras.ops.copy(v)) for v in own_variables(model)]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    model.load_state_dict(state)
    for variable, value in zip(own_variables(model), before, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), value, err_msg=variable.path)


def test_branches_and_towers_stand_in_the_path():
    paths = {v.path for v in golden.PAIRS["pair-mci"]().variables}
    assert {"image_encoder/stem_0/conv_kxk/conv/kernel", "image_encoder/stem_0/conv_scale/conv/kernel"} <= paths
    assert "text_encoder/token_embedding/embeddings" in paths
    assert {v.path for v in golden.CLASSIFIERS["convnext"]().variables} >= {"stem_conv/kernel", "head_fc/bias"}


def test_a_layout_map_tells_the_towers_apart():
    seen = keras.distribution.LayoutMap(None)
    seen["image_encoder/.*ln_1/gamma"] = ("image",)
    seen["text_encoder/.*ln_1/gamma"] = ("text",)
    found = {v.path: seen[v.path].axes for v in golden.PAIRS["pair-vit"]().variables if "ln_1/gamma" in v.path}
    assert set(found.values()) == {("image",), ("text",)}


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("pair-vit", "de551996251660959696ad74dee5346614782b52d740fa91c23d36b5c6735c12"),
        ("pair-mci", "efa68a7d89e4ba9f0b2ba3c48d788b1472c27f5ec13db430b4c83e97dbd6bee2"),
    ],
)
def test_the_digest_in_indices_and_caches_is_that_of_before(name, digest):
    """Of a commit whose paths had no names of towers and branches."""
    from zoo.inference.pipeline import weights_digest

    assert weights_digest(golden.fill(golden.PAIRS[name]())) == digest
