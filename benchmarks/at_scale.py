"""What a large pool costs before a network sees it: listing a folder, and choosing from a score table.

    python -m benchmarks.at_scale listing                    # 100,000 and 1,000,000 files, hard links of a few PNGs
    python -m benchmarks.at_scale selection                  # 100,000,000 rows in 100 shards, about 2 GB of disk

Listing: the first open of the folder, which writes the manifest, and a second. Selection: every rule, keeping 1 % of
the rows; of a table of 1,000,000 rows the same as by sorting it whole. Each is done in a process of its own; resident
memory is that process's peak, imports included.
"""

import json
import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from etils import epath
from PIL import Image

from benchmarks.results_file import append, command_line, run_program
from pujax.config import DataConfig, SourceConfig
from pujax.data.sources import open_source
from pujax.score_table import ScoreTable
from pujax.selection import RULES, select


def by_sorting(rule: str, columns: dict[str, np.ndarray], *, threshold: float, budget: int) -> np.ndarray | None:
    """Return what a rule keeps of a table held in memory; None for rules that sorting does not check."""
    score, classes = columns["score"], columns["teacher_class"]
    if rule == "threshold":
        return np.flatnonzero(score > threshold)
    if rule == "class_balanced":  # all classes are large enough
        share, more = divmod(budget, classes.max() + 1)
        order = np.lexsort((-score, classes))
        first = np.searchsorted(classes[order], classes[order])
        return np.sort(order[np.arange(len(order)) - first < share + (classes[order] < more)])
    if rule in ("top_k", "teacher_confidence"):
        values = columns["teacher_confidence"] if rule == "teacher_confidence" else score
        return np.sort(np.argsort(-values, kind="stable")[:budget])
    return None


def spent(started: float) -> dict[str, float]:
    """Return the seconds since a start, and the peak of this process's resident memory."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": time.perf_counter() - started, "resident_mb": peak}


def make_pool(root: Path, count: int) -> None:
    """Fill a folder with hard links of PNG images, a thousand in each subfolder."""
    for i in range(count):
        folder, image = root / f"{i // 1000:06d}", root.parent / f"{i // 50_000}.png"  # a file has 65,000 links at most
        if i % 1000 == 0:
            folder.mkdir(parents=True)
        if not image.exists():
            Image.fromarray(np.full((32, 32, 3), i % 256, np.uint8)).save(image)
        os.link(image, folder / f"{i:09d}.png")


def open_pool(root: str, manifest: str) -> None:
    """Open a folder as a pool."""
    started = time.perf_counter()
    config = SourceConfig(kind="folder", path=root)
    source = open_source(config, DataConfig(), labelled=False, manifest=epath.Path(manifest))
    print(json.dumps({"count": len(source), "fingerprint": source.fingerprint, **spent(started)}))


def make_table(folder: str, rows: int, shards: int) -> ScoreTable:
    """Write a score table of made-up scores."""
    table, rng = ScoreTable(epath.Path(folder), rows, -(-rows // shards)), np.random.default_rng(0)
    for start, stop in table.shards:
        n = stop - start
        columns = {"key": np.full(n, "x", object), "index": np.arange(start, stop)}
        columns |= {"score": rng.normal(size=n).astype(np.float32)}
        columns |= {"teacher_class": rng.integers(0, 1000, n).astype(np.int32)}
        columns |= {"teacher_confidence": rng.beta(2, 1, n).astype(np.float32)}
        table.write(start, stop, columns | {"readable": np.ones(n, bool), "reason": np.full(n, "", object)})
    return table


def choose(folder: str, num_rows: str, num_shards: str, rule: str) -> None:
    """Choose 1 % of a table's rows."""
    started = time.perf_counter()
    rows = int(num_rows)
    table = ScoreTable(epath.Path(folder), rows, -(-rows // int(num_shards)))
    chosen = select(rule, table, threshold=2.326, budget=rows // 100, seed=0)
    cost, correct = spent(started), None
    if rows <= 1_000_000:
        batches = list(table.batches("score", "teacher_class", "teacher_confidence"))
        columns = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
        expected = by_sorting(rule, columns, threshold=2.326, budget=rows // 100)
        correct = None if expected is None else np.array_equal(chosen, expected)
    print(json.dumps({"chosen": len(chosen), "correct": correct, **cost}))


def main() -> None:
    """Measure, or do one step of it."""
    parser = command_line(__doc__, "at_scale.jsonl")
    parser.add_argument("what", choices=("listing", "selection", "open_pool", "choose"))
    parser.add_argument("arguments", nargs="*", help="of a step")
    parser.add_argument("--files", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 100_000_000])
    args = parser.parse_args()
    if args.what in ("open_pool", "choose"):
        return {"open_pool": open_pool, "choose": choose}[args.what](*args.arguments)
    for size in args.files if args.what == "listing" else args.rows:
        with tempfile.TemporaryDirectory() as folder:
            if args.what == "listing":
                make_pool(Path(folder) / "pool", size)
                steps = dict.fromkeys(("first", "second"), ("open_pool", f"{folder}/pool", f"{folder}/manifest"))
            else:
                make_table(folder, size, 100)
                steps = {rule: ("choose", folder, size, 100, rule) for rule in RULES if rule != "all"}
            for name, step in steps.items():
                line = {"what": args.what, "size": size, "step": name, **run_program("at_scale", *step)}
                print({key: line[key] for key in ("size", "step", "seconds", "resident_mb")}, flush=True)
                append(args.out, line | {"device": "cpu"})


if __name__ == "__main__":
    main()
