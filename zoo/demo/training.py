"""The demo's data and training: captioned digits, a small ConvNeXt V2 CLIP, AdamW with warm-up and cosine decay."""

import math
import sys
import time
from collections.abc import Sequence

import keras
import numpy as np
from PIL import Image

from clip import CLASS_NAMES, TEMPLATES, create_clip, tokenize
from zoo.data.digits import IMAGE_SIZE, Digits
from zoo.data.preprocess import PreprocessSpec, batch
from zoo.training import optimizer

VARIANT, STEM_STRIDE = "convnext_v2_atto", 2
DIGITS_MEAN, DIGITS_STD = 0.69, 0.35  # of the training images' pixels, in [0, 1]
PREPROCESS = PreprocessSpec(image_size=IMAGE_SIZE, mean=(DIGITS_MEAN,) * 3, std=(DIGITS_STD,) * 3)

NUMERALS, WORDS = CLASS_NAMES["mnist"], CLASS_NAMES["digits"]
TRAIN_TEMPLATES = (
    "{}",
    "the number {}",
    "the digit {}.",
    "a {} written by hand",
    "a handwritten {}.",
    "somebody wrote a {}.",
    "a picture of the {} on paper",
    "{}, drawn by hand",
    "this is a {}.",
    "an image of a digit: {}",
    "it says {}.",
    "a blurry {}",
)
HELD_OUT_TEMPLATES = TEMPLATES["digits"]

# Chosen on part of the training images, not on the held-out images.
EPOCHS, BATCH_SIZE = 10, 64
PEAK_LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.05
MAX_SHIFT, MAX_DEGREES, MAX_SHEAR, MAX_STRETCH = 2.0, 10.0, 0.1, 0.1


def create_pair() -> keras.Model:
    """Return the untrained pair for 32 × 32 images and captions."""
    return create_clip(VARIANT, image_size=IMAGE_SIZE, stem_stride=STEM_STRIDE)


def train_pair(model, train: Digits, held_out: Digits, *, seed: int, epochs: int) -> tuple[dict, float]:
    """Train the pair; return ({metric: one value per epoch}, seconds).

    The held-out images are evaluated after each epoch, with captions from the held-out templates. Nothing is selected
    by that evaluation.
    """
    data = CaptionedDigits(train, TRAIN_TEMPLATES, seed=seed, epochs=epochs)
    validation = CaptionedDigits(held_out, HELD_OUT_TEMPLATES, seed=seed, augment=False)
    model.compile(create_optimizer(data.steps, epochs))
    start = time.perf_counter()
    history = model.fit(
        data,
        epochs=epochs,
        steps_per_epoch=data.steps,
        shuffle=False,
        validation_data=validation,
        verbose=1 if sys.stdout.isatty() else 2,  # a progress bar on a terminal, one line per epoch elsewhere
    ).history
    seconds = time.perf_counter() - start
    history = {name: [float(value) for value in values] for name, values in history.items()}
    return {**history, "lowest_loss": lowest_loss(data)}, seconds


def create_optimizer(steps: int, epochs: int) -> keras.optimizers.Optimizer:
    """Return AdamW with one epoch of warm-up and cosine decay to zero."""
    return optimizer.create_optimizer(PEAK_LEARNING_RATE, epochs * steps, warmup_steps=steps, weight_decay=WEIGHT_DECAY)


def captions(templates: Sequence[str]) -> list[list[str]]:
    """Return 10 lists of 2 T captions: for each digit, every template with its numeral and with its word."""
    return [[t.format(name) for t in templates for name in names] for names in zip(NUMERALS, WORDS, strict=True)]


def short_tokens(texts: Sequence[str]) -> np.ndarray:
    """Return token ids, int32 (N, L), with L of the longest text: the tower is causal, so padding only costs time."""
    tokens = tokenize(texts)
    return tokens[:, : np.flatnonzero(tokens.any(axis=0))[-1] + 1]


def augment_image(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rotate, stretch, shear and shift an image slightly, with white around it: uint8 (32, 32, 3) → same."""
    angle = math.radians(rng.uniform(-MAX_DEGREES, MAX_DEGREES))
    stretch_x, stretch_y = np.exp(rng.uniform(-MAX_STRETCH, MAX_STRETCH, 2))
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    matrix = rotation @ np.array([[stretch_x, rng.uniform(-MAX_SHEAR, MAX_SHEAR)], [0.0, stretch_y]])
    center = np.full(2, IMAGE_SIZE / 2)
    offset = center - matrix @ (center + rng.uniform(-MAX_SHIFT, MAX_SHIFT, 2))
    coefficients = (*matrix[0], offset[0], *matrix[1], offset[1])  # from output to input coordinates
    augmented = Image.fromarray(image).transform(
        (IMAGE_SIZE, IMAGE_SIZE),
        Image.Transform.AFFINE,
        coefficients,
        resample=Image.Resampling.BILINEAR,
        fillcolor=(255, 255, 255),
    )
    return np.asarray(augmented)


class CaptionedDigits(keras.utils.PyDataset):
    """Batches of images with captions for `fit`, epoch after epoch: pass `steps_per_epoch=data.steps`.

    Batch i depends on the arguments and i alone: backends prefetch, and TensorFlow reads past the end of an epoch, so
    there is no state that changes between epochs. All batches have the same size; an epoch leaves out the images that
    do not fill a batch, different ones each time.

    Args:
        digits: N images and labels.
        templates: templates of the captions.
        seed: seed of the order, the captions and the augmentation.
        epochs: number of epochs.
        augment: apply `augment_image`.

    A batch is {"images": float32 (B, 32, 32, 3), "tokens": int32 (B, L), "label": int32 (B,)}.
    """

    def __init__(
        self, digits: Digits, templates: Sequence[str], *, seed: int, epochs: int = 1, augment: bool = True
    ) -> None:
        super().__init__()
        self.digits = digits
        self.tokens = short_tokens(sum(captions(templates), [])).reshape(len(WORDS), 2 * len(templates), -1)
        self.seed = seed
        self.epochs = epochs
        self.augment = augment
        self.steps = len(digits) // BATCH_SIZE
        self._epoch: tuple[int, dict[str, np.ndarray]] = (-1, {})

    def __len__(self) -> int:
        return self.epochs * self.steps

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        epoch, step = divmod(index, self.steps)
        number, arrays = self._epoch
        if number != epoch:
            arrays = self.draw_epoch(epoch)
            self._epoch = (epoch, arrays)
        return {name: array[step * BATCH_SIZE : (step + 1) * BATCH_SIZE] for name, array in arrays.items()}

    def draw_epoch(self, epoch: int) -> dict[str, np.ndarray]:
        """Return all samples of one epoch, shuffled: {"images", "tokens", "label"}, N rows each."""
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self.digits))
        labels = self.digits.labels[order]
        chosen = rng.integers(self.tokens.shape[1], size=len(order))
        images = self.digits.images[order]
        if self.augment:
            images = np.stack([augment_image(image, rng) for image in images])
        return {"images": batch(images, PREPROCESS), "tokens": self.tokens[labels, chosen], "label": labels}


def lowest_loss(data: CaptionedDigits) -> float:
    """Return the lowest loss possible on the first epoch: ln n for an image with n positives in its batch, averaged."""
    labels = data.draw_epoch(0)["label"][: data.steps * BATCH_SIZE].reshape(data.steps, BATCH_SIZE)
    return float(np.log((labels[:, :, None] == labels[:, None, :]).sum(axis=-1)).mean())
