"""Tar shards: every form of header, what is refused, listings that were cut short, and what changes a fingerprint."""

import collections
import io
import os
import subprocess
import tarfile

import formats
import numpy as np
import pytest
from etils import epath

from pujax.config import DataConfig, SourceConfig
from pujax.data import manifest
from pujax.data.sources import open_source, tar
from pujax.errors import UserError

DATA = DataConfig(num_classes=2, image_size=16, channels=1)
NAMES, FILES, LABELS, _ = formats.real_images(20)


def open_tar(path, labelled=False, kept=None, **options):
    config = SourceConfig(kind="tar", path=str(path), **options)
    return open_source(config, DATA, labelled=labelled, manifest=kept and epath.Path(kept))


def contents(source):
    return dict(zip(source.keys(np.arange(len(source))), source.files.fetch(np.arange(len(source)))))


@pytest.mark.parametrize("form", ["ustar", "gnu", "pax"])
def test_every_form_of_header_is_read(tmp_path, form):
    forms = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
    long = "/".join(["a" * 60, "b" * 60, "c.png"])
    names = [
        "0.png",
        "./1.png",
        "folder/2.JPEG",
        long,
        *([] if form == "ustar" else ["ä" * 80 + ".png", "d" * 150 + ".png"]),
    ]
    formats.write_tar(tmp_path / "a.tar", [*zip(names, FILES), ("notes.txt", b"x" * 1000)], forms[form])
    source = open_tar(tmp_path / "a.tar")
    assert contents(source) == {f"a.tar/{name.removeprefix('./')}": file for name, file in zip(names, FILES)}
    assert not any(source.read(np.arange(len(source)))[1]) and source.skipped == {}


@pytest.mark.parametrize("form", ["gnu", "posix", "ustar", "v7"])
def test_what_gnu_tar_writes_is_read(tmp_path, form):
    (tmp_path / "in" / "cat").mkdir(parents=True)
    (tmp_path / "in" / "cat" / "1.png").write_bytes(FILES[0])
    (tmp_path / "in" / "2.jpg").write_bytes(FILES[1])
    os.symlink("2.jpg", tmp_path / "in" / "link.jpg")
    os.link(tmp_path / "in" / "2.jpg", tmp_path / "in" / "same.jpg")
    command = [
        "tar",
        "--sort=name",
        f"--format={form}",
        "-C",
        str(tmp_path / "in"),
        "-cf",
        str(tmp_path / "x.tar"),
        ".",
    ]
    subprocess.run(command, check=True)
    source = open_tar(tmp_path / "x.tar")
    assert contents(source) == {"x.tar/2.jpg": FILES[1], "x.tar/cat/1.png": FILES[0]}
    assert source.skipped == {"links named like images": 2}


def test_tars_one_after_the_other_and_sizes_in_binary(tmp_path):
    formats.write_tar(tmp_path / "a.tar", [("1.png", FILES[0])])
    formats.write_tar(tmp_path / "b.tar", [("2.png", FILES[2])])
    both = bytearray((tmp_path / "a.tar").read_bytes() + (tmp_path / "b.tar").read_bytes())
    both[124:136] = b"\x80" + len(FILES[0]).to_bytes(11, "big")
    both[148:156] = b" " * 8
    both[148:156] = b"%06o\0 " % sum(both[:512])
    (tmp_path / "c.tar").write_bytes(both)
    assert contents(open_tar(tmp_path / "c.tar")) == {"c.tar/1.png": FILES[0], "c.tar/2.png": FILES[2]}


def whole_tar(path, count=6):
    formats.write_tar(path, [(f"{i}.png", FILES[i]) for i in range(count)])
    return path.read_bytes()


def test_a_tar_that_is_cut_short_anywhere_is_refused_by_name(tmp_path):
    data = whole_tar(tmp_path / "a.tar")
    end = len(data.rstrip(b"\0")) // 512 * 512 + 512
    for stop in {*range(1, end + 1, 301), *range(512, end + 1, 512)}:
        (tmp_path / "a.tar").write_bytes(data[:stop])
        with pytest.raises(UserError, match=r"a.tar is no whole tar file, at byte \d+: it (is cut short|has no end)"):
            open_tar(tmp_path / "a.tar")
    (tmp_path / "a.tar").write_bytes(b"")
    with pytest.raises(UserError, match=r"a.tar is no whole tar file"):
        open_tar(tmp_path / "a.tar")


