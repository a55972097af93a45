"""The pair: towers, contract of its calls, training, saving. Parity with open_clip is in test_parity.py."""

import math

import keras
import numpy as np
import pytest
from helpers import gradients, randomize
from keras import ops

import clip
import convnext
from clip import CLIP, create_clip, create_text_tower, create_vit_tower, tokenize
from clip.layers import EOT_ID, MAX_LOGIT_SCALE, PositionalEmbedding, quick_gelu
from clip.variants import Pair, Text, ViT
from convnext import AdamW

pytestmark = pytest.mark.backend

TEXT = Text(width=32, heads=2, layers=2)
VIT_PAIR = Pair(16, 32, ViT(width=32, layers=2, patch_size=8, head_width=16), TEXT)
CONVNEXT_PAIR = Pair(16, 32, clip.ConvNeXt("convnextv2", "atto"), TEXT)
CAPTIONS = ["a red square", "a photo of two dogs", "the number three, written by hand", "x"]


@pytest.fixture
def pair(rng):
    return randomize(create_clip(VIT_PAIR), rng, scale=0.05)


@pytest.fixture
def batch(rng):
    images = rng.standard_normal((4, 32, 32, 3)).astype("float32")
    return {"images": images, "tokens": tokenize(CAPTIONS)}


def array(x):
    return ops.convert_to_numpy(x)


@pytest.mark.once
@pytest.mark.parametrize("row", [VIT_PAIR, CONVNEXT_PAIR, Pair(16, 64, clip.ConvNeXt("convnext", "atto", "mlp"), TEXT)])
def test_towers_give_embeddings(row, rng):
    model = create_clip(row)
    assert model.image_encoder.output_shape == model.text_encoder.output_shape == (None, 16)
    assert model.image_encoder.input_shape == (None, row.image_size, row.image_size, 3)
    assert len(model.trainable_variables) == len(model.image_encoder.weights) + len(model.text_encoder.weights) + 1
    assert sum(math.prod(v.shape) for v in model.trainable_variables) == clip.parameters(row)


@pytest.mark.once
def test_mlp_projection_has_a_bias_first_and_none_last():
    tower = create_clip(Pair(16, 64, clip.ConvNeXt("convnext", "atto", "mlp"), TEXT)).image_encoder
    first, last = tower.get_layer("head_mlp_fc1"), tower.get_layer("head_mlp_fc2")
    assert (first.units, first.use_bias, last.units, last.use_bias) == (32, True, 16, False)


def test_call_and_predict_give_normalised_float32_embeddings(pair, batch):
    called, predicted = pair(batch), pair.predict(batch, verbose=0)
    assert set(called) == set(predicted) == {"image_embeddings", "text_embeddings"}
    for key, value in predicted.items():
        assert value.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(value, axis=-1), 1, rtol=1e-5)
        np.testing.assert_allclose(array(called[key]), value, atol=1e-5)


@pytest.mark.once
def test_predict_of_a_partial_last_batch(pair, rng):
    images = rng.standard_normal((5, 32, 32, 3)).astype("float32")
    tokens = tokenize(CAPTIONS + ["y"])
    assert pair.predict({"images": images, "tokens": tokens}, batch_size=2, verbose=0)["image_embeddings"].shape == (
        5,
        16,
    )


def test_encode_normalises_the_towers_outputs(pair, batch):
    for encode, tower, value in (
        (pair.encode_image, pair.image_encoder, batch["images"]),
        (pair.encode_text, pair.text_encoder, batch["tokens"]),
    ):
        plain = array(tower(value))
        np.testing.assert_array_equal(array(encode(value, normalize=False)), plain)
        expected = plain / np.linalg.norm(plain, axis=-1, keepdims=True)
        np.testing.assert_allclose(array(encode(value)), expected, atol=1e-6)


