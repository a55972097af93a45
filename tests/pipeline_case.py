"""Fixtures of the pipeline and search tests: a small pair, in memory and saved, and images."""

import keras
import numpy as np
import pytest
from data_writers import digits, encode
from helpers import randomize

import zoo
from clip import create_clip
from clip.variants import Pair, Text, ViT
from zoo import ClipPipeline
from zoo.data.preprocess import PreprocessSpec

SPEC = PreprocessSpec(image_size=16)


def pair(seed):
    row = Pair(16, 16, ViT(32, 1, 8, head_width=16), Text(width=32, heads=2, layers=1))
    return randomize(create_clip(row), np.random.default_rng(seed), scale=0.1)


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return pair(0)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("pair") / "pair.safetensors"
    zoo.save(model, path, preprocess=SPEC)
    return path


@pytest.fixture(scope="module")
def pipeline(model):
    return ClipPipeline(model, preprocess=SPEC, batch_size=4)


@pytest.fixture(scope="module")
def images():
    return list(digits(7)[0])


@pytest.fixture
def album(tmp_path, images):
    """A folder with 7 images in two folders, a copy of one, and a damaged file."""
    folder = tmp_path / "album"
    for i, image in enumerate(images):
        path = folder / ("left" if i < 4 else "right") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(image))
    (folder / "right" / "copy.png").write_bytes(encode(images[0]))
    (folder / "right" / "bad.png").write_bytes(b"not an image")
    return folder
