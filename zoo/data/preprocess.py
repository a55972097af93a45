"""Image preprocessing: resize, centre crop, RGB, scale to 0...1, normalise. PIL and NumPy only.

The result equals the evaluation transforms of open_clip and timm bit for bit, in channels_last. So an image is resized
and cropped in its own mode and converted to RGB afterwards (with `rgb_first` before, as in timm's data sets), and sizes
are rounded as in torchvision. Two differences are intended: for a target that is not square, open_clip ignores the
interpolation and resizes with bicubic; and grey images of more than 8 bits are scaled to 8 bits, where Pillow's
conversion cuts them off at 255.
"""

import dataclasses
import difflib
import functools
import math
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from zoo.data.plugins import open_with_plugin
from zoo.utils.files import open_file
from zoo.utils.text import quoted, shown

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
RESIZE_MODES = ("shortest", "squash", "longest")
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
MAX_PIXELS = 89_478_485  # Pillow's own warning level: 256 MiB of RGB
_START_OF_SCAN = b"\xff\xda"
MAX_SCANS = 64  # of a progressive JPEG; encoders write about 10, and each takes as long as a whole baseline image
BACKGROUNDS = {"white": (255, 255, 255), "black": (0, 0, 0)}
_WHITE = BACKGROUNDS["white"]
_GREYS = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")  # Pillow's modes of more than 8 bits


@dataclass(frozen=True, repr=False)
class PreprocessSpec:
    """The image preprocessing that a set of weights was trained with.

    Args:
        image_size: N for (N, N), or (H, W), in pixels.
        mean, std: mean and standard deviation of R, G and B, on the scale 0...1.
        interpolation: one of INTERPOLATIONS.
        resize_mode: "shortest" side to the target, then crop; "squash" both sides; "longest" side, then pad.
        crop_pct: in (0, 1]; resize to image_size / crop_pct, then centre crop.
        fill: padding value, 0...255: one number for every channel of the image's own mode, or (R, G, B).
        rgb_first: convert to RGB before the resize instead of after the crop.
        background: what lies behind a transparent image: a name of BACKGROUNDS or (R, G, B) in 0...255; such an image
            is then converted to RGB before the resize. None ignores the transparency, as open_clip and timm do; the
            colours below it then show.
    """

    image_size: int | tuple[int, int] = 224
    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[float, float, float] = OPENAI_STD
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    crop_pct: float = 1.0
    fill: int | tuple[int, int, int] = 0
    rgb_first: bool = False
    background: str | tuple[int, int, int] | None = None

    def __post_init__(self):
        for name in ("image_size", "mean", "std", "fill", "background"):  # JSON has lists
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
        back = self.background
        known = back is None or (isinstance(back, str) and back in BACKGROUNDS) or _are(back, 3, _is_level)
        _check(self, "background", known, f"None, one of {tuple(BACKGROUNDS)} or three ints in 0...255")

    def __repr__(self):  # it identifies the data of a checkpoint, so it stays as it was where nothing else changed
        names = [field.name for field in dataclasses.fields(self) if field.name != "background" or self.background]
        return f"PreprocessSpec({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"

    @property
    def size(self) -> tuple[int, int]:
        """The output size (H, W)."""
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size

    def eval_transform(self) -> Callable[[Image.Image | np.ndarray], np.ndarray]:
        """Return a picklable callable: PIL image, or uint8 (H, W, C), → float32 (H, W, 3)."""
        return functools.partial(preprocess, spec=self)

    def to_dict(self) -> dict:
        """Return the fields as JSON values; without a background that is None, which earlier versions do not know."""
        fields = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}
        if self.background is None:
            del fields["background"]
        return fields

    @classmethod
    def from_dict(cls, fields: Mapping) -> "PreprocessSpec":
        """Return a spec from a mapping of field names; missing ones take their defaults."""
        names = [field.name for field in dataclasses.fields(cls)]
        for name in fields:
            if name not in names:
                nearest = difflib.get_close_matches(str(name)[:100], names, n=1, cutoff=0.0)[0]
                raise ValueError(
                    f"PreprocessSpec has no {quoted(name)}; nearest is {quoted(nearest)}, allowed are {names}"
                )
        return cls(**fields)


