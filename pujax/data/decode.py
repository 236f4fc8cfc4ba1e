"""Image files to uint8 arrays of one size. What does not decode in full is reported, never filled with grey."""

import io
import logging
import math
import re
import warnings
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg
from PIL import ExifTags, Image

MAX_PIXELS = 100_000_000  # of a file; a picture that claims more is a mistake, or an attack on the memory
EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"})
_MODES = {1: "L", 3: "RGB"}
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_OPENCV_FILTERS = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # by EXIF orientation
_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
cv2.setNumThreads(0)  # images are shared out to processes
Image.MAX_IMAGE_PIXELS = None  # each file's size is checked here
logging.getLogger("PIL").setLevel(logging.CRITICAL)  # what is odd about a file is its reason, not a line on stderr


class ImageSpec(NamedTuple):
    """The form that images are brought to."""

    size: int  # height and width, in pixels
    channels: int  # 1 grey, 3 RGB
    crop: float = 1.0  # share of the short side that the centre crop keeps
    interpolation: str = "bilinear"  # or "bicubic"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        return self.size, self.size, self.channels


def try_decode(data: bytes, spec: ImageSpec) -> tuple[np.ndarray | None, str]:
    """Return (image as from `decode`, "") or (None, why it does not decode: the error, in one line).

    Whatever an image raises is that image's own fault: broken metadata makes Pillow raise errors of any kind.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata
            return decode(data, spec), ""
    except (Exception, MemoryError, RecursionError) as error:
        return None, describe(error)


def describe(error: BaseException) -> str:
    """Return kind and message of an error in one short line."""
    text = re.sub(r" ?<_io\.BytesIO[^>]*>", "", str(error))  # holds an address: equal files have equal reasons
    return f"{type(error).__name__}: {' '.join(text.split())}"[:200]


def decode(data: bytes, spec: ImageSpec) -> np.ndarray:
    """Return uint8 [size, size, channels]: the centre of the image, brought to `spec.size`.

    EXIF rotation is applied; transparency is laid on black; JPEG is decoded at reduced scale where that suffices. JPEG
    goes through libjpeg-turbo and OpenCV, twice as fast as Pillow, which decodes all else.

    Raises:
        Exception: of any kind, if `data` is no whole image, or one of more than `MAX_PIXELS`.
    """
    if data.startswith(_JPEG):
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
        _check_size(width, height)
        if colors not in ("CMYK", "YCCK"):
            return _decode_jpeg(data, spec)
    _check_whole(data)
    with Image.open(io.BytesIO(data)) as image:
        _check_size(*image.size)
        image.load()  # raises on truncated data
        turn = _TURNS.get(_tag(image.getexif))
        upright = image if turn is None else image.transpose(turn)
        return resize(to_mode(upright, spec.channels), spec)


def _decode_jpeg(data: bytes, spec: ImageSpec) -> np.ndarray:
    wanted = math.ceil(spec.size / spec.crop)
    colors = "GRAY" if spec.channels == 1 else "RGB"
    pixels = simplejpeg.decode_jpeg(data, colors, min_height=wanted, min_width=wanted)  # raises on damage
    side = round(spec.crop * min(pixels.shape[:2]))
    top, left = ((length - side) // 2 for length in pixels.shape[:2])
    pixels = pixels[top : top + side, left : left + side]
    if side != spec.size:
        # Up to a factor of two, bilinear interpolation leaves no pixel out.
        how = cv2.INTER_AREA if side > 2 * spec.size else _OPENCV_FILTERS[spec.interpolation]
        pixels = cv2.resize(pixels, (spec.size, spec.size), interpolation=how)
    pixels = pixels.reshape(spec.shape)
    turn = _TURNS.get(_tag(lambda: _exif(data)))
    if turn is not None:
        pixels = np.asarray(Image.fromarray(pixels.squeeze()).transpose(turn)).reshape(spec.shape)
    return pixels


def _exif(data: bytes) -> Image.Exif:
    """Return the EXIF block of a JPEG file; empty where there is none."""
    exif, at = Image.Exif(), 2
    while data[at] == 0xFF and data[at + 1] not in (0xDA, 0xD9):  # start of scan, end of image
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
            exif.load(data[at + 4 : at + 2 + length])
            break
        at += 2 + length
    return exif


def _tag(read: Callable[[], Image.Exif]) -> int:
    """Return the orientation that EXIF gives, 1 for upright; what cannot be read says nothing of the picture."""
    try:
        return read().get(ExifTags.Base.Orientation, 1)
    except Exception:  # of any kind
        return 1


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width}x{height} pixels; more than {MAX_PIXELS} are not decoded")


def _check_whole(data: bytes) -> None:
    """Raise on damage that Pillow's decoders pass over, such as a tail of zeros from a download that broke off."""
    if data.startswith(_PNG):
        Image.open(io.BytesIO(data)).verify()  # checksums
    elif data.startswith(_JPEG) and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
        raise ValueError("no end of image after the last scan; scan data cannot hold either marker")


def to_mode(image: Image.Image, channels: int) -> Image.Image:
    """Return the image as grey or RGB; transparent parts become black.

    Raises:
        ValueError: the range of the pixels is not known (32-bit integers, floats).
    """
    if image.mode.startswith("I;16"):  # convert() would clip to white what is brighter than 255 of 65535
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} have no known range")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA"):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    return image.convert(_MODES[channels])


def resize(image: Image.Image, spec: ImageSpec) -> np.ndarray:
    """Return uint8 [size, size, channels]: a square about the centre, `spec.crop` of the short side, resized."""
    side = spec.crop * min(image.size)
    left, top = ((length - side) / 2 for length in image.size)
    if image.size != (spec.size, spec.size) or spec.crop < 1:
        box = (left, top, left + side, top + side)
        image = image.resize((spec.size, spec.size), _FILTERS[spec.interpolation], box=box)
    array = np.asarray(image)
    return array[..., None] if array.ndim == 2 else array


def fit_arrays(images: np.ndarray, spec: ImageSpec) -> np.ndarray:
    """Return uint8 [N, size, size, channels] of images [N, H, W] or [N, H, W, C], which are not cropped.

    Slightly smaller images (by an even number of at most 8 pixels, such as 28 for 32) are padded with zeros; others are
    resized. Grey becomes RGB by repetition, RGB becomes grey as Pillow weighs it.
    """
    if images.ndim == 3:
        images = images[..., None]
    spec = spec._replace(crop=1.0)
    size, channels = spec.size, spec.channels
    missing = size - images.shape[1]
    if images.shape[1] == images.shape[2] and 0 < missing <= 8 and missing % 2 == 0:
        half = missing // 2
        images = np.pad(images, ((0, 0), (half, half), (half, half), (0, 0)))
    if images.shape[1:] == (size, size, channels):
        return images
    if images.shape[1:] == (size, size, 1):
        return np.repeat(images, channels, axis=-1)
    pictures = (Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image) for image in images)
    out = [resize(to_mode(picture, channels), spec) for picture in pictures]
    return np.stack(out) if out else np.zeros((0, size, size, channels), np.uint8)
