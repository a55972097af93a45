"""Benchmark what each kernel gives a whole model: its time with a faster one off, divided by that with all on.

    python tests/bench_kernels.py --output build/kernels.jsonl [--rounds 5] [--seconds 450]    # all backends, or one:
    KERAS_BACKEND=jax python tests/bench_kernels.py --output build/kernels.jsonl --forms "conv2d*" --train --batch 8
    python tests/bench_kernels.py --output build/kernels.jsonl --table                         # Markdown

Models are ConvNeXt-Tiny V1 and V2 and the towers of ViT-B-32, in inference and in a training step with AdamW, for
batches of 8 and 1; ResNet-50 for the convolution on a view, which the others do not have; and a training step of the
demo's CLIP model for digits. The forms take turns within each round. Every result is written at once, and a run leaves
out those that the file has.

`--cpu-time` compares the processor time of one thread, which other processes on the machine hardly change.
"""

import argparse
import contextlib
import fnmatch
import functools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

MODELS = {  # label: (zoo model, part)
    "ViT-B-32 text": ("clip/ViT-B-32", "text"),
    "ConvNeXt-Tiny": ("convnext_tiny", "classifier"),
    "ViT-B-32 image": ("clip/ViT-B-32", "image"),
    "ConvNeXtV2-Tiny": ("convnextv2_tiny", "classifier"),
    "ResNet-50": ("resnet50", "classifier"),
    "digits' CLIP": ("clip/convnext_v2_atto", "pair"),
}
WORK = [(1, True), (8, False), (8, True), (1, False)]  # batch, training
DIGITS, OF_DIGITS = "digits' CLIP", (64, True)
ALL_ON = "all on"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="JSON lines, added to")
    parser.add_argument("--rounds", type=int, default=5, help="turns per form (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no measurement after this time")
    parser.add_argument("--forms", nargs="+", default=["*"], metavar="PATTERN", help="of BACKEND/FORM or FORM")
    parser.add_argument("--train", action="store_true", help="training steps alone")
    parser.add_argument("--batch", type=int, help="this batch size alone")
    parser.add_argument("--table", action="store_true", help="print the file as a table and measure nothing")
    parser.add_argument("--cpu-time", action="store_true", help="compare processor time, on one core")
    options = parser.parse_args()
    if options.table:
        return print(table(read(options.output)))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    if "KERAS_BACKEND" in os.environ:
        return measure_missing(options)
    for backend in PARTS_OF:
        subprocess.run([sys.executable, *sys.argv], env={**os.environ, "KERAS_BACKEND": backend}, check=True)


def read(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


def measure_missing(options):
    if options.cpu_time:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-1:])  # before any backend counts the cores

    import keras

    from zoo.utils.env import keep_freed_memory

    keep_freed_memory()
    backend, start = keras.backend.backend(), time.monotonic()
    done = {key_of(row) for row in read(options.output)}
    for batch, train in [*WORK, OF_DIGITS]:
        if (options.train and not train) or options.batch not in (None, batch):
            continue
        for label in [DIGITS] if (batch, train) == OF_DIGITS else [name for name in MODELS if name != DIGITS]:
            forms = {
                form: switch
                for form, (models, switch) in forms_of(backend).items()
                if label in models
                and not (train and form in NOT_IN_TRAINING)
                and is_wanted(backend, form, options.forms)
            }
            key = (backend, label, batch, train)
            if not forms or key in done or time.monotonic() - start > options.seconds:
                continue
            row = {**dict(zip(KEYS, key, strict=True)), **measure(label, batch, train, forms, options)}
            with options.output.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)


def is_wanted(backend, form, patterns):
    return any(fnmatch.fnmatch(name, pattern) for name in (form, f"{backend}/{form}") for pattern in patterns)


NOT_IN_TRAINING = ("affine: GELU in oneDNN",)
KEYS = ("backend", "model", "batch", "train")


def key_of(row):
    return tuple(row[name] for name in KEYS)


CONVNEXT, V2, VIT = (
    ("ConvNeXt-Tiny", "ConvNeXtV2-Tiny"),
    ("ConvNeXtV2-Tiny",),
    ("ViT-B-32 image", "ViT-B-32 text"),
)


def forms_of(backend):
    """Return {form: (labels of models that it concerns, context manager that turns it off)}."""
    from convnext import kernels

    concerned = {
        "affine": CONVNEXT + VIT,
        "conv2d": (*CONVNEXT, "ViT-B-32 image", "ResNet-50"),
        "depthwise_conv2d": CONVNEXT,
        "attention": VIT,
        "grn": V2,
    }
    forms = {
        name: (concerned[name], functools.partial(kernels.use_reference, name))
        for name, file in kernels.in_use().items()
        if file != "reference"
    }
    forms |= PARTS_OF[backend]()
    return {form: ((*labels, DIGITS), switch) for form, (labels, switch) in forms.items()}


