"""save and load: what comes back is what was saved, and files that lie are refused."""

import hashlib
import json
import struct

import numpy as np
import pytest

import clip
import convnext
import zoo
from zoo.data.preprocess import PreprocessSpec
from zoo.weights import export_tensors, write_safetensors
from zoo.weights.sources import timm

pytestmark = pytest.mark.backend

ROW = convnext.Variant((1, 2), (8, 16), epsilon=1e-5, activation="silu", patch_size=2)
RESNET_ROW = convnext.ResNetVariant((1, 2), (8, 16), stem_dim=12)
BASIC_ROW = convnext.ResNetVariant((1, 2), (8, 16), stem_dim=12, block="basic")
MODELS = {
    "table row": lambda: convnext.create_convnext_v2("atto", 7, (64, 64, 3)),
    "everything set": lambda: convnext.create_convnext_v1(
        ROW,
        5,
        (32, 48, 4),
        classifier_activation="sigmoid",
        stem_stride=1,
        drop_path_rate=0.3,
        dropout_rate=0.2,
        layer_scale_init_value=1e-3,
        name="mine",
    ),
    "v2 with LayerScale": lambda: convnext.create_convnext_v2(ROW, 5, (32, 32, 3), layer_scale_init_value=0.1),
    "v1 without": lambda: convnext.create_convnext_v1(ROW, 5, (32, 32, 3), layer_scale_init_value=None),
    "trunk": lambda: convnext.create_convnext_v2(ROW, input_shape=(None, None, 3), include_top=False),
    "pooled trunk": lambda: convnext.create_convnext_v1(ROW, input_shape=(32, 32, 3), include_top=False, pooling="max"),
    "resnet": lambda: convnext.create_resnet("18", 5, (64, 64, 3), classifier_activation=None),
    "resnet trunk": lambda: convnext.create_resnet(
        RESNET_ROW, input_shape=(64, 64, 3), include_top=False, pooling="avg"
    ),
    "basic resnet with a stem of its own": lambda: convnext.create_resnet(BASIC_ROW, 5, (64, 64, 3)),
    "pair": lambda: clip.create_clip("convnext_v2_atto", image_size=32, stem_stride=2, activation="quick_gelu"),
    "pair with bias": lambda: clip.create_clip("convnext_v2_atto", image_size=32, init_logit_bias=-10.0, name="sig"),
}


def fill(model):
    """Values that depend on nothing but the variable's place and size."""
    for place, variable in enumerate(model.weights):
        size = int(np.prod(variable.shape))
        variable.assign(np.linspace(0.1, 1.0 + place % 7, size, dtype=np.float32).reshape(variable.shape))
    return model


def values(model):
    import keras

    return [keras.ops.convert_to_numpy(variable.value) for variable in model.weights]


def assert_same_model(one, other):
    import keras

    assert one.name == other.name
    assert one.get_config().keys() == other.get_config().keys()
    assert [type(layer) for layer in one.layers] == [type(layer) for layer in other.layers]
    assert [*convnext.layers_by_name(one)] == [*convnext.layers_by_name(other)]  # a file keeps no prefix of names
    for first, second in zip(one.layers, other.layers, strict=True):
        if not isinstance(first, keras.Model):
            assert {**first.get_config(), "name": ""} == {**second.get_config(), "name": ""}
    for first, second in zip(values(one), values(other), strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=() if kind in ("everything set", "resnet") else pytest.mark.wide) for kind in MODELS],
)
def test_a_saved_model_comes_back_whole_and_with_the_same_bytes(tmp_path, kind):
    model = fill(MODELS[kind]())
    zoo.save(model, tmp_path / "1.safetensors")
    loaded = zoo.load(tmp_path / "1.safetensors")
    assert_same_model(loaded.model, model)
    zoo.save(loaded.model, tmp_path / "2.safetensors")
    assert (tmp_path / "1.safetensors").read_bytes() == (tmp_path / "2.safetensors").read_bytes()


