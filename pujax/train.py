"""The one training loop: teacher, fine-tuned scorer and student all run through `fit`.

A stage supplies `loss_fn(params, batch_stats, frozen, batch, rng) -> (loss, (batch_stats, metrics))`. Training images
are either on the device, where a program of its own looks rows up, or come with every chunk from the host; the
order of examples is the same. The program that trains knows a chunk alone: training sets of all sizes share it. Random
numbers are folded from a root key and the step, so a resumed run repeats them.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pujax.checkpoint import TrainingCheckpoint
from pujax.config import RunConfig, TrainingConfig
from pujax.goodput import Goodput
from pujax.metrics import MetricsLog
from pujax.optim import make_optimizer
from pujax.preemption import Preempted, StopVote, deferred
from pujax.profiling import Tracer
from pujax.progress import Progress
from pujax.sharding import check_divisible, is_main_process, platform_of, replicate, shard_batch, traced_on

LossFn = Callable[[Any, Any, Any, dict[str, jax.Array], jax.Array], tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]]
_CALLS_IN_FLIGHT = 2  # the next chunk is read and sent while they run; a CPU mesh deadlocks with unboundedly many


@flax.struct.dataclass
class TrainState:
    """What training changes. Arrays only: functions and frozen networks stay outside."""

    step: jax.Array  # int32 []
    params: Any
    batch_stats: Any
    opt_state: Any


def init_state(variables: Any, tx: optax.GradientTransformation) -> TrainState:
    """Return step 0 for a module's variables."""
    params = variables["params"]
    return TrainState(jnp.zeros((), jnp.int32), params, variables.get("batch_stats", {}), tx.init(params))


def variables_of(state: TrainState) -> dict[str, Any]:
    """Return the variables that a Flax module's `apply` takes."""
    return {"params": state.params, "batch_stats": state.batch_stats} if state.batch_stats else {"params": state.params}


def make_train_step(loss_fn: LossFn, tx: optax.GradientTransformation, mesh: Mesh) -> Callable[..., Any]:
    """Build one optimiser step, not compiled.

    Args:
        loss_fn: see the module's docstring.
        tx: optimiser.
        mesh: devices; batches are split over its "data" axis.

    Returns:
        `step(frozen, rng, state, batch) -> (state, metrics)`: `batch` a dict of [B, ...] arrays, metrics
        one of scalars.
    """
    batch_sharding = NamedSharding(mesh, P("data"))

    @traced_on(mesh)
    def step(frozen: Any, rng: jax.Array, state: TrainState, batch: Any) -> tuple[TrainState, Any]:
        batch = jax.lax.with_sharding_constraint(batch, batch_sharding)
        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        step_rng = jax.random.fold_in(rng, state.step)
        (loss, (batch_stats, metrics)), grads = grad_fn(state.params, state.batch_stats, frozen, batch, step_rng)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, batch_stats, opt_state), {"loss": loss, **metrics}

    return step


def make_train_steps(loss_fn: LossFn, tx: optax.GradientTransformation, mesh: Mesh) -> Callable[..., Any]:
    """Build the compiled function that takes several optimiser steps, in one dispatch on accelerators.

    Returns:
        `steps(state, frozen, chunk, rng) -> (state, metrics)`, as `make_train_step` but with `chunk` a dict of
        [k, B, ...] arrays and metrics of [k]. `state` is donated.
    """
    one_step = make_train_step(loss_fn, tx, mesh)
    if platform_of(mesh) == "cpu":  # inside a loop XLA:CPU runs convolutions four times slower: loop out here

        @functools.partial(jax.jit, donate_argnums=0)
        def step_of_chunk(state: TrainState, frozen: Any, chunk: Any, rng: jax.Array, at: Any) -> Any:
            return one_step(frozen, rng, state, {name: rows[at] for name, rows in chunk.items()})

        return functools.partial(_loop, step_of_chunk)

    @functools.partial(jax.jit, donate_argnums=0)
    def steps(state: TrainState, frozen: Any, chunk: Any, rng: jax.Array) -> tuple[TrainState, Any]:
        return jax.lax.scan(functools.partial(one_step, frozen, rng), state, chunk)

    return steps


def _loop(
    step_of_chunk: Callable[..., Any], state: TrainState, frozen: Any, chunk: Any, rng: jax.Array
) -> tuple[TrainState, Any]:
    """Take the steps of a chunk one by one, each in one dispatch; same result as scanning over them."""
    metrics = []
    for at in range(chunk["index"].shape[0]):
        state, step_metrics = step_of_chunk(state, frozen, chunk, rng, at)
        metrics.append(step_metrics)
    return state, _join(*metrics)


@jax.jit
def _join(*metrics: Any) -> Any:
    return jax.tree.map(lambda *values: jnp.stack(values), *metrics)


def make_lookup(mesh: Mesh) -> Callable[[Any, jax.Array], Any]:
    """Build the compiled function that fetches a chunk's rows from arrays on the device.

    Returns:
        `(data, index) -> rows`: of `data`, a dict of [N, ...] arrays, those at `index` [k, B], each [k, B, ...].
    """

    @functools.partial(jax.jit, out_shardings=NamedSharding(mesh, P(None, "data")))
    def look_up(data: Any, index: jax.Array) -> Any:
        return {name: jnp.take(array, index, axis=0) for name, array in data.items()}

    return look_up


