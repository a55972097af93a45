"""Several processes: a run of two trains as a run of one; a killed one resumes.

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
from convnext import AdamW, Variant, create_fcmae, create_resnet
from zoo.data import Batches
from zoo.training import processes, setup

pytestmark = pytest.mark.backend
connects = pytest.mark.only("jax", "torch")


OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(0.1),
    "adamw": lambda: AdamW(1e-3, weight_decay=0.05, epsilon=1e-3),  # above the rounding of gradients that are 0
}


def train(output, data, options):
    kind = options.pop("optimizer", "sgd")
    if kind in OPTIMIZERS:
        setup.create_optimizer = lambda *_, **__: OPTIMIZERS[kind]()
    if options.pop("hang", -1) == options.get("process_id"):
        read = Batches.__getitem__
        Batches.__getitem__ = lambda self, i: time.sleep(1e6) if i == 1 else read(self, i)
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


def wait_for_step(number, output):
    """Wait for the checkpoint of a step."""
    deadline = time.monotonic() + 200
    while not list((output / "checkpoints").glob(f"*{number}*")) and time.monotonic() < deadline:
        time.sleep(0.05)


def result(output):
    """(losses, weights) of a run."""
    rows = [json.loads(line) for line in Path(output, "history.jsonl").read_text().splitlines()]
    numbers = [v for row in rows for name, v in row.items() if name not in ("seconds", "event") and v is not None]
    return numbers, zoo.load(f"{output}/model.safetensors").model.get_weights()


def assert_equal(one, other, rel=1e-5):
    assert one[0] == pytest.approx(other[0], rel=rel)
    for a, b in zip(one[1], other[1], strict=True):
        assert np.abs(a - b).max() <= rel * max(np.abs(b).max(), 1e-3)


@connects
@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_two_and_four_processes_train_like_one(optimizer, tmp_path):
    data = write_csv(tmp_path / "data", 16)
    options = {"validation_data": str(data), "epochs": 2, "log_every": 1, "optimizer": optimizer}
    for count in (1, 2, 4):
        ends = finish(start(count, tmp_path / str(count), data, **options))
        assert all(code == 0 for code, _ in ends), ends
    for count in (2, 4):
        assert_equal(result(tmp_path / str(count)), result(tmp_path / "1"))
    assert (
        not (tmp_path / "2" / "bad_samples-1.jsonl").exists()
        or (tmp_path / "2" / "bad_samples-1.jsonl").stat().st_size == 0
    )


@connects
@pytest.mark.slow
def test_a_killed_process_ends_the_run_which_resumes_bit_for_bit(tmp_path):
    data = write_csv(tmp_path / "data", 16)
    options = {"epochs": 12, "log_every": 1, "save_every": 1, "optimizer": "own"}
    assert all(code == 0 for code, _ in finish(start(2, tmp_path / "whole", data, **options)))
    for victim in (0, 1):
        out = tmp_path / f"cut{victim}"
        started = start(2, out, data, **options)
        wait_for_step(3, out)
        os.kill(started[victim].pid, signal.SIGKILL)
        assert all(code != 0 for code, _ in finish(started))
        assert all(code == 0 for code, _ in finish(start(2, out, data, resume=True, **options)))
        for a, b in zip(result(out)[1], result(tmp_path / "whole")[1], strict=True):
            np.testing.assert_array_equal(a, b)


@connects
@pytest.mark.slow
def test_a_checkpoint_of_four_processes_resumes_on_two(tmp_path):
    data = write_csv(tmp_path / "data", 16)
    options = {"epochs": 6, "log_every": 1, "save_every": 1}
    assert all(code == 0 for code, _ in finish(start(1, tmp_path / "one", data, **options)))
    output = tmp_path / "four"
    started = start(4, output, data, **options)
    wait_for_step(3, output)
    started[2].send_signal(signal.SIGTERM)  # any process may be told to stop
    assert all(code == 0 for code, _ in finish(started))
    assert len((output / "history.jsonl").read_text().splitlines()) < 12  # it stopped before the end
    ends = finish(start(2, output, data, resume=True, **options))
    assert all(code == 0 for code, _ in ends), ends
    assert_equal(result(output), result(tmp_path / "one"))


@connects
@pytest.mark.slow
def test_a_stuck_process_ends_the_run_with_its_number(tmp_path):
    data = write_csv(tmp_path / "data", 32)
    ends = finish(start(2, tmp_path / "out", data, epochs=2, log_every=1, hang=1, stuck=40.0))
    assert all(code != 0 for code, _ in ends)
    assert any("the run waits for process 1" in errors and "reading at step" in errors for _, errors in ends), ends


CLASSIFIER = {"image_size": 16, "batch_size": 8, "epochs": 1, "log_every": 1, "threads": 1}
RESNET = {"model_type": "resnet", "layer_type": "basic", "embedding_size": 8, "hidden_sizes": [8], "depths": [1]}
CONVNEXT = {"model_type": "convnextv2", "hidden_sizes": [8, 8], "depths": [1, 1], "stem_stride": 2}
SMALL = ["--image-size", "32", "--batch-size", "8", "--epochs", "1", "--log-every", "1"]
HERE = [sys.executable, "-m", "zoo"]


def run_mode(mode, output, launcher=HERE, more=()):
    """Run a training command on 16 images; return [loss of each step and validation], the model's moving statistics."""
    folder = output.with_name(f"{output.name}-data")
    data = str(write_csv(folder, 16) if mode == "contrastive" else write_class_folders(folder, 16))
    if mode == "contrastive":
        words = ["train", mode, "--model", "convnext_v2_atto", "--train-data", data, *SMALL]
    elif mode == "pretrain":
        words = [mode, "--model", "convnextv2_atto", "--train-data", data, *SMALL]
    else:
        config, row = output.with_suffix(".json"), RESNET if mode == "resnet" else CONVNEXT
        config.write_text(json.dumps({**CLASSIFIER, **row, "train_data": data, "validation_data": data}))
        words = ["train", "classify", "--config", str(config)]
    command = [*launcher, *words, "--output", str(output), "--backend", keras.backend.backend(), *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in (output / "history.jsonl").read_text().splitlines()]
    found = [row[name] for row in rows for name in ("loss", "val_loss", "accuracy") if name in row]
    variables = zoo.load(output / "model.safetensors").model.non_trainable_variables
    return found, [keras.ops.convert_to_numpy(v) for v in variables if v.name.startswith("moving_")]


