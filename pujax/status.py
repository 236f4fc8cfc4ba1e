"""How far a job is, told by its work directory, from any machine that sees it: `pujax status --help`.

Nothing is written, no device is touched, and no other file is read than the small ones of the job.
"""

import argparse
import json
import math
import os
import re
import time
from collections.abc import Sequence
from typing import Any

from etils import epath

from pujax.artifacts import Unit, Workdir, load_json
from pujax.command_line import Parser, run
from pujax.config import STAGES
from pujax.errors import UserError
from pujax.lock import read_holder
from pujax.presence import lives, read_presences
from pujax.report.quantities import count, duration, percent

_DESCRIPTION = """Tell how far a job is: stages, shards of the pool, who is at work, the end of the log, accuracies.

  python -m pujax.status runs/quickstart
  python -m pujax.status gs://bucket/run1 --json

Exit status: 0 done, 2 there is no job, 1 anything else."""
_TAIL = 1 << 16  # bytes of the log that are looked at
_SLACK = 5.0  # seconds that the clocks of a file system and of a job may differ by
_RESULTS = ("teacher", "distill")  # stages that measure a network


def status(path: str) -> dict[str, Any]:
    """Return how far the job in a work directory is.

    Returns:
        "workdir"; "job", the lock's "host", "process", "since" and "alive", and the "age" of its last sign of life in
        seconds, None where nobody holds it; "workers", those who score, each "host", "process", "alive", "age", the
        "shards" that it has done and its "images_per_second"; "stages", by name "done", "running", "stopped" or "not
        begun", baselines as "baselines/random"; "seconds" of those that are done; "score", {"images", "shards",
        "of_images", "of_shards", "seconds_left"}, the latter three None where they are not known, or None before it
        has begun; "log", {"line", "age"}, its last line and the seconds since, None where there is none; "accuracy",
        by "teacher", "student" and the baselines' names.

    Raises:
        UserError: there is no job.
    """
    workdir, now = Workdir(epath.Path(os.path.expanduser(path))), time.time()
    try:
        holder, config = read_holder(workdir.lock), _read(workdir.config)
    except ImportError as error:
        raise UserError(f"{path} needs a package that is not installed: {error}") from error
    if holder is None and config is None:
        raise UserError(f"there is no job in {path}; give the --workdir of one that has begun")
    found, alive = holder or ({}, False)
    job = {name: found.get(name) for name in ("host", "process", "since")}
    names = units(config or {})
    blocks = {name: _read(workdir.unit(name).done) for name in names}
    since = found.get("taken", math.inf) - _SLACK if alive else math.inf
    states = {name: _state(workdir.unit(name), done=blocks[name] is not None, since=since) for name in names}
    helpers = workers(workdir, now)
    if states["score"] == "stopped" and any(worker["alive"] for worker in helpers):
        states["score"] = "running"
    return {
        "workdir": str(workdir.root),
        "job": job | {"alive": alive, "age": max(now - found["renewed"], 0.0)} if holder else None,
        "workers": helpers,
        "stages": states,
        "seconds": {name: block["seconds"] for name, block in blocks.items() if block and "seconds" in block},
        "score": shards(workdir, helpers) if states["score"] != "not begun" else None,
        "log": last_line(workdir, now),
        "accuracy": {
            {"distill": "student"}.get(name, name.rsplit("/", 1)[-1]): block["accuracy"]
            for name, block in blocks.items()
            if block and "accuracy" in block and (name in _RESULTS or "/" in name)
        },
    }


def _state(unit: Unit, *, done: bool, since: float) -> str:
    """Return how far a unit of work is; it runs if it was begun after `since`, when the living job began."""
    if done:
        return "done"
    try:
        begun = unit.inputs.stat().mtime
    except FileNotFoundError:
        return "not begun"
    return "running" if begun >= since else "stopped"


def units(config: dict[str, Any]) -> list[str]:
    """Return the names of the stages and baselines that a job of these options has, in their order."""
    names: list[str] = []
    for stage in STAGES:
        if stage == "baselines":
            names += [f"baselines/{name}" for name in config.get("baselines", ())]
        elif stage != "export" or config.get("export", {}).get("formats", True):
            names.append(stage)
    return names


def workers(workdir: Workdir, now: float) -> list[dict[str, Any]]:
    """Return who scores shards, as their files tell."""
    return [
        {
            "host": told["host"],
            "process": told["process"],
            "alive": lives(told),
            "age": max(now - told["renewed"], 0.0),
            "shards": told["done"],
            "images_per_second": told["images_per_second"],
        }
        for told in read_presences(workdir.workers).values()
    ]


