"""Kill a training run with SIGKILL repeatedly and check that it ends with the same bits as an undisturbed run.

    KERAS_BACKEND=torch python tests/kill_campaign.py --kills 30 [--mode contrastive|classify|pretrain] [--control]

Half of the kills happen while a checkpoint is written, the others at any time. The run is restarted with `resume` until
it finishes; then its weights, optimizer state and seeds are compared byte by byte with those of an undisturbed run.
`torn` counts the kills that left a partial checkpoint, which must never be loaded. `--control` does the same with
Keras' `BackupAndRestore`.
"""

import argparse
import hashlib
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from zoo.utils.files import TEMPORARY_PREFIX

ROOT = Path(__file__).resolve().parent.parent
EPOCHS, SAVE_EVERY, BATCH_SIZE, RECORDS = 5, 3, 8, 80
TRAINING, SAVING = "training", "saving"  # printed by the child before the first step and before each checkpoint


def main(arguments=None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=math.inf, help="time limit for starting and killing runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mode", choices=MODES, default="contrastive", help="training mode (default %(default)s)")
    parser.add_argument("--control", action="store_true", help="use Keras' BackupAndRestore instead")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        if os.environ.get("KERAS_BACKEND") != "tensorflow":
            sys.modules["tensorflow"] = None  # Keras would import it only to seed it, which doubles the run time
        return (train_control if options.control else train)(Path(options.child), options.mode)
    limits = {"kills": options.kills, "seconds": options.seconds}
    figures = campaign(random.Random(options.seed), mode=options.mode, control=options.control, **limits)
    print(json.dumps(figures, indent=1))
    return figures


def campaign(
    rng: random.Random, *, kills: int, mode: str = "contrastive", control: bool = False, seconds: float = math.inf
) -> dict:
    """Run and kill until there were that many kills; return the counts."""
    end, flags = time.monotonic() + seconds, ["--mode", mode, *(["--control"] if control else [])]
    with tempfile.TemporaryDirectory() as scratch:
        alone, whole_run = finish(Path(scratch, "alone"), flags)
        figures = dict.fromkeys(("kills", "inside_saving", "torn", "runs", "equal", "failed_restarts"), 0)
        while figures["kills"] < kills and time.monotonic() < end:
            folder = Path(scratch, f"run-{figures['runs']}")
            while figures["kills"] < kills and time.monotonic() < end:
                inside = rng.random() < 0.5
                delay = rng.uniform(0, 0.01) if inside else rng.uniform(0, whole_run)
                before = half_written(folder)
                if not killed(folder, flags, inside, delay, rng.randrange(8)):
                    break
                figures["kills"] += 1
                figures["inside_saving"] += inside
                figures["torn"] += bool(half_written(folder) - before)
            figures["runs"] += 1
            result, _ = finish(folder, flags)
            figures["failed_restarts"] += result is None
            figures["equal"] += result == alone
        return figures


def half_written(folder: Path) -> set[Path]:
    return set(folder.glob(f"checkpoints/{TEMPORARY_PREFIX}*"))


def start_child(folder: Path, flags: list[str]) -> subprocess.Popen:
    command = [sys.executable, __file__, "--child", str(folder), *flags]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def killed(folder: Path, flags: list[str], inside: bool, delay: float, saves: int) -> bool:
    """Start a run and kill it `delay` seconds after its (`saves` + 1)-th checkpoint began, or after its first step.

    Returns False if it ended before.
    """
    child, to_come = start_child(folder, flags), saves + 1 if inside else 1
    timer = threading.Timer(delay, child.send_signal, [signal.SIGKILL])
    for line in child.stdout:
        to_come -= line.strip() == (SAVING if inside else TRAINING)
        if not to_come:
            timer.start()
            break
    child.stdout.read()
    code = child.wait()
    timer.cancel()
    return code == -signal.SIGKILL


def finish(folder: Path, flags: list[str]) -> tuple[str | None, float]:
    """Let a run finish; return (digest of its state, or None if it failed; seconds of training)."""
    child, start = start_child(folder, flags), time.perf_counter()
    for line in child.stdout:
        if line.strip() == TRAINING:
            start = time.perf_counter()
    path = folder / "digest"
    digest = path.read_text() if child.wait() == 0 and path.exists() else None
    return digest, time.perf_counter() - start


