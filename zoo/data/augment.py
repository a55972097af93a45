"""Image augmentation as pure functions of (image, rng).

Distributions are those of timm (`timm/data/transforms.py`, `random_erasing.py`) and torchvision.
References: Szegedy et al., arXiv 1409.4842, section 6 (crops); Zhong et al., arXiv 1708.04896 (erasing).
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from zoo.data.preprocess import PreprocessSpec, flatten, normalize, to_rgb
from zoo.data.rand_augment import RandAugment

_ATTEMPTS = 10
_RATIO = (3 / 4, 4 / 3)
_ERASED_AREA, _ERASED_ASPECT = (0.02, 1 / 3), (0.3, 1 / 0.3)


@dataclass(frozen=True)
class Augment:
    """Training transform: random crop, flip, RandAugment, normalisation, random erasing, in this order.

    JPEG files far larger than the crops need are decoded at 1/2, 1/4 or 1/8 (`least_size`).

    Args:
        scale: minimum and maximum fraction of the image's area that a crop takes, in (0, 1].
        ratio: minimum and maximum width / height of a crop.
        flip: probability of a horizontal flip.
        rand_augment: colour and geometric operations, or None.
        erase: probability of replacing a rectangle by noise.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = _RATIO
    flip: float = 0.5
    rand_augment: RandAugment | None = None
    erase: float = 0.0

    def __post_init__(self):
        for name, highest in (("scale", 1.0), ("ratio", math.inf)):
            low, high = getattr(self, name)
            if not 0 < low <= high <= highest:
                raise ValueError(f"{name}={getattr(self, name)!r}; it must be (minimum, maximum) in (0, {highest}]")
        for name in ("flip", "erase"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)!r}; it must be in [0, 1]")

    def least_size(self, spec: PreprocessSpec) -> tuple[int, int]:
        """Return the (width, height) of an image whose smallest crop is as large as spec.size."""
        height, width = spec.size
        low, high = self.ratio
        side = math.ceil(max(width / math.sqrt(low), height * math.sqrt(high)) / math.sqrt(self.scale[0]))
        return side, side

    def __call__(self, image: Image.Image, rng: np.random.Generator, spec: PreprocessSpec) -> np.ndarray:
        """Return float32 (H, W, 3) of spec.size, normalised, of a PIL image of any mode."""
        resample = Image.Resampling[spec.interpolation.upper()]
        image = to_rgb(flatten(image, spec.background))
        image = random_resized_crop(image, rng, spec.size, scale=self.scale, ratio=self.ratio, resample=resample)
        image = random_flip(image, rng, self.flip)
        if self.rand_augment is not None:
            red, green, blue = (min(255, round(255 * mean)) for mean in spec.mean)
            image = self.rand_augment(image, rng, fill=(red, green, blue), resample=resample)
        return random_erase(normalize(np.asarray(image), spec), rng, self.erase)


CONTRASTIVE = Augment(scale=(0.9, 1.0), flip=0.0)  # as in open_clip; no flip, because captions say left and right
CLASSIFICATION = Augment(rand_augment=RandAugment(), erase=0.25)  # as in ConvNeXt's recipe: arXiv 2201.03545, table 5


def random_resized_crop(
    image: Image.Image,
    rng: np.random.Generator,
    size: tuple[int, int],
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = _RATIO,
    resample: Image.Resampling = Image.Resampling.BICUBIC,
) -> Image.Image:
    """Return a random crop, resized to `size` (H, W)."""
    left, top, width, height = draw_crop(rng, *image.size, scale=scale, ratio=ratio)
    crop = image.crop((left, top, left + width, top + height))
    return crop.resize(size[::-1], resample)


def draw_crop(rng: np.random.Generator, width: int, height: int, *, scale, ratio) -> tuple[int, int, int, int]:
    """Return (left, top, width, height) with uniform area, log-uniform ratio and uniform position.

    If no attempt fits into the image, it is the largest central part with an allowed ratio.
    """
    low, high = ratio
    for _ in range(_ATTEMPTS):
        area = rng.uniform(*scale) * width * height
        aspect = math.exp(rng.uniform(math.log(low), math.log(high)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h
    w = min(width, max(1, round(height * high)))
    h = min(height, max(1, round(width / low)))
    return (width - w) // 2, (height - h) // 2, w, h


def random_flip(image: Image.Image, rng: np.random.Generator, probability: float = 0.5) -> Image.Image:
    """Return the image, flipped horizontally with this probability."""
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < probability else image


def random_erase(pixels: np.ndarray, rng: np.random.Generator, probability: float = 0.25) -> np.ndarray:
    """Replace a rectangle of the normalised image by normal noise with this probability.

    Args:
        pixels: float32 (H, W, C), changed in place.

    Returns:
        `pixels`.
    """
    height, width, channels = pixels.shape
    if rng.random() >= probability:
        return pixels
    for _ in range(_ATTEMPTS):
        area = rng.uniform(*_ERASED_AREA) * height * width
        aspect = math.exp(rng.uniform(math.log(_ERASED_ASPECT[0]), math.log(_ERASED_ASPECT[1])))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if h < height and w < width:
            top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
            pixels[top : top + h, left : left + w] = rng.standard_normal((h, w, channels), np.float32)
            break
    return pixels
