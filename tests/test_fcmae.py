"""Masked pretraining: the dense masked encoder against a sparse one in NumPy, what is hidden, training."""

import math

import keras
import numpy as np
import pytest
from helpers import gradients, predict, randomize
from keras import ops

import convnext
from convnext.fcmae import encode_visible, join_patches, masked_loss, normalize_patches, split_patches

pytestmark = pytest.mark.backend
once = pytest.mark.once

ROW = convnext.Variant((1, 2), (4, 6))
SHAPE, GRID = (16, 24, 3), (4, 6)  # patches of 4×4 pixels: stem stride 2, two stages


def create(shape=SHAPE, row=ROW, **options):
    return convnext.create_fcmae(row, shape, **{"stem_stride": 2, "decoder_dim": 8, "seed": 1, **options})


@pytest.fixture
def model(rng):
    return randomize(create(), rng)


@pytest.fixture
def batch(rng):
    """{"images", "mask"} of two samples, 14 of 24 patches hidden in one, 1 in the other."""
    mask = np.zeros((2, 24), np.float32)
    mask[0, rng.permutation(24)[:14]] = 1
    mask[1, 7] = 1
    return {"images": rng.standard_normal((2, *SHAPE)).astype(np.float32), "mask": mask.reshape(2, *GRID)}


# A sparse encoder in NumPy: it holds the visible positions alone, {(row, column): (C,)}, and knows of no zeros.


def weights_of(model, name):
    return [ops.convert_to_numpy(weight).astype(np.float64) for weight in model.get_layer(name).weights]


def norm(points, model, name):
    gamma, beta = weights_of(model, name)

    def one(x):
        return (x - x.mean()) / math.sqrt(x.var() + 1e-6) * gamma + beta

    return {place: one(x) for place, x in points.items()}


def dense(points, model, name):
    kernel, bias = weights_of(model, name)
    return {place: x @ kernel + bias for place, x in points.items()}


def depthwise(points, model, name):
    kernel, bias = weights_of(model, name)
    result = {}
    for row, column in points:
        near = [(r, c) for r in range(-3, 4) for c in range(-3, 4) if (row + r, column + c) in points]
        result[row, column] = sum(points[row + r, column + c] * kernel[r + 3, c + 3, :, 0] for r, c in near) + bias
    return result


def response_norm(points, model, name):
    gamma, beta = weights_of(model, name)
    response = np.sqrt(sum(x**2 for x in points.values()))
    return {place: gamma * x * response / (response.mean() + 1e-6) + beta + x for place, x in points.items()}


def gelu(points):
    erf = np.vectorize(math.erf)
    return {place: x * 0.5 * (1 + erf(x / math.sqrt(2))) for place, x in points.items()}


def sparse_block(points, model, name):
    x = norm(depthwise(points, model, f"{name}_dwconv"), model, f"{name}_norm")
    x = response_norm(gelu(dense(x, model, f"{name}_pwconv1")), model, f"{name}_grn")
    x = dense(x, model, f"{name}_pwconv2")
    return {place: points[place] + x[place] for place in points}


