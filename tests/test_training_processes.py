"""Several processes: a run of two trains as a run of one; a killed one resumes; JAX alone has them.

`python tests/test_training_processes.py OUTPUT DATA OPTIONS` is one process of a run; it trains with plain descent,
since Adam divides gradients by their size, and with them their rounding.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from data_writers import write_class_folders, write_csv
from training_case import BASE, ROW

import zoo
from zoo.training import contrastive, processes

pytestmark = pytest.mark.backend
on_jax = pytest.mark.only("jax")


def train(output, data, options):
    if options.pop("descent", True):
        contrastive.create_optimizer = lambda *_, **__: keras.optimizers.SGD(0.1)
    if options.pop("hang", -1) == options.get("process_id"):
        read = contrastive.Batches.__getitem__
        contrastive.Batches.__getitem__ = lambda self, i: time.sleep(1e6) if i == 1 else read(self, i)
    processes.Watch.__init__.__defaults__ = (options.pop("stuck", 600.0),)
    zoo.train(ROW, data, output=output, **{**BASE, **options})


def start(count, output, data, **options):
    """Start the processes of a run."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    started = []
    for number in range(count):
        own = {"coordinator": address, "processes": count, "process_id": number} if count > 1 else {}
        command = [sys.executable, __file__, str(output), str(data), json.dumps({**options, **own})]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    return started


def finish(started, timeout=300):
    """Wait for processes; return their exit codes and what they wrote to stderr."""
    ends = []
    try:
        for process in started:
            errors = process.communicate(timeout=timeout)[1]
            ends.append((process.returncode, errors))
    finally:
        for process in started:
            process.kill()
    return ends


def result(output):
    """(losses, weights) of a run."""
    rows = [json.loads(line) for line in Path(output, "history.jsonl").read_text().splitlines()]
    numbers = [v for row in rows for name, v in row.items() if name not in ("seconds", "event") and v is not None]
    return numbers, zoo.load(f"{output}/model.safetensors").model.get_weights()


def assert_equal(one, other, rel=1e-5):
    assert one[0] == pytest.approx(other[0], rel=rel)
    for a, b in zip(one[1], other[1], strict=True):
        assert np.abs(a - b).max() <= rel * max(np.abs(b).max(), 1e-3)


@on_jax
@pytest.mark.slow
def test_two_and_four_processes_train_like_one(tmp_path):
    data = write_csv(tmp_path / "data", 16)
    options = {"validation_data": str(data), "epochs": 1, "log_every": 1}
    for count in (1, 2, 4):
        ends = finish(start(count, tmp_path / str(count), data, **options))
        assert all(code == 0 for code, _ in ends), ends
    for count in (2, 4):
        assert_equal(result(tmp_path / str(count)), result(tmp_path / "1"))
    assert (
        not (tmp_path / "2" / "bad_samples-1.jsonl").exists()
        or (tmp_path / "2" / "bad_samples-1.jsonl").stat().st_size == 0
    )


@on_jax
@pytest.mark.slow
def test_a_killed_process_ends_the_run_which_resumes_bit_for_bit(tmp_path):
    data = write_csv(tmp_path / "data", 16)
    options = {"epochs": 4, "log_every": 1, "save_every": 1, "descent": False}
    assert all(code == 0 for code, _ in finish(start(2, tmp_path / "whole", data, **options)))
    for victim in (0, 1):
        out = tmp_path / f"cut{victim}"
        started = start(2, out, data, **options)
        deadline = time.monotonic() + 200
        while not list((out / "checkpoints").glob("*3*")) and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(started[victim].pid, signal.SIGKILL)
        assert all(code != 0 for code, _ in finish(started))
        assert all(code == 0 for code, _ in finish(start(2, out, data, resume=True, **options)))
        for a, b in zip(result(out)[1], result(tmp_path / "whole")[1], strict=True):
            np.testing.assert_array_equal(a, b)
    one = tmp_path / "on-one"
    started = start(2, one, data, **options)
    while not list((one / "checkpoints").glob("*3*")):
        time.sleep(0.05)
    started[0].send_signal(signal.SIGTERM)
    assert all(code == 0 for code, _ in finish(started))
    assert all(code == 0 for code, _ in finish(start(1, one, data, resume=True, **options)))
    assert_equal(result(one), result(tmp_path / "whole"), rel=1e-3)  # Adam's division makes rounding larger


@on_jax
@pytest.mark.slow
def test_a_stuck_process_ends_the_run_with_its_number(tmp_path):
    data = write_csv(tmp_path / "data", 32)
    ends = finish(start(2, tmp_path / "out", data, epochs=2, log_every=1, hang=1, stuck=40.0))
    assert all(code != 0 for code, _ in ends)
    assert any("the run waits for process 1" in errors and "reading at step" in errors for _, errors in ends), ends


CLASSIFIER = {
    **{"model_type": "resnet", "layer_type": "basic", "embedding_size": 8, "hidden_sizes": [8], "depths": [1]},
    **{"image_size": 16, "batch_size": 8, "epochs": 1, "log_every": 1, "threads": 1},
}
SMALL = ["--image-size", "32", "--batch-size", "8", "--epochs", "1", "--log-every", "1"]


@on_jax
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["train contrastive", "train classify", "pretrain"])
def test_local_processes_train_like_one(mode, tmp_path):
    """The command starts both; the first steps' losses are those of one process."""
    if mode == "train contrastive":
        data = ["--model", "convnext_v2_atto", "--train-data", str(write_csv(tmp_path / "data", 16)), *SMALL]
    elif mode == "pretrain":
        data = ["--model", "convnextv2_atto", "--train-data", str(write_class_folders(tmp_path / "data", 16)), *SMALL]
    else:
        folders = str(write_class_folders(tmp_path / "data", 16))
        config = tmp_path / "config.json"
        config.write_text(json.dumps({**CLASSIFIER, "train_data": folders, "validation_data": folders}))
        data = ["--config", str(config)]
    losses = []
    for more in ([], ["--local-processes", "2"]):
        output = tmp_path / f"with{len(more)}"
        command = [
            sys.executable,
            "-m",
            "zoo",
            *mode.split(),
            *data,
            "--output",
            str(output),
            "--backend",
            "jax",
            *more,
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stderr
        assert (output / "processes").is_dir() == bool(more)
        rows = [json.loads(line) for line in (output / "history.jsonl").read_text().splitlines()]
        losses.append([row[name] for row in rows for name in ("loss", "val_loss") if name in row])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_a_child_that_a_signal_ends_fails_the_run():
    dies = subprocess.Popen([sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"])
    lasts = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        assert processes.wait_for([lasts, dies]) == -signal.SIGKILL
        assert lasts.wait(10) != 0
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"processes": 2}, "belong together"),
        ({"processes": 3}, "batch_size=8 must be a multiple of processes=3"),
        ({"processes": 2, "process_id": 2}, "process_id=2; it must be from 0 to processes - 1 = 1"),
        ({"processes": 2, "accumulate": 2}, "accumulate cannot be used with several processes: its chunks"),
        ({"processes": 2, "devices": 2}, "devices cannot be used with several processes"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_anything_is_read(options, message, tmp_path):
    own = {} if message == "belong together" else {"coordinator": "127.0.0.1:1", "process_id": 0}
    if keras.backend.backend() != "jax" and own:
        message = "needs JAX, not"
    with pytest.raises(ValueError, match=message):
        zoo.train(ROW, tmp_path / "none.csv", output=tmp_path / "out", **{**BASE, "batch_size": 8, **own, **options})
    assert not (tmp_path / "out").exists()


if __name__ == "__main__":
    train(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
