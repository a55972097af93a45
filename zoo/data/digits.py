"""scikit-learn's handwritten digits, drawn and split: the data that is there without a network.

Data: E. Alpaydin and C. Kaynak, UCI machine learning repository, CC BY 4.0.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

IMAGE_SIZE = 32
HELD_OUT_IMAGES, SPLIT_SEED = 360, 0


@dataclass(frozen=True)
class Digits:
    """N pictures of digits.

    Args:
        pictures: uint8 (N, 32, 32, 3).
        labels: int32 (N,), 0 to 9.
        places: int (N,), where scikit-learn's data has each picture.
    """

    pictures: np.ndarray
    labels: np.ndarray
    places: np.ndarray

    def __len__(self):
        return len(self.labels)


def load_split(train_images: int | None = None) -> tuple[Digits, Digits]:
    """(training pictures, held-out pictures), as many of each digit in both as there are in all; always the same.

    Args:
        train_images: of the 1,437, drawn in shuffled order; all unless given.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    labels = data.target.astype(np.int32)
    pictures = np.stack([draw(gray) for gray in data.images])
    train, held_out = train_test_split(
        np.arange(len(labels)), test_size=HELD_OUT_IMAGES, stratify=labels, random_state=SPLIT_SEED
    )
    return tuple(Digits(pictures[i], labels[i], i) for i in (train[:train_images], np.sort(held_out)))


def draw(gray: np.ndarray) -> np.ndarray:
    """One digit, ink 0 to 16 as (8, 8), in black on white paper: uint8 (32, 32, 3)."""
    paper = Image.fromarray(255 - np.rint(gray * (255 / 16)).astype(np.uint8))
    return np.asarray(paper.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC).convert("RGB"))
