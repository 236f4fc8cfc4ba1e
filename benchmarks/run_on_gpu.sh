#!/usr/bin/env bash
# Everything that only a GPU shows, in slices of at most ten minutes; run it again to do the next ones.
#   benchmarks/run_on_gpu.sh OUT [DATA]
# OUT receives the result lines, and a log and a mark of every finished slice. DATA holds cifar_train.npz, cifar_test.npz
# and in_pool.npz for the CIFAR-10 protocol. WHEELS, a folder of wheels, serves a machine without network. A slice that
# does not finish is reported and tried again by the next run; TIME_LEFT (seconds) ends a run before it starts another.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
out="${1:?give a folder for the results}"
data="${2:-}"
mkdir -p "$out"
python="${PYTHON:-python3}"
if [[ -n "${WHEELS:-}" ]]; then
  site="$out/site"
  [[ -d "$site" ]] || "$python" -m pip install --quiet --no-index --no-deps --target "$site" "$WHEELS"/*.whl
  export PYTHONPATH="$site:${PYTHONPATH:-}"
fi
failed=0

slice() { # NAME COMMAND...: run once, within ten minutes
  local name="$1"
  shift
  [[ -e "$out/$name.done" ]] && return
  [[ "$SECONDS" -ge "${TIME_LEFT:-86400}" ]] && return
  echo "== $name"
  if timeout 600 "$@" >"$out/$name.log" 2>&1; then
    touch "$out/$name.done"
  else
    echo "$name did not finish; the end of $out/$name.log:"
    failed=1
  fi
  tail -n 5 "$out/$name.log"
}

for case in ${CASES:-scoring kd_step kd_step_cached finetune_step teacher_step}; do
  for pair in ${CIFAR_PAIRS:-cifar_resnet34:cifar_resnet18}; do
    slice "$case-${pair/:/-}" "$python" -m benchmarks.throughput --cases "$case" --pairs "$pair" \
      --batch_size "${CIFAR_BATCH:-1024}" --seconds "${SECONDS_EACH:-2}" --out "$out/throughput.jsonl"
  done
  for pair in ${IMAGENET_PAIRS:-resnet50:resnet18 resnet34:resnet18 resnet50:mobilenet_v2}; do
    slice "$case-${pair/:/-}" "$python" -m benchmarks.throughput --cases "$case" --pairs "$pair" \
      --batch_size "${IMAGENET_BATCH:-256}" --seconds "${SECONDS_EACH:-2}" --out "$out/throughput.jsonl"
  done
done
if [[ -n "$data" ]]; then
  for seed in 0 1 2; do # a job that runs into the limit goes on from its checkpoint
    slice "cifar10-$seed" "$python" -m benchmarks.ablation --table cifar10 --data "$data" --seeds 1 \
      --first_seed "$seed" --workdir "$out/runs" --out "$out/cifar10.jsonl"
  done
fi
exit "$failed"
