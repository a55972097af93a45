"""The emitter: every family, precision and opset against Keras, and the structure of the graph."""

import collections
import re

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
from export_cases import CASES, SIZE, build, convnext
from helpers import predict, randomize

from clip.layers import resolve_activation
from convnext import ACTIVATIONS as ACTIVATION_TABLE
from convnext import create_convnext_v1, create_convnext_v2
from zoo.data.preprocess import PreprocessSpec
from zoo.export import emit, products, register_emission, to_proto
from zoo.export.emit import named_outputs
from zoo.export.rules import ACTIVATIONS, RULES

pytestmark = [pytest.mark.backend, pytest.mark.once]

TOLERANCE = 2e-5
OPTIONS = {
    "opset 20": {},
    "opset 17": {"opset": 17},
    "not folded": {"fold": False},
    "float16": {"precision": "float16"},
    "int8": {"precision": "int8"},
}
COSINE = {"float16": 0.9999, "int8": 0.998}


def inputs(model, rng, batch=3):
    """Return {input: array} for a model of `export_cases`."""
    feed = {}
    for tensor in model.inputs:
        name = tensor.name
        if len(tensor.shape) == 4:
            feed[name] = rng.standard_normal((batch, *(side or 32 for side in tensor.shape[1:])), np.float32)
        else:
            feed[name] = rng.integers(1, 49, (batch, tensor.shape[1] or 7)).astype(np.int32)
    return feed


def run(proto, feed):
    """Return {output: array} from ONNX Runtime, after onnx.checker."""
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip([entry.name for entry in session.get_outputs()], session.run(None, feed), strict=True))


def in_keras(model, feed):
    x = feed if isinstance(model.input, dict) else next(iter(feed.values()))
    return {name: np.asarray(value) for name, value in named_outputs(predict(model, x)).items()}


def error(ours, theirs):
    assert ours.shape == theirs.shape
    return np.max(np.abs(ours - theirs)) / np.max(np.abs(theirs))


def cosine(ours, theirs):
    a, b = (array.reshape(len(array), -1).astype(np.float64) for array in (ours, theirs))
    return np.min(np.sum(a * b, 1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))


def count(proto):
    return collections.Counter(node.op_type for node in proto.graph.node)


def scopes(proto, kind):
    """Return {block: number of nodes of a kind}."""
    names = (re.match(r"(.*_blocks_\d+)_", node.name) for node in proto.graph.node if node.op_type == kind)
    return collections.Counter(match[1] for match in names if match)


@pytest.mark.parametrize("case", CASES)
def test_every_family_agrees_with_keras(case, rng):
    model = build(case)
    feed = inputs(model, rng)
    expected = in_keras(model, feed)
    for name, options in OPTIONS.items():
        ours = run(to_proto(emit(model, **options)), feed)
        assert list(ours) == list(expected)
        for output, value in ours.items():
            assert value.dtype == np.float32
            if "precision" in options:
                assert cosine(value, expected[output]) >= COSINE[options["precision"]], (name, output)
            else:
                assert error(value, expected[output]) <= TOLERANCE, (name, output)


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("length", [1, 10])
def test_batch_and_text_length_are_dynamic(batch, length, rng):
    model = build("vit pair")
    proto = to_proto(emit(model))
    feed = inputs(model, rng, batch)
    feed["tokens"] = rng.integers(1, 49, (batch, length)).astype(np.int32)
    expected = in_keras(model, feed)
    for name, value in run(proto, feed).items():
        assert error(value, expected[name]) <= TOLERANCE
    feed["tokens"] = np.repeat(feed["tokens"], 2, axis=0)  # twice as many texts as images
    assert len(run(proto, feed)["text_embeddings"]) == 2 * batch
    tokens = next(entry for entry in proto.graph.input if entry.name == "tokens")
    assert tokens.type.tensor_type.elem_type == onnx.TensorProto.INT32


def test_dynamic_image_size(rng):
    model = build("open size")
    proto = to_proto(emit(model))
    for size in (32, 48):
        feed = {"images": rng.standard_normal((2, size, size, 3), np.float32)}
        assert error(run(proto, feed)["output"], in_keras(model, feed)["output"]) <= TOLERANCE


