"""Preprocessing: every field counts, and bad files and settings are refused."""

import contextlib
import dataclasses
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoo.data import preprocess as module
from zoo.data.augment import Augment
from zoo.data.preprocess import IMAGENET_MEAN, IMAGENET_STD, MAX_PIXELS, PreprocessSpec, batch, open_image, to_display

ROOT = Path(__file__).resolve().parent.parent


def random_image(rng, width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Noise on a gradient, so that both fine detail and slow change are resampled."""

    def plane(top: int = 256) -> np.ndarray:
        ramp = np.linspace(0, top / 2, width)[None] + np.linspace(0, top / 4, height)[:, None]
        return (ramp + rng.uniform(0, top / 4, (height, width))).clip(0, top - 1)

    if mode == "1":
        return Image.fromarray((plane() > 100).astype(np.uint8) * 255).convert("1")
    if mode == "I;16":
        return Image.fromarray(plane(400).astype(np.uint16))
    if mode in ("I", "F"):
        return Image.fromarray(plane().astype(np.int32 if mode == "I" else np.float32))
    if mode.startswith("P"):
        image = Image.fromarray(plane(64).astype(np.uint8)).copy()
        image.putpalette(rng.integers(0, 256, 192, dtype=np.uint8).tobytes())
        if mode == "P+alpha":
            image.info["transparency"] = bytes(range(64))
        return image.convert("PA") if mode == "PA" else image
    planes = [Image.fromarray(plane().astype(np.uint8)) for _ in Image.new(mode, (1, 1)).getbands()]
    return Image.merge(mode, planes)


def test_every_field_changes_the_result(rng):
    image = random_image(rng, 90, 61, "P+alpha")
    base = {"image_size": 32, "resize_mode": "longest"}
    changes = {
        "image_size": (32, 33),
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "interpolation": "bilinear",
        "resize_mode": "squash",
        "crop_pct": 0.9,
        "fill": 9,
        "rgb_first": True,
        "background": "white",
    }
    assert set(changes) == {field.name for field in dataclasses.fields(PreprocessSpec)}
    for name, value in changes.items():
        common = {"rgb_first": True} if name == "interpolation" else {}  # a palette is never interpolated
        first = PreprocessSpec(**{**base, **common}).eval_transform()(image)
        second = PreprocessSpec(**{**base, **common, name: value}).eval_transform()(image)
        assert first.shape != second.shape or not np.array_equal(first, second), name


def test_crop_takes_the_middle_and_rounds_halves_to_even():
    ramp = np.arange(11, dtype=np.uint8)[None, :, None].repeat(6, axis=0).repeat(3, axis=2)
    spec = PreprocessSpec(6, mean=(0.0,) * 3, std=(1 / 255,) * 3)
    for width, first in ((6, 0), (7, 0), (8, 1), (9, 2), (10, 2), (11, 2)):  # margins 0, 0.5, 1, 1.5, 2, 2.5
        assert round(float(spec.eval_transform()(ramp[:, :width])[0, 0, 0])) == first


def test_arrays_and_images_give_the_same(rng):
    transform = PreprocessSpec(32).eval_transform()
    for mode in ("RGB", "RGBA", "L"):
        image = random_image(rng, 50, 40, mode)
        assert np.array_equal(transform(image), transform(np.asarray(image)))
    assert np.array_equal(transform(np.asarray(image)), transform(np.asarray(image)[..., None]))


@pytest.mark.parametrize(
    "array", [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 2), np.uint8), np.zeros((1, 4, 4, 3), np.uint8)]
)
def test_other_arrays_are_refused(array):
    with pytest.raises(ValueError, match=r"image is (float32|uint8) \(.*allowed is uint8 \(H, W\)"):
        PreprocessSpec().eval_transform()(array)


def test_paths_and_empty_images_are_refused():
    transform = PreprocessSpec().eval_transform()
    with pytest.raises(TypeError, match="image is str.*open_image"):
        transform("dog.jpg")
    with pytest.raises(ValueError, match="0x4 has no pixels"):
        transform(np.zeros((4, 0, 3), np.uint8))


def test_a_sliver_does_not_grow_beyond_the_limit():
    with pytest.raises(ValueError, match=f"1x9000 would grow to 224x2016000; .*{MAX_PIXELS} pixels"):
        PreprocessSpec().eval_transform()(Image.new("RGB", (1, 9000)))


def test_batch_stacks(rng):
    spec = PreprocessSpec((20, 30))
    images = [random_image(rng, 50, 40), random_image(rng, 33, 44, "L"), np.zeros((9, 9, 3), np.uint8)]
    result = batch(images, spec)
    assert result.shape == (3, 20, 30, 3) and result.dtype == np.float32
    assert all(np.array_equal(row, spec.eval_transform()(image)) for row, image in zip(result, images, strict=True))
    assert batch([], spec).shape == (0, 20, 30, 3)


def test_transform_is_pickled(rng):
    transform = PreprocessSpec(16).eval_transform()
    image = random_image(rng, 20, 20)
    assert np.array_equal(pickle.loads(pickle.dumps(transform))(image), transform(image))


@pytest.mark.parametrize(
    "spec",
    [PreprocessSpec(), PreprocessSpec((96, 64), IMAGENET_MEAN, IMAGENET_STD, "box", "longest", 0.95, (1, 2, 3), True)],
)
def test_spec_survives_json(spec):
    again = PreprocessSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert again == spec and hash(again) == hash(spec)


def test_from_dict_names_the_nearest_field():
    with pytest.raises(ValueError, match="no 'interpolate'; nearest is 'interpolation', allowed are"):
        PreprocessSpec.from_dict({"interpolate": "bicubic"})
    assert PreprocessSpec.from_dict({"crop_pct": 0.9}) == PreprocessSpec(crop_pct=0.9)


@pytest.mark.parametrize(
    "name, value",
    [
        *(("image_size", wrong) for wrong in (0, -1, 2.5, True, None, (224,), (224, 0), (1, 2, 3), "224")),
        *(("mean", wrong) for wrong in (0.5, (0.5,), (0.5, 0.5, float("nan")), "abc")),
        *(("std", wrong) for wrong in ((1, 1, 0), (1, 1, -1), (1, 1, float("inf")))),
        *(("interpolation", wrong) for wrong in ("cubic", "BICUBIC", None, [])),
        *(("resize_mode", wrong) for wrong in ("center", None)),
        *(("crop_pct", wrong) for wrong in (0, 1.01, -1, None, float("nan"), "1")),
        *(("fill", wrong) for wrong in (256, -1, 0.5, (1, 2), (1, 2, 256), None)),
        ("rgb_first", 1),
        ("background", "whitish"),
        ("background", (0, 0, 256)),
        ("background", 255),
    ],
)
def test_wrong_fields_are_refused_by_name_value_and_allowed(name, value):
    with pytest.raises(ValueError, match=f"^{name}=.*; it must be ") as error:
        PreprocessSpec(**{name: value})
    assert repr(value).strip("[]()") in str(error.value)


# --- files ---


@pytest.fixture
def photo(rng):
    return random_image(rng, 60, 40)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.gif", "a.bmp"])
def test_files_are_opened_and_decoded(tmp_path, photo, name):
    photo.save(tmp_path / name)
    image = open_image(str(tmp_path / name))
    assert image.size == (60, 40)
    assert PreprocessSpec(16).eval_transform()(image).shape == (16, 16, 3)  # the file is closed by now


def test_an_animation_gives_its_first_frame(tmp_path, rng):
    frames = [random_image(rng, 20, 20, "P") for _ in range(3)]
    for name in ("a.gif", "a.webp", "a.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
        image = open_image(tmp_path / name)
        assert np.array_equal(np.asarray(image.convert("RGB")), np.asarray(frames[0].convert("RGB"))), name
        assert PreprocessSpec(16).eval_transform()(image).shape == (16, 16, 3)


@pytest.mark.parametrize("kind", ["TIFF", "PPM", "ICO", "PDF", "EPS", "JPEG2000"])
def test_other_formats_are_refused_whatever_their_name(tmp_path, photo, kind):
    path = tmp_path / "photo.jpg"
    photo.save(path, format=kind)
    with pytest.raises(ValueError, match="photo.jpg is not an image of a known format; allowed are .*'JPEG'"):
        open_image(path)


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"\xff\xd8\xff"])
def test_what_is_no_image_is_refused_by_name(tmp_path, content):
    (tmp_path / "photo.png").write_bytes(content)
    with pytest.raises(ValueError, match="photo.png"):
        open_image(tmp_path / "photo.png")


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.gif", "a.bmp"])
def test_a_file_cut_off_anywhere_is_refused_by_name(tmp_path, photo, rng, name):
    path = tmp_path / name
    photo.save(path)
    whole = path.read_bytes()
    for length in rng.integers(1, len(whole) - 64, 30):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=name):
            open_image(path)


def test_damaged_bytes_give_an_image_or_a_value_error(tmp_path, photo, rng):
    for name in ("a.jpg", "a.png", "a.webp", "a.gif", "a.bmp"):
        path = tmp_path / name
        photo.save(path)
        whole = bytearray(path.read_bytes())
        for _ in range(60):
            damaged = bytearray(whole)
            for place in rng.integers(len(whole), size=4):
                damaged[place] = rng.integers(256)
            path.write_bytes(damaged)
            with contextlib.suppress(ValueError), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                open_image(path)


def png_claiming(width: int, height: int) -> bytes:
    """A small PNG whose header claims any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [9_500, 60_000])
