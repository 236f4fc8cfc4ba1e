"""The training loop: any device count, any feed, any interruption give the same result."""

import functools
import itertools
import json
from contextlib import closing

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pujax.config import DistillConfig, RunConfig
from pujax.data.batches import index_batches
from pujax.data.transforms import augment
from pujax.metrics import MetricsLog
from pujax.models.layers import BatchNorm, conv, global_mean, linear
from pujax.pu.losses import nnpu_risk
from pujax.sharding import make_mesh, shard_batch
from pujax.train import fit


class SmallNet(nn.Module):
    """Convolutions, BatchNorm and a linear layer, in a form that compiles in no time."""

    @nn.compact
    def __call__(self, x, *, train):
        for i in range(2):
            x = conv(8, 3, stride=2, padding=1, dtype=jnp.float32, name=f"conv{i}")(x)
            x = nn.relu(BatchNorm(name=f"bn{i}")(x, train=train))
        return linear(10, 8, dtype=jnp.float32, name="linear")(global_mean(x))


def make_problem(num_images=96):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (num_images, 32, 32, 3), np.uint8)
    labels = rng.integers(0, 10, num_images).astype(np.int32)
    module = SmallNet()
    variables = module.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)

    def loss_fn(params, batch_stats, frozen, batch, rng):
        pixels = augment(rng, batch["image"], pad=4, flip=True) / 255.0
        apply = functools.partial(module.apply, train=True, mutable=["batch_stats"])
        logits, mutated = apply({"params": params, "batch_stats": batch_stats}, pixels)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        options = {"class_prior": 0.3, "beta": 0.0, "gamma": 1.0, "surrogate": "sigmoid"}
        risk, metrics = nnpu_risk(logits[:, 0], batch["label"] < 3, **options)  # positives lie unevenly over devices
        return frozen["scale"] * (jnp.mean(losses) + risk), (mutated["batch_stats"], metrics)

    return images, labels, variables, loss_fn


def train(folder, *, mesh, scale=1.0, steps_per_call=1, device_data_mb=64, checkpoint_every=1000, trace_steps=0):
    images, labels, variables, loss_fn = make_problem()
    folder.mkdir(exist_ok=True)
    run = RunConfig(
        device_data_mb=device_data_mb, checkpoint_every=checkpoint_every, log_every=5, trace_steps=trace_steps
    )
    # Small, because a ReLU whose input is zero to rounding may open on one device count and not on another: that alone
    # moves a gradient by 1e-3. A gradient summed instead of averaged would still move parameters by 1e-3.
    training = DistillConfig(batch_size=32, num_steps=10, learning_rate=0.0003, steps_per_call=steps_per_call)
    make_batches = functools.partial(index_batches, len(images), training.batch_size, seed=3)
    with closing(MetricsLog(folder, enabled=True)) as log:
        return fit(
            training,
            loss_fn,
            variables,
            images=images,
            columns={"label": labels},
            make_batches=make_batches,
            frozen={"scale": np.float32(scale)},
            rng=jax.random.key(1),
            mesh=mesh,
            run=run,
            folder=folder / "checkpoints",
            log=log,
            name="test",
        )


@pytest.fixture
def gone_after(monkeypatch):
    """Make training fail when it draws the batch after `steps`, like a machine that goes away."""

    def arm(steps):
        draws = itertools.count()

        def draw(*args, **kwargs):
            if next(draws) == steps:
                monkeypatch.undo()
                raise InterruptedError
            return shard_batch(*args, **kwargs)

        monkeypatch.setattr("pujax.train.shard_batch", draw)

    return arm


def largest_difference(a, b):
    return max(np.abs(np.asarray(x) - np.asarray(y)).max() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)))


def test_one_device_equals_eight(tmp_path, meshes):
    one, eight = (train(tmp_path / str(mesh.size), mesh=mesh) for mesh in meshes)
    assert largest_difference(one["params"], eight["params"]) < 1e-5
    assert largest_difference(one["batch_stats"], eight["batch_stats"]) < 1e-5
    logs = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("1", "8")]
    assert len(logs[0]) == 3 and all("test/goodput" in log.pop() for log in logs)
    for lines in zip(*logs, strict=True):
        first, second = map(json.loads, lines)
        assert {"test/loss", "test/positive_risk", "test/negative_risk"} <= first.keys()
        assert first == pytest.approx(second, abs=1e-5)


