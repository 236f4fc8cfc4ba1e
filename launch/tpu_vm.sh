#!/usr/bin/env bash
# Create a Cloud TPU VM slice, install pujax on all its workers, and run one job on all of them.
#   TPU=name ZONE=us-central2-b TYPE=v4-32 launch/tpu_vm.sh --config configs/imagenet8.py --workdir /mnt/shared/run1
# The work directory must be a file system that all workers share. Running the same command again continues the job.
# PUJAX_DISTRIBUTED makes the workers of a slice find each other; a slice of one worker may have it too.
# TPU7x and later are not offered as TPU VMs: create those through Compute Engine or GKE and run the last line there.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${TPU:?set TPU to a name}" "${ZONE:?set ZONE}" "${TYPE:?set TYPE, for example v4-32}"
where=("$TPU" "--zone=$ZONE")
on_all() { gcloud compute tpus tpu-vm ssh "${where[@]}" --worker=all --command="$1"; }

gcloud compute tpus tpu-vm describe "${where[@]}" >/dev/null 2>&1 ||
  gcloud compute tpus tpu-vm create "${where[@]}" --accelerator-type="$TYPE" --version="${RUNTIME:-tpu-ubuntu2204-base}"

archive="$(mktemp -d)/pujax.tar.gz"
git archive --format=tar.gz --output="$archive" HEAD
gcloud compute tpus tpu-vm scp "$archive" "$TPU:pujax.tar.gz" --zone="$ZONE" --worker=all

# The image's own Python is 3.10, too old for JAX: uv brings an interpreter of its own.
on_all 'mkdir -p pujax && tar xzf pujax.tar.gz -C pujax && cd pujax && python3 -m pip install --quiet --user uv &&
  python3 -m uv venv --quiet --allow-existing --python 3.12 .venv &&
  python3 -m uv pip install --quiet --python .venv/bin/python --editable ".[tpu]"'
on_all "cd pujax && PUJAX_DISTRIBUTED=1 .venv/bin/python -m pujax.launch $(printf '%q ' "$@")"