def test_logits_are_scaled_cosines(pair, batch, rng):
    outputs = pair(batch)
    pair.logit_scale.logit_scale.assign(1.5)
    logits = array(pair.logits(outputs["image_embeddings"], outputs["text_embeddings"][:3]))
    expected = math.exp(1.5) * array(outputs["image_embeddings"]) @ array(outputs["text_embeddings"])[:3].T
    assert logits.shape == (4, 3)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.once
def test_logit_bias_is_added_only_when_given(batch):
    with_bias, without = create_clip(VIT_PAIR, init_logit_bias=-10.0), create_clip(VIT_PAIR)
    assert len(with_bias.weights) == len(without.weights) + 1
    embedding = np.eye(2, 16, dtype="float32")
    difference = array(with_bias.logits(embedding, embedding)) - array(without.logits(embedding, embedding))
    np.testing.assert_allclose(difference, -10, rtol=1e-5)


@pytest.mark.wide
def test_text_embedding_does_not_depend_on_what_follows_the_end(pair, batch, rng):
    tokens = batch["tokens"]
    noisy = tokens.copy()
    after = np.arange(77)[None] > tokens.argmax(axis=1)[:, None]
    noisy[after] = rng.integers(1, 49405, after.sum())
    np.testing.assert_allclose(array(pair.encode_text(noisy)), array(pair.encode_text(tokens)), atol=1e-6)
    np.testing.assert_allclose(array(pair.encode_text(tokens[:, :16])), array(pair.encode_text(tokens)), atol=1e-6)


def test_the_first_end_of_text_counts(pair, batch):
    tokens = batch["tokens"].copy()
    tokens[:, 40] = EOT_ID
    np.testing.assert_allclose(array(pair.encode_text(tokens)), array(pair.encode_text(batch["tokens"])), atol=1e-6)


@pytest.mark.wide
def test_attention_is_causal_in_text_only(pair, batch):
    tokens = batch["tokens"].copy()
    tokens[:, 1] = 7  # an earlier token does matter
    assert np.abs(array(pair.encode_text(tokens)) - array(pair.encode_text(batch["tokens"]))).max() > 1e-4
    images = batch["images"].copy()
    images[:, -8:, -8:] += 1.0  # the class token attends to the last patch
    assert np.abs(array(pair.encode_image(images)) - array(pair.encode_image(batch["images"]))).max() > 1e-4


@pytest.mark.once
def test_too_long_a_sequence_is_refused():
    layer = PositionalEmbedding(5)
    layer.build((None, 6, 4))
    with pytest.raises(ValueError, match="sequence has 6 tokens; the positional embedding has 5"):
        layer(np.zeros((1, 6, 4), "float32"))


def test_quick_gelu_and_exact_gelu(rng):
    x = rng.standard_normal(100).astype("float32")
    np.testing.assert_allclose(
        array(quick_gelu(ops.convert_to_tensor(x))), x / (1 + np.exp(-1.702 * x)), rtol=1e-5, atol=1e-6
    )
    exact = np.array([v / 2 * (1 + math.erf(v / 2**0.5)) for v in x])
    tower = create_text_tower(TEXT, 16)
    gelu = tower.get_layer("transformer_resblocks_0_mlp_c_fc").activation
    np.testing.assert_allclose(array(gelu(ops.convert_to_tensor(x))), exact, rtol=1e-4, atol=1e-6)


@pytest.mark.once
@pytest.mark.parametrize(
    "name, asked, activation",
    [
        ("ViT-B-32", None, "quick_gelu"),
        ("ViT-B/32", "gelu", "gelu"),
        ("ViT-L-14-336-quickgelu", None, "quick_gelu"),
        ("convnext_base", None, "gelu"),
        ("convnext_base-quickgelu", None, "quick_gelu"),
    ],
)
def test_activation_comes_from_argument_name_or_row(name, asked, activation):
    with keras.StatelessScope(initialize_variables=False):
        model = create_clip(name, activation=asked)
    assert model.architecture["activation"] == activation
    layer = model.text_encoder.get_layer("transformer_resblocks_0_mlp_c_fc")
    assert (layer.activation is quick_gelu) == (activation == "quick_gelu")


