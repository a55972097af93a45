"""The demo's pictures and captions: scikit-learn's digits, drawn, split, augmented and told in sentences."""

import math
from collections.abc import Sequence

import keras
import numpy as np
from PIL import Image

from clip import CLASS_NAMES, TEMPLATES, tokenize
from zoo.data.digits import IMAGE_SIZE
from zoo.data.preprocess import PreprocessSpec, batch

DIGITS_MEAN, DIGITS_STD = 0.69, 0.35  # of the drawn training pictures, on the scale 0...1
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

BATCH_SIZE = 64
MAX_SHIFT, MAX_DEGREES, MAX_SHEAR, MAX_STRETCH = 2.0, 10.0, 0.1, 0.1


def captions(templates: Sequence[str]) -> list[list[str]]:
    """For each digit, every template with its numeral and with its word: 10 lists of 2 T captions."""
    return [[t.format(name) for t in templates for name in names] for names in zip(NUMERALS, WORDS, strict=True)]


def short_tokens(texts: Sequence[str]) -> np.ndarray:
    """int32 (N, L), L of the longest text: the tower is causal, so padding would only take time."""
    tokens = tokenize(texts)
    return tokens[:, : np.flatnonzero(tokens.any(axis=0))[-1] + 1]


def jiggle(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A picture turned, stretched, slanted and shifted a little, on white: uint8 (32, 32, 3) → same."""
    angle = math.radians(rng.uniform(-MAX_DEGREES, MAX_DEGREES))
    stretch_x, stretch_y = np.exp(rng.uniform(-MAX_STRETCH, MAX_STRETCH, 2))
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    matrix = turn @ np.array([[stretch_x, rng.uniform(-MAX_SHEAR, MAX_SHEAR)], [0.0, stretch_y]])
    middle = np.full(2, IMAGE_SIZE / 2)
    offset = middle - matrix @ (middle + rng.uniform(-MAX_SHIFT, MAX_SHIFT, 2))
    coefficients = (*matrix[0], offset[0], *matrix[1], offset[1])  # from a place in the result to one in the picture
    moved = Image.fromarray(picture).transform(
        (IMAGE_SIZE, IMAGE_SIZE),
        Image.Transform.AFFINE,
        coefficients,
        resample=Image.Resampling.BILINEAR,
        fillcolor=(255, 255, 255),
    )
    return np.asarray(moved)


class CaptionedDigits(keras.utils.PyDataset):
    """Batches of pictures with captions for `fit`, one epoch after the other: use it with `steps_per_epoch=data.steps`.

    Batch i is a function of the arguments and i alone. A backend may read ahead, and TensorFlow reads past the end of
    an epoch, so nothing here changes when an epoch ends. All batches have the same size: an epoch leaves out the few
    pictures that do not fill one, other ones each time.

    Args:
        digits: N pictures and labels.
        templates: of the captions.
        seed: of the order, the captions and the augmentation.
        epochs: how many there are.
        augment: jiggle the pictures.

    A batch is {"images": float32 (B, 32, 32, 3), "tokens": int32 (B, L), "label": int32 (B,)}.
    """

    def __init__(self, digits, templates, *, seed, epochs=1, augment=True):
        super().__init__()
        self.digits = digits
        self.tokens = short_tokens(sum(captions(templates), [])).reshape(len(WORDS), 2 * len(templates), -1)
        self.seed = seed
        self.epochs = epochs
        self.augment = augment
        self.steps = len(digits) // BATCH_SIZE
        self._drawn = (None, None)

    def __len__(self):
        return self.epochs * self.steps

    def __getitem__(self, index):
        epoch, step = divmod(index, self.steps)
        number, arrays = self._drawn
        if number != epoch:
            arrays = self.draw_epoch(epoch)
            self._drawn = (epoch, arrays)
        return {name: array[step * BATCH_SIZE : (step + 1) * BATCH_SIZE] for name, array in arrays.items()}

    def draw_epoch(self, epoch):
        """All that is seen in one epoch: {"images", "tokens", "label"}, each of N rows."""
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self.digits))
        labels = self.digits.labels[order]
        chosen = rng.integers(self.tokens.shape[1], size=len(order))
        pictures = self.digits.pictures[order]
        if self.augment:
            pictures = [jiggle(picture, rng) for picture in pictures]
        return {"images": batch(pictures, PREPROCESS), "tokens": self.tokens[labels, chosen], "label": labels}


def lowest_loss(data: CaptionedDigits) -> float:
    """The loss of a perfect pair on the first epoch: a picture with n positives in its batch cannot go below ln n."""
    labels = data.draw_epoch(0)["label"][: data.steps * BATCH_SIZE].reshape(data.steps, BATCH_SIZE)
    return float(np.log((labels[:, :, None] == labels[:, None, :]).sum(axis=-1)).mean())
