"""How much of the scoring step's own rate stage score keeps, where the pool is in memory.

    python -m benchmarks.score_rate --teacher lenet5 --images 500000 --batch_size 512         # what a CPU shows
    python -m benchmarks.score_rate --teacher cifar_resnet34 --images 1000000 --batch_size 4096

The pool is the quickstart's in 32x32x3, again and again. The stage is timed from its first finished shard to its last,
so without compilation, and with all else: reading, sending, fetching, writing. The step alone runs on one batch that
is on the device, several times without a wait. Both are of the same process, and take turns with themselves: the stage
between two timings of the step.
"""

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from benchmarks.jax_side import rate
from benchmarks.results_file import command_line, measured
from configs import quickstart
from pujax import artifacts, pipeline, programs
from pujax.config import Config, RunConfig, ScoreConfig, SourceConfig, resolve, with_options
from pujax.data.embedded import load_embedded
from pujax.sharding import configure_backend
from pujax.stages.teacher import abstract_teacher

STAGES = ("teacher", "scorer", "score")


def make_config(folder: Path, teacher: str, images: int, shard_size: int, batch_size: int) -> Config:
    """Return the quickstart with another teacher, untrained, in colour and with a pool of `images` in memory."""
    options: dict[str, Any] = {"data.channels": 3, "data.mean": (0.286,) * 3, "data.std": (0.353,) * 3}
    for part in ("labelled", "pool", "test"):
        arrays = load_embedded(part)
        count = images if part == "pool" else len(arrays["images"])
        grey = np.pad(arrays["images"], [(0, 0), (2, 2), (2, 2)])[..., None]
        labels = {} if part == "pool" else {"labels": arrays["labels"]}
        np.savez(folder / f"{part}.npz", images=np.resize(np.repeat(grey, 3, axis=-1), (count, 32, 32, 3)), **labels)
        options[f"data.{part}"] = SourceConfig(kind="array", path=str(folder / f"{part}.npz"))
    options["data.full"] = options["data.labelled"]
    options |= {
        "teacher.model": teacher,
        "teacher.weights": "",
        "teacher.num_steps": 1,
        "teacher.batch_size": 64,
        "scorer.frozen.num_steps": 10,
    }
    options |= {"score": ScoreConfig(shard_size=shard_size), "run": RunConfig(inference_batch_size=batch_size)}
    return resolve(with_options(quickstart.get_config(), options | {"scorer.pool_sample": 5000, "baselines": ()}))


def stage_rate(config: Config, folder: Path) -> float:
    """Return images per second of stage score, from the end of its first shard to that of its last."""
    pipeline.run(config, folder, STAGES)
    shards = sorted(path.stat().st_mtime_ns for path in (folder / "score" / "shards").glob("*.parquet"))
    return (len(shards) - 1) * config.score.shard_size / ((shards[-1] - shards[0]) / 1e9)


def measure(teacher: str, images: int, shard_size: int, batch_size: int, seconds: float) -> dict[str, Any]:
    """Return the result line."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = make_config(folder, teacher, images, shard_size, batch_size)
        workdir = artifacts.open_workdir(epath.Path(folder / "run"))
        with pipeline.opened(config, workdir, STAGES, dry=True) as (job, _):
            program = programs.scoring(job.config, abstract_teacher(job.config, job.given_teacher), job.mesh)
        compiled, arguments = program.compile(), programs.zeros(program)
        jax.block_until_ready(compiled(*arguments))
        step = functools.partial(rate, functools.partial(compiled, *arguments), program.batch_size, seconds)
        before, stage, after = step(), stage_rate(config, folder / "run"), step()
    alone = (before + after) / 2
    line = {"teacher": teacher, "images": images, "shard_size": shard_size, "batch_size": batch_size}
    line |= {"step_images_per_second": [before, after], "stage_images_per_second": stage, "ratio": stage / alone}
    return line | {"device": jax.devices()[0].device_kind}


def main() -> None:
    """Measure, and append the line."""
    options = {"teacher": "lenet5", "images": 500_000, "shard_size": 50_000, "batch_size": 512}
    args = command_line(__doc__, "score_rate.jsonl", **options, seconds=(2.0, "of the step alone, twice")).parse_args()
    configure_backend()
    given = {name: getattr(args, name) for name in (*options, "seconds")}
    print(json.dumps(measured(args.out, functools.partial(measure, **given))))


if __name__ == "__main__":
    main()
