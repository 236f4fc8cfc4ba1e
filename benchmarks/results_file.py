"""What the programs share: result files, one JSON line a measurement; command lines, other processes, turns."""

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

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
    """Return date, commit (marked when the tree differs), versions of Python and of the `PACKAGES` that are there."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    describe = ("git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=10")
    return {"date": str(datetime.date.today()), "commit": output(*describe, check=False), "versions": versions}


def machine_state() -> dict[str, Any]:
    """Return processor, load averages over 1, 5 and 15 minutes, clocks in MHz, and what NVIDIA GPUs report."""
    lines = [line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line]
    named = [(key.strip(), value.strip()) for key, value in lines]
    state = {"processor": next((value for key, value in named if key == "model name"), "")}
    state |= {"cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()}
    state["mhz"] = [float(value) for key, value in named if key == "cpu MHz"]
    fields = "name,clocks.sm,clocks.mem,power.draw,temperature.gpu,utilization.gpu"
    with contextlib.suppress(OSError, subprocess.CalledProcessError):  # where there is none
        state["gpu"] = output("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader")
    return state


def measured(out: Path, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Append the line that `measure` returns, with the machine's state before and after; return it."""
    before = machine_state()
    return append(out, measure() | {"machine_before": before, "machine_after": machine_state()})[0]


def output(*command: str, check: bool = True) -> str:
    """Return what a command prints."""
    return subprocess.run(command, check=check, capture_output=True, text=True).stdout.strip()


def run_program(name: str, *arguments: object) -> dict[str, Any]:
    """Run another program of this folder in a process of its own; return the JSON of its last line."""
    return json.loads(output(sys.executable, "-m", f"benchmarks.{name}", *map(str, arguments)).splitlines()[-1])


def command_line(doc: str, out: str = "", **options: Any) -> argparse.ArgumentParser:
    """Return a parser with --out, a file of `RESULTS` by default, and other options: a default, or (default, help)."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if out:
        parser.add_argument("--out", type=Path, default=RESULTS / out)
    for name, option in options.items():
        default, text = option if isinstance(option, tuple) else (option, None)
        parser.add_argument(
            f"--{name}", type=Path if isinstance(default, Path) else type(default), default=default, help=text
        )
    return parser


def take_turns(
    sides: dict[str, Callable[[float], float]], seconds: float, rounds: int, *, warm_up: float, pause: float = 0.0
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Return (samples, medians) of the rates of every side; a side takes seconds and returns its rate over them."""
    for side in sides.values():
        side(warm_up)
    samples: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            time.sleep(pause)  # the other side's workers finish what they read ahead
            samples[name].append(side(seconds))
    return samples, {name: float(np.median(values)) for name, values in samples.items()}


def rates_text(line: dict[str, Any]) -> str:
    """Return the rates of a line in words."""
    return ", ".join(f"{name} {rate:,.0f}" for name, rate in line["images_per_second"].items()) + " images/s"
