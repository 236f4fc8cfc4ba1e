#!/usr/bin/env bash
# Run one job on a Cloud TPU VM slice: create it, install pujax on all its workers, run, fetch the report.
#   TPU=name ZONE=us-west4-a TYPE=v5litepod-16 launch/tpu_vm.sh --queued --spot --delete \
#     --config configs/imagenet8.py --workdir /mnt/shared/run1
# --queued   ask by a queued resource, and wait until the slice is there
# --spot     cheaper, and may be taken away at any time: the slice is then made anew, and the job goes on
# --delete   delete the slice when the job has ended well
# --dry_run  print the commands, run none
# A slice that is there is used; a job that ends with status 75 is started again. The last commit is what runs. The work
# directory must be a file system that all workers share (a slice of one worker may have a bucket); report.html and
# summary.json come to runs/$TPU. PUJAX_DISTRIBUTED makes the workers of a slice find each other.
# Environment: TPU, ZONE, TYPE; SETUP, a command for every worker before each start, where something is to be mounted:
# SETUP='mountpoint -q /mnt/shared || sudo mount 10.0.0.2:/share /mnt/shared'; RUNTIME, the image, where the one for TYPE
# is not wanted; PAUSE, seconds between two looks (30).
# TPU7x and later are not offered as TPU VMs: see launch/gke.sh.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=launch/common.sh
source launch/common.sh

dry_run='' queued='' spot='' delete=''
while (($#)); do
  case "$1" in
    --help | -h) usage && exit ;;
    --dry_run) dry_run=1 ;;
    --queued) queued=1 ;;
    --spot) spot=1 ;;
    --delete) delete=1 ;;
    --config | --config=*) break ;;
    *) fail "unknown option $1; options of pujax.launch come after --config" ;;
  esac
  shift
done
(($#)) || fail "no --config; see --help"
needs TPU "a name for the slice"
needs ZONE "for example us-west4-a"
needs TYPE "for example v5litepod-16"
case "$TYPE" in
  v6e*) image=v2-alpha-tpuv6e ;;
  v5p*) image=v2-alpha-tpuv5 ;;
  v5lite*) image=v2-alpha-tpuv5-lite ;;
  *) image=tpu-ubuntu2204-base ;;
esac
runtime="${RUNTIME:-$image}"
archive="${TMPDIR:-/tmp}/pujax-$TPU.tar.gz"
config="$(given --config "$@")"
workdir="$(given --workdir "$@")"
workdir="${workdir:-runs/$(basename "$config" .py)}"
vm=(gcloud compute tpus tpu-vm)
request=(gcloud compute tpus queued-resources)
assumed='' # the state that --dry_run takes the slice to be in

create() {
  if [[ -n "$queued" ]]; then
    run "${request[@]}" create "$TPU" --node-id="$TPU" --zone="$ZONE" --accelerator-type="$TYPE" \
      --runtime-version="$runtime" ${spot:+--spot}
  else
    run "${vm[@]}" create "$TPU" --zone="$ZONE" --accelerator-type="$TYPE" --version="$runtime" ${spot:+--spot}
  fi
  assumed="${dry_run:+READY}"
}

remove() {
  if [[ -n "$queued" ]]; then
    run "${request[@]}" delete "$TPU" --zone="$ZONE" --force --quiet
  else
    run "${vm[@]}" delete "$TPU" --zone="$ZONE" --quiet
  fi
}

state() { # of the slice or, where it is neither ready nor taken away, of the request for it; "" if there is none
  local found
  found="$(run "${vm[@]}" describe "$TPU" --zone="$ZONE" --format='value(state)' 2>/dev/null || true)"
  if [[ -n "$queued" && "$found" != READY && "$found" != PREEMPTED ]]; then
    found="$(run "${request[@]}" describe "$TPU" --zone="$ZONE" --format='value(state.state)' 2>/dev/null || true)"
  fi
  printf '%s' "${found:-$assumed}"
}

make_ready() {
  local now
  while true; do
    now="$(state)"
    case "$now" in
      READY) return ;;
      '') create ;;
      PREEMPTED | TERMINATED | SUSPENDED)
        remove
        create
        ;;
      FAILED)
        echo "tpu_vm.sh: the request for $TPU failed; ${request[*]} describe $TPU --zone=$ZONE says why" >&2
        exit 1
        ;;
      *) # CREATING, WAITING_FOR_RESOURCES, PROVISIONING, SUSPENDING, ...
        echo "tpu_vm.sh: $TPU is $now" >&2
        sleep "${PAUSE:-30}"
        ;;
    esac
  done
}

on_all() { # TEXT: for the shells of all workers; the status is that of the first worker that has another than 0
  run "${vm[@]}" ssh "$TPU" --zone="$ZONE" --worker=all --command="$1"
}

# The image's own Python is 3.10, too old for JAX: uv brings an interpreter of its own.
install='mkdir -p pujax && tar xzf pujax.tar.gz -C pujax && cd pujax && python3 -m pip install --quiet --user uv'
install+=' && python3 -m uv venv --quiet --allow-existing --python 3.12 .venv'
install+=' && python3 -m uv pip install --quiet --python .venv/bin/python --editable ".[tpu,gcs]"'

attempt() { # ARGUMENT...: of pujax.launch
  run "${vm[@]}" scp "$archive" "$TPU:pujax.tar.gz" --zone="$ZONE" --worker=all &&
    on_all "${SETUP:+($SETUP) && }$install" &&
    on_all "cd pujax && PUJAX_DISTRIBUTED=1 .venv/bin/python -m pujax.launch $(quoted "$@")"
}

fetch() { # FILE of the work directory
  local there="$workdir/$1"
  if [[ "$workdir" == *://* ]]; then
    run gcloud storage cp "$there" "runs/$TPU/"
  else
    [[ "$workdir" == /* ]] || there="pujax/$there"
    run "${vm[@]}" scp "$TPU:$there" "runs/$TPU/" --zone="$ZONE" --worker=0
  fi
}

run git archive --format=tar.gz --output="$archive" HEAD
while true; do
  make_ready
  status=0
  attempt "$@" || status=$?
  [[ "$status" != 0 ]] || break
  [[ "$status" != 255 ]] || sleep "${PAUSE:-30}" # no connection: a slice that is taken away takes a while to say so
  if [[ "$status" != 75 && ("$status" == 2 || "$(state)" == READY) ]]; then
    echo "tpu_vm.sh: the job ended with status $status; the same command continues it" >&2
    exit "$status"
  fi
  echo "tpu_vm.sh: starting the job again" >&2
  sleep "${PAUSE:-30}"
done
run mkdir -p "runs/$TPU"
for file in report.html summary.json; do
  fetch "$file" || echo "tpu_vm.sh: there is no $file in $workdir" >&2
done
[[ -z "$delete" ]] || remove
