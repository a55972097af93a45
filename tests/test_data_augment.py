"""Augmentation: operations equal timm's to the last bit, distributions agree with its, and all of it is pure."""

import itertools

import numpy as np
import pytest
from data_writers import digits, encode
from helpers import declare_torchvision_operators
from PIL import Image
from scipy.stats import binomtest, chisquare, ks_2samp, kstest

from zoo.data import (
    CLASSIFICATION,
    CONTRASTIVE,
    Augment,
    Batches,
    Mix,
    RandAugment,
    Record,
    one_hot,
    open_record,
    rand_augment,
    read_folder,
)
from zoo.data.augment import draw_crop, random_erase, random_flip, random_resized_crop
from zoo.data.mix import cut_mix, mix_up, neighbours
from zoo.data.preprocess import IMAGENET_MEAN, IMAGENET_STD, PreprocessSpec, preprocess

SPEC = PreprocessSpec(image_size=24, mean=IMAGENET_MEAN, std=IMAGENET_STD)
UNLIKELY = 1e-4  # p values below this fail; the draws are seeded, so a test that passes once passes always
DRAWS = 3000
BICUBIC = Image.Resampling.BICUBIC


@pytest.fixture(scope="module")
def timm():
    pytest.importorskip("torch")
    declare_torchvision_operators()
    pytest.importorskip("timm")
    import timm.data.auto_augment
    import timm.data.mixup
    import timm.data.random_erasing
    import timm.data.transforms

    return timm


@pytest.fixture
def noise(rng):
    return Image.fromarray(rng.integers(20, 240, (40, 56, 3), dtype=np.uint8))


def agree(ours, theirs):
    """Whether two samples may come from one distribution (Kolmogorov and Smirnov)."""
    return ks_2samp(ours, theirs).pvalue > UNLIKELY


# --- crops and flips ---


@pytest.mark.parametrize("size", [(64, 64), (200, 60), (31, 300), (500, 375)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.9, 1.0)])
def test_crops_have_timms_distribution(timm, rng, size, scale):
    import random

    random.seed(0)
    image, ratio = Image.new("RGB", size), (3 / 4, 4 / 3)
    ours = np.array([draw_crop(rng, *size, scale=scale, ratio=ratio) for _ in range(DRAWS)])
    draw = timm.data.transforms.RandomResizedCropAndInterpolation.get_params
    top, left, height, width = np.array([draw(image, scale, ratio) for _ in range(DRAWS)]).T
    for mine, theirs in zip(ours.T, (left, top, width, height), strict=True):
        assert agree(mine, theirs)
    assert agree(ours[:, 2] * ours[:, 3], width * height) and agree(ours[:, 2] / ours[:, 3], width / height)
    assert (ours[:, 0] + ours[:, 2] <= size[0]).all() and (ours[:, 1] + ours[:, 3] <= size[1]).all()
    assert (ours[:, 2:] >= 1).all() and (ours[:, :2] >= 0).all()


def test_a_very_long_image_gives_its_centre():
    rng = np.random.default_rng(0)
    assert draw_crop(rng, 1000, 10, scale=(0.9, 1.0), ratio=(3 / 4, 4 / 3)) == (493, 0, 13, 10)
    assert draw_crop(rng, 10, 1000, scale=(0.9, 1.0), ratio=(3 / 4, 4 / 3)) == (0, 493, 10, 13)
    assert draw_crop(rng, 1, 1, scale=(0.08, 0.1), ratio=(3 / 4, 4 / 3)) == (0, 0, 1, 1)


def test_a_crop_is_resized_like_pillow(rng, noise):
    state = rng.bit_generator.state
    ours = random_resized_crop(noise, rng, (20, 30), scale=(0.2, 0.5), resample=BICUBIC)
    rng.bit_generator.state = state
    left, top, width, height = draw_crop(rng, *noise.size, scale=(0.2, 0.5), ratio=(3 / 4, 4 / 3))
    theirs = noise.crop((left, top, left + width, top + height)).resize((30, 20), BICUBIC)
    assert np.array_equal(np.asarray(ours), np.asarray(theirs))


def test_flips_have_the_given_probability(rng, noise):
    pixels = np.asarray(noise)
    flipped = [np.array_equal(np.asarray(random_flip(noise, rng, 0.3)), pixels[:, ::-1]) for _ in range(1000)]
    assert binomtest(sum(flipped), 1000, 0.3).pvalue > UNLIKELY
    assert all(random_flip(noise, rng, 0.0) is noise for _ in range(20))


def photograph(side=1024):
    """A JPEG file of slow waves with some noise."""
    y, x = np.mgrid[:side, :side] / 60
    waves = 128 + 60 * np.stack([np.sin(x), np.cos(y), np.sin(x + y)], axis=-1)
    return encode((waves + np.random.default_rng(0).normal(0, 4, waves.shape)).astype(np.uint8), "JPEG", quality=90)