@pytest.mark.once
def test_activation_changes_the_output(batch):
    outputs = []
    for activation in ("gelu", "quick_gelu"):
        keras.utils.set_random_seed(0)
        outputs.append(create_clip(VIT_PAIR, activation=activation).predict(batch, verbose=0))
    for key in outputs[0]:
        assert np.abs(outputs[0][key] - outputs[1][key]).max() > 1e-6


@pytest.mark.once
def test_image_size_and_stem_stride():
    with keras.StatelessScope(initialize_variables=False):
        model = create_clip("convnext_v2_atto", image_size=32, stem_stride=2)
        assert model.image_encoder.get_layer("stem_conv").strides == (2, 2)
        assert create_clip("convnext_v2_atto").image_encoder.get_layer("stem_conv").strides == (4, 4)
        assert create_clip("ViT-B-32", image_size=64).image_encoder.input_shape == (None, 64, 64, 3)
    assert model.architecture == {
        "variant": "convnext_v2_atto", "image_size": 32, "stem_stride": 2, "activation": "gelu",
    }  # fmt: skip


@pytest.mark.once
@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"variant": "ViT-B-23"}, "'ViT-B-23'.*Did you mean 'ViT-B-"),
        ({}, "variant, or image_tower and text_tower"),
        ({"variant": "ViT-B-32", "stem_stride": 2}, "stem_stride.*ViT"),
        ({"variant": VIT_PAIR, "activation": "relu"}, "activation.*'gelu', 'quick_gelu'.*'relu'"),
        ({"variant": VIT_PAIR, "init_logit_scale": 100.0}, "init_logit_scale.*100"),
        ({"variant": VIT_PAIR, "image_size": 4}, "one patch of 8 pixels, got 4"),
        ({"variant": VIT_PAIR, "text_tower": "a tower"}, "a variant or both towers"),
    ],
    ids=str,
)
def test_invalid_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        create_clip(**arguments)


def own_towers(image_dim, text_dim):
    images, tokens = keras.Input((8, 8, 3)), keras.Input((12,), dtype="int32")
    image = keras.layers.Dense(image_dim)(keras.layers.Flatten()(images))
    text = keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(49408, text_dim)(tokens))
    return keras.Model(images, image, name="my_images"), keras.Model(tokens, text, name="my_texts")


@pytest.mark.once
def test_own_towers(rng):
    image_tower, text_tower = own_towers(6, 6)
    model = create_clip(image_tower=image_tower, text_tower=text_tower)
    assert model.image_encoder is image_tower and model.architecture is None
    data = {"images": rng.standard_normal((8, 8, 8, 3)).astype("float32"), "tokens": tokenize(["a"] * 8, 12)}
    model.compile(keras.optimizers.Adam(1e-3))
    assert np.isfinite(model.fit(data, verbose=0).history["loss"][0])
    classifier = clip.zero_shot_classifier(model, ["cat", "dog"], tokenizer=lambda texts: tokenize(texts, 12))
    assert classifier.predict(data["images"], verbose=0).shape == (8, 2)


@pytest.mark.once
def test_unequal_towers_are_refused_with_a_remedy():
    image_tower, text_tower = own_towers(6, 5)
    with pytest.raises(
        ValueError, match=r"image 6, text 5.*keras\.layers\.Dense\(5, use_bias=False\)\(image_tower\.output\)"
    ):
        create_clip(image_tower=image_tower, text_tower=text_tower)
    mended = keras.Model(image_tower.input, keras.layers.Dense(5, use_bias=False)(image_tower.output))
    create_clip(image_tower=mended, text_tower=text_tower)


