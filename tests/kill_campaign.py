"""A campaign of kills: a small pair is trained, killed with SIGKILL again and again, and must end as if left alone.

    KERAS_BACKEND=torch python tests/kill_campaign.py --kills 30 [--control]

Half of the kills fall inside the writing of a checkpoint, the others anywhere in the training. A run is started anew
with `resume` until it has finished; then its weights, moments and seeds are compared, byte by byte, with those of a run
nobody disturbed. `torn` counts the kills that left a checkpoint half written; none of them may be taken for one.
`--control` does the same with Keras' own `BackupAndRestore`.
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

from zoo.files import TEMPORARY_PREFIX

ROOT = Path(__file__).resolve().parent.parent
EPOCHS, SAVE_EVERY, BATCH_SIZE, RECORDS = 5, 3, 8, 80
TRAINING, SAVING = "training", "saving"  # the child says so before the first step, and before each checkpoint


def main(arguments=None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=math.inf, help="after which no run is begun or killed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--control", action="store_true", help="Keras' BackupAndRestore in place of ours")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        if os.environ.get("KERAS_BACKEND") != "tensorflow":
            sys.modules["tensorflow"] = None  # Keras would import it to seed it: half of a child's seconds
        return train_control(Path(options.child)) if options.control else train(Path(options.child))
    figures = campaign(options.kills, random.Random(options.seed), control=options.control, seconds=options.seconds)
    print(json.dumps(figures, indent=1))
    return figures


def campaign(kills: int, rng: random.Random, *, control: bool = False, seconds: float = math.inf) -> dict:
    """Figures of runs that were killed so often in all, each of them restarted until it had finished."""
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as scratch:
        alone, whole_run = finish(Path(scratch, "alone"), control)
        figures = dict.fromkeys(("kills", "inside_saving", "torn", "runs", "equal", "failed_restarts"), 0)
        while figures["kills"] < kills and time.monotonic() < end:
            folder = Path(scratch, f"run-{figures['runs']}")
            while figures["kills"] < kills and time.monotonic() < end:
                inside = rng.random() < 0.5
                delay = rng.uniform(0, 0.01) if inside else rng.uniform(0, whole_run)
                before = half_written(folder)
                if not killed(folder, control, inside, delay, rng.randrange(8)):
                    break
                figures["kills"] += 1
                figures["inside_saving"] += inside
                figures["torn"] += bool(half_written(folder) - before)
            figures["runs"] += 1
            result, _ = finish(folder, control)
            figures["failed_restarts"] += result is None
            figures["equal"] += result == alone
        return figures


def half_written(folder: Path) -> set[Path]:
    return set(folder.glob(f"checkpoints/{TEMPORARY_PREFIX}*"))


def start_child(folder: Path, control: bool) -> subprocess.Popen:
    command = [sys.executable, __file__, "--child", str(folder), *(["--control"] if control else [])]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def killed(folder: Path, control: bool, inside: bool, delay: float, saves: int) -> bool:
    """Starts a run and kills it: `delay` after it began its (`saves` + 1)-th checkpoint, or after its first step began.

    False when it had ended before.
    """
    child, to_come = start_child(folder, control), saves + 1 if inside else 1
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


def finish(folder: Path, control: bool) -> tuple[str | None, float]:
    """Lets a run end; (digest of all that it learned, or None when it could not go on; seconds of training)."""
    child, start = start_child(folder, control), time.perf_counter()
    for line in child.stdout:
        if line.strip() == TRAINING:
            start = time.perf_counter()
    path = folder / "digest"
    digest = path.read_text() if child.wait() == 0 and path.exists() else None
    return digest, time.perf_counter() - start


# The child.


def create():
    """(compiled pair, batches): a few layers, with dropout, on real digits."""
    import keras
    from data_writers import digits

    from clip import CLIP, tokenize
    from zoo.data import Batches, from_arrays
    from zoo.preprocess import PreprocessSpec
    from zoo.training.optimizer import Guarded

    keras.utils.set_random_seed(5)
    images = keras.Input((8, 8, 3))
    x = keras.layers.Dropout(0.5)(keras.layers.Flatten()(images))
    tokens = keras.Input((None,), dtype="int32")
    y = keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(49408, 4)(tokens))
    pair = CLIP(keras.Model(images, keras.layers.Dense(4)(x)), keras.Model(tokens, keras.layers.Dense(4)(y)))
    pair.compile(Guarded(keras.optimizers.Adam(0.01)), auto_scale_loss=False)
    pair.optimizer.build(pair.trainable_variables)
    pictures, captions, _ = digits(RECORDS)
    short = lambda texts: tokenize(texts, context_length=12, truncate=True)  # noqa: E731
    data = from_arrays(pictures, captions)
    return pair, Batches(data, PreprocessSpec(image_size=8), batch_size=BATCH_SIZE, tokenize=short, threads=1)


def train(folder: Path) -> None:
    """A run of ours, gone on with if there is one."""
    from zoo.training import loop

    save = loop.save_checkpoint

    def say_and_save(*arguments, **options):
        print(SAVING, flush=True)
        return save(*arguments, **options)

    loop.save_checkpoint = say_and_save
    pair, batches = create()
    print(TRAINING, flush=True)
    with batches:
        loop.train_durably(pair, batches, folder, loop.Pace(EPOCHS, save_every=SAVE_EVERY), resume=True)
    write_digest(pair, folder)


def train_control(folder: Path) -> None:
    """The same run with Keras' own callback."""
    import keras

    from zoo.training.loop import Steps

    class Backup(keras.callbacks.BackupAndRestore):
        def _save_model(self, *arguments, **options):
            print(SAVING, flush=True)
            super()._save_model(*arguments, **options)

    folder.mkdir(exist_ok=True)
    pair, batches = create()
    backup = Backup(str(folder / "backup"), save_freq=SAVE_EVERY, delete_checkpoint=False)
    print(TRAINING, flush=True)
    with batches:
        data = Steps(batches, range(EPOCHS * batches.steps), lambda batch: batch)
        pair.fit(data, epochs=EPOCHS, steps_per_epoch=batches.steps, shuffle=False, verbose=0, callbacks=[backup])
    write_digest(pair, folder)


def write_digest(pair, folder: Path) -> None:
    import numpy as np
    from keras import ops

    arrays = [ops.convert_to_numpy(v) for kind in (pair.variables, pair.optimizer.variables) for v in kind]
    content = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)
    (folder / "digest").write_text(hashlib.sha256(content).hexdigest())


if __name__ == "__main__":
    main()
