"""Guards of speed that do not measure time: compilations, bytes over the wire, floating-point operations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_train import make_problem

from pujax.config import DistillConfig, RunConfig
from pujax.data.batches import index_batches
from pujax.metrics import MetricsLog
from pujax.networks import Preprocessing, abstract_network, init_network
from pujax.optim import make_optimizer
from pujax.sharding import make_mesh, replicate, shard_batch
from pujax.student import make_distill_loss
from pujax.train import fit, init_state, make_lookup, make_train_step, make_train_steps


def test_the_step_is_traced_once():
    images, labels, variables, loss_fn = make_problem()
    traces = []

    def counted(*arguments):
        traces.append(1)
        return loss_fn(*arguments)

    mesh, tx = make_mesh(jax.devices()[:1]), make_optimizer(DistillConfig(num_steps=12))
    steps = make_train_steps(counted, tx, mesh)
    state = jax.tree.map(jnp.copy, replicate(mesh, init_state(variables, tx)))
    frozen, look_up = {"scale": jnp.float32(1)}, make_lookup(mesh)
    for count in (len(images), len(images) - 7):  # and a training set of another size is trained on by the same program
        data = replicate(mesh, {"image": images[:count], "label": labels[:count]})
        batches = index_batches(count, 32, seed=0, steps_per_call=3)  # the epochs' ends lie inside chunks
        for _ in range(4):
            chunk = shard_batch(mesh, next(batches), axis=1)
            state, _ = steps(state, frozen, chunk | look_up(data, chunk["index"]), jax.random.key(0))
    assert int(state.step) == 24
    assert len(traces) == 1


@pytest.mark.parametrize(("backend", "calls"), [("cpu", 3), ("gpu", 1)])
def test_dispatches_of_a_chunk_of_three_steps(monkeypatch, backend, calls):
    images, labels, variables, loss_fn = make_problem()
    mesh, tx, dispatched, compile_fn = make_mesh(jax.devices()[:1]), make_optimizer(DistillConfig()), [], jax.jit

    def counted(fn, **options):
        compiled = compile_fn(fn, **options)
        return lambda *arguments: dispatched.append(1) or compiled(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr("pujax.train.platform_of", lambda mesh: backend)
        patch.setattr(jax, "jit", counted)
        steps = make_train_steps(loss_fn, tx, mesh)
    state = jax.tree.map(jnp.copy, replicate(mesh, init_state(variables, tx)))
    chunk = shard_batch(mesh, next(index_batches(len(images), 32, seed=0, steps_per_call=3)), axis=1)
    chunk |= make_lookup(mesh)(replicate(mesh, {"image": images, "label": labels}), chunk["index"])
    state, metrics = steps(state, {"scale": jnp.float32(1)}, chunk, jax.random.key(0))
    assert (int(state.step), metrics["loss"].shape, len(dispatched)) == (3, (3,), calls)


def test_the_next_chunks_are_read_and_sent_before_steps_are_waited_for(tmp_path, monkeypatch):
    images, labels, variables, loss_fn = make_problem()
    distill, run, events = DistillConfig(num_steps=5, batch_size=32), RunConfig(device_data_mb=0), []

    def batches(**feed):
        for chunk in index_batches(len(images), 32, seed=0, **feed):
            events.append("read")
            yield chunk

    monkeypatch.setattr("pujax.train.make_train_steps", lambda *_: lambda state, *_: (state, {"loss": jnp.ones(1)}))
    monkeypatch.setattr(jax, "block_until_ready", lambda _: events.append("wait"))
    log = MetricsLog(tmp_path, enabled=False)
    options = {"images": images, "columns": {"label": labels}, "frozen": {}, "log": log, "name": "distill", "run": run}
    options |= {"rng": jax.random.key(0), "mesh": make_mesh(jax.devices()[:1]), "folder": tmp_path}
    fit(distill, loss_fn, variables, make_batches=batches, **options)
    assert events == ["read", "read", "read", "wait", "read", "wait", "read", "wait"]


def test_bytes_from_host_to_device():
    images = np.zeros((64, 32, 32, 3), np.uint8)
    chunks = [next(index_batches(64, 16, seed=0, steps_per_call=2, images=feed)) for feed in (None, images)]
    per_image = [sum(array.nbytes for array in chunk.values()) / 32 for chunk in chunks]
    assert per_image == [4, 4 + 32 * 32 * 3]


def flops(function, *arguments):
    return jax.jit(function).lower(*arguments).cost_analysis()["flops"]


def network(model, seed=0):
    options = {"num_classes": 10, "class_names": None, "dtype": jnp.dtype(jnp.float32)}
    shapes = abstract_network(model, preprocessing=Preprocessing(32, 3, (0.5,), (0.5,)), **options)
    return init_network(shapes, jax.random.key(seed))


def test_a_distillation_step_costs_one_teacher_pass_and_three_student_passes():
    distill = DistillConfig()
    teacher, student = network("cifar_resnet18_w16"), network("cifar_resnet10_w16")
    batch = jnp.zeros((8, 32, 32, 3), jnp.uint8)
    forward = [flops(net.logits, net.variables, batch) for net in (teacher, student)]
    tx = make_optimizer(distill)
    step = make_train_step(make_distill_loss(distill, student, teacher), tx, make_mesh(jax.devices()[:1]))
    frozen = {"teacher": teacher.variables, "class_weights": jnp.ones((1, 10))}
    rows = {"image": batch, "label": jnp.zeros(8, jnp.int32), "index": jnp.zeros(8, jnp.int32)}
    total = flops(step, frozen, jax.random.key(0), init_state(student.variables, tx), rows)
    assert 0.9 < total / (forward[0] + 3 * forward[1]) < 1.25
