"""facebookresearch's layouts against timm's reading of them: what timm's own filter undoes, and what ours reads."""

import numpy as np
import oracles_classifiers as cases
import pytest
from helpers import declare_torchvision_operators, predict
from oracle_case import SEED, draw_images, randomise

import convnext
from zoo.bench.parity import error
from zoo.weights import load_weights

pytestmark = [pytest.mark.backend, pytest.mark.once]

ROW = convnext.Variant((1, 1, 2, 1), (8, 16, 24, 32))
SIZE = (64, 96)


def timm_model(name, classes=5):
    declare_torchvision_operators()
    model = cases.timm_classifier(name, depths=ROW.depths, dims=ROW.dims, num_classes=classes).eval()
    randomise(model, SEED)
    return model


def ours(version, **options):
    create = convnext.create_convnext_v1 if version == 1 else convnext.create_convnext_v2
    return create(ROW, 5, (*SIZE, 3), stem_stride=4, classifier_activation=None, **options)


def save(path, state):
    """As the authors' training scripts do: the weights under "model", among other things."""
    import torch

    torch.save({"model": state, "epoch": 300, "scaler": {"scale": 1.0}}, path)
    return path


@pytest.mark.parametrize(("version", "name"), [(1, "convnext_tiny"), (2, "convnextv2_tiny"), (2, "convnextv2_atto")])
def test_timms_filter_and_ours_read_the_same_file(tmp_path, version, name):
    import torch

    theirs = timm_model(name)
    from timm.models.convnext import checkpoint_filter_fn  # after the operators that it needs are declared

    state = cases.facebook_state(theirs)
    filtered = checkpoint_filter_fn({"model": dict(state)}, theirs)
    assert filtered.keys() == theirs.state_dict().keys()
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(filtered[key], value, rtol=0, atol=0)
    model = ours(version)
    report = load_weights(model, save(tmp_path / "m.pth", state))
    assert (report.format, report.ignored) == ("facebookresearch ConvNeXt", {})
    images = draw_images(2, SIZE, 3)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    assert error(predict(model, images), expected) <= 2e-5


