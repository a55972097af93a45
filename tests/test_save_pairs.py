"""Pairs of a row of the user's own: the file spells the row out, and a row that makes no pair is refused."""

import dataclasses
import json

import pytest
from test_save_load import assert_same_model, fill, rewrite, set_argument

import clip
import zoo
from zoo.models.names import config_of, find
from zoo.weights import read_checkpoint
from zoo.weights.config import named_preprocess

pytestmark = [pytest.mark.backend, pytest.mark.once]

TEXT = clip.Text(16, 2, 1, context_length=8, vocabulary_size=50)
MCI = clip.MCi((1, 1, 1), (8, 16, 32), attention_stages=1, squeeze_excite=1)
ROWS = {
    "vit": clip.Pair(8, 32, clip.ViT(24, 1, 8, head_width=12, mlp_ratio=4.3637), TEXT),
    "resnet": clip.Pair(8, 64, clip.ResNet((1, 1, 2, 1), 4), TEXT, "quick_gelu"),
    "convnext": clip.Pair(8, 32, clip.ConvNeXt("convnextv2", "atto", "mlp"), TEXT),
    "mci": clip.Pair(8, 64, MCI, dataclasses.replace(TEXT, causal=False)),
}


def test_every_kind_of_tower_is_here_and_goes_through_json():
    assert set(ROWS) == {
        kind for kind, tower in clip.list_towers("image").items() if tower.config.__module__.startswith("clip.")
    }
    for kind, row in ROWS.items():
        fields = row.to_dict()
        assert fields["image"]["kind"] == kind
        assert set(fields["image"]) == {"kind", *clip.find_tower("image", kind).schema}
        assert clip.Pair.from_dict(json.loads(json.dumps(fields))) == row


@pytest.mark.parametrize("kind", ROWS)
def test_a_saved_pair_comes_back_whole_and_with_the_same_bytes(tmp_path, kind):
    model = fill(clip.create_clip(ROWS[kind], init_logit_bias=-10.0))
    zoo.save(model, tmp_path / "1.safetensors")
    loaded = zoo.load(tmp_path / "1.safetensors")
    assert_same_model(loaded.model, model)
    assert loaded.model.architecture == model.architecture
    model.save(tmp_path / "m.keras")
    for again in (loaded.model, zoo.load(tmp_path / "m.keras").model):
        zoo.save(again, tmp_path / "2.safetensors")
        assert (tmp_path / "1.safetensors").read_bytes() == (tmp_path / "2.safetensors").read_bytes()


def test_another_image_size_than_the_rows_is_kept(tmp_path):
    zoo.save(clip.create_clip(ROWS["resnet"], image_size=96), tmp_path / "m.safetensors")
    info, row = zoo.load(tmp_path / "m.safetensors").info, dataclasses.replace(ROWS["resnet"], image_size=96)
    assert (info.parameters, info.flops, info.input) == (clip.parameters(row), clip.flops(row), (96, 96, 3))


def test_a_row_that_the_table_has_goes_by_its_name():
    import keras

    with keras.StatelessScope(initialize_variables=False):
        model = clip.create_clip(clip.VARIANTS["convnext_v2_atto"])
    assert (model.architecture["variant"], model.name) == ("convnext_v2_atto", "convnext_v2_atto")


