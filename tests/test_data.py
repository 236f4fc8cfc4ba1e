"""Image sources on real small files, batches that resume exactly, and augmentation against NumPy."""

import dataclasses
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from PIL import Image, ImageOps

from pujax.artifacts import Unit
from pujax.config import DataConfig, SourceConfig
from pujax.data.batches import index_batches, mixed_index_batches
from pujax.data.class_names import given_class_names
from pujax.data.decode import ImageSpec, decode, fit_arrays, try_decode
from pujax.data.reading import read_or_fail, reasons_of, remove_training_images, training_images, write_images
from pujax.data.sources import hold_out, open_source
from pujax.data.survey import contact_sheet, survey
from pujax.data.transforms import augment, normalize
from pujax.errors import UserError
from pujax.sharding import shard_batch

DATA = DataConfig(num_classes=2, image_size=16, channels=3)


def picture(size=(40, 24), mode="RGB", seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(np.kron(pixels[::8, ::8], np.ones((8, 8, 1), np.uint8))).convert(mode)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


# --- decoding ---


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK", "1", "LA"])
def test_every_mode_becomes_what_is_asked_for(mode):
    kind = "JPEG" if mode in ("CMYK", "RGB") else "PNG"
    for channels in (1, 3):
        image = decode(encoded(picture(mode=mode), kind), ImageSpec(16, channels))
        assert image.shape == (16, 16, channels) and image.dtype == np.uint8 and image.std() > 0


def test_short_side_is_resized_and_the_centre_kept():
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200
    assert (decode(encoded(Image.fromarray(wide)), ImageSpec(10, 3)) == 200).all()


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("channels", [1, 3])
def test_exif_rotation_is_applied(kind, orientation, channels):
    exif = Image.Exif()
    exif[0x0112] = orientation
    taken = picture((16, 16))
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(encoded(taken, kind, exif=exif)))).convert("L"))
    image = decode(encoded(taken, kind, exif=exif), ImageSpec(16, channels))
    grey = Image.fromarray(image.squeeze()).convert("L")
    assert abs(np.asarray(grey, int) - upright).mean() < 4


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("size", "crop"), [(28, 0.875), (32, 1.0), (64, 0.5), (200, 0.9)])
def test_the_centre_is_cropped_and_resized_as_pillow_does(kind, interpolation, size, crop):
    y, x = np.mgrid[:90, :130]
    smooth = np.stack([120 + 100 * np.sin(x / 30), 120 + 100 * np.cos(y / 25), 255 * x / 130], -1).astype(np.uint8)
    image = decode(encoded(Image.fromarray(smooth), kind, quality=95), ImageSpec(size, 3, crop, interpolation))
    side = round(size / crop)  # the usual way: all of it first, then the centre
    whole = ImageOps.fit(Image.fromarray(smooth), (side, side), Image.Resampling[interpolation.upper()])
    left = (side - size) // 2
    expected = np.asarray(whole)[left : left + size, left : left + size]
    assert abs(image.astype(int) - expected).mean() < 3


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF"])
def test_a_picture_that_claims_too_many_pixels_is_not_decoded(kind, monkeypatch):
    data = encoded(picture((200, 100)), kind)
    monkeypatch.setattr("pujax.data.decode.MAX_PIXELS", 20_799)
    assert try_decode(data, ImageSpec(16, 3)) == (
        None,
        "ValueError: 200x104 pixels; more than 20799 are not decoded",
    )
    monkeypatch.setattr("pujax.data.decode.MAX_PIXELS", 20_800)
    assert try_decode(data, ImageSpec(16, 3))[1] == ""


