"""Files here and in a store on loopback: parts, listings, patterns; and errors that name the address."""

import os

import numpy as np
import pytest
import s3fs
from etils import epath
from PIL import Image

from pujax.artifacts import open_workdir
from pujax.config import DataConfig, SourceConfig
from pujax.data import manifest, storage
from pujax.data.manifest import list_now, list_once
from pujax.data.sources import open_source
from pujax.data.sources.folder import folder_listing
from pujax.errors import UserError
from pujax.presence import read_presences

DATA = DataConfig(num_classes=2, image_size=16, channels=1)


@pytest.fixture(params=["local", "s3"])
def root(request, tmp_path):
    """A function from names to the folder that holds them, their content being their name."""
    bucket = request.getfixturevalue("bucket") if request.param == "s3" else None

    def make(*names):
        for name in names:
            if bucket:
                bucket.objects[name] = name.encode()
            else:
                (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / name).write_text(name)
        return "s3://bucket" if bucket else str(tmp_path)

    return make


def paths(folder, text, suffix=""):
    return [entry.path.removeprefix(f"{folder}/") for entry in storage.expand(f"{folder}/{text}", suffix)]


def test_files_are_read_whole_and_in_parts(root):
    folder = root("a/x.bin", "a/longer.bin")
    first, second = f"{folder}/a/x.bin", f"{folder}/a/longer.bin"
    assert storage.read(first) == b"a/x.bin" and storage.info(second).size == 12
    assert storage.read_ranges([first, second, first], [2, 0, 0], [3, 8, 1]) == [b"x.b", b"a/longer", b"a"]
    with storage.ranges(second) as read:
        assert read(2, 4) == b"long" and read(8, 100) == b".bin"
    with storage.opened(second) as file:
        file.seek(-4, os.SEEK_END)
        assert file.read() == b".bin"
    with pytest.raises(UserError, match=r"a/x.bin is gone or was cut short"):
        storage.read_ranges([first], [4], [10])
    with pytest.raises(UserError, match=r"a/gone is gone or was cut short"):
        storage.read_ranges([f"{folder}/a/gone"], [0], [1])
    with pytest.raises(UserError, match=r"there is nothing at .*nowhere"):
        storage.info(f"{folder}/nowhere/at_all")


def test_many_objects_are_read_at_once_and_what_is_gone_is_named(bucket):
    bucket.objects |= {f"{i}": bytes([i]) for i in range(20)} | {"[a]*?.png": b"odd"}
    urls = [f"s3://bucket/{name}" for name in ("3", "gone", "[a]*?.png", "17")]
    assert storage.read_each(urls) == [b"\x03", "s3://bucket/gone", b"odd", b"\x11"]


def test_wildcards_and_braces_name_files_in_the_order_of_their_bytes(root):
    names = [f"s/{i:03d}.tar" for i in range(8, 13)]
    folder = root(*names, "s/B.tar", "s/a.txt", "s/deep/er/x.tar", "t/1.tar", "s/[1].tar")
    assert paths(folder, "s/{008..012}.tar") == names
    assert paths(folder, "s/0*.tar") == names
    assert paths(folder, "s/00?.tar") == names[:2]
    assert paths(folder, "s/**/x.tar") == ["s/deep/er/x.tar"]
    assert paths(folder, "{s/B,t/1}.tar") == ["s/B.tar", "t/1.tar"]
    assert paths(folder, "s/[1].tar") == ["s/[1].tar"]
    assert paths(folder, "s", r"\.tar") == [*names, "s/B.tar", "s/[1].tar"]
    with pytest.raises(UserError, match=r"7 of the 12 files that .* names are missing, the first is .*s/001.tar"):
        paths(folder, "s/{001..012}.tar")
    with pytest.raises(UserError, match=r"none\* matches no file; correct the path"):
        paths(folder, "s/none*")
    with pytest.raises(UserError, match=r"/s is a folder without files of this kind; correct the path, or the kind"):
        paths(folder, "s", r"\.parquet")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", ["a"]),
        ("{a}", ["{a}"]),
        ("x{08..11}y", ["x08y", "x09y", "x10y", "x11y"]),
        ("{8..11}", ["8", "9", "10", "11"]),
        ("{0..2}", ["0", "1", "2"]),
        ("{a,b}{1,2}", ["a1", "a2", "b1", "b2"]),
        ("{,x}", ["", "x"]),
        ("{0098..0101}", ["0098", "0099", "0100", "0101"]),
    ],
)
def test_braces(text, expected):
    assert storage.expand_braces(text) == expected


