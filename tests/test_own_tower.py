"""A tower of the user's own: this file and its one registration are all that building, counting, saving, loading and
exporting need.
"""

import dataclasses
import json

import keras
import numpy as np
import pytest
from keras import layers, ops

import clip
import zoo
from zoo.export import register_emission

pytestmark = pytest.mark.backend


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Config: channels of each strided convolution."""

    widths: tuple[int, ...]
    patch_size: int = 4


@keras.saving.register_keras_serializable("tests")
class Gate(layers.Layer):
    """x · sigmoid(gamma), one gamma per channel."""

    def build(self, input_shape):
        self.gamma = self.add_weight(shape=(input_shape[-1],), initializer="zeros", name="gamma")

    def call(self, inputs):
        return inputs * ops.sigmoid(self.gamma)

    def compute_output_shape(self, input_shape):
        return input_shape


def create_tower(config, embed_dim, *, image_size=32, name="image_encoder"):
    x = images = keras.Input((image_size, image_size, 3), name="images")
    for index, width in enumerate(config.widths):
        stride = config.patch_size if index == 0 else 2
        x = layers.Conv2D(width, stride, strides=stride, activation="relu", name=f"conv_{index}")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(Gate(name="gate")(x))
    return keras.Model(images, layers.Dense(embed_dim, use_bias=False, name="proj")(x), name=name)


def kernels(config):
    """Yield (positions per image side divided by image size, weights, biases) of each convolution."""
    stride, before = 1, 3
    for index, width in enumerate(config.widths):
        size = config.patch_size if index == 0 else 2
        stride *= size
        yield stride, size**2 * before * width, width
        before = width


def parameters(config, embed_dim, image_size):
    return sum(weights + biases for _, weights, biases in kernels(config)) + config.widths[-1] * (1 + embed_dim)


def flops(config, embed_dim, image_size):
    products = sum((image_size // stride) ** 2 * weights for stride, weights, _ in kernels(config))
    return 2 * (products + config.widths[-1] * embed_dim)


@register_emission(Gate)
def export_gate(graph, layer, x):
    factor = 1 / (1 + np.exp(-keras.ops.convert_to_numpy(layer.gamma)))
    return graph.op("Mul", [graph.to(x, "last"), graph.weight(factor, "factor", x.dtype)])


TOY = clip.register_tower(
    clip.Tower(
        kind="toy",
        side="image",
        config=Blocks,
        build=create_tower,
        parameters=parameters,
        flops=flops,
        schema={"widths": clip.Field.integer(1, 512).list(), "patch_size": clip.Field.integer(1, 64)},
        weights={"Gate": ("gamma",)},
    )
)
PAIR = clip.Pair(8, 32, Blocks((8, 12)), clip.Text(16, 2, 1, context_length=8, vocabulary_size=50))


@pytest.fixture
def batch(rng):
    tokens = rng.integers(1, 50, (4, 8)).astype("int32")
    return {"images": rng.standard_normal((4, 32, 32, 3)).astype("float32"), "tokens": tokens}


@pytest.fixture
def model(batch):
    model = clip.create_clip(PAIR)
    model.compile(keras.optimizers.Adam(1e-2))
    assert np.isfinite(model.fit(batch, batch_size=4, verbose=0).history["loss"][0])
    assert np.abs(ops.convert_to_numpy(model.image_encoder.get_layer("gate").gamma)).max() > 0  # it trained
    return model


@pytest.mark.once
def test_counts_follow_from_the_config():
    model = clip.create_clip(PAIR, image_size=64)
    assert sum(int(np.prod(v.shape)) for v in model.trainable_variables) == clip.parameters(PAIR)
    assert clip.image_flops(PAIR, 64) == 2 * (16**2 * 16 * 3 * 8 + 8**2 * 4 * 8 * 12 + 12 * 8)
    assert clip.tower_of(PAIR.image) is TOY is clip.find_tower("image", "toy")


@pytest.mark.once
def test_a_row_goes_through_json():
    fields = json.loads(json.dumps(PAIR.to_dict()))
    assert fields["image"] == {"kind": "toy", "widths": [8, 12], "patch_size": 4}
    assert "kind" not in fields["text"]
    assert clip.Pair.from_dict(fields) == PAIR


@pytest.mark.once
def test_a_trained_pair_is_saved_and_loaded(model, batch, tmp_path):
    zoo.save(model, tmp_path / "toy.safetensors")
    loaded = zoo.load(tmp_path / "toy.safetensors")
    for key, value in model.predict(batch, verbose=0).items():
        np.testing.assert_array_equal(loaded.model.predict(batch, verbose=0)[key], value)
    assert loaded.info.parameters == clip.parameters(PAIR)
    assert loaded.info.flops == clip.flops(PAIR)


@pytest.mark.once
@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [("kind", "top", "kind is 'top'"), ("patch_size", 0, "patch_size is 0"), ("widths", [8, "a"], "widths is")],
)
def test_a_saved_config_is_checked(tmp_path, field, value, complaint):
    from test_save_load import rewrite, set_argument

    path = tmp_path / "toy.safetensors"
    zoo.save(clip.create_clip(PAIR), path)
    rewrite(path, set_argument(f"variant.image.{field}", value))
    with pytest.raises(ValueError, match=complaint):
        zoo.load(path)


@pytest.mark.wide
def test_a_trained_pair_is_exported_to_onnx(model, batch, tmp_path):
    pytest.importorskip("onnx")
    zoo.export_onnx(model, tmp_path / "toy.onnx", part="image")  # compares the file's outputs with the model's
    runtime = pytest.importorskip("onnxruntime").InferenceSession(tmp_path / "toy.onnx")
    (outputs,) = runtime.run(None, {runtime.get_inputs()[0].name: batch["images"]})
    expected = ops.convert_to_numpy(model.encode_image(batch["images"], normalize=False))
    np.testing.assert_allclose(outputs, expected, atol=1e-5)


@pytest.mark.once
def test_a_registration_must_fit_its_config():
    with pytest.raises(ValueError, match=r"schema of tower 'toy' must list \['patch_size', 'widths'\]"):
        clip.register_tower(dataclasses.replace(TOY, schema={}))
    with pytest.raises(ValueError, match="side must be one of image, text, got 'sound'"):
        clip.register_tower(dataclasses.replace(TOY, side="sound"))
    with pytest.raises(ValueError, match="Unknown image tower 'tov'. Did you mean 'toy'"):
        clip.find_tower("image", "tov")
    with pytest.raises(ValueError, match="int is not the config of a registered tower. Registered: .*ViT"):
        clip.tower_of(3)