# The child.


def create(mode: str):
    """Return (compiled model, batches, function from a batch to the input of `fit`); the model uses random numbers."""
    import keras
    from data_writers import digits

    from zoo.data import Batches, from_arrays
    from zoo.data.preprocess import PreprocessSpec
    from zoo.training.setup import compile_resumable

    keras.utils.set_random_seed(5)
    images, captions, labels = digits(RECORDS)
    model, options, arrange, tokenize = MODES[mode]()
    compile_resumable(model, keras.optimizers.Adam(0.01), precision="float32", ema=None, **options)
    data, spec = from_arrays(images, captions, labels if mode == "classify" else None), PreprocessSpec(image_size=8)
    return model, Batches(data, spec, batch_size=BATCH_SIZE, tokenize=tokenize, threads=1), arrange


def create_pair():
    """Return (model, compile options, function from a batch to the input of `fit`, tokenizer or None), with dropout."""
    from keras import Input, Model, layers

    from clip import CLIP, tokenize

    images, tokens = Input((8, 8, 3)), Input((None,), dtype="int32")
    x = layers.Dropout(0.5)(layers.Flatten()(images))
    y = layers.GlobalAveragePooling1D()(layers.Embedding(49408, 4)(tokens))
    pair = CLIP(Model(images, layers.Dense(4)(x)), Model(tokens, layers.Dense(4)(y)))
    return pair, {}, lambda batch: batch, lambda texts: tokenize(texts, context_length=12, truncate=True)


def create_classifier():
    """Return the same for a classifier with batch normalisation and dropout."""
    from keras import Input, Model, layers, losses

    images = Input((8, 8, 3))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same")(images)))
    x = layers.Dropout(0.5)(layers.GlobalAveragePooling2D()(x))
    options = {"loss": losses.SparseCategoricalCrossentropy(from_logits=True)}
    return Model(images, layers.Dense(10)(x)), options, lambda batch: (batch["images"], batch["label"]), None


def create_fcmae():
    """Return the same for masked pretraining, which draws random masks."""
    import convnext

    row = convnext.Variant((1, 1), (8, 8))
    fcmae = convnext.create_fcmae(row, (8, 8, 3), stem_stride=2, decoder_dim=8, drop_path_rate=0.5)
    return fcmae, {}, lambda batch: {"images": batch["images"]}, None


MODES = {"contrastive": create_pair, "classify": create_classifier, "pretrain": create_fcmae}


def train(folder: Path, mode: str) -> None:
    """Start or resume a run."""
    from zoo.training import loop

    save = loop.save_checkpoint

    def print_and_save(*arguments, **options):
        print(SAVING, flush=True)
        return save(*arguments, **options)

    loop.save_checkpoint = print_and_save
    model, batches, arrange = create(mode)
    print(TRAINING, flush=True)
    with batches:
        config = loop.RunConfig(EPOCHS, save_every=SAVE_EVERY)
        loop.fit_resumable(model, batches, folder, config, arrange=arrange, resume=True)
    write_digest(model, folder)


def train_control(folder: Path, mode: str) -> None:
    """Start or resume the same run with Keras' callback."""
    import keras

    from zoo.training.loop import Steps

    class Backup(keras.callbacks.BackupAndRestore):
        def _save_model(self, *arguments, **options):
            print(SAVING, flush=True)
            super()._save_model(*arguments, **options)

    folder.mkdir(exist_ok=True)
    model, batches, arrange = create(mode)
    backup = Backup(str(folder / "backup"), save_freq=SAVE_EVERY, delete_checkpoint=False)
    print(TRAINING, flush=True)
    with batches:
        data = Steps(batches, range(EPOCHS * batches.steps), arrange)
        model.fit(data, epochs=EPOCHS, steps_per_epoch=batches.steps, shuffle=False, verbose=0, callbacks=[backup])
    write_digest(model, folder)


def write_digest(model, folder: Path) -> None:
    import numpy as np
    from keras import ops

    arrays = [ops.convert_to_numpy(v) for kind in (model.variables, model.optimizer.variables) for v in kind]
    content = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)
    (folder / "digest").write_text(hashlib.sha256(content).hexdigest())


if __name__ == "__main__":
    main()
