"""What a killed or full machine leaves behind: it is passed over, refused by name, or made again; never trusted."""

import gc
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from test_artifacts import Store

from pujax.artifacts import load_json, save_json
from pujax.checkpoint import TrainingCheckpoint
from pujax.errors import UserError
from pujax.weights import load_weights, save_weights

STATE = {"params": jnp.arange(5000.0), "step": jnp.int32(7)}
EMPTY = jax.tree.map(jnp.zeros_like, STATE)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with the checkpoint of step 7."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    checkpoint = TrainingCheckpoint(folder, every=1)
    checkpoint.save(7, STATE)
    checkpoint.close()
    return folder


def restore(folder):
    checkpoint = TrainingCheckpoint(folder, every=1)
    try:
        return checkpoint.restore(EMPTY)
    finally:
        checkpoint.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # TensorStore's abandoned reads
def test_a_checkpoint_cut_short_anywhere_is_refused_or_restored_whole(saved, tmp_path):
    names = sorted(path.relative_to(saved) for path in saved.rglob("*") if path.is_file())
    refused = set()
    for i, name in enumerate(names):
        folder = tmp_path / str(i)
        shutil.copytree(saved, folder)
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])
        try:
            state = restore(folder)
        except UserError as error:
            assert f"the checkpoint of step 7 in {folder} cannot be restored" in str(error)
            refused.add(name.parts[1])
        else:
            assert (np.asarray(state["params"]) == STATE["params"]).all(), name
            assert state["step"] == 7, name
    assert "default" in refused
    gc.collect()  # what TensorStore abandoned warns here, not in another test


def test_a_checkpoint_that_was_being_written_is_passed_over(saved, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(saved, folder)
    shutil.copytree(saved / "7", folder / "9.orbax-checkpoint-tmp")
    assert restore(folder)["step"] == 7
    began = time.monotonic()
    while (folder / "9.orbax-checkpoint-tmp").exists():  # it goes in the background
        assert time.monotonic() - began < 10
        time.sleep(0.01)


def test_weights_and_json_cut_short_are_refused(tmp_path):
    weights = {"a": np.ones(100, np.float32)}
    save_weights(epath.Path(tmp_path / "w.safetensors"), weights)
    save_json(tmp_path / "DONE.json", {"accuracy": 0.5})
    assert load_json(tmp_path / "DONE.json") == {"accuracy": 0.5}
    for name in ("w.safetensors", "DONE.json"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"w.safetensors is not a readable safetensors file"):
        load_weights(tmp_path / "w.safetensors", weights)
    with pytest.raises(ValueError, match=r"DONE.json is damaged; delete"):
        load_json(tmp_path / "DONE.json")


@pytest.fixture
def bucket(monkeypatch):
    """A folder of an object store in memory."""
    Store.install(monkeypatch)
    return epath.Path("s3://bucket/run/distill/checkpoints")


def test_in_an_object_store_the_newest_state_is_one_object(bucket):
    assert restore(bucket) is EMPTY
    checkpoint = TrainingCheckpoint(bucket, every=1)
    for step in (1, 2, 30):
        checkpoint.save(step, STATE | {"step": jnp.int32(step)})
    checkpoint.close()
    assert [path.name for path in bucket.iterdir()] == ["30.npz"]
    state = restore(bucket)
    assert (np.asarray(state["params"]) == STATE["params"]).all() and state["step"] == 30
    assert state["params"].sharding == EMPTY["params"].sharding


@pytest.mark.parametrize("keep", [0, 100, 10_000])
def test_an_object_that_is_damaged_or_of_another_network_is_refused(bucket, keep):
    checkpoint = TrainingCheckpoint(bucket, every=1)
    checkpoint.save(7, STATE)
    checkpoint.close()
    other = {"params": jnp.zeros(3), "step": jnp.int32(0)}
    for wanted in (other, EMPTY):
        with pytest.raises(UserError, match=r"the checkpoint of step 7 in s3://\S+ cannot be restored"):
            TrainingCheckpoint(bucket, every=1).restore(wanted)
        (bucket / "7.npz").write_bytes((bucket / "7.npz").read_bytes()[:keep])


def test_a_state_that_cannot_be_written_is_an_error_at_the_next_one(bucket, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("pujax.checkpoint.write_atomic", full)
    checkpoint = TrainingCheckpoint(bucket, every=1)
    checkpoint.save(7, STATE)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.close()