@pytest.mark.once
@pytest.mark.parametrize("kind", MODELS)
def test_the_architecture_is_read_off_a_model_that_went_through_keras_own_format(tmp_path, kind):
    model = fill(MODELS[kind]())
    zoo.save(model, tmp_path / "1.safetensors")
    model.save(tmp_path / "m.keras")
    again = zoo.load(str(tmp_path / "m.keras"))
    zoo.save(again.model, tmp_path / "2.safetensors")
    assert (tmp_path / "1.safetensors").read_bytes() == (tmp_path / "2.safetensors").read_bytes()
    assert again.transform is None
    assert (again.tokenizer is clip.tokenize) == kind.startswith("pair")


GOLDEN = {
    "everything set": "7cc699ad17b41901d705f6dca6da22c696864b3298e8549968c3aadbe9f81a69",
    "resnet trunk": "222d89a8107a6dcc553dd940d580c6931ce3bfe7ffcec18398df739b82cba19d",
    "pair with bias": "911aaddfb1a2940a7d0abe613abd9b7ff9ef3d97f8fd92f840f62b535351b8ed",
}


@pytest.mark.parametrize("kind", GOLDEN)
def test_bytes_are_equal_on_every_backend(tmp_path, kind):
    path = tmp_path / "m.safetensors"
    zoo.save(fill(MODELS[kind]()), path, licence="MIT", preprocess=PreprocessSpec(32))
    assert hashlib.sha256(path.read_bytes()).hexdigest() == GOLDEN[kind]


def header(path):
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length])


@pytest.mark.once
def test_the_metadata_says_what_it_is(tmp_path):
    path = tmp_path / "m.safetensors"
    zoo.save(MODELS["table row"](), path)
    metadata = header(path)["__metadata__"]
    assert sorted(metadata) == ["activation", "architecture", "format", "format_version", "licence", "preprocess"]
    architecture = json.loads(metadata["architecture"])
    assert architecture["family"] == "convnextv2"
    assert architecture["arguments"]["variant"] == "atto"
    assert architecture["arguments"]["stem_stride"] == 2
    assert metadata["activation"] == "gelu"
    assert "stages_0_blocks_0_grn.gamma" in header(path)


@pytest.mark.once
def test_a_pair_carries_transform_and_tokenizer(tmp_path):
    zoo.save(MODELS["pair"](), tmp_path / "m.safetensors")
    model, transform, tokenizer, info = zoo.load(tmp_path / "m.safetensors")
    assert transform(np.zeros((50, 40, 3), np.uint8)).shape == (32, 32, 3)
    assert tokenizer(["a cat"]).shape == (1, 77)
    assert (info.family, info.input) == ("clip", (32, 32, 3))
    assert info.parameters == sum(value.size for value in values(model))
    assert model.logit_scale.logit_bias is None


@pytest.mark.once
def test_a_classifier_has_a_transform_only_when_one_was_saved(tmp_path):
    model, path = MODELS["table row"](), tmp_path / "m.safetensors"
    zoo.save(model, path)
    assert zoo.load(path).transform is None
    assert zoo.load(path).tokenizer is None
    spec = PreprocessSpec((48, 64), mean=(0.1, 0.2, 0.3), interpolation="bilinear", crop_pct=0.9)
    zoo.save(model, path, preprocess=spec)
    assert zoo.load(path).info.preprocess == spec
    assert zoo.load(path).transform(np.zeros((50, 40, 3), np.uint8)).shape == (48, 64, 3)


@pytest.mark.once
def test_licence_and_preprocessing_stay_with_the_weights(tmp_path):
    spec = PreprocessSpec(32, mean=(0.5, 0.5, 0.5))
    zoo.save(MODELS["pair"](), tmp_path / "1.safetensors", licence="CC-BY-NC-4.0", preprocess=spec)
    loaded = zoo.load(tmp_path / "1.safetensors")
    assert loaded.info.licence == "CC-BY-NC-4.0"
    other = MODELS["pair"]()
    zoo.load_weights(other, tmp_path / "1.safetensors")
    for model in (loaded.model, other):
        zoo.save(model, tmp_path / "2.safetensors")
        assert zoo.load(tmp_path / "2.safetensors").info == loaded.info


