#!/usr/bin/env bash
# Run a job on GKE: on a TPU slice (launch/gke_jobset.yaml), or its scoring on spot GPUs (launch/gke_score.yaml).
#   IMAGE=us-docker.pkg.dev/p/r/pujax:tpu NODEPOOL=v5e-16 TOPOLOGY=4x4 HOSTS=4 \
#     launch/gke.sh --config configs/imagenet8.py --workdir /work/run1
#   IMAGE=us-docker.pkg.dev/p/r/pujax:cuda GPU=nvidia-l4 \
#     launch/gke.sh --workers=32 --config configs/imagenet8.py --workdir /work/run1
# --workers=N  the scoring, by N independent pods with a GPU each
# --dry_run    print the command with the manifest that it would apply, run nothing
# Status 75 and a machine that is taken away start a pod again, status 2 ends the job. `kubectl logs -f -l
# batch.kubernetes.io/job-name=pujax-slice-0` shows it. A name serves once: `kubectl delete jobset pujax`, or `job
# pujax-score`, ends a job and makes room for the next.
# Environment: IMAGE, from launch/Containerfile; NAME (pujax); CLAIM, the volume claim that is mounted at /work (pujax).
# For a slice NODEPOOL, TOPOLOGY, HOSTS, TPU_KIND (tpu-v5-lite-podslice) and CHIPS a host (4); for workers GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/common.sh
source launch/common.sh

dry_run='' WORKERS=''
while (($#)); do
  case "$1" in
    --help | -h) usage && exit ;;
    --dry_run) dry_run=1 ;;
    --workers=*) WORKERS="${1#*=}" ;;
    --config | --config=*) break ;;
    *) fail "unknown option $1; options of pujax.launch come after --config" ;;
  esac
  shift
done
(($#)) || fail "no --config; see --help"
workdir="$(given --workdir "$@")"
[[ "$workdir" == /work/* || "$workdir" == *://* ]] || fail "a pod's own disk goes with it: give --workdir /work/NAME"
needs IMAGE "the address of an image from launch/Containerfile"
NAME="${NAME:-pujax}" CLAIM="${CLAIM:-pujax}" TPU_KIND="${TPU_KIND:-tpu-v5-lite-podslice}" CHIPS="${CHIPS:-4}"
if [[ -n "$WORKERS" ]]; then
  [[ "$WORKERS" =~ ^[1-9][0-9]*$ ]] || fail "--workers=$WORKERS is no number of pods"
  [[ -z "$(given --stages "$@")" ]] || fail "--workers scores; leave --stages out"
  needs GPU "for example nvidia-l4"
  manifest=launch/gke_score.yaml
  set -- "$@" --stages=score
else
  needs NODEPOOL "the node pool of the slice"
  needs TOPOLOGY "of the slice, for example 4x4"
  needs HOSTS "the number of machines of the slice, for example 4"
  manifest=launch/gke_jobset.yaml
fi

ARGS='' # as a list in YAML; double quotes keep everything but themselves and backslashes
for argument in "$@"; do
  argument="${argument//\\/\\\\}"
  ARGS+="${ARGS:+, }\"${argument//\"/\\\"}\""
done
text="$(<"$manifest")"
for name in NAME CLAIM IMAGE ARGS WORKERS GPU NODEPOOL TOPOLOGY HOSTS TPU_KIND CHIPS; do
  value="${!name:-}"
  text=${text//__${name}__/"$value"}
done

if [[ -n "$dry_run" ]]; then
  printf "kubectl apply -f - <<'EOF'\n%s\nEOF\n" "$text"
else
  kubectl apply -f - <<<"$text"
fi