@pytest.mark.once
@pytest.mark.parametrize("row", [convnext.Variant((1,), (8,)), ViT(32, 1, 8, head_width=16)], ids=["Variant", "ViT"])
def test_a_row_that_is_no_pair_is_refused(row):
    with pytest.raises(ValueError, match=f"name of clip.VARIANTS or a clip.Pair, got a {type(row).__name__}"):
        create_clip(row)


@pytest.mark.once
def test_options_of_variants_are_refused_with_own_towers():
    image_tower, text_tower = own_towers(6, 6)
    with pytest.raises(ValueError, match="image_size"):
        create_clip(image_tower=image_tower, text_tower=text_tower, image_size=32)
    with pytest.raises(ValueError, match=r"text_tower must return \(B, D\)"):
        CLIP(image_tower, keras.Model(text_tower.input, text_tower.layers[-2].output))


class Batches(keras.utils.PyDataset):
    def __init__(self, data, size):
        super().__init__()
        self.data, self.size = data, size

    def __len__(self):
        return len(self.data["images"]) // self.size

    def __getitem__(self, index):
        return {key: value[index * self.size : (index + 1) * self.size] for key, value in self.data.items()}


def training_data(rng, labels=True):
    """24 images of three flat colours and their captions: learned in a few steps."""
    label = np.arange(24, dtype="int32") % 3
    images = 0.1 * rng.standard_normal((24, 32, 32, 3)).astype("float32")
    images[np.arange(24), :, :, label] += 1.0
    data = {"images": images, "tokens": tokenize([f"a {('red', 'green', 'blue')[i]} wall" for i in label], 16)}
    return data | ({"label": label} if labels else {})


@pytest.mark.wide
@pytest.mark.parametrize(
    "source", ["pydataset", *(pytest.param(s, marks=pytest.mark.wide) for s in ("arrays", "tf.data"))]
)
def test_fit_from(source, rng):
    data = training_data(rng)
    model = create_clip(VIT_PAIR)
    model.compile(keras.optimizers.Adam(2e-3), loss="clip")
    if source == "arrays":
        history = model.fit(data, batch_size=12, epochs=16, shuffle=True, verbose=0).history
    elif source == "pydataset":
        history = model.fit(Batches(data, 12), epochs=16, verbose=0).history
    else:
        tf = pytest.importorskip("tensorflow")
        history = model.fit(tf.data.Dataset.from_tensor_slices(data).batch(12), epochs=16, verbose=0).history
    assert set(history) == {"loss", "accuracy", "logit_scale"}
    assert history["accuracy"][-1] > 0.9 > history["accuracy"][0]
    assert history["logit_scale"][0] == pytest.approx(1 / 0.07, rel=0.05)
    scores = model.evaluate(data, batch_size=12, verbose=0, return_dict=True)
    assert scores["accuracy"] > 0.9 and scores["loss"] < history["loss"][0]


@pytest.mark.wide
def test_labels_turn_false_negatives_into_positives(rng):
    model, data = create_clip(VIT_PAIR), training_data(rng)
    model.compile("adam")
    unlabelled = {key: value for key, value in data.items() if key != "label"}
    with_labels, without = (model.evaluate(x, batch_size=24, verbose=0, return_dict=True) for x in (data, unlabelled))
    assert with_labels["accuracy"] > without["accuracy"]


def test_siglip_trains_and_needs_a_bias(rng):
    with pytest.raises(ValueError, match="siglip.*init_logit_bias=-10.0"):
        create_clip(VIT_PAIR).compile("adam", loss="siglip")
    model = create_clip(VIT_PAIR, init_logit_scale=math.log(10), init_logit_bias=-10.0)
    model.compile(keras.optimizers.Adam(2e-3), loss="siglip")
    history = model.fit(training_data(rng), batch_size=12, epochs=5, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]


@pytest.mark.once
def test_unknown_loss_and_stray_targets_are_refused(pair, batch):
    with pytest.raises(ValueError, match="loss 'clipp'.*Did you mean 'clip'"):
        pair.compile("adam", loss="clipp")
    pair.compile("adam")
    with pytest.raises(ValueError, match="without y, sample_weight"):
        pair.fit(batch, np.zeros(4), verbose=0)