def test_a_trained_model_under_a_half_precision_policy_saves_float32(tmp_path):
    import keras

    keras.config.set_dtype_policy("mixed_bfloat16")
    zoo.save(fill(MODELS["v1 without"]()), tmp_path / "1.safetensors")
    keras.config.set_dtype_policy("float32")
    zoo.save(fill(MODELS["v1 without"]()), tmp_path / "2.safetensors")
    assert (tmp_path / "1.safetensors").read_bytes() == (tmp_path / "2.safetensors").read_bytes()


# What cannot be saved


def own_towers():
    import keras

    image, text = keras.Input((4,)), keras.Input((3,), dtype="int32")
    towers = (
        keras.Model(image, keras.layers.Dense(2)(image)),
        keras.Model(text, keras.layers.Embedding(9, 1)(text)[:, :2, 0]),
    )
    return clip.create_clip(image_tower=towers[0], text_tower=towers[1])


def folded_pair():
    return zoo.fold(MODELS["pair"]())


def with_another_head():
    import keras

    trunk = MODELS["pooled trunk"]()
    return keras.Model(trunk.input, keras.layers.Dense(2, name="head_fc")(trunk.output))


def with_a_changed_layer():
    import keras

    model = MODELS["v1 without"]()

    def other(layer):
        config = layer.get_config()
        if layer.name == "stages_1_blocks_0_dwconv":
            config["activation"] = "tanh"
        return layer.__class__.from_config(config)

    return keras.models.clone_model(model, clone_function=other)


def no_zoo_model():
    import keras

    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])