@pytest.mark.parametrize("header", [0, 2, 5])
def test_a_header_with_one_wrong_bit_is_refused_by_name(tmp_path, header):
    data = whole_tar(tmp_path / "a.tar")
    with tarfile.open(tmp_path / "a.tar") as members:
        start = members.getmembers()[header].offset
    for at in (0, 100, 125, 150, 156, 300, 500):
        damaged = bytearray(data)
        damaged[start + at] ^= 1
        (tmp_path / "a.tar").write_bytes(damaged)
        with pytest.raises(UserError, match=rf"a.tar is no whole tar file, at byte {start}: .*; bring it again"):
            open_tar(tmp_path / "a.tar")


@pytest.mark.parametrize(("mode", "remedy"), [("gz", "gunzip"), ("bz2", "bunzip2"), ("xz", "unxz")])
def test_compressed_tars_are_refused_with_a_remedy(tmp_path, mode, remedy):
    with tarfile.open(tmp_path / "a.tar", f"w:{mode}") as out:
        out.add(__file__)
    with pytest.raises(UserError, match=rf"a.tar is compressed, .* unpack it with `{remedy}`"):
        open_tar(tmp_path / "a.tar")


def test_odd_tars_are_refused(tmp_path):
    (tmp_path / "junk.tar").write_bytes(b"no tar file at all" * 100)
    with pytest.raises(UserError, match=r"junk.tar is no whole tar file, at byte 0"):
        open_tar(tmp_path / "junk.tar")
    formats.write_tar(tmp_path / "a.tar", [("1.png", FILES[0]), ("./1.png", FILES[1])])
    with pytest.raises(UserError, match=r"a.tar holds a.tar/1.png twice"):
        open_tar(tmp_path / "a.tar")
    formats.write_tar(tmp_path / "b.tar", [("1.txt", b"words")])
    with pytest.raises(UserError, match="there are no images in tar"):
        open_tar(tmp_path / "b.tar")
    with open(tmp_path / "sparse.jpg", "wb") as file:
        file.truncate(1 << 20)
        file.seek(1 << 19)
        file.write(b"x")
    subprocess.run(["tar", "-C", str(tmp_path), "--sparse", "-cf", f"{tmp_path}/s.tar", "sparse.jpg"], check=True)
    with pytest.raises(UserError, match=r"s.tar has a sparse file at byte 0"):
        open_tar(tmp_path / "s.tar")


def test_labels_stand_before_or_after_their_images(tmp_path):
    members = [
        ("a/1.cls", b"1\n"), ("a/1.jpg", FILES[1]), ("a/2.png", FILES[0]), ("a/2.cls", b"0"),
        ("b/1.json", b'{"cls": 1}'), ("b/1.png", FILES[2]), ("b/1.txt", b"caption"),
    ]  # fmt: skip
    formats.write_tar(tmp_path / "a.tar", members)
    source = open_tar(tmp_path / "a.tar", labelled=True)
    assert source.keys(np.arange(3)) == ["a.tar/a/1.jpg", "a.tar/a/2.png", "a.tar/b/1.png"]
    assert source.labels.tolist() == [1, 0, 1] and source.class_names is None


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("1.jpg", FILES[1])], r"has no labels; .* a .cls file beside each image of a tar"),
        (
            [("1.jpg", FILES[1]), ("1.cls", b"0"), ("2.jpg", FILES[3])],
            "1 of 2 images have no label, the first is number 1",
        ),
        ([("1.jpg", FILES[1]), ("1.json", b"{")], r"a.tar: the label 1.json is no text, or no JSON"),
        ([("1.jpg", FILES[1]), ("1.cls", b"\xff")], r"a.tar: the label 1.cls is no text"),
        ([("1.jpg", FILES[1]), ("1.cls", b"7")], r"labels 7 to 7, but data.num_classes is 2"),
    ],
)
def test_labels_that_are_missing_or_wrong_are_named(tmp_path, members, message):
    formats.write_tar(tmp_path / "a.tar", members)
    with pytest.raises(UserError, match=message):
        open_tar(tmp_path / "a.tar", labelled=True)


# --- what is kept ---


def write_shards(root, shards=4, per_shard=4):
    root.mkdir()
    for shard in range(shards):
        first = shard * per_shard
        members = [(f"{i}.png", FILES[i]) for i in range(first, first + per_shard)]
        formats.write_tar(root / f"{shard:03d}.tar", members)
    return f"{root}/{{000..{shards - 1:03d}}}.tar"


