"""The zero-shot head: its matrix, its scores, and independence of the text tower."""

import keras
import numpy as np
import pytest
from helpers import randomize

import clip
from clip import class_matrix, create_clip, tokenize, zero_shot_classifier
from clip.variants import Pair, Text, ViT

pytestmark = pytest.mark.backend

NAMES = ["cat", "dog", "three"]
TEMPLATES = ("a photo of a {}.", "{}", "a drawing of the {}")


@pytest.fixture
def model(rng):
    pair = Pair(16, 32, ViT(32, 1, 8, head_width=16), Text(width=32, heads=2, layers=1))
    return randomize(create_clip(pair), rng, scale=0.05)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_class_matrix_normalises_averages_and_normalises(model):
    columns = []
    for name in NAMES:
        prompts = [template.format(name) for template in TEMPLATES]
        embeddings = unit(model.text_encoder.predict(tokenize(prompts), verbose=0))
        columns.append(unit(embeddings.mean(axis=0)))
    np.testing.assert_allclose(class_matrix(model, NAMES, TEMPLATES), np.stack(columns, axis=1), atol=1e-5)


def test_scores_are_a_softmax_over_scaled_cosines(model, rng):
    images = rng.standard_normal((5, 32, 32, 3)).astype("float32")
    classifier = zero_shot_classifier(model, NAMES, TEMPLATES)
    assert type(classifier).__mro__[-2].__module__.startswith("keras") and classifier.output_shape == (None, 3)
    embeddings = unit(model.image_encoder.predict(images, verbose=0))
    scale = np.exp(keras.ops.convert_to_numpy(model.logit_scale.logit_scale))
    logits = scale * embeddings @ class_matrix(model, NAMES, TEMPLATES)
    expected = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(classifier.predict(images, verbose=0), expected, atol=1e-4)
    plain = zero_shot_classifier(model, NAMES, TEMPLATES, activation=None)
    np.testing.assert_allclose(plain.predict(images, verbose=0), logits, atol=1e-3)


@pytest.mark.wide
def test_templates_matter_and_their_order_does_not(model):
    forward = class_matrix(model, NAMES, TEMPLATES)
    np.testing.assert_allclose(class_matrix(model, NAMES, TEMPLATES[::-1]), forward, atol=1e-6)
    assert np.abs(class_matrix(model, NAMES) - forward).max() > 1e-4


@pytest.mark.wide
def test_each_distinct_prompt_is_encoded_once_in_batches(model, monkeypatch):
    sizes, predict = [], model.text_encoder.predict
    monkeypatch.setattr(
        model.text_encoder, "predict", lambda x, **k: sizes.append((len(x), k["batch_size"])) or predict(x, **k)
    )
    class_matrix(model, ["cat", "dog", "cat"], ("a {}", "the {}"), batch_size=3)
    assert sizes == [(4, 3)]


def test_saves_and_loads_without_the_text_tower(model, rng, tmp_path):
    images = rng.standard_normal((2, 32, 32, 3)).astype("float32")
    classifier = zero_shot_classifier(model, NAMES)
    expected = classifier.predict(images, verbose=0)
    classifier.save(tmp_path / "zero_shot.keras")
    del model
    again = keras.saving.load_model(tmp_path / "zero_shot.keras", safe_mode=True)
    np.testing.assert_array_equal(again.predict(images, verbose=0), expected)
    assert again.get_layer("zero_shot_head").class_names == NAMES
    assert not any(isinstance(layer, keras.layers.Embedding) for layer in again._flatten_layers())
    assert again.trainable_variables == again.get_layer("image_encoder").trainable_variables


@pytest.mark.wide
def test_the_head_keeps_its_scale_while_the_pair_trains(model, rng):
    images = rng.standard_normal((2, 32, 32, 3)).astype("float32")
    classifier = zero_shot_classifier(model, NAMES)
    expected = classifier.predict(images, verbose=0)
    model.logit_scale.logit_scale.assign(0.5)
    np.testing.assert_array_equal(classifier.predict(images, verbose=0), expected)


@pytest.mark.once
@pytest.mark.parametrize(
    "names, templates", [([], ("{}",)), (["cat"], ()), (["cat"], ("no place for a name",)), (["cat"], ("{} and {}",))]
)
def test_empty_or_malformed_prompts_are_refused(model, names, templates):
    with pytest.raises(ValueError):
        clip.zero_shot_classifier(model, names, templates)


@pytest.fixture
def biased(rng):
    pair = Pair(16, 32, ViT(32, 1, 8, head_width=16), Text(width=32, heads=2, layers=1))
    model = randomize(create_clip(pair, init_logit_bias=-10.0), rng, scale=0.05)
    model.logit_scale.logit_bias.assign(-3.0)
    return model


@pytest.mark.wide
def test_the_scores_of_a_pair_with_a_bias_are_its_logits(biased, rng, tmp_path):
    images = rng.standard_normal((5, 32, 32, 3)).astype("float32")
    prompts = biased.encode_text(tokenize([TEMPLATES[0].format(name) for name in NAMES]))
    expected = keras.ops.convert_to_numpy(biased.logits(biased.encode_image(images), prompts))
    plain = zero_shot_classifier(biased, NAMES, TEMPLATES[:1], activation=None)
    np.testing.assert_allclose(plain.predict(images, verbose=0), expected, atol=1e-3)
    scores = zero_shot_classifier(biased, NAMES, TEMPLATES[:1])  # "auto": sigmoid
    np.testing.assert_allclose(scores.predict(images, verbose=0), 1 / (1 + np.exp(-expected)), atol=1e-4)
    softmax = zero_shot_classifier(biased, NAMES, TEMPLATES[:1], activation="softmax")
    np.testing.assert_allclose(softmax.predict(images, verbose=0).sum(axis=1), 1, atol=1e-5)
    scores.save(tmp_path / "scores.keras")
    again = keras.saving.load_model(tmp_path / "scores.keras", safe_mode=True)
    np.testing.assert_array_equal(again.predict(images, verbose=0), scores.predict(images, verbose=0))


@pytest.mark.once
def test_a_head_without_a_bias_has_the_weights_and_activation_of_earlier_ones(model):
    head = zero_shot_classifier(model, NAMES).get_layer("zero_shot_head")
    assert [weight.name for weight in head.weights] == ["class_matrix", "logit_scale"]
    assert head.activation is keras.activations.softmax
    config = {key: value for key, value in head.get_config().items() if key != "use_bias"}
    assert type(head).from_config(config).use_bias is False


@pytest.mark.once
@pytest.mark.parametrize("names", [{"cat": "a photo of a cat"}, {"cat", "dog"}, "cat"])
def test_names_that_would_be_misread_are_refused(model, names):
    with pytest.raises(ValueError, match="class_names"):
        zero_shot_classifier(model, names)
