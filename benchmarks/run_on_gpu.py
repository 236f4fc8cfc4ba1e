"""Everything that only a GPU shows, in slices, the most telling first; run it again to do the ones that are missing.

    python -m benchmarks.run_on_gpu OUT --data DATA --wheels WHEELS
    python -m benchmarks.run_on_gpu OUT --list     # what would run, and for about how long

OUT receives result lines, and a log and a mark of every slice that is done. No slice begins that, by what is written
beside it, would end after --minutes; one that does not finish is reported, and the others go on. Needed are jax with
CUDA, flax, optax, orbax and torch; WHEELS is a folder of wheels of what else pujax needs, for a machine without
network, and pujax itself is taken from here. DATA holds cifar_train.npz, cifar_test.npz and in_pool.npz (see
tools/pack_cifar10.py) for the CIFAR-10 protocol with the paper's networks. Last comes a table of what OUT holds.
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.results_file import command_line, read
from benchmarks.speed_tables import CASES, markdown

CIFAR = ("cifar_resnet34:cifar_resnet18", 1024)
THROUGHPUT = (  # case, networks, batch
    ("kd_step", *CIFAR),
    ("scoring", *CIFAR),
    ("kd_step", "resnet34:resnet18", 256),
    ("kd_step", "resnet50:resnet18", 256),
    ("kd_step_cached", *CIFAR),
    ("scoring", "resnet50:resnet18", 256),
)
PROTOCOL = "cifar10.jsonl"
ROOT = Path(__file__).parent.parent


class Slice(NamedTuple):
    """A program to run."""

    name: str
    seconds: float  # that it takes, about
    command: tuple[str, ...]  # a module and its options


def slices(out: Path, data: Path | None, compile_mode: str) -> list[Slice]:
    """Return all there is to do, the most telling first."""
    rates = ("--compile_mode", compile_mode, "--seconds", "1", "--rounds", "5", "--out", str(out / "throughput.jsonl"))
    timed = []
    for case, pair, batch in THROUGHPUT:
        options = ("--cases", case, "--pairs", pair, "--batch_size", str(batch), *rates)
        name = f"{case}-{pair.replace(':', '-')}-{compile_mode}"
        timed.append(Slice(name, 240 if compile_mode == "max-autotune" else 45, ("benchmarks.throughput", *options)))
    options = ("--teacher", "cifar_resnet34", "--images", "600000", "--shard_size", "100000", "--batch_size", "4096")
    score = Slice("score_rate", 60, ("benchmarks.score_rate", *options, "--out", str(out / "score_rate.jsonl")))
    job = ("pujax.launch", "--config", "configs/quickstart.py", "--workdir", str(out / "quickstart"))
    found = [Slice("quickstart", 60, job), *timed[:3], score]
    if data:
        options = ("--table", "cifar10", "--networks", "paper_short", "--data", str(data), "--seeds", "1")
        options += ("--rows", "pujax", "--baselines", "random", "all", "full_data", "--no-others")
        options += ("--workdir", str(out / "runs"))
        found.append(Slice("cifar10", 310, ("benchmarks.ablation", *options, "--out", str(out / PROTOCOL))))
    return found + timed[3:]


def environment(out: Path, wheels: Path | None) -> dict[str, str]:
    """Return the environment of the slices; the wheels are unpacked beside the results, once."""
    if not wheels:
        return dict(os.environ)
    site = out / "site"
    if not site.exists():
        install = (sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", str(site))
        subprocess.run([*install, *map(str, sorted(wheels.glob("*.whl")))], check=True)
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH", ""))))}


def run(own: Slice, out: Path, limit: float, given: dict[str, str]) -> bool:
    """Run a slice, its output in a log; mark it where it ends well, and say how it ended."""
    began, log = time.monotonic(), out / f"{own.name}.log"
    print(f"== {own.name}", flush=True)
    with log.open("w") as text:
        command = [sys.executable, "-m", *own.command]
        try:
            status = subprocess.run(command, stdout=text, stderr=text, env=given, cwd=ROOT, timeout=limit).returncode
        except subprocess.TimeoutExpired:
            status = f"the time limit, {limit:.0f} s"
    if status == 0:
        (out / f"{own.name}.done").touch()
        print(f"done in {time.monotonic() - began:.0f} s", flush=True)
    else:
        last = log.read_text().splitlines()[-8:]
        print(*last, f"{own.name} ended with {status}; see {log}", sep="\n", flush=True)
    return status == 0


def table(out: Path) -> str:
    """Return what the result files say, short."""
    rows = []
    for line in read(out / "throughput.jsonl"):
        case = f"{CASES[line['case']]}, {line['teacher']} -> {line['student']}, {line['batch_size']}"
        rates = f"{line['images_per_second']['pujax']:,.0f} images/s"
        rows.append([case, rates, f"{line['ratio_to_best']:.2f}x PyTorch, {line['ratio_to_released']:.2f}x released"])
    for line in read(out / "score_rate.jsonl"):
        rate = f"{line['stage_images_per_second']:,.0f} images/s"
        rows.append([f"stage score, {line['teacher']}", rate, f"{100 * line['ratio']:.0f} % of the step alone"])
    for line in read(out / PROTOCOL):
        seconds = ", ".join(f"{stage} {value:.0f} s" for stage, value in line["seconds"].items())
        rows.append([f"CIFAR-10, {line['row']}", f"{100 * line['accuracy']:.2f} %", seconds])
    return markdown("what; measured; beside", rows)


def main() -> None:
    """Run what is missing; print the table; end with 1 where a slice did not end well, or was left for another run."""
    parser = command_line(__doc__)
    parser.add_argument("out_folder", metavar="OUT", type=Path, help="folder of results, logs and marks")
    parser.add_argument("--data", type=Path, help="folder of the CIFAR-10 arrays; without it that slice is left out")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to be used beside what is installed")
    parser.add_argument("--minutes", type=float, default=13.0, help="that all slices may take")
    modes = ("reduce-overhead", "max-autotune", "default")
    parser.add_argument("--compile_mode", choices=modes, default=modes[0], help="of torch.compile; the second is slow")
    parser.add_argument("--only", nargs="*", help="only slices whose name begins so")
    parser.add_argument("--list", action="store_true", help="say what there is to do, and do nothing")
    args = parser.parse_args()
    out, end, well = args.out_folder.absolute(), time.monotonic() + 60 * args.minutes, True
    wanted = [own for own in slices(out, args.data, args.compile_mode) if own.name.startswith(tuple(args.only or [""]))]
    missing = [own for own in wanted if not (out / f"{own.name}.done").exists()]
    if args.list:
        print("\n".join(f"{own.name}: {own.seconds:.0f} s: python -m {' '.join(own.command)}" for own in missing))
        return
    out.mkdir(parents=True, exist_ok=True)
    given = environment(out, args.wheels)
    for own in missing:
        left = end - time.monotonic()
        if left < own.seconds:
            print(
                f"== {own.name} takes {own.seconds:.0f} s, {max(left, 0):.0f} s are left: for another run", flush=True
            )
            well = False
        else:
            well &= run(own, out, left, given)
    print(table(out))
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    main()
