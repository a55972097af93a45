"""A name's way through `create_model`: each room of zoo/ is entered from above, once, and never climbs back up."""

import functools
import sys
from pathlib import Path

import pytest
from test_import_directions import ORDER
from test_save_load import fill

import zoo
from zoo.weights import export_tensors, write_safetensors
from zoo.weights.published import find_weights
from zoo.weights.sources import timm

pytestmark = [pytest.mark.backend, pytest.mark.once]

FOLDER = Path(zoo.__file__).parent
ROOMS = list(dict.fromkeys(entry.partition(".")[0] for entry in ORDER["zoo"]))  # lowest first


@functools.cache
def room_of(filename: str) -> str | None:
    """The folder of zoo/ that a file is in, or None."""
    path = Path(filename)
    return path.relative_to(FOLDER).parts[0] if path.is_relative_to(FOLDER) and path.parent != FOLDER else None


def walk(call) -> list[tuple[str, ...]]:
    """The stacks of rooms of every call in zoo/ during `call`, without repeats: ("models", "weights"), …"""
    stacks: list[tuple[str, ...]] = []

    def record(frame, event, _):
        if event != "call" or frame.f_code.co_name == "<module>" or room_of(frame.f_code.co_filename) is None:
            return
        stack: list[str] = []
        while frame is not None:
            room = room_of(frame.f_code.co_filename)
            if room is not None and stack[:1] != [room]:
                stack.insert(0, room)
            frame = frame.f_back
        if tuple(stack) not in stacks:
            stacks.append(tuple(stack))

    sys.setprofile(record)
    try:
        call()
    finally:
        sys.setprofile(None)
    return stacks


@pytest.fixture
def weights(tmp_path):
    source = fill(zoo.create_model("convnextv2_atto", num_classes=5, input_shape=(32, 32, 3)))
    write_safetensors(tmp_path / "model.safetensors", export_tensors(source, timm.CONVNEXT_CONV_MLP), {})
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("kind", ["plain", "tagged", "file"])
def test_create_model_goes_downwards_and_visits_each_room_once(kind, weights, hub_cache):
    row = find_weights("convnextv2_atto", "fcmae_ft_in1k")
    hub_cache.put(row.repository, "model.safetensors", weights.read_bytes())
    name, options = {
        "plain": ("convnextv2_atto", {}),
        "tagged": (row.full_name, {"num_classes": 5}),
        "file": ("convnextv2_atto", {"weights": weights}),
    }[kind]
    stacks = walk(lambda: zoo.create_model(name, input_shape=(32, 32, 3), **options))
    for stack in stacks:
        heights = [ROOMS.index(room) for room in stack]
        assert heights == sorted(set(heights), reverse=True), f"{stack} climbs back up or enters a room twice"
        assert stack[0] == "models"
    entered = {room for stack in stacks for room in stack}
    assert entered <= {"models", "weights", "data", "utils"} and {"models", "weights"} <= entered