@pytest.mark.parametrize("case", ["convnext v1", "convnext v2"])
def test_convnext_has_two_transposes_and_one_fused_norm_and_gelu_per_block(case):
    proto = to_proto(emit(build(case)))
    nodes = count(proto)
    assert set(scopes(proto, "Transpose").values()) == {2}
    assert nodes["LayerNormalization"] == 3 + 3  # of blocks; stem, downsampling, head
    assert nodes["Gelu"] == 3 and nodes["Erf"] == 0
    assert nodes["MatMul"] + nodes["Gemm"] == 2 * 3 + 1
    assert nodes["Mul"] == (0 if case == "convnext v1" else 3 * 3)  # LayerScale is folded, GRN is not
    older = count(to_proto(emit(build(case), opset=17)))
    assert older["Gelu"] == 0 and older["Erf"] == 3 and older["LayerNormalization"] == 6


@pytest.mark.parametrize("case", ["resnet basic", "resnet bottleneck"])
def test_resnet_has_no_transpose_padding_or_norm(case):
    nodes = count(to_proto(emit(build(case))))
    assert nodes["Transpose"] == 1  # of the images
    assert nodes["Pad"] == 0 and nodes["BatchNormalization"] == 0 and nodes["Mul"] == 0
    assert count(to_proto(emit(build(case), layout="NCHW")))["Transpose"] == 0


def test_layers_share_one_causal_mask():
    assert count(to_proto(emit(build("vit pair").text_encoder)))["Trilu"] == 1


def test_branches_become_one_convolution():
    model = build("mobile pair").image_encoder
    layers = [layer for layer in model.layers if hasattr(layer, "folded") or "Conv2D" in type(layer).__name__]
    for fold in (True, False):
        assert count(to_proto(emit(model, fold=fold)))["Conv"] == len(layers)


def test_int8_covers_products_over_maps_but_not_the_head():
    nodes = count(to_proto(emit(build("convnext v1"), precision="int8")))
    assert nodes["MatMulInteger"] == 6 + 1 and nodes["Gemm"] == 1  # of blocks, downsampling; the head
    assert nodes["Conv"] == 3 + 1  # of blocks; the stem
    weights = to_proto(emit(build("convnext v1"), precision="int8")).graph.initializer
    assert sum(tensor.data_type == onnx.TensorProto.UINT8 and len(tensor.dims) == 2 for tensor in weights) == 7


def test_int8_sums_do_not_saturate(rng):
    """Signed weights would saturate on CPUs without VNNI for products this large."""
    entry = keras.Input((4, 4, 64))
    model = keras.Model(entry, keras.layers.Dense(64, use_bias=False, name="dense")(entry))
    model.set_weights([np.where(rng.random((64, 64)) < 0.9, 1.0, -1.0)])
    feed = {entry.name: rng.uniform(0.99, 1.0, (2, 4, 4, 64)).astype("float32")}
    (found,) = run(to_proto(emit(model, precision="int8")), feed).values()
    (exact,) = in_keras(model, feed).values()
    np.testing.assert_allclose(found, exact, rtol=5e-3)


