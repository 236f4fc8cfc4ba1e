"""The JAX side of `benchmarks.throughput`: pujax's own steps under the contract of `torch_baseline`.

Model FLOPs are what the networks' forward passes cost, counted once a pass and twice a backward pass, on the plain
convolutions: neither side is credited for operations of its own making.
"""

import functools
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pujax.config import DistillConfig
from pujax.folding import fold_batch_norms
from pujax.kd_losses import kl_from_logits, robust_kd_paper
from pujax.metrics import flops_per_image
from pujax.models import PUScorer, create_classifier
from pujax.optim import make_optimizer
from pujax.pu.losses import nnpu_risk
from pujax.pu.scorer import PUNet
from pujax.sharding import configure_backend, make_mesh, replicate
from pujax.train import init_state, make_train_step


class JaxSide:
    """Networks and data of one case on the device, and the step to be timed."""

    def prepare(self, case: str, names: Any, variables: Any, batch: Any, learning_rate: float) -> tuple[float, str]:
        """Build the step of a case with the given weights; return (model FLOPs an image, device)."""
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch is on the same GPU
        configure_backend()
        dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
        teacher, student = (create_classifier(name, batch["classes"], dtype=dtype) for name in names)
        scorer = PUNet(teacher, PUScorer(gate=True))
        config = DistillConfig(learning_rate=learning_rate, schedule="constant", weight_decay=5e-4)
        mesh, tx = make_mesh(jax.devices()[:1]), make_optimizer(config)
        self.images, labels = jnp.asarray(batch["images"]), jnp.asarray(batch["labels"])
        folded = fold_batch_norms(teacher, variables["teacher"], batch["images"].shape[1:])
        frozen = replicate(mesh, {**variables, "teacher": folded, "class_weights": batch["class_weights"]})
        rows = {"index": jnp.zeros(len(labels), jnp.int32), "image": self.images, "label": labels}
        if case == "scoring":

            def score(weights: Any, images: jax.Array) -> jax.Array:
                logits, features = teacher.apply(weights["teacher"], images, train=False)
                pu_logits = scorer.head.apply({"params": weights["scorer"]["params"]["head"]}, features)
                return jnp.sum(jnp.max(jax.nn.softmax(logits), axis=-1) + pu_logits)

            compiled = jax.jit(score).lower(frozen, self.images).compile()
            self.step = lambda: compiled(frozen, self.images)
        else:
            if case == "kd_step_cached":
                forward = jax.jit(lambda v, x: teacher.apply(v, x, train=False)[0])
                rows["teacher_logits"] = forward(frozen["teacher"], self.images)
            trained = {"teacher_step": "teacher", "finetune_step": "scorer"}.get(case, "student")
            self.state = jax.tree.map(jnp.copy, replicate(mesh, init_state(variables[trained], tx)))
            loss_fn = _loss_fns(teacher, student, scorer)[trained]
            step = jax.jit(make_train_step(loss_fn, tx, mesh), donate_argnums=2)
            compiled = step.lower(frozen, jax.random.key(0), self.state, rows).compile()
            self.step = functools.partial(self._update, compiled, frozen, jax.random.key(0), rows)
        nets = (teacher, frozen["teacher"]), (student, frozen["student"])
        forward = [flops_per_image(*net, batch["images"].shape[1:]) for net in nets]
        passes = {"scoring": (1, 0), "kd_step": (1, 3), "kd_step_cached": (0, 3)}.get(case, (3, 0))
        return float(np.dot(passes, forward)), jax.devices()[0].device_kind

    def _update(self, compiled: Any, frozen: Any, rng: Any, rows: Any) -> Any:
        self.state, metrics = compiled(frozen, rng, self.state, rows)
        return metrics["loss"]

    def run(self) -> float:
        """Take one step; return its loss."""
        return float(self.step())

    def time(self, seconds: float) -> float:
        """Return images per second over at least `seconds`."""
        return rate(self.step, len(self.images), seconds)


def rate(step: Callable[[], Any], num_images: int, seconds: float) -> float:
    """Return images per second of a step over at least `seconds`; at most eight are in flight."""
    steps, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        outputs = step()
        steps += 1
        if steps % 8 == 0:
            jax.block_until_ready(outputs)
    jax.block_until_ready(outputs)
    return steps * num_images / (time.perf_counter() - started)


def _loss_fns(teacher: Any, student: Any, scorer: Any) -> dict[str, Any]:
    """Return what training the "teacher", the "student" and the "scorer" minimises, as `pujax.train` takes it."""

    def apply(module: Any, params: Any, batch_stats: Any, images: jax.Array) -> Any:
        inputs = {"params": params, "batch_stats": batch_stats}
        outputs, mutated = module.apply(inputs, images, train=True, mutable=["batch_stats"])
        return outputs, (mutated.get("batch_stats", {}), {})

    def supervised(params: Any, batch_stats: Any, frozen: Any, batch: Any, rng: jax.Array) -> Any:
        (logits, _), rest = apply(teacher, params, batch_stats, batch["image"])
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])), rest

    def distillation(params: Any, batch_stats: Any, frozen: Any, batch: Any, rng: jax.Array) -> Any:
        target = batch.get("teacher_logits")
        if target is None:
            target = teacher.apply(frozen["teacher"], batch["image"], train=False)[0]
        (logits, _), rest = apply(student, params, batch_stats, batch["image"])
        kl = kl_from_logits(logits, target, 4.0)
        return robust_kd_paper(kl, jnp.argmax(target, -1), frozen["class_weights"]), rest

    def positive_unlabelled(params: Any, batch_stats: Any, frozen: Any, batch: Any, rng: jax.Array) -> Any:
        pu_logits, rest = apply(scorer, params, batch_stats, batch["image"])
        options = {"class_prior": 0.1, "beta": 0.0, "gamma": 1.0, "surrogate": "sigmoid"}
        return nnpu_risk(pu_logits, batch["label"] % 2 == 0, **options)[0], rest

    return {"teacher": supervised, "student": distillation, "scorer": positive_unlabelled}
