"""Tables, records and pickles of images: what is read lazily, and what is refused by name."""

import contextlib
import io
import json
import os
import pickle
import shutil

import formats
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pujax.config import DataConfig, SourceConfig
from pujax.data.sources import array_record, open_source, parquet
from pujax.data.sources.array_record import parse_example
from pujax.data.sources.plain_pickle import load_plain_pickle
from pujax.errors import UserError

DATA = DataConfig(num_classes=2, image_size=32, channels=1)
NAMES, FILES, LABELS, PIXELS = formats.real_images(40)


def opened(kind, path, labelled=False, **options):
    return open_source(SourceConfig(kind=kind, path=str(path), **options), DATA, labelled=labelled)


def all_pixels(source):
    images, reasons = source.read(np.arange(len(source)))
    assert not any(reasons)
    return images


# --- lists ---


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.png\nb.png\n", r"list.csv has no column of paths .*, but a.png; give the names of its columns"),
        ("path,label\na.png,1\n,0\n", r"list.csv: row 2 has no path"),
        ("path\na.png\na.png\n", r"list.csv lists a.png twice"),
        ("path\nnowhere.png\n", r"its first image .*/nowhere.png is not there; relative paths begin at the folder"),
        ("path,label\na.png,1\nb.png\n", r"list.csv is damaged, or no CSV or Parquet table: .*"),
        ("", r"list.csv is damaged, or no CSV"),
        ("path,label\na.png,1.5\n", r"labels of type double; give whole numbers from 0, or class names"),
        ("path,label\na.png,\nb.png,1\n", r"1 of 2 images have no label, the first is number 0"),
    ],
)
def test_lists_with_mistakes_are_named(tmp_path, text, message):
    (tmp_path / "a.png").write_bytes(FILES[0])
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        opened("list", tmp_path / "list.csv", labelled=True)


def test_a_list_that_is_no_file_is_named(tmp_path):
    for path, message in (("", "has no path"), (tmp_path, "is a folder"), (tmp_path / "no.csv", "there is nothing at")):
        with pytest.raises(UserError, match=message):
            opened("list", path)


def test_a_list_holds_paths_of_all_places(tmp_path, bucket):
    bucket.objects["x.png"] = FILES[4]
    (tmp_path / "1.png").write_bytes(FILES[0])
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "2,3.png").write_bytes(FILES[2])
    lines = ["1.png", '"sub/2,3.png"', "s3://bucket/x.png", "gone.png", "s3://bucket/gone.png"]
    (tmp_path / "list.csv").write_text("image\n" + "\n".join(lines))
    source = opened("list", tmp_path / "list.csv")
    images, reasons = source.read(np.arange(5))
    assert (images[:3] == PIXELS[[0, 2, 4], ..., :1]).all() and reasons[:3].tolist() == [""] * 3
    assert all("No such file" in reason and "gone.png" in reason for reason in reasons[3:])
    assert source.keys(np.array([1, 2])) == ["sub/2,3.png", "s3://bucket/x.png"]
    bucket.objects["lists/list.csv"], bucket.objects["lists/1.png"] = b"path\n1.png\n", FILES[0]
    assert (all_pixels(opened("list", "s3://bucket/lists/list.csv")) == PIXELS[:1, ..., :1]).all()


def test_names_of_classes_follow_the_order_of_the_teacher(tmp_path):
    formats.write_folder(tmp_path, NAMES, FILES)
    formats.write_list(tmp_path / "list.csv", NAMES, LABELS)
    source = open_source(SourceConfig(kind="list", path=f"{tmp_path}/list.csv"), DATA, class_names=("wear", "digits"))
    assert source.labels.tolist() == (1 - LABELS).tolist()


# --- Parquet ---


