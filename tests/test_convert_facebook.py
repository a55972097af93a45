"""facebookresearch's layouts against timm's reading of them: what timm's own filter undoes, and what ours reads."""

import numpy as np
import oracles_classifiers as cases
import pytest
from helpers import declare_torchvision_operators, predict
from oracle_case import SEED, draw_images, randomise

import convnext
from zoo.convert import load_weights
from zoo.parity import error

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
    from timm.models.convnext import checkpoint_filter_fn

    theirs = timm_model(name)
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
    from zoo.convert.facebook import SPARSE, SPARSE_DEPTHWISE

    kernel = np.arange(9 * 2 * 3).reshape(9, 2, 3)
    dense = SPARSE.to_ours([kernel])
    assert dense.shape == (3, 3, 2, 3)
    np.testing.assert_array_equal(dense[2, 1], kernel[1 * 3 + 2])
    np.testing.assert_array_equal(SPARSE.to_theirs(dense)[0], kernel)
    np.testing.assert_array_equal(SPARSE_DEPTHWISE.to_ours([kernel[:, 0]])[2, 1, :, 0], kernel[5, 0])
    np.testing.assert_array_equal(SPARSE_DEPTHWISE.to_theirs(dense[..., 0, :, None])[0], kernel[:, 0])
