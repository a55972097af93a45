"""MobileCLIP's rows against open_clip's models on torch's meta device: every parameter and every multiply–add."""

import pytest
from helpers import declare_torchvision_operators

import clip
from clip.towers.mobileclip import squeezed
from clip.variants import image_flops, image_parameters, text_flops, text_parameters

NAMES = [name for name in clip.VARIANTS if name.startswith("MobileCLIP")]
APPLES = ["MobileCLIP-S0"]  # which open_clip has no configuration for
ONE_OF_EACH_TOWER = ["MobileCLIP-S1", "MobileCLIP-B", "MobileCLIP2-S3"]


@pytest.fixture(scope="module")
def open_clip():
    pytest.importorskip("torch")
    declare_torchvision_operators()
    return pytest.importorskip("open_clip")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ONE_OF_EACH_TOWER else pytest.mark.slow)
        for name in NAMES
        if name not in APPLES
    ],
)
def test_counts_match_open_clip(open_clip, name):
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    pair = clip.VARIANTS[name]
    side = pair.image_size
    with torch.device("meta"):
        model = open_clip.create_model(name, device="meta")
        images, tokens = torch.zeros(1, 3, side, side), torch.zeros(1, 77, dtype=torch.long)
        with FlopCounterMode(display=False) as image_work:
            model.visual(images)
        with FlopCounterMode(display=False) as text_work:
            model.text(tokens)
    assert count(model) == clip.parameters(pair)
    assert count(model.visual) == image_parameters(pair)
    assert count(model.text) == text_parameters(pair.text, pair.embed_dim)
    assert image_work.get_total_flops() == image_flops(pair)
    assert text_work.get_total_flops() == text_flops(pair.text, pair.embed_dim)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_s0_shares_its_image_tower_with_the_second_version():
    first, second = clip.VARIANTS["MobileCLIP-S0"], clip.VARIANTS["MobileCLIP2-S0"]
    assert first.image == second.image
    assert clip.parameters(first) == 53_848_193  # Apple's 53,847,681 and open_clip's bias of the projection
    assert text_parameters(first.text, 512) == 42_441_216


def test_a_reparameterised_tower_is_smaller_and_does_less():
    pair = clip.VARIANTS["MobileCLIP2-S0"]
    fields = {key: getattr(pair.image, key) for key in ("depths", "dims")}
    folded = clip.Pair(512, 256, clip.MCi(**fields, reparameterized=True), pair.text)
    assert image_parameters(folded) < image_parameters(pair)
    assert image_flops(folded) < image_flops(pair)


@pytest.mark.parametrize(
    "channels, ratio, divisor, hidden",
    [(256, 1 / 4, 8, 64), (320, 1 / 4, 8, 80), (16, 1 / 4, 8, 8), (40, 1 / 16, 1, 3)],
)
def test_squeezed_channels_are_multiples(channels, ratio, divisor, hidden):
    assert squeezed(channels, ratio, divisor) == hidden


@pytest.mark.parametrize(
    "row, complaint",
    [
        ({"depths": (1, 1), "dims": (8,)}, "as many dims as depths"),
        ({"depths": (1, 1), "dims": (8, 12)}, "multiple of the one before"),
        ({"depths": (1,), "dims": (8,), "norm": "group"}, "'batch' or 'layer', got 'group'"),
    ],
)
def test_invalid_rows_are_refused(row, complaint):
    with pytest.raises(ValueError, match=complaint):
        clip.MCi(**row)
