#!/usr/bin/env bash
# Sends the job to a cluster of xpk.
# Written by mim_jax.tools.launch, after
#   github.com/AI-Hypercomputer/xpk/blob/main/docs/usage/clusters.md
#   github.com/AI-Hypercomputer/xpk/blob/main/docs/usage/storage.md
#   github.com/AI-Hypercomputer/xpk/blob/main/docs/usage/workloads.md
#   github.com/AI-Hypercomputer/xpk/blob/main/docs/usage/docker.md
set -euo pipefail

cluster=(xpk cluster create --cluster=CLUSTER --project=PROJECT --zone=us-west4-a --tpu-type=v5litepod-16 --num-slices=1 --spot)
# shellcheck disable=SC2016,SC2054 # the machines expand it, and commas are part of words
storage_1=(xpk storage attach bucket --cluster=CLUSTER --project=PROJECT --zone=us-west4-a --type=gcsfuse --bucket=BUCKET --mount-point=/mnt/gcs/BUCKET --mount-options=implicit-dirs,metadata-cache:ttl-secs:0,metadata-cache:negative-ttl-secs:0,rename-dir-limit=0 --size=1 --readonly=false --auto-mount=false)
# shellcheck disable=SC2016,SC2054 # the machines expand it, and commas are part of words
workload=(xpk workload create --cluster=CLUSTER --project=PROJECT --zone=us-west4-a --tpu-type=v5litepod-16 --num-slices=1 --workload=mim-jax --docker-image=python:3.12 --storage=bucket --max-restarts=50 --restart-on-exit-codes=1 --termination-grace-period-seconds=120 '--command=set -euo pipefail; mountpoint -q /mnt/gcs/BUCKET || { echo "mim_jax: gs://BUCKET is not mounted at /mnt/gcs/BUCKET" >&2; exit 74; }; { probe=$(mktemp -d /mnt/gcs/BUCKET/.probe.XXXXXX) && touch "$probe/file" && mv "$probe" "$probe.moved"; } || { rm -rf "${probe-}"; echo "mim_jax: gs://BUCKET has to be writable, and to have a hierarchical namespace (gcloud storage buckets create --enable-hierarchical-namespace --uniform-bucket-level-access)" >&2; exit 74; }; rm -r "$probe.moved"; trap '"'"'exit 1'"'"' ERR; [ -d mim_jax ] || git clone --quiet --no-checkout https://github.com/OWNER/mim_jax.git mim_jax; git -C mim_jax fetch --quiet origin main; git -C mim_jax checkout --quiet --detach FETCH_HEAD; cd mim_jax; PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv; [ -d .venv ] || python3 -m uv venv --quiet --python '"'"'>=3.11,<3.13'"'"' .venv; python3 -m uv pip install --quiet --python .venv/bin/python -e '"'"'.[tpu]'"'"'; trap - ERR; export PATH="$PWD/.venv/bin:$PATH"; python -m mim_jax.tools.doctor --hosts=4 --timeout=1800 --workdir=/mnt/gcs/BUCKET/mae_b16 --data=DATA; exec python -m mim_jax.main --config=configs/mae.py:vit_b16 --workdir=/mnt/gcs/BUCKET/mae_b16 --config.data.path=DATA')

case "${1:-workload}" in
  cluster) "${cluster[@]}" ;; # once
  storage) # once for each bucket
    "${storage_1[@]}"
    ;;
  workload) "${workload[@]}" ;;
esac
