#!/usr/bin/env bash
# Run a job by SkyPilot, as launch/skypilot.yaml says: on spot machines, started again when they are taken away.
#   launch/sky.sh --gpus=A100:8 --config configs/imagenet8.py --workdir s3://bucket/run1
#   launch/sky.sh --workers=16 --gpus=L4:1 --config configs/imagenet8.py --workdir s3://bucket/run1
# --workers=N  score by N managed jobs that know nothing of each other, when teacher and scorer stages are done
# --dry_run    print the commands, run none
# Other options before --config go to `sky jobs launch`. `sky jobs queue` lists the jobs, `sky jobs cancel` ends them.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/common.sh
source launch/common.sh

dry_run='' workers='' options=()
while (($#)); do
  case "$1" in
    --help | -h) usage && exit ;;
    --dry_run) dry_run=1 ;;
    --workers=*) workers="${1#*=}" ;;
    --config | --config=*) break ;;
    *) options+=("$1") ;;
  esac
  shift
done
(($#)) || fail "no --config; see --help"
workdir="$(given --workdir "$@")"
[[ "$workdir" == *://* || "$workdir" == /* ]] || fail "a machine's own disk goes with it: give --workdir s3://BUCKET/NAME"
[[ "$workers" =~ ^([1-9][0-9]*)?$ ]] || fail "--workers=$workers is no number of jobs"
[[ -z "$workers" || -z "$(given --stages "$@")" ]] || fail "--workers scores; leave --stages out"

launch() { # NAME ARGUMENT...: of pujax.launch
  local name="$1"
  shift
  run sky jobs launch --yes --detach-run --name "$name" ${options[@]+"${options[@]}"} \
    --env PUJAX_ARGS="$(quoted "$@")" launch/skypilot.yaml
}

if [[ -z "$workers" ]]; then
  launch pujax "$@"
else
  for ((i = 0; i < workers; i++)); do
    launch "pujax-score-$i" "$@" --stages=score
  done
fi
