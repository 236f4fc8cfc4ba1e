#!/usr/bin/env bash
# Run one job on this machine's NVIDIA GPUs. A job that ends with status 75, "start me again", is started again.
#   launch/gpu_box.sh --config configs/cifar10.py [any option of pujax.launch]
#   launch/gpu_box.sh --workers=8 --config configs/imagenet8.py --workdir runs/a
# --workers=N  score by N processes, each on a GPU of its own: N times the decoders of one process. All GPUs together do
#              what comes before and after.
# --dry_run    print the commands, run none
# SIGTERM and Ctrl-C are handed on: the job saves what it has, and this script ends with its status, 75.
# Environment: PYTHON, the interpreter to make .venv with; PAUSE, seconds before a restart (10).
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/common.sh
source launch/common.sh

dry_run='' workers=0
while (($#)); do
  case "$1" in
    --help | -h) usage && exit ;;
    --dry_run) dry_run=1 ;;
    --workers=*) workers="${1#*=}" ;;
    --config | --config=*) break ;;
    *) fail "unknown option $1; options of pujax.launch come after --config" ;;
  esac
  shift
done
(($#)) || fail "no --config; see --help"
[[ "$workers" =~ ^[0-9]+$ ]] || fail "--workers=$workers is no number"
[[ "$workers" == 0 || -z "$(given --stages "$@")" ]] || fail "--workers chooses the stages itself; leave --stages out"

if [[ ! -e .venv/.cuda ]]; then
  run "${PYTHON:-python3}" -m venv .venv
  run .venv/bin/python -m pip install --quiet --editable ".[cuda,gcs,s3]"
  run touch .venv/.cuda
fi
job=(.venv/bin/python -m pujax.launch "$@")
told='' children=()

tell() {
  told=1
  kill -TERM "${children[@]}" 2>/dev/null || true
}

wait_for() { # PID: its status, whatever signals come meanwhile
  local status=0 again=0
  wait "$1" || status=$?
  while kill -0 "$1" 2>/dev/null; do # a signal cut the waiting short
    status=0
    wait "$1" || status=$?
  done
  if ((status > 128)); then # the signal's number, though the process may have ended with a status of its own
    wait "$1" 2>/dev/null || again=$?
    ((again == 127)) || status=$again
  fi
  return "$status"
}

keep_running() { # COMMAND...: again as long as it ends with 75 and nobody told this script to stop; its last status
  local status=75
  trap tell TERM INT # once more: a subshell has none of its parent's
  while [[ "$status" == 75 && -z "$told" ]]; do
    "$@" &
    children=("$!")
    [[ -z "$told" ]] || tell # told before there was anyone to hand it on to
    status=0
    wait_for "$!" || status=$?
    if [[ "$status" == 75 && -z "$told" ]]; then
      echo "${0##*/}: starting the job again" >&2
      sleep "${PAUSE:-10}"
    fi
  done
  return "$status"
}

if [[ -n "$dry_run" ]]; then
  keep_running() { run "$@"; }
fi
if ((workers)); then
  keep_running "${job[@]}" --stages=teacher,scorer
  pids=()
  for ((i = 0; i < workers; i++)); do
    keep_running env CUDA_VISIBLE_DEVICES="$i" "${job[@]}" --stages=score &
    pids+=("$!")
    [[ -z "$dry_run" ]] || wait
  done
  children=("${pids[@]}")
  trap tell TERM INT
  [[ -z "$told" ]] || tell # told while they were being started
  for pid in "${pids[@]}"; do
    status=0
    wait_for "$pid" || status=$?
    [[ "$status" != 2 ]] || exit 2 # the input is wrong; what another worker left undone, the job below does
  done
  [[ -z "$told" ]] || exit 75
fi
keep_running "${job[@]}"
