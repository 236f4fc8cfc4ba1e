"""The programs that a job's time goes to, with the shapes of what they are given: to be compiled, not run."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pujax.config import Config, TrainingConfig
from pujax.inference import compile_map
from pujax.networks import Network
from pujax.optim import make_optimizer
from pujax.pu.heads import in_styles, init_heads, make_heads_training
from pujax.pu.losses import make_pu_loss
from pujax.pu.scorer import (
    abstract_weights,
    frozen_arguments,
    frozen_inputs,
    init_pu_net,
    make_pu_net,
    score_function,
    styled_views,
)
from pujax.stages.scorer import make_finetune_loss
from pujax.stages.teacher import make_teacher_loss
from pujax.student import frozen_arrays, make_distill_loss
from pujax.train import LossFn, init_state, make_train_step


class Program(NamedTuple):
    """A function to be compiled, and the `jax.ShapeDtypeStruct`s of its arguments, spread over a mesh."""

    fn: Any  # made by jax.jit
    arguments: tuple[Any, ...]
    batch_size: int  # images of one call, over all devices

    def compile(self) -> Any:
        """Return it compiled for the devices of its mesh."""
        return self.fn.lower(*self.arguments).compile()


def scoring(config: Config, teacher: Network, mesh: Mesh) -> Program:
    """Return how stage score sees one batch: the teacher, and the scorer of its features."""
    scorer = config.scorer
    batch_size = config.run.inference_batch_size
    batch_size += -batch_size % mesh.size
    arguments = frozen_arguments(scorer, with_zeros(teacher), _host_zeros(abstract_weights(scorer, teacher)))
    rows = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
    images = jax.ShapeDtypeStruct((batch_size, *teacher.preprocessing.image_shape), jnp.uint8)
    fn = compile_map(score_function(scorer, teacher), mesh)
    return Program(fn, (_replicated(mesh, arguments), *_split(mesh, (rows, images))), batch_size)


def scorer_training(config: Config, teacher: Network, mesh: Mesh, *, num_labelled: int, num_pool: int) -> Program:
    """Return what trains the scorer: all steps of the heads, in one loop, or one step of the fine-tuned network.

    Args:
        config: the job's options; heads that wait for the data to show whether styles are needed get none.
        teacher: without weights or with them.
        mesh: devices.
        num_labelled: labelled images.
        num_pool: images of the pool sample.
    """
    options = getattr(config.scorer, config.scorer.mode)
    loss = make_pu_loss(
        options.loss, class_prior=None, beta=options.beta, gamma=options.gamma, surrogate=options.surrogate
    )
    if config.scorer.mode == "finetune":
        net = make_pu_net(options, teacher)
        variables = jax.eval_shape(lambda v, r: init_pu_net(net, teacher, v, r), teacher.variables, _key())
        loss_fn = make_finetune_loss(options, loss, net, teacher, num_labelled=num_labelled)
        return _training(options, loss_fn, variables, {}, teacher, mesh)
    options = in_styles(options) if options.styles == "on" else options
    image = jax.ShapeDtypeStruct((1, *teacher.preprocessing.image_shape), jnp.uint8)
    inputs = jax.eval_shape(lambda v, x: frozen_inputs(options, teacher, v, x)[1], teacher.variables, image)
    size = inputs["features"].shape[-1]
    heads = jax.eval_shape(
        lambda r: init_heads(options, r, size=size, num_classes=teacher.num_classes)["heads"], _key()
    )
    counts = [num_labelled * (styled_views(num_labelled) if options.styles == "on" else 1), num_pool]
    data = {
        "features": [jax.ShapeDtypeStruct((count, size), jnp.float32) for count in counts],
        "rows": [
            jax.ShapeDtypeStruct((options.folds, count - -(-count // options.folds)), jnp.int32) for count in counts
        ],
    }
    fn = make_heads_training(options, loss, mesh)
    return Program(fn, _replicated(mesh, (heads, data, _key())), options.batch_size)


def teacher_training(config: Config, teacher: Network, mesh: Mesh) -> Program:
    """Return one step of the teacher that is trained here."""
    return _training(config.teacher, make_teacher_loss(config.teacher, teacher), teacher.variables, {}, teacher, mesh)


def distillation(config: Config, teacher: Network, student: Network, mesh: Mesh) -> Program:
    """Return one step of the student."""
    distill = config.distill
    weights = 1 + distill.num_perturbations if distill.robust == "paper" else 1
    frozen = frozen_arrays(
        distill,
        seed=config.seed,
        class_weights=jax.ShapeDtypeStruct((weights, teacher.num_classes), jnp.float32),
        teacher_variables=with_zeros(teacher).folded,
    )
    logits = (distill.batch_size, distill.cached_views, teacher.num_classes)
    rows = {"teacher_logits": jax.ShapeDtypeStruct(logits, jnp.float32)} if distill.cached_views else {}
    loss_fn = make_distill_loss(distill, student, teacher)
    return _training(distill, loss_fn, student.variables, frozen, teacher, mesh, rows)


def zeros(program: Program) -> tuple[Any, ...]:
    """Return arguments for a program, all zero, on the devices of its mesh."""

    def make() -> Any:
        return jax.tree.map(_zeros, program.arguments)

    return jax.jit(make, out_shardings=jax.tree.map(lambda x: x.sharding, program.arguments))()


def _training(
    training: TrainingConfig,
    loss_fn: LossFn,
    variables: Any,
    frozen: Any,
    teacher: Network,
    mesh: Mesh,
    further: dict[str, Any] | None = None,
) -> Program:
    """Return one step of `fit`; `further` is what its batch has beside images and labels."""
    tx, batch_size = make_optimizer(training), training.batch_size
    rows = {
        "index": jax.ShapeDtypeStruct((batch_size,), jnp.int32),
        "image": jax.ShapeDtypeStruct((batch_size, *teacher.preprocessing.image_shape), jnp.uint8),
        "label": jax.ShapeDtypeStruct((batch_size,), jnp.int32),
    } | (further or {})
    state = jax.eval_shape(lambda v: init_state(v, tx), variables)
    step = jax.jit(make_train_step(loss_fn, tx, mesh), donate_argnums=2)
    arguments = (*_replicated(mesh, (frozen, _key(), state)), _split(mesh, rows))
    return Program(step, arguments, batch_size)


def with_zeros(network: Network) -> Network:
    """Return a network with weights that are zero, on the host, for `folded`, which takes numbers."""
    return network.with_variables(_host_zeros(network.variables))


def _host_zeros(tree: Any) -> Any:
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), tree)


def _key() -> Any:
    return jax.eval_shape(lambda: jax.random.key(0))


def _replicated(mesh: Mesh, tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, P())), tree)


def _split(mesh: Mesh, tree: Any) -> Any:
    split = NamedSharding(mesh, P("data"))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split), tree)


def _zeros(x: Any) -> jax.Array:
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.key(0)
    return jnp.zeros(x.shape, x.dtype)
