"""Scoring by independent workers that come, go and are killed: is the table right, what does it cost?

    python -m benchmarks.workers kills            # 1,000,000 images, 1,000 shards, 20 kills among 1 to 4 workers
    python -m benchmarks.workers kills --s3       # the same, in an S3 store on loopback that fails 1 % of the requests
    python -m benchmarks.workers speed            # one worker on one core, two workers on two

The pool is the quickstart's, its 30,000 images again and again; the teacher is the quickstart's LeNet-5. An undisturbed
worker's table is compared byte for byte, and a shard that was once there must keep its time of change. With --s3 (needs
`moto[server]`) the store answers every hundredth request with status 500. Memory is what is not mapped from files.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from benchmarks.results_file import append, command_line
from pujax.artifacts import Workdir
from pujax.data.embedded import load_embedded

RECIPE = """
import importlib.util
spec = importlib.util.spec_from_file_location("quickstart", "configs/quickstart.py")
recipe = importlib.util.module_from_spec(spec)
spec.loader.exec_module(recipe)

def get_config():
    config = recipe.get_config()
    config.data.pool.kind, config.data.pool.name, config.data.pool.path = "array", "", {pool!r}
    config.score.shard_size, config.scorer.pool_sample = {shard_size}, 20_000
    return config
"""
_BUCKET = "pujax-workers"


class Job:
    """A work directory with a scorer, and workers that score its pool."""

    def __init__(self, folder: Path, count: int, shards: int, workdir: str, environment: dict[str, str]):
        self.workdir, self._environment = workdir, environment
        images = load_embedded("pool")["images"]
        pool = folder / "pool.npy"
        if not pool.exists():
            np.save(pool, np.resize(images, (count, *images.shape[1:])))
        self._recipe = folder / "recipe.py"
        self._recipe.write_text(RECIPE.format(pool=str(pool), shard_size=count // shards))
        self.run("--stages=teacher,scorer").wait()

    def run(self, *arguments: str, cores: set[int] | None = None) -> subprocess.Popen:
        """Start a process of the job."""
        command = [sys.executable, "-m", "pujax.launch", "--config", str(self._recipe), f"--workdir={self.workdir}"]
        pin = (lambda: os.sched_setaffinity(0, cores)) if cores else None
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        return subprocess.Popen([*command, *arguments], env=os.environ | self._environment, preexec_fn=pin, **quiet)

    def worker(self, cores: set[int] | None = None) -> subprocess.Popen:
        """Start a worker."""
        return self.run("--stages=score", cores=cores)

    def shards(self) -> dict[str, epath.Path]:
        """Return the files of the finished shards, by their names."""
        folder = Workdir(epath.Path(self.workdir)).shards
        paths = folder.iterdir() if folder.exists() else ()
        return {path.name: path for path in paths if path.suffix == ".parquet"}

    def times(self) -> dict[str, Any]:
        """Return when every finished shard was changed last."""
        return {name: path.stat().mtime for name, path in self.shards().items()}


def check(worker: subprocess.Popen) -> None:
    """Wait for a worker; raise RuntimeError unless it ended well."""
    errors = worker.communicate()[1].decode()
    if worker.returncode:
        raise RuntimeError(f"a worker ended with {worker.returncode}: {errors[-2000:]}")


def anonymous_mb(process: int) -> float:
    """Return the resident memory of a process that is not mapped from files."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("RssAnon"):
                return int(line.split()[1]) / 1024
    return 0.0


def watched(worker: subprocess.Popen) -> list[float]:
    """Wait for a worker; return its memory, in MB, once a second."""
    seen = []
    while worker.poll() is None:
        seen.append(anonymous_mb(worker.pid))
        time.sleep(1)
    check(worker)
    return seen


