"""Image preprocessing: resize, centre crop, RGB, scale to 0...1, normalise. PIL and NumPy only.

The result equals the evaluation transforms of open_clip and timm bit for bit, in channels_last. So an image is resized
and cropped in its own mode and converted to RGB afterwards (with `rgb_first` before, as in timm's data sets), and sizes
are rounded as in torchvision. One difference is intended: for a target that is not square, open_clip ignores the
interpolation and resizes with bicubic.
"""

import dataclasses
import difflib
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
RESIZE_MODES = ("shortest", "squash", "longest")
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
MAX_PIXELS = 89_478_485  # Pillow's own warning level: 256 MiB of RGB


@dataclass(frozen=True)
class PreprocessSpec:
    """The image preprocessing that a set of weights was trained with.

    Args:
        image_size: N for (N, N), or (H, W), in pixels.
        mean, std: of R, G and B, on the scale 0...1.
        interpolation: one of INTERPOLATIONS.
        resize_mode: "shortest" side to the target, then crop; "squash" both sides; "longest" side, then pad.
        crop_pct: in (0, 1]; resize to image_size / crop_pct, then centre crop.
        fill: padding value, 0...255: one number for every channel of the image's own mode, or (R, G, B).
        rgb_first: convert to RGB before the resize instead of after the crop.
    """

    image_size: int | tuple[int, int] = 224
    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[float, float, float] = OPENAI_STD
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    crop_pct: float = 1.0
    fill: int | tuple[int, int, int] = 0
    rgb_first: bool = False

    def __post_init__(self):
        for name in ("image_size", "mean", "std", "fill"):  # JSON has lists
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        size, fill = self.image_size, self.fill
        _check(self, "image_size", _is_side(size) or _are(size, 2, _is_side), "a positive int or two, (H, W)")
        _check(self, "mean", _are(self.mean, 3, _is_finite), "three finite numbers")
        _check(self, "std", _are(self.std, 3, _is_positive), "three positive numbers")
        _check(self, "interpolation", self.interpolation in INTERPOLATIONS, f"one of {INTERPOLATIONS}")
        _check(self, "resize_mode", self.resize_mode in RESIZE_MODES, f"one of {RESIZE_MODES}")
        _check(self, "crop_pct", _is_positive(self.crop_pct) and self.crop_pct <= 1, "in (0, 1]")
        _check(self, "fill", _is_level(fill) or _are(fill, 3, _is_level), "in 0...255, one int or three")
        _check(self, "rgb_first", isinstance(self.rgb_first, bool), "a bool")

    @property
    def size(self) -> tuple[int, int]:
        """The output size (H, W)."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size

    def eval_transform(self) -> Callable[[Image.Image | np.ndarray], np.ndarray]:
        """Return a picklable callable: PIL image, or uint8 (H, W, C), → float32 (H, W, 3)."""
        return functools.partial(preprocess, spec=self)

    def to_dict(self) -> dict:
        """Return the fields as JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, fields: Mapping) -> "PreprocessSpec":
        """Return a spec from a mapping of field names; missing ones take their defaults."""
        names = [field.name for field in dataclasses.fields(cls)]
        for name in fields:
            if name not in names:
                nearest = difflib.get_close_matches(str(name), names, n=1, cutoff=0.0)[0]
                raise ValueError(f"PreprocessSpec has no {name!r}; nearest is {nearest!r}, allowed are {names}")
        return cls(**fields)


def preprocess(image: Image.Image | np.ndarray, spec: PreprocessSpec) -> np.ndarray:
    """Return a model's input.

    Args:
        image: PIL image of any mode, or uint8 (H, W), (H, W, 1), (H, W, 3) or (H, W, 4). EXIF orientation is ignored,
            as in open_clip and timm.

    Returns:
        float32 (H, W, 3), normalised.
    """
    image = _as_pil(image)
    if spec.rgb_first or not isinstance(spec.fill, int):
        image = _rgb(image)
    size = _resized_size(spec, *image.size)
    if size[0] * size[1] > MAX_PIXELS:
        raise ValueError(
            f"image of {_wxh(image.size)} would grow to {_wxh(size)}; at most {MAX_PIXELS} pixels are allowed"
        )
    image = image.resize(size, Image.Resampling[spec.interpolation.upper()])
    image = _center_crop(_pad(image, *spec.size, spec.fill), *spec.size)
    return _normalize(np.asarray(_rgb(image)), spec)


def batch(images: Iterable[Image.Image | np.ndarray], spec: PreprocessSpec) -> np.ndarray:
    """Return B preprocessed images, float32 (B, H, W, 3)."""
    images = list(images)
    result = np.empty((len(images), *spec.size, 3), np.float32)
    for i, image in enumerate(images):
        result[i] = preprocess(image, spec)
    return result


