"""What image files and array files get wrong in the wild: it is refused or reported, never trained on."""

import io

import numpy as np
import pytest
from PIL import Image

from pujax.config import DataConfig, SourceConfig
from pujax.data.decode import decode
from pujax.data.sources import open_source

DATA = DataConfig(num_classes=2, image_size=16, channels=3)
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture():
    return Image.fromarray(IMAGES[0]).resize((96, 64), Image.Resampling.BICUBIC)


def array(path, **options):
    return SourceConfig(kind="array", path=str(path), **options)


def save(path, **arrays):
    np.savez(path, **arrays)
    return array(path)


@pytest.mark.parametrize("kind", ["JPEG", "progressive", "PNG", "GIF", "BMP", "WEBP", "TIFF"])
def test_a_file_cut_anywhere_is_unreadable_or_whole(kind):
    options = {"progressive": True} if kind == "progressive" else {}
    data = encoded(picture(), "JPEG" if options else kind, **options)
    whole = decode(data, size=16, channels=3)
    assert whole is not None
    for stop in {*range(0, len(data), len(data) // 60), *range(len(data) - 8, len(data))}:
        image = decode(data[:stop], size=16, channels=3)
        assert image is None or (image == whole).all(), f"cut at {stop} of {len(data)}"


@pytest.mark.parametrize(
    ("kind", "options"),
    [("JPEG", {}), ("JPEG", {"quality": 95, "subsampling": 0}), ("JPEG", {"progressive": True}), ("PNG", {})],
)
def test_a_download_that_ends_in_zeros_does_not_decode(kind, options):
    data = encoded(picture(), kind, **options)
    for stop in range(len(data) // 4, len(data) - 12, len(data) // 40):
        assert decode(data[:stop] + bytes(len(data) - stop), size=16, channels=3) is None


@pytest.mark.parametrize(
    "rest", [bytes(100), b"\xff\xd8 a second picture \xff\xda ... \xff\xd9"], ids=["zeros", "picture"]
)
def test_what_follows_a_whole_jpeg_does_no_harm(rest):
    data = encoded(picture(), "JPEG")
    assert (decode(data + rest, size=16, channels=3) == decode(data, size=16, channels=3)).all()


def test_a_png_with_one_wrong_bit_in_its_pixels_does_not_decode():
    data = encoded(picture(), "PNG")
    for at in range(len(data) // 10, len(data) - 20, len(data) // 50):
        damaged = bytearray(data)
        damaged[at] ^= 1
        assert decode(bytes(damaged), size=16, channels=3) is None, f"byte {at} of {len(data)}"


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_keep_their_brightness(kind, channels):
    deep = np.arange(0, 65536, 256, np.uint16).reshape(16, 16)
    image = decode(encoded(Image.fromarray(deep), kind), size=16, channels=channels)
    assert (image == np.arange(256).reshape(16, 16, 1)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_of_unknown_range_do_not_decode(dtype):
    assert decode(encoded(Image.fromarray(np.ones((16, 16), dtype)), "TIFF"), size=16, channels=1) is None


def test_a_file_that_vanishes_is_unreadable_and_no_indices_give_no_images(tmp_path):
    picture().save(tmp_path / "a.png")
    source = open_source(SourceConfig(kind="folder", path=str(tmp_path)), DATA, labelled=False)
    images, readable = source.read(np.arange(0))
    assert images.shape == (0, 16, 16, 3) and images.dtype == np.uint8 and readable.shape == (0,)
    (tmp_path / "a.png").unlink()
    assert source.read(np.arange(1))[1].tolist() == [False]


@pytest.mark.parametrize("name", ["a.npz", "a.npy"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 junk", b"\x93NUMPY\x01\x00"], ids=["empty", "zip", "npy"])
def test_files_that_hold_no_arrays_are_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} is damaged, or no \.npz or \.npy file"):
        open_source(array(tmp_path / name), DATA, labelled=False)


def test_the_content_of_an_array_file_counts_and_not_its_suffix(tmp_path):
    np.save(tmp_path / "a.npy", IMAGES)
    (tmp_path / "a.npy").rename(tmp_path / "a.npz")
    source = open_source(array(tmp_path / "a.npz"), DATA, labelled=False)
    assert (source.read(np.arange(4))[0] == IMAGES).all()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0.0, 0.7, 1.0, 1.9]), r"labels float64 \[4\]; they must be whole numbers"),
        (np.eye(2, dtype=int)[[0, 1, 0, 1]], r"labels int64 \[4, 2\]"),
        (np.array(list("abab")), r"labels <U1 \[4\]"),
        (np.array([0, 1, 0]), r"labels int64 \[3\].* one for each of the 4 images"),
    ],
    ids=["fractions", "one-hot", "text", "too few"],
)
def test_labels_that_are_no_class_numbers_are_refused(tmp_path, labels, message):
    with pytest.raises(ValueError, match=message):
        open_source(save(tmp_path / "a.npz", images=IMAGES, labels=labels), DATA)


def test_channels_first_is_refused(tmp_path):
    config = save(tmp_path / "a.npz", images=IMAGES.transpose(0, 3, 1, 2).copy())
    with pytest.raises(ValueError, match=r"shape \(4, 3, 16, 16\); channels come last"):
        open_source(config, DATA, labelled=False)


def test_per_class_is_refused_where_there_are_no_labels(tmp_path):
    config = save(tmp_path / "a.npz", images=IMAGES)
    config.per_class = 1
    with pytest.raises(ValueError, match=r"per_class is 1 for array .* use limit"):
        open_source(config, DATA, labelled=False)


def test_a_limit_does_not_read_a_mapped_file(tmp_path):
    np.save(tmp_path / "a.npy", IMAGES)
    source = open_source(array(tmp_path / "a.npy", limit=2), DATA, labelled=False)
    assert len(source) == 2 and isinstance(source.images, np.memmap)
    assert source.fingerprint != open_source(array(tmp_path / "a.npy"), DATA, labelled=False).fingerprint


def test_tfds_mock_of_a_real_dataset_is_read_and_its_features_are_checked(monkeypatch):
    import tensorflow_datasets as tfds

    config = SourceConfig(kind="tfds", name="cifar10", split="train")
    with tfds.testing.mock_data(num_examples=5):
        source = open_source(config, DATA, labelled=False)
        assert len(source) == 5 and source.keys(np.array([3])) == ["cifar10/train/3"]
        with pytest.raises(ValueError, match="has no feature 'image'"):
            open_source(SourceConfig(kind="tfds", name="imdb_reviews", split="train"), DATA, labelled=False)