def test_a_large_jpeg_is_decoded_no_larger_than_its_crops_need():
    record, spec = Record(photograph(), "a.jpg"), PreprocessSpec(image_size=100)
    assert CONTRASTIVE.least_size(spec) == (122, 122) and CLASSIFICATION.least_size(spec) == (409, 409)
    assert open_record(record, least_size=(122, 122)).size == (128, 128)
    assert open_record(record, least_size=(409, 409)).size == (512, 512)
    assert open_record(record).size == (1024, 1024)


def test_crops_of_a_drafted_image_have_enough_pixels(rng):
    for scale, ratio, size in (((0.08, 1), (3 / 4, 4 / 3), (100, 100)), ((0.5, 1), (1, 3), (40, 90))):
        augment = Augment(scale=scale, ratio=ratio)
        width, height = augment.least_size(PreprocessSpec(image_size=size))
        crops = np.array([draw_crop(rng, width, height, scale=scale, ratio=ratio)[2:] for _ in range(DRAWS)])
        assert (crops.min(axis=0) >= np.array(size[::-1]) - 1).all()
        assert (crops.min(axis=0) < 1.3 * np.array(size[::-1])).any()  # and not many more than are needed


def test_a_drafted_image_is_similar_and_evaluation_does_not_draft(tmp_path):
    (tmp_path / "class").mkdir()
    (tmp_path / "class" / "a.jpg").write_bytes(photograph())
    spec, dataset = PreprocessSpec(image_size=100), read_folder(tmp_path)
    whole = Image.open(tmp_path / "class" / "a.jpg")
    still = Augment(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0)
    with (
        Batches(dataset, spec, batch_size=1, augment=still) as drafted,
        Batches(dataset, spec, batch_size=1) as evaluated,
    ):
        expected = preprocess(whole, spec)
        assert np.array_equal(evaluated[0]["images"][0], expected)
        difference = np.abs(drafted[0]["images"][0] - expected)
    assert 0 < difference.mean() < 0.02


# --- RandAugment ---

TIMMS_NAME = {
    **{name: name for name in rand_augment.OPERATIONS},
    **{name: f"{name}Increasing" for name in ("Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness")},
    **{"TranslateX": "TranslateXRel", "TranslateY": "TranslateYRel"},
}


def test_the_operations_are_timms(timm):
    assert [TIMMS_NAME[name] for name in rand_augment.OPERATIONS] == timm.data.auto_augment._RAND_INCREASING_TRANSFORMS


@pytest.mark.parametrize("name", rand_augment.OPERATIONS)
def test_operations_equal_timms_to_the_last_bit(timm, monkeypatch, noise, name):
    fill = (124, 116, 104)
    different = 0
    for magnitude, sign in itertools.product((0.0, 1.7, 5.0, 9.0, 9.4, 10.0), (1, -1)):
        if name == "Posterize" and magnitude == 10:
            continue  # zero bits: timm fails here
        options = {"img_mean": fill, "interpolation": BICUBIC}
        theirs = timm.data.auto_augment.AugmentOp(TIMMS_NAME[name], prob=1.0, magnitude=magnitude, hparams=options)
        monkeypatch.setattr(timm.data.auto_augment.random, "random", lambda sign=sign: 0.4 if sign == 1 else 0.6)
        expected = theirs(noise)
        ours = rand_augment.apply(name, noise, magnitude, sign, fill=fill, resample=BICUBIC)
        assert np.array_equal(np.asarray(ours), np.asarray(expected)), (magnitude, sign)
        different += not np.array_equal(np.asarray(ours), np.asarray(noise))
    assert different


def test_posterize_keeps_a_bit(noise):
    ours = rand_augment.apply("Posterize", noise, 10.0, 1, fill=(0, 0, 0), resample=BICUBIC)
    assert set(np.unique(np.asarray(ours))) == {0, 128}


def test_operations_magnitudes_and_signs_have_timms_distribution(rng, noise, monkeypatch):
    drawn = []

    def record(name, image, magnitude, sign, **_):
        drawn.append((name, magnitude, sign))
        return image

    monkeypatch.setattr(rand_augment, "apply", record)
    for _ in range(DRAWS):
        RandAugment(magnitude=7, magnitude_std=2, operations=3, probability=0.4)(noise, rng)
    names, magnitudes, signs = zip(*drawn, strict=True)
    assert binomtest(len(drawn), 3 * DRAWS, 0.4).pvalue > UNLIKELY
    assert chisquare([names.count(name) for name in rand_augment.OPERATIONS]).pvalue > UNLIKELY
    assert binomtest(signs.count(1), len(signs)).pvalue > UNLIKELY
    normal = rng.normal(7, 2, DRAWS).clip(0, 10)
    assert agree(magnitudes, normal) and max(magnitudes) == 10
    assert all(
        RandAugment(magnitude=9, magnitude_std=0, probability=p, operations=n)(noise, rng) is noise
        for p, n in ((0, 2), (1, 0))
    )