def preprocess(image: Image.Image | np.ndarray, spec: PreprocessSpec) -> np.ndarray:
    """Return a model's input.

    Args:
        image: PIL image of any mode, or uint8 (H, W), (H, W, 1), (H, W, 3) or (H, W, 4). EXIF orientation is ignored,
            as in open_clip and timm.

    Returns:
        float32 (H, W, 3), normalised.
    """
    image = flatten(_as_pil(image), spec.background)
    if spec.rgb_first or not isinstance(spec.fill, int):
        image = to_rgb(image)
    size = _resized_size(spec, *image.size)
    if max(size[0] * size[1], spec.size[0] * spec.size[1]) > MAX_PIXELS:
        raise ValueError(
            f"image of {_wxh(image.size)} would grow to {_wxh(size)}; at most {MAX_PIXELS} pixels are allowed"
        )
    image = image.resize(size, Image.Resampling[spec.interpolation.upper()])
    image = _center_crop(_pad(image, *spec.size, spec.fill), *spec.size)
    return normalize(np.asarray(to_rgb(image)), spec)


def batch(images: Iterable[Image.Image | np.ndarray], spec: PreprocessSpec) -> np.ndarray:
    """Return B preprocessed images, float32 (B, H, W, 3)."""
    images = list(images)
    result = np.empty((len(images), *spec.size, 3), np.float32)
    for i, image in enumerate(images):
        result[i] = preprocess(image, spec)
    return result