HOSTILE = [
    ("vit", "variant.extra", 1, "variant is .*an object with exactly embed_dim"),
    ("vit", "variant.image", [], r"variant\.image is \[\]"),
    ("vit", "variant.image.kind", "os", "image.kind is 'os'"),
    ("vit", "variant.image.kind", ["vit"], "image.kind is"),
    ("vit", "variant.image.kind", "resnet", "an object with exactly kind, layers, width"),
    ("vit", "variant.image.width", True, "image.width is True"),
    ("vit", "variant.image.width", 24 * 10**4, "a model that"),
    ("vit", "variant.image.layers", 1024, "a model that"),
    ("vit", "variant.image.layers", 10**6, "image.layers is"),
    ("vit", "variant.image.head_width", 10, "must be a multiple of its head_width"),
    ("vit", "variant.image.mlp_ratio", "4", "mlp_ratio is '4'"),
    ("vit", "variant.text.heads", 3, "describe no model"),
    ("vit", "variant.text.heads", 0, "text.heads is 0"),
    ("vit", "variant.text.vocabulary_size", 10**6, "a model that"),
    ("resnet", "variant.image.layers", [1, 1, 1], "four positive layers"),
    ("resnet", "variant.image.layers", [1, 1, 1, 1024], "a model that"),
    ("resnet", "image_size", 8, "describe no model: image_size must be at least 32"),
    ("convnext", "variant.image.family", "resnet", "family is 'resnet'"),
    ("convnext", "variant.image.variant", "giant", "variant is 'giant'"),
    ("mci", "variant.image.dims", [8, 12, 32], "a multiple of the one before"),
]


@pytest.mark.parametrize(("kind", "field", "value", "message"), HOSTILE)
def test_a_row_that_no_pair_has_is_refused(tmp_path, kind, field, value, message):
    path = tmp_path / "hostile.safetensors"
    zoo.save(clip.create_clip(ROWS[kind]), path)
    rewrite(path, set_argument(field, value))
    with pytest.raises(ValueError, match=rf"hostile\.safetensors: .*{message}"):
        zoo.load(path)


def test_load_pair_takes_a_file_a_loaded_model_and_a_model(tmp_path):
    from zoo.data.preprocess import PreprocessSpec
    from zoo.models import load_pair

    spec = PreprocessSpec(32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    model = fill(clip.create_clip(ROWS["vit"], name="small"))
    with pytest.raises(ValueError, match=r"The preprocessing of 'small' is unknown; pass preprocess="):
        load_pair(model)
    pair = load_pair(model, preprocess=spec)
    assert (pair.model, pair.preprocess, pair.info.preprocess) == (model, spec, None)
    zoo.save(model, tmp_path / "m.safetensors", preprocess=spec)
    for source in (tmp_path / "m.safetensors", str(tmp_path / "m.safetensors"), zoo.load(tmp_path / "m.safetensors")):
        pair = load_pair(source)
        assert_same_model(pair.model, model)
        assert (pair.preprocess, pair.tokenizer, pair.info.preprocess) == (spec, clip.tokenize, spec)
        assert load_pair(pair) == load_pair(pair.model) == pair
    assert load_pair(pair, preprocess=PreprocessSpec(32)).preprocess == PreprocessSpec(32)
    model.save(tmp_path / "m.keras")  # says nothing of preprocessing
    with pytest.raises(ValueError, match="preprocessing of '.*m.keras' is unknown"):
        load_pair(tmp_path / "m.keras")


def test_load_pair_refuses_a_classifier(tmp_path):
    from zoo.models import load_pair

    model = zoo.create_model("convnext_atto", input_shape=(32, 32, 3), num_classes=2)
    zoo.save(model, tmp_path / "m.safetensors")
    for source in (tmp_path / "m.safetensors", model):
        with pytest.raises(ValueError, match="is not a CLIP model"):
            load_pair(source)


@pytest.mark.parametrize("name", ["MobileCLIP-S0", "ViT-H-14-378", "ViT-B-32", "convnext_base_w", "RN50"])
def test_the_preprocessing_of_a_name_is_kept(name):
    config = config_of(find(f"clip/{name}"))
    assert config.preprocess == zoo.model_info(f"clip/{name}").preprocess
    smaller = {**config.arguments, "image_size": 64}
    assert named_preprocess("clip", smaller) == dataclasses.replace(config.preprocess, image_size=64)
    assert named_preprocess("clip", {**smaller, "variant": {}}) is None


def test_a_pair_made_by_name_is_saved_with_the_preprocessing_of_the_name(tmp_path):
    zoo.save(clip.create_clip("MobileCLIP-S0"), tmp_path / "m.safetensors")
    metadata = read_checkpoint(tmp_path / "m.safetensors").metadata
    assert json.loads(metadata["preprocess"])["mean"] == [0.0, 0.0, 0.0]
