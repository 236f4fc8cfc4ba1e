"""Batches under the conditions of a real run: chunks, mapped files, prefetching threads, several processes."""

import numpy as np
import pytest

from pujax.data.batches import index_batches, mixed_index_batches

IMAGES = np.random.default_rng(0).integers(0, 256, (50, 4, 4, 3), np.uint8)


def streams(first_step=0):
    feed = {"seed": 7, "steps_per_call": 3, "first_step": first_step}
    mixed = {"num_positive_per_batch": 6, "num_pool_per_batch": 10, **feed}
    return {
        "uniform": lambda: index_batches(50, 8, images=IMAGES, **feed),
        "mixed": lambda: mixed_index_batches(4, 46, images=IMAGES, **mixed),
    }


def take(batches, count):
    return [{name: rows.copy() for name, rows in next(batches).items()} for _ in range(count)]


@pytest.mark.parametrize("name", ["uniform", "mixed"])
@pytest.mark.parametrize("position", [0, 1, 9])
def test_batches_are_a_function_of_the_step(name, position):
    batches = streams()[name]()
    take(batches, position)
    resumed = streams(first_step=3 * position)[name]()
    for chunk, expected in zip(take(resumed, 12), take(batches, 12), strict=True):
        assert all(np.array_equal(chunk[key], expected[key]) for key in ("index", "image"))


@pytest.mark.parametrize("steps_per_call", [1, 2, 5])
def test_an_epoch_has_no_repetition_across_chunk_borders(steps_per_call):
    batches = index_batches(37, 4, seed=1, steps_per_call=steps_per_call)
    steps = np.concatenate([chunk["index"] for chunk in take(batches, 90 // steps_per_call)])
    for epoch in steps.reshape(10, 9, 4):
        assert len(np.unique(epoch)) == 36 and epoch.min() >= 0 and epoch.max() < 37
    assert len({epoch.tobytes() for epoch in steps.reshape(10, 36)}) == 10


@pytest.mark.parametrize("name", ["uniform", "mixed"])
def test_two_processes_split_indices_and_images_alike(name, monkeypatch):
    whole, parts = take(streams()[name](), 4), []
    monkeypatch.setattr("jax.process_count", lambda: 2)
    for process in range(2):
        monkeypatch.setattr("jax.process_index", lambda process=process: process)
        parts.append(take(streams()[name](), 4))
    for chunk, first, second in zip(whole, *parts, strict=True):
        for key in ("index", "image"):
            assert np.array_equal(np.concatenate([first[key], second[key]], axis=1), chunk[key])


def test_a_mapped_file_feeds_the_same_images(tmp_path):
    np.save(tmp_path / "images.npy", IMAGES)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    chunk = next(index_batches(50, 10, seed=2, steps_per_call=2, images=mapped))
    assert chunk["image"].dtype == np.uint8 and chunk["index"].dtype == np.int32
    assert np.array_equal(chunk["image"], IMAGES[chunk["index"]])


def test_the_seed_decides():
    one, same, other = (take(index_batches(50, 8, seed=seed), 6) for seed in (1, 1, 2))
    assert all(np.array_equal(a["index"], b["index"]) for a, b in zip(one, same, strict=True))
    assert any(not np.array_equal(a["index"], b["index"]) for a, b in zip(one, other, strict=True))


def test_a_mixed_batch_larger_than_its_pool_is_refused():
    with pytest.raises(ValueError, match="batch_size 64 is larger than the 50 images"):
        mixed_index_batches(4, 50, num_positive_per_batch=8, num_pool_per_batch=64, seed=0)