def test_a_row_group_is_decoded_once_in_a_sequential_read(tmp_path, monkeypatch):
    formats.write_parquet(tmp_path / "a.parquet", NAMES, FILES, LABELS, row_group_size=7)
    read, real = [], parquet._ParquetRows._read_group
    monkeypatch.setattr(parquet._ParquetRows, "_read_group", lambda self, *at: read.append(at) or real(self, *at))
    source = opened("parquet", tmp_path / "a.parquet")
    assert not read  # only the footer was read
    for start in range(0, 40, 5):
        source.read(np.arange(start, start + 5))
    assert read == [(0, group) for group in range(6)]
    monkeypatch.setattr(parquet, "_KEPT", 1)  # no more than the newest one is kept
    few = opened("parquet", tmp_path / "a.parquet")
    assert (all_pixels(few) == PIXELS[..., :1]).all() and len(few.files.cache._found) == 1


def test_a_read_that_fails_is_tried_again_and_names_the_file(tmp_path, monkeypatch):
    formats.write_parquet(tmp_path / "a.parquet", NAMES, FILES, LABELS)
    source = opened("parquet", tmp_path / "a.parquet")
    (tmp_path / "a.parquet").rename(tmp_path / "b.parquet")
    with pytest.raises(OSError, match=r"a.parquet"):
        source.read(np.arange(3))
    (tmp_path / "b.parquet").rename(tmp_path / "a.parquet")
    assert (all_pixels(source) == PIXELS[..., :1]).all()


def test_rows_without_an_image_are_unreadable_and_the_others_are_not(tmp_path):
    jpg = [FILES[0], None, b"", FILES[2]]  # img2dataset leaves nothing where a download failed
    pq.write_table(pa.table({"jpg": pa.array(jpg, pa.binary())}), tmp_path / "a.parquet")
    images, reasons = opened("parquet", tmp_path / "a.parquet").read(np.arange(4))
    assert [reason == "" for reason in reasons] == [True, False, False, True]
    assert (images[[0, 3]] == PIXELS[[0, 2], ..., :1]).all()


@pytest.mark.parametrize("damage", ["cut", "junk", "empty", "no images", "none"])
def test_parquet_files_with_mistakes_are_named(tmp_path, damage):
    path = tmp_path / "a.parquet"
    formats.write_parquet(path, NAMES, FILES, LABELS)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage in ("junk", "empty"):
        path.write_bytes(b"junk" * 100 if damage == "junk" else b"")
    elif damage == "no images":
        pq.write_table(pa.table({"path": NAMES, "image": NAMES}), path)
    else:
        path.unlink()
    message = {
        "no images": r"a.parquet has no column of encoded images .*, but path, image; for a list of paths give list:",
        "none": "there is nothing at",
    }.get(damage, r"a.parquet is damaged, or no Parquet file: .*; bring it again")
    with pytest.raises(UserError, match=message):
        opened("parquet", path)


def test_a_changed_shard_changes_the_fingerprint(tmp_path):
    formats.write_parquet(tmp_path / "a.parquet", NAMES, FILES, LABELS)
    formats.write_records(tmp_path / "a.array_record", FILES)
    for kind, name in (("parquet", "a.parquet"), ("array_record", "a.array_record")):
        before, status = opened(kind, tmp_path / name).fingerprint, (tmp_path / name).stat()
        os.utime(tmp_path / name, ns=(0, status.st_mtime_ns + 1))
        assert opened(kind, tmp_path / name).fingerprint != before


# --- saved by Hugging Face's datasets ---


def test_saved_datasets_with_mistakes_are_named(tmp_path):
    folder = tmp_path / "saved"
    with pytest.raises(UserError, match=r"saved' is no dataset that .* has saved .*; call save_to_disk on it"):
        opened("hf", folder)
    formats.write_saved(folder, NAMES, FILES, LABELS)
    with pytest.raises(UserError, match=r"is one dataset, without splits; leave split 'test' out"):
        opened("hf", folder, split="test")
    before = opened("hf", folder).fingerprint
    path = folder / "data-00001-of-00002.arrow"
    whole = path.read_bytes()
    for stop in (len(whole) // 2, len(whole) - 8, 4, 0):  # the second is between two batches
        path.write_bytes(whole[:stop])
        with pytest.raises(UserError, match=r"data-00001-of-00002.arrow is missing or damaged: .*; save the dataset"):
            opened("hf", folder)
    path.unlink()
    with pytest.raises(UserError, match=r"data-00001-of-00002.arrow is missing or damaged"):
        opened("hf", folder)
    path.write_bytes(whole)
    assert opened("hf", folder).fingerprint != before  # another time of modification
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(state | {"_indices_data_files": [{"filename": "i.arrow"}]}))
    with pytest.raises(UserError, match=r"is a view of other files; call flatten_indices"):
        opened("hf", folder)
    (folder / "state.json").write_text("{")
    with pytest.raises(UserError, match=r"state.json is missing or damaged"):
        opened("hf", folder)


