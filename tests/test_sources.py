"""What image files and array files get wrong in the wild: it is refused or reported, never trained on."""

import io
import random
import struct

import numpy as np
import pytest
from PIL import Image

from pujax.config import DataConfig, SourceConfig
from pujax.data.decode import ImageSpec, decode, try_decode
from pujax.data.sources import open_source
from pujax.errors import UserError

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
    whole = decode(data, ImageSpec(16, 3))
    for stop in {*range(0, len(data), len(data) // 40), *range(len(data) - 8, len(data))}:
        image, _ = try_decode(data[:stop], ImageSpec(16, 3))
        assert image is None or (image == whole).all(), f"cut at {stop} of {len(data)}"


@pytest.mark.parametrize(
    ("kind", "options"),
    [("JPEG", {}), ("JPEG", {"quality": 95, "subsampling": 0}), ("JPEG", {"progressive": True}), ("PNG", {})],
)
def test_a_download_that_ends_in_zeros_does_not_decode(kind, options):
    data = encoded(picture(), kind, **options)
    for stop in range(len(data) // 4, len(data) - 12, len(data) // 40):
        assert try_decode(data[:stop] + bytes(len(data) - stop), ImageSpec(16, 3))[0] is None


@pytest.mark.parametrize(
    "rest", [bytes(100), b"\xff\xd8 a second picture \xff\xda ... \xff\xd9"], ids=["zeros", "picture"]
)
def test_what_follows_a_whole_jpeg_does_no_harm(rest):
    data = encoded(picture(), "JPEG")
    assert (decode(data + rest, ImageSpec(16, 3)) == decode(data, ImageSpec(16, 3))).all()


def test_a_png_with_one_wrong_bit_in_its_pixels_does_not_decode():
    data = encoded(picture(), "PNG")
    for at in range(len(data) // 10, len(data) - 20, len(data) // 50):
        damaged = bytearray(data)
        damaged[at] ^= 1
        assert try_decode(bytes(damaged), ImageSpec(16, 3))[0] is None, f"byte {at} of {len(data)}"


def exif(*entries):
    """EXIF data of entries (tag, kind, count, value), right or wrong."""
    packed = b"".join(struct.pack(">HHI4s", *entry) for entry in entries)
    return b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", len(entries)) + packed + bytes(68)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_odd_files_are_their_own_fault_and_nobody_elses(kind):
    """Damaged metadata makes Pillow raise TypeError, struct.error and more; none may reach the worker's loop."""
    tags = Image.Exif()
    tags[0x0112], tags[0x010E] = 6, "a description"
    data, rng = encoded(picture(), kind, exif=tags), random.Random(0)
    for _ in range(300):
        damaged = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 4))):
            damaged[rng.randrange(min(len(damaged), 200))] = rng.choice((0, 1, 2, 255, rng.randrange(256)))
        image, reason = try_decode(bytes(damaged), ImageSpec(16, 3))
        assert (image is None) == (reason != "")


@pytest.mark.parametrize("kind", range(17))
def test_an_orientation_of_a_wrong_kind_does_no_harm(kind):
    for count in (0, 1, 2, 100, 2**31):
        data = encoded(picture(), "JPEG", exif=exif((0x0112, kind, count, b"\0\6\0\6")))
        image, reason = try_decode(data, ImageSpec(16, 3))
        assert (image is None) == (reason != "")


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
@pytest.mark.parametrize(
    "entry",
    [(0x0100, 1, 1, b"\1\0\0\0"), (0x010E, 5, 1, b"\0\0\0\1"), (0x011A, 2, 1, b"1\0\0\0")],
    ids=["width", "description", "resolution"],
)
def test_broken_exif_beside_the_orientation_does_no_harm(kind, entry):
    turned = (0x0112, 3, 1, b"\0\6\0\0")
    sound = decode(encoded(picture(), kind, exif=exif(turned)), ImageSpec(16, 3))
    assert (decode(encoded(picture(), kind, exif=exif(turned, entry)), ImageSpec(16, 3)) == sound).all()


def test_what_pillow_thinks_of_a_file_stays_off_stderr(caplog, capfd, recwarn):
    data = bytearray(encoded(picture(), "TIFF"))
    entry = data.index(struct.pack("<HH", 277, 3))  # SamplesPerPixel
    data[entry + 8 : entry + 10] = struct.pack("<H", 2048)
    assert try_decode(bytes(data), ImageSpec(16, 3))[0] is None
    broken = encoded(picture(), "JPEG", exif=exif((0x0112, 3, 1, b"\0\1\0\0"))[:-70])
    try_decode(broken, ImageSpec(16, 3))
    assert capfd.readouterr().err == "" and not caplog.records and len(recwarn) == 0


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_keep_their_brightness(kind, channels):
    deep = np.arange(0, 65536, 256, np.uint16).reshape(16, 16)
    image = decode(encoded(Image.fromarray(deep), kind), ImageSpec(16, channels))
    assert (image == np.arange(256).reshape(16, 16, 1)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_of_unknown_range_do_not_decode(dtype):
    image, reason = try_decode(encoded(Image.fromarray(np.ones((16, 16), dtype)), "TIFF"), ImageSpec(16, 1))
    assert image is None and "no known range" in reason


def test_a_file_that_vanishes_is_unreadable_and_no_indices_give_no_images(tmp_path):
    picture().save(tmp_path / "a.png")
    source = open_source(SourceConfig(kind="folder", path=str(tmp_path)), DATA, labelled=False)
    images, reasons = source.read(np.arange(0))
    assert images.shape == (0, 16, 16, 3) and images.dtype == np.uint8 and reasons.shape == (0,)
    (tmp_path / "a.png").unlink()
    assert "No such file" in source.read(np.arange(1))[1][0]


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


def test_array_keys_are_positions_in_the_file(tmp_path):
    config = save(tmp_path / "a.npz", images=IMAGES, labels=np.array([1, 1, 0, 0]))
    config.per_class = 1
    source = open_source(config, DATA)
    assert source.keys(np.arange(2)) == ["0", "2"]


@pytest.mark.parametrize("name", ["images", "labels", "truth"])
def test_a_change_anywhere_in_an_array_file_changes_its_fingerprint(tmp_path, name):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (1000, 8, 8), np.uint8)
    columns = {"images": images, "labels": np.arange(1000) % 2, "truth": np.arange(1000) % 3 == 0}
    before = open_source(save(tmp_path / "a.npz", **columns), DATA).fingerprint
    other_shape = columns | {"images": images.reshape(1000, 4, 16)}
    assert open_source(save(tmp_path / "d.npz", **other_shape), DATA).fingerprint != before
    assert open_source(save(tmp_path / "b.npz", **columns), DATA).fingerprint == before
    changed = columns[name].copy()
    changed[537] = ~changed[537] if name == "truth" else 1 - changed[537] % 2
    assert open_source(save(tmp_path / "c.npz", **columns | {name: changed}), DATA).fingerprint != before


def test_class_names_of_an_array_file_are_kept(tmp_path):
    config = save(tmp_path / "a.npz", images=IMAGES, labels=np.arange(4) % 2, class_names=["cat", "dog"])
    assert open_source(config, DATA).class_names == ("cat", "dog")
    config = save(tmp_path / "b.npz", images=IMAGES, labels=np.arange(4) % 2, class_names=["cat"])
    with pytest.raises(UserError, match=r"has 1 classes \(cat, ...\), but data.num_classes is 2"):
        open_source(config, DATA)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "embedded", "name": "pool", "path": "heap"}, "path is 'heap' for a data source of kind embedded"),
        (
            {"kind": "folder", "name": "pool"},
            "name is 'pool' for a data source of kind folder, .* set kind to embedded",
        ),
        ({"kind": "array", "split": "test"}, "split is 'test' for a data source of kind array"),
    ],
)
def test_options_that_a_kind_does_not_use_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        open_source(SourceConfig(**options), DATA, labelled=False)
