"""Blocks that are computed again in the backward pass: same losses, same gradients, same random draws."""

import keras
import numpy as np
import pytest
from golden import make_golden as golden

import clip
import convnext
from convnext import ResNetVariant, checkpoint_activations

pytestmark = pytest.mark.backend

ROW = convnext.Variant((2, 2), (4, 8))
MODELS = {
    "convnext": lambda: convnext.create_convnext_v1(
        ROW, 3, (16, 16, 3), drop_path_rate=0.5, layer_scale_init_value=1.0
    ),
    "resnet": lambda: convnext.create_resnet(ResNetVariant((1, 1), (4, 8), stem_dim=4), 3, (32, 32, 3)),
    "pair-vit": golden.PAIRS["pair-vit"],
    "pair-mci": golden.PAIRS["pair-mci"],
    "fcmae": golden.OTHERS["fcmae"],
}


def fit(name, prepare=None, precision="float32"):
    """Return (losses of two steps, weights after them)."""
    keras.utils.set_random_seed(0)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    model = MODELS[name]()
    keras.config.set_dtype_policy(before)
    golden.fill(model)
    if prepare is not None:
        prepare(model)
    inputs, targets = golden.make_inputs(model, 4), {}
    if not isinstance(model, clip.CLIP | convnext.FCMAE):
        model.compile("sgd", "sparse_categorical_crossentropy")
        targets = {"y": np.arange(4) % 3}
    else:
        model.compile("sgd")
    losses = model.fit(inputs, **targets, batch_size=2, verbose=0, shuffle=False).history["loss"]
    return np.array(losses), [keras.ops.convert_to_numpy(v) for v in model.variables]


def assert_same(found, wanted, rtol=1e-4):
    np.testing.assert_allclose(found[0], wanted[0], rtol=rtol)
    for value, want in zip(found[1], wanted[1], strict=True):
        np.testing.assert_allclose(value, want, rtol=10 * rtol, atol=rtol)


def in_scope(name):
    """As `fit`, with the model built in Keras' scope of the same purpose."""
    seen = []
    with keras.RematScope(mode="full"):
        result = fit(name, lambda model: seen.extend((model, *model.layers)))
    assert any(getattr(part, "checkpoint_activations", False) for part in seen)
    return result


@pytest.mark.wide
def test_training_is_the_same():
    wanted = fit("convnext")
    assert_same(fit("convnext", checkpoint_activations), wanted)
    assert_same(in_scope("convnext"), wanted)


@pytest.mark.once
@pytest.mark.parametrize("name", [name for name in MODELS if name != "convnext"])
def test_training_of_other_models_is_the_same(name):
    assert_same(fit(name, checkpoint_activations), fit(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in MODELS if name != "convnext"])
def test_training_of_other_models_is_the_same_on_every_backend(name):
    wanted = fit(name)
    assert_same(fit(name, checkpoint_activations), wanted)
    assert_same(in_scope(name), wanted)


@pytest.mark.slow
def test_training_is_the_same_in_mixed_precision():
    wanted = fit("pair-mci", precision="mixed_bfloat16")
    assert_same(fit("pair-mci", checkpoint_activations, "mixed_bfloat16"), wanted, rtol=1e-3)


@pytest.mark.once
def test_blocks_end_where_one_tensor_goes_on():
    model = MODELS["convnext"]()
    ends = [block.steps[-1][0].operation.name for block in model._blocks]
    sums = [layer.name for layer in model.layers if layer.name.endswith("_out")]
    assert ends == [*sums, "head_fc"]
    assert [block.is_recomputed for block in model._blocks] == [True] * len(sums) + [False]


@pytest.mark.only("torch")
def test_less_is_kept_for_the_backward_pass():
    import torch

    def kept(enabled):
        model = convnext.create_convnext_v2(convnext.Variant((6,), (16,)), 3, (32, 32, 3))
        checkpoint_activations(model, enabled)
        sizes = {}

        def keep(tensor):
            sizes[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(np.ones((4, 32, 32, 3), "float32"), training=True)
        return sum(sizes.values())

    assert kept(True) < 0.25 * kept(False)


@pytest.mark.once
def test_a_model_without_blocks_is_refused():
    with pytest.raises(ValueError, match="no backbone or tower"):
        checkpoint_activations(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]))
