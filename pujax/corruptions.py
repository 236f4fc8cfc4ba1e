"""Images made worse in six ways, each at five severities: noise, blur, JPEG, brightness, contrast, pixels.

What a network still recognises of them tells how it will do on a phone's own pictures. The ways, and the constants for
32 and for 224 pixels, are those of CIFAR-10-C and ImageNet-C; for sizes between these they are interpolated.

The same image always becomes the same one: its noise is drawn from its own pixels.

Reference: Hendrycks and Dietterich, "Benchmarking neural network robustness to common corruptions and perturbations",
ICLR 2019.

Note: here images are corrupted as a network sees them, after they were brought to its size, and grey ones too. Numbers
compare with one another, not with those published for ImageNet-C, whose files went through JPEG a second time.
"""

import io
import math
import zlib
from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image

SEVERITIES = 5
_SMALL, _LARGE = 32, 224  # pixels, for which the constants are given


def corrupt(image: np.ndarray, name: str, severity: int) -> np.ndarray:
    """Return an image made worse.

    Args:
        image: uint8 [H, W, 1 or 3].
        name: a key of `CORRUPTIONS`.
        severity: 1, the least, to 5.

    Returns:
        uint8 [H, W, C].
    """
    change, small, large = CORRUPTIONS[name]
    share = min(max(math.log(len(image) / _SMALL) / math.log(_LARGE / _SMALL), 0.0), 1.0)
    strength = small[severity - 1] ** (1 - share) * large[severity - 1] ** share
    return change(image, strength)


def gaussian_noise(image: np.ndarray, scale: float) -> np.ndarray:
    """Add normal noise of a standard deviation, where white is 1."""
    rng = np.random.default_rng(zlib.crc32(np.ascontiguousarray(image).data))
    return _as_pixels(image / 255 + scale * rng.standard_normal(image.shape, np.float32))


def gaussian_blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Blur with a normal kernel of `sigma` pixels."""
    side = 2 * math.ceil(4 * sigma) + 1
    blurred = cv2.GaussianBlur(
        image.astype(np.float32) / 255, (side, side), sigmaX=sigma, borderType=cv2.BORDER_REPLICATE
    )
    return _as_pixels(blurred.reshape(image.shape))


def jpeg(image: np.ndarray, quality: float) -> np.ndarray:
    """Compress as JPEG of a quality, 1 to 95."""
    file = io.BytesIO()
    _picture(image).save(file, "JPEG", quality=round(quality))
    return np.asarray(Image.open(file)).reshape(image.shape)


def brightness(image: np.ndarray, amount: float) -> np.ndarray:
    """Add to the value of hue, saturation and value, where white is 1."""
    pixels = image / 255
    value = pixels.max(axis=-1, keepdims=True)
    brighter = np.minimum(value + amount, 1)
    # Of one hue and saturation, colours are in proportion to their value; black, which has neither, becomes grey.
    return _as_pixels(np.where(value > 0, pixels / np.maximum(value, 1e-9), 1) * brighter)


def contrast(image: np.ndarray, share: float) -> np.ndarray:
    """Bring every channel nearer to its mean; `share` is what is left of the distance."""
    pixels = image / 255
    mean = pixels.mean(axis=(0, 1), keepdims=True)
    return _as_pixels((pixels - mean) * share + mean)


def pixelate(image: np.ndarray, share: float) -> np.ndarray:
    """Make the image smaller, to a share of its size, and as large again by repeating pixels."""
    picture = _picture(image)
    small = picture.resize([max(int(share * side), 1) for side in picture.size], Image.Resampling.BOX)
    return np.asarray(small.resize(picture.size, Image.Resampling.BOX)).reshape(image.shape)


def _picture(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def _as_pixels(values: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)


_Change = Callable[[np.ndarray, float], np.ndarray]
_Strengths = tuple[float, float, float, float, float]
# name -> (what is done, how strongly at 32 pixels, at 224).
CORRUPTIONS: dict[str, tuple[_Change, _Strengths, _Strengths]] = {
    "gaussian_noise": (gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38)),
    "gaussian_blur": (gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1.0), (1.0, 2.0, 3.0, 4.0, 6.0)),
    "jpeg": (jpeg, (80, 65, 58, 50, 40), (25, 18, 15, 10, 7)),
    "brightness": (brightness, (0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": (contrast, (0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05)),
    "pixelate": (pixelate, (0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25)),
}