@pytest.mark.parametrize("opset", [17, 20])
@pytest.mark.parametrize("case", ["convnext v1", "convnext v2"])
def test_splitting_wide_maps_changes_nothing(case, opset, rng, monkeypatch):
    model = build(case)
    feed = inputs(model, rng)
    whole, halves = emit(model, opset=opset), "stages_0_blocks_0_pwconv1/"
    monkeypatch.setattr(products, "PART", 4 * 8 * 8 * 32 // 2)  # of the first stage's map, 8 × 8 × 32; later ones fit
    split = emit(model, opset=opset)
    assert split.nbytes < whole.nbytes + 100  # the parts share their weights
    proto = to_proto(split)
    nodes = count(proto)
    assert nodes["Split"] == nodes["Concat"] == 1
    assert sum(node.op_type == "MatMul" and halves in node.name for node in proto.graph.node) == 2
    np.testing.assert_allclose(run(proto, feed)["output"], run(to_proto(whole), feed)["output"], rtol=1e-4, atol=1e-5)
    exact = in_keras(model, feed)["output"]
    assert cosine(run(to_proto(emit(model, opset=opset, precision="int8")), feed)["output"], exact) >= COSINE["int8"]
    assert count(to_proto(emit(model, opset=opset, precision="float16")))["Split"] == 0


def test_float16_keeps_norms_and_outputs_in_float32():
    proto = to_proto(emit(build("convnext v2"), precision="float16"))
    types = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    kernels = [name for name in types if name.endswith("kernel")]
    assert {types[name] for name in kernels} == {onnx.TensorProto.FLOAT16}
    gains = [name for name in types if re.search(r"(norm|grn)/(gamma|beta)$", name)]
    assert gains and {types[name] for name in gains} == {onnx.TensorProto.FLOAT}
    declared = [*proto.graph.input, *proto.graph.output]
    assert {entry.type.tensor_type.elem_type for entry in declared} == {onnx.TensorProto.FLOAT}


def test_grn_does_not_overflow_in_float16(rng):
    """GRN sums squares that exceed 65,504."""
    model = randomize(convnext(create_convnext_v2), rng)
    model.get_layer("stages_0_blocks_0_pwconv1").bias.assign(np.full(32, 300.0, np.float32))
    feed = inputs(model, rng)
    ours = run(to_proto(emit(model, precision="float16")), feed)["output"]
    assert np.isfinite(ours).all()
    assert cosine(ours, in_keras(model, feed)["output"]) > 0.999


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("case", ["convnext v1", "fine stem", "resnet basic", "zero-shot"])
@pytest.mark.parametrize("fold", [True, False])
def test_preprocessing_in_the_file(case, layout, fold, rng):
    model, spec = build(case), PreprocessSpec(image_size=32)
    pixels = rng.integers(0, 256, (3, *SIZE), np.uint8)
    proto = to_proto(emit(model, preprocess=spec, layout=layout, fold=fold))
    given = pixels.transpose(0, 3, 1, 2) if layout == "NCHW" else pixels
    expected = in_keras(model, {"images": np.stack([spec.eval_transform()(image) for image in pixels])})
    assert error(run(proto, {"images": given})["output"], expected["output"]) <= 1e-4
    absorbed = fold and case in ("convnext v1", "zero-shot")  # the other stems pad
    assert ("images/pixels" in {node.name for node in proto.graph.node}) != absorbed


def test_normalised_embeddings_and_logits(rng):
    model = build("convnext pair")
    feed = inputs(model, rng)
    ours, expected = run(to_proto(emit(model, logits=True)), feed), in_keras(model, feed)
    logits = model.logits(expected["image_embeddings"], expected["text_embeddings"])
    assert error(ours["logits"], keras.ops.convert_to_numpy(logits)) <= TOLERANCE
    tower = run(to_proto(emit(model.image_encoder, normalize=True)), {"images": feed["images"]})["output"]
    assert error(tower, expected["image_embeddings"]) <= TOLERANCE


def test_names_do_not_depend_on_other_models():
    first = to_proto(emit(build("convnext pair"))).SerializeToString()
    keras.layers.Dense(2), keras.layers.Add()  # these advance Keras' name counters
    assert to_proto(emit(build("convnext pair"))).SerializeToString() == first


class Twice(keras.layers.Layer):
    """A layer without a rule."""

    def call(self, x):
        return 2 * x


def with_unknown():
    images = keras.Input((4, 4, 3), name="images")
    return keras.Model(images, Twice(name="my_twice")(keras.layers.Conv2D(2, 1)(images)))


def test_unknown_layer_is_refused_by_name():
    with pytest.raises(ValueError, match=r"'my_twice' is a .*Twice.*no ONNX rule.*emission\(Twice\).*--via keras"):
        emit(with_unknown())


class Bare(keras.layers.Layer):
    """A layer without get_config, so that a copy would have another name."""

    def __init__(self, size):
        super().__init__(name=f"bare_{size}")

    def call(self, x):
        return x


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("layer", [keras.layers.Lambda(lambda x: x + 1, name="bare_1"), Bare(1)], ids=["Lambda", "own"])
def test_unknown_layer_is_refused_before_folding(layer, nested):
    images = keras.Input((4, 4, 3), name="images")
    model = keras.Model(images, layer(images))
    model = keras.Model(images, model(images)) if nested else model
    with pytest.raises(ValueError, match=r"'bare_1' is a .*register_emission"):
        emit(model)


def test_unknown_layer_can_be_registered(rng):
    @register_emission(Twice)
    def twice(graph, layer, x):
        return graph.op("Mul", [graph.settled(x), graph.constant(2, x.dtype)])

    try:
        model, feed = with_unknown(), {"images": rng.standard_normal((2, 4, 4, 3), np.float32)}
        assert error(run(to_proto(emit(model)), feed)["output"], in_keras(model, feed)["output"]) <= TOLERANCE
    finally:
        del RULES[Twice]


@pytest.mark.parametrize("opset", [17, 20])
def test_every_activation_of_the_table_has_a_rule(opset, rng):
    images = keras.Input((4, 4, 8), name="images")
    functions = [resolve_activation(name) if entry.transformer else name for name, entry in ACTIVATION_TABLE.items()]
    outputs = [keras.layers.Activation(function)(images) for function in functions]
    model = keras.Model(images, outputs)
    feed = {"images": 4 * rng.standard_normal((2, 4, 4, 8), np.float32)}
    ours = run(to_proto(emit(model, opset=opset)), feed)
    for name, value in in_keras(model, feed).items():
        assert error(ours[name], value) <= TOLERANCE


def test_activation_can_be_registered(rng):
    def doubled(x):
        return 2 * x

    @register_emission(doubled)
    def emit_doubled(graph, x):
        return graph.op("Mul", [graph.settled(x), graph.constant(2, x.dtype)])

    try:
        images = keras.Input((4, 4, 3), name="images")
        model = keras.Model(images, keras.layers.Conv2D(2, 1, activation=doubled)(images))
        feed = {"images": rng.standard_normal((2, 4, 4, 3), np.float32)}
        ours = run(to_proto(emit(model, fold=False)), feed)["output"]
        assert error(ours, in_keras(model, feed)["output"]) <= TOLERANCE
    finally:
        del ACTIVATIONS[doubled]


def test_an_activation_is_recognised_by_the_function_not_its_name():
    def gelu(x):
        return x

    images = keras.Input((4,), name="images")
    with pytest.raises(ValueError, match="activation 'gelu', which has no ONNX rule"):
        emit(keras.Model(images, keras.layers.Dense(2, activation=gelu)(images)), fold=False)


def test_a_subclass_with_a_known_name_is_refused():
    class Dense(keras.layers.Dense):
        def call(self, x):
            return -super().call(x)

    images = keras.Input((4,), name="images")
    with pytest.raises(ValueError, match="no ONNX rule"):
        emit(keras.Model(images, Dense(2)(images)), fold=False)
    with pytest.raises(TypeError, match="needs the class of a layer or an activation"):
        register_emission("Dense")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "bfloat16"}, "'float32', 'float16', 'int8', got 'bfloat16'"),
        ({"opset": 13}, "opset must be one of 17, 20, got 13"),
        ({"layout": "nchw"}, "'NHWC', 'NCHW', got 'nchw'"),
        ({"logits": True}, "needs a CLIP model"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        emit(convnext(create_convnext_v1), **options)


def test_normalize_is_only_for_towers():
    with pytest.raises(ValueError, match="needs a tower"):
        emit(build("vit pair"), normalize=True)
    images = keras.Input((4,), name="images")
    own = keras.Model(images, keras.layers.Softmax()(keras.layers.Dense(2)(images)))
    for classifier in (build("softmax"), build("convnext v2"), build("resnet basic"), build("zero-shot"), own):
        with pytest.raises(ValueError, match="outputs embeddings; .* ends in a classifier"):
            emit(classifier, normalize=True)
    for tower in (build("trunk"), build("mlp pair").image_encoder, build("vit pair").text_encoder):
        assert emit(tower, normalize=True).outputs


def test_activation_without_a_rule_is_refused():
    model = convnext(create_convnext_v1)
    model.get_layer("head_fc").activation = keras.activations.hard_tanh
    with pytest.raises(
        ValueError, match="'head_fc' has the activation 'hard_tanh', which has no ONNX rule.*Allowed: elu"
    ):
        emit(model)


def test_every_rule_named_by_a_string_is_of_an_existing_layer():
    from clip import layers as of_clip
    from clip import zero_shot
    from clip.towers import branches
    from convnext import layers as of_convnext

    places = (keras.layers, of_clip, of_convnext, branches, zero_shot)
    named = {key for key in (*RULES, *ACTIVATIONS) if isinstance(key, str)}
    assert {name for name in named if not any(hasattr(place, name) for place in places)} == set()