def test_transparency_is_black():
    pixels = np.full((16, 16, 4), 255, np.uint8)
    pixels[:, :8, 3] = 0
    image = decode(encoded(Image.fromarray(pixels)), ImageSpec(16, 3))
    assert (image[:, :8] == 0).all() and (image[:, 8:] == 255).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_what_is_cut_short_does_not_decode(kind):
    whole = encoded(picture((200, 200)), kind)
    assert try_decode(whole, ImageSpec(16, 3))[1] == ""
    for broken in (whole[: len(whole) // 2], whole[:30], b"", b"no image at all"):
        image, reason = try_decode(broken, ImageSpec(16, 3))
        assert image is None and "Error: " in reason and "\n" not in reason and len(reason) <= 200


def test_arrays_are_padded_repeated_or_resized():
    grey = np.random.default_rng(0).integers(0, 256, (3, 28, 28), np.uint8)
    padded = fit_arrays(grey, ImageSpec(32, 1))
    assert (padded[:, 2:30, 2:30, 0] == grey).all() and padded[:, :2].sum() == 0
    assert (fit_arrays(grey, ImageSpec(28, 3)) == grey[..., None]).all()
    assert fit_arrays(grey, ImageSpec(14, 3)).shape == (3, 14, 14, 3)


# --- sources ---


def every_image(source):
    return read_or_fail(source, np.arange(len(source)), "it")


def write_folder(root, per_class=3):
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            picture(seed=i).save(root / name / f"{i}.{'jpg' if i % 2 else 'png'}")
    (root / "cat" / "notes.txt").write_text("not an image")
    return root


def folder(path, **options):
    return SourceConfig(kind="folder", path=str(path), **options)


def test_folders_of_classes(tmp_path):
    source = open_source(folder(write_folder(tmp_path)), DATA)
    assert source.labels.tolist() == [0, 0, 0, 1, 1, 1] and source.class_names == ("cat", "dog")
    assert source.keys(np.array([0, 4])) == ["cat/0.png", "dog/1.jpg"]
    assert every_image(source).shape == (6, 16, 16, 3)
    fewer = open_source(folder(tmp_path, per_class=2), DATA)
    assert fewer.keys(np.arange(4)) == ["cat/0.png", "cat/1.jpg", "dog/0.png", "dog/1.jpg"]
    assert fewer.fingerprint != source.fingerprint
    first = open_source(folder(tmp_path, limit=2), DATA)
    assert first.class_names == ("cat", "dog") and first.keys(np.arange(2)) == ["cat/0.png", "cat/1.jpg"]
    pool = open_source(folder(tmp_path), DATA, labelled=False)
    assert pool.labels is None and len(pool) == 6


def test_a_flat_folder_is_a_pool_but_not_labelled(tmp_path):
    for i in range(3):
        picture(seed=i).save(tmp_path / f"{i}.png")
    assert len(open_source(folder(tmp_path), DATA, labelled=False)) == 3
    with pytest.raises(ValueError, match=r"has no labels; a labelled source needs one folder a class"):
        open_source(folder(tmp_path), DATA)


def test_wrong_class_counts_are_refused(tmp_path):
    write_folder(tmp_path)
    with pytest.raises(ValueError, match=r"2 classes \(cat, dog, ...\), but data.num_classes is 5"):
        open_source(folder(tmp_path), DataConfig(num_classes=5, image_size=16))
    np.savez(tmp_path / "a.npz", images=np.zeros((4, 16, 16, 3), np.uint8), labels=[0, 1, 2, 7])
    with pytest.raises(ValueError, match=r"labels 0 to 7, but data.num_classes is 2"):
        open_source(SourceConfig(kind="array", path=str(tmp_path / "a.npz")), DATA)


def test_an_image_that_does_not_decode_is_reported_by_name(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "dog" / "1.jpg").write_bytes(encoded(picture((200, 200)), "JPEG")[:400])
    source = open_source(folder(tmp_path), DATA)
    images, reasons = source.read(np.arange(6))
    assert [reason == "" for reason in reasons] == [True, True, True, True, False, True] and images[4].sum() == 0
    assert (reasons_of(source, np.arange(6)) == reasons).all()
    with pytest.raises(UserError, match=r"data.labelled: the image dog/1.jpg does not decode \(.*Error"):
        read_or_fail(source, np.arange(6), "data.labelled")


@pytest.mark.parametrize("kind", ["folder", "array"])
def test_missing_files_are_named(kind):
    with pytest.raises(UserError, match="nowhere"):
        open_source(SourceConfig(kind=kind, path="nowhere"), DATA)


def test_an_empty_folder_and_an_unset_source_are_refused(tmp_path):
    with pytest.raises(ValueError, match="there are no images in folder"):
        open_source(folder(tmp_path), DATA, labelled=False)
    with pytest.raises(ValueError, match="not set"):
        open_source(SourceConfig(), DATA)


def test_array_files(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)
    truth = np.array([True, False, True, False, False])
    np.savez(tmp_path / "a.npz", images=images, labels=np.array([0, 1, 0, 1, 1]), truth=truth)
    np.save(tmp_path / "b.npy", images)
    source = open_source(SourceConfig(kind="array", path=str(tmp_path / "a.npz"), limit=3), DATA)
    assert (every_image(source) == images[:3]).all() and source.truth.tolist() == [True, False, True]
    mapped = open_source(SourceConfig(kind="array", path=str(tmp_path / "b.npy")), DATA, labelled=False)
    assert (mapped.read(np.array([4, 1]))[0] == images[[4, 1]]).all()
    np.savez(tmp_path / "c.npz", pictures=images)
    with pytest.raises(ValueError, match="must hold `images`"):
        open_source(SourceConfig(kind="array", path=str(tmp_path / "c.npz")), DATA, labelled=False)


def test_no_pickle_is_loaded(tmp_path):
    np.savez(tmp_path / "evil.npz", images=np.array([{"a": 1}], object))
    with pytest.raises(ValueError, match="pickle"):
        open_source(SourceConfig(kind="array", path=str(tmp_path / "evil.npz")), DATA, labelled=False)


def test_embedded_sets_are_whole():
    data = DataConfig(num_classes=10, image_size=32, channels=1)
    labelled, pool, test = (open_source(SourceConfig(kind="embedded", name=n), data, labelled=n != "pool") for n in
                            ("labelled", "pool", "test"))  # fmt: skip
    assert np.bincount(labelled.labels).tolist() == [10] * 10 and labelled.class_names[9] == "Ankle boot"
    assert np.bincount(test.labels).tolist() == [1000] * 10
    assert len(pool) == 30_000 and pool.truth.mean() == 0.05 and pool.labels is None
    with pytest.raises(UserError, match=r"nothing embedded is called 'tset.npz.xz'"):
        open_source(SourceConfig(kind="embedded", name="tset"), data)


def test_a_damaged_embedded_file_is_refused(tmp_path, monkeypatch):
    (tmp_path / "pool.npz.xz").write_bytes(b"damaged")
    (tmp_path / "CHECKSUMS.json").write_text(json.dumps({"files": {"pool.npz.xz": {"sha256": "0" * 64}}}))
    monkeypatch.setattr("pujax.data.embedded.FOLDER", tmp_path)
    with pytest.raises(ValueError, match="checksum differs"):
        open_source(SourceConfig(kind="embedded", name="pool"), DATA, labelled=False)


def test_tfds_reads_prepared_data_without_tensorflow(tmp_path):
    import tensorflow_datasets as tfds

    class Pictures(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "label": tfds.features.ClassLabel(names=["cat", "dog"]),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(6):
                yield i, {"image": io.BytesIO(encoded(picture(seed=i))), "label": i % 2}

    Pictures(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    config = SourceConfig(kind="tfds", name="pictures", path=str(tmp_path), split="train")
    source = open_source(config, DATA)
    assert sorted(source.labels.tolist()) == [0, 0, 0, 1, 1, 1] and source.class_names == ("cat", "dog")
    images = every_image(source)
    expected = {decode(encoded(picture(seed=i)), ImageSpec(16, 3)).tobytes() for i in range(6)}
    assert {image.tobytes() for image in images} == expected
    assert len(open_source(dataclasses.replace(config, per_class=1), DATA)) == 2


def test_tfds_that_is_not_prepared_says_how(tmp_path):
    config = SourceConfig(kind="tfds", name="cifar10", path=str(tmp_path))
    with pytest.raises(ValueError, match=r"not prepared as ArrayRecord; .* `tfds build cifar10"):
        open_source(config, DATA)


def test_written_images_appear_whole_and_are_kept(tmp_path, monkeypatch):
    source = open_source(folder(write_folder(tmp_path / "in")), DATA)
    path = tmp_path / "out" / "images.npy"
    monkeypatch.setattr("pujax.data.reading._BATCH", 1)
    write_images(path, [(source, np.array([5, 0])), (source, np.array([2]))])
    whole = every_image(source)
    assert (np.load(path) == whole[[5, 0, 2]]).all()
    stamp = path.stat().st_mtime_ns
    write_images(path, [(source, np.array([1]))])
    assert path.stat().st_mtime_ns == stamp
    (tmp_path / "in" / "cat" / "0.png").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"training set: the image cat/0.png does not decode"):
        write_images(path.with_name("other.npy"), [(source, np.array([5, 0]))])
    assert [p.name for p in path.parent.iterdir()] == ["images.npy"]


def test_training_images_are_on_every_host_where_the_work_directory_is_in_a_store(tmp_path, monkeypatch):
    source = open_source(folder(write_folder(tmp_path / "in")), DATA)
    monkeypatch.setattr("pujax.data.reading.is_main_process", lambda: False)
    units = [Unit(epath.Path(where), tmp_path / name) for name, where in (("a", "s3://b/run"), ("b", tmp_path / "b"))]
    images = training_images(units[0], [(source, np.array([5, 0]))])
    assert (images == every_image(source)[[5, 0]]).all()
    with pytest.raises(FileNotFoundError):  # the main process of a local one has written none
        training_images(units[1], [(source, np.array([5, 0]))])
    remove_training_images(units[0])
    assert not units[0].images.exists()


# --- batches ---


def take(batches, count):
    return [next(batches)["index"].copy() for _ in range(count)]


def test_an_epoch_holds_every_example_once_and_drops_the_remainder():
    steps = np.concatenate(take(index_batches(103, 10, seed=1), 20))
    first, second = steps[:10].ravel(), steps[10:].ravel()
    assert len(set(first)) == len(set(second)) == 100
    assert first.tolist() != second.tolist()


def test_the_stream_does_not_depend_on_steps_per_call():
    one = np.concatenate(take(index_batches(50, 8, seed=2), 12))
    four = np.concatenate(take(index_batches(50, 8, seed=2, steps_per_call=4), 3))
    assert (one == four).all()


def test_processes_share_a_batch(monkeypatch):
    whole = take(index_batches(50, 8, seed=4), 3)
    parts = []
    monkeypatch.setattr("jax.process_count", lambda: 2)
    for process in range(2):
        monkeypatch.setattr("jax.process_index", lambda process=process: process)
        parts.append(take(index_batches(50, 8, seed=4), 3))
    assert np.array_equal(np.concatenate(parts, axis=2), whole)


def test_images_come_with_their_indices():
    images = np.arange(20, dtype=np.uint8)[:, None]
    chunk = next(index_batches(20, 4, seed=0, steps_per_call=2, images=images))
    assert (chunk["image"][..., 0] == chunk["index"]).all() and chunk["image"].shape == (2, 4, 1)


def test_mixed_batches_keep_their_shares():
    batches = mixed_index_batches(3, 40, num_positive_per_batch=5, num_pool_per_batch=7, seed=0)
    steps = np.concatenate(take(batches, 10))
    assert (steps[:, :5] < 3).all() and ((steps[:, 5:] >= 3) & (steps[:, 5:] < 43)).all()
    assert set(steps[:, :5].ravel()) == {0, 1, 2}
    assert len(set(steps[:5, 5:].ravel())) == 35


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(ValueError, match="batch_size 64 is larger than the 50 images"):
        index_batches(50, 64, seed=0)


# --- transforms ---


def test_crops_and_flips_against_numpy(mesh):
    images = np.random.default_rng(0).integers(0, 256, (16, 12, 12, 3), np.uint8)
    rng = jax.random.key(5)
    out = jax.jit(lambda r, x: augment(r, x, pad=3, flip=True))(rng, shard_batch(mesh, images))
    crop_rng, flip_rng = jax.random.split(rng)
    offsets = np.asarray(jax.random.randint(crop_rng, (16, 2), 0, 7))
    flips = np.asarray(jax.random.bernoulli(flip_rng, shape=(16, 1, 1, 1))).ravel()
    padded = np.pad(images, ((0, 0), (3, 3), (3, 3), (0, 0)))
    expected = np.stack([p[y : y + 12, x : x + 12] for p, (y, x) in zip(padded, offsets)])
    expected[flips] = expected[flips][:, :, ::-1]
    assert out.dtype == jnp.uint8 and (np.asarray(out) == expected).all()
    assert 0 < flips.sum() < 16 and len(set(map(tuple, offsets))) > 4


def test_no_augmentation_changes_nothing():
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), np.uint8)
    assert (augment(jax.random.key(0), jnp.asarray(images), pad=0, flip=False) == images).all()


def test_normalize_by_channel():
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    expected = (images.astype(np.float64) / 255 - [0.4, 0.5, 0.6]) / [0.2, 0.3, 0.4]
    np.testing.assert_allclose(normalize(jnp.asarray(images), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)), expected, atol=1e-5)


