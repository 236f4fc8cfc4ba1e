"""Images per second of pujax against PyTorch, as ratios in one run.

    python -m benchmarks.throughput --pairs cifar_resnet10_w16:cifar_resnet10_w8 --seconds 3 --rounds 5

Each framework runs in a process of its own; both stay alive and take turns, so that a change of the machine's clock
or load meets both. Before anything is timed, both sides train from the same weights on the same batch and their loss
curves are compared. Reported are medians over rounds. Results are appended to `benchmarks/results/throughput.jsonl`.

Cases: scoring (teacher forward), teacher_step, finetune_step (the released scorer: teacher's backbone and gated head
under the non-negative risk), kd_step (teacher forward + student update), kd_step_cached (teacher logits given; also
compared with PyTorch's uncached step). On a CPU both sides use float32; on a GPU both use bfloat16 compute with float32
parameters.
"""

import argparse
import datetime
import functools
import json
import multiprocessing
import platform
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ablation import RESULTS, commit

CASES = ("scoring", "teacher_step", "finetune_step", "kd_step", "kd_step_cached")
VARIANTS = ("released", "best")
PEAK_FLOPS = {"NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H200": 989e12}  # dense bf16


class JaxSide:
    """The same contract as `torch_baseline.TorchSide`, with pujax's own steps."""

    def prepare(self, case: str, names: tuple[str, str], variables: Any, batch: Any, learning_rate: float) -> None:
        """Build the step of a case with the given weights."""
        import jax
        import jax.numpy as jnp
        import optax

        from pujax.config import DistillConfig
        from pujax.losses import kd_loss, kl_from_logits, nnpu_risk
        from pujax.models import PUScorer, create_classifier
        from pujax.optim import make_optimizer
        from pujax.scorer import PUNet
        from pujax.sharding import configure_backend, make_mesh, replicate
        from pujax.train import init_state, make_train_step

        configure_backend()
        dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
        classes = batch["classes"]
        teacher, student = (create_classifier(name, classes, dtype=dtype) for name in names)
        config = DistillConfig(learning_rate=learning_rate, schedule="constant", weight_decay=5e-4)
        mesh, tx = make_mesh(jax.devices()[:1]), make_optimizer(config)
        self.images, labels = jnp.asarray(batch["images"]), jnp.asarray(batch["labels"])
        frozen = replicate(mesh, {"teacher": variables["teacher"], "class_weights": np.ones(classes, np.float32)})
        scorer = PUNet(teacher, PUScorer(gate=True))

        def classify(module: Any, params: Any, batch_stats: Any, images: jax.Array) -> Any:
            inputs = {"params": params, "batch_stats": batch_stats}
            (logits, _), mutated = module.apply(inputs, images, train=True, mutable=["batch_stats"])
            return logits, (mutated.get("batch_stats", {}), {})

        def teacher_loss(params: Any, batch_stats: Any, frozen: Any, batch: Any, rng: jax.Array) -> Any:
            logits, rest = classify(teacher, params, batch_stats, batch["image"])
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])), rest

        def kd(params: Any, batch_stats: Any, frozen: Any, batch: Any, rng: jax.Array) -> Any:
            target = batch.get("teacher_logits")
            if target is None:
                target = teacher.apply(frozen["teacher"], batch["image"], train=False)[0]
            logits, rest = classify(student, params, batch_stats, batch["image"])
            kl = kl_from_logits(logits, target, 4.0)
            return kd_loss(kl, jnp.argmax(target, -1), weights=frozen["class_weights"]), rest

        def pu(params: Any, batch_stats: Any, frozen: Any, batch: Any, rng: jax.Array) -> Any:
            inputs = {"params": params, "batch_stats": batch_stats}
            pu_logits, mutated = scorer.apply(inputs, batch["image"], train=True, mutable=["batch_stats"])
            options = {"class_prior": 0.1, "beta": 0.0, "gamma": 1.0, "surrogate": "sigmoid"}
            return nnpu_risk(pu_logits, batch["label"] % 2 == 0, **options)[0], (mutated.get("batch_stats", {}), {})

        rows = {"index": jnp.zeros(len(labels), jnp.int32), "image": self.images, "label": labels}
        forward = jax.jit(lambda v, x: teacher.apply(v, x, train=False))
        if case == "kd_step_cached":
            rows["teacher_logits"] = forward(frozen["teacher"], self.images)[0]
        if case == "scoring":
            compiled = jax.jit(
                lambda v, x: jnp.sum(jnp.max(jax.nn.softmax(teacher.apply(v, x, train=False)[0]), -1))
                + sum(jnp.sum(f) for f in teacher.apply(v, x, train=False)[1])
            ).lower(frozen["teacher"], self.images).compile()  # fmt: skip
            self.step = lambda: compiled(frozen["teacher"], self.images)
        else:
            trained = {"teacher_step": "teacher", "finetune_step": "scorer"}.get(case, "student")
            self.state = jax.tree.map(jnp.copy, replicate(mesh, init_state(variables[trained], tx)))
            loss_fn = {"teacher": teacher_loss, "scorer": pu, "student": kd}[trained]
            step = jax.jit(make_train_step(loss_fn, tx, mesh), donate_argnums=3)
            compiled = step.lower(frozen, {}, jax.random.key(0), self.state, rows).compile()
            self.step = functools.partial(self._update, compiled, frozen, jax.random.key(0), rows)
        self.flops_per_image = float((compiled.cost_analysis() or {}).get("flops", 0)) / len(labels)
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


