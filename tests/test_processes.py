"""Two processes on loopback: rows meet their images though devices interleave, and training moves between counts."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import test_train

from pujax.sharding import make_mesh

ROOT = Path(__file__).parent.parent
SCRIPT = """
import functools, sys
from pathlib import Path
import jax, numpy as np, jax.numpy as jnp
from jax.sharding import AxisType, Mesh
rank, count, port, folder, what = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:6]
if count > 1:
    jax.distributed.initialize(f"localhost:{port}", count, rank)
from absl import flags
flags.FLAGS.mark_as_parsed()
from pujax.sharding import configure_backend, is_main_process, make_mesh
configure_backend()
if what == "rows":
    from pujax.inference import map_images
    devices = [device for pair in zip(*(jax.local_devices(process_index=p) for p in range(2))) for device in pair]
    values = np.arange(19, dtype=np.float32)
    def run(mesh):
        fn = lambda _, x: {"x": 10 * x}
        return map_images(fn, (), lambda rows: values[rows], 19, batch_size=8, mesh=mesh)["x"]
    right = run(make_mesh(devices))
    try:
        run(Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,)))
        noticed = 0.0
    except RuntimeError as error:
        noticed = float("another order" in str(error))
    if is_main_process():
        np.save(folder, np.append(right, noticed))
else:
    sys.path.insert(0, "tests")
    import test_train
    from pujax import train
    real, steps = train.shard_batch, [0]
    def draw(*args, **kwargs):
        steps[0] += 1
        if what == "begin" and steps[0] == 8:
            raise InterruptedError
        return real(*args, **kwargs)
    train.shard_batch = draw
    try:
        out = test_train.train(Path(folder), mesh=make_mesh(), checkpoint_every=3)
        if is_main_process():
            np.save(Path(folder) / "params.npy", np.concatenate([np.ravel(x) for x in jax.tree.leaves(out)]))
    except InterruptedError:
        pass
if count > 1:
    jax.distributed.shutdown()
"""


def run(count, devices, folder, what):
    from conftest import CACHE

    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = f"--xla_force_host_platform_device_count={devices} --xla_cpu_experimental_ynn_fusion_type="
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(CACHE)}
    environment["PYTHONPATH"] = str(ROOT)
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(rank), str(count), str(port), str(folder), what],
            cwd=ROOT,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    errors = [job.communicate(timeout=250)[1] for job in jobs]
    assert [job.returncode for job in jobs] == [0] * count, errors


def test_rows_meet_their_images_though_the_devices_interleave(tmp_path):
    run(2, 2, tmp_path / "out.npy", "rows")
    out = np.load(tmp_path / "out.npy")
    assert out[:-1].tolist() == [10.0 * i for i in range(19)]
    assert out[-1] == 1  # and a mesh that interleaves is noticed


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_training_of_one_process_continues_on_several_with_the_same_numbers(tmp_path, count):
    folder = tmp_path / "run"
    run(1, 4, folder, "begin")
    assert (folder / "checkpoints").exists() and not (folder / "params.npy").exists()
    run(count, 4 // count, folder, "continue")
    whole = test_train.train(tmp_path / "whole", mesh=make_mesh(jax.devices()[:4]))
    expected = np.concatenate([np.ravel(x) for x in jax.tree.leaves(whole)])
    np.testing.assert_allclose(np.load(folder / "params.npy"), expected, atol=1e-5)
