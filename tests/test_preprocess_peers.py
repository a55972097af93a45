"""Preprocessing equals open_clip's and timm's to the last bit, for every size, mode and published row."""

import dataclasses
import warnings

import numpy as np
import pytest
from helpers import declare_torchvision_operators
from PIL import Image
from sklearn.datasets import load_sample_image
from test_preprocess import random_image

from zoo.data.preprocess import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    INTERPOLATIONS,
    OPENAI_MEAN,
    OPENAI_STD,
    PreprocessSpec,
    open_image,
)
from zoo.weights.published import all_weights

MODES = [  # but for I;16, which Pillow cuts off at 255
    "RGB",
    "L",
    "LA",
    "P",
    "P+alpha",
    "PA",
    "RGBA",
    "1",
    "CMYK",
    "YCbCr",
    "I",
    "F",
    "RGBa",
    "HSV",
]
WIDTHS_HEIGHTS = [
    *((1, 1), (1, 7), (7, 1), (31, 33), (33, 31), (32, 32), (63, 64), (64, 63), (65, 64), (64, 64)),
    *((97, 64), (98, 64), (99, 64), (100, 64), (101, 64), (64, 101), (129, 130), (200, 37), (37, 200)),
    *((5, 400), (400, 5), (1, 300), (300, 2), (211, 149), (149, 211), (250, 333)),
]


@pytest.fixture(scope="module")
def torchvision():
    """torchvision, which under CPU-only torch imports once two operator schemas exist."""
    pytest.importorskip("torch")
    declare_torchvision_operators()
    return pytest.importorskip("torchvision")


@pytest.fixture(scope="module")
def open_clip(torchvision):
    return pytest.importorskip("open_clip")


@pytest.fixture(scope="module")
def timm(torchvision):
    return pytest.importorskip("timm")


def hwc(tensor) -> np.ndarray:
    return tensor.numpy().transpose(1, 2, 0)


def attempt(transform, image: Image.Image):
    """What a transform gives, or the exception it ends in."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow on palettes with transparency
        try:
            return transform(image)
        except Exception as error:
            return error


def assert_equal(ours: np.ndarray, theirs, what) -> None:
    assert ours.dtype == np.float32 and ours.ndim == 3 and ours.shape[2] == 3, what
    assert np.array_equal(ours, hwc(theirs)), what


# --- with open_clip ---


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
def test_equals_open_clip_for_every_size(open_clip, rng, resize_mode, interpolation):
    for image_size in (64, 65, 224):
        options = {"resize_mode": resize_mode, "interpolation": interpolation}
        config = open_clip.transform.PreprocessCfg(size=image_size, **options)
        theirs = open_clip.transform.image_transform_v2(config, is_train=False)
        ours = PreprocessSpec(image_size, **options).eval_transform()
        for width, height in WIDTHS_HEIGHTS:
            image = random_image(rng, width, height)
            expected = attempt(theirs, image)
            if isinstance(expected, Exception):  # they let a side shrink to nothing
                assert resize_mode == "longest" and max(width, height) > 99 * min(width, height)
                assert np.isfinite(ours(image)).all()
            else:
                assert_equal(ours(image), expected, (image_size, width, height))


@pytest.mark.parametrize("mode", MODES)
def test_equals_open_clip_for_every_mode(open_clip, rng, mode):
    compared = 0
    for resize_mode in ("shortest", "longest", "squash"):
        for fill in (0, 7):
            for interpolation in ("bicubic", "bilinear"):
                spec = PreprocessSpec(64, resize_mode=resize_mode, interpolation=interpolation, fill=fill)
                theirs = open_clip.transform.image_transform(
                    64, is_train=False, resize_mode=resize_mode, interpolation=interpolation, fill_color=fill
                )
                for width, height in ((64, 64), (64, 41), (64, 90), (91, 33), (40, 41), (150, 211)):
                    image = random_image(rng, width, height, mode)
                    expected = attempt(theirs, image)
                    actual = attempt(spec.eval_transform(), image)
                    if isinstance(expected, Exception):
                        assert isinstance(actual, Exception)
                    else:
                        assert_equal(actual, expected, (resize_mode, fill, interpolation, width, height))
                        compared += 1
    assert compared


@pytest.mark.parametrize("image_size", [(64, 96), (97, 64), (33, 200)])
@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
def test_equals_open_clip_for_targets_that_are_not_square(open_clip, rng, image_size, resize_mode):
    theirs = open_clip.transform.image_transform(image_size, is_train=False, resize_mode=resize_mode)
    ours = PreprocessSpec(image_size, resize_mode=resize_mode).eval_transform()
    for width, height in WIDTHS_HEIGHTS[3:19]:
        image = random_image(rng, width, height)
        assert_equal(ours(image), theirs(image), (width, height))


@pytest.mark.parametrize("mean, std", [(OPENAI_MEAN, OPENAI_STD), ((0.0,) * 3, (1.0,) * 3), ((0.5,) * 3, (0.5,) * 3)])
def test_normalising_equals_open_clips_for_every_value(open_clip, mean, std):
    image = Image.fromarray(np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3))
    theirs = open_clip.transform.image_transform(16, is_train=False, mean=mean, std=std)
    assert_equal(PreprocessSpec(16, mean=mean, std=std).eval_transform()(image), theirs(image), mean)


def test_statistics_are_open_clips(open_clip):
    theirs = open_clip.constants
    assert (OPENAI_MEAN, OPENAI_STD) == (theirs.OPENAI_DATASET_MEAN, theirs.OPENAI_DATASET_STD)
    assert (IMAGENET_MEAN, IMAGENET_STD) == (theirs.IMAGENET_MEAN, theirs.IMAGENET_STD)


# --- with timm ---


@pytest.mark.parametrize("crop_pct", [0.875, 0.95, 1.0])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    "crop_mode, resize_mode", [("center", "shortest"), ("squash", "squash"), ("border", "longest")]
)
def test_equals_timm(timm, rng, crop_pct, interpolation, crop_mode, resize_mode):
    for image_size in (224, (64, 96)):
        theirs = timm.data.create_transform(
            image_size,
            is_training=False,
            crop_pct=crop_pct,
            crop_mode=crop_mode,
            interpolation=interpolation,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
        )
        fill = tuple(round(255 * value) for value in IMAGENET_MEAN)  # timm's border
        spec = PreprocessSpec(image_size, IMAGENET_MEAN, IMAGENET_STD, interpolation, resize_mode, crop_pct, fill)
        for width, height in [*WIDTHS_HEIGHTS[3:21], (500, 375), (333, 500)]:
            image = random_image(rng, width, height)
            assert_equal(spec.eval_transform()(image), theirs(image), (image_size, width, height))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_every_interpolation_equals_timms(timm, rng, interpolation):
    image = random_image(rng, 150, 211)
    theirs = timm.data.create_transform(64, crop_pct=0.9, interpolation=interpolation)
    spec = PreprocessSpec(64, IMAGENET_MEAN, IMAGENET_STD, interpolation, crop_pct=0.9)
    assert_equal(spec.eval_transform()(image), theirs(image), interpolation)


def test_rgb_first_equals_timm_on_a_converted_palette(timm, rng):
    image = random_image(rng, 150, 211, "P")
    theirs = timm.data.create_transform(64, crop_pct=0.9, interpolation="bicubic")(image.convert("RGB"))
    spec = PreprocessSpec(64, IMAGENET_MEAN, IMAGENET_STD, crop_pct=0.9, rgb_first=True)
    assert_equal(spec.eval_transform()(image), theirs, "P")


# --- every preprocessing of the table of published weights ---

ROWS = [row for group in all_weights().values() for row in group.values()]
PAIR_SPECS = {row.preprocess: row.full_name for row in reversed(ROWS) if row.classes is None}
TIMM_SPECS = {
    spec: row.full_name
    for row in reversed(ROWS)
    if row.classes is not None
    for spec in (row.test, row.preprocess)
    if spec
}


def small_first(specs):
    """Parameters of a test; specs of images over 240 pixels are slow."""
    return [
        pytest.param(spec, id=name, marks=[pytest.mark.slow] if np.max(spec.image_size) > 240 else [])
        for spec, name in specs.items()
    ]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """{name: image} of all that the transforms may meet, small; the photographs and their turned copies are files."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(5)
    images = {f"{mode} {size}": random_image(rng, *size, mode) for mode in MODES for size in ((61, 43), (40, 90))}
    turned = Image.Exif()
    turned[0x0112] = 6  # orientation: a quarter turn to the right
    for name in ("china.jpg", "flower.jpg"):
        photograph = Image.fromarray(load_sample_image(name)).resize((321, 214))
        for exif in (None, turned):
            path = folder / f"{'turned' if exif else 'plain'} {name}"
            photograph.save(path, exif=exif or b"", quality=90)
            images[path.name] = open_image(path)
        photograph.convert("CMYK").save(folder / f"cmyk {name}")
        images[f"cmyk {name}"] = open_image(folder / f"cmyk {name}")
    assert images["turned china.jpg"].getexif()[0x0112] == 6
    return images


