"""Image formats that need more than Pillow's usual decoders: HEIC, AVIF, and the RAW files of cameras.

A format is told by the first bytes of a file. Its decoder is imported when the first such file is opened.
"""

from pathlib import Path
from typing import BinaryIO

from PIL import Image, features

EXTENSIONS = (".heic", ".heif", ".avif", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2", ".pef", ".srw")
HEAD = 16  # bytes
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_AVIF_BRANDS = (b"avif", b"avis")
_TIFF_HEADS = (b"II*\0", b"MM\0*")  # of most RAW files too
_RAW_HEADS = (*_TIFF_HEADS, b"IIU\0", b"IIRO", b"IIRS", b"FUJIFILMCCD-RAW")


def open_with_plugin(
    file: BinaryIO, name: str | Path, max_pixels: int, file_name: str | Path | None = None
) -> Image.Image | None:
    """Return the image in a HEIC, AVIF or RAW file, not decoded yet if that is possible; None for other files.

    Args:
        name: for messages.
        file_name: name of the file, by default `name`. If rawpy is missing, its extension tells RAW files from TIFF.

    Raises:
        ValueError: the decoder is missing, the file is damaged, or a RAW file has more than `max_pixels`.
    """
    place = file.tell()
    head = file.read(HEAD)
    file.seek(place)
    brand = head[8:12] if head[4:8] == b"ftyp" else b""
    if brand in _HEIC_BRANDS:
        return _open_heic(file, name)
    if brand in _AVIF_BRANDS:
        if not features.check("avif"):
            raise ValueError(f"{name} is an AVIF file, and this Pillow was built without AVIF")
        return _open(file, name, "AVIF")
    if brand == b"crx " or head.startswith(_RAW_HEADS):
        is_raw = Path(file_name or name).suffix.lower() in EXTENSIONS
        return _develop(file, name, max_pixels, may_be_tiff=head.startswith(_TIFF_HEADS), named_raw=is_raw)
    return None


def _open(file: BinaryIO, name: str | Path, kind: str) -> Image.Image:
    try:
        return Image.open(file, formats=(kind,))
    except Exception as error:  # decoders raise errors of any type
        raise ValueError(f"{name} has a damaged header: {error}") from error


def _open_heic(file: BinaryIO, name: str | Path) -> Image.Image:
    try:
        import pillow_heif
    except ImportError:
        raise ValueError(f'{name} is a HEIC file, which needs pip install "convnext-clip-zoo[heic]"') from None
    if "HEIF" not in Image.OPEN:
        pillow_heif.register_heif_opener()
    return _open(file, name, "HEIF")


def _develop(
    file: BinaryIO, name: str | Path, max_pixels: int, *, may_be_tiff: bool, named_raw: bool
) -> Image.Image | None:
    """Return a RAW file as RGB, with the camera's white balance; None for what may be, or is, a plain TIFF file."""
    try:
        import rawpy
    except ImportError:
        if may_be_tiff and not named_raw:
            return None
        raise ValueError(f'{name} is a RAW file, which needs pip install "convnext-clip-zoo[raw]"') from None
    try:
        with rawpy.imread(file) as raw:
            width, height = raw.sizes.width, raw.sizes.height
            if width * height > max_pixels:
                raise OverflowError(f"{width} × {height}")
            return Image.fromarray(raw.postprocess(use_camera_wb=True))
    except OverflowError as error:
        raise ValueError(f"{name} has {error} pixels; at most {max_pixels} are allowed") from None
    except Exception as error:
        if may_be_tiff and isinstance(error, rawpy.LibRawFileUnsupportedError):
            return None
        raise ValueError(f"{name} is not a RAW file that LibRaw reads, or a damaged one: {error}") from error
