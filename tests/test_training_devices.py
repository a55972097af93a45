"""Several devices: a batch divided among four trains as it does on one; JAX alone has them.

`python tests/test_training_devices.py MODE DATA FOLDER` is the run that the tests start with four virtual devices.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from data_writers import write_class_folders, write_csv
from training_case import BASE, ROW

import zoo
from clip import create_clip
from convnext import Variant, create_fcmae
from zoo.training import classify, contrastive, pretrain
from zoo.training.config import parse_config
from zoo.training.devices import data_parallel

pytestmark = pytest.mark.backend
slow = pytest.mark.slow

IMAGES = {"image_size": 16, "stem_stride": 2, "decoder_dim": 8, "batch_size": 8, "epochs": 1, "log_every": 1}
CLASSIFIER = {
    **{"model_type": "resnet", "layer_type": "basic", "embedding_size": 8, "hidden_sizes": [8], "depths": [1]},
    **{"image_size": 16, "batch_size": 8, "epochs": 1, "log_every": 1, "threads": 1},
}


def train_on_one_and_on_four(mode, data, folder):
    """What the child process does: prints losses, weights' differences and the devices that held the weights."""
    places, durably = [], contrastive.fit_resumable

    def fit_resumable(model, *arguments, **options):
        outcome = durably(model, *arguments, **options)
        places.append(min(len(v.value.sharding.device_set) for v in model.variables + model.optimizer.variables))
        return outcome

    for module in (contrastive, classify, pretrain):
        module.fit_resumable = fit_resumable
        # plain descent in place of Adam, which divides gradients by their size, and with them their rounding
        module.create_optimizer = lambda *_, **__: keras.optimizers.SGD(0.1)
    weights, losses = [], []
    for devices in (None, 4):
        output, options = f"{folder}/{devices}", {"devices": devices}
        if mode == "contrastive":
            zoo.train(ROW, data, output=output, **BASE, **options)
        elif mode == "pretrain":
            zoo.pretrain(Variant((1, 1), (8, 8)), data, validation_data=data, output=output, **IMAGES, **options)
        else:
            options |= {"train_data": data, "validation_data": data, "output": output}
            classify.train_classifier(parse_config({**CLASSIFIER, **options}))
        weights.append(zoo.load(f"{output}/model.safetensors").model.get_weights())
        rows = [json.loads(line) for line in Path(output, "history.jsonl").read_text().splitlines()]
        losses.append([value for row in rows for name, value in row.items() if name not in ("seconds", "event")])
    differences = [float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-3)) for a, b in zip(*weights, strict=True)]
    print(json.dumps({"losses": losses, "difference": max(differences), "places": places}))


@pytest.mark.slow
@pytest.mark.only("jax")
@pytest.mark.parametrize("mode", ["contrastive", *(pytest.param(m, marks=slow) for m in ("classify", "pretrain"))])
def test_four_devices_train_like_one(mode, tmp_path):
    write = write_csv if mode == "contrastive" else write_class_folders
    command = [sys.executable, __file__, mode, str(write(tmp_path / "data", 16)), str(tmp_path)]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    environment = os.environ | {"XLA_FLAGS": flags}
    child = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert child.returncode == 0, child.stderr[-3000:]
    figures = json.loads(child.stdout.splitlines()[-1])
    assert figures["places"] == [1, 4]  # the weights lay on one device, then on all of them
    one, four = figures["losses"]
    assert len(one) > 10 and one == pytest.approx(four, rel=1e-5)
    assert figures["difference"] < 1e-5


def test_unsupported_devices_are_refused(tmp_path):
    table = write_csv(tmp_path / "data", 16)
    message = "and JAX sees 1: .*xla_force_host_platform_device_count=N"
    if keras.backend.backend() != "jax":
        message = f"devices=4 needs JAX, and the backend is {keras.backend.backend()}"
    with pytest.raises(ValueError, match=message):
        zoo.train(ROW, table, output=tmp_path / "out", **BASE, devices=4)
    with pytest.raises(ValueError, match="an existing model is on one device"):
        zoo.train(create_clip(ROW), table, output=tmp_path / "out", **BASE, devices=4)
    with pytest.raises(ValueError, match="an existing model is on one device"):
        model = create_fcmae(Variant((1,), (8,)), (16, 16, 3))
        zoo.pretrain(model, table, output=tmp_path / "out", devices=4)
    with data_parallel(1, 3):
        assert keras.distribution.distribution() is None


@pytest.mark.only("jax")
def test_the_batch_size_is_a_multiple_of_the_devices(monkeypatch):
    monkeypatch.setattr(keras.distribution, "list_devices", lambda: [f"cpu:{i}" for i in range(4)])
    with pytest.raises(ValueError, match="batch_size=6 must be a multiple of devices=4"), data_parallel(4, 6):
        pass


if __name__ == "__main__":
    train_on_one_and_on_four(*sys.argv[1:])