@connects
@pytest.mark.slow
@pytest.mark.parametrize(
    "mode",
    [
        "contrastive",
        "convnext",
        pytest.param("resnet", marks=pytest.mark.only("jax")),
        pytest.param("pretrain", marks=pytest.mark.only("jax")),
    ],
)
def test_local_processes_train_like_one(mode, tmp_path):
    """The command starts both; the first steps' losses are those of one process, and so are BatchNorm's statistics."""
    one, statistics = run_mode(mode, tmp_path / "one")
    both, whole_statistics = run_mode(mode, tmp_path / "two", more=["--local-processes", "2"])
    assert (tmp_path / "two" / "processes").is_dir()
    assert both == pytest.approx(one, rel=1e-4)
    assert len(statistics) == (6 if mode == "resnet" else 0)
    for ours, expected in zip(whole_statistics, statistics, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.only("torch")
@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--accumulate", "2"]])
def test_torchrun_trains_like_one_process(more, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", port]
    one, _ = run_mode("contrastive", tmp_path / "one")
    both, _ = run_mode("contrastive", tmp_path / "two", [*torchrun, "-m", "zoo"], more)
    assert (tmp_path / "two" / "processes").is_dir()
    assert both == pytest.approx(one, rel=1e-4)


@pytest.mark.only("torch")
def test_layers_that_depend_on_the_whole_batch_are_refused_on_torch(monkeypatch):
    monkeypatch.setattr(processes, "_group", processes.TorchGroup.__new__(processes.TorchGroup))
    with pytest.raises(ValueError, match="is a BatchNorm, whose statistics"):
        processes.begin_together(create_resnet("18", 2, (32, 32, 3)))
    with pytest.raises(ValueError, match="draws random numbers"):
        processes.begin_together(create_fcmae(Variant((1,), (8,)), (16, 16, 3)))


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
        ({"processes": 2, "accumulate": 8}, "accumulate"),
        ({"processes": 2, "model_axis": 2}, "model_axis cannot be used with several processes"),
        ({"processes": 2, "coordinator": "here"}, "coordinator=.here.; it must be HOST:PORT"),
        ({"processes": 2, "devices": 2}, "devices cannot be used with several processes"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_anything_is_read(options, message, tmp_path):
    own = {} if message == "belong together" else {"coordinator": "127.0.0.1:1", "process_id": 0}
    if keras.backend.backend() == "tensorflow" and own:
        message = "needs JAX or PyTorch, not"
    with pytest.raises(ValueError, match=message):
        zoo.train(ROW, tmp_path / "none.csv", output=tmp_path / "out", **{**BASE, "batch_size": 8, **own, **options})
    assert not (tmp_path / "out").exists()


if __name__ == "__main__":
    train(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
