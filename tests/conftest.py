"""Eight virtual CPU devices, a compile cache shared by all tests, parsed flags (Grain's workers need them)."""

import fcntl
import os
import tempfile
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()

import jax
import pytest
from absl import flags
from etils import epath

CACHE = Path(tempfile.gettempdir()) / f"pujax_test_cache_{os.getuid()}"
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
jax.config.update("jax_numpy_rank_promotion", "raise")

from pujax.sharding import configure_backend, make_mesh  # noqa: E402 - after the flags above

configure_backend()
flags.FLAGS.mark_as_parsed()


@pytest.fixture(params=[1, 8], ids=["1 device", "8 devices"])
def mesh(request):
    """A mesh over one, then over eight devices."""
    return make_mesh(jax.devices()[: request.param])


@pytest.fixture
def meshes():
    """A mesh over one device and one over eight, for comparing the two."""
    return make_mesh(jax.devices()[:1]), make_mesh(jax.devices())


@pytest.fixture(scope="session")
def store():
    """The address of an object store on loopback, and its one bucket."""
    from object_store import Bucket, serving

    bucket = Bucket()
    with serving(bucket) as address:
        yield address, bucket


@pytest.fixture
def bucket(store, monkeypatch):
    """The bucket s3://bucket of that store, empty, to be read through the real client."""
    import fsspec
    import s3fs

    address, bucket = store
    bucket.__init__()
    for name, value in {"AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b",
                        "AWS_DEFAULT_REGION": "us-east-1", "AWS_MAX_ATTEMPTS": "1"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    fsspec.register_implementation("s3", s3fs.S3FileSystem, clobber=True)  # other tests put a store of their own there
    remembered = epath.backend.fsspec_backend._get_filesystem  # by epath, for good
    remembered.cache_clear()
    yield bucket
    remembered.cache_clear()


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The work directory of a small job that has run, with a baseline and exported files; not to be changed.

    Its student begins as its teacher, so that four steps leave one that is right, and not the same.
    """
    from finished_job import options
    from test_pipeline import in_process

    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "finished"  # one for all workers
    root.mkdir(exist_ok=True)
    with (root / "turn").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        if not (root / "made").exists():
            in_process(root, options)
            (root / "made").touch()
    return root / "run"
