"""The lock of a work directory: one job at a time, and a dead job's lock is taken over. Turns of a host's processes."""

import contextlib
import datetime
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath

from pujax.artifacts import is_remote, save_json, temporary_name
from pujax.errors import UserError
from pujax.presence import Presence, lives, read_presence, who


@contextlib.contextmanager
def locked(path: epath.Path) -> Iterator[None]:
    """Hold the lock file while the body runs.

    A lock of this host is dead if its process is; one of another host, if it has not been renewed for two minutes.

    Raises:
        UserError: a living job holds it; the message says which.
    """
    me = {**who(), "since": datetime.datetime.now().isoformat(" ", "seconds"), "taken": time.time()}
    _take(path, me)
    with contextlib.closing(Presence(path, me)):
        yield


@contextlib.contextmanager
def turn(path: Path) -> Iterator[None]:
    """Let one process of this host run the body at a time; the others wait. The file, on a local disk, stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def read_holder(path: epath.Path) -> tuple[dict[str, Any], bool] | None:
    """Return who holds a lock file, and whether that job lives; None where nobody does.

    A holder has "host", "process", "since" as text, and "taken" and "renewed" in seconds since 1970.
    """
    holder = read_presence(path)
    return (holder, lives(holder)) if holder else None


def _take(path: epath.Path, me: dict[str, Any]) -> None:
    if path.exists():
        holder, alive = read_holder(path) or ({}, False)
        if alive:
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
