"""scikit-learn's handwritten digits as 32 × 32 images with a fixed split. Nothing is downloaded.

Data: E. Alpaydin and C. Kaynak, UCI machine learning repository, CC BY 4.0.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

IMAGE_SIZE = 32
_HELD_OUT_IMAGES, _SPLIT_SEED = 360, 0


@dataclass(frozen=True)
class Digits:
    """N images of digits.

    Args:
        images: uint8 (N, 32, 32, 3).
        labels: int32 (N,), 0 to 9.
        indices: int (N,), into scikit-learn's data.
    """

    images: np.ndarray
    labels: np.ndarray
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def pictures(self) -> np.ndarray:
        """The former name of `images`."""
        return self.images


def load_split(train_images: int | None = None) -> tuple[Digits, Digits]:
    """Return (training images, held-out images), stratified by digit and always the same: 1,437 and 360.

    Args:
        train_images: number of training images to return, in shuffled order; all if None.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    labels = data.target.astype(np.int32)
    images = np.stack([draw(gray) for gray in data.images])
    train, held_out = train_test_split(
        np.arange(len(labels)), test_size=_HELD_OUT_IMAGES, stratify=labels, random_state=_SPLIT_SEED
    )
    train, held_out = train[:train_images], np.sort(held_out)
    return Digits(images[train], labels[train], train), Digits(images[held_out], labels[held_out], held_out)


def draw(gray: np.ndarray) -> np.ndarray:
    """Draw a digit in black on white: (8, 8) in [0, 16] → uint8 (32, 32, 3)."""
    inverted = Image.fromarray(255 - np.rint(gray * (255 / 16)).astype(np.uint8))
    return np.asarray(inverted.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC).convert("RGB"))
