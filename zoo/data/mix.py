"""Mixup and CutMix: pairs of images in a batch are combined, and so are their labels.

References: Zhang et al., arXiv 1710.09412; Yun et al., arXiv 1905.04899. Distributions as in timm's `Mixup` with
mode "batch". One difference: partners are neighbours in the batch, where timm reverses it, so a rank with an even part
of the batch holds both images of each pair. In shuffled data this is equivalent.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Mix:
    """Mixup or CutMix on a batch.

    Args:
        num_classes: K.
        mixup: α of Mixup's Beta(α, α) distribution; 0 for none.
        cutmix: α of CutMix's Beta(α, α) distribution; 0 for none.
        probability: probability of mixing a batch.
        switch: probability of CutMix if both are enabled.
    """

    num_classes: int
    mixup: float = 0.8
    cutmix: float = 1.0
    probability: float = 1.0
    switch: float = 0.5

    def __post_init__(self):
        if self.mixup < 0 or self.cutmix < 0 or self.mixup + self.cutmix == 0:
            raise ValueError(f"mixup={self.mixup!r}, cutmix={self.cutmix!r}; both must be 0 or more, one above 0")
        for name in ("probability", "switch"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)!r}; it must be in [0, 1]")

    def __call__(self, batch: Mapping[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Return the batch with mixed "images" and "target", float32 (B, K), whose rows sum to 1; "label" is unchanged.

        Args:
            batch: "images" float32 (B, H, W, C), "label" int32 (B,).
        """
        images, target = batch["images"], one_hot(batch["label"], self.num_classes)
        cut, share = self.draw(rng)
        if share < 1:
            partners = neighbours(len(images))
            if cut:
                images, share = cut_mix(images, partners, share, rng)
            else:
                images = mix_up(images, partners, share)
            target = mix_up(target, partners, share)
        return {**batch, "images": images, "target": target}

    def draw(self, rng: np.random.Generator) -> tuple[bool, float]:
        """Return (whether to use CutMix, weight of each image against its partner)."""
        mixed, switched = rng.random() < self.probability, rng.random() < self.switch
        cut = self.cutmix > 0 and (switched or self.mixup == 0)
        alpha = self.cutmix if cut else self.mixup
        return cut, float(rng.beta(alpha, alpha)) if mixed else 1.0


def one_hot(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Return int (B,) → float32 (B, K); raise ValueError for a label that is not 0 to K - 1."""
    labels = np.asarray(labels)
    if labels.size and not (labels.min() >= 0 and labels.max() < num_classes):
        raise ValueError(f"labels run from {labels.min()} to {labels.max()}; allowed are 0 to {num_classes - 1}")
    rows = np.zeros((len(labels), num_classes), np.float32)
    rows[np.arange(len(labels)), labels] = 1
    return rows


def neighbours(count: int) -> np.ndarray:
    """Return the partner of each of B rows: 1, 0, 3, 2, …; the last of an odd number is its own."""
    return np.minimum(np.arange(count) ^ 1, max(count - 1, 0))


def mix_up(rows: np.ndarray, partners: np.ndarray, share: float) -> np.ndarray:
    """Return share · rows + (1 - share) · partners, float32 (B, …)."""
    weight = np.float32(share)
    mixed = rows[partners]
    mixed *= 1 - weight
    mixed += weight * rows
    return mixed


def cut_mix(images: np.ndarray, partners: np.ndarray, share: float, rng) -> tuple[np.ndarray, float]:
    """Return (images with one rectangle from the partner, the fraction of the area that is the image's own).

    The rectangle has the image's aspect ratio, the area 1 - share and a uniform centre; the border may cut it.
    """
    height, width = images.shape[1:3]
    side = math.sqrt(1 - share)
    h, w = int(height * side), int(width * side)
    y, x = int(rng.integers(height)), int(rng.integers(width))
    top, bottom = max(0, y - h // 2), min(height, y + (h + 1) // 2)
    left, right = max(0, x - w // 2), min(width, x + (w + 1) // 2)
    mixed = images.copy()
    mixed[:, top:bottom, left:right] = images[partners, top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)
