"""The PyTorch side of `benchmarks.throughput`: the same steps, eager or as good as we can make them.

Variants: `released`, what users of the released code run (NCHW, float32, the loss read back at every step); `best`,
channels_last, fused SGD, no loss read back, and on a GPU also bf16 autocast, `torch.compile` and cuDNN's search for the
fastest convolution. On a CPU `torch.compile` was measured to be as fast as eager channels_last, and is left out.
"""

import copy
import time
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.throughput import is_for_imagenet
from tests.reference import torch_models


class TorchSide:
    """Teacher, student and data of one case on the device, and the step to be timed."""

    def __init__(self, teacher: str, student: str, variant: str, compile_mode: str):
        torch.manual_seed(0)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.best, self.cuda, self.compile_mode = variant == "best", self.device == "cuda", compile_mode
        torch.backends.cudnn.benchmark = self.best
        classes = 1000 if is_for_imagenet(teacher) else 10
        self.teacher, self.student = (torch_models.NETWORKS[name](classes) for name in (teacher, student))
        self.teacher.eval()
        channels, size = (1, 32) if teacher.startswith("lenet") else (3, 64)
        with torch.no_grad():
            features = self.teacher(torch.zeros(1, channels, size, size))[1]
        head = torch_models.PUHead(sum(feature.shape[1] for feature in features))
        self.scorer = nn.ModuleDict({"backbone": copy.deepcopy(self.teacher), "head": head})

    def variables(self) -> dict[str, Any]:
        """Return the weights of "teacher", "student" and "scorer" as Flax variables."""
        return {name: torch_models.flax_variables(getattr(self, name)) for name in ("teacher", "student", "scorer")}

    def prepare(self, case: str, batch: dict[str, Any], learning_rate: float) -> None:
        """Move everything to the device and build the step; the batch is as `throughput.make_batch` returns it."""
        layout = torch.channels_last if self.best else torch.contiguous_format
        for net in (self.teacher, self.student, self.scorer):
            net.to(self.device, memory_format=layout)
        nchw = torch.from_numpy(np.ascontiguousarray(batch["images"].transpose(0, 3, 1, 2)))
        self.images = nchw.to(self.device, memory_format=layout)
        self.labels = torch.from_numpy(batch["labels"]).long().to(self.device)
        self.class_weights = torch.from_numpy(batch["class_weights"]).to(self.device)
        trained = {"teacher_step": self.teacher, "finetune_step": self.scorer}.get(case, self.student)
        fused = {"fused": True} if self.best else {}
        self.optimizer = torch.optim.SGD(trained.parameters(), learning_rate, momentum=0.9, weight_decay=5e-4, **fused)
        with torch.no_grad():
            self.cached = self.teacher(self.images)[0]
        step = getattr(self, f"_{case}")
        self.step = torch.compile(step, mode=self.compile_mode) if self.best and self.cuda else step
        trained.train(case != "scoring")

    def run(self) -> float:
        """Take one step; return its loss (0 where nothing is trained)."""
        with torch.autocast(self.device, torch.bfloat16, enabled=self.best and self.cuda):
            return float(self.step())

    def time(self, seconds: float) -> float:
        """Return images per second over at least `seconds`."""
        steps, started = 0, time.perf_counter()
        with torch.autocast(self.device, torch.bfloat16, enabled=self.best and self.cuda):
            while time.perf_counter() - started < seconds:
                torch.compiler.cudagraph_mark_step_begin()
                loss = self.step()
                if not self.best:
                    loss.item()  # the released loop reads the loss back at every step
                steps += 1
            if self.cuda:
                torch.cuda.synchronize()
        return steps * len(self.images) / (time.perf_counter() - started)

    def _scoring(self) -> torch.Tensor:
        with torch.no_grad():
            logits, features = self.teacher(self.images)
            return (logits.float().softmax(-1).amax(-1) + self.scorer["head"](features).float()).sum()

    def _update(self, loss: torch.Tensor) -> torch.Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def _teacher_step(self) -> torch.Tensor:
        return self._update(nn.functional.cross_entropy(self.teacher(self.images)[0].float(), self.labels))

    def _finetune_step(self) -> torch.Tensor:
        logits = self.scorer["head"](self.scorer["backbone"](self.images)[1]).float()
        positive = self.labels % 2 == 0
        positive_risk = 0.1 * torch.sigmoid(-logits[positive]).mean()
        negative_risk = torch.sigmoid(logits[~positive]).mean() - 0.1 * torch.sigmoid(logits[positive]).mean()
        clipped = negative_risk < 0
        value = torch.where(clipped, positive_risk, positive_risk + negative_risk)
        surrogate = torch.where(clipped, -negative_risk, positive_risk + negative_risk)
        return self._update(surrogate + (value - surrogate).detach())

    def _kd(self, teacher_logits: torch.Tensor, temperature: float = 4.0) -> torch.Tensor:
        log_p = torch.log_softmax(teacher_logits.float() / temperature, -1)
        log_q = torch.log_softmax(self.student(self.images)[0].float() / temperature, -1)
        kl = temperature**2 * nn.functional.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)
        weighted = self.class_weights[:, teacher_logits.argmax(-1)] * kl
        return self._update(weighted.mean(-1).amax())

    def _kd_step(self) -> torch.Tensor:
        with torch.no_grad():
            teacher_logits = self.teacher(self.images)[0]
        return self._kd(teacher_logits)

    def _kd_step_cached(self) -> torch.Tensor:
        return self._kd(self.cached)