def test_the_table_has_few_distinct_specs():
    families = {dataclasses.replace(spec, image_size=1) for spec in PAIR_SPECS}
    assert len(families) == 5  # OpenAI's; halves; OpenAI's squashed, and bilinear; MobileCLIP's bare pixels
    assert len(PAIR_SPECS) < 20 and len(TIMM_SPECS) < 40


@pytest.mark.parametrize("spec", small_first(PAIR_SPECS))
def test_every_pairs_spec_equals_open_clips_transform(open_clip, images, spec):
    config = open_clip.transform.PreprocessCfg(
        size=spec.image_size,
        mean=spec.mean,
        std=spec.std,
        interpolation=spec.interpolation,
        resize_mode=spec.resize_mode,
    )
    theirs, compared = open_clip.transform.image_transform_v2(config, is_train=False), 0
    for name, image in images.items():
        expected, actual = attempt(theirs, image), attempt(spec.eval_transform(), image)
        if isinstance(expected, Exception):
            assert isinstance(actual, Exception), name
        else:
            assert_equal(actual, expected, name)
            compared += 1
    assert compared >= 20


@pytest.mark.parametrize("spec", small_first(TIMM_SPECS))
def test_every_classifiers_spec_equals_timms_transform_of_rgb(timm, images, spec):
    theirs = timm.data.create_transform(
        spec.image_size,
        is_training=False,
        mean=spec.mean,
        std=spec.std,
        interpolation=spec.interpolation,
        crop_pct=spec.crop_pct,
        crop_mode={"shortest": "center", "squash": "squash"}[spec.resize_mode],
    )
    compared = 0
    for name, image in images.items():
        rgb = attempt(lambda image: image.convert("RGB"), image)  # as timm's data sets do before their transform
        if isinstance(rgb, Exception):
            assert isinstance(attempt(spec.eval_transform(), image), Exception), name
        else:
            assert_equal(attempt(spec.eval_transform(), image), theirs(rgb), name)
            compared += 1
    assert compared >= 20
