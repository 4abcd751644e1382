#!/usr/bin/env bash
# gpu_slot.sh N COMMAND...: run COMMAND with one of this machine's N GPUs to itself. For a machine without a scheduler: Snakemake counts
# GPUs, but tells no job which one is its own. The locks end with their holders.
set -euo pipefail
count=$1
shift
folder=${MERGELIB_SLOTS:-${TMPDIR:-/tmp}/mergelib-gpus-$(id -u)}
mkdir -p "$folder"
while true; do
  for ((i = 0; i < count; i++)); do
    exec {lock}>"$folder/$i.lock"
    if flock --nonblock "$lock"; then
      CUDA_VISIBLE_DEVICES=$i exec "$@"
    fi
    exec {lock}>&-
  done
  sleep 1
done
