"""The pairs' towers in OpenAI's shapes: ResNet with its attention pool, ViT of any head width, and the rows' counts."""

import math

import keras
import numpy as np
import pytest
from helpers import declare_torchvision_operators, gradients, predict, randomize
from keras import ops

import clip
from clip import Pair, ResNet, Text, ViT, clip_loss, create_clip, create_resnet_tower, tokenize
from clip.layers import AttentionPool
from clip.towers.resnet import last_map
from zoo import weights as convert

pytestmark = pytest.mark.backend

TEXT = Text(width=16, heads=2, layers=1)
RESNET_PAIR = Pair(12, 64, ResNet((1, 2, 1, 1), 4), TEXT, "quick_gelu")
VIT_PAIR = Pair(12, 42, ViT(80, 1, 14, 40, 4.3637), TEXT)
OPENAI = ("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336")


@pytest.fixture
def batch(rng):
    return {
        "images": rng.standard_normal((4, 64, 64, 3)).astype("float32"),
        "tokens": tokenize(["a red square", "two dogs", "the number three", "x"], 16),
    }


def softmax(x):
    x = np.exp(x - x.max())
    return x / x.sum()


def test_attention_pool_matches_the_paper(rng):
    layer = AttentionPool(num_heads=2, output_dim=5)
    layer.build((None, 2, 3, 8))
    weights = {w.path.partition("/")[2]: 0.5 * rng.standard_normal(w.shape).astype("float32") for w in layer.weights}
    for variable in layer.weights:
        variable.assign(weights[variable.path.partition("/")[2]])
    image = rng.standard_normal((2, 3, 8)).astype("float32")
    tokens = np.concatenate([image.mean((0, 1))[None], image.reshape(6, 8)]) + weights["positional_embedding"]
    query, key, value = (tokens @ weights[f"{n}_proj/kernel"] + weights[f"{n}_proj/bias"] for n in "qkv")
    heads = [
        softmax(query[0, part] @ key[:, part].T / 2) @ value[:, part]  # 2 = √4, each head's width
        for part in (slice(0, 4), slice(4, 8))
    ]
    expected = np.concatenate(heads) @ weights["c_proj/kernel"] + weights["c_proj/bias"]
    np.testing.assert_allclose(ops.convert_to_numpy(layer(image[None]))[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.once
def test_attention_pool_refuses_heads_that_do_not_fit():
    with pytest.raises(ValueError, match="multiple of num_heads, got 8, 3 heads"):
        AttentionPool(3, 5).build((None, 2, 2, 8))


@pytest.mark.once
@pytest.mark.parametrize("row", [RESNET_PAIR, VIT_PAIR], ids=["resnet", "vit"])
@pytest.mark.parametrize("larger", [0, 7, 38])
def test_built_pairs_have_the_counted_parameters(row, larger):
    size = row.image_size + larger
    model = create_clip(row, image_size=size)
    built = sum(math.prod(variable.shape) for variable in model.trainable_variables)
    text = clip.variants.text_parameters(row.text, row.embed_dim)
    assert built == clip.variants.image_parameters(row, size) + text + 1
    assert model.image_encoder.output_shape == (None, row.embed_dim)


@pytest.mark.once
def test_flops_are_the_sum_over_layers():
    tower = create_resnet_tower(RESNET_PAIR.image, 12, image_size=80)  # maps of 40, 20, 10, 5, 2
    total = 0
    for layer in tower.layers:
        if isinstance(layer, keras.layers.Conv2D):
            total += math.prod(layer.output.shape[1:3]) * math.prod(layer.kernel.shape)
    positions, features = last_map(80) ** 2 + 1, RESNET_PAIR.image.features
    assert tower.get_layer("attnpool").positional_embedding.shape == (positions, features)
    total += (2 * positions + 1) * features**2 + 2 * positions * features + features * 12
    assert clip.variants.image_flops(RESNET_PAIR, 80) == 2 * total


@pytest.mark.once
def test_only_the_stem_has_a_stride_and_a_block_starts_as_its_shortcut():
    tower = create_resnet_tower(ResNet((2, 1, 1, 1), 4), 12, image_size=64)
    strided = [layer.name for layer in tower.layers if getattr(layer, "strides", (1, 1)) != (1, 1)]
    pools = ["layer2_0_avgpool", "layer2_0_downsample_pool", "layer3_0_avgpool", "layer3_0_downsample_pool"]
    assert sorted(strided) == sorted(["conv1", "avgpool", *pools, "layer4_0_avgpool", "layer4_0_downsample_pool"])
    norms = [layer for layer in tower.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert {(norm.epsilon, norm.momentum) for norm in norms} == {(1e-5, 0.9)}
    zeros = [norm.name for norm in norms if not ops.convert_to_numpy(norm.gamma).any()]
    assert zeros == [name for name in [norm.name for norm in norms] if name.endswith("_bn3")]


@pytest.mark.once
@pytest.mark.parametrize("size", [31, 1])
def test_images_too_small_are_refused(size):
    with pytest.raises(ValueError, match=f"image_size must be at least 32 pixels, got {size}"):
        create_clip("RN50", image_size=size)


@pytest.mark.once
@pytest.mark.parametrize("row", [((1, 1, 1), 4), ((1, 1, 1, 0), 4), ((1, 1, 1, 1), 3)])
def test_invalid_resnet_rows_are_refused(row):
    with pytest.raises(ValueError, match="four positive layers and an even width"):
        ResNet(*row)


@pytest.mark.once
def test_a_head_width_that_does_not_divide_the_width_is_refused():
    with pytest.raises(ValueError, match="multiple of its head_width"):
        ViT(32, 2, 8)


@pytest.mark.once
def test_stem_stride_belongs_to_convnext():
    with pytest.raises(ValueError, match=r"stem_stride.*a ResNet"):
        create_clip(RESNET_PAIR, stem_stride=2)


def test_every_parameter_gets_a_finite_gradient(batch, rng):
    pair = randomize(create_clip(RESNET_PAIR), rng, scale=0.1)

    def loss():
        outputs = pair(batch, training=True)
        return clip_loss(pair.logits(outputs["image_embeddings"], outputs["text_embeddings"]))

    found = gradients(loss, pair.trainable_variables)
    for variable, gradient in zip(pair.trainable_variables, found, strict=True):
        assert np.isfinite(gradient).all(), variable.path
        if not variable.path.endswith("k_proj/bias"):  # softmax is invariant to a shift of all keys
            assert np.abs(gradient).max() > 0, variable.path


@pytest.mark.once
def test_a_resnet_pair_trains_and_its_statistics_move(batch):
    pair = create_clip(RESNET_PAIR)
    pair.compile(keras.optimizers.Adam(1e-2))
    before = ops.convert_to_numpy(pair.image_encoder.get_layer("layer1_0_bn1").moving_mean)
    history = pair.fit(batch, batch_size=4, epochs=12, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    after = ops.convert_to_numpy(pair.image_encoder.get_layer("layer1_0_bn1").moving_mean)
    assert np.abs(after - before).max() > 0


@pytest.mark.wide
def test_inference_is_deterministic_and_survives_a_keras_file(batch, rng, tmp_path):
    pair = randomize(create_clip(RESNET_PAIR), rng, scale=0.1)
    expected = pair.predict(batch, verbose=0)
    pair.save(tmp_path / "pair.keras")
    again = keras.saving.load_model(tmp_path / "pair.keras", safe_mode=True)
    for model in (pair, again):
        for key, value in model.predict(batch, verbose=0).items():
            np.testing.assert_array_equal(value, expected[key])


@pytest.mark.wide
def test_half_precision_stays_near_float32(batch, rng):
    single = randomize(create_clip(RESNET_PAIR), rng, scale=0.1)
    keras.config.set_dtype_policy("mixed_bfloat16")
    half = create_clip(RESNET_PAIR)
    half.set_weights(single.get_weights())
    expected, found = (predict(model.image_encoder, batch["images"]) for model in (single, half))
    assert np.abs(np.float32(found) - expected).max() < 0.1 * np.abs(expected).max()


@pytest.mark.once
def test_summary_names_the_layers_as_the_checkpoints_do():
    lines = []
    create_resnet_tower(RESNET_PAIR.image, 12, image_size=64).summary(print_fn=lines.append, line_length=100)
    text = "\n".join(map(str, lines))
    for name in ("conv1", "bn3", "layer1_0_conv1", "layer2_1_bn3", "layer4_0_downsample_1", "attnpool"):
        assert name in text


@pytest.mark.once
def test_only_openais_nine_rows_have_quick_gelu():
    assert {name for name, row in clip.VARIANTS.items() if row.activation == "quick_gelu"} == set(OPENAI)


@pytest.mark.once
def test_timms_names_of_the_resnet(rng):
    torch = pytest.importorskip("torch")
    declare_torchvision_operators()
    import timm

    with torch.device("meta"):
        theirs = timm.create_model("resnet50_clip")
    tower = randomize(create_resnet_tower(ResNet((1, 2, 1, 1), 4), 12, image_size=64), rng)
    openai, renamed = (convert.export_tensors(tower, format_named(name)) for name in FORMATS_OF_RESNET)
    state = {f"visual.{key}": torch.from_numpy(np.array(value)) for key, value in openai.items()}
    expected = timm.models.byobnet._convert_openai_clip(state, theirs)
    assert set(renamed) == set(expected)
    for key, value in expected.items():
        np.testing.assert_array_equal(renamed[key], value.numpy(), err_msg=key)


FORMATS_OF_RESNET = ("open_clip's image tower, a ResNet", "timm's ResNet with an attention pool")


def format_named(name):
    return next(known for known in convert.FORMATS if known.name == name)
