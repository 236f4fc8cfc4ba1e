"""Signs of life: a small file that a process keeps, in which others read who it is, what it does, and that it lives."""

import contextlib
import errno
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

from etils import epath

from pujax.artifacts import load_json, save_json
from pujax.errors import UserError

BEAT = 20.0  # seconds between signs of life
_ATTEMPTS = 5  # at reading a file that others write
_DEAD = 120.0  # a process of another host without a sign of life for so long is taken for dead


class Presence:
    """A file that is renewed while this process lives, and goes when it is closed."""

    def __init__(self, path: epath.Path, told: dict[str, Any]):
        self.path = path
        self._told = told
        self._writing, self._ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    def tell(self, **told: Any) -> None:
        """Write the file now, with something changed in it."""
        with self._writing:
            self._told |= told | {"renewed": time.time()}
            save_json(self.path, self._told)

    def close(self) -> None:
        """Remove the file."""
        self._ended.set()
        self._thread.join()
        self.path.unlink(missing_ok=True)

    def _renew(self) -> None:
        while not self._ended.wait(BEAT):
            with contextlib.suppress(OSError):  # a full disk is for the job to report
                self.tell()


def who() -> dict[str, Any]:
    """Return what tells this process from every other one, on any host, at any time."""
    return {"host": socket.gethostname(), "boot": _read("/proc/sys/kernel/random/boot_id"), "process": os.getpid(),
            "started": _started(os.getpid()), "renewed": time.time()}  # fmt: skip


def lives(told: dict[str, Any]) -> bool:
    """Whether the process that wrote this is alive: one of another host, if its file was renewed of late."""
    if told["host"] == socket.gethostname() and told["boot"] == _read("/proc/sys/kernel/random/boot_id"):
        return _started(told["process"]) == told["started"] != ""
    return time.time() - told["renewed"] < _DEAD


def read_presences(folder: epath.Path) -> dict[str, dict[str, Any]]:
    """Return what every file in a folder tells, by its name; of the dead, too."""
    found = {}
    with contextlib.suppress(FileNotFoundError):
        for path in sorted(folder.iterdir()):
            if path.suffix == ".json" and (told := read_presence(path)):
                found[path.name] = told
    return found


def read_presence(path: epath.Path) -> dict[str, Any] | None:
    """Return what a file tells, of a dead process, too; None where it is gone, or was cut short by a full disk.

    Stores refuse to go on reading an object that is written anew meanwhile; then it is read again.
    """
    for attempt in range(_ATTEMPTS):
        try:
            return load_json(path)
        except (FileNotFoundError, UserError):
            return None
        except OSError as error:
            if error.errno != errno.EBUSY or attempt == _ATTEMPTS - 1:
                raise
    return None


def _started(process: int) -> str:
    """Return when a process of this host started, in clock ticks since boot; "" if there is none, or it is a zombie."""
    fields = _read(f"/proc/{process}/stat").rpartition(")")[2].split()
    return fields[19] if fields and fields[0] != "Z" else ""


def _read(path: str) -> str:
    with contextlib.suppress(OSError):
        return Path(path).read_text().strip()
    return ""