def test_braces_that_count_down_are_refused():
    with pytest.raises(UserError, match="counts down from 3 to 1"):
        storage.expand_braces("{3..1}")


def test_a_missing_extra_and_an_unknown_store_are_named(monkeypatch):
    import fsspec

    def missing(*_, **__):
        raise ImportError("Install s3fs to access S3")

    with pytest.raises(UserError, match=r"nfs4://a: .*; use s3://, gs:// or a local path"):
        storage.info("nfs4://a")
    monkeypatch.setattr(fsspec, "url_to_fs", missing)
    with pytest.raises(UserError, match=r's3://b/a.tar needs a package .* pip install "pujax\[s3\]"'):
        storage.info("s3://b/a.tar")
    with pytest.raises(UserError, match=r'pip install "pujax\[gcs\]"'):
        storage.read("gs://b/a.csv")


def test_what_a_store_raises_names_the_address(bucket, monkeypatch):
    bucket.objects["a"], bucket.failing = b"a", {"a"}
    with pytest.raises(UserError, match=r"s3://bucket/a may not be read"):
        storage.read("s3://bucket/a")
    with pytest.raises(UserError, match=r"s3://bucket/a may not be read"):
        storage.read_each(["s3://bucket/a"])

    async def broken(*_, **__):
        raise RuntimeError("the connection was reset")

    monkeypatch.setattr("s3fs.S3FileSystem._cat_file", broken)
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(OSError, match=r"RuntimeError: the connection was reset: 's3://bucket/a'") as error:
        storage.read("s3://bucket/a")
    assert error.value.filename == "s3://bucket/a" and not isinstance(error.value, UserError)
    s3fs.S3FileSystem.clear_instance_cache()


def test_any_address_that_fsspec_knows_is_read(bucket, store, tmp_path):
    bucket.objects |= {f"d/{i}.txt": bytes([i]) * 5 for i in range(3)}
    address = f"{store[0]}/bucket/d"
    assert storage.info(f"{address}/1.txt").size == 5
    assert storage.read_ranges([f"{address}/1.txt", f"{address}/2.txt"], [1, 0], [2, 5]) == [b"\1\1", b"\2" * 5]
    found = storage.expand(f"{address}/{{0..2}}.txt")
    assert [entry.path for entry in found] == [f"{address}/{i}.txt" for i in range(3)]
    (tmp_path / "x.txt").write_text("x")
    assert [entry.path for entry in storage.expand(f"file://{tmp_path}/*.txt")] == [f"file://{tmp_path}/x.txt"]
    assert [entry.path for entry in storage.list_folder(f"file://{tmp_path}")] == [f"file://{tmp_path}/x.txt"]


def test_a_file_of_a_store_is_read_where_it_is_asked_for(bucket):
    bucket.objects["big"] = bytes(8 << 20)
    with storage.opened("s3://bucket/big") as file:
        file.seek(-8, os.SEEK_END)
        assert len(file.read()) == 8
        file.seek(1 << 20)
        assert len(file.read(100)) == 100
    spans = [tuple(map(int, span.removeprefix("bytes=").split("-"))) for *_, span in bucket.requests if span]
    assert sum(last + 1 - first for first, last in spans) < 2 << 20


# --- folders of a store ---

NAMES = ["b/2.png", "b/10.PNG", "a-b/x.jpg", "a/z.png", "a/b/c.png", "a/b.png", "top.webp", "a/note.txt", "B/ä.jpeg"]
ORDER = ["B/ä.jpeg", "a/b/c.png", "a/b.png", "a/z.png", "a-b/x.jpg", "b/10.PNG", "b/2.png", "top.webp"]


