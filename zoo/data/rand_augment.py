"""RandAugment: random image operations of one magnitude.

Reference: Cubuk et al., arXiv 1909.13719. Operations and their strengths are timm's "rand-m9-mstd0.5-inc1"
(`timm/data/auto_augment.py`), in which every strength grows with the magnitude. One difference: posterize keeps at
least one bit, because none would leave a black image.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

_HIGHEST = 10  # magnitude
_DEGREES, _SHEAR, _SHIFT, _ENHANCE, _ADDED = 30.0, 0.3, 0.45, 0.9, 110


@dataclass(frozen=True)
class RandAugment:
    """A sequence of random OPERATIONS, each drawn uniformly and applied with `probability`.

    Args:
        magnitude: mean of each operation's magnitude, 0 to 10, drawn from a normal distribution.
        magnitude_std: its standard deviation; magnitudes are clipped to [0, 10].
        operations: number of operations.
        probability: probability of applying each.
    """

    magnitude: float = 9.0
    magnitude_std: float = 0.5
    operations: int = 2
    probability: float = 0.5

    def __post_init__(self):
        if not 0 <= self.magnitude <= _HIGHEST or self.magnitude_std < 0:
            raise ValueError(f"magnitude={self.magnitude!r}, magnitude_std={self.magnitude_std!r}; allowed are 0 to 10")
        if self.operations < 0 or not 0 <= self.probability <= 1:
            raise ValueError(f"operations={self.operations!r}, probability={self.probability!r}; allowed are 0...1")

    def __call__(
        self,
        image: Image.Image,
        rng: np.random.Generator,
        *,
        fill: tuple[int, int, int] = (128, 128, 128),
        resample: Image.Resampling = Image.Resampling.BICUBIC,
    ) -> Image.Image:
        """Return an RGB image of the same size; `fill` is the colour outside the image."""
        names = list(OPERATIONS)
        for chosen in rng.integers(len(names), size=self.operations):
            if rng.random() < self.probability:
                magnitude = min(_HIGHEST, max(0.0, rng.normal(self.magnitude, self.magnitude_std)))
                sign = 1 if rng.random() < 0.5 else -1
                image = apply(names[chosen], image, magnitude, sign, fill=fill, resample=resample)
        return image


def apply(name: str, image: Image.Image, magnitude: float, sign: int, *, fill, resample) -> Image.Image:
    """Apply one of OPERATIONS at a magnitude of 0 to 10; `sign`, 1 or -1, is the direction of symmetric ones."""
    return OPERATIONS[name](image, magnitude / _HIGHEST, sign, {"resample": resample, "fillcolor": fill})


def _rotate(image, level, sign, moved):
    return image.rotate(sign * level * _DEGREES, **moved)


def _affine(coefficients: Callable) -> Callable:
    """Return an affine operation; coefficients(signed level, width, height) are those of Image.transform."""

    def move(image, level, sign, moved):
        return image.transform(image.size, Image.Transform.AFFINE, coefficients(sign * level, *image.size), **moved)

    return move


def _enhance(kind: Callable) -> Callable:
    """Return an operation that strengthens or weakens a property of the image."""
    return lambda image, level, sign, _: kind(image).enhance(max(0.1, 1.0 + sign * (level * _ENHANCE)))


def _posterize(image, level, *_):
    return ImageOps.posterize(image, max(1, 4 - int(level * 4)))


def _solarize(image, level, *_):
    return ImageOps.solarize(image, 256 - min(256, int(level * 256)))


def _solarize_add(image, level, *_):
    added = min(128, int(level * _ADDED))
    return image.point([min(255, i + added) if i < 128 else i for i in range(256)] * 3)


OPERATIONS = {
    "AutoContrast": lambda image, *_: ImageOps.autocontrast(image),
    "Equalize": lambda image, *_: ImageOps.equalize(image),
    "Invert": lambda image, *_: ImageOps.invert(image),
    "Rotate": _rotate,
    "Posterize": _posterize,
    "Solarize": _solarize,
    "SolarizeAdd": _solarize_add,
    "Color": _enhance(ImageEnhance.Color),
    "Contrast": _enhance(ImageEnhance.Contrast),
    "Brightness": _enhance(ImageEnhance.Brightness),
    "Sharpness": _enhance(ImageEnhance.Sharpness),
    "ShearX": _affine(lambda level, *_: (1, level * _SHEAR, 0, 0, 1, 0)),
    "ShearY": _affine(lambda level, *_: (1, 0, 0, level * _SHEAR, 1, 0)),
    "TranslateX": _affine(lambda level, width, _: (1, 0, level * _SHIFT * width, 0, 1, 0)),
    "TranslateY": _affine(lambda level, _, height: (1, 0, 0, 0, 1, level * _SHIFT * height)),
}
