"""Image files to uint8 arrays of one size. What does not decode in full is reported, never filled with grey."""

import io
import logging
import math
import re
import warnings
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"})
_MODES = {1: "L", 3: "RGB"}
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
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

    EXIF rotation is applied; transparency is laid on black; JPEG is decoded at reduced scale where that suffices.

    Raises:
        Exception: of any kind, if `data` is no whole image.
    """
    _check_whole(data)
    with Image.open(io.BytesIO(data)) as image:
        wanted = math.ceil(spec.size / spec.crop)
        image.draft(_MODES[spec.channels], (wanted, wanted))
        image.load()  # raises on truncated data
        return resize(to_mode(ImageOps.exif_transpose(image), spec.channels), spec)


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