@pytest.mark.once
@pytest.mark.parametrize(
    ("create", "message"),
    [
        (own_towers, "towers of 'clip' are custom or folded"),
        (folded_pair, "are custom or folded"),
        (with_another_head, "it differs from theirs in"),
        (with_a_changed_layer, "stages_1_blocks_0_dwconv"),
        (no_zoo_model, "was not made by"),
    ],
)
def test_models_that_a_few_words_do_not_describe_are_sent_to_keras(tmp_path, create, message):
    with pytest.raises(ValueError, match=rf"{message}.*\.keras"):
        zoo.save(create(), tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.once
def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'m\.keras'"):
        zoo.save(MODELS["table row"](), tmp_path / "m.keras")


# What cannot be loaded


def rewrite(path, change):
    """Writes the file again with the metadata that `change` returns."""
    from safetensors.numpy import load_file

    metadata = header(path)["__metadata__"]
    write_safetensors(path, load_file(path), change(dict(metadata)))


def set_argument(key, value):
    def change(metadata):
        architecture = json.loads(metadata["architecture"])
        target = architecture["arguments"]
        *parents, last = key.split(".")
        for parent in parents:
            target = target[parent]
        target[last] = value
        return {**metadata, "architecture": json.dumps(architecture)}

    return change


def set_field(key, value):
    return lambda metadata: {**metadata, key: value}


HOSTILE = [
    (set_field("format_version", "2"), "format_version is '2'"),
    (set_field("architecture", "{"), "architecture is '{'"),
    (set_field("architecture", "[" * 100_000), "architecture is"),
    (set_field("architecture", '{"family":"convnext"}'), "'family' and 'arguments'"),
    (set_field("architecture", '{"family":["x"],"arguments":{}}'), "architecture.family is"),
    (set_field("architecture", '{"family":"os.system","arguments":{}}'), "architecture.family is 'os.system'"),
    (set_field("preprocess", '{"image_size":32}'), "preprocess is"),
    (set_field("preprocess", "NaN"), "preprocess is 'NaN'"),
    (set_field("activation", "quick_gelu"), "activation is 'quick_gelu'"),
    (set_argument("num_classes", True), "num_classes is True"),
    (set_argument("num_classes", 10**12), "num_classes is"),
    (set_argument("num_classes", 10**7), "a model that"),
    (set_argument("input_shape", [32, 32]), "input_shape is"),
    (set_argument("input_shape", [1e9, 32, 3]), "input_shape is"),
    (set_argument("classifier_activation", "get"), "classifier_activation is 'get'"),
    (set_argument("drop_path_rate", 1.5), "drop_path_rate is 1.5"),
    (set_argument("name", "a/b"), "name is 'a/b'"),
    (set_argument("extra", 1), "an object with exactly"),
    (set_argument("variant", "giant"), "variant is 'giant'"),
    (set_argument("variant.depths", [10**6, 10**6]), "a model that"),
    (set_argument("variant.dims", [1 << 20, 1 << 20]), "a model that"),
    (set_argument("variant.depths", [1]), "as many dims as depths"),
    (set_argument("variant.depths", []), "depths is"),
    (set_argument("variant.epsilon", "0"), "epsilon is '0'"),
    (set_argument("variant.activation", "eval"), "activation is 'eval'"),
    (set_argument("stem_stride", 3), "describe no model: stem_stride"),
    (set_argument("stem_stride", "x" * 20_000), "stem_stride is 'xxx"),
    (set_argument("stem_stride", "\x1b[2J"), r"stem_stride is '\\x1b\[2J'"),
]


@pytest.mark.once
@pytest.mark.parametrize(("change", "message"), HOSTILE, ids=[message for _, message in HOSTILE])
def test_metadata_that_save_would_not_write_is_refused(tmp_path, change, message):
    path = tmp_path / "hostile.safetensors"
    zoo.save(convnext.create_convnext_v1(ROW, 5, (32, 32, 3)), path)
    rewrite(path, change)
    with pytest.raises(ValueError, match=rf"hostile\.safetensors: .*{message}") as caught:
        zoo.load(path)
    assert len(str(caught.value)) < 2000 and str(caught.value).isprintable()


PAIR_HOSTILE = [
    (set_argument("variant", "convnext_v2_huge"), "a model that"),
    (set_argument("image_size", -1), "image_size is -1"),
    (set_argument("init_logit_scale", 100), "init_logit_scale is 100"),
    (set_argument("activation", "relu"), "activation is 'relu'"),
]


@pytest.mark.once
@pytest.mark.parametrize(("change", "message"), PAIR_HOSTILE, ids=[message for _, message in PAIR_HOSTILE])
def test_a_pairs_metadata_too(tmp_path, change, message):
    path = tmp_path / "hostile.safetensors"
    zoo.save(MODELS["pair"](), path)
    rewrite(path, change)
    with pytest.raises(ValueError, match=message):
        zoo.load(path)


@pytest.mark.once
def test_another_activation_than_the_models_is_refused(tmp_path):
    zoo.save(MODELS["pair"](), tmp_path / "m.safetensors")
    other = clip.create_clip("convnext_v2_atto", image_size=32, stem_stride=2)
    with pytest.raises(ValueError, match=r"'quick_gelu', and the model's transformers have 'gelu'"):
        zoo.load_weights(other, tmp_path / "m.safetensors")


@pytest.mark.once
def test_load_names_what_to_do_with_a_foreign_file(tmp_path):
    tensors = export_tensors(MODELS["v1 without"](), timm.FORMATS[0])
    write_safetensors(tmp_path / "m.safetensors", tensors, {})
    with pytest.raises(ValueError, match=r"m\.safetensors was not written by zoo\.save.*create_model\(name, weights="):
        zoo.load(tmp_path / "m.safetensors")


@pytest.mark.once
@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("convnextv2_tiny", ValueError, "architecture without weights"),
        ("convnextv2_tiny.fcmea", ValueError, "no weights 'fcmea' for convnextv2_tiny. There are 'fcmae'"),
        ("nowhere.safetensors", FileNotFoundError, "nowhere"),
        ("nowhere.keras", FileNotFoundError, "nowhere"),
        ("nowhere/", FileNotFoundError, "nowhere"),
        ("convnext_v2_small", ValueError, "'convnextv2_small'"),
    ],
)
def test_load_of_names_and_missing_files(name, error, message):
    with pytest.raises(error, match=message):
        zoo.load(name)
