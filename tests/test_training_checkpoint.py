"""Checkpoints: whole or absent, whatever happens while they are written or lie on the disk."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from zoo.training.checkpoint import MANIFEST, STATE, newest_checkpoint, read_checkpoint, save_checkpoint
from zoo.utils.files import TEMPORARY_PREFIX, remove_leftovers

ROOT = Path(__file__).resolve().parent.parent
WRITER = """
import sys
import numpy as np
from zoo.training.checkpoint import newest_checkpoint, save_checkpoint

folder = sys.argv[1]
last = newest_checkpoint(folder)
number = last.progress["number"] if last else 0
while True:
    number += 1
    state = {f"v{i}": np.full(1 << 14, number, np.int64) for i in range(8)}
    save_checkpoint(folder, state, {"number": number}, history=f"{number}\\n" * 100)
    print(number, flush=True)
"""


def state(value=1.0):
    return {
        "kernel": np.full((3, 2), value, np.float32),
        "half": np.full((2,), value, np.float16),
        "seed": np.array([7, 2**32 - 1], np.uint32),
        "count": np.array(5, np.int64),
        "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    }


def equal(one, other):
    same = one.keys() == other.keys()
    return same and all(
        np.array_equal(one[k], other[k]) and one[k].dtype == other[k].dtype and one[k].shape == other[k].shape
        for k in one
    )


def test_a_saved_checkpoint_is_read_back(tmp_path):
    path = save_checkpoint(tmp_path / "made", state(), {"epoch": 1, "step": 2}, history='{"loss": 1}\n')
    found = newest_checkpoint(tmp_path / "made")
    assert found.path == path
    assert equal(found.state, state())
    assert found.progress == {"epoch": 1, "step": 2}
    assert found.history == '{"loss": 1}\n'


def test_an_empty_or_missing_folder_has_no_checkpoint(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    assert newest_checkpoint(tmp_path / "nowhere") is None


def test_the_newest_checkpoints_are_kept(tmp_path):
    for number in range(5):
        save_checkpoint(tmp_path, state(number), {"number": number}, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-000004", "checkpoint-000005"]
    assert newest_checkpoint(tmp_path).progress == {"number": 4}


@pytest.mark.parametrize("name", [STATE, "progress.json", "history.jsonl", MANIFEST])
def test_a_damaged_checkpoint_falls_back_to_the_previous_one(tmp_path, name, rng):
    for number in range(2):
        save_checkpoint(tmp_path, state(number), {"number": number}, history="a line\n" * 30)
    newest = tmp_path / "checkpoint-000002" / name
    whole = newest.read_bytes()
    places = sorted({0, 1, len(whole) - 1, *rng.integers(len(whole), size=20).tolist()})
    for place in places:
        flipped = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
        for content in (whole[:place], flipped):
            newest.write_bytes(content)
            if name == MANIFEST and _says_the_same(content, whole):
                continue
            with pytest.warns(UserWarning, match="checkpoint-000002 is damaged and ignored"):
                assert newest_checkpoint(tmp_path).progress == {"number": 0}
    newest.unlink()
    with pytest.warns(UserWarning, match="is damaged and ignored"):
        assert newest_checkpoint(tmp_path).progress == {"number": 0}
    newest.write_bytes(whole)
    assert newest_checkpoint(tmp_path).progress == {"number": 1}


def _says_the_same(content, whole):
    """A flipped bit among the spaces of the manifest changes nothing that it says."""
    try:
        return json.loads(content) == json.loads(whole)
    except ValueError:
        return False


def test_a_failed_write_keeps_the_previous_checkpoint(tmp_path):
    save_checkpoint(tmp_path, state(), {"number": 0})
    code = """
import resource, sys
import numpy as np
from zoo.training.checkpoint import save_checkpoint
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    save_checkpoint(sys.argv[1], {"v": np.zeros(1_000_000)}, {"number": 1})
except OSError as error:
    print("OSError", error)
"""
    pytest.importorskip("resource", reason="the system has no limits to set")
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout.startswith("OSError"), run.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-000001"]
    assert newest_checkpoint(tmp_path).progress == {"number": 0}


def test_unsupported_dtypes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="complex64"):
        save_checkpoint(tmp_path, {"v": np.zeros(2, np.complex64)}, {})
    with pytest.raises(ValueError, match="keep=0"):
        save_checkpoint(tmp_path, state(), {}, keep=0)
    assert list(tmp_path.iterdir()) == []


def test_another_format_version_is_refused(tmp_path):
    path = save_checkpoint(tmp_path, state(), {})
    manifest = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(ValueError, match="format is 99"):
        read_checkpoint(path)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the system has no SIGKILL")
def test_killed_writers_lose_no_saved_checkpoint(tmp_path, rng):
    saved = 0
    for _ in range(10):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        first = writer.stdout.readline()
        time.sleep(rng.uniform(0, 0.1))
        writer.send_signal(signal.SIGKILL)
        said = [first, *writer.stdout.read().splitlines()]
        writer.wait()
        saved = max([saved, *(int(line) for line in said if line.strip())])
        found = newest_checkpoint(tmp_path)
        number = found.progress["number"]
        assert number in (saved, saved + 1)  # the last one may have been whole before it could be told
        assert all((array == number).all() for array in found.state.values())
        saved = number
    remove_leftovers(tmp_path)
    assert not list(tmp_path.glob(f"{TEMPORARY_PREFIX}*"))
    assert os.listdir(tmp_path)