@pytest.mark.parametrize("parts", range(6))
def test_a_listing_that_was_cut_short_goes_on(tmp_path, monkeypatch, parts):
    monkeypatch.setattr(manifest, "PART", 3)
    pattern, kept = write_shards(tmp_path / "in"), tmp_path / "kept"
    whole = open_tar(pattern, kept=kept)
    (kept / "MANIFEST.json").unlink()
    for part in range(parts, 6):
        (kept / f"part-{part:05d}.parquet").unlink()
    read = []
    monkeypatch.setattr(tar, "_entries_of", lambda *a, real=tar._entries_of: read.append(a[1]) or real(*a))
    again = open_tar(pattern, kept=kept)
    assert read[0] == f"{max(3 * parts - 1, 0) // 4:03d}.tar"  # those before it are not read again
    assert again.fingerprint == whole.fingerprint == open_tar(pattern).fingerprint
    assert contents(again) == contents(whole) and len(again) == 16


def test_a_second_start_reads_no_header_and_a_changed_shard_is_refused(tmp_path, monkeypatch):
    pattern, kept = write_shards(tmp_path / "in"), tmp_path / "kept"
    first = open_tar(pattern, kept=kept)
    with monkeypatch.context() as patch:
        patch.setattr(tar, "_entries_of", None)
        second = open_tar(pattern, kept=kept)
    assert second.fingerprint == first.fingerprint and contents(second) == contents(first)
    path = tmp_path / "in" / "002.tar"
    status = path.stat()
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert open_tar(pattern).fingerprint != first.fingerprint
    with pytest.raises(
        UserError, match=r"kept lists the pool with contents of the shards .*; choose another --workdir"
    ):
        open_tar(pattern, kept=kept)


def test_a_limit_reads_no_more_shards_than_it_takes(tmp_path, monkeypatch):
    pattern, read = write_shards(tmp_path / "in"), []
    monkeypatch.setattr(tar, "_entries_of", lambda *a, real=tar._entries_of: read.append(a[1]) or real(*a))
    assert open_tar(pattern, limit=5).keys(np.arange(5))[-1] == "001.tar/4.png"
    assert read == ["000.tar", "001.tar"]


def test_a_shard_that_became_shorter_while_the_job_ran_is_named(tmp_path):
    source = open_tar(write_shards(tmp_path / "in"))
    path = tmp_path / "in" / "001.tar"
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(UserError, match=r"001.tar is gone or was cut short since it was listed"):
        source.read(np.arange(16))


def test_of_a_store_one_request_reads_an_image(bucket, tmp_path):
    write_shards(tmp_path / "in")
    bucket.put_folder(tmp_path / "in", "in")
    source = open_tar("s3://bucket/in/{000..003}.tar")
    bucket.requests.clear()
    images, reasons = source.read(np.arange(2, 7))
    assert not any(reasons) and images.any((1, 2, 3)).all()
    assert len(bucket.requests) == 5 and all(span.startswith("bytes=") for *_, span in bucket.requests)


def test_members_are_those_that_pythons_own_reader_finds(tmp_path):
    rng, members = np.random.default_rng(0), []
    for i in range(60):
        size = int(rng.integers(0, 3000))
        members.append((f"{'d' * int(rng.integers(1, 200))}/{i}.png", rng.bytes(size)))
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        formats.write_tar(tmp_path / "a.tar", members, form)
        data = (tmp_path / "a.tar").read_bytes()
        window = tar._Window(lambda start, size, data=data: data[start : start + size], 4096)
        found = [(m.name.decode(), m.size, m.modified, m.offset) for m in tar.read_members(window, len(data), "a.tar")]
        with tarfile.open(fileobj=io.BytesIO(data)) as reader:
            assert found == [(m.name, m.size, int(m.mtime), m.offset_data) for m in reader]


def test_what_is_skipped_is_counted_once_however_often_a_listing_stops(tmp_path):
    skipped = collections.Counter()
    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "in" / "a.tar", "w") as out:
        for i in range(3):
            member = tarfile.TarInfo(f"{i}.png")
            member.size = len(FILES[i])
            out.addfile(member, io.BytesIO(FILES[i]))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "0.png"
        out.addfile(link)
    shards = tar.storage.expand(f"{tmp_path}/in/a.tar")
    entries = list(tar._list_shards(shards, ["a.tar"], False, None, skipped))
    assert skipped == {"links named like images": 1}
    rest = list(tar._list_shards(shards, ["a.tar"], False, entries[1], skipped))
    assert rest == entries[2:] and skipped == {"links named like images": 1}