def fit(
    training: TrainingConfig,
    loss_fn: LossFn,
    variables: Any,
    *,
    images: np.ndarray,
    columns: dict[str, np.ndarray],
    make_batches: Callable[..., Iterator[dict[str, np.ndarray]]],
    frozen: Any,
    rng: jax.Array,
    mesh: Mesh,
    run: RunConfig,
    folder: epath.Path,
    log: MetricsLog,
    name: str,
) -> Any:
    """Train until `training.num_steps`, resuming from the folder's checkpoint where there is one.

    Args:
        training: optimiser, batch size and number of steps.
        loss_fn: see the module's docstring.
        variables: the network's at step 0.
        images: uint8 [N, H, W, C], in memory or mapped from a file.
        columns: further arrays [N, ...] that `loss_fn` finds in its batch.
        make_batches: `(images=array or None, first_step=step, steps_per_call=k) -> iterator` over chunks
            {"index": [k, B], ...}.
        frozen: arrays that `loss_fn` reads and training leaves alone, such as the teacher's variables.
        rng: root key.
        mesh: devices.
        run: where data may live, how often to save and log.
        folder: where checkpoints are kept.
        log: receives the metrics, averaged between log steps.
        name: prefix of the metrics and of the progress bar, and of the options that messages name.

    Returns:
        The variables after the last step, on the host.

    Raises:
        FloatingPointError: the loss is not finite; the message names the step.
        Preempted: this process, or another, was told to stop; the state is saved.
        UserError: the batch does not split over the devices.
    """
    check_divisible(training.batch_size, mesh, f"{name}.batch_size")
    on_device = images.nbytes <= run.device_data_mb * 2**20
    data = replicate(mesh, columns | ({"image": images} if on_device else {}))
    tx = make_optimizer(training)
    steps, look_up = make_train_steps(loss_fn, tx, mesh), make_lookup(mesh)
    state = jax.tree.map(jnp.copy, replicate(mesh, init_state(variables, tx)))  # for it is donated
    frozen, rng = replicate(mesh, frozen), replicate(mesh, rng)
    with closing(TrainingCheckpoint(folder, every=run.checkpoint_every)) as checkpoint:
        state = checkpoint.restore(state)
        batches = make_batches(
            images=None if on_device else images,
            first_step=int(state.step),
            steps_per_call=training.steps_per_call,
        )
        chunks = (shard_batch(mesh, chunk, axis=1) for chunk in batches)

        def take_steps(state: TrainState, chunk: Any) -> tuple[TrainState, Any]:
            return steps(state, frozen, chunk | look_up(data, chunk["index"]), rng)

        with deferred():
            vote = StopVote(mesh).cast
            tracer = Tracer(folder.parent / "trace", run.trace_steps)
            state = _loop_until(
                training.num_steps, state, chunks, take_steps, checkpoint, run.log_every, log, name, vote, tracer
            )
    return jax.device_get(variables_of(state))


def _loop_until(
    num_steps: int,
    state: TrainState,
    chunks: Iterator[Any],
    take_steps: Callable[[TrainState, Any], tuple[TrainState, Any]],
    checkpoint: TrainingCheckpoint,
    log_every: int,
    log: MetricsLog,
    name: str,
    told_to_stop: Callable[[], bool],
    tracer: Tracer,
) -> TrainState:
    """Take steps until there are `num_steps`: next chunk, steps, log, save; return the state.

    Raises:
        Preempted: some process was told to stop; the state is saved.
    """
    step, pending = int(state.step), []
    progress = Progress(name, num_steps, "step", initial=step, enabled=is_main_process())
    goodput = Goodput(checkpoint.folder, step)
    while step < num_steps:
        chunk = next(chunks)
        tracer.look(step)
        state, metrics = take_steps(state, chunk)
        pending.append(metrics)
        if len(pending) > _CALLS_IN_FLIGHT:
            jax.block_until_ready(pending[-1 - _CALLS_IN_FLIGHT])
        previous, step = step, step + chunk["index"].shape[0]
        save_due = step // checkpoint.every > previous // checkpoint.every
        note = ""
        if save_due or step >= num_steps or step // log_every > previous // log_every:
            note = _flush(pending, step, log, name)
        stop = told_to_stop()
        if save_due or stop:
            checkpoint.save(step, state)
        if stop:
            raise Preempted(f"stopped by SIGTERM at step {step} of {name}, which is saved")
        progress.advance(step - previous, note)
    progress.close()
    tracer.close()
    log.write(num_steps, {f"{name}/{key}": value for key, value in goodput.at_end(num_steps).items()})
    return state


def _flush(pending: list[Any], step: int, log: MetricsLog, name: str) -> str:
    """Fetch the metrics of the chunks since the last call, check and log them, and empty the list."""
    fetched = [jax.device_get(metrics) for metrics in pending]
    pending.clear()
    joined = {key: np.concatenate([metrics[key] for metrics in fetched]) for key in fetched[0]}
    broken = np.flatnonzero(~np.isfinite(joined["loss"]))
    if len(broken):
        at = step - len(joined["loss"]) + int(broken[0]) + 1
        raise FloatingPointError(f"{name}: the loss is not finite at step {at}; lower the learning rate")
    log.write(step, {f"{name}/{key}": float(np.mean(values)) for key, values in joined.items()})
    return f"loss {joined['loss'][-1]:.4f}"
