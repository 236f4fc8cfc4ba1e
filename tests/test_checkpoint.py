"""What a killed or full machine leaves behind: it is passed over, refused by name, or made again; never trusted."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pujax import mining
from pujax.checkpoint import TrainingCheckpoint, load_json, load_weights, save_json, save_weights
from pujax.data.batches import index_batches

STATE = {"params": jnp.arange(5000.0), "step": jnp.int32(7)}
EMPTY = jax.tree.map(jnp.zeros_like, STATE)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with the checkpoint of step 7, taken after three batches, and the batch that follows."""
    folder, batches = tmp_path_factory.mktemp("saved") / "checkpoints", index_batches(50, 8, seed=0)
    for _ in range(3):
        next(batches)
    checkpoint = TrainingCheckpoint(folder, every=1)
    checkpoint.save(7, STATE, batches)
    checkpoint.close()
    return folder, next(batches)["index"]


def restore(folder):
    batches = index_batches(50, 8, seed=0)
    checkpoint = TrainingCheckpoint(folder, every=1)
    try:
        state = checkpoint.restore(EMPTY, batches)
    finally:
        checkpoint.close()
    return state, next(batches)["index"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # TensorStore's abandoned reads
def test_a_checkpoint_cut_short_anywhere_is_refused_or_restored_whole(saved, tmp_path):
    whole, following = saved
    names = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    refused = set()
    for i, name in enumerate(names):
        folder = tmp_path / str(i)
        shutil.copytree(whole, folder)
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])
        try:
            state, index = restore(folder)
        except ValueError as error:
            assert f"the checkpoint of step 7 in {folder} cannot be restored" in str(error)
            refused.add(name.parts[1])
        else:
            assert (np.asarray(state["params"]) == STATE["params"]).all(), name
            assert state["step"] == 7 and (index == following).all(), name
    assert {"state", "data"} <= refused


def test_a_checkpoint_that_was_being_written_is_passed_over(saved, tmp_path):
    whole, following = saved
    folder = tmp_path / "checkpoints"
    shutil.copytree(whole, folder)
    shutil.copytree(whole / "7", folder / "9.orbax-checkpoint-tmp")
    shutil.copytree(whole / "7", folder / "8")
    (folder / "8" / "commit_success.txt").unlink()
    state, index = restore(folder)
    assert state["step"] == 7 and (index == following).all()


def test_weights_and_json_cut_short_are_refused(tmp_path):
    weights = {"a": np.ones(100, np.float32)}
    save_weights(tmp_path / "w.safetensors", weights)
    save_json(tmp_path / "DONE.json", {"accuracy": 0.5})
    assert load_json(tmp_path / "DONE.json") == {"accuracy": 0.5}
    for name in ("w.safetensors", "DONE.json"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"w.safetensors is not a readable safetensors file"):
        load_weights(tmp_path / "w.safetensors", weights)
    with pytest.raises(ValueError, match=r"DONE.json is damaged; delete"):
        load_json(tmp_path / "DONE.json")


def write_shard(folder, start, stop):
    index = np.arange(start, stop)
    columns = {"key": index.astype(str), "index": index, "pu_logit": index / 10, "teacher_class": index % 3}
    path = mining.shard_path(folder, start, stop)
    pq.write_table(pa.table(columns | {"teacher_confidence": index / 100, "readable": index >= 0}), path)
    return path


def test_a_shard_cut_short_counts_as_missing_and_is_never_read(tmp_path):
    whole, cut = write_shard(tmp_path, 0, 50), write_shard(tmp_path, 50, 100)
    assert len(mining.read_scores(tmp_path, num_images=100, shard_size=50)[0].index) == 100
    cut.write_bytes(cut.read_bytes()[:-20])
    missing = mining.missing_shards(tmp_path, [(0, 50), (50, 100), (100, 130)])
    assert missing == [(50, 100), (100, 130)]
    with pytest.raises(ValueError, match=rf"{cut.name} is damaged; delete it"):
        mining.read_scores(tmp_path, num_images=100, shard_size=50)
    assert whole.exists()