def open_image(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return a decoded image file in its own mode; of an animation the first frame.

    Only FORMATS, HEIC, AVIF and RAW (`zoo.data.plugins`) are tried, and the size is checked in the header before
    anything is decoded.

    Raises:
        ValueError: another format, more than `max_pixels`, or a file that is cut off or damaged.
    """
    with open_file(path) as file:
        return decode_image(file, path, max_pixels=max_pixels)


def decode_image(
    file: BinaryIO,
    name: str | Path,
    *,
    max_pixels: int = MAX_PIXELS,
    least_size: tuple[int, int] | None = None,
    file_name: str | None = None,
) -> Image.Image:
    """Return the image in an open binary file or `io.BytesIO`, as `open_image` does.

    Args:
        name: for error messages.
        file_name: name of the file, if `name` is not; see `open_with_plugin`.
        least_size: sufficient (width, height): a JPEG at least twice as large is decoded at 1/2, 1/4 or 1/8, which is
            faster and gives slightly different pixels.
    """
    image = open_with_plugin(file, name, max_pixels, file_name) or _open_header(file, name)
    if image.width * image.height > max_pixels:
        raise ValueError(f"{shown(name)} has {_wxh(image.size)} pixels; at most {max_pixels} are allowed")
    try:
        _check_scans(image, file)
        if least_size is not None:
            image.draft(None, least_size)
        image.load()
    except Exception as error:  # decoders raise errors of any type
        raise ValueError(f"{shown(name)} is cut off or damaged: {shown(error)}") from error
    return image


def _open_header(file: BinaryIO, name: str | Path) -> Image.Image:
    try:
        return Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        raise ValueError(f"{shown(name)} is not an image of a known format; allowed are {FORMATS}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{shown(name)} is too large: {shown(error)}") from error
    except Exception as error:
        raise ValueError(f"{shown(name)} has a damaged header: {shown(error)}") from error


def _check_scans(image: Image.Image, file: BinaryIO) -> None:
    """Raise ValueError for a progressive JPEG of more than MAX_SCANS scans."""
    if image.format != "JPEG" or not image.info.get("progressive"):
        return
    place = file.tell()
    file.seek(0)
    scans, last = 0, b""
    while scans <= MAX_SCANS and (part := file.read(1 << 20)):  # a file of many scans is not read to its end
        scans, last = scans + (last + part).count(_START_OF_SCAN), part[-1:]
    file.seek(place)
    if scans > MAX_SCANS:
        raise ValueError(f"more than {MAX_SCANS} scans, which would take long to decode")


def flatten(image: Image.Image, background: str | tuple[int, int, int] | None = None) -> Image.Image:
    """Return an image of 8 bits per channel; with a background, without transparency.

    Grey levels: a mode of 16 bits is divided by 257, unless no level is above 255; "I" and "F" likewise up to 65,535,
    and "F" is multiplied by 255 where its levels are between 0 and 1. Other ranges are stretched to 0...255.

    Args:
        background: as in `PreprocessSpec`. None keeps the transparency; the first image that has any causes a warning.
    """
    if image.mode in _GREYS:
        return _scale_greys(image)
    if not image.has_transparency_data:
        return image
    if background is None:
        _warn_of_transparency(image)
        return image
    color = BACKGROUNDS[background] if isinstance(background, str) else background
    canvas = Image.new("RGBA", image.size, (*color, 255))
    return Image.alpha_composite(canvas, _layers(image)).convert("RGB")


def _layers(image: Image.Image) -> Image.Image:
    """Return an RGBA image; Pillow converts "La" in two steps only."""
    return (image.convert("LA") if image.mode == "La" else image).convert("RGBA")


def to_display(image: Image.Image) -> np.ndarray:
    """Return what a viewer shows of an image, uint8 (H, W, 3): transparency is put on white."""
    return np.asarray(to_rgb(flatten(image, _WHITE)))


def _scale_greys(image: Image.Image) -> Image.Image:
    levels = np.nan_to_num(np.asarray(image).astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = levels.min(), levels.max()
    if low < 0 or high > 65535:
        levels = (levels - low) * (255 / max(high - low, 1e-9))
    elif high > 255:
        levels = levels / 257
    elif image.mode == "F" and 0 < high <= 1:
        levels = levels * 255
    elif image.mode in ("F", "I", "I;16"):
        return image  # Pillow resizes and converts these levels as they are
    return Image.fromarray(np.rint(levels).astype(np.uint8))


_transparency = threading.Event()  # set once a warning was given


def _warn_of_transparency(image: Image.Image) -> None:
    if _transparency.is_set() or _layers(image).getchannel("A").getextrema()[0] == 255:
        return
    _transparency.set()
    warnings.warn(
        "an image has transparency, and its preprocessing has no background: as in the library of the weights, the "
        'colours below the transparency count. PreprocessSpec(background="white") puts such images on white',
        stacklevel=2,
    )


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


def to_rgb(image: Image.Image) -> Image.Image:
    return image if image.mode == "RGB" else image.convert("RGB")  # convert would copy an RGB image


def _resized_size(spec: PreprocessSpec, width: int, height: int) -> tuple[int, int]:
    """Return (width, height) after the resize, before crop or padding."""
    goal_h, goal_w = (math.floor(min(side / spec.crop_pct, MAX_PIXELS)) for side in spec.size)  # more is refused
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


def normalize(pixels: np.ndarray, spec: PreprocessSpec) -> np.ndarray:
    """Return uint8 (H, W, 3) as normalised float32. Each of the three operations rounds to float32, as in torch."""
    height, width, channels = pixels.shape
    # By rows, because broadcasting over a last axis of three is four times slower.
    rows = pixels.reshape(height, width * channels) / np.float32(255)
    rows -= np.tile(np.asarray(spec.mean, np.float32), width)
    rows /= np.tile(np.asarray(spec.std, np.float32), width)
    return rows.reshape(height, width, channels)


def _check(spec: PreprocessSpec, name: str, fine: bool, allowed: str) -> None:
    if not fine:
        raise ValueError(f"{shown(name)}={quoted(getattr(spec, name))}; it must be {allowed}")


def _is_finite(x) -> bool:
    return isinstance(x, (int, float)) and not isinstance(x, bool) and abs(x) < 1e300  # an int may exceed every float


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
