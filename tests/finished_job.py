"""The small job that several files of tests look at; it runs once for all of them, see `finished` in conftest.py."""

from pujax.config import Config
from pujax.data.embedded import embedded_path


def options(config: Config) -> None:
    """Change the quickstart's options: a student that begins as its teacher, so that four steps leave a good one."""
    config.baselines, config.export.formats = ("random",), ("stablehlo", "onnx")
    config.select.rule, config.select.budget = "top_k", 60
    config.distill.model, config.distill.weights = "lenet5", str(embedded_path("teacher_lenet5.safetensors"))
    config.distill.warmup_steps, config.distill.learning_rate, config.distill.label_weight = 0, 0.1, 5.0
    config.run.log_every = 2