def jax_worker(pipe: Connection, *_: Any) -> None:
    """Serve commands (method, arguments) on a `JaxSide`."""
    side = JaxSide()
    while (command := pipe.recv()) is not None:
        result = getattr(side, command[0])(*command[1:])
        if command[0] == "prepare":
            result = (side.flops_per_image, side.device)
        pipe.send(result)


def torch_worker(pipe: Connection, teacher: str, student: str, variant: str) -> None:
    """Serve commands (method, arguments) on a `TorchSide`."""
    from benchmarks.torch_baseline import TorchSide

    side = TorchSide(teacher, student, variant)
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
    """Compare the sides' loss curves, then time them in turns; return the result line."""
    size, channels = (224, 3) if pair[0].startswith("resnet") else (32, 1 if "lenet" in pair[0] else 3)
    classes = 1000 if pair[0].startswith("resnet") else 10
    rng = np.random.default_rng(0)
    images = rng.normal(size=(args.batch_size, size, size, channels)).astype(np.float32)
    labels = rng.integers(0, classes, args.batch_size).astype(np.int32)
    others = {variant: Worker(torch_worker, *pair, variant) for variant in VARIANTS}
    whole = {"best_uncached": Worker(torch_worker, *pair, "best")} if case == "kd_step_cached" else {}
    ours = Worker(jax_worker)
    variables = others["best"]("variables")
    batch = {"images": images, "labels": labels, "classes": classes}
    flops, device = ours("prepare", case, pair, variables, batch, args.learning_rate)
    for other in others.values():
        other("prepare", case, images, labels, args.learning_rate)
    for other in whole.values():
        other("prepare", "kd_step", images, labels, args.learning_rate)
    others |= whole
    curves = {name: [side("run") for _ in range(4)] for name, side in {"pujax": ours, **others}.items()}
    differences = np.abs(np.array(curves["pujax"]) - curves["best"]) / np.maximum(np.abs(curves["best"]), 1e-9)
    sides = {"pujax": ours, **others}
    samples: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        side("time", args.seconds / 3)
    for _ in range(args.rounds):
        for name, side in sides.items():
            samples[name].append(side("time", args.seconds))
    for side in sides.values():
        side.close()
    medians = {name: float(np.median(values)) for name, values in samples.items()}
    line = {"case": case, "teacher": pair[0], "student": pair[1], "batch_size": args.batch_size, "image_size": size}
    line |= {"images_per_second": medians, "samples": samples, "flops_per_image": flops}
    line |= {"ratio_to_best": medians["pujax"] / medians["best"]}
    line |= {"ratio_to_released": medians["pujax"] / medians["released"]}
    line |= {"ratio_to_best_uncached": medians["pujax"] / medians["best_uncached"]} if whole else {}
    line |= {"achieved_flops": flops * medians["pujax"], "loss_difference": float(differences.max())}
    if device in PEAK_FLOPS:
        line["model_flops_utilisation"] = line["achieved_flops"] / PEAK_FLOPS[device]
    return line | {"device": device, "cpu": platform.machine(), **provenance()}


def provenance() -> dict[str, Any]:
    """Return date, commit and versions."""
    import importlib.metadata

    versions = {name: importlib.metadata.version(name) for name in ("jax", "flax", "torch", "numpy")}
    return {"date": str(datetime.date.today()), "commit": commit(), "versions": versions}


def main() -> None:
    """Measure the cases and append the result lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--pairs", nargs="+", default=["cifar_resnet10_w16:cifar_resnet10_w8", "lenet5:lenet5_half"])
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=3.0, help="of one sample")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--out", type=Path, default=RESULTS / "throughput.jsonl")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for pair in args.pairs:
        for case in args.cases:
            line = measure(case, tuple(pair.split(":")), args)
            with args.out.open("a") as file:
                file.write(json.dumps(line) + "\n")
            rates = ", ".join(f"{name} {value:,.0f}" for name, value in line["images_per_second"].items())
            print(f"{pair} {case}: {rates} images/s; {line['ratio_to_best']:.2f} of the best PyTorch", flush=True)


if __name__ == "__main__":
    main()