# --- class names ---


def test_labels_follow_the_order_of_given_class_names(tmp_path):
    config = folder(write_folder(tmp_path / "in"))
    own = open_source(config, DATA)
    turned = open_source(config, DATA, class_names=("dog", "cat"))
    assert own.class_names == ("cat", "dog") and turned.class_names == ("dog", "cat")
    assert (turned.labels == 1 - own.labels).all() and turned.fingerprint != own.fingerprint
    assert open_source(config, DATA, class_names=("cat", "dog")).fingerprint == own.fingerprint
    pool = open_source(config, DATA, labelled=False, class_names=("dog", "cat"))
    assert pool.labels is None and pool.fingerprint == own.fingerprint
    some = open_source(config, dataclasses.replace(DATA, num_classes=3), class_names=("cow", "dog", "cat"))
    assert set(some.labels) == {1, 2}
    with pytest.raises(UserError, match="has a class 'cat', which is none of the 2 of the teacher"):
        open_source(config, DATA, class_names=("dog", "horse"))


def test_class_names_come_from_the_options_or_from_a_file(tmp_path):
    def given(*names, num_classes=2):
        return given_class_names(DataConfig(num_classes=num_classes, class_names=names))

    listed = tmp_path / "names.txt"
    listed.write_text("a cat\n\n dog \n")
    assert given() is None and given("cat", "dog") == ("cat", "dog")
    assert given(str(listed)) == ("a cat", "dog")
    for names, count, message in [
        (["nowhere.txt"], 2, "no text file that can be read"),
        (["cat", "dog"], 3, "gives 2 names, but data.num_classes is 3"),
        (["cat", "cat"], 2, "gives 'cat' twice"),
    ]:
        with pytest.raises(UserError, match=message):
            given(*names, num_classes=count)


