"""Layer-wise learning-rate decay: every variable has the factor of its group."""

import pytest

from convnext import ResNetVariant, Variant, create_convnext_v1, create_convnext_v2, create_resnet
from zoo.training.layer_decay import update_factors

pytestmark = [pytest.mark.backend, pytest.mark.once]

DECAY = 0.8


def factors(model):
    """{path of a variable: its factor}"""
    return {v.path: f for v, f in zip(model.trainable_variables, update_factors(model, DECAY), strict=True)}


def test_convnext_has_the_groups_of_its_fine_tuning():
    """12 groups between stem and head for (3, 3, 27, 3), numbered as in the authors' `optim_factory.py`."""
    model = create_convnext_v1(Variant((3, 3, 27, 3), (4, 4, 4, 4)), 2, (32, 32, 3))
    for path, factor in factors(model).items():
        layer = path.partition("/")[0]
        words = layer.split("_")
        if words[0] == "stem":
            group = 0
        elif words[0] == "head":
            group = 13
        else:
            stage, block = int(words[1]), int(words[3]) if words[2] == "blocks" else 0
            group = {0: 1, 1: 2, 2: 3 + block // 3, 3: 12}[stage]
        assert factor == pytest.approx(DECAY ** (13 - group)), path


@pytest.mark.parametrize("depths", [(2, 2, 6, 2), (1, 1), (3, 3, 9, 3)], ids=str)
def test_groups_of_other_depths(depths):
    model = create_convnext_v2(Variant(depths, (4,) * len(depths)), 2, (32, 32, 3))
    last = 1 + sum(-(-depth // 3) for depth in depths)
    found = factors(model)
    assert sorted({round(f, 9) for f in found.values()}) == sorted(round(DECAY**k, 9) for k in range(last + 1))
    assert all(factor == pytest.approx(DECAY**last) for path, factor in found.items() if path.startswith("stem_"))
    assert all(factor == 1 for path, factor in found.items() if path.startswith("head_"))
    for stage in range(1, len(depths)):
        below = min(f for path, f in found.items() if path.startswith(f"stages_{stage}_blocks_0_"))
        assert all(f == below for path, f in found.items() if path.startswith(f"stages_{stage}_downsample_"))


def test_groups_of_a_resnet():
    row = ResNetVariant((3, 4), (4, 8), block="basic", stem_dim=4)
    found = factors(create_resnet(row, 2, (32, 32, 3)))
    first = {path.partition("/")[0]: factor for path, factor in found.items()}
    expected = {"conv1": 4, "bn1": 4, "layer1_0_conv1": 3, "layer1_2_bn2": 3, "layer2_0_downsample_0": 2}
    expected |= {"layer2_2_conv2": 2, "layer2_3_conv1": 1, "head_fc": 0}
    assert {name: first[name] for name in expected} == {k: pytest.approx(DECAY**v) for k, v in expected.items()}


def test_a_frozen_backbone_leaves_the_head_its_learning_rate():
    model = create_convnext_v2(Variant((1, 1), (4, 4)), 2, (32, 32, 3))
    for layer in model.layers:
        layer.trainable = layer.name == "head_fc"
    assert update_factors(model, DECAY) == [1, 1]


@pytest.mark.parametrize("decay", [0.0, -0.5, 1.5])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(ValueError, match=f"layer_decay={decay}"):
        update_factors(create_convnext_v2(Variant((1,), (4,)), 2, (32, 32, 3)), decay)