WRONG_BATCHES = {
    "no key 'labels'. Did you mean 'label'": {"labels": np.arange(4)},
    "hold the id 49408; the text tower's vocabulary has ids 0 to 49407": {"tokens": np.full((4, 16), 49408, "int32")},
    "hold the id -1": {"tokens": np.full((4, 16), -1, "int32")},
    r"labels have the shape \(4, 1\); \(4,\) is needed": {"label": np.zeros((4, 1), "int32")},
    "'tokens' is missing": {"tokens": None},
}


@pytest.mark.parametrize(
    "message", [pytest.param(m, marks=pytest.mark.wide if "label" in m else ()) for m in WRONG_BATCHES]
)
def test_a_batch_that_would_be_misread_is_refused(pair, batch, message):
    pair.compile("sgd")
    wrong = {key: value for key, value in {**batch, **WRONG_BATCHES[message]}.items() if value is not None}
    calls = [pair.fit, pair.evaluate, pair.train_on_batch, pair.test_on_batch]
    for call in [*calls, lambda x: pair.fit(batch, validation_data=x), lambda x: pair.fit(batch, validation_data=(x,))]:
        with pytest.raises(ValueError, match=message) as error:
            call(wrong)
        assert "\n" not in str(error.value)


@pytest.mark.once
def test_weights_of_samples_are_refused(pair, batch):
    pair.compile("sgd")
    for options in (
        {"sample_weight": np.ones(4)},
        {"class_weight": {0: 1.0}},
        {"validation_data": (batch, np.zeros(4))},
    ):
        with pytest.raises(ValueError, match="without y, sample_weight or class_weight"):
            pair.fit(batch, verbose=0, **options)


def sources(batches):
    """{kind: a function that makes a data set of these batches} for what the backend's users have."""
    made = {
        "generator": lambda: ((batch,) for batch in batches),
        "PyDataset": lambda: Batches({key: np.concatenate([b[key] for b in batches]) for key in batches[0]}, 4),
    }
    if keras.backend.backend() == "torch":
        from torch.utils.data import DataLoader

        made["DataLoader"] = lambda: DataLoader(batches, batch_size=None)
        rows = [{key: batch[key][i] for key in batch} for batch in batches for i in range(4)]
        made["DataLoader of rows"] = lambda: DataLoader(rows, batch_size=4)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        whole = {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}
        made["tf.data"] = lambda: tf.data.Dataset.from_tensor_slices(whole).batch(4)
    return made


@pytest.mark.wide
def test_a_token_beyond_the_vocabulary_is_found_in_any_batch(batch):
    """Of a generator and of data sets. The tokens of the second batch are wrong: no look at the first finds it."""
    wrong = {**batch, "tokens": np.full((4, 77), 49408, "int32")}
    for make in sources([batch, wrong]).values():
        pair = create_clip(VIT_PAIR)
        pair.compile("sgd")
        with pytest.raises(Exception, match="hold (the id 49408|an id beyond)"):
            pair.fit(make(), verbose=0)


@pytest.mark.once
@pytest.mark.parametrize(
    ("key", "value", "message"),
    [("labels", np.arange(4), "no key 'labels'"), ("label", np.zeros((4, 1), "int32"), "labels have the shape")],
)
def test_batches_of_generators_and_data_sets_are_checked(pair, batch, key, value, message):
    pair.compile("sgd")
    wrong = {**batch, key: value}
    for make in sources([wrong, wrong]).values():
        for call in (pair.fit, pair.evaluate, lambda x: pair.fit(batch, validation_data=x, verbose=0)):
            with pytest.raises(ValueError, match=message):
                call(make())