@contextlib.contextmanager
def replaced(module, **values):
    before = {name: getattr(module, name) for name in values}
    try:
        for name, value in values.items():
            setattr(module, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


def never(*_):
    return False


def parts_on_jax():
    import keras

    from convnext.kernels import jax_cpu

    return {
        "affine: GELU by erf": (
            CONVNEXT + VIT,
            functools.partial(replaced, jax_cpu, gelu_by_erf=keras.activations.gelu),
        )
    }


def parts_on_tensorflow():
    import keras

    from convnext.kernels import tensorflow_cpu

    return {
        "affine: GELU by erf": (
            CONVNEXT + VIT,
            functools.partial(replaced, tensorflow_cpu, gelu_by_erf=keras.activations.gelu),
        ),
    }


def parts_on_torch():
    from convnext.kernels import torch_cpu

    onednn = {
        "affine: oneDNN": (CONVNEXT + VIT, functools.partial(replaced, torch_cpu, onednn_rows=lambda: range(0))),
        "affine: GELU in oneDNN": (CONVNEXT + VIT, functools.partial(replaced, torch_cpu, fuses_gelu=never)),
    }
    return {
        **(onednn if torch_cpu.onednn_rows() else {}),
        "conv2d: product of patches": (
            (*CONVNEXT, "ViT-B-32 image", "ResNet-50"),
            functools.partial(replaced, torch_cpu, is_product_of_patches=never),
        ),
        "conv2d: on a view": (("ResNet-50",), functools.partial(replaced, torch_cpu, takes_a_view=never)),
    }


PARTS_OF = {"jax": parts_on_jax, "tensorflow": parts_on_tensorflow, "torch": parts_on_torch}


def measure(label, batch, train, forms, options):
    """Return the least milliseconds with all forms on, and with each form off the ratio of the least times.

    The least times are compared, since whatever else runs on the machine only adds to a time.
    """
    from zoo.bench.timing import ratios, take_turn, take_turns

    turn = turn_in_cpu_time if options.cpu_time else take_turn
    make = training_steps(label, batch) if train else forward_passes(label, batch)
    calls = {form: switched(make(), switch) for form, switch in {ALL_ON: contextlib.nullcontext, **forms}.items()}
    for call in calls.values():
        call(), call()  # the first compiles
    runs = take_turns({form: functools.partial(turn, call) for form, call in calls.items()}, options.rounds, rest=0.05)
    least = {form: min(seconds for turn in turns for seconds in turn) for form, turns in runs.items()}
    gains = {form: round(least[form] / least[ALL_ON], 3) for form in forms}
    spread = [round(sorted(ratios(runs[form], runs[ALL_ON]))[k], 2) for form in forms for k in (0, -1)]
    return {"ms": round(1e3 * least[ALL_ON], 2), "gains": gains, "spread": spread}


def turn_in_cpu_time(call, at_least=0.2):
    """As `take_turn`, with the processor time of all threads."""
    calls = []
    while not calls or sum(calls) < at_least:
        start = time.process_time()
        call()
        calls.append(time.process_time() - start)
    return calls


def switched(call, switch):
    """Return a call made with a form off: on torch, where layers run one by one, it has to be off in every call."""

    def run():
        with switch():
            return call()

    return run


def model_and_inputs(label, batch):
    import keras

    from zoo.bench.cases import DEFAULT_MODE, Case
    from zoo.bench.jobs import _draw_inputs, create_ours

    name, part = MODELS[label]
    backend = keras.backend.backend()
    size = {"image_size": 32} if label == DIGITS else {}
    case = Case(name, part=part, backend=backend, batch_size=batch, mode=DEFAULT_MODE[backend], **size)
    inputs = _draw_inputs(case)
    return case, create_ours(case), inputs if label == DIGITS else inputs["tokens" if part == "text" else "images"]


def forward_passes(label, batch):
    """Return a function that makes the forward pass of a model, compiled anew each time."""
    from zoo.bench.jobs import keras_forward

    case, model, x = model_and_inputs(label, batch)
    return lambda: keras_forward(model, case, x)


def training_steps(label, batch):
    """Return a function that makes a training step of the same model, compiled anew each time."""
    import numpy as np

    _, model, x = model_and_inputs(label, batch)
    y = None if label == DIGITS else np.zeros((batch, *model.output_shape[1:]), np.float32)
    model.compile("adamw", "clip" if label == DIGITS else "mse")

    def make():
        compiled = []
        model.train_step = functools.partial(type(model).train_step, model)  # JAX would take the last one's trace

        def step():
            model.train_function = compiled[0] if compiled else None  # Keras compiles if there is none
            model.train_on_batch(x, y)
            compiled[:] = [model.train_function]

        return step

    return make


def table(rows):
    """Return the results as Markdown: a row for each form."""
    works = [*WORK, OF_DIGITS]
    columns = [f"{label}{', training' * train}, batch {batch}" for label in MODELS for batch, train in works]
    found = {}
    for row in rows:
        column = f"{row['model']}{', training' * row['train']}, batch {row['batch']}"
        for form, gain in row["gains"].items():
            found.setdefault((row["backend"], form), {})[column] = gain
    lines = ["| backend | form | best | where | all models |", "|---|---|--:|---|---|"]
    for (backend, form), gains in sorted(found.items()):
        best = max(gains, key=gains.get)
        everywhere = ", ".join(f"{gains[column]:.2f}" for column in columns if column in gains)
        lines.append(f"| {backend} | {form} | **{gains[best]:.2f}** | {best} | {everywhere} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