# --- erasing ---


def test_erased_rectangles_have_timms_distribution(timm, rng):
    import random

    import torch

    random.seed(1)
    theirs_erase = timm.data.random_erasing.RandomErasing(probability=0.6, mode="pixel", device="cpu")
    ours, theirs = [], []
    for _ in range(DRAWS):
        ours.append(box(random_erase(np.zeros((24, 36, 3), np.float32), rng, 0.6)))
        theirs.append(box(theirs_erase(torch.zeros(3, 24, 36)).numpy().transpose(1, 2, 0)))
    assert abs(sum(b is None for b in ours) - sum(b is None for b in theirs)) < 4 * np.sqrt(2 * DRAWS * 0.24)
    ours, theirs = (np.array([b for b in boxes if b is not None]) for boxes in (ours, theirs))
    for mine, other in zip(ours.T, theirs.T, strict=True):
        assert agree(mine, other)


def box(pixels):
    """(top, left, height, width) of what is not zero."""
    rows, columns = (np.flatnonzero(pixels.any(axis=axes)) for axes in ((1, 2), (0, 2)))
    return (rows[0], columns[0], len(rows), len(columns)) if len(rows) else None


def test_erased_pixels_are_standard_normal(rng):
    pixels = random_erase(np.zeros((200, 200, 3), np.float32), rng, 1.0)
    values = pixels[pixels != 0]
    assert kstest(values, "norm").pvalue > UNLIKELY and pixels.dtype == np.float32
    assert not random_erase(np.zeros((20, 20, 3), np.float32), rng, 0.0).any()


# --- the whole of it ---


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK", "1", "LA", "I;16"])
@pytest.mark.parametrize("augment", [CONTRASTIVE, CLASSIFICATION])
def test_any_image_becomes_finite_pixels_of_the_requested_size(rng, noise, mode, augment):
    image = Image.fromarray(np.asarray(noise)[..., 0].astype(np.uint16)) if mode == "I;16" else noise.convert(mode)
    spec = PreprocessSpec(image_size=(20, 12), crop_pct=0.8, resize_mode="longest")
    for _ in range(20):
        pixels = augment(image, rng, spec)
        assert pixels.shape == (20, 12, 3) and pixels.dtype == np.float32 and np.isfinite(pixels).all()


def test_the_deterministic_transform_is_a_squash(rng, noise):
    alone = Augment(scale=(1.0, 1.0), ratio=(56 / 40, 56 / 40), flip=0.0)
    squash = PreprocessSpec(image_size=24, resize_mode="squash", mean=IMAGENET_MEAN, std=IMAGENET_STD)
    assert np.array_equal(alone(noise, rng, SPEC), preprocess(noise, squash))


@pytest.mark.parametrize(
    "changed",
    [
        {"scale": (0.3, 0.4)},
        {"ratio": (2.0, 2.1)},
        {"flip": 1.0},
        {"rand_augment": RandAugment(probability=1.0)},
        {"erase": 1.0},
    ],
)
def test_each_setting_changes_the_image_and_a_seed_reproduces_it(noise, changed):
    plain = {"scale": (0.9, 1.0), "flip": 0.0}
    pixels = [
        Augment(**settings)(noise, np.random.default_rng(5), SPEC) for settings in (plain, {**plain, **changed}) * 2
    ]
    assert np.array_equal(pixels[0], pixels[2]) and np.array_equal(pixels[1], pixels[3])
    assert not np.array_equal(pixels[0], pixels[1])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Augment(scale=(0.0, 1.0)), r"scale=\(0.0, 1.0\); it must be \(minimum, maximum\) in \(0, 1.0\]"),
        (lambda: Augment(scale=(0.5, 1.5)), "scale"),
        (lambda: Augment(ratio=(2.0, 1.0)), "ratio"),
        (lambda: Augment(flip=1.5), r"flip=1.5; it must be in \[0, 1\]"),
        (lambda: Augment(erase=-1), "erase=-1"),
        (lambda: RandAugment(magnitude=11), "magnitude=11"),
        (lambda: RandAugment(operations=-1), "operations=-1"),
        (lambda: Mix(10, mixup=0, cutmix=0), "one above 0"),
        (lambda: Mix(10, probability=2), "probability=2"),
        (lambda: one_hot([0, 3], 3), "labels run from 0 to 3; allowed are 0 to 2"),
    ],
)
def test_settings_out_of_range_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