def shards(workdir: Workdir, helpers: list[dict[str, Any]]) -> dict[str, Any]:
    """Return how many shards and images of the pool are scored, by the names of the files, of how many, and how long
    those who are at it will take for the rest."""
    spans = []
    for path in workdir.shards.iterdir() if workdir.shards.is_dir() else ():
        if match := re.fullmatch(r"scores-(\d+)-(\d+)\.parquet", path.name):
            spans.append((int(match[1]), int(match[2])))
    plan, scored = _read(workdir.shard_plan) or {}, sum(stop - start for start, stop in spans)
    rate = sum(worker["images_per_second"] for worker in helpers if worker["alive"])
    return {
        "images": scored,
        "shards": len(spans),
        "of_images": plan.get("images"),
        "of_shards": plan.get("shards"),
        "seconds_left": (plan["images"] - scored) / rate if plan and rate else None,
    }


def last_line(workdir: Workdir, now: float) -> dict[str, Any] | None:
    """Return the last whole line of the log, and its age.

    That of a job in an object store is on its own machine until the job ends.
    """
    own = epath.Path(workdir.scratch) / "metrics.jsonl"
    path = own if own.exists() else workdir.root / "metrics.jsonl"
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - _TAIL, 0))
            lines = file.read().decode(errors="replace").splitlines(keepends=True)
        age = max(now - path.stat().mtime, 0.0)
    except FileNotFoundError:
        return None
    for line in reversed(lines):
        try:
            return {"line": json.loads(line), "age": age}
        except ValueError:  # cut short
            continue
    return None


def _read(path: epath.Path) -> dict[str, Any] | None:
    """Return what a file holds; None where it is not there, which may have changed since anyone looked."""
    try:
        return load_json(path)
    except FileNotFoundError:
        return None


def as_text(found: dict[str, Any]) -> str:
    """Return what `status` found, as people read it."""
    lines = [found["workdir"], _job_line(found["job"]), ""]
    for name, state in found["stages"].items():
        note = f"  {duration(found['seconds'][name])}" if name in found["seconds"] else ""
        if name == "score" and state != "done" and found["score"]:
            note = f"  {_shards_line(found['score'])}"
        lines.append(f"  {name:<30} {state}{note}")
        if name == "score" and state != "done":
            lines += [_worker_line(worker) for worker in found["workers"]]
    if log := found["log"]:
        step = log["line"].get("step")
        values = ", ".join(f"{name} {value:.4g}" for name, value in log["line"].items() if name != "step")
        lines += ["", f"log, {duration(log['age'])} ago: step {step}, {values}"]
    if found["accuracy"]:
        lines += ["", *(f"  {name:<30} {percent(value, 2)}" for name, value in found["accuracy"].items())]
    return "\n".join(lines)


def _job_line(job: dict[str, Any] | None) -> str:
    if job is None:
        return "nobody is at work"
    who = f"process {job['process']} on {job['host']}, since {job['since']}"
    if job["alive"]:
        return f"at work: {who}; last sign of life {duration(job['age'])} ago"
    return f"nobody is at work; {who} has ended without its last word, and the same command continues"


def _shards_line(score: dict[str, Any]) -> str:
    if score["of_shards"] is None:
        return f"{score['shards']} shards, {count(score['images'])} images"
    left = "" if score["seconds_left"] is None else f", {duration(score['seconds_left'])} left"
    return (
        f"{score['shards']} of {score['of_shards']} shards, {count(score['images'])} of "
        f"{count(score['of_images'])} images{left}"
    )


def _worker_line(worker: dict[str, Any]) -> str:
    who = f"    worker {worker['process']} on {worker['host']}"
    if not worker["alive"]:
        return f"{who}: dead"
    return f"{who}: {worker['shards']} shards, {count(round(worker['images_per_second']))} images/s"


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = Parser("pujax.status", _DESCRIPTION)
    parser.add_argument("workdir", metavar="WORKDIR", help="work directory, on a file system or in an object store")
    parser.add_argument("--json", action="store_true", help="print it for programs")
    return parser


def main(argv: Sequence[str]) -> None:
    """Print how far the job is that the arguments name.

    Raises:
        UserError: there is none.
    """
    options = make_parser().parse_args(argv)
    found = status(options.workdir)
    print(json.dumps(found, indent=2) if options.json else as_text(found))


if __name__ == "__main__":
    run(main)
