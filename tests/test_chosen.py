"""The chosen images' own files: the pool's pixels, whoever writes them and however often he is killed."""

import functools
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import finished_job
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from test_pipeline import environment, in_process, quickstart

from pujax import artifacts, job, pipeline
from pujax.config import SourceConfig
from pujax.data.chosen import ChosenImages, pack, unpack
from pujax.data.embedded import load_embedded
from pujax.data.records import open_records
from pujax.data.sources.array import ArraySource
from pujax.errors import UserError
from pujax.stages import select

ROOT = Path(__file__).parent.parent
STAGES = ("teacher", "scorer", "score", "select", "distill")
BUDGET = 130
WORKER = """
import sys, time
import jax
folder, address, rank, count, seconds = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])
if count > 1:
    jax.distributed.initialize(address, count, rank)
sys.path.insert(0, "tests")
import test_chosen
from pujax.stages import select
with test_chosen.opened(folder, shard_size=20) as job:
    read = job.sources["pool"].read
    object.__setattr__(job.sources["pool"], "read", lambda rows: time.sleep(seconds / 100) or read(rows))
    select.write_images(job)
if count > 1:
    jax.distributed.shutdown()
"""


def options(config):
    finished_job.options(config)
    config.select.budget, config.baselines, config.export.formats = BUDGET, (), ()


class opened:
    """The job of a work directory, with files of so many images."""

    def __init__(self, folder, change=options, shard_size=20):
        self.folder, self.change, self.patch = folder, change, pytest.MonkeyPatch()
        self.patch.setattr(job, "ChosenImages", functools.partial(ChosenImages, shard_size=shard_size))

    def __enter__(self):
        workdir = artifacts.open_workdir(self.folder)
        self.opened = pipeline.opened(quickstart(self.change), workdir, STAGES, dry=True)
        return self.opened.__enter__()[0]

    def __exit__(self, *error):
        self.patch.undo()
        return self.opened.__exit__(*error)


@pytest.fixture(scope="module")
def chosen(finished, tmp_path_factory):
    """A work directory in which BUDGET images were chosen and written, and a student was trained."""
    folder = tmp_path_factory.mktemp("chosen") / "run"
    for part in ("teacher", "scorer", "score"):
        shutil.copytree(finished / part, folder / part)
    in_process(None, options, STAGES, folder)
    return folder


@pytest.fixture
def again(chosen, tmp_path):
    """A copy of it, whose images are to be written anew."""
    shutil.copytree(chosen, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "select" / "images")
    return tmp_path / "run"


def expected(folder):
    """The chosen images as the pool has them, at the size that networks see, and the table of them."""
    table = pq.read_table(folder / "select" / "selected.parquet")
    pool = np.pad(load_embedded("pool")["images"], ((0, 0), (2, 2), (2, 2)))[..., None]
    return pool[table["index"].to_numpy()], table


def files(folder):
    return {path.name: path.read_bytes() for path in sorted((folder / "select" / "images").iterdir())}


# --- what is in them ------------------------------------------------------------------------------------------


def test_they_hold_the_pixels_of_the_pool_and_the_row_of_the_table(chosen):
    images, table = expected(chosen)
    assert list(files(chosen)) == ["IMAGES.json", "chosen-00000-of-00001.array_record"]
    reader = open_records(str(chosen / "select" / "images" / "chosen-00000-of-00001.array_record"))
    assert reader.num_records() == BUDGET
    for record, image, row in zip(reader.read(list(range(BUDGET))), images, table.to_pylist()):
        about, pixels = unpack(record)
        assert (pixels == image).all() and pixels.dtype == np.uint8
        assert about == {"version": 1, **row, "shape": [32, 32, 1]}


def test_they_are_read_as_the_page_says(chosen):
    page = (ROOT / "docs" / "data.md").read_text()
    code = next(code for code in re.findall(r"```python\n(.*?)```", page, re.S) if "ArrayRecordReader" in code)
    names = {}
    exec(code.replace('"run/', f'"{chosen}/'), names)
    images, table = expected(chosen)
    assert (names["image"] == images[-1]).all() and names["about"]["key"] == table["key"][BUDGET - 1].as_py()


