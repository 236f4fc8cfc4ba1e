"""The lock of a work directory: one job at a time, and a dead job's lock is taken over."""

import contextlib
import datetime
import os
from collections.abc import Iterator
from typing import Any

from etils import epath

from pujax.artifacts import is_remote, load_json, save_json, temporary_name
from pujax.errors import UserError
from pujax.presence import Presence, lives, who


@contextlib.contextmanager
def locked(path: epath.Path) -> Iterator[None]:
    """Hold the lock file while the body runs.

    A lock of this host is dead if its process is; one of another host, if it has not been renewed for two minutes.

    Raises:
        UserError: a living job holds it; the message says which.
    """
    me = {**who(), "since": datetime.datetime.now().isoformat(" ", "seconds")}
    _take(path, me)
    with contextlib.closing(Presence(path, me)):
        yield


def _take(path: epath.Path, me: dict[str, Any]) -> None:
    if path.exists():
        try:
            holder = load_json(path)
        except UserError:  # cut short by a full disk
            holder = None
        if holder and lives(holder):
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
