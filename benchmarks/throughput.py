"""Images per second of pujax against PyTorch, as ratios in one run.

    python -m benchmarks.throughput --pairs cifar_resnet10_w16:cifar_resnet10_w8 --seconds 3 --rounds 5

Each framework runs in a process of its own; both stay alive and take turns, so that a change of the machine's clock
or load meets both. Before anything is timed, both sides train from the same weights on the same batch and their loss
curves are compared. Reported are medians over rounds. Results are appended to `benchmarks/results/throughput.jsonl`.

Cases: scoring (a pool batch: teacher's class and confidence, and the gated head's logit on its features),
teacher_step, finetune_step (the released scorer: teacher's backbone and gated head under the non-negative risk),
kd_step (teacher forward + student update under the released robust loss), kd_step_cached (teacher logits given; also
compared with PyTorch's uncached step). Images are normalised and on the device on both sides; how they get there is
measured by `benchmarks.input_pipeline`, whole stages by `benchmarks.job`. On a CPU both sides use float32; on a GPU
bfloat16 compute with float32 parameters, but for the released variant.

Model FLOPs are what the networks' forward passes cost, counted once a pass and twice a backward pass, on the plain
convolutions: neither side is credited for operations of its own making.
"""

import argparse
import functools
import multiprocessing
import os
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results_file import RESULTS, append, machine_state

CASES = ("scoring", "teacher_step", "finetune_step", "kd_step", "kd_step_cached")
TOLERANCE = {"cpu": 1e-3}  # of the loss curves' relative difference; elsewhere 0.2, for bfloat16 rounds small losses
PEAK_FLOPS = {"NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H200": 989e12}  # dense bf16


class JaxSide:
    """The same contract as `torch_baseline.TorchSide`, with pujax's own steps."""

    def prepare(self, case: str, names: tuple[str, str], variables: Any, batch: Any, learning_rate: float) -> None:
        """Build the step of a case with the given weights."""
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch is on the same GPU
        import jax
        import jax.numpy as jnp

        from pujax.config import DistillConfig
        from pujax.metrics import flops_per_image
        from pujax.models import PUScorer, create_classifier
        from pujax.optim import make_optimizer
        from pujax.pu.scorer import PUNet
        from pujax.sharding import configure_backend, make_mesh, replicate
        from pujax.train import init_state, make_train_step

        configure_backend()
        dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
        teacher, student = (create_classifier(name, batch["classes"], dtype=dtype) for name in names)
        scorer = PUNet(teacher, PUScorer(gate=True))
        config = DistillConfig(learning_rate=learning_rate, schedule="constant", weight_decay=5e-4)
        mesh, tx = make_mesh(jax.devices()[:1]), make_optimizer(config)
        self.images, labels = jnp.asarray(batch["images"]), jnp.asarray(batch["labels"])
        frozen = replicate(mesh, {**variables, "class_weights": batch["class_weights"]})
        rows = {"index": jnp.zeros(len(labels), jnp.int32), "image": self.images, "label": labels}
        if case == "scoring":
            score = jax.jit(_score_fn(teacher, scorer)).lower(frozen, self.images).compile()
            self.step = lambda: score(frozen, self.images)
        else:
            if case == "kd_step_cached":
                forward = jax.jit(lambda v, x: teacher.apply(v, x, train=False)[0])
                rows["teacher_logits"] = forward(frozen["teacher"], self.images)
            trained = {"teacher_step": "teacher", "finetune_step": "scorer"}.get(case, "student")
            self.state = jax.tree.map(jnp.copy, replicate(mesh, init_state(variables[trained], tx)))
            loss_fn = _loss_fns(teacher, student, scorer)[trained]
            step = jax.jit(make_train_step(loss_fn, tx, mesh), donate_argnums=3)
            compiled = step.lower(frozen, {}, jax.random.key(0), self.state, rows).compile()
            self.step = functools.partial(self._update, compiled, frozen, jax.random.key(0), rows)
        image_shape = batch["images"].shape[1:]
        nets = (teacher, frozen["teacher"]), (student, frozen["student"])
        forward = [flops_per_image(*net, image_shape) for net in nets]
        passes = {"scoring": (1, 0), "kd_step": (1, 3), "kd_step_cached": (0, 3)}.get(case, (3, 0))
        self.flops_per_image = float(np.dot(passes, forward))
        self.device = jax.devices()[0].device_kind
        self.block = jax.block_until_ready

    def _update(self, compiled: Any, frozen: Any, rng: Any, rows: Any) -> Any:
        self.state, metrics = compiled(frozen, {}, rng, self.state, rows)
        return metrics["loss"]

    def run(self) -> float:
        """Take one step; return its loss."""
        return float(self.step())

    def time(self, seconds: float) -> float:
        """Return images per second over at least `seconds`; at most eight steps are in flight."""
        steps, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            loss = self.step()
            steps += 1
            if steps % 8 == 0:
                self.block(loss)
        self.block(loss)
        return steps * len(self.images) / (time.perf_counter() - started)


def _score_fn(teacher: Any, scorer: Any) -> Any:
    """Return `(weights, images) -> sum over the batch of the teacher's confidence and of the PU logit`."""
    import jax
    import jax.numpy as jnp

    def score(weights: Any, images: jax.Array) -> jax.Array:
        logits, features = teacher.apply(weights["teacher"], images, train=False)
        pu_logits = scorer.head.apply({"params": weights["scorer"]["params"]["head"]}, features)
        return jnp.sum(jnp.max(jax.nn.softmax(logits), axis=-1) + pu_logits)

    return score


