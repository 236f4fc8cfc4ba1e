#!/usr/bin/env bash
# Everything that only a GPU shows, in slices of at most ten minutes; run it again to do the next ones.
#   benchmarks/run_on_gpu.sh OUT [DATA]
# OUT receives the result lines and one log and one mark a finished slice. DATA holds cifar_train.npz, cifar_test.npz and
# in_pool.npz for the CIFAR-10 protocol. WHEELS, a folder of wheels, serves a machine without network.
set -euo pipefail
cd "$(dirname "$0")/.."
out="${1:?give a folder for the results}"
data="${2:-}"
mkdir -p "$out"
python="${PYTHON:-python3}"
if [[ -n "${WHEELS:-}" ]]; then
  site="$out/site"
  [[ -d "$site" ]] || "$python" -m pip install --quiet --no-index --no-deps --target "$site" "$WHEELS"/*.whl
  export PYTHONPATH="$site:${PYTHONPATH:-}"
fi

slice() { # NAME COMMAND...: run once, within ten minutes
  local name="$1"
  shift
  [[ -e "$out/$name.done" ]] && return
  echo "== $name"
  timeout 600 "$@" 2>&1 | tee "$out/$name.log"
  touch "$out/$name.done"
}

for case in scoring teacher_step kd_step kd_step_cached; do
  slice "cifar_$case" "$python" -m benchmarks.throughput --cases "$case" --batch_size "${BATCH:-1024}" \
    --pairs "${CIFAR_PAIR:-cifar_resnet34:cifar_resnet18}" --seconds "${SECONDS_EACH:-3}" --out "$out/throughput.jsonl"
  slice "imagenet_$case" "$python" -m benchmarks.throughput --cases "$case" --batch_size "${BATCH:-256}" \
    --pairs "${IMAGENET_PAIR:-resnet34:resnet18}" --seconds "${SECONDS_EACH:-3}" --out "$out/throughput.jsonl"
done
if [[ -n "$data" ]]; then
  for seed in 0 1 2; do
    slice "cifar10_$seed" "$python" -m benchmarks.ablation --table cifar10 --data "$data" --seeds 1 --first_seed "$seed" \
      --workdir "$out/runs" --out "$out/cifar10.jsonl"
  done
fi
