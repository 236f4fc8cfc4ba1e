"""The work directory: files whole or not at all, in a local folder and in an object store, and one job at a time."""

import json
import os
import subprocess
import sys
import time

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem

from pujax import presence
from pujax.artifacts import (
    Workdir,
    load_array,
    load_arrays,
    load_json,
    open_workdir,
    read_table,
    save_array,
    save_arrays,
    save_json,
    write_atomic,
    write_table,
)
from pujax.errors import UserError
from pujax.lock import locked


class Store(MemoryFileSystem):
    """An object store in memory, under the protocol of a real one."""

    protocol = "s3"
    store: dict = {}  # noqa: RUF012 - of all instances, as in the parent
    pseudo_dirs = [""]  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("s3://").strip("/")

    @classmethod
    def install(cls, monkeypatch):
        """Be what "s3://" leads to, and empty."""
        monkeypatch.setattr(cls, "store", {})
        monkeypatch.setattr(cls, "pseudo_dirs", [""])
        fsspec.register_implementation("s3", cls, clobber=True)
        cls.clear_instance_cache()


@pytest.fixture(params=["local", "s3"])
def root(request, tmp_path, monkeypatch):
    if request.param == "local":
        return epath.Path(tmp_path)
    Store.install(monkeypatch)
    return epath.Path("s3://bucket/run")


def test_files_come_back_as_they_were_written(root):
    workdir = open_workdir(root / "job")
    save_json(workdir.summary, {"accuracy": 0.5})
    write_table(workdir.selected, pa.table({"key": ["a", "b"], "score": [1.0, 2.0]}))
    save_array(workdir.unit("distill").teacher_logits, np.arange(12.0).reshape(3, 4))
    save_arrays(workdir.held_out, positive=np.arange(3), pool=np.arange(4))
    assert load_json(workdir.summary) == {"accuracy": 0.5}
    assert read_table(workdir.selected, ["key"]).to_pydict() == {"key": ["a", "b"]}
    assert (load_array(workdir.unit("distill").teacher_logits) == np.arange(12.0).reshape(3, 4)).all()
    assert load_arrays(workdir.held_out)["pool"].tolist() == [0, 1, 2, 3]
    assert sorted(path.name for path in workdir.root.iterdir()) == ["distill", "scorer", "select", "summary.json"]
    assert "://" not in str(workdir.unit("distill").images)  # mapped into memory: always local


def test_a_damaged_json_is_named_and_numbers_that_are_not_finite_are_null(root):
    write_atomic(root / "a" / "DONE.json", b'{"accuracy": 0.')
    with pytest.raises(UserError, match=r"DONE.json is damaged; delete"):
        load_json(root / "a" / "DONE.json")
    save_arrays(root / "a" / "b.npz", x=np.arange(100))
    for size in (0, 100, 700):
        write_atomic(root / "a" / "c.npz", (root / "a" / "b.npz").read_bytes()[:size])
        with pytest.raises(UserError, match=r"c.npz is damaged; delete"):
            load_arrays(root / "a" / "c.npz")
    save_json(root / "b.json", {"accuracy": float("nan"), "interval": (0.5, float("inf"))})
    assert load_json(root / "b.json") == {"accuracy": None, "interval": [0.5, None]}


def test_a_write_that_fails_leaves_the_former_file(tmp_path, monkeypatch):
    path = epath.Path(tmp_path / "a.json")
    save_json(path, 1)
    monkeypatch.setattr(type(path), "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError, match="No space left"):
        save_json(path, 2)
    monkeypatch.undo()
    assert load_json(path) == 1


def test_a_second_job_is_told_who_is_at_work(root):
    path = Workdir(root).lock
    root.mkdir(parents=True, exist_ok=True)
    with locked(path):
        with (
            pytest.raises(UserError, match=rf"in use by process {os.getpid()} on \S+, since \d{{4}}-") as refused,
            locked(path),
        ):
            pass
        assert "choose another --workdir" in str(refused.value)
        assert path.exists()  # the second did not take the first one's lock away
    assert not path.exists()


def test_the_lock_of_a_dead_process_is_taken_over(root):
    path = Workdir(root).lock
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    holder = {**presence.who(), "process": int(ended.stdout), "since": "2026-01-01"}
    for dead in (
        holder,
        holder | {"process": os.getpid(), "started": "1"},
        None,
    ):  # gone; the number given again; damaged
        write_atomic(path, b"{" if dead is None else json.dumps(dead).encode())
        with locked(path):
            assert load_json(path)["process"] == os.getpid()


def test_the_lock_of_another_host_lives_while_it_is_renewed(root):
    path = Workdir(root).lock
    holder = {**presence.who(), "host": "elsewhere", "since": "2026-01-01"}
    save_json(path, holder)
    with pytest.raises(UserError, match="on elsewhere, since 2026-01-01"), locked(path):
        pass
    save_json(path, holder | {"renewed": time.time() - 2 * presence._DEAD})
    with locked(path):
        pass


def test_the_lock_is_renewed(tmp_path, monkeypatch):
    monkeypatch.setattr(presence, "BEAT", 0.02)
    path = Workdir(epath.Path(tmp_path)).lock
    with locked(path):
        first = load_json(path)["renewed"]
        deadline = time.monotonic() + 10
        while load_json(path)["renewed"] == first:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_of_two_jobs_that_start_at_once_one_gets_the_work_directory(tmp_path):
    code = (
        "import sys, time\nfrom etils import epath\nfrom pujax.lock import locked\n"
        "from pujax.errors import UserError\n"
        "try:\n    with locked(epath.Path(sys.argv[1])):\n        print('held', flush=True); sys.stdin.read()\n"
        "except UserError:\n    print('refused', flush=True)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "LOCK.json")]
    jobs = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    answers = [job.stdout.readline().strip() for job in jobs]
    for job in jobs:
        job.communicate()
    assert sorted(answers) == ["held", "refused", "refused"]


def test_a_sign_of_life_that_is_renewed_while_it_is_read_is_read_again(tmp_path, monkeypatch):
    path, failures = epath.Path(tmp_path) / "a.json", iter([OSError(16, "expired"), OSError(16, "expired")])
    save_json(path, {"process": 1})

    def read(path):
        for error in failures:
            raise error
        return load_json(path)

    monkeypatch.setattr(presence, "load_json", read)
    assert presence.read_presences(epath.Path(tmp_path)) == {"a.json": {"process": 1}}
    failures = iter([OSError(13, "may not be read")])
    with pytest.raises(OSError, match="may not be read"):
        presence.read_presences(epath.Path(tmp_path))
