"""HEIC, AVIF and RAW files: read where their decoders are, otherwise refused with the name of the extra."""

import io
import sys

import numpy as np
import pytest
from data_writers import write_dng, write_heic
from PIL import Image, features

from zoo.data import open_dataset
from zoo.data.folders import read_images
from zoo.data.preprocess import decode_image, open_image


@pytest.fixture
def image():
    y, x = np.mgrid[:48, :64]
    return np.stack([4 * x, 5 * y, np.full_like(x, 90)], axis=-1).astype(np.uint8)


def test_a_heic_file_is_read(image, tmp_path):
    pytest.importorskip("pillow_heif")
    path = tmp_path / "a.heic"
    write_heic(path, image)
    found = np.asarray(open_image(path).convert("RGB"))
    assert np.abs(found.astype(int) - image).mean() < 6
    with pytest.raises(ValueError, match="64 × 48 pixels; at most 100|at most 100 are allowed"):
        open_image(path, max_pixels=100)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"a\.heic"):
        open_image(path)


@pytest.mark.skipif(not features.check("avif"), reason="Pillow without AVIF")
def test_an_avif_file_is_read(image, tmp_path):
    Image.fromarray(image).save(tmp_path / "a.avif", quality=95)
    found = np.asarray(open_image(tmp_path / "a.avif").convert("RGB"))
    assert np.abs(found.astype(int) - image).mean() < 6


def test_a_raw_file_is_developed():
    pytest.importorskip("rawpy")
    values = np.full((64, 96), 1000)
    values[::2, ::2] = 30000  # red
    data = write_dng(values)
    found = np.asarray(decode_image(io.BytesIO(data), "a.dng"))
    middle = found[20:-20, 20:-20].reshape(-1, 3).mean(axis=0)
    assert found.shape == (64, 96, 3) and middle[0] > 2 * middle[1] and middle[0] > 2 * middle[2]
    with pytest.raises(ValueError, match="96 × 64 pixels; at most 100"):
        decode_image(io.BytesIO(data), "a.dng", max_pixels=100)
    with pytest.raises(ValueError, match=r"a\.dng is not a RAW file that LibRaw reads"):
        decode_image(io.BytesIO(data[:200]), "a.dng")


@pytest.mark.parametrize(
    "head, module, extra",
    [
        (b"\0\0\0\x18ftypheic" + bytes(20), "pillow_heif", "heic"),
        (b"II*\0" + bytes(20), "rawpy", "raw"),
        (b"\0\0\0\x18ftypcrx " + bytes(20), "rawpy", "raw"),
    ],
)
def test_a_missing_plugin_is_named(head, module, extra, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=rf"photo.dng is a .* file, .*pip install .convnext-clip-zoo\[{extra}\]"):
        decode_image(io.BytesIO(head), "photo.dng")


def test_folders_of_images_list_them_only_when_asked(image, tmp_path):
    Image.fromarray(image).save(tmp_path / "a.png")
    for name in ("b.HEIC", "c.dng", "d.avif", "e.tiff"):
        (tmp_path / name).write_bytes(b"x")
    assert read_images(tmp_path).names == ["a.png"]
    found = open_dataset(tmp_path, needs="images", plugins=True)
    assert list(found.names) == ["a.png", "b.HEIC", "c.dng", "d.avif"]