def test_any_key_and_any_shape_comes_back():
    image = np.random.default_rng(0).integers(0, 256, (3, 5, 2), np.uint8)
    image[0, 0] = ord("\n")
    about, pixels = unpack(pack(image[:, ::2], key='a\n"ü/\x00', score=float(np.float32(0.1))))
    assert about["key"] == 'a\n"ü/\x00' and np.float32(about["score"]) == np.float32(0.1)
    assert (pixels == image[:, ::2]).all()


def test_as_a_source_they_are_the_pool_in_any_order(again):
    images, table = expected(again)
    with opened(again) as own:
        assert own.chosen()[0] is own.sources["pool"]  # while there are none
        select.write_images(own)
        source, rows = own.chosen()
        assert isinstance(source, ChosenImages) and len(source) == BUDGET and rows.tolist() == list(range(BUDGET))
        order = np.random.default_rng(0).permutation(BUDGET)[:99]
        found, reasons = source.read(order)
        assert (found == images[order]).all() and set(reasons) == {""}
        assert source.keys(order) == [table["key"][int(i)].as_py() for i in order]
        part = source.take(np.array([3, 64, 129]))
        assert (part.read(np.array([2, 0]))[0] == images[[129, 3]]).all() and part.keys(np.arange(1)) == source.keys(
            [3]
        )
        assert len({source.fingerprint, part.fingerprint, own.sources["pool"].fingerprint}) == 3
        assert source.read(np.arange(0))[0].shape == (0, 32, 32, 1)
    assert len(files(again)) == 8 and "chosen-00006-of-00007.array_record" in files(again)


# --- what follows from them -------------------------------------------------------------------------------------


def test_the_student_is_that_of_the_pool_to_the_byte_and_leaves_no_second_copy(chosen, tmp_path, capsys):
    shutil.copytree(chosen, tmp_path / "run")
    for part in ("select", "distill"):
        shutil.rmtree(tmp_path / "run" / part)

    def without(config):
        options(config)
        config.select.images = False

    of_pool = in_process(tmp_path, without, STAGES)
    assert not (tmp_path / "run" / "select" / "images").exists()
    student = Path("distill", "student.safetensors")
    assert (tmp_path / "run" / student).read_bytes() == (chosen / student).read_bytes()
    assert not list(tmp_path.rglob("images.npy"))
    capsys.readouterr()
    assert in_process(tmp_path, options, STAGES)["student"] == of_pool["student"]
    assert capsys.readouterr().out.count("done before, skipped") == 5  # no number depends on the option


def test_a_student_of_other_options_reads_no_image_of_the_pool(chosen, tmp_path, monkeypatch):
    shutil.copytree(chosen, tmp_path / "run")

    def longer(config):
        options(config)
        config.distill.temperature = 3.0

    read = []
    real = ArraySource.read
    monkeypatch.setattr(ArraySource, "read", lambda self, rows: read.append(self) or real(self, rows))
    assert in_process(tmp_path, longer, STAGES)["student"]["train_images"] == 100 + BUDGET
    assert {len(own) for own in read} == {100, 200}  # labelled and test


# --- who writes them --------------------------------------------------------------------------------------------


