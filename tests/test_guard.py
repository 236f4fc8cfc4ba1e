"""Guards of speed that do not measure time: compilations, bytes over the wire, floating-point operations."""

import jax
import jax.numpy as jnp
import numpy as np
from test_train import make_problem

from pujax.config import Config, DataConfig, DistillConfig
from pujax.data.batches import index_batches
from pujax.distill import make_distill_loss
from pujax.models import create_classifier
from pujax.optim import make_optimizer
from pujax.sharding import make_mesh, replicate, shard_batch
from pujax.train import init_state, make_train_step, make_train_steps


def test_the_step_is_traced_once():
    images, labels, variables, loss_fn = make_problem()
    traces = []

    def counted(*arguments):
        traces.append(1)
        return loss_fn(*arguments)

    mesh, tx = make_mesh(jax.devices()[:1]), make_optimizer(DistillConfig(num_steps=12))
    steps = make_train_steps(counted, tx, mesh)
    state = jax.tree.map(jnp.copy, replicate(mesh, init_state(variables, tx)))
    data, frozen = replicate(mesh, {"image": images, "label": labels}), {"scale": jnp.float32(1)}
    batches = index_batches(len(images), 32, seed=0, steps_per_call=3)  # the epochs' ends lie inside chunks
    for _ in range(4):
        state, _ = steps(state, frozen, data, shard_batch(mesh, next(batches), axis=1), jax.random.key(0))
    assert int(state.step) == 12
    assert len(traces) == 1


def test_bytes_from_host_to_device():
    images = np.zeros((64, 32, 32, 3), np.uint8)
    chunks = [next(index_batches(64, 16, seed=0, steps_per_call=2, images=feed)) for feed in (None, images)]
    per_image = [sum(array.nbytes for array in chunk.values()) / 32 for chunk in chunks]
    assert per_image == [4, 4 + 32 * 32 * 3]


def flops(function, *arguments):
    return jax.jit(function).lower(*arguments).cost_analysis()["flops"]


def test_a_distillation_step_costs_one_teacher_pass_and_three_student_passes():
    config = Config(data=DataConfig(image_size=32, channels=3))
    teacher, student = create_classifier("cifar_resnet18_w16", 10), create_classifier("cifar_resnet10_w16", 10)
    batch = jnp.zeros((8, 32, 32, 3), jnp.uint8)
    nets = [(net, net.init(jax.random.key(0), batch / 255, train=False)) for net in (teacher, student)]
    forward = [flops(lambda v, x, net=net: net.apply(v, x, train=False), v, batch / 255) for net, v in nets]
    tx = make_optimizer(config.distill)
    step = make_train_step(make_distill_loss(config, student, teacher), tx, make_mesh(jax.devices()[:1]))
    frozen = {"teacher": nets[0][1], "class_weights": jnp.ones((1, 10))}
    rows = {"image": batch, "label": jnp.zeros(8, jnp.int32), "index": jnp.zeros(8, jnp.int32)}
    total = flops(step, frozen, {}, jax.random.key(0), init_state(nets[1][1], tx), rows)
    assert 0.9 < total / (forward[0] + 3 * forward[1]) < 1.25
