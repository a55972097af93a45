"""How the demo's pair learns: `fit` with AdamW, a warm-up and a cosine."""

import sys
import time

import keras

from clip import create_clip
from zoo.data.digits import IMAGE_SIZE, Digits
from zoo.demo.data import HELD_OUT_TEMPLATES, TRAIN_TEMPLATES, CaptionedDigits, lowest_loss
from zoo.training import optimizer

VARIANT, STEM_STRIDE = "convnext_v2_atto", 2

# Chosen on a part of the training pictures, not on the held-out ones.
EPOCHS = 10
PEAK_LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.05


def create_pair():
    """The untrained pair of 32 × 32 pictures and captions."""
    return create_clip(VARIANT, image_size=IMAGE_SIZE, stem_stride=STEM_STRIDE)


def train_pair(model, train: Digits, held_out: Digits, *, seed: int, epochs: int) -> tuple[dict, float]:
    """Fits the pair to captioned pictures; ({metric: a value an epoch}, seconds).

    The held-out pictures are looked at after each epoch, with captions from the held-out templates; nothing is chosen
    by what is seen there.
    """
    data = CaptionedDigits(train, TRAIN_TEMPLATES, seed=seed, epochs=epochs)
    watched = CaptionedDigits(held_out, HELD_OUT_TEMPLATES, seed=seed, augment=False)
    model.compile(create_optimizer(data.steps, epochs))
    start = time.perf_counter()
    history = model.fit(
        data,
        epochs=epochs,
        steps_per_epoch=data.steps,
        shuffle=False,
        validation_data=watched,
        verbose=progress_verbosity(),
    ).history
    seconds = time.perf_counter() - start
    history = {name: [float(value) for value in values] for name, values in history.items()}
    return {**history, "lowest_loss": lowest_loss(data)}, seconds


def create_optimizer(steps: int, epochs: int) -> keras.optimizers.Optimizer:
    """AdamW with one epoch of warm-up and a cosine to zero."""
    return optimizer.create_optimizer(PEAK_LEARNING_RATE, epochs * steps, warmup_steps=steps, weight_decay=WEIGHT_DECAY)


def progress_verbosity() -> int:
    """A moving bar on a terminal, a line an epoch elsewhere."""
    return 1 if sys.stdout.isatty() else 2
