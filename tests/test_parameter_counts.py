"""Every name builds a model with exactly the parameters counted from its row. The largest are not allocated."""

import math

import keras
import pytest

import clip
from convnext import TABLES, create_convnext_v1, create_convnext_v2, create_resnet, parameters

pytestmark = pytest.mark.backend

CREATE = {"convnext": create_convnext_v1, "convnextv2": create_convnext_v2, "resnet": create_resnet}
QUICK = {  # at least one of each kind of tower; the others are built by the slow tests
    *("convnext-atto", "convnext-tiny", "convnextv2-atto", "convnextv2-tiny", "resnet-18", "resnet-50"),
    *("RN50", "ViT-B-32", "ViT-S-32", "ViT-L-14", "convnext_base", "convnext_large_d", "convnext_v2_atto"),
    *("MobileCLIP-S0", "MobileCLIP-B", "MobileCLIP2-S0"),
}


def quick_or_slow(name, *values):
    return pytest.param(*values, id=name, marks=() if name in QUICK else pytest.mark.slow)


NAMES = [quick_or_slow(f"{family}-{name}", family, name) for family, table in TABLES.items() for name in table]
PAIRS = [quick_or_slow(name, name) for name in clip.VARIANTS]


def trainable(model):
    return sum(math.prod(variable.shape) for variable in model.trainable_variables)


@pytest.mark.once
@pytest.mark.parametrize("family, name", NAMES)
def test_built_classifier_has_the_rows_count(family, name):
    with keras.StatelessScope(initialize_variables=False):
        model = CREATE[family](name)
    assert trainable(model) == parameters(TABLES[family][name], v2=family == "convnextv2")


@pytest.mark.once
@pytest.mark.parametrize("name", PAIRS)
def test_built_pair_has_the_rows_count(name):
    with keras.StatelessScope(initialize_variables=False):
        model = clip.create_clip(name)
    assert trainable(model) == clip.parameters(clip.VARIANTS[name])


@pytest.mark.once
@pytest.mark.parametrize("input_shape", [(32, 32, 3), (96, 96, 3), (256, 192, 3)])
def test_count_does_not_depend_on_the_input_size(input_shape):
    with keras.StatelessScope(initialize_variables=False):
        model = create_convnext_v2("atto", 10, input_shape)
    assert trainable(model) == 3_390_610


@pytest.mark.once
def test_count_with_other_channels():
    row = TABLES["convnext"]["atto"]
    with keras.StatelessScope(initialize_variables=False):
        model = create_convnext_v1("atto", 7, (64, 64, 5))
    assert trainable(model) == parameters(row, num_classes=7, in_channels=5)
