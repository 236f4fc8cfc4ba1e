"""Images made worse: each way against another implementation, and what all of them must keep."""

import colorsys
import io

import numpy as np
import pytest
import scipy.ndimage
from PIL import Image

from pujax.corruptions import CORRUPTIONS, brightness, contrast, corrupt, gaussian_blur, gaussian_noise, jpeg, pixelate
from pujax.data.embedded import load_embedded


def photo(size, channels=3):
    """A picture with structure at every scale."""
    rng = np.random.default_rng(size + channels)
    noise = scipy.ndimage.gaussian_filter(rng.normal(size=(size, size, channels)), (size / 12, size / 12, 0))
    noise += 0.3 * scipy.ndimage.gaussian_filter(rng.normal(size=noise.shape), (1, 1, 0))
    return np.uint8(255 * (noise - noise.min()) / np.ptp(noise))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [28, 64, 224])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_keeps_the_form_and_grows_with_its_severity(name, size, channels):
    image = photo(size, channels)
    found = [corrupt(image, name, severity) for severity in range(1, 6)]
    assert all(out.shape == image.shape and out.dtype == np.uint8 for out in found)
    away = [np.abs(out.astype(float) - image).mean() for out in found]
    assert away == sorted(away) and away[0] > 0 and away[4] > away[0]
    np.testing.assert_array_equal(corrupt(image.copy(), name, 3), found[2])  # the same again


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_strengths_are_those_of_the_paper_and_between_them(name, monkeypatch):
    _, small, large = CORRUPTIONS[name]
    monkeypatch.setitem(CORRUPTIONS, name, (lambda image, strength: strength, small, large))
    for size, expected in ((28, small), (32, small), (224, large), (300, large)):
        assert corrupt(np.zeros((size, size, 1)), name, 2) == pytest.approx(expected[1])
    between = corrupt(np.zeros((85, 85, 1)), name, 2)  # half way, as sizes multiply
    assert between == pytest.approx((small[1] * large[1]) ** 0.5, rel=0.01)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("sigma", [0.4, 1.0, 6.0])
def test_blur_is_scipys(sigma, channels):
    image = photo(40, channels)
    expected = scipy.ndimage.gaussian_filter(image / 255, (sigma, sigma, 0), mode="nearest", truncate=4)
    assert np.abs(gaussian_blur(image, sigma) - 255 * expected).max() < 1.5


def test_brightness_is_that_of_hue_saturation_and_value():
    image = photo(8)
    image[0, 0], image[0, 1] = 0, 255
    for pixel, found in zip(image.reshape(-1, 3), brightness(image, 0.2).reshape(-1, 3)):
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel / 255)
        expected = colorsys.hsv_to_rgb(hue, saturation, min(value + 0.2, 1))
        np.testing.assert_allclose(found, 255 * np.array(expected), atol=0.51)
    assert brightness(np.full((2, 2, 1), 100, np.uint8), 0.1)[0, 0, 0] == round(100 + 25.5)


def test_contrast_shrinks_the_distance_to_the_mean():
    image = np.uint8([[[0], [100]], [[100], [200]]])
    assert contrast(image, 0.5).ravel().tolist() == [50, 100, 100, 150]


def test_noise_has_its_size_and_is_of_the_images_own():
    grey = np.full((200, 200, 3), 128, np.uint8)
    noise = gaussian_noise(grey, 0.1).astype(float) - 128
    assert noise.std() == pytest.approx(25.5, rel=0.02) and abs(noise.mean()) < 0.3
    other = gaussian_noise(grey + 1, 0.1).astype(float) - 129
    assert abs(np.corrcoef(noise.ravel(), other.ravel())[0, 1]) < 0.02


def test_pixels_become_blocks():
    image = photo(32, 1)
    out = pixelate(image, 0.5)
    expected = image.reshape(16, 2, 16, 2).mean((1, 3)).repeat(2, 0).repeat(2, 1)
    assert np.abs(out[..., 0] - expected).max() <= 1  # Pillow rounds rows, then columns


@pytest.mark.parametrize("quality", [7, 40, 80])
def test_jpeg_is_what_a_file_of_that_quality_holds(quality):
    image = load_embedded("test")["images"][0]
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    np.testing.assert_array_equal(jpeg(image[..., None], quality)[..., 0], np.asarray(Image.open(file)))