def test_a_split_of_several_is_needed_and_images_may_lie_outside(tmp_path):
    (tmp_path / "x.png").write_bytes(FILES[0])
    table = formats.rows_table(NAMES[:2], FILES[:2], LABELS[:2])
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([{"bytes": None, "path": str(tmp_path / "x.png")}, {"bytes": FILES[2], "path": None}], kind)
    formats.write_saved(tmp_path / "d" / "train", NAMES, FILES, LABELS, shards=1)
    with pa.OSFile(f"{tmp_path}/d/train/data-00000-of-00001.arrow", "wb") as file:
        table = table.set_column(1, "image", images)
        with pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    (tmp_path / "d" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert (all_pixels(opened("hf", tmp_path / "d")) == PIXELS[[0, 2], ..., :1]).all()
    with pytest.raises(UserError, match=r"has no split 'validation'; set split to train or test"):
        opened("hf", tmp_path / "d", split="validation")


# --- ArrayRecord ---


def test_records_are_images_or_examples(tmp_path):
    formats.write_records(tmp_path / "a.array_record", FILES)
    assert (all_pixels(opened("array_record", tmp_path / "a.array_record")) == PIXELS[..., :1]).all()
    with pytest.raises(UserError, match="has no labels"):
        opened("array_record", tmp_path / "a.array_record", labelled=True)
    half = [formats.example(content, label, packed=False) for content, label in zip(FILES, LABELS.tolist())]
    (tmp_path / "e").mkdir()
    formats.write_records(tmp_path / "e" / "x.array_record-00000-of-00002", half[:20])
    formats.write_records(tmp_path / "e" / "x.array_record-00001-of-00002", half[20:])
    source = opened("array_record", tmp_path / "e", labelled=True)
    assert source.labels.tolist() == LABELS.tolist()
    assert source.keys(np.array([19, 20])) == ["x.array_record-00000-of-00002/19", "x.array_record-00001-of-00002/0"]
    assert (source.read(np.array([39, 0, 21]))[0] == PIXELS[[39, 0, 21], ..., :1]).all()


def example_class():
    """The message tf.train.Example, of the definition in TensorFlow's documentation."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="t", syntax="proto3")
    text, number, real, message = 12, 3, 2, 11  # types of fields

    def add(name, *fields, parent=None, repeated=False):
        made = (parent.nested_type if parent else file.message_type).add(name=name)
        for place, (field, kind, of) in enumerate(fields, start=1):
            label = 3 if repeated else 1
            made.field.add(name=field, number=place, type=kind, label=label, type_name=of and f".t.{of}")
        return made

    add("BytesList", ("value", text, None), repeated=True)
    add("FloatList", ("value", real, None), repeated=True)
    add("Int64List", ("value", number, None), repeated=True)
    add("Feature", ("bytes_list", message, "BytesList"), ("float_list", message, "FloatList"),
        ("int64_list", message, "Int64List"))  # fmt: skip
    features = add("Features", ("feature", message, "Features.FeatureEntry"), repeated=True)
    entry = add("FeatureEntry", ("key", 9, None), ("value", message, "Feature"), parent=features)
    entry.options.map_entry = True
    add("Example", ("features", message, "Features"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Example"))


def test_an_example_is_what_protobuf_writes():
    example = example_class()()
    feature = example.features.feature
    feature["image/encoded"].bytes_list.value.append(FILES[0])
    feature["image/class/label"].int64_list.value.extend([7, -1, 2**40])
    feature["score"].float_list.value.append(0.5)
    feature["empty"].SetInParent()
    found = parse_example(example.SerializeToString())
    assert found == {"image/encoded": [FILES[0]], "image/class/label": [7, -1, 2**40], "score": [], "empty": []}


@pytest.mark.parametrize("damage", ["cut", "junk", "no image", "no example"])
def test_records_with_mistakes_are_named(tmp_path, damage):
    path = tmp_path / "a.array_record"
    example = formats.example(FILES[0], 1)
    records = {"no image": example.replace(b"image/encoded", b"image_encoded"), "no example": example[:300]}
    formats.write_records(path, [records.get(damage, example)])
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-1000])
    elif damage == "junk":
        path.write_bytes(b"junk" * 100)
    message = {
        "no image": r"a.array_record/0 is an Example with .*image_encoded.*, and without image/encoded or image",
        "no example": r"a.array_record/0 is neither an image nor a tf.train.Example",
    }.get(damage, r"a.array_record is damaged, or no ArrayRecord file: .*; bring it again")
    with pytest.raises(UserError, match=message):
        opened("array_record", path)


def test_no_bytes_make_the_parser_fail_in_another_way_than_its_own():
    rng, whole = np.random.default_rng(0), formats.example(FILES[0][:50], 1)
    for _ in range(2000):
        damaged = bytearray(whole)
        for at in rng.integers(0, len(damaged), 3):
            damaged[at] = rng.integers(256)
        with contextlib.suppress(ValueError, IndexError):
            parse_example(bytes(damaged))
        assert isinstance(array_record._image_in(bytes(damaged)), bytes)


# --- CIFAR ---


class _Evil:
    def __init__(self, call):
        self.call = call

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "call",
    [
        (os.system, ("touch {marker}",)),
        (eval, ("open('{marker}', 'w')",)),
        (io.open, ("{marker}", "w")),
        (np.load, ("{marker}",)),
        (shutil.rmtree, ("{marker}",)),
        (getattr, (np, "load")),
    ],
    ids=lambda call: call[0].__name__,
)
def test_a_malicious_pickle_does_not_run(tmp_path, call):
    marker = tmp_path / "marker"
    function, arguments = call
    arguments = tuple(a.format(marker=marker) if isinstance(a, str) else a.__name__ for a in arguments)
    for protocol in range(6):
        (tmp_path / "data_batch_1").write_bytes(pickle.dumps({b"data": _Evil((function, arguments))}, protocol))
        with pytest.raises(
            UserError, match=r"data_batch_1 is damaged, or no pickle of plain arrays: it names \S+, which"
        ):
            opened("cifar", tmp_path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "value",
    [np.array([{}], object), {1}, object(), np.zeros(2, "M8[s]"), np.zeros(2, [("a", int)]), np.array(["text"]), 1j],
    ids=["objects", "a set", "an object", "dates", "records", "texts", "a complex number"],
)
def test_what_is_no_plain_data_is_refused(value):
    for protocol in range(6):
        with pytest.raises(UserError, match="x is damaged, or no pickle of plain arrays"):
            load_plain_pickle(pickle.dumps({"a": value}, protocol), "x")


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data_comes_back_as_it_was(protocol):
    value = {
        b"data": np.arange(12, dtype=np.uint8).reshape(3, 4), "text": ["a", b"b", 1, 2.5, None, True],
        "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "big": np.arange(3, dtype=">i4"),
        "none": np.zeros((0, 4)),
    }  # fmt: skip
    found = load_plain_pickle(pickle.dumps(value, protocol), "x")
    assert found.keys() == value.keys() and found["text"] == value["text"]
    for name in (b"data", "columns", "big", "none"):
        assert np.array_equal(found[name], value[name]) and found[name].shape == value[name].shape


def test_no_damage_makes_a_pickle_fail_in_another_way():
    rng, whole = np.random.default_rng(0), pickle.dumps({b"data": np.zeros((3, 4), np.uint8), b"labels": [1, 2]}, 2)
    for _ in range(1000):
        damaged = bytearray(whole)
        for at in rng.integers(0, len(damaged), 2):
            damaged[at] = rng.integers(256)
        with contextlib.suppress(UserError):
            load_plain_pickle(bytes(damaged), "x")


def test_cifar_100_has_fine_labels_and_a_test_split(tmp_path):
    for name, part in (("train", slice(30)), ("test", slice(30, None))):
        batch = {"data": formats.planes(PIXELS)[part], "fine_labels": LABELS[part].tolist(), "coarse_labels": [0] * 30}
        (tmp_path / name).write_bytes(pickle.dumps(batch))
    (tmp_path / "meta").write_bytes(
        pickle.dumps({"fine_label_names": list(formats.CLASSES), "coarse_label_names": ["x"]})
    )
    source = opened("cifar", tmp_path, labelled=True, split="test")
    assert source.labels.tolist() == LABELS[30:].tolist() and source.class_names == formats.CLASSES
    assert (all_pixels(source) == PIXELS[30:, ..., :1]).all()
    with pytest.raises(UserError, match=r"CIFAR has no split 'validation'; set split to train or test"):
        opened("cifar", tmp_path, split="validation")
    with pytest.raises(UserError, match=r"nowhere' holds no data_batch_\* or train of CIFAR; unpack its archive"):
        opened("cifar", tmp_path / "nowhere")
    (tmp_path / "train").write_bytes(pickle.dumps({"data": np.zeros((2, 10), np.uint8)}))
    with pytest.raises(UserError, match=r"train must hold `data`, uint8 \[N, 3072\]"):
        opened("cifar", tmp_path)


# --- downsampled ImageNet and IDX ---


def test_downsampled_imagenet_with_mistakes_is_named(tmp_path):
    planes = formats.planes(PIXELS)
    np.savez(tmp_path / "train_data_batch_1.npz", data=planes, labels=LABELS + 1)
    np.savez(tmp_path / "val_data.npz", data=planes[:7], labels=LABELS[:7] + 1)
    np.savez(tmp_path / "other.npz", data=planes, labels=LABELS)
    assert len(opened("imagenet32", tmp_path)) == 40 and len(opened("imagenet32", tmp_path, split="val")) == 7
    with pytest.raises(UserError, match=r"other.npz must hold `labels`, whole numbers from 1"):
        opened("imagenet32", tmp_path / "other.npz")
    with pytest.raises(UserError, match=r"other.npz is one file, without splits; leave split 'val' out"):
        opened("imagenet32", tmp_path / "other.npz", split="val")
    np.savez(tmp_path / "other.npz", data=planes[:, :192], labels=LABELS + 1)
    with pytest.raises(UserError, match="hold images of several sizes"):
        opened("imagenet32", f"{tmp_path}/{{other,val_data}}.npz")
    np.savez(tmp_path / "other.npz", images=PIXELS)
    with pytest.raises(UserError, match=r"other.npz must hold `data`, .*; for `images` use kind array"):
        opened("imagenet32", tmp_path / "other.npz")
    (tmp_path / "other.npz").write_bytes(b"PK\x03\x04junk")
    with pytest.raises(UserError, match=r"other.npz is damaged"):
        opened("imagenet32", tmp_path / "other.npz")


def test_idx_files_with_mistakes_are_named(tmp_path):
    path = tmp_path / "train-images-idx3-ubyte"
    with pytest.raises(UserError, match=r"holds 0 files \*train-images-idx3-ubyte\*; give a folder with one of them"):
        opened("idx", tmp_path)
    formats.write_idx(path, PIXELS[..., 0], bytes)
    assert opened("idx", tmp_path).labels is None
    with pytest.raises(UserError, match="has no labels"):
        opened("idx", tmp_path, labelled=True)
    with pytest.raises(UserError, match=r"IDX files have no split 'val'"):
        opened("idx", tmp_path, split="val")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte is damaged, or no IDX file of bytes"):
        opened("idx", tmp_path)
    path.write_bytes(b"\x1f\x8bjunk")
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte is damaged: "):
        opened("idx", tmp_path)
    formats.write_idx(tmp_path / "emnist-train-images-idx3-ubyte.gz", PIXELS[..., 0])
    with pytest.raises(UserError, match=r"holds 2 files .* \(emnist-train.*, train-images"):
        opened("idx", tmp_path)