@pytest.mark.wide
def test_checked_data_gives_what_arrays_give(pair, batch):
    pair.compile("sgd")
    loss, *_ = pair.evaluate(batch, batch_size=4, verbose=0)
    for make in sources([batch, batch]).values():
        np.testing.assert_allclose(pair.evaluate(make(), verbose=0)[0], loss, rtol=1e-5)


@pytest.mark.wide
@pytest.mark.parametrize(
    "start, bound", [(MAX_LOGIT_SCALE + 0.2, MAX_LOGIT_SCALE), pytest.param(-0.2, 0.0, marks=pytest.mark.once)]
)
@pytest.mark.parametrize("optimizer", [pytest.param("sgd", marks=pytest.mark.once), "adamw"])
def test_an_update_clips_logit_scale_to_its_bounds(start, bound, optimizer, rng):
    model = create_clip(VIT_PAIR)
    model.logit_scale.logit_scale.assign(start)
    model.compile(optimizer)
    model.optimizer.learning_rate = 1e-6
    model.fit(training_data(rng), batch_size=24, verbose=0)
    assert float(array(model.logit_scale.logit_scale)) == pytest.approx(bound, abs=1e-5)


@pytest.mark.once
@pytest.mark.parametrize("name, kind", [("adamw", AdamW), ("AdamW", AdamW), ("adam", keras.optimizers.Adam)])
def test_optimizers_by_name(pair, name, kind):
    pair.compile(name)
    assert isinstance(pair.optimizer, kind)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", pytest.param("bfloat16", marks=pytest.mark.wide)])
def test_half_precision_keeps_scale_and_outputs_in_float32(policy, batch):
    keras.config.set_dtype_policy(policy)
    model = create_clip(VIT_PAIR, init_logit_bias=-10.0)
    assert model.logit_scale.logit_scale.dtype == model.logit_scale.logit_bias.dtype == "float32"
    for value in model.predict(batch, verbose=0).values():
        assert value.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(value, axis=-1), 1, rtol=1e-5)


def test_every_parameter_gets_a_finite_gradient(pair, batch):
    from clip import clip_loss

    def loss():
        outputs = pair(batch)
        return clip_loss(pair.logits(outputs["image_embeddings"], outputs["text_embeddings"]))

    for variable, gradient in zip(pair.trainable_variables, gradients(loss, pair.trainable_variables), strict=True):
        assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0, variable.path


@pytest.mark.wide
def test_keras_file_round_trip_keeps_weights_and_compilation(pair, batch, tmp_path, rng):
    pair.compile(keras.optimizers.Adam(1e-3), loss="clip")
    pair.fit(training_data(rng), batch_size=12, verbose=0)
    pair.save(tmp_path / "pair.keras")
    again = keras.saving.load_model(tmp_path / "pair.keras", safe_mode=True)
    assert isinstance(again, CLIP) and again.contrastive_loss == "clip"
    expected = pair.predict(batch, verbose=0)
    for key, value in again.predict(batch, verbose=0).items():
        np.testing.assert_array_equal(value, expected[key])
    again.fit(training_data(rng), batch_size=12, verbose=0)


@pytest.mark.once
def test_towers_save_alone(pair, batch, tmp_path):
    for tower, value in ((pair.image_encoder, batch["images"]), (pair.text_encoder, batch["tokens"])):
        tower.save(tmp_path / "tower.keras")
        again = keras.saving.load_model(tmp_path / "tower.keras", safe_mode=True)
        np.testing.assert_array_equal(array(again(value)), array(tower(value)))


@pytest.mark.once
def test_summary_shows_the_towers(pair):
    lines = []
    pair.summary(print_fn=lines.append, line_length=100)
    text = "\n".join(map(str, lines))
    for name in ("image_encoder", "text_encoder", "logit_scale"):
        assert name in text


@pytest.mark.once
def test_vit_reads_whole_patches_only(rng):
    tower = create_vit_tower(VIT_PAIR.image, 16, image_size=34)
    assert tower.get_layer("class_embedding").output.shape == (None, 17, 32)
