#!/usr/bin/env bash
# Run one job on this machine's NVIDIA GPUs.
#   launch/gpu_box.sh --config configs/cifar10.py [any option of pujax.launch]
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-python3}"
if [[ ! -e .venv/.cuda ]]; then
  "$python" -m venv .venv
  .venv/bin/python -m pip install --quiet --editable ".[cuda]"
  touch .venv/.cuda
fi
exec .venv/bin/python -m pujax.launch "$@"
