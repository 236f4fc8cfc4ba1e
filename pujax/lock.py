"""The lock of a work directory: one job at a time, and a dead job's lock is taken over."""

import contextlib
import datetime
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath

from pujax.artifacts import is_remote, load_json, save_json, temporary_name
from pujax.errors import UserError

_BEAT = 20.0  # seconds between signs of life
_DEAD = 120.0  # a lock of another host without a sign of life for so long belongs to nobody


@contextlib.contextmanager
def locked(path: epath.Path) -> Iterator[None]:
    """Hold the lock file while the body runs.

    A lock of this host is dead if its process is; one of another host, if it has not been renewed for two minutes.

    Raises:
        UserError: a living job holds it; the message says which.
    """
    me = {**_who(), "since": datetime.datetime.now().isoformat(" ", "seconds"), "taken": time.time()}
    _take(path, me)
    ended = threading.Event()
    beat = threading.Thread(target=_renew, args=(path, me, ended), daemon=True)
    beat.start()
    try:
        yield
    finally:
        ended.set()
        beat.join()
        path.unlink(missing_ok=True)


def read_holder(path: epath.Path) -> tuple[dict[str, Any], bool] | None:
    """Return who holds a lock file, and whether that job lives; None where nobody does.

    A holder has "host", "process", "since" as text, and "taken" and "renewed" in seconds since 1970.
    """
    try:
        holder = load_json(path)
    except (FileNotFoundError, UserError):  # the latter of one cut short by a full disk
        return None
    return holder, _lives(holder)


def _who() -> dict[str, Any]:
    """Return what tells this process from every other one, on any host, at any time."""
    return {"host": socket.gethostname(), "boot": _read("/proc/sys/kernel/random/boot_id"), "process": os.getpid(),
            "started": _started(os.getpid()), "renewed": time.time()}  # fmt: skip


def _take(path: epath.Path, me: dict[str, Any]) -> None:
    if path.exists():
        holder, lives = read_holder(path) or ({}, False)
        if lives:
            raise UserError(
                f"{path.parent} is in use by process {holder['process']} on {holder['host']}, since {holder['since']}; "
                "wait for it, stop it, or choose another --workdir"
            )
        path.unlink(missing_ok=True)
    if is_remote(path):
        save_json(path, me)
        return
    temporary = temporary_name(path)
    save_json(temporary, me)
    try:
        os.link(temporary, path)  # fails where another process was faster, and appears whole
    except FileExistsError:
        return _take(path, me)
    finally:
        temporary.unlink()


def _renew(path: epath.Path, me: dict[str, Any], ended: threading.Event) -> None:
    while not ended.wait(_BEAT):
        with contextlib.suppress(OSError):  # a full disk is for the job to report
            save_json(path, me | {"renewed": time.time()})


def _lives(holder: dict[str, Any]) -> bool:
    if holder["host"] == socket.gethostname() and holder["boot"] == _read("/proc/sys/kernel/random/boot_id"):
        return _started(holder["process"]) == holder["started"] != ""
    return time.time() - holder["renewed"] < _DEAD


def _started(process: int) -> str:
    """Return when a process of this host started, in clock ticks since boot; "" if there is none, or it is a zombie."""
    fields = _read(f"/proc/{process}/stat").rpartition(")")[2].split()
    return fields[19] if fields and fields[0] != "Z" else ""


def _read(path: str) -> str:
    with contextlib.suppress(OSError):
        return Path(path).read_text().strip()
    return ""
