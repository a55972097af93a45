"""Several devices: a batch, or each Dense kernel, divided among four trains as on one; JAX alone has them.

`python tests/test_training_devices.py MODE DATA FOLDER` is the run that the tests start with four virtual devices.
"""

import json
import os
import re
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
from zoo.training import classify, setup
from zoo.training.config import parse_config
from zoo.training.devices import parallel
from zoo.training.two_pass import EMBEDDINGS

pytestmark = pytest.mark.backend
IMAGES = {"image_size": 16, "stem_stride": 2, "decoder_dim": 8, "batch_size": 8, "epochs": 1, "log_every": 1}
CLASSIFIER = {
    **{"model_type": "resnet", "layer_type": "basic", "embedding_size": 8, "hidden_sizes": [8], "depths": [1]},
    **{"image_size": 16, "batch_size": 8, "epochs": 1, "log_every": 1, "threads": 1},
}


def train_on_one_and_on_four(mode, data, folder):
    """What the child process does: prints losses, weights' differences and the devices that held the weights."""
    places, shares, durably = [], set(), setup.fit_resumable

    def fit_resumable(model, *arguments, **options):
        outcome = durably(model, *arguments, **options)
        places.append(min(len(v.value.sharding.device_set) for v in model.variables + model.optimizer.variables))
        kernels = [v.value for v in model.trainable_variables if v.name == "kernel" and len(v.shape) == 2]
        shares.update(kernel.addressable_shards[0].data.size / kernel.size for kernel in kernels)
        return outcome

    setup.fit_resumable = fit_resumable
    # plain descent in place of Adam, which divides gradients by their size, and with them their rounding
    setup.create_optimizer = lambda *_, **__: keras.optimizers.SGD(0.1)
    weights, losses = [], []
    for devices in (None, 4):
        output, options = f"{folder}/{devices}", {"devices": devices}
        options |= {"model_axis": 2} if mode == "model axis" and devices else {}
        if mode in ("contrastive", "model axis"):
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
    print(json.dumps({"losses": losses, "difference": max(differences), "places": places, "shares": sorted(shares)}))


def print_shapes_of_the_loss():
    """What the child process does: prints the shapes of the arrays in the compiled loss and gradient of 64 pairs."""
    import jax

    with parallel(4, 64):
        pair = create_clip(ROW)
        pair.compile("sgd")
        state = [[v.value for v in vs] for vs in (pair.trainable_variables, pair.non_trainable_variables)]
        metrics = [v.value for v in pair.metrics_variables]
        layout = keras.distribution.distribution().get_data_layout((64, 8)).backend_layout
        rows = {name: jax.device_put(np.eye(64, 8, dtype="float32"), layout) for name in EMBEDDINGS}
        batch = {"images": rows["image_embeddings"], "tokens": rows["text_embeddings"]}  # the loss does not read them

        def loss(rows):
            return pair.stateless_compute_loss(*state, metrics, x=batch, y_pred=rows)[0]

        text = jax.jit(jax.grad(loss)).lower(rows).compile().as_text()
    print(json.dumps({"shapes": sorted(set(re.findall(r"\w+\[([\d,]+)\]", text)))}))


def on_four_devices(*arguments):
    """Run this file with four virtual devices; return what it prints."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    environment = os.environ | {"XLA_FLAGS": flags}
    command = [sys.executable, __file__, *map(str, arguments)]
    child = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert child.returncode == 0, child.stderr[-3000:]
    return json.loads(child.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.only("jax")
@pytest.mark.parametrize("mode", ["contrastive", "model axis", "classify", "pretrain"])
def test_four_devices_train_like_one(mode, tmp_path):
    write = write_class_folders if mode in ("classify", "pretrain") else write_csv
    figures = on_four_devices(mode, write(tmp_path / "data", 16), tmp_path)
    assert figures["places"] == [1, 4]  # the weights lay on one device, then on all of them
    one, four = figures["losses"]
    assert len(one) > 10 and one == pytest.approx(four, rel=1e-5)
    assert figures["difference"] < 1e-5
    assert figures["shares"] == ([0.5, 1.0] if mode == "model axis" else [1.0])


@pytest.mark.slow
@pytest.mark.only("jax")
def test_each_device_computes_the_logits_of_its_own_images(tmp_path):
    """Of 64 × 64 logits, one of four devices has 16 × 64 at most."""
    figures = on_four_devices("logits", "", tmp_path)
    assert "16,64" in figures["shapes"] and "64,64" not in figures["shapes"]


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
    with parallel(1, 3):
        assert keras.distribution.distribution() is None


@pytest.mark.only("jax")
def test_the_batch_size_is_a_multiple_of_the_devices(monkeypatch):
    monkeypatch.setattr(keras.distribution, "list_devices", lambda: [f"cpu:{i}" for i in range(4)])
    with pytest.raises(ValueError, match="batch_size=6 must be a multiple of devices=4"), parallel(4, 6):
        pass


if __name__ == "__main__":
    print_shapes_of_the_loss() if sys.argv[1] == "logits" else train_on_one_and_on_four(*sys.argv[1:])
