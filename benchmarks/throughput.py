"""Images per second of pujax against PyTorch, as ratios in one run.

    python -m benchmarks.throughput --pairs cifar_resnet10_w16:cifar_resnet10_w8 --seconds 3 --rounds 5

Each framework runs in a process of its own; both take turns, so that a change of the machine's clock or load meets
both. Before, both train from the same weights on the same batch and their loss curves are compared.

Cases: scoring (a pool batch: teacher's class and confidence, and the gated head's logit), teacher_step, finetune_step
(the released scorer: teacher's backbone and gated head under the non-negative risk), kd_step (teacher forward + student
update under the released robust loss), kd_step_cached (teacher logits given; also compared with PyTorch's uncached
step). Images are normalised and on the device. CPUs use float32; GPUs bfloat16 compute with float32 parameters, but for
the released variant.
"""

import argparse
import functools
import importlib
import multiprocessing
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from benchmarks.results_file import command_line, measured, rates_text, take_turns
from benchmarks.speed_tables import CASES

TOLERANCE = {"cpu": 1e-3}  # of the loss curves' relative difference; elsewhere 0.2, for bfloat16 rounds small losses
PEAK_FLOPS = {"NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H200": 989e12}  # dense bf16


def serve(pipe: Connection, module: str, side: str, *arguments: str) -> None:
    """Serve commands (method, arguments) on a side, made here from its module, so that no process loads both."""
    made = getattr(importlib.import_module(module), side)(*arguments)
    while (command := pipe.recv()) is not None:
        pipe.send(getattr(made, command[0])(*command[1:]))


class Worker:
    """A process that answers commands."""

    def __init__(self, *arguments: str):
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=serve, args=(other, *arguments), daemon=True)
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
    """Compare the sides' loss curves, a RuntimeError if they differ, and time them in turns; return the line."""
    batch = make_batch(pair[0], args.batch_size)
    variants = {"released": case, "best": case} | ({"best_uncached": "kd_step"} if case == "kd_step_cached" else {})
    sides = {"pujax": Worker("benchmarks.jax_side", "JaxSide")}
    for name in variants:
        options = (*pair, name.split("_")[0], args.compile_mode)
        sides[name] = Worker("benchmarks.torch_baseline", "TorchSide", *options)
    variables = sides["best"]("variables")
    flops, device = sides["pujax"]("prepare", case, pair, variables, batch, args.learning_rate)
    for name, own_case in variants.items():
        sides[name]("prepare", own_case, batch, args.learning_rate)
    curves = {name: [side("run") for _ in range(4)] for name, side in sides.items()}
    differences = np.abs(np.array(curves["pujax"]) - curves["best"]) / np.maximum(np.abs(curves["best"]), 1e-9)
    if not differences.max() < TOLERANCE.get(device, 0.2):
        raise RuntimeError(f"{pair} {case}: the sides do not compute the same; their losses are {curves}")
    timers = {name: functools.partial(side, "time") for name, side in sides.items()}
    samples, medians = take_turns(timers, args.seconds, args.rounds, warm_up=args.seconds / 3)
    for side in sides.values():
        side.close()
    line = {"case": case, "teacher": pair[0], "student": pair[1], "batch_size": args.batch_size}
    line |= {"image_size": batch["images"].shape[1], "images_per_second": medians, "samples": samples}
    line |= {f"ratio_to_{name}": medians["pujax"] / medians[name] for name in variants}
    line |= {"flops_per_image": flops, "achieved_flops": flops * medians["pujax"]}
    line |= {"loss_difference": float(differences.max()), "device": device, "compile_mode": args.compile_mode}
    if device in PEAK_FLOPS:
        line["model_flops_utilisation"] = line["achieved_flops"] / PEAK_FLOPS[device]
    return line


def is_for_imagenet(network: str) -> bool:
    """Whether a network is measured at 224x224 with 1,000 classes, else at 32x32 with ten."""
    return not network.startswith(("cifar_", "lenet5"))


def make_batch(teacher: str, batch_size: int) -> dict[str, Any]:
    """Return images float32 [B, H, W, C], labels int32 [B], class weights float32 [2, K] and K for a teacher."""
    large = is_for_imagenet(teacher)
    size, channels = (224, 3) if large else (32, 1 if "lenet" in teacher else 3)
    classes, rng = 1000 if large else 10, np.random.default_rng(0)
    weights = rng.uniform(0.5, 1.5, classes)
    return {
        "images": rng.normal(size=(batch_size, size, size, channels)).astype(np.float32),
        "labels": rng.integers(0, classes, batch_size).astype(np.int32),
        "class_weights": np.stack([weights, weights + 0.1 * rng.uniform(size=classes)]).astype(np.float32),
        "classes": classes,
    }


def main() -> None:
    """Measure the cases and append the result lines."""
    options = {"batch_size": 128, "seconds": (3.0, "of one sample"), "rounds": 5, "learning_rate": 1e-3}
    options["compile_mode"] = ("max-autotune", "of torch.compile on a GPU")
    parser = command_line(__doc__, "throughput.jsonl", **options)
    parser.add_argument("--cases", nargs="+", choices=tuple(CASES), default=list(CASES))
    parser.add_argument("--pairs", nargs="+", default=["cifar_resnet10_w16:cifar_resnet10_w8", "lenet5:lenet5_half"])
    args = parser.parse_args()
    for pair in args.pairs:
        for case in args.cases:
            line = measured(args.out, functools.partial(measure, case, tuple(pair.split(":")), args))
            print(f"{pair} {case}: {rates_text(line)}; {line['ratio_to_best']:.2f} of the best PyTorch", flush=True)


if __name__ == "__main__":
    main()