def kill_at_random(job: Job, kills: int, seed: int, alone: float) -> dict[str, Any]:
    """Kill workers until so many are dead, and let the last ones finish; return what happened.

    The kills are spread over most of the time that one worker alone takes.
    """
    draw, workers, first_seen, rewritten = random.Random(seed), [], {}, 0
    most, at_work = 0, 0
    for _ in range(kills):
        wanted = draw.randint(1, 4)
        workers += [job.worker() for _ in range(wanted - len(workers))]
        most = max(most, len(workers))
        time.sleep(draw.uniform(0.2, 1.4) * alone / kills)
        victim = workers.pop(draw.randrange(len(workers)))
        at_work += victim.poll() is None
        victim.send_signal(signal.SIGKILL)
        victim.communicate()
        for name, when in job.times().items():
            rewritten += first_seen.setdefault(name, when) != when
    workers.append(job.worker())
    for worker in workers:
        check(worker)
    rewritten += sum(first_seen.get(name, when) != when for name, when in job.times().items())
    return {
        "kills": kills,
        "kills_at_work": at_work,
        "most_workers": most,
        "before_the_last": len(first_seen),
        "rewritten": rewritten,
    }


@contextlib.contextmanager
def failing_store(every: int) -> Iterator[dict[str, str]]:
    """Serve an S3 store in which one request of so many fails; give the environment that leads to it."""
    import boto3
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    application, counter, lock = DomainDispatcherApplication(create_backend_app), [0], threading.Lock()

    def answer(environ: dict[str, Any], start_response: Any) -> Any:
        with lock:
            counter[0] += 1
            fails = counter[0] % every == 0
        if fails:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response("500 Internal Server Error", [("Content-Type", "application/xml")])
            return [b"<Error><Code>InternalError</Code><Message>try again</Message></Error>"]
        return application(environ, start_response)

    server = make_server("127.0.0.1", 0, answer, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    secret = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ |= secret | {"FSSPEC_S3_ENDPOINT_URL": address, "AWS_ENDPOINT_URL": address}
    boto3.client("s3").create_bucket(Bucket=_BUCKET)
    yield {}
    server.shutdown()


def measure_kills(folder: Path, count: int, shards: int, kills: int, s3: bool) -> dict[str, Any]:
    """Compare the table of workers that are killed with that of one that is not."""
    with failing_store(100) if s3 else contextlib.nullcontext({}) as environment:
        where = f"s3://{_BUCKET}" if s3 else str(folder)
        calm = Job(folder, count, shards, f"{where}/calm", environment)
        began = time.perf_counter()
        memory = watched(calm.worker())
        alone = time.perf_counter() - began
        began = time.perf_counter()
        check(calm.worker())
        nothing_to_do = time.perf_counter() - began
        job = Job(folder, count, shards, f"{where}/killed", environment)
        line = kill_at_random(job, kills, seed=0, alone=alone)
        expected, found = calm.shards(), job.shards()
        same = expected.keys() == found.keys()
        same = same and all(path.read_bytes() == found[name].read_bytes() for name, path in expected.items())
        tenth = len(memory) // 10
        line |= {"equal": same, "shards": len(found), "alone_seconds": alone, "nothing_to_do_seconds": nothing_to_do}
        return line | {
            "memory_mb_at_a_tenth": memory[min(max(tenth, 10), len(memory) - 1)],
            "memory_mb_at_the_end": memory[-min(2, len(memory))],
        }


def measure_speed(folder: Path, count: int, shards: int) -> dict[str, Any]:
    """Time one worker on one core, and two on two; from the first finished shard to the last."""
    seconds = {}
    for name, cores in (("one", [{0}]), ("two", [{0}, {1}])):
        job = Job(folder, count, shards, str(folder / name), {})
        for worker in [job.worker(core) for core in cores]:
            check(worker)
        times = sorted(job.times().values())
        seconds[name] = times[-1] - times[len(cores) - 1]
    return {"one_worker_seconds": seconds["one"], "two_workers_seconds": seconds["two"],
            "ratio": seconds["one"] / seconds["two"]}  # fmt: skip


def main() -> None:
    """Measure what is asked for, and append it to the results."""
    parser = command_line(__doc__, "workers.jsonl")
    parser.add_argument("what", choices=("kills", "speed"))
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--s3", action="store_true", help="work directory in an object store on loopback")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.what == "kills":
            line = measure_kills(folder, args.images, args.shards, args.kills, args.s3)
        else:
            line = measure_speed(folder, args.images, args.shards)
        where = "s3" if args.s3 else "local"
        print(json.dumps(append(args.out, {"what": args.what, "where": where, "images": args.images, **line})[0]))


if __name__ == "__main__":
    main()
