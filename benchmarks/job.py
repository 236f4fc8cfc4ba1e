"""The whole quickstart against PyTorch written the released way, and how soon training starts.

    python -m benchmarks.job                    # about fifteen minutes on two cores, most of them PyTorch's
    python -m benchmarks.job --epochs 10        # PyTorch's scorer cut short: for trying the program, not for a result

Both jobs are commands of their own on the CPU, timed from outside, imports and compilation included: pujax with an
empty compilation cache ("cold") and with a full one ("warm"), without the comparison students. Start-up is the time
from the command to the student's first optimiser step, the earlier stages being done and the cache warm.
"""

import argparse
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.results_file import command_line, measured, run_program

LAUNCH = [sys.executable, "-m", "pujax.launch", "--config", "configs/quickstart.py", "--config.baselines="]


def run_pujax(workdir: Path, cache: Path) -> dict[str, Any]:
    """Run the job; return its seconds and what its summary says."""
    started = time.perf_counter()
    subprocess.run([*LAUNCH, "--workdir", str(workdir)], check=True, env=_environment(cache), capture_output=True)
    seconds = time.perf_counter() - started
    summary = json.loads((workdir / "summary.json").read_text())
    line = {"job_seconds": seconds, "truth_auc": summary["scorer"]["truth_auc"]}
    line |= {f"{stage}_seconds": summary[stage]["seconds"] for stage in ("scorer", "mining", "student")}
    return line | {"precision": summary["mining"]["precision"], "accuracy": summary["student"]["accuracy"]}


def start_up(workdir: Path, cache: Path) -> float:
    """Return the seconds from the command to the student's first logged step, the earlier stages being done."""
    shutil.rmtree(workdir / "distill")
    log = workdir / "metrics.jsonl"
    seen, started = len(log.read_text()), time.perf_counter()
    command = [*LAUNCH, "--workdir", str(workdir), "--config.run.log_every=1"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, env=_environment(cache), **quiet) as job:
        while '"distill/loss"' not in log.read_text()[seen:]:
            if job.poll() is not None:
                raise RuntimeError("the job ended before the student's first step")
            time.sleep(0.01)
        seconds = time.perf_counter() - started
        job.kill()
    return seconds


def _environment(cache: Path) -> dict[str, str]:
    return {**os.environ, "XDG_CACHE_HOME": str(cache), "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Return the result line."""
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        cold = run_pujax(Path(folder) / "cold", cache)
        warm = [run_pujax(Path(folder) / f"warm{i}", cache) for i in range(args.rounds)]
        starts = [start_up(Path(folder) / f"warm{i}", cache) for i in range(args.rounds)]
    started = time.perf_counter()
    released = run_program("torch_job", "--epochs", args.epochs) | {"job_seconds": time.perf_counter() - started}
    return {
        "cold": cold,
        "warm": sorted(warm, key=lambda line: line["job_seconds"])[args.rounds // 2],
        "warm_job_seconds": [entry["job_seconds"] for entry in warm],
        "start_up_seconds": starts,
        "released": released,
        **{f"{part}_ratio": released[f"{part}_seconds"] / cold[f"{part}_seconds"] for part in ("scorer", "job")},
        "device": "cpu",
    }


def main() -> None:
    """Measure and append the result line."""
    rounds = 3, "times that the warm job and the start-up are measured"
    args = command_line(__doc__, "job.jsonl", epochs=(170, "of PyTorch's scorer"), rounds=rounds).parse_args()
    print(json.dumps(measured(args.out, functools.partial(measure, args)), indent=2))


if __name__ == "__main__":
    main()