# --- a test set out of the labelled images ---


def test_images_held_out_are_spread_over_every_class(tmp_path):
    labels = np.repeat(np.arange(2), [10, 3]).astype(np.int32)
    images = np.arange(13, dtype=np.uint8)[:, None, None, None] * np.ones((1, 16, 16, 3), np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=labels)
    source = open_source(SourceConfig(kind="array", path=str(tmp_path / "a.npz")), DATA)
    for share, expected in [(0.2, [2, 7, 11]), (0.01, [5, 11]), (0.99, [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 12])]:
        kept, held = hold_out(source, share)
        assert [int(key) for key in held.keys(np.arange(len(held)))] == expected
        assert sorted([*map(int, kept.keys(np.arange(len(kept)))), *expected]) == list(range(13))
        assert set(kept.labels) == set(held.labels) == {0, 1}
    with pytest.raises(UserError, match="class 1 has one labelled image"):
        hold_out(source.take(np.arange(11)), 0.2)


def test_a_survey_tells_what_is_in_a_folder(tmp_path):
    root = write_folder(tmp_path / "in", per_class=4)
    (root / "cat" / "x.jpg").write_bytes(b"<html>")
    seen = survey(open_source(folder(root), DATA, labelled=False), 100)
    assert seen.sampled == 9 and len(seen.images) == 8 and list(seen.reasons) == ["cat/x.jpg"]
    assert seen.kinds == {"PNG RGB": 4, "JPEG RGB": 4} and seen.sides == (24, 24)
    assert survey(open_source(folder(root), DATA, labelled=False), 3).sampled == 3
    sheet = Image.open(io.BytesIO(contact_sheet({"a": seen.images, "b": seen.images[:1]}, columns=5, side=32)))
    assert sheet.size == (160, 20 + 64 + 20 + 32)
    shown = np.asarray(sheet.crop((32, 20, 64, 52)).resize((16, 16)), int)
    assert abs(shown - seen.images[1]).mean() < 40
