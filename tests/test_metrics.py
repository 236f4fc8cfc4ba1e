"""The log of a run's metrics."""

import json
import subprocess
import sys

SCRIPT = """
import sys
from pathlib import Path
from pujax.metrics import MetricsLog
log = MetricsLog(Path(sys.argv[1]), enabled=True)
log.write(3, {"distill/loss": 1.5})
log.write(7, {"distill/loss": 0.5})
log.close()
assert "torch" not in sys.modules
import torch
assert torch.ones(2).sum() == 2
"""


def test_what_is_logged_is_in_both_logs_and_pytorch_is_not_imported_for_it(tmp_path):
    subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], check=True)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 3, "distill/loss": 1.5}, {"step": 7, "distill/loss": 0.5}]
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert events.read_bytes().count(b"distill/loss") == 2
