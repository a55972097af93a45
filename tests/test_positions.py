"""Positional embeddings at another image size equal open_clip's; tables that are not a square grid are unchanged."""

from types import SimpleNamespace

import numpy as np
import pytest
from helpers import declare_torchvision_operators

from zoo.weights.fitting import cubic_weights, grid_sides, resize_grid


@pytest.mark.parametrize(
    ("old", "new"), [(7, 12), (7, 8), (16, 24), (24, 16), (16, 7), (12, 1), (1, 5), (32, 3), (9, 9)]
)
def test_equals_open_clip(rng, old, new):
    torch = pytest.importorskip("torch")
    declare_torchvision_operators()
    resize_pos_embed = pytest.importorskip("open_clip.model").resize_pos_embed
    embedding = rng.standard_normal((old**2 + 1, 24)).astype(np.float32)
    state = {"visual.positional_embedding": torch.from_numpy(embedding)}
    resize_pos_embed(state, SimpleNamespace(visual=SimpleNamespace(grid_size=(new, new))))
    expected = state["visual.positional_embedding"].numpy()
    actual = resize_grid(embedding, new)
    assert actual.dtype == np.float32 and actual.shape == expected.shape == (new**2 + 1, 24)
    assert np.abs(actual - expected).max() / np.abs(expected).max() <= 1e-6
    np.testing.assert_array_equal(actual[0], embedding[0])


def test_without_a_class_token_the_whole_is_the_grid(rng):
    grid = rng.standard_normal((16, 3)).astype(np.float32)
    np.testing.assert_allclose(resize_grid(grid, 4, extra=0), grid, atol=1e-6)
    assert resize_grid(grid, 6, extra=0).shape == (36, 3)


@pytest.mark.parametrize(("old", "new"), [(3, 9), (9, 3), (5, 5)])
def test_a_constant_stays_one(old, new):
    np.testing.assert_allclose(cubic_weights(old, new).sum(axis=1), 1)
    np.testing.assert_allclose(resize_grid(np.full((old**2 + 1, 2), 3, np.float32), new), 3, rtol=1e-6)


@pytest.mark.parametrize(
    ("old", "new", "sides"),
    [
        (50, 65, (1, 7, 8)),
        (197, 577, (1, 14, 24)),
        (196, 256, (0, 14, 16)),
        (50, 64, None),
        (77, 64, None),
        (1, 5, None),
    ],
)
def test_grids_are_told_from_sequences(old, new, sides):
    assert grid_sides(old, new) == sides