def fill(bucket, tmp_path, names=NAMES):
    for i, name in enumerate(names):
        path = tmp_path / "heap" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            Image.fromarray(np.full((16, 16), i, np.uint8)).save(file, "PNG")
    bucket.put_folder(tmp_path / "heap", "heap")


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_folder_in_a_store_is_one_on_this_machine(bucket, tmp_path, slash):
    fill(bucket, tmp_path)
    bucket.objects["heap/"], bucket.page = b"", 2  # some tools make an object for a folder
    here = open_source(SourceConfig(kind="folder", path=f"{tmp_path}/heap"), DATA, labelled=False)
    there = open_source(SourceConfig(kind="folder", path=f"s3://bucket/heap{slash}"), DATA, labelled=False)
    rows = np.arange(len(ORDER))
    assert there.keys(rows) == here.keys(rows) == ORDER
    assert (there.read(rows)[0] == here.read(rows)[0]).all() and not any(there.read(rows)[1])
    before = there.fingerprint
    bucket.objects["heap/a/z.png"] = bucket.objects["heap/b/2.png"]  # as long, and as old
    changed = open_source(SourceConfig(kind="folder", path="s3://bucket/heap"), DATA, labelled=False)
    assert changed.fingerprint != before
    del bucket.objects["heap/a/b.png"]
    assert "No such file" in changed.read(rows)[1][2]
    with pytest.raises(UserError, match=r"there is nothing at s3://bucket/nowhere"):
        open_source(SourceConfig(kind="folder", path="s3://bucket/nowhere"), DATA, labelled=False)


@pytest.mark.parametrize("parts", [0, 1, 2])
def test_a_listing_of_a_store_that_was_cut_short_goes_on(bucket, tmp_path, monkeypatch, parts):
    monkeypatch.setattr(manifest, "PART", 3)
    fill(bucket, tmp_path)
    listing, folder = folder_listing("s3://bucket/heap"), epath.Path(tmp_path / "kept")
    whole = list_once(listing, folder)
    (folder / "MANIFEST.json").unlink()
    for part in range(parts, 3):
        manifest._part_path(folder, part).unlink()
    bucket.requests.clear()
    again = list_once(listing, folder)
    assert again.fingerprint == whole.fingerprint == list_now(listing).fingerprint
    assert again.keys(np.arange(8)) == ORDER
    bucket.requests.clear()
    assert list_once(listing, folder).count == 8 and not bucket.requests


def test_a_limit_of_a_store_lists_no_more_than_the_next_folders(bucket, tmp_path):
    fill(bucket, tmp_path, [f"{i:03d}/x.png" for i in range(60)])
    bucket.requests.clear()
    source = open_source(SourceConfig(kind="folder", path="s3://bucket/heap", limit=2), DATA, labelled=False)
    assert source.keys(np.arange(2)) == ["000/x.png", "001/x.png"] and len(bucket.requests) < 25


def test_class_folders_of_a_store(bucket, tmp_path):
    fill(bucket, tmp_path, ["cat/1.png", "cat/2.png", "dog/1.png"])
    source = open_source(SourceConfig(kind="folder", path="s3://bucket/heap"), DATA)
    assert source.labels.tolist() == [0, 0, 1] and source.class_names == ("cat", "dog")


def test_what_others_write_into_a_work_directory_is_seen(bucket):
    bucket.objects["run/score/workers/c.json"] = b"{}"
    assert [path.name for path in epath.Path("s3://bucket/run/score/workers").iterdir()] == ["c.json"]  # is remembered
    workdir = open_workdir("s3://bucket/run")
    del bucket.objects["run/score/workers/c.json"]
    bucket.objects["run/score/workers/a.json"] = b'{"process": 1}'
    assert read_presences(workdir.workers) == {"a.json": {"process": 1}}
    bucket.objects["run/score/workers/a.json"] = b'{"process": 22}'  # of another size and tag
    bucket.objects["run/score/workers/b.json"] = b'{"process": 3}'
    assert read_presences(workdir.workers) == {"a.json": {"process": 22}, "b.json": {"process": 3}}
