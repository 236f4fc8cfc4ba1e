#!/usr/bin/env bash
# Everything that only a GPU shows, in slices of at most ten minutes; run it again to do the next ones.
#   benchmarks/run_on_gpu.sh OUT [DATA]
# OUT receives the result lines, and a log and a mark of every finished slice. DATA holds cifar_train.npz, cifar_test.npz
# and in_pool.npz for the CIFAR-10 protocol. WHEELS, a folder of wheels, serves a machine without network. A slice that
# does not finish is reported and tried again by the next run; TIME_LEFT (seconds) ends a run before it starts another.
# COMPILE_MODES are tried for torch.compile: the fastest is what pujax is to be compared with. ABLATION_OPTIONS go to
# the CIFAR-10 protocol (the paper's networks and 10,000 updates unless given).
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

throughput() { # CASE TEACHER:STUDENT BATCH
  for mode in ${COMPILE_MODES:-max-autotune}; do
    slice "$1-${2/:/-}-$mode" "$python" -m benchmarks.throughput --cases "$1" --pairs "$2" --batch_size "$3" \
      --compile_mode "$mode" --seconds "${SECONDS_EACH:-2}" --rounds "${ROUNDS:-5}" --out "$out/throughput.jsonl"
  done
}

for case in ${CASES:-scoring kd_step kd_step_cached finetune_step teacher_step}; do
  for pair in ${CIFAR_PAIRS:-cifar_resnet34:cifar_resnet18}; do
    throughput "$case" "$pair" "${CIFAR_BATCH:-1024}"
  done
  for pair in ${IMAGENET_PAIRS:-resnet50:resnet18 resnet34:resnet18 resnet50:mobilenet_v2}; do
    throughput "$case" "$pair" "${IMAGENET_BATCH:-256}"
  done
done
slice input_pipeline "$python" -m benchmarks.input_pipeline --images "${IMAGES:-50000}" --files "${FILES:-512}" \
  --seconds "${SECONDS_EACH:-1}" --rounds "${ROUNDS:-5}" --out "$out/input_pipeline.jsonl"
slice job "$python" -m benchmarks.job --epochs "${EPOCHS:-170}" --rounds "${JOB_ROUNDS:-3}" --out "$out/job.jsonl"
if [[ -n "$data" ]]; then
  for seed in 0 1 2; do # a job that runs into the limit goes on from its checkpoint
    # shellcheck disable=SC2086  # options are words
    slice "cifar10-$seed" "$python" -m benchmarks.ablation --table cifar10 --data "$data" --seeds 1 \
      --first_seed "$seed" ${ABLATION_OPTIONS:---networks paper --steps 10000} --workdir "$out/runs" --out "$out/cifar10.jsonl"
  done
fi
exit "$failed"