def sparse_downsample(points, model, name):
    kernel, bias = weights_of(model, f"{name}_conv")
    x = norm(points, model, f"{name}_norm")
    outputs = {(row // 2, column // 2) for row, column in points}
    window = [(r, c) for r in range(2) for c in range(2)]
    return {(i, j): sum(x[2 * i + r, 2 * j + c] @ kernel[r, c] for r, c in window) + bias for i, j in outputs}


def sparse_stem(image, mask, model):
    """4×4 windows, 2 apart, one pixel beyond the image on each side; without hidden and outside pixels."""
    kernel, bias = weights_of(model, "stem_conv")
    height, width = image.shape[:2]
    seen = {(r, c) for r in range(height) for c in range(width) if not mask[r // 4, c // 4]}
    window = [(r, c) for r in range(4) for c in range(4)]
    points = {}
    for i, j in {(r // 2, c // 2) for r, c in seen}:
        here = [(r, c, (2 * i - 1 + r, 2 * j - 1 + c)) for r, c in window]
        points[i, j] = sum(image[place] @ kernel[r, c] for r, c, place in here if place in seen) + bias
    return norm(points, model, "stem_norm")


def sparse_encode(model, image, mask):
    points = sparse_block(sparse_stem(image, mask, model), model, "stages_0_blocks_0")
    points = sparse_downsample(points, model, "stages_1_downsample")
    for number in range(2):
        points = sparse_block(points, model, f"stages_1_blocks_{number}")
    return points


def decode(model, points, mask):
    """Every position of the decoder: (h, w, P)."""
    (token,) = weights_of(model, "mask_token")
    seen = dense(points, model, "proj")
    x = {place: token if mask[place] else seen[place] for place in np.ndindex(*mask.shape)}
    x = dense(sparse_block(x, model, "decoder_blocks_0"), model, "pred")
    return np.stack([x[place] for place in np.ndindex(*mask.shape)]).reshape(*mask.shape, -1)


def squared_error(image, patches, mask):
    """[mean squared error of each hidden patch, its pixels normalised]."""
    errors = []
    for i, j in zip(*np.nonzero(mask), strict=True):
        pixels = image[4 * i : 4 * i + 4, 4 * j : 4 * j + 4].astype(np.float64).ravel()
        target = (pixels - pixels.mean()) / math.sqrt(pixels.var(ddof=1) + 1e-6)
        errors.append(((patches[i, j] - target) ** 2).mean())
    return errors


def encode_function(model):
    """{"images", "mask"} → the masked encoder's features, as a model that `predict` can compile."""
    images, mask = keras.Input(model.encoder.input_shape[1:], name="images"), keras.Input(model.grid, name="mask")

    class Encode(keras.layers.Layer):
        def call(self, pair):
            return encode_visible(model.encoder, *pair)

    return keras.Model({"images": images, "mask": mask}, Encode()([images, mask]))


def close(ours, theirs, tolerance=2e-5):
    assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()


def test_visible_positions_match_the_sparse_encoder(model, batch):
    features = predict(encode_function(model), batch)
    for ours, image, mask in zip(features, batch["images"], batch["mask"], strict=True):
        sparse = sparse_encode(model.encoder, image, mask)
        assert sorted(sparse) == [tuple(place) for place in np.argwhere(mask == 0)]
        close(np.stack([ours[place] for place in sparse]), np.stack(list(sparse.values())))
        assert not ours[mask == 1].any()


def test_patches_and_loss_match_the_reference(model, batch):
    outputs = predict(model, batch)
    np.testing.assert_array_equal(outputs["mask"], batch["mask"])
    errors = []
    for ours, image, mask in zip(outputs["patches"], batch["images"], batch["mask"], strict=True):
        expected = decode(model.decoder, sparse_encode(model.encoder, image, mask), mask)
        close(ours, expected)
        errors += squared_error(image, expected, mask)
    model.compile("sgd")
    assert model.evaluate(batch, verbose=0) == pytest.approx(np.mean(errors), rel=1e-4)


def test_with_nothing_hidden_the_encoder_is_the_plain_backbone(rng):
    model = randomize(create(mask_ratio=0.0), rng)
    images = rng.standard_normal((2, *SHAPE)).astype(np.float32)
    nothing = np.zeros((2, *GRID), np.float32)
    plain = predict(model.encoder, images)
    close(predict(encode_function(model), {"images": images, "mask": nothing}), plain, 1e-6)
    assert not ops.convert_to_numpy(model.draw_mask(5)).any()


@pytest.mark.wide
@pytest.mark.parametrize("stem_stride", [pytest.param(4, marks=once), 1])
def test_hidden_pixels_do_not_change_visible_features(stem_stride, rng):
    side = stem_stride * 2
    model = randomize(create((4 * side, 4 * side, 3), stem_stride=stem_stride), rng)
    images = keras.Variable(rng.standard_normal((1, 4 * side, 4 * side, 3)).astype(np.float32))
    mask = np.eye(4, dtype=np.float32)[None]
    weight = rng.standard_normal((1, 4, 4, 6)).astype(np.float32)

    def loss():
        features = encode_visible(model.encoder, ops.convert_to_tensor(images), ops.array(mask))
        return ops.sum(features * ops.array(weight))

    (gradient,) = gradients(loss, [images])
    hidden = mask[0].repeat(side, axis=0).repeat(side, axis=1) == 1
    assert not gradient[0, hidden].any()
    assert (np.abs(gradient[0, ~hidden]).max(axis=-1) > 0).all()


@once
def test_every_weight_has_a_finite_gradient(model, batch):
    batch["images"][1] = 0.5  # constant: every normalised patch and every channel's response may be zero

    def loss():
        arrays = {name: ops.array(array) for name, array in batch.items()}
        return model.compute_loss(x=arrays, y_pred=model(arrays, training=True))

    variables = model.trainable_variables
    for variable, gradient in zip(variables, gradients(loss, variables), strict=True):
        assert np.isfinite(gradient).all(), variable.path
        assert gradient.any(), variable.path


@pytest.mark.once
def test_the_loss_falls(rng):
    images = np.tile(rng.standard_normal((2, 8, 12, 3)).repeat(2, axis=1).repeat(2, axis=2), (4, 1, 1, 1))
    model = create()
    before = model.encoder.get_weights()
    model.compile(keras.optimizers.Adam(0.03))
    losses = model.fit(images.astype(np.float32), batch_size=8, epochs=30, verbose=0).history["loss"]
    assert losses[-1] < 0.9 * losses[0]
    assert all(not np.array_equal(*pair) for pair in zip(before, model.encoder.get_weights(), strict=True))


@once
def test_training_follows_from_the_seed(rng):
    images = rng.standard_normal((4, *SHAPE)).astype(np.float32)

    def losses(seed):
        keras.utils.set_random_seed(5)
        model = create(seed=seed)
        model.compile("adam")
        return model.fit(images, epochs=3, verbose=0).history["loss"]

    assert losses(1) == losses(1) != losses(2)


@pytest.mark.once
def test_each_mask_is_new_and_hides_the_same_number():
    model = create(seed=3)
    first, second = (ops.convert_to_numpy(model.draw_mask(64)) for _ in range(2))
    assert first.shape == (64, *GRID) and set(np.unique(first)) == {0, 1}
    np.testing.assert_array_equal(first.sum(axis=(1, 2)), 15)  # int(24 · 0.4) = 9 stay, as in the authors' code
    assert not np.array_equal(first, second)
    assert len(np.unique(first, axis=0)) > 60
    assert first.mean(axis=0).min() > 0.3 and first.mean(axis=0).max() < 0.9
    np.testing.assert_array_equal(ops.convert_to_numpy(create(seed=3).draw_mask(64)), first)


def test_keras_file_round_trip(model, batch, tmp_path):
    model.save(tmp_path / "fcmae.keras")
    loaded = keras.saving.load_model(tmp_path / "fcmae.keras")
    configs = [{**m.get_config(), "encoder": None} for m in (loaded, model)]
    assert configs[0] == configs[1]
    np.testing.assert_array_equal(predict(loaded, batch)["patches"], predict(model, batch)["patches"])


@pytest.mark.wide
def test_half_precision_gives_float32_patches_and_a_finite_loss(batch):
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = create()
    assert model.decoder.output.dtype == "float32"
    model.compile("sgd")
    assert np.isfinite(model.evaluate(batch, verbose=0))


@once
def test_splitting_and_joining_patches(batch):
    images = batch["images"]
    cut = split_patches(images, 4)
    patches = ops.convert_to_numpy(cut)
    np.testing.assert_array_equal(patches[1, 2, 5], images[1, 8:12, 20:24].ravel())
    np.testing.assert_array_equal(ops.convert_to_numpy(join_patches(cut, 4)), images)
    normalised, mean, deviation = map(ops.convert_to_numpy, normalize_patches(cut))
    np.testing.assert_allclose(normalised * deviation + mean, patches, atol=1e-5)
    np.testing.assert_allclose(normalised.var(axis=-1, ddof=1), 1, rtol=1e-4)


@once
def test_only_hidden_patches_enter_the_loss():
    target, mask = np.zeros((1, 2, 2, 3), np.float32), np.array([[[0, 1], [1, 0]]], np.float32)
    patches = np.arange(12, dtype=np.float32).reshape(1, 2, 2, 3)
    expected = (patches[0][mask[0] == 1] ** 2).mean()
    loss = masked_loss(*map(ops.array, (target, patches, mask)))
    assert float(loss) == pytest.approx(expected)
    assert float(masked_loss(*map(ops.array, (target, patches, 0 * mask)))) == 0


@once
def test_a_reconstruction_changes_only_hidden_patches(model, batch):
    drawn = model.reconstruct(batch["images"], batch["mask"])
    hidden = batch["mask"].repeat(4, axis=1).repeat(4, axis=2) == 1
    np.testing.assert_allclose(drawn[~hidden], batch["images"][~hidden], atol=1e-6)
    assert np.abs(drawn[hidden] - batch["images"][hidden]).min(axis=-1).max() > 0.01
    own = ops.convert_to_numpy(split_patches(batch["images"], 4))[batch["mask"] == 1]
    ours = ops.convert_to_numpy(split_patches(drawn, 4))[batch["mask"] == 1]
    made = predict(model, batch)["patches"][batch["mask"] == 1]
    deviation = np.sqrt(own.var(axis=-1, ddof=1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(ours, made * deviation + own.mean(axis=-1, keepdims=True), atol=1e-4)


@once
@pytest.mark.parametrize(
    "options",
    [
        {"mask_ratio": 0.3},
        {"decoder_dim": 12},
        {"decoder_depth": 2},
        {"normalize_target": False},
        {"stem_stride": 1},
        {"drop_path_rate": 0.5},
    ],
    ids=str,
)
def test_every_option_changes_the_loss(options, rng):
    images = rng.standard_normal((2, *SHAPE)).astype(np.float32) + 3

    def loss(**options):
        keras.utils.set_random_seed(2)
        model = create(**options)
        return float(ops.convert_to_numpy(model.compute_loss(x=images, y_pred=model(images, training=True))))

    assert loss(**options) != loss()


@once
@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((18, 24, 3), {}, r"input_shape=\(18, 24, 3\); height and width must be multiples .* total stride of 4"),
        ((None, None, 3), {"stem_stride": 4}, "multiples"),
        ((4, 4, 3), {}, "1 patches of 4×4 pixels leaves 0 visible"),
        (SHAPE, {"mask_ratio": 1.0}, r"mask_ratio must be in \[0, 1\), got 1.0"),
        (SHAPE, {"row": "tinny"}, "Unknown convnextv2 variant 'tinny'"),
    ],
)
def test_invalid_shapes_and_ratios_are_refused(shape, options, message):
    with pytest.raises(ValueError, match=message):
        create(shape, **options)


@once
def test_targets_are_refused_and_names_follow_the_row(model, batch):
    model.compile("sgd")
    with pytest.raises(ValueError, match="FCMAE trains on images only"):
        model.fit(batch["images"], np.zeros(2), verbose=0)
    assert model.name == "fcmae_custom"
    small = convnext.create_fcmae("atto", (32, 32, 3))
    assert (small.name, small.patch_size, small.grid, small.kept) == ("fcmae_atto", 8, (4, 4), 6)