def workers(folder, count, seconds=0):
    """Start processes of one job that write the images of a work directory; each read takes so many centiseconds."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, "-c", WORKER, str(folder), address]
    where = {"cwd": ROOT, "env": environment() | {"PYTHONPATH": str(ROOT)}, "stderr": subprocess.PIPE}
    return [subprocess.Popen([*command, str(i), str(count), str(seconds)], **where) for i in range(count)]


def ended(jobs):
    errors = [own.communicate(timeout=100)[1].decode() for own in jobs]
    assert [own.returncode for own in jobs] == [0] * len(jobs), errors


def test_two_processes_write_what_one_writes(again):
    with opened(again) as own:
        select.write_images(own)
    one = files(again)
    shutil.rmtree(again / "select" / "images")
    ended(workers(again, 2))
    assert files(again) == one and len(one) == 8
    assert not list((again / "select" / "workers").iterdir())


def test_killed_and_started_again_only_what_is_missing_is_written(again):
    folder = again / "select" / "images"
    (writer,) = workers(again, 1, seconds=20)
    while len(list(folder.glob("chosen*.array_record"))) < 2:
        assert writer.poll() is None, writer.communicate()
        time.sleep(0.002)
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    finished = {path: path.stat().st_mtime_ns for path in folder.glob("*.array_record")}
    assert 2 <= len(finished) < 7
    cut, *sound = sorted(finished)
    cut.write_bytes(cut.read_bytes()[:-100])  # by a disk that was full, say
    (folder / "chosen-00006-of-00007.array_record.host.1.tmp").write_bytes(b"half a file")
    with opened(again) as own:
        select.write_images(own)
        assert (own.chosen()[0].read(np.arange(BUDGET))[0] == expected(again)[0]).all()
    assert all(path.stat().st_mtime_ns == finished[path] for path in sound)
    assert len(files(again)) == 8


def test_files_of_another_choice_are_never_taken_for_this_one(again):
    with opened(again) as own:
        select.write_images(own)
        images = own.chosen_images()
        other = ChosenImages(images.folder, images.selected.slice(1), images.shape, images.pool, images.scratch, 20)
        assert images.begun() and not other.begun()
        path = images.path(0, 20)
        shutil.copy(images.path(20, 40), path)
        with pytest.raises(UserError, match=r"chosen-00000-of-00007.array_record is damaged.*it holds other images"):
            own.chosen()[0].read(np.arange(3))
        other.begin()
        assert [file.name for file in images.folder.iterdir()] == ["IMAGES.json"]


@pytest.mark.parametrize("damage", ["flipped", "gone"])
def test_a_damaged_file_is_named_and_what_is_said_mends_it(chosen, tmp_path, damage):
    shutil.copytree(chosen, tmp_path / "run")
    folder = tmp_path / "run" / "select"
    path = folder / "images" / "chosen-00000-of-00001.array_record"
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    if damage == "gone":
        path.unlink()
    shutil.rmtree(tmp_path / "run" / "distill")
    said = rf"{path} is damaged, or not there \(.+\); delete it and {folder / 'DONE.json'}, and run the command again"
    with pytest.raises(UserError, match=said):
        in_process(tmp_path, options, STAGES)
    path.unlink(missing_ok=True)
    (folder / "DONE.json").unlink()
    in_process(tmp_path, options, STAGES)
    assert path.read_bytes() == (chosen / "select" / "images" / path.name).read_bytes()
    student = Path("distill", "student.safetensors")
    assert (tmp_path / "run" / student).read_bytes() == (chosen / student).read_bytes()


def test_an_image_that_no_longer_decodes_stops_the_job_by_its_name(again, tmp_path):
    (tmp_path / "pool").mkdir()
    for i, image in enumerate(load_embedded("pool")["images"][:1000]):
        Image.fromarray(image).save(tmp_path / "pool" / f"{i:04d}.png")
    index = pq.read_table(again / "select" / "selected.parquet")["index"].to_numpy()
    gone = tmp_path / "pool" / f"{index[70]:04d}.png"

    def change(config):
        options(config)
        config.data.pool = SourceConfig(kind="folder", path=str(tmp_path / "pool"))

    with opened(again, change) as own:
        gone.write_bytes(gone.read_bytes()[:60])
        with pytest.raises(UserError, match=rf"training set: the image {gone.name} does not decode \(.+\); repair or"):
            select.write_images(own)
        written = files(again)
        assert sorted(written) == ["IMAGES.json", *(f"chosen-0000{i}-of-00007.array_record" for i in range(3))]
        Image.fromarray(load_embedded("pool")["images"][index[70]]).save(gone)
        select.write_images(own)
        assert len(files(again)) == 8 and written.items() <= files(again).items()


def test_where_there_is_no_room_nothing_is_left(again):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with opened(again) as own:
        images = own.chosen_images()
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
        try:
            with pytest.raises(RuntimeError, match="File too large"):
                images.write(0, 20, iter([expected(again)[0][:20]]))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert not list(images.folder.iterdir())
