"""Measure what `--checkpoint-activations` saves and costs: peak memory and time of a training step, with and without.

    python tests/bench_memory.py [--backend torch,jax,tensorflow] [--case backbone,pair,masked]

Each measurement is a process of its own. Memory is what the largest resident size in three steps exceeds that between
steps by, so weights are not in it, but activations and gradients are. Linux only.
"""

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

STEPS = 3
CASES = {
    "backbone": "ConvNeXt V2 Tiny, 16 images of 128 pixels",
    "pair": "ViT-B-32's towers with 6 blocks, 16 pairs of 224 pixels and 77 tokens",
    "masked": "FCMAE, ConvNeXt V2 Atto, 32 images of 128 pixels",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", default=",".join(CASES), help="default %(default)s")
    parser.add_argument("--backend", default="torch,jax,tensorflow", help="default %(default)s")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return print(json.dumps(measure(options.child[0], options.child[1] == "on")))
    print(
        "| | backend | memory, MB | with checkpoints | seconds a step | with checkpoints |",
        "|---|---|" + "--:|" * 4,
        sep="\n",
    )
    for case in options.case.split(","):
        for backend in options.backend.split(","):
            off, on = (child(case, backend, state) for state in ("off", "on"))
            assert abs(off["loss"] - on["loss"]) < 1e-3 * abs(off["loss"]), (off, on)
            print(
                f"| {CASES[case]} | {backend} | {off['megabytes']:.0f} | {on['megabytes']:.0f} "
                f"({on['megabytes'] / off['megabytes']:.2f}×) | {off['seconds']:.2f} | {on['seconds']:.2f} "
                f"({on['seconds'] / off['seconds']:.2f}×) |",
                flush=True,
            )


def child(case, backend, state):
    environment = os.environ | {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, __file__, "--child", case, state]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(case, enabled):
    import keras

    from convnext import checkpoint_activations

    keras.utils.set_random_seed(0)
    model, inputs, targets = create(case)
    if enabled:
        checkpoint_activations(model)
    model.train_on_batch(inputs, targets)  # compiles, which may take more memory than the step
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # sets the largest resident size to the present one
    before = status("VmRSS")
    seconds, loss = [], 0.0
    for _ in range(STEPS):
        began = time.perf_counter()
        loss = float(model.train_on_batch(inputs, targets, return_dict=True)["loss"])
        seconds.append(time.perf_counter() - began)
    return {"megabytes": status("VmHWM") - before, "seconds": statistics.median(seconds), "loss": loss}


def status(name):
    """Return a size of this process from the kernel, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024 / 1e6


def create(case):
    """Return (compiled model, inputs, targets)."""
    import numpy as np

    import clip
    import convnext

    draw = np.random.default_rng(0)
    if case == "backbone":
        model = convnext.create_convnext_v2("tiny", 10, (128, 128, 3), stem_stride=4)
        model.compile("sgd", "sparse_categorical_crossentropy")
        return model, draw.standard_normal((16, 128, 128, 3), np.float32), draw.integers(0, 10, 16)
    if case == "pair":
        row = clip.Pair(512, 224, clip.ViT(768, 6, 32), clip.Text(512, 8, 6))
        model = clip.create_clip(row)
        model.compile("sgd")
        tokens = draw.integers(1, 49407, (16, 77)).astype("int32")
        return model, {"images": draw.standard_normal((16, 224, 224, 3), np.float32), "tokens": tokens}, None
    model = convnext.create_fcmae("atto", (128, 128, 3), seed=0)
    model.compile("sgd")
    return model, draw.standard_normal((32, 128, 128, 3), np.float32), None


if __name__ == "__main__":
    main()