def open_image(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return a decoded image file in its own mode; of an animation the first frame.

    Only FORMATS are tried, and the size is checked in the header before anything is decoded.

    Raises:
        ValueError: another format, more than `max_pixels`, or a file that is cut off or damaged.
    """
    path = Path(path)
    if path.exists() and not path.is_file():  # a pipe or device may never end
        raise ValueError(f"{path} is not a regular file")
    with open(path, "rb") as file:
        return decode_image(file, path, max_pixels=max_pixels)


def decode_image(
    file: BinaryIO, name: str | Path, *, max_pixels: int = MAX_PIXELS, least_size: tuple[int, int] | None = None
) -> Image.Image:
    """Return the image in an open binary file or `io.BytesIO`, as `open_image` does.

    Args:
        name: for error messages.
        least_size: sufficient (width, height): a JPEG at least twice as large is decoded at 1/2, 1/4 or 1/8, which is
            faster and gives slightly different pixels.
    """
    image = _open_header(file, name)
    if image.width * image.height > max_pixels:
        raise ValueError(f"{name} has {_wxh(image.size)} pixels; at most {max_pixels} are allowed")
    try:
        if least_size is not None:
            image.draft(None, least_size)
        image.load()
    except Exception as error:  # decoders raise errors of any type
        raise ValueError(f"{name} is cut off or damaged: {error}") from error
    return image


def _open_header(file: BinaryIO, name: str | Path) -> Image.Image:
    try:
        return Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        raise ValueError(f"{name} is not an image of a known format; allowed are {FORMATS}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{name} is too large: {error}") from error
    except Exception as error:
        raise ValueError(f"{name} has a damaged header: {error}") from error


def _as_pil(image: Image.Image | np.ndarray) -> Image.Image:
    if isinstance(image, np.ndarray):
        channels = image.shape[2] if image.ndim == 3 else 1
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or channels not in (1, 3, 4):
            raise ValueError(
                f"image is {image.dtype} {image.shape}; allowed is uint8 (H, W) or (H, W, C) with C 1, 3 or 4"
            )
        image = Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image)
    if not isinstance(image, Image.Image):
        raise TypeError(
            f"image is {type(image).__name__}; allowed are a PIL image and a uint8 array (a file: open_image)"
        )
    if 0 in image.size:
        raise ValueError(f"image of {_wxh(image.size)} has no pixels")
    return image


def _rgb(image: Image.Image) -> Image.Image:
    return image if image.mode == "RGB" else image.convert("RGB")  # convert would copy an RGB image


def _resized_size(spec: PreprocessSpec, width: int, height: int) -> tuple[int, int]:
    """Return (width, height) after the resize, before crop or padding."""
    goal_h, goal_w = (math.floor(side / spec.crop_pct) for side in spec.size)
    if spec.resize_mode == "squash":
        return goal_w, goal_h
    if spec.resize_mode == "shortest" and goal_h == goal_w:  # torchvision's Resize truncates; the others round
        short, long = sorted((width, height))
        new_long = int(goal_h * long / short)
        return (goal_w, new_long) if width <= height else (new_long, goal_h)
    choose = min if spec.resize_mode == "shortest" else max
    ratio = choose(height / goal_h, width / goal_w)
    return max(1, round(width / ratio)), max(1, round(height / ratio))


def _pad(image: Image.Image, height: int, width: int, fill: int | tuple[int, int, int]) -> Image.Image:
    """Pad to at least height × width around the image; an odd pixel goes to the right and bottom."""
    extra_w, extra_h = max(0, width - image.width), max(0, height - image.height)
    if not extra_w and not extra_h:
        return image
    bands = len(image.getbands())
    color = (fill,) * bands if isinstance(fill, int) and bands > 1 else fill
    canvas = Image.new(image.mode, (image.width + extra_w, image.height + extra_h), color)
    if image.palette:
        canvas.putpalette(image.getpalette())
    canvas.paste(image, (extra_w // 2, extra_h // 2))
    return canvas


def _center_crop(image: Image.Image, height: int, width: int) -> Image.Image:
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def _normalize(pixels: np.ndarray, spec: PreprocessSpec) -> np.ndarray:
    """Return uint8 (H, W, 3) as normalised float32. Each of the three operations rounds to float32, as in torch."""
    height, width, channels = pixels.shape
    # By rows, because broadcasting over a last axis of three is four times slower.
    rows = pixels.reshape(height, width * channels) / np.float32(255)
    rows -= np.tile(np.asarray(spec.mean, np.float32), width)
    rows /= np.tile(np.asarray(spec.std, np.float32), width)
    return rows.reshape(height, width, channels)


def _check(spec: PreprocessSpec, name: str, fine: bool, allowed: str) -> None:
    if not fine:
        raise ValueError(f"{name}={getattr(spec, name)!r}; it must be {allowed}")


def _is_finite(x) -> bool:
    return isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x)


def _is_positive(x) -> bool:
    return _is_finite(x) and x > 0


def _is_side(x) -> bool:
    return isinstance(x, int) and _is_positive(x)


def _is_level(x) -> bool:
    return isinstance(x, int) and _is_finite(x) and 0 <= x <= 255


def _are(values, count: int, test: Callable[[object], bool]) -> bool:
    return isinstance(values, tuple) and len(values) == count and all(map(test, values))


def _wxh(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