@pytest.mark.parametrize("sparse", [False, True], ids=["published", "with sparse layers"])
def test_what_masked_pretraining_leaves_fills_a_trunk(tmp_path, sparse):
    import torch

    theirs = timm_model("convnextv2_atto", classes=0)
    state = cases.headless(cases.facebook_state(theirs))
    state = cases.sparse_state(state) if sparse else state
    trunk = ours(2, include_top=False)
    report = load_weights(trunk, save(tmp_path / "m.pt", state))
    assert report.format == f"facebookresearch {'FCMAE with sparse layers' if sparse else 'ConvNeXt'}"
    assert set(report.ignored) == ({"mask_token", "decoder.0.norm.weight"} if sparse else set())
    images = draw_images(2, SIZE, 3)
    with torch.no_grad():
        expected = theirs.forward_features(torch.from_numpy(images).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    assert error(predict(trunk, images), expected.numpy()) <= 2e-5


def decoder_state(features, dim, outputs):
    """The decoder of a pretraining checkpoint, at random."""
    import torch

    draw = torch.Generator().manual_seed(SEED)
    shapes = {"proj.weight": (dim, features, 1, 1), "proj.bias": (dim,), "mask_token": (1, dim, 1, 1)}
    shapes |= {"decoder.0.dwconv.weight": (dim, 1, 7, 7), "decoder.0.dwconv.bias": (dim,)}
    shapes |= {"decoder.0.norm.weight": (dim,), "decoder.0.norm.bias": (dim,)}
    shapes |= {"decoder.0.pwconv1.weight": (4 * dim, dim), "decoder.0.pwconv1.bias": (4 * dim,)}
    shapes |= {"decoder.0.grn.gamma": (1, 1, 1, 4 * dim), "decoder.0.grn.beta": (1, 1, 1, 4 * dim)}
    shapes |= {"decoder.0.pwconv2.weight": (dim, 4 * dim), "decoder.0.pwconv2.bias": (dim,)}
    shapes |= {"pred.weight": (outputs, dim, 1, 1), "pred.bias": (outputs,)}
    return {key: 0.3 * torch.randn(shape, generator=draw) for key, shape in shapes.items()}


def decode(state, features, mask):
    """The decoder of the authors' pretraining: (B, D, h, w), 1 where hidden (B, h, w) → (B, P, h, w)."""
    from torch.nn.functional import conv2d, gelu, layer_norm, linear

    mask = mask[:, None]
    x = conv2d(features, state["proj.weight"], state["proj.bias"]) * (1 - mask) + state["mask_token"] * mask
    part = {key.removeprefix("decoder.0."): value for key, value in state.items()}
    y = conv2d(x, part["dwconv.weight"], part["dwconv.bias"], padding=3, groups=x.shape[1]).permute(0, 2, 3, 1)
    y = layer_norm(y, y.shape[-1:], part["norm.weight"], part["norm.bias"], 1e-6)
    y = gelu(linear(y, part["pwconv1.weight"], part["pwconv1.bias"]))
    response = y.norm(p=2, dim=(1, 2), keepdim=True)
    y = part["grn.gamma"] * (y * response / (response.mean(-1, keepdim=True) + 1e-6)) + part["grn.beta"] + y
    x = x + linear(y, part["pwconv2.weight"], part["pwconv2.bias"]).permute(0, 3, 1, 2)
    return conv2d(x, state["pred.weight"], state["pred.bias"])


def test_a_pretraining_checkpoint_fills_encoder_and_decoder(tmp_path, rng):
    import torch

    theirs = timm_model("convnextv2_atto", classes=0)
    state = cases.sparse_state(cases.headless(cases.facebook_state(theirs)))
    decoder = decoder_state(ROW.dims[-1], 12, 32 * 32 * 3)
    model = convnext.create_fcmae(ROW, (*SIZE, 3), stem_stride=4, decoder_dim=12)
    report = load_weights(model, save(tmp_path / "m.pt", {**state, **decoder}))
    assert (report.format, report.ignored) == ("facebookresearch FCMAE with sparse layers", {})
    images, mask = draw_images(2, SIZE, 3), rng.integers(0, 2, (2, 2, 3)).astype(np.float32)
    with torch.no_grad():
        features = theirs.forward_features(torch.from_numpy(images).permute(0, 3, 1, 2))
        seen = decode(decoder, features, torch.zeros(2, 2, 3)).permute(0, 2, 3, 1).numpy()
        masked = decode(decoder, features, torch.from_numpy(mask)).permute(0, 2, 3, 1).numpy()
    assert error(predict(model, {"images": images, "mask": 0 * mask})["patches"], seen) <= 2e-5
    assert error(predict(model.decoder, [features.permute(0, 2, 3, 1).numpy(), mask]), masked) <= 2e-5


def test_a_trunk_leaves_the_decoder_aside(tmp_path):
    state = cases.sparse_state(cases.headless(cases.facebook_state(timm_model("convnextv2_atto", classes=0))))
    decoder = decoder_state(ROW.dims[-1], 12, 48)
    report = load_weights(ours(2, include_top=False), save(tmp_path / "m.pt", {**state, **decoder}))
    assert set(report.ignored) == set(decoder)
    assert set(report.ignored.values()) == {"decoder of masked pretraining, which this model does not have"}


def test_what_masked_pretraining_leaves_is_no_classifier(tmp_path):
    path = save(tmp_path / "m.pt", cases.headless(cases.facebook_state(timm_model("convnextv2_atto"))))
    model = ours(2)
    before = model.get_weights()
    with pytest.raises(ValueError, match=r"Missing \(4\): norm\.weight \(for head_norm/gamma\).*head_fc/bias"):
        load_weights(model, path)
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_sparse_kernel_is_stored_column_by_column():
    """Window position k of a kernel of side n is row k mod n, column k // n."""
    from zoo.weights.sources.facebook import SPARSE, SPARSE_DEPTHWISE

    kernel = np.arange(9 * 2 * 3).reshape(9, 2, 3)
    dense = SPARSE.to_ours([kernel])
    assert dense.shape == (3, 3, 2, 3)
    np.testing.assert_array_equal(dense[2, 1], kernel[1 * 3 + 2])
    np.testing.assert_array_equal(SPARSE.to_theirs(dense)[0], kernel)
    np.testing.assert_array_equal(SPARSE_DEPTHWISE.to_ours([kernel[:, 0]])[2, 1, :, 0], kernel[5, 0])
    np.testing.assert_array_equal(SPARSE_DEPTHWISE.to_theirs(dense[..., 0, :, None])[0], kernel[:, 0])
