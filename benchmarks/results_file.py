"""Result files: one JSON line a measurement, with where it comes from; what is there is not measured again."""

import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("jax", "flax", "optax", "numpy", "torch")


def read(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a result file; none where there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def is_there(path: Path, key: dict[str, Any]) -> bool:
    """Whether a line has all of the key's values."""
    return any(key.items() <= line.items() for line in read(path))


def append(path: Path, *lines: dict[str, Any]) -> list[dict[str, Any]]:
    """Append lines, each with its provenance; return them."""
    lines = [line | provenance() for line in lines]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    return lines


def provenance() -> dict[str, Any]:
    """Return date, commit and the versions of Python and of those `PACKAGES` that are installed."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {"date": str(datetime.date.today()), "commit": commit(), "versions": versions}


def commit() -> str:
    """Return the commit that is measured, marked when the tree differs from it."""
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=10"]
    done = subprocess.run(describe, capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
    return done.stdout.strip()


def machine_state() -> dict[str, Any]:
    """Return processor, load averages over 1, 5 and 15 minutes, clocks in MHz, and what NVIDIA GPUs report."""
    lines = [line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line]
    named = [(key.strip(), value.strip()) for key, value in lines]
    state = {
        "processor": next((value for key, value in named if key == "model name"), ""),
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg(),
        "mhz": [float(value) for key, value in named if key == "cpu MHz"],
    }
    fields = "name,clocks.sm,clocks.mem,power.draw,temperature.gpu,utilization.gpu"
    query = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):  # where there is none
        state["gpu"] = subprocess.run(query, check=True, capture_output=True, text=True).stdout.strip()
    return state