# --- Mixup and CutMix ---


def a_batch(count=6, size=8):
    images, _, labels = digits(count, size)
    return {"images": images.astype(np.float32), "label": labels, "tokens": np.zeros((count, 3), np.int32)}


def test_mixup_is_the_weighted_mean_of_neighbours(rng):
    batch = a_batch()
    mixed = Mix(10, cutmix=0)(batch, rng)
    share = mixed["target"][0, batch["label"][0]]
    assert 0 < share < 1
    for i, j in ((0, 1), (1, 0), (4, 5), (5, 4)):
        expected = share * batch["images"][i] + (1 - share) * batch["images"][j]
        assert np.allclose(mixed["images"][i], expected, rtol=0, atol=1e-4)
        assert np.allclose(mixed["target"][i], share * np.eye(10)[i] + (1 - share) * np.eye(10)[j], atol=1e-6)
    assert mixed["label"] is batch["label"] and mixed["tokens"] is batch["tokens"]
    assert np.array_equal(batch["images"], a_batch()["images"])


def test_cutmix_puts_the_neighbours_pixels_in_one_rectangle_and_counts_its_area(rng):
    images = np.arange(4, dtype=np.float32)[:, None, None, None] * np.ones((4, 20, 30, 3), np.float32)
    for _ in range(30):
        mixed, share = cut_mix(images, neighbours(4), rng.random(), rng)
        changed = mixed[0] == 1
        assert share == pytest.approx(1 - changed.mean())
        if changed.any():
            top, left, height, width = box(changed)
            assert height * width * 3 == changed.sum()
        assert np.array_equal(mixed[3] == 2, changed) and np.array_equal(mixed[1] == 0, changed)


def test_an_odd_last_row_is_not_mixed():
    assert list(neighbours(5)) == [1, 0, 3, 2, 4] and list(neighbours(1)) == [0] and list(neighbours(0)) == []
    rows = np.arange(5, dtype=np.float32)[:, None]
    assert mix_up(rows, neighbours(5), 0.25)[4, 0] == pytest.approx(4)


def test_targets_are_distributions(rng):
    for _ in range(50):
        target = Mix(10)(a_batch(), rng)["target"]
        assert target.dtype == np.float32 and np.allclose(target.sum(axis=1), 1, atol=1e-6) and (target >= 0).all()


def test_mixing_has_timms_distribution(timm, rng):
    np.random.seed(3)
    theirs = timm.data.mixup.Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, prob=0.7, switch_prob=0.3)
    ours = Mix(10, mixup=0.8, cutmix=1.0, probability=0.7, switch=0.3)
    mine = np.array([ours.draw(rng)[::-1] for _ in range(DRAWS)])
    other = np.array([theirs._params_per_batch() for _ in range(DRAWS)])
    assert agree(mine[:, 0], other[:, 0])
    mixed = mine[:, 0] < 1
    assert binomtest(int(mixed.sum()), DRAWS, 0.7).pvalue > UNLIKELY
    assert binomtest(int(mine[mixed, 1].sum()), int(mixed.sum()), 0.3).pvalue > UNLIKELY
    for cut in (0, 1):
        assert agree(mine[mixed & (mine[:, 1] == cut), 0], other[(other[:, 0] < 1) & (other[:, 1] == cut), 0])

    blank = np.zeros((2, 24, 40, 1), np.float32)
    blank[1] = 1
    shares = [cut_mix(blank, neighbours(2), share, rng)[1] for share in rng.random(DRAWS)]
    cut = timm.data.mixup.cutmix_bbox_and_lam
    assert agree(shares, [cut((2, 1, 24, 40), share)[1] for share in np.random.rand(DRAWS)])
    boxes = [box(cut_mix(blank, neighbours(2), 0.5, rng)[0][0]) for _ in range(DRAWS)]
    theirs = [cut((2, 1, 24, 40), 0.5)[0] for _ in range(DRAWS)]
    theirs = np.array([(top, left, bottom - top, right - left) for top, bottom, left, right in theirs])
    for a, b in zip(np.array(boxes).T, theirs.T, strict=True):
        assert agree(a, b)


def test_mixup_or_cutmix_alone(rng):
    assert not any(Mix(10, cutmix=0, switch=1.0).draw(rng)[0] for _ in range(50))
    assert all(Mix(10, mixup=0, switch=0.0).draw(rng)[0] for _ in range(50))
    batch = a_batch()
    unmixed = Mix(10, probability=0)(batch, rng)
    assert unmixed["images"] is batch["images"] and np.array_equal(unmixed["target"], np.eye(10)[batch["label"]])
