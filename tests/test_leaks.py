"""Memory does not grow with the number of steps: forward passes, `predict` with odd last batches, training.

And it grows with the batch no faster than in proportion.
"""

import contextlib

import keras
import numpy as np
import pytest

from convnext import Variant, create_convnext_v2
from zoo.bench.cases import combine
from zoo.bench.machine import resident_bytes
from zoo.bench.processes import Worker

pytestmark = [pytest.mark.backend, pytest.mark.slow]

SETTLED, SHARE, STEPS = 150, 100, 500
MOST_GROWTH = 8 * 2**20  # a float32 batch of 64 images of 32 pixels a step would be 337 MiB
ROW = Variant(depths=(1, 1, 1, 1), dims=(8, 16, 32, 64))
SIZES = (64, 61, 3)  # of batches
BATCH, TIMES, PIXELS = 64, 3, 160  # below, what building the model needs at most hides the batch


def grown(step):
    """Bytes by which this process grew from the SHARE of steps after SETTLED to the last SHARE of all.

    Of each the least that it held counts: allocators take and give back tens of megabytes from one step to the next.
    """
    held = []
    for number in range(STEPS):
        step(number)
        held.append(resident_bytes())
    return min(held[-SHARE:]) - min(held[SETTLED : SETTLED + SHARE])


@pytest.fixture
def model():
    if resident_bytes() is None:
        pytest.fail("This system does not tell how much memory a process holds: run this test on Linux or macOS.")
    model = create_convnext_v2(ROW, 10, (32, 32, 3))
    model.compile("adamw", "sparse_categorical_crossentropy")
    return model


@pytest.fixture
def images(rng):
    return rng.standard_normal((max(SIZES), 32, 32, 3)).astype("float32")


def test_forward_passes_do_not_leak(model, images):
    assert grown(lambda number: model.predict_on_batch(images[: SIZES[number % len(SIZES)]])) < MOST_GROWTH


def test_predict_does_not_leak(model, images):
    assert grown(lambda _: model.predict(images[:35], batch_size=16, verbose=0)) < MOST_GROWTH


def test_training_does_not_leak(model, images, rng):
    labels = rng.integers(0, 10, len(images))

    def step(number):
        count = SIZES[number % len(SIZES)]
        loss = model.train_on_batch(images[:count], labels[:count])
        assert np.isfinite(keras.ops.convert_to_numpy(loss)).all()

    assert grown(step) < MOST_GROWTH


@pytest.mark.parametrize("train", [False, True])
def test_memory_grows_no_faster_than_the_batch(train):
    """The whole memory beyond the libraries is compared: the allocators' steps are larger than the need of one image,
    2 to 6 MB from one batch size to the next."""
    own = {"backend": (keras.backend.backend(),), "train": (train,), "image_size": (PIXELS,), "is_short": (True,)}
    cases = combine(["convnextv2_atto"], {**own, "batch_size": (BATCH, TIMES * BATCH), "peer": ("none",)})
    small, large = map(held, cases)
    print(f"{small / 1e6:.0f} MB for {BATCH} images, {large / 1e6:.0f} MB for {TIMES * BATCH}")
    assert small < large < TIMES * small


def held(case):
    """Bytes beyond the libraries that a fresh process held at most to build the case and to call it three times."""
    with contextlib.closing(Worker(case)) as worker:
        for _ in range(2):
            worker.take_turn()
        return worker.last["host_bytes"] - worker.ready["library_bytes"]
