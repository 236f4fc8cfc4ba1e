"""Forward passes over many images: every image once, in order, on any mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from pujax.inference import map_images
from pujax.sharding import make_mesh

IMAGES = np.random.default_rng(0).integers(0, 256, (37, 4, 4, 1), np.uint8)


def means(arguments, images):
    return {"mean": jnp.mean(images.astype(jnp.float32), axis=(1, 2, 3)) * arguments}


@pytest.mark.parametrize("batch_size", [1, 8, 37, 100])
def test_each_image_is_read_once_and_its_output_stands_in_its_row(mesh, batch_size):
    seen = []

    def read(rows):
        seen.extend(rows.tolist())
        return IMAGES[rows]

    out = map_images(means, jnp.float32(2), read, 37, batch_size=batch_size, mesh=mesh)["mean"]
    assert sorted(seen) == list(range(37))
    np.testing.assert_allclose(out, 2 * IMAGES.mean((1, 2, 3)), rtol=1e-6)


def test_dicts_are_padded_too(mesh):
    def read(rows):
        return {"image": IMAGES[rows], "index": rows.astype(np.int32)}

    out = map_images(lambda _, batch: {"index": batch["index"]}, (), read, 37, batch_size=16, mesh=mesh)
    assert out["index"].tolist() == list(range(37))


def test_a_mesh_lists_devices_process_by_process():
    class Device:
        def __init__(self, process_index, id):
            self.process_index, self.id = process_index, id

    interleaved = [Device(process, 2 * process + core) for core in (1, 0) for process in (0, 1, 2, 3)]
    ordered = make_mesh(interleaved).devices.tolist()
    assert [device.process_index for device in ordered] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [device.id for device in ordered] == list(range(8))


def test_rows_that_come_back_in_another_order_are_an_error(monkeypatch):
    reordered = Mesh(np.array(jax.devices()[::-1]), ("data",), axis_types=(AxisType.Auto,))

    def shuffled(mesh, tree):
        return jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[::-1]), tree)

    monkeypatch.setattr("pujax.inference.shard_batch", shuffled)
    with pytest.raises(RuntimeError, match="rows of a batch came back in another order"):
        map_images(means, jnp.float32(1), lambda rows: IMAGES[rows], 37, batch_size=8, mesh=reordered)