def test_a_huge_image_is_refused_before_it_is_decoded(tmp_path, side, monkeypatch):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_claiming(side, side))
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("decoded"))
    with pytest.raises(ValueError, match="bomb.png .*(pixels|exceeds limit)"):
        open_image(path)


def test_the_limit_can_be_chosen_and_is_named(tmp_path, photo):
    photo.save(tmp_path / "a.png")
    assert open_image(tmp_path / "a.png", max_pixels=2400).size == (60, 40)
    with pytest.raises(ValueError, match="a.png has 60x40 pixels; at most 2399 are allowed"):
        open_image(tmp_path / "a.png", max_pixels=2399)


def test_missing_files_folders_and_pipes(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_image(tmp_path / "none.png")
    with pytest.raises(ValueError, match="not a regular file"):
        open_image(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
        with pytest.raises(ValueError, match="pipe.png is not a regular file"):  # and does not wait for a writer
            open_image(tmp_path / "pipe.png")


def test_import_needs_no_framework():
    code = "import sys, zoo.data.preprocess; assert not {'keras', 'torch', 'jax', 'tensorflow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def test_module_names_the_pixels_it_allows():
    assert module.MAX_PIXELS == Image.MAX_IMAGE_PIXELS  # Pillow warns above this itself


# --- deep greys, transparency, slow files ---

PIXELS = PreprocessSpec(64, mean=(0.0,) * 3, std=(1 / 255,) * 3)  # the result is the levels themselves


@pytest.mark.parametrize("rgb_first", [False, True])
@pytest.mark.parametrize(
    "mode, low, high",
    [
        *(("I;16", 0, 65535), ("I;16B", 0, 65535), ("I;16", 0, 255), ("I", 0, 65535), ("I", -40, 2_000_000)),
        *(("I", 0, 255), ("F", 0, 1), ("F", 0, 255), ("F", 0, 65535), ("F", -1, 1)),
    ],
)
def test_greys_of_more_than_8_bits_keep_their_levels(mode, low, high, rgb_first):
    ramp = np.linspace(low, high, 64)[None].repeat(64, axis=0)
    kinds = {"I": np.int32, "F": np.float32, "I;16": np.uint16, "I;16B": np.dtype(">u2")}
    image = Image.fromarray(ramp.astype(kinds[mode]))
    assert image.mode == mode
    levels = dataclasses.replace(PIXELS, rgb_first=rgb_first).eval_transform()(image)
    assert np.abs(levels[..., 0] - np.linspace(0, 255, 64)).max() <= 1
    assert np.abs(Augment(scale=(1.0, 1.0), flip=0.0)(image, np.random.default_rng(0), PIXELS) - levels).max() <= 1
    assert np.array_equal(to_display(image)[..., 0], np.rint(levels[..., 0]))


def test_a_grey_png_of_16_bits_is_no_white_sheet(tmp_path):
    ramp = (np.arange(64 * 64, dtype=np.uint16) * 16).reshape(64, 64)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    levels = PIXELS.eval_transform()(open_image(tmp_path / "ramp.png"))
    assert np.array_equal(np.rint(levels[..., 2]), np.rint(ramp / 257))


def test_levels_without_a_range_are_black_or_white():
    for value, expected in ((np.nan, 0), (0.0, 0), (1.0, 255), (-3.0, 0), (70000.0, 0)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = to_display(Image.fromarray(np.full((4, 4), value, np.float32)))
        assert (found == expected).all(), value


def transparent(mode: str, alpha: int) -> Image.Image:
    """A black image, 40 x 40, that is as opaque as `alpha` says everywhere."""
    if mode in ("RGB+key", "L+key"):
        image = Image.new(mode[:-4], (40, 40), 0)
        image.info["transparency"] = (0, 0, 0) if mode == "RGB+key" else 0
        return image
    image = Image.new("RGBA", (40, 40), (0, 0, 0, alpha))
    if mode == "P+alpha":
        image = Image.new("P", (40, 40), 0)
        image.putpalette([0, 0, 0])
        image.info["transparency"] = bytes([alpha])
        return image
    if mode == "PA":
        image = Image.new("PA", (40, 40), (0, alpha))
        image.putpalette([0, 0, 0])
        return image
    return image.convert("LA").convert("La") if mode == "La" else image.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGBa", "La", "PA", "P+alpha", "RGB+key", "L+key"])
@pytest.mark.parametrize("background, level", [("white", 255), ("black", 0), ((10, 20, 30), 20)])
def test_transparent_images_get_the_background(mode, background, level):
    spec = dataclasses.replace(PIXELS, background=background)
    for alpha in [0] if "key" in mode else [0, 128, 255]:
        image = transparent(mode, alpha)
        expected = level * (255 - alpha) / 255
        for found in (spec.eval_transform()(image), Augment()(image, np.random.default_rng(0), spec)):
            assert np.abs(found[..., 1] - expected).max() <= 1
        assert np.abs(to_display(image) - 255.0 * (255 - alpha) / 255).max() <= 1


def test_without_a_background_the_colours_below_count_and_one_warning_says_so(monkeypatch):
    monkeypatch.setattr(module, "_transparency", threading.Event())
    opaque = np.full((8, 8, 4), 255, np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PIXELS.eval_transform()(opaque)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for alpha in (0, 100, 0):
            assert not PIXELS.eval_transform()(transparent("RGBA", alpha)).any()
    assert len(seen) == 1 and "PreprocessSpec(background=" in str(seen[0].message)


def test_a_background_is_saved_and_its_absence_leaves_files_as_they_were():
    old = PreprocessSpec()
    assert "background" not in old.to_dict() and "background" not in repr(old)
    for background in ("white", (1, 2, 3)):
        spec = PreprocessSpec(background=background)
        assert f"background={background!r}" in repr(spec)
        assert PreprocessSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec != old


def test_a_progressive_jpeg_of_many_scans_is_refused(rng):
    content = io.BytesIO()
    random_image(rng, 64, 64).save(content, "JPEG", progressive=True)
    sound = content.getvalue()
    assert module.decode_image(io.BytesIO(sound), "sound").size == (64, 64)
    last = sound[sound.rindex(b"\xff\xda") : -2]
    with pytest.raises(ValueError, match="slow is cut off or damaged: more than 64 scans"):
        module.decode_image(io.BytesIO(sound[:-2] + last * 300 + sound[-2:]), "slow")
