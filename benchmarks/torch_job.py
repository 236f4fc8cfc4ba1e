"""The quickstart in PyTorch, written the released way: `python -m benchmarks.torch_job`; called by `benchmarks.job`.

The scorer is fine-tuned end to end for 170 epochs on uniform batches with the non-negative sigmoid risk at the true
class prior, gated; one pass scores the pool; the student takes the quickstart's number of updates with the teacher run
in every step and the loss read back. Kinder to PyTorch than the released code: images lie in memory and are cut into
batches as one tensor, the test set is met once, batches are a quarter of the released ones (more updates), and it is
told how many images to keep.
"""

import itertools
import json
import time

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import nn

from benchmarks.results_file import command_line
from configs import quickstart
from pujax.data.embedded import embedded_path
from pujax.data.reading import read_or_fail
from pujax.data.sources import open_source
from pujax.metrics import auc
from tests.reference import torch_models

WIDTHS = 6 + 16 + 120 + 84  # of LeNet-5's pooled features


def tensors(config, part: str) -> tuple[torch.Tensor, np.ndarray | None]:
    """Return (normalised float32 [N, 1, 32, 32], labels or None) of a part of the quickstart's data."""
    source = open_source(getattr(config.data, part), config.data, labelled=part != "pool")
    pixels = torch.from_numpy(read_or_fail(source, np.arange(len(source)), part)).permute(0, 3, 1, 2).float() / 255
    return (pixels - config.data.mean[0]) / config.data.std[0], source.labels


def load_teacher() -> nn.Module:
    """Return the embedded LeNet-5."""
    net = torch_models.LeNet(10)
    weights = load_file(embedded_path("teacher_lenet5.safetensors"))
    for name, layer in net.named_children():
        kernel = torch.from_numpy(weights[f"params/{name}/kernel"])
        layer.weight.data = (kernel.permute(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T).contiguous()
        layer.bias.data = torch.from_numpy(weights[f"params/{name}/bias"])
    return net.eval()


def flip(images: torch.Tensor) -> torch.Tensor:
    """Mirror each image with probability 1/2."""
    return torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images.flip(3), images)


def nnpu(logits: torch.Tensor, positive: torch.Tensor, prior: float) -> torch.Tensor:
    """Return what the released rule differentiates; value and gradient differ in the clipped branch."""
    num_positive, num_pool = positive.sum().clamp(min=1), (~positive).sum().clamp(min=1)
    positive_risk = prior * (torch.sigmoid(-logits) * positive).sum() / num_positive
    negative_risk = (torch.sigmoid(logits) * ~positive).sum() / num_pool
    negative_risk = negative_risk - prior * (torch.sigmoid(logits) * positive).sum() / num_positive
    return positive_risk + negative_risk if negative_risk.item() >= 0 else -negative_risk


def train_scorer(labelled: torch.Tensor, pool: torch.Tensor, prior: float, epochs: int, batch_size: int) -> nn.Module:
    """Return backbone and head after `epochs` over labelled + pool."""
    net = nn.ModuleDict({"backbone": load_teacher(), "head": torch_models.PUHead(WIDTHS)})
    optimizer = torch.optim.SGD(net.parameters(), 1e-3, momentum=0.9, weight_decay=5e-3)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [50, 100, 150])
    images, positive = torch.cat([labelled, pool]), torch.arange(len(labelled) + len(pool)) < len(labelled)
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(batch_size):
            optimizer.zero_grad()
            nnpu(net["head"](net["backbone"](flip(images[rows]))[1]), positive[rows], prior).backward()
            optimizer.step()
        schedule.step()
    return net.eval()


def distil(teacher: nn.Module, images: torch.Tensor, steps: int, batch_size: int) -> nn.Module:
    """Return the student after `steps`, with class weights and the perturbed maximum as released."""
    student = torch_models.NETWORKS["lenet5_half"](10)
    optimizer = torch.optim.SGD(student.parameters(), quickstart.get_config().distill.learning_rate, 0.9, 0, 5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with torch.no_grad():
        mass = teacher(images)[0].softmax(1).sum(0)
    weights = 10 * (1 / mass) / (1 / mass).sum()
    weight_set = [weights, weights + 0.1 * torch.rand(10)]
    whole = max(len(images) // batch_size, 1) * batch_size
    batches = (rows for _ in itertools.count() for rows in torch.randperm(len(images))[:whole].split(batch_size))
    for rows in itertools.islice(batches, steps):
        batch = flip(images[rows])
        target = teacher(batch)[0].detach()
        kl = nn.functional.kl_div(student(batch)[0].log_softmax(1), target.softmax(1), reduction="none").sum(1)
        loss = max(((w[target.argmax(1)] * kl).mean() for w in weight_set), key=lambda value: value.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return student.eval()


def main() -> None:
    """Run the job and print one JSON line."""
    options = {"epochs": (170, "of the scorer"), "batch_size": (1024, "of the scorer"), "prior": 0.05}
    args = command_line(__doc__, **options).parse_args()
    torch.manual_seed(0)
    config, started = quickstart.get_config(), time.perf_counter()
    (labelled, _), (pool, _), (test, labels) = (tensors(config, part) for part in ("labelled", "pool", "test"))
    teacher, read = load_teacher(), time.perf_counter()
    net = train_scorer(labelled, pool, args.prior, args.epochs, args.batch_size)
    scored = time.perf_counter()
    with torch.no_grad():
        scores = torch.cat([net["head"](net["backbone"](part)[1]) for part in pool.split(1024)])
    chosen = torch.topk(scores, round(args.prior * len(pool))).indices
    mined = time.perf_counter()
    student = distil(teacher, torch.cat([labelled, pool[chosen]]), config.distill.num_steps, config.distill.batch_size)
    distilled = time.perf_counter()
    with torch.no_grad():
        accuracy = (student(test)[0].argmax(1).numpy() == labels).mean()
    truth = open_source(config.data.pool, config.data, labelled=False).truth
    line = {"scorer_seconds": scored - read, "mining_seconds": mined - scored, "student_seconds": distilled - mined}
    line |= {"job_seconds": time.perf_counter() - started, "scorer_epochs": args.epochs, "accuracy": float(accuracy)}
    line |= {"truth_auc": auc(scores.numpy()[truth], scores.numpy()[~truth])}
    line |= {"precision": float(truth[chosen.numpy()].mean())}
    print(json.dumps(line))


if __name__ == "__main__":
    main()