def _loss_fns(teacher: Any, student: Any, scorer: Any) -> dict[str, Any]:
    """Return what training the "teacher", the "student" and the "scorer" minimises, as `pujax.train` takes it."""
    import jax
    import jax.numpy as jnp
    import optax

    from pujax.kd_losses import kl_from_logits, robust_kd_paper
    from pujax.pu.losses import nnpu_risk

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


def jax_worker(pipe: Connection, *_: Any) -> None:
    """Serve commands (method, arguments) on a `JaxSide`."""
    side = JaxSide()
    while (command := pipe.recv()) is not None:
        result = getattr(side, command[0])(*command[1:])
        pipe.send((side.flops_per_image, side.device) if command[0] == "prepare" else result)


def torch_worker(pipe: Connection, teacher: str, student: str, variant: str, compile_mode: str) -> None:
    """Serve commands (method, arguments) on a `TorchSide`."""
    from benchmarks.torch_baseline import TorchSide

    side = TorchSide(teacher, student, variant, compile_mode)
    while (command := pipe.recv()) is not None:
        pipe.send(getattr(side, command[0])(*command[1:]))


class Worker:
    """A process that answers commands."""

    def __init__(self, target: Any, *arguments: str):
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=target, args=(other, *arguments), daemon=True)
        self._process.start()

    def __call__(self, *command: Any) -> Any:
        """Return the answer to (method, arguments)."""
        self._pipe.send(command)
        return self._pipe.recv()

    def close(self) -> None:
        """End the process."""
        self._pipe.send(None)
        self._process.join()


def measure(case: str, pair: tuple[str, str], args: argparse.Namespace) -> dict[str, Any]:
    """Compare the sides' loss curves, then time them in turns; return the result line.

    Raises:
        RuntimeError: the sides do not compute the same.
    """
    batch = make_batch(pair[0], args.batch_size)
    before = machine_state()
    variants = {"released": case, "best": case} | ({"best_uncached": "kd_step"} if case == "kd_step_cached" else {})
    sides = {name: Worker(torch_worker, *pair, name.split("_")[0], args.compile_mode) for name in variants}
    sides = {"pujax": Worker(jax_worker), **sides}
    variables = sides["best"]("variables")
    flops, device = sides["pujax"]("prepare", case, pair, variables, batch, args.learning_rate)
    for name, own_case in variants.items():
        sides[name]("prepare", own_case, batch, args.learning_rate)
    curves = {name: [side("run") for _ in range(4)] for name, side in sides.items()}
    differences = np.abs(np.array(curves["pujax"]) - curves["best"]) / np.maximum(np.abs(curves["best"]), 1e-9)
    if not differences.max() < TOLERANCE.get(device, 0.2):
        raise RuntimeError(f"{pair} {case}: the sides do not compute the same; their losses are {curves}")
    samples: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        side("time", args.seconds / 3)
    for _ in range(args.rounds):
        for name, side in sides.items():
            samples[name].append(side("time", args.seconds))
    for side in sides.values():
        side.close()
    medians = {name: float(np.median(values)) for name, values in samples.items()}
    line = {"case": case, "teacher": pair[0], "student": pair[1], "batch_size": args.batch_size}
    line |= {"image_size": batch["images"].shape[1], "images_per_second": medians, "samples": samples}
    line |= {f"ratio_to_{name}": medians["pujax"] / medians[name] for name in variants}
    line |= {"flops_per_image": flops, "achieved_flops": flops * medians["pujax"]}
    line |= {"loss_difference": float(differences.max()), "device": device, "compile_mode": args.compile_mode}
    if device in PEAK_FLOPS:
        line["model_flops_utilisation"] = line["achieved_flops"] / PEAK_FLOPS[device]
    return line | {"machine_before": before, "machine_after": machine_state()}


def make_batch(teacher: str, batch_size: int) -> dict[str, Any]:
    """Return images float32 [B, H, W, C], labels int32 [B], class weights float32 [2, K] and K for a teacher."""
    size, channels = (224, 3) if teacher.startswith("resnet") else (32, 1 if "lenet" in teacher else 3)
    classes, rng = 1000 if teacher.startswith("resnet") else 10, np.random.default_rng(0)
    weights = rng.uniform(0.5, 1.5, classes)
    return {
        "images": rng.normal(size=(batch_size, size, size, channels)).astype(np.float32),
        "labels": rng.integers(0, classes, batch_size).astype(np.int32),
        "class_weights": np.stack([weights, weights + 0.1 * rng.uniform(size=classes)]).astype(np.float32),
        "classes": classes,
    }


def main() -> None:
    """Measure the cases and append the result lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--pairs", nargs="+", default=["cifar_resnet10_w16:cifar_resnet10_w8", "lenet5:lenet5_half"])
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=3.0, help="of one sample")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--compile_mode", default="max-autotune", help="of torch.compile on a GPU")
    parser.add_argument("--out", type=Path, default=RESULTS / "throughput.jsonl")
    args = parser.parse_args()
    for pair in args.pairs:
        for case in args.cases:
            line = measure(case, tuple(pair.split(":")), args)
            append(args.out, line)
            rates = ", ".join(f"{name} {value:,.0f}" for name, value in line["images_per_second"].items())
            print(f"{pair} {case}: {rates} images/s; {line['ratio_to_best']:.2f} of the best PyTorch", flush=True)


if __name__ == "__main__":
    main()