def test_two_runs_are_bit_identical(tmp_path):
    mesh = make_mesh(jax.devices()[:1])
    first, second = (train(tmp_path / name, mesh=mesh) for name in "ab")
    assert largest_difference(first, second) == 0


def test_resumed_equals_undisturbed_bit_for_bit(tmp_path, gone_after):
    mesh = make_mesh(jax.devices()[:1])
    undisturbed = train(tmp_path / "whole", mesh=mesh)
    gone_after(7)
    with pytest.raises(InterruptedError):
        train(tmp_path / "broken", mesh=mesh, checkpoint_every=3)
    resumed = train(tmp_path / "broken", mesh=mesh, checkpoint_every=3)
    assert largest_difference(undisturbed, resumed) == 0
    replayed = (tmp_path / "broken" / "metrics.jsonl").read_text().splitlines()
    assert '"step": 6' in "".join(replayed)  # the second run began after step 6, not at 0


def test_eight_devices_can_continue_on_one(tmp_path, meshes, gone_after):
    one, eight = meshes
    undisturbed = train(tmp_path / "whole", mesh=eight)
    gone_after(7)
    with pytest.raises(InterruptedError):
        train(tmp_path / "broken", mesh=eight, checkpoint_every=3)
    resumed = train(tmp_path / "broken", mesh=one, checkpoint_every=3)
    assert largest_difference(undisturbed, resumed) < 1e-5


@pytest.mark.parametrize("feed", [{"device_data_mb": 0}, {"steps_per_call": 5}], ids=["host feed", "5 steps per call"])
def test_the_feed_does_not_change_the_result(tmp_path, feed):
    mesh = make_mesh(jax.devices()[:1])
    plain = train(tmp_path / "plain", mesh=mesh)
    other = train(tmp_path / "other", mesh=mesh, **feed)
    assert largest_difference(plain, other) < 1e-6


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(tmp_path, mesh):
    with pytest.raises(FloatingPointError, match="test: the loss is not finite at step 1;"):
        train(tmp_path / "nan", mesh=mesh, scale=np.nan)


def test_a_batch_that_does_not_split_is_refused(tmp_path):
    mesh = make_mesh(jax.devices()[:3])
    with pytest.raises(ValueError, match=r"test.batch_size is 32, which does not split over 3 devices"):
        train(tmp_path / "split", mesh=mesh)


def test_the_log_tells_of_restarts_and_of_the_time_that_was_of_use(tmp_path, gone_after):
    gone_after(7)
    with pytest.raises(InterruptedError):
        train(tmp_path / "run", mesh=make_mesh(), checkpoint_every=4)
    starts = tmp_path / "run" / "STARTS.json"
    before = json.loads(starts.read_text())
    assert [start["step"] for start in before] == [0]
    starts.write_text(json.dumps([before[0] | {"time": before[0]["time"] - 1000}]))  # it lay for a while
    train(tmp_path / "run", mesh=make_mesh(), checkpoint_every=4)
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 10 and last["test/restarts"] == 1 and 0 < last["test/goodput"] < 0.1
    assert [start["step"] for start in json.loads(starts.read_text())] == [0, 4]
    train(tmp_path / "whole", mesh=make_mesh())
    last = json.loads((tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["test/restarts"] == 0 and last["test/goodput"] > 0.99


@pytest.mark.slow
def test_a_trace_is_written_on_request(tmp_path, monkeypatch):
    monkeypatch.setattr("pujax.profiling._SETTLED", 3)
    train(tmp_path / "run", mesh=make_mesh(), trace_steps=2)
    assert list((tmp_path / "run" / "trace").rglob("*.xplane.pb"))
    train(tmp_path / "none", mesh=make_mesh())
    assert not (tmp_path / "none" / "trace").exists()
