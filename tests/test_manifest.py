"""Listing a folder: deterministic, resumable, once; odd names and odd entries do no harm."""

import os

import numpy as np
import pytest
from etils import epath
from PIL import Image

from pujax.config import DataConfig, SourceConfig
from pujax.data import manifest
from pujax.data.manifest import list_now, list_once
from pujax.data.sources import folder as folder_source
from pujax.data.sources import open_source
from pujax.data.sources.folder import folder_listing
from pujax.data.walk import key_of, list_files, path_of
from pujax.errors import UserError

DATA = DataConfig(num_classes=2, image_size=16, channels=1)


def make_folder(root, names):
    for i, name in enumerate(names):
        path = os.path.join(os.fsencode(root), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            Image.fromarray(np.full((16, 16), i % 256, np.uint8)).save(file, "PNG")
    return str(root)


NAMES = ["b/2.png", "b/10.PNG", "a-b/x.jpg", "a/z.png", "a/b/c.png", "a/b.png", "top.webp", "a/note.txt", "B/1.jpeg"]
ORDER = ["B/1.jpeg", "a/b/c.png", "a/b.png", "a/z.png", "a-b/x.jpg", "b/10.PNG", "b/2.png", "top.webp"]


def keys(listing):
    return listing.keys(np.arange(listing.count))


def test_the_order_is_depth_first_and_by_bytes(tmp_path):
    listing = list_now(folder_listing(make_folder(tmp_path, NAMES)))
    assert keys(listing) == ORDER and listing.skipped == {}


def test_a_manifest_is_listed_once_and_is_what_a_listing_in_memory_is(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "PART", 3)
    root, folder = make_folder(tmp_path / "pool", NAMES), epath.Path(tmp_path / "kept")
    kept, now = list_once(folder_listing(root), folder), list_now(folder_listing(root))
    assert (kept.count, kept.fingerprint, keys(kept)) == (now.count, now.fingerprint, keys(now))
    assert kept.keys(np.array([7, 0, 4])) == [ORDER[7], ORDER[0], ORDER[4]]
    monkeypatch.setattr(folder_source, "list_files", None)  # a second start lists nothing
    assert keys(list_once(folder_listing(root), folder)) == ORDER
    with pytest.raises(UserError, match=r"lists the pool with root .*/pool, this run has .*/other; choose another"):
        list_once(folder_listing(str(tmp_path / "other")), folder)


@pytest.mark.parametrize("parts", [0, 1, 2, 3])
def test_a_listing_that_was_cut_short_goes_on(tmp_path, monkeypatch, parts):
    monkeypatch.setattr(manifest, "PART", 3)
    root, folder = make_folder(tmp_path / "pool", NAMES), epath.Path(tmp_path / "kept")
    os.symlink("nowhere", tmp_path / "pool" / "a" / "gone.png")
    os.symlink("nowhere", tmp_path / "pool" / "b" / "gone.png")
    whole = list_once(folder_listing(root), folder)
    (folder / "MANIFEST.json").unlink()
    for part in range(parts, 3):
        manifest._part_path(folder, part).unlink()
    again = list_once(folder_listing(root), folder)
    assert (again.count, again.fingerprint, again.skipped) == (8, whole.fingerprint, {"dangling links": 2})
    assert keys(again) == ORDER


@pytest.mark.parametrize(("other", "limit"), [(True, 0), (False, 4), (False, 2)])
def test_parts_of_another_listing_are_not_taken_for_this_one(tmp_path, monkeypatch, other, limit):
    monkeypatch.setattr(manifest, "PART", 3)
    root, folder = make_folder(tmp_path / "pool", NAMES), epath.Path(tmp_path / "kept")
    list_once(folder_listing(root), folder)
    (folder / "MANIFEST.json").unlink()
    asked = make_folder(tmp_path / "other", [f"z/{name}" for name in NAMES]) if other else root
    listing = folder_listing(asked)
    kept, now = list_once(listing, folder, limit=limit), list_now(listing, limit=limit)
    assert (kept.count, kept.fingerprint, keys(kept)) == (now.count, now.fingerprint, keys(now))


def test_a_pool_without_images_is_not_remembered(tmp_path):
    config, folder = SourceConfig(kind="folder", path=str(tmp_path / "pool")), epath.Path(tmp_path / "kept")
    (tmp_path / "pool").mkdir()
    with pytest.raises(UserError, match="there are no images in folder"):
        open_source(config, DATA, labelled=False, manifest=folder)
    make_folder(tmp_path / "pool", NAMES)
    assert len(open_source(config, DATA, labelled=False, manifest=folder)) == 8


@pytest.mark.parametrize("damage", ["missing", "junk"])
def test_a_damaged_part_is_named(tmp_path, monkeypatch, damage):
    monkeypatch.setattr(manifest, "PART", 3)
    root, folder = make_folder(tmp_path / "pool", NAMES), epath.Path(tmp_path / "kept")
    list_once(folder_listing(root), folder)
    part = manifest._part_path(folder, 1)
    part.unlink() if damage == "missing" else part.write_bytes(b"junk")
    listing = list_once(folder_listing(root), folder)
    assert listing.keys(np.array([0, 7])) == [ORDER[0], ORDER[7]]
    with pytest.raises(UserError, match=r"part-00001.parquet is missing or damaged; delete .*/kept and run"):
        listing.keys(np.array([4]))


@pytest.mark.parametrize("after", range(8))
def test_a_listing_begins_after_any_file(tmp_path, after):
    root = make_folder(tmp_path, NAMES)
    assert [key for key, *_ in list_files(root, {}, after=ORDER[after])] == ORDER[after + 1 :]


@pytest.mark.parametrize("change", ["size", "time", "name", "more"])
def test_one_changed_file_of_many_changes_the_fingerprint(tmp_path, change):
    root = make_folder(tmp_path, [f"{i:03d}.png" for i in range(300)])
    before, path = list_now(folder_listing(root)).fingerprint, tmp_path / "137.png"
    status = path.stat()
    if change == "size":
        path.write_bytes(path.read_bytes() + b"x")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif change == "time":
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    else:
        path.rename(tmp_path / "137b.png") if change == "name" else (tmp_path / "more.png").write_bytes(b"")
    assert list_now(folder_listing(root)).fingerprint != before


def test_what_looks_like_an_image_and_is_none_is_counted(tmp_path):
    root = make_folder(tmp_path, ["a.png", "x.jpg/inside.png"])
    os.symlink("nowhere", tmp_path / "gone.png")
    os.symlink("round.png", tmp_path / "round.png")
    os.symlink("a.png/b", tmp_path / "under_a_file.png")
    os.symlink("a.png", tmp_path / "linked.png")
    os.symlink("x.jpg", tmp_path / "folder.png")
    os.symlink("x.jpg", tmp_path / "not_followed")
    listing = list_now(folder_listing(root))
    assert keys(listing) == ["a.png", "linked.png", "x.jpg/inside.png"]
    assert listing.skipped == {"dangling links": 3, "folders named like images": 2}


@pytest.mark.parametrize("name", [b"\xff\xfe.png", b"a\\b.png", b"\\xff.png", "ä/ö.png".encode(), b"\\\\\xe4\\.png"])
def test_names_of_any_bytes_are_read_and_their_keys_are_text(tmp_path, name):
    assert path_of(key_of(name)) == name
    key_of(name).encode()  # valid UTF-8
    root = make_folder(tmp_path / "pool", ["0.png", name])
    source = open_source(SourceConfig(kind="folder", path=root), DATA, labelled=False)
    images, reasons = source.read(np.arange(2))
    assert not any(reasons) and sorted(images.max((1, 2, 3)).tolist()) == [0, 1]
    assert key_of(name) in source.keys(np.arange(2))


def test_a_limit_stops_the_listing(tmp_path, monkeypatch):
    root = make_folder(tmp_path, [f"{i:03d}.png" for i in range(50)])
    seen, real = [], folder_source.list_files

    def counted(*arguments, **options):
        for entry in real(*arguments, **options):
            seen.append(entry)
            yield entry

    monkeypatch.setattr(folder_source, "list_files", counted)
    source = open_source(SourceConfig(kind="folder", path=root, limit=5), DATA, labelled=False)
    assert len(source) == len(seen) == 5


@pytest.mark.parametrize("call", ["scandir", "stat"])
def test_a_folder_that_cannot_be_listed_is_no_mistake_of_the_user(tmp_path, monkeypatch, call):
    def stale(path, **_):
        raise OSError(116, "Stale file handle", os.fsdecode(path))

    monkeypatch.setattr(os, call, stale)
    with pytest.raises(OSError, match="Stale file handle") as error:
        open_source(SourceConfig(kind="folder", path=str(tmp_path)), DATA, labelled=False)
    assert not isinstance(error.value, UserError)
